import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, Mixture1D

from ddim_jax.diffusion import solvers
from ddim_jax.diffusion.ddim import ddim_table
from ddim_jax.diffusion.prediction import make_predict
from ddim_jax.diffusion.samplers import make_sampler
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels
from ddim_jax.diffusion.table import sample
from ddim_jax.errors import UserError

LINEAR = make_schedule("linear")
# The same process in so many levels that any step ends on one, but for a negligible bit.
FINE = make_schedule("linear", 200_000, 0.1 / 200_000, 20 / 200_000)
SOLVERS = ("heun", "ab2", "ab3", "ab4", "plms", "dpmpp_2m", "unipc2", "unipc3")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def pairs_of(steps, spacing="uniform", schedule=LINEAR):
    return level_pairs(sampling_levels(spacing, schedule.num_levels, steps, schedule))


def toy_network(x, time):
    """Nonlinear in x and dependent on time, for NumPy and JAX arrays alike."""
    return 0.8 * x - 0.3 * x**3 / (1 + x**2) + time.reshape(-1, 1, 1, 1) / 4000


def some_images(seed=0):
    return np.random.default_rng(seed).normal(size=(2, 3, 3, 2))


# --- order of convergence -----------------------------------------------------------------------

# Slopes that hold for 40 to 160 steps, in which no error is near rounding. Where a solver is of order p in theory the
# slope is near -p; UniPC's corrector adds 1 to the order of its name.
SLOPES = {
    "ddim": (-1.05, -0.95),
    "heun": (-2.15, -1.95),
    "ab2": (-2.15, -1.75),
    "ab3": (-3.2, -2.6),
    "ab4": (-4.3, -3.3),
    "plms": (-2.6, -1.85),
    "dpmpp_2m": (-2.15, -1.9),
    "unipc2": (-3.3, -2.7),
    "unipc3": (-4.6, -3.0),
}


def log_snr_pairs(steps, end):
    """From the noisiest level to ``end``, which is still noisy, in equal steps of log SNR."""
    log_snr = FINE.log_snr
    wanted = np.linspace(log_snr[-1], log_snr[end], steps + 1)
    levels = len(log_snr) - 1 - np.searchsorted(log_snr[::-1], wanted)
    return np.stack([levels[:-1], levels[1:]], axis=1)


@pytest.mark.parametrize("data", ["gaussian", pytest.param("mixture", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SLOPES)
def test_order_of_convergence(name, data):
    """Errors against the exact flow, down to level 200 of 200,000, which is level 1 of 1000."""
    oracle = Gaussian(mean=0.3, deviation=0.5) if data == "gaussian" else Mixture1D([0.3, 0.7], [-0.6, 0.5], 0.2)
    x = np.linspace(-2.5, 2.5, 40).reshape(1, 5, 4, 2)
    end = 200
    exact = oracle.flow(x, FINE.alpha_bar[-1], FINE.alpha_bar[end])
    counts = [40, 80, 160]
    errors = []
    for steps in counts:
        sampler = make_sampler(name, FINE, log_snr_pairs(steps, end))
        result = jax.jit(lambda x, run=sampler.run: run(oracle.predict, x))(jnp.asarray(x))
        errors.append(np.sqrt(np.mean((np.asarray(result) - exact) ** 2)))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    low, high = SLOPES[name]
    assert low < slope < high, (slope, errors)


def test_orders_rank_as_they_should_at_equal_cost():
    oracle = Mixture1D([0.3, 0.7], [-0.6, 0.5], 0.2)
    x = np.linspace(-2.5, 2.5, 40).reshape(1, 5, 4, 2)
    exact = oracle.flow(x, FINE.alpha_bar[-1], FINE.alpha_bar[200])
    errors = {}
    for name in ("ddim", "dpmpp_2m", "unipc2", "unipc3"):
        sampler = make_sampler(name, FINE, log_snr_pairs(40, 200))
        assert sampler.evaluations == 40
        errors[name] = np.abs(np.asarray(sampler.run(oracle.predict, jnp.asarray(x))) - exact).max()
    assert errors["unipc3"] < errors["unipc2"] < errors["dpmpp_2m"] < errors["ddim"] / 10


# --- against plain loops written from the papers ----------------------------------------------------


def rates(level):
    return np.sqrt(LINEAR.alpha_bar[level]), np.sqrt(1 - LINEAR.alpha_bar[level])


def eps_of(x, level):
    return toy_network(x, np.full(len(x), level - 1.0))


def x0_of(x, level):
    alpha, sigma = rates(level)
    return (x - sigma * eps_of(x, level)) / alpha


def transfer(x, eps, level, level_next):
    """DDIM's step with the given noise."""
    (alpha, sigma), (alpha_next, sigma_next) = rates(level), rates(level_next)
    return alpha_next * (x - sigma * eps) / alpha + sigma_next * eps


def plain_heun(x, pairs):
    for level, level_next in pairs:
        eps = eps_of(x, level)
        trial = transfer(x, eps, level, level_next)
        x = transfer(x, (eps + eps_of(trial, level_next)) / 2, level, level_next) if level_next else trial
    return x


def plain_plms(x, pairs):
    history = []
    for step, (level, level_next) in enumerate(pairs):
        eps = eps_of(x, level)
        history = [eps, *history]
        if step == 0:
            trial = transfer(x, eps, level, level_next)
            mixed = (eps + eps_of(trial, level_next)) / 2
        elif step == 1:
            mixed = (3 * history[0] - history[1]) / 2
        elif step == 2:
            mixed = (23 * history[0] - 16 * history[1] + 5 * history[2]) / 12
        else:
            mixed = (55 * history[0] - 59 * history[1] + 37 * history[2] - 9 * history[3]) / 24
        x = transfer(x, mixed, level, level_next)
    return x


def plain_ab2(x, pairs):
    """By the trapezoid under the line through two predictions over sigma / alpha."""
    ratios, history = [], []
    for level, level_next in pairs:
        (alpha, sigma), (alpha_next, sigma_next) = rates(level), rates(level_next)
        ratios, history = [sigma / alpha, *ratios], [eps_of(x, level), *history]
        mixed = history[0]
        if len(history) > 1:
            middle = (sigma_next / alpha_next + ratios[0]) / 2
            mixed = history[0] + (history[0] - history[1]) * (middle - ratios[0]) / (ratios[0] - ratios[1])
        x = transfer(x, mixed, level, level_next)
    return x


def plain_dpmpp_2m(x, pairs):
    """DPM-Solver++, algorithm 2, with the last step to the clean image."""
    before = None
    for level, level_next in pairs:
        (alpha, sigma), (alpha_next, sigma_next) = rates(level), rates(level_next)
        x0, lam = x0_of(x, level), np.log(alpha / sigma)
        if level_next == 0:
            return x0
        h = np.log(alpha_next / sigma_next) - lam
        D = x0
        if before is not None:
            r = (lam - before[1]) / h
            D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before[0]
        x = sigma_next / sigma * x - alpha_next * (np.exp(-h) - 1) * D
        before = x0, lam
    return None


def plain_unipc2(x, pairs):
    """UniPC, B(h) = e^h - 1 of h < 0: UniP-2 and then UniC-2 by its 2 x 2 system, as in the paper's appendix."""
    lams, x0s, corrected_from = [], [], None
    for step, (level, level_next) in enumerate(pairs):
        alpha, sigma = rates(level)
        x0 = x0_of(x, level)
        if corrected_from is not None:
            start, sigma_start, h, order = corrected_from
            B = np.expm1(-h)
            if order == 1:
                residual = 0.5 * (x0 - x0s[0])
            else:
                r = (lams[1] - lams[0]) / h
                phi_1 = B / -h - 1
                phi_2 = phi_1 / -h - 1 / 2
                rho = np.linalg.solve([[1, 1], [r, 1]], [phi_1 / B, phi_2 * 2 / B])
                residual = rho[0] * (x0s[1] - x0s[0]) / r + rho[1] * (x0 - x0s[0])
            x = sigma / sigma_start * start - alpha * B * x0s[0] - alpha * B * residual
        lams, x0s = [np.log(alpha / sigma), *lams], [x0, *x0s]
        if level_next == 0:
            return x0
        alpha_next, sigma_next = rates(level_next)
        h = np.log(alpha_next / sigma_next) - lams[0]
        B = np.expm1(-h)
        order = min(2, step + 1)
        corrected_from = x, sigma, h, order
        slope = 0.5 * (x0s[1] - x0s[0]) / ((lams[1] - lams[0]) / h) if order == 2 else 0.0
        x = sigma_next / sigma * x - alpha_next * B * x0 - alpha_next * B * slope
    return None


@pytest.mark.parametrize("spacing", ["uniform", "quad", "logsnr"])
@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("heun", plain_heun),
        ("plms", plain_plms),
        ("ab2", plain_ab2),
        ("dpmpp_2m", plain_dpmpp_2m),
        ("unipc2", plain_unipc2),
    ],
)
def test_scan_equals_the_plain_loop(name, plain, spacing):
    x, pairs = some_images(), pairs_of(9, spacing)
    result = make_sampler(name, LINEAR, pairs).run(make_predict(toy_network, "eps"), jnp.asarray(x))
    np.testing.assert_allclose(result, plain(x, pairs), rtol=1e-9, atol=1e-9)


def test_orders_1_are_ddim():
    x, pairs = jnp.asarray(some_images()), pairs_of(9)
    predict = make_predict(toy_network, "eps", "rederive_eps")
    expected = make_sampler("ddim", LINEAR, pairs).run(predict, x)
    for table in (solvers.ddim_solver_table(LINEAR, pairs), solvers.adams_bashforth_table(LINEAR, pairs, 1)):
        np.testing.assert_allclose(sample(predict, x, table), expected, rtol=1e-9, atol=1e-10)


def test_adams_bashforth_knows_the_classical_coefficients():
    weights = solvers._integrated_lagrange(np.array([0.0, -1.0, -2.0, -3.0]), 0.0, 1.0)
    np.testing.assert_allclose(weights, np.array([55, -59, 37, -9]) / 24, rtol=1e-13)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_row_reproduces_a_constant_prediction(name):
    """With x0 and eps constant along the way, every solver goes straight to the right point, whatever the levels."""
    rng = np.random.default_rng(3)
    x0, eps = rng.normal(size=(2, 1, 3, 3, 2))
    pairs = level_pairs(np.sort(rng.choice(np.arange(1, 1001), 12, replace=False))[::-1])
    (alpha, sigma) = rates(pairs[0, 0])
    network = make_predict(lambda x, time: jnp.asarray(eps), "eps")
    result = make_sampler(name, LINEAR, pairs).run(network, jnp.asarray(alpha * x0 + sigma * eps))
    np.testing.assert_allclose(result, x0, atol=1e-9)


# --- what the tables promise --------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_and_levels_asked_about(name, steps):
    asked = []

    def network(x, time):
        jax.debug.callback(lambda time: asked.append(float(time)), time[0], ordered=True)
        return toy_network(x, time)

    sampler = make_sampler(name, LINEAR, pairs_of(steps))
    x = sampler.run(make_predict(network, "eps"), jnp.asarray(some_images()))
    jax.block_until_ready(x)
    jax.effects_barrier()
    expected = {"heun": 2 * steps - 1, "plms": steps + (steps > 1)}.get(name, steps)
    assert sampler.evaluations == len(asked) == expected
    assert sampler.steps == steps
    assert asked == sampler.table.time.tolist()
    assert min(asked) >= 0  # nobody asks the network about level 0
    assert np.all(np.isfinite(x))


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc2", "unipc3"])
def test_solvers_of_the_clean_image_start_from_nothing_but_noise(name):
    jsd = make_schedule("jsd")
    sampler = make_sampler(name, jsd, level_pairs(np.array([1000, 700, 400, 100, 1])))
    assert all(np.isfinite(column).all() for column in sampler.table)
    assert np.isfinite(sampler.run(make_predict(toy_network, "v"), jnp.asarray(some_images()))).all()


@pytest.mark.parametrize("name", ["heun", "ab2", "plms"])
def test_solvers_of_the_noise_refuse_levels_of_nothing_but_noise(name):
    with pytest.raises(UserError, match=r"level 1000, which is pure noise.*dpmpp_2m"):
        make_sampler(name, make_schedule("jsd"), pairs_of(10, "trailing"))


@pytest.mark.parametrize("name", SOLVERS)
def test_levels_that_occur_twice_are_refused(name):
    with pytest.raises(UserError, match=r"level \d+ does here; choose a spacing without") as caught:
        make_sampler(name, LINEAR, pairs_of(100, "quad_published"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SOLVERS)
def test_eta_is_refused_where_it_would_do_nothing(name):
    with pytest.raises(UserError, match=f"eta=0.5: sampler '{name}' adds no noise"):
        make_sampler(name, LINEAR, pairs_of(10), eta=0.5)


def test_unknown_names_and_orders():
    with pytest.raises(UserError, match="choose from: ddim, ddpm_small"):
        make_sampler("dpm", LINEAR, pairs_of(10))
    with pytest.raises(UserError, match="choose from: 1, 2, 3, 4"):
        solvers.adams_bashforth_table(LINEAR, pairs_of(10), 5)
    with pytest.raises(UserError, match="choose from: 1, 2, 3"):
        solvers.unipc_table(LINEAR, pairs_of(10), 4)


@pytest.mark.parametrize("pairs", [[[500, 400], [300, 0]], [[500, 400], [400, 450]], [[1001, 0]]])
def test_chains_with_gaps_or_turns_are_refused(pairs):
    with pytest.raises(ValueError, match="steps must"):
        solvers.heun_table(LINEAR, np.array(pairs))


@pytest.mark.parametrize("name", SOLVERS)
def test_clipping_takes_effect_and_both_kinds_are_one(name):
    x = jnp.asarray(5 * some_images())
    sampler = make_sampler(name, LINEAR, pairs_of(6))
    free, kept, rederived = (
        sampler.run(make_predict(toy_network, "eps", clip), x) for clip in ("none", "keep_eps", "rederive_eps")
    )
    np.testing.assert_allclose(kept, rederived, rtol=1e-12)
    assert np.abs(free - kept).max() > 0.1


@pytest.mark.parametrize("name", SOLVERS)
def test_float32_stays_close_to_float64(name):
    sampler = make_sampler(name, LINEAR, pairs_of(20))
    oracle = Gaussian(mean=0.3, deviation=0.5)
    x = jnp.asarray(some_images())
    single = sampler.run(oracle.predict, x.astype(jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, sampler.run(oracle.predict, x), atol=2e-4)


def test_memory_does_not_grow_with_the_number_of_steps():
    oracle = Gaussian(mean=0.3, deviation=0.5)
    x = jnp.zeros((4, 32, 32, 3))

    def memory(steps):
        run = make_sampler("unipc3", LINEAR, pairs_of(steps)).run
        return jax.jit(lambda x: run(oracle.predict, x)).lower(x).compile().memory_analysis().temp_size_in_bytes

    # Beyond the rows themselves: 7 numbers, and 4 weights and corrections.
    assert memory(1000) - memory(10) <= 990 * 8 * 16


def test_ddim_from_both_kinds_of_table_keeps_the_same_levels():
    pairs = pairs_of(12, "quad")
    first_order, solver = ddim_table(LINEAR, pairs), solvers.ddim_solver_table(LINEAR, pairs)
    for name in ("time", "alpha_bar", "alpha_bar_next"):
        np.testing.assert_array_equal(getattr(first_order, name), getattr(solver, name))
