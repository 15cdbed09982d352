"""Schedules with real levels against the formulae of their papers, and the papers' samplers against tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from ddim_jax import diffusion
from ddim_jax.diffusion.losses import draw_levels, training_target
from ddim_jax.diffusion.objectives import OBJECTIVES
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.sde_solvers import Churn, edm_table
from ddim_jax.diffusion.spacing import SPACINGS, level_pairs, levels_of_sigmas, sampling_levels
from ddim_jax.errors import UserError
from ddim_jax.random_streams import normal_each

REAL = ("edm", "flow", "vp", "ve")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def sigmas_of(schedule, levels, sigma_data=1.0):
    alpha_bar = schedule.alpha_bar_at(levels)
    return sigma_data * np.sqrt((1 - alpha_bar) / alpha_bar)


# --- levels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 18, 40])
@pytest.mark.parametrize("spacing", ["linspace", "karras"])
def test_edm_has_the_papers_list_of_sigmas_to_the_last_digits(spacing, steps):
    """Karras et al. 2022, eq. 5."""
    schedule = make_schedule("edm")
    i = np.arange(steps)
    published = (80 ** (1 / 7) + i / max(1, steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    levels = sampling_levels(spacing, 1000, steps, schedule)
    # 1 - alpha_bar = 1.6e-5 at the last one keeps 11 digits.
    np.testing.assert_allclose(sigmas_of(schedule, levels, 0.5), published, rtol=1e-10)
    np.testing.assert_allclose(schedule.time_input(levels), np.log(published) / 4, rtol=1e-12)


def test_flow_is_the_straight_line():
    schedule = make_schedule("flow")
    levels = np.array([1000.0, 750.5, 500.0, 0.25])
    t = levels / 1000
    np.testing.assert_allclose(schedule.alpha_bar_at(levels), (1 - t) ** 2 / ((1 - t) ** 2 + t**2), atol=1e-15)
    np.testing.assert_allclose(schedule.time_input(levels), t)
    assert schedule.ends_in_noise
    x0, eps = 0.3, -1.2
    x = np.sqrt(schedule.alpha_bar_at(levels)) * x0 + np.sqrt(1 - schedule.alpha_bar_at(levels)) * eps
    seen = np.asarray(schedule.network_input(x, schedule.alpha_bar_at(levels)))
    np.testing.assert_allclose(seen, (1 - t) * x0 + t * eps, rtol=1e-12)


def test_vp_and_ve_are_score_sdes():
    vp, t = make_schedule("vp"), np.array([1e-3, 0.1, 0.77, 1.0])
    np.testing.assert_allclose(vp.alpha_bar_at(1000 * t), np.exp(-(t**2) * (20 - 0.1) / 2 - 0.1 * t), rtol=1e-12)
    np.testing.assert_allclose(vp.time_input(1000 * t), 999 * t)
    ve = make_schedule("ve", sigma_min=0.01, sigma_max=50.0)
    sigma = np.exp(np.linspace(np.log(0.01), np.log(50), 1000))
    np.testing.assert_allclose(sigmas_of(ve, np.arange(1, 1001)), sigma, rtol=1e-8)
    np.testing.assert_allclose(ve.time_input(np.arange(1.0, 1001)), np.log(sigma), atol=1e-12)
    x = np.sqrt(ve.alpha_bar[700]) * (0.3 + sigma[699] * 1.7)
    np.testing.assert_allclose(float(ve.network_input(x, ve.alpha_bar[700])), 0.3 + sigma[699] * 1.7, rtol=1e-12)


@pytest.mark.parametrize("name", REAL)
def test_levels_and_log_snr_are_inverse_also_below_level_1_and_on_the_device(name):
    schedule = make_schedule(name)
    levels = np.concatenate([[1e-3, 0.3, 0.999], np.linspace(1, 999.9, 57)])
    log_snr = schedule.log_snr_at(levels)
    assert np.all(np.diff(log_snr) < 0)
    np.testing.assert_allclose(schedule.level_at(log_snr), levels, rtol=1e-9)
    np.testing.assert_allclose(schedule.alpha_bar_at(levels), 1 / (1 + np.exp(-log_snr)), rtol=1e-14)
    alpha_bar, told = schedule.at(jnp.asarray(levels, jnp.float32))
    np.testing.assert_allclose(alpha_bar, schedule.alpha_bar_at(levels), atol=2e-6)
    np.testing.assert_allclose(told, schedule.time_input(levels), rtol=1e-4, atol=1e-5)
    assert schedule.alpha_bar_at(0.0) == 1
    np.testing.assert_array_equal(schedule.alpha_bar_at(np.arange(1001)), schedule.alpha_bar)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("spacing", [name for name in SPACINGS if name != "tuned"])
def test_spacings_on_real_levels(spacing, name):
    schedule = make_schedule(name)
    if spacing.endswith("_published"):
        with pytest.raises(UserError, match=f"spacing '{spacing}' is about whole levels"):
            sampling_levels(spacing, 1000, 10, schedule)
        return
    for steps in (1, 2, 7, 1000):
        levels = sampling_levels(spacing, 1000, steps, schedule)
        assert levels.dtype == np.float64
        assert len(levels) == steps
        assert np.all(np.diff(levels) < 0)
        assert 0 < levels[-1] <= levels[0] <= 1000


def test_lists_of_sigmas_that_others_publish():
    schedule = make_schedule("edm")
    sigmas = [14.615, 2.182, 0.1, 0.02]
    levels = levels_of_sigmas(schedule, sigmas, 0.5)
    np.testing.assert_allclose(sigmas_of(schedule, levels, 0.5), sigmas, rtol=1e-9)
    for wrong, words in (([1.0, 2.0], "the largest first"), ([81.0], "above that of level 1000"), ([], "one or more")):
        with pytest.raises(UserError, match=words):
            levels_of_sigmas(schedule, wrong, 0.5)
    with pytest.raises(UserError, match="whole levels only; choose from: edm, flow, vp, ve"):
        levels_of_sigmas(make_schedule("linear"), [1.0])


# --- training -----------------------------------------------------------------------------------


def test_lognormal_draws_are_those_of_the_paper():
    """The log of sigma ~ N(-1.2, 1.2²), with sigma on images of deviation 0.5."""
    schedule = make_schedule("edm")
    mean = -1.2 - np.log(0.5)
    levels = draw_levels("lognormal", schedule, jax.random.key(0), jnp.arange(20_000), 20_000, mean, 1.2)
    log_sigma = np.asarray(schedule.at(levels)[1]) * 4
    assert abs(log_sigma.mean() + 1.2) < 0.03
    assert abs(log_sigma.std() - 1.2) < 0.03
    t = np.asarray(draw_levels("logitnormal", make_schedule("flow"), jax.random.key(0), jnp.arange(20_000), 20_000))
    logit = np.log(t / (1000 - t))
    assert abs(logit.mean()) < 0.03
    assert abs(logit.std() - 1) < 0.03
    assert t.min() > 0
    assert t.max() < 1000


def test_edm_is_v_prediction_up_to_sign():
    """Karras et al. 2022, eq. 7 and 8, and table 1, written out, for any output of the network."""
    random = np.random.default_rng(0)
    sigma_data, sigma, y, n, output = 0.5, np.array([0.01, 0.3, 4.0, 70.0]), *random.normal(size=(3, 4))
    y = sigma_data * y
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / np.sqrt(sigma**2 + sigma_data**2)
    c_in = 1 / np.sqrt(sigma**2 + sigma_data**2)
    noisy = y + sigma * n
    denoised, target = c_skip * noisy + c_out * output, (y - c_skip * noisy) / c_out
    schedule = make_schedule("edm", sigma_data=sigma_data)
    level = levels_of_sigmas(schedule, sigma[::-1], sigma_data)[::-1]
    alpha_bar = schedule.alpha_bar_at(level)
    x = np.sqrt(alpha_bar) * y / sigma_data + np.sqrt(1 - alpha_bar) * n
    np.testing.assert_allclose(x, c_in * noisy, rtol=1e-9)
    v = OBJECTIVES["v"]
    predicted = v.read(jnp.asarray(-output), jnp.asarray(x), np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))
    np.testing.assert_allclose(sigma_data * predicted.x0, denoised, rtol=1e-7, atol=1e-9)
    ours = v.target(jnp.asarray(y / sigma_data), jnp.asarray(n), np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))
    np.testing.assert_allclose(ours, -target, rtol=1e-7)


@pytest.mark.parametrize("alpha_bar", [0.0, 0.3, 0.999])
def test_flow_objective_is_read_back(alpha_bar):
    x0, eps = jnp.asarray([[[[0.3, -2.0]]]]), jnp.asarray([[[[1.1, 0.2]]]])
    x = diffusion.diffuse(x0, eps, alpha_bar)
    found = diffusion.to_prediction(training_target("flow", x0, eps, alpha_bar), x, alpha_bar, "flow")
    np.testing.assert_allclose(found.x0, x0, rtol=1e-12)
    np.testing.assert_allclose(found.eps, eps, rtol=1e-12)


# --- samplers -----------------------------------------------------------------------------------


def denoise(y, sigma):
    """Any function of image and noise: not linear, nor the same for all pixels."""
    return np.tanh(y / np.sqrt(1 + sigma**2)) * np.cos(y + np.log(sigma) / 3)


def predict_like(denoise):
    """The same for our samplers, whose x is divided by sqrt(1 + sigma²)."""

    def predict(x, row):
        sigma = jnp.sqrt(1 / row.alpha_bar - 1)
        y = x * jnp.sqrt(1 + sigma**2)
        x0 = jnp.tanh(y / jnp.sqrt(1 + sigma**2)) * jnp.cos(y + jnp.log(sigma) / 3)
        return diffusion.Prediction(x0, (y - x0) / sigma)

    return predict


def noises(keys, rows, shape):
    """The noise that our loop adds after each row."""
    return [np.asarray(normal_each(keys, r + 1, shape, jnp.float64)) for r in range(rows)]


STEPS = 9


def run_ours(name, **settings):
    schedule = make_schedule("edm", sigma_data=1.0)
    levels = sampling_levels("linspace", 1000, STEPS, schedule)
    sampler = diffusion.make_sampler(name, schedule, level_pairs(levels), **settings)
    keys = diffusion.image_keys(0, jnp.arange(3))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 2, 1)))
    images = sampler.run(predict_like(denoise), x, keys)
    sigmas = np.append(sigmas_of(schedule, levels), 0.0)
    first = float(np.sqrt(1 / sampler.table.alpha_bar[0] - 1))
    return np.asarray(images), x * np.sqrt(1 + first**2), sigmas, noises(keys, len(sampler.table.time), x.shape[1:])


def test_edm_against_algorithm_2():
    churn = Churn(amount=3.0, low=0.05, high=50.0, noise=1.003)
    ours, y, sigmas, z = run_ours("edm", churn=churn)
    y, row = np.asarray(y), -1
    for i in range(STEPS):
        gamma = min(churn.amount / STEPS, np.sqrt(2) - 1) if churn.low <= sigmas[i] <= churn.high else 0.0
        sigma_hat = sigmas[i] * (1 + gamma)
        if i:  # the first step is above ``high``
            y = y + np.sqrt(sigma_hat**2 - sigmas[i] ** 2) * churn.noise * z[row]
        d = (y - denoise(y, sigma_hat)) / sigma_hat
        following = y + (sigmas[i + 1] - sigma_hat) * d
        row += 1
        if sigmas[i + 1]:
            d_next = (following - denoise(following, sigmas[i + 1])) / sigmas[i + 1]
            following = y + (sigmas[i + 1] - sigma_hat) * (d + d_next) / 2
            row += 1
        y = following
    np.testing.assert_allclose(ours, y, rtol=1e-7, atol=1e-8)


def test_euler_ancestral_against_k_diffusions_formulae():
    ours, y, sigmas, z = run_ours("euler_ancestral")
    y = np.asarray(y)
    for i in range(STEPS):
        up = min(sigmas[i + 1], np.sqrt(sigmas[i + 1] ** 2 * (sigmas[i] ** 2 - sigmas[i + 1] ** 2) / sigmas[i] ** 2))
        down = np.sqrt(sigmas[i + 1] ** 2 - up**2)
        y = y + (y - denoise(y, sigmas[i])) / sigmas[i] * (down - sigmas[i]) + up * z[i]
    np.testing.assert_allclose(ours, y, rtol=1e-7, atol=1e-8)


def test_2m_sde_against_k_diffusions_formulae():
    ours, y, sigmas, z = run_ours("dpmpp_2m_sde")
    y, old, h_last, eta = np.asarray(y), None, None, 1.0
    for i in range(STEPS):
        denoised = denoise(y, sigmas[i])
        if sigmas[i + 1] == 0:
            y = denoised
            continue
        h = np.log(sigmas[i] / sigmas[i + 1])
        begin = y
        y = sigmas[i + 1] / sigmas[i] * np.exp(-h * eta) * begin - np.expm1(-h - eta * h) * denoised
        if old is not None:
            y = y - 0.5 * np.expm1(-h - eta * h) * (h / h_last) * (denoised - old)
        y = y + sigmas[i + 1] * np.sqrt(-np.expm1(-2 * h * eta)) * z[i]
        old, h_last = denoised, h
    np.testing.assert_allclose(ours, y, rtol=1e-7, atol=1e-8)


def test_3m_sde_against_k_diffusions_formulae():
    ours, y, sigmas, z = run_ours("dpmpp_3m_sde")
    y, olds, hs, eta = np.asarray(y), [], [], 1.0
    for i in range(STEPS):
        denoised = denoise(y, sigmas[i])
        if sigmas[i + 1] == 0:
            y = denoised
            continue
        h = np.log(sigmas[i] / sigmas[i + 1])
        k = h * (eta + 1)
        y = np.exp(-k) * y - np.expm1(-k) * denoised
        phi_2 = np.expm1(-k) / k + 1
        if len(olds) >= 2:
            r0, r1 = hs[0] / h, hs[1] / h
            d1_0, d1_1 = (denoised - olds[0]) / r0, (olds[0] - olds[1]) / r1
            d1, d2 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1), (d1_0 - d1_1) / (r0 + r1)
            y = y + phi_2 * d1 - (phi_2 / k - 0.5) * d2
        elif olds:
            y = y + phi_2 * (denoised - olds[0]) / (hs[0] / h)
        y = y + sigmas[i + 1] * np.sqrt(-np.expm1(-2 * h * eta)) * z[i]
        olds, hs = [denoised, *olds], [h, *hs]
    np.testing.assert_allclose(ours, y, rtol=1e-7, atol=1e-8)


def test_one_network_in_three_coordinates_draws_the_same_images():
    """A network of v on edm's levels, told its noise, as rectified flow and as score SDE's VP: solver by solver."""
    sigmas = np.geomspace(60, 0.01, 12)
    images = []
    for name in ("edm", "flow", "vp"):
        schedule = make_schedule(name, sigma_data=1.0)
        pairs = level_pairs(levels_of_sigmas(schedule, sigmas))
        x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 2, 1)))
        solvers = ("ddim", "heun", "deis3", "ipndm", "flow_heun", "unipc3")
        run = [diffusion.make_sampler(solver, schedule, pairs).run(predict_like(denoise), x) for solver in solvers]
        images.append(np.asarray(run))
    np.testing.assert_allclose(images[1], images[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(images[2], images[0], rtol=1e-6, atol=1e-8)
    assert np.abs(np.diff(images[0], axis=0)).max() > 1e-4  # the solvers are not all one


def test_an_image_is_encoded_to_pure_noise_and_back():
    schedule = make_schedule("flow")
    levels = sampling_levels("uniform", 1000, 400, schedule)
    image = jnp.asarray(np.random.default_rng(2).normal(0.4, 0.7, size=(3, 2, 2, 1)))
    data = Gaussian(0.4, 0.7)
    noise = diffusion.make_encoder("ddim", schedule, levels).run(data.predict, image)
    np.testing.assert_allclose(noise, (image - 0.4) / 0.7, atol=0.02)
    back = diffusion.make_sampler("ddim", schedule, level_pairs(levels)).run(data_at_noise(data), noise)
    np.testing.assert_allclose(back, image, atol=0.02)


def data_at_noise(data):
    """The same, which knows that x tells nothing where alpha_bar is 0."""

    def predict(x, row):
        signal = jnp.where(row.alpha_bar > 0, row.alpha_bar, 1.0)
        found = data.predict(x, row._replace(alpha_bar=signal))
        pure = row.alpha_bar == 0
        return diffusion.Prediction(jnp.where(pure, data.mean, found.x0), jnp.where(pure, x, found.eps))

    return predict


# At least, for DEIS: its first steps are of lower order, but lie where the noise hardly changes.
ORDERS = {"ipndm": 2, "deis2": 2, "deis3": 3, "deis4": 4, "flow_heun": 2, "edm": 2, "edm_euler": 1}


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name):
    data, schedule = Gaussian(0.4, 0.7), make_schedule("vp")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 2, 1)))
    begin, end = schedule.alpha_bar_at(900.0), schedule.alpha_bar_at(100.0)
    exact = data.flow(x, begin, end)
    errors = []
    for steps in (40, 80):
        log_snr = np.linspace(schedule.log_snr_at(900.0), schedule.log_snr_at(100.0), steps + 1)
        levels = schedule.level_at(log_snr)
        pairs = np.stack([levels[:-1], levels[1:]], axis=1)
        found = diffusion.make_sampler(name, schedule, pairs).run(data.predict, x)
        errors.append(float(jnp.abs(found - exact).max()))
    slope = np.log2(errors[0] / errors[1])
    assert slope > ORDERS[name] - 0.25, f"{name}: {slope:.2f}, errors {errors}"


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde", "edm"])
def test_the_variance_of_what_is_drawn_tends_to_the_datas(name):
    """Over many images; stochastic samplers end with the data's variance, the better the more steps."""
    data, schedule = Gaussian(0.4, 0.7), make_schedule("edm", sigma_data=1.0)
    settings = {"churn": Churn(8.0, 0.05, 20.0)} if name == "edm" else {}
    pairs = level_pairs(sampling_levels("linspace", 1000, 64, schedule))
    sampler = diffusion.make_sampler(name, schedule, pairs, **settings)
    keys = diffusion.image_keys(0, jnp.arange(64))
    x = diffusion.initial_noise(keys, (16, 16, 1), jnp.float64)
    pixels = np.asarray(sampler.run(data.predict, x, keys))
    assert abs(pixels.mean() - 0.4) < 4 * 0.7 / np.sqrt(pixels.size)
    assert abs(pixels.std() / 0.7 - 1) < 0.02


def test_churn_is_refused_where_it_cannot_be():
    flow, edm = make_schedule("flow"), make_schedule("edm")
    pairs = level_pairs(sampling_levels("uniform", 1000, 5, flow))
    with pytest.raises(UserError, match="no level above it; set the upper end"):
        edm_table(flow, pairs, Churn(1.0))
    assert edm_table(edm, pairs, Churn(1.0)).is_stochastic
    assert not edm_table(edm, pairs, Churn(1.0, low=1e6, high=1e7)).is_stochastic
    with pytest.raises(UserError, match="must not be negative"):
        edm_table(edm, pairs, Churn(-1.0))


def test_churn_on_whole_levels_keeps_the_variance():
    """What is added is what lies between the levels that are there."""
    schedule = make_schedule("linear")
    pairs = level_pairs(sampling_levels("logsnr", 1000, 60, schedule))
    table = edm_table(schedule, pairs, Churn(8.0))
    data = Gaussian(0.0, 1.0)  # its flow leaves x as it is, and any variance but 1 shows
    keys = diffusion.image_keys(0, jnp.arange(16))
    x = diffusion.initial_noise(keys, (32, 32, 1), jnp.float64)
    pixels = np.asarray(diffusion.sample(data.predict, x, table, keys))
    assert table.is_stochastic
    assert abs(pixels.std() - 1) < 0.02
