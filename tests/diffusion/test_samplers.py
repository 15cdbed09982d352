from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, GaussianMixture

from ddim_jax.diffusion.ddim import ddim_table
from ddim_jax.diffusion.prediction import Prediction, make_predict
from ddim_jax.diffusion.samplers import initial_noise, make_sampler
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels
from ddim_jax.diffusion.table import sample
from ddim_jax.random_streams import image_keys, normal_each

LINEAR = make_schedule("linear")
# The same process in four times as many levels, so that subsequences of up to 800 are evenly spaced.
FINE = make_schedule("linear", 4000, 1e-4 / 4, 0.02 / 4)
SHAPE = (4, 4, 2)
DATA = Gaussian(mean=0.3, deviation=0.5)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def table_of(sampler="ddim", steps=12, eta=0.0, spacing="uniform", schedule=LINEAR):
    pairs = level_pairs(sampling_levels(spacing, schedule.num_levels, steps))
    return make_sampler(sampler, schedule, pairs, eta).table


@partial(jax.jit, static_argnums=(0, 1, 2))
def start(seed, num, dtype=jnp.float64):
    """Keys and initial noise of images 0 ... num - 1."""
    keys = image_keys(seed, jnp.arange(num))
    return keys, initial_noise(keys, SHAPE, dtype)


@partial(jax.jit, static_argnums=1)
def step_noises(keys, steps):
    """The fresh noise of each step: [S, n, h, w, c]."""
    return jax.vmap(lambda step: normal_each(keys, step + 1, SHAPE, jnp.float64))(jnp.arange(steps))


def toy_network(x, time):
    """Nonlinear in x and dependent on time, for NumPy and JAX arrays alike."""
    return 0.8 * x - 0.3 * x**3 / (1 + x**2) + time.reshape(-1, 1, 1, 1) / 4000


def plain_loop(network, x, alpha_bar, levels, sampler, eta, clip, noises):
    """The formulas of the papers on DDIM, DDPM and consistency models in NumPy, without the step table."""
    for level, level_next, z in zip(levels, [*levels[1:], 0], noises, strict=True):
        now, then = alpha_bar[level], alpha_bar[level_next]
        eps = network(x, np.full(len(x), level - 1.0))
        x0 = (x - np.sqrt(1 - now) * eps) / np.sqrt(now)
        if clip != "none":
            x0 = np.clip(x0, -1, 1)
        if clip == "rederive_eps":
            eps = (x - np.sqrt(now) * x0) / np.sqrt(1 - now)
        if sampler == "consistency":
            x = np.sqrt(then) * x0 + np.sqrt(1 - then) * z
            continue
        sigma = (1.0 if sampler != "ddim" else eta) * np.sqrt((1 - then) / (1 - now)) * np.sqrt(1 - now / then)
        x = np.sqrt(then) * x0 + np.sqrt(1 - then - sigma**2) * eps
        if sampler == "ddpm_large" and level_next > 0:
            sigma = np.sqrt(1 - now / then)
        x = x + sigma * z
    return x


@pytest.mark.parametrize("clip", ["none", "keep_eps", "rederive_eps"])
@pytest.mark.parametrize(
    ("sampler", "eta"),
    [("ddim", 0.0), ("ddim", 0.4), ("ddim", 1.0), ("ddpm_small", 0.0), ("ddpm_large", 0.0), ("consistency", 0.0)],
)
def test_scan_equals_the_plain_loop(sampler, eta, clip):
    keys, x = start(1, 3)
    noises = np.asarray(step_noises(keys, 12))
    levels = sampling_levels("quad", 1000, 12)
    expected = plain_loop(toy_network, np.asarray(x), LINEAR.alpha_bar, levels, sampler, eta, clip, noises)
    predict = make_predict(toy_network, "eps", clip)
    result = jax.jit(lambda x, keys: sample(predict, x, table_of(sampler, 12, eta, "quad"), keys))(x, keys)
    np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-10)


def test_fixed_large_with_clipping_is_the_published_ddpm_step():
    """DDIM's ``ddpm_noisy``: posterior mean of the clipped image (DDPM, eq. 7) and noise of variance beta."""
    keys, x = start(2, 3)
    result = sample(make_predict(toy_network, "eps", "rederive_eps"), x, table_of("ddpm_large"), keys)
    x, noises = np.asarray(x), np.asarray(step_noises(keys, 12))
    levels = sampling_levels("uniform", 1000, 12)
    for step, (level, level_next) in enumerate(level_pairs(levels)):
        now, then = LINEAR.alpha_bar[level], LINEAR.alpha_bar[level_next]
        beta = 1 - now / then
        eps = toy_network(x, np.full(3, level - 1.0))
        x0 = np.clip(np.sqrt(1 / now) * x - np.sqrt(1 / now - 1) * eps, -1, 1)
        mean = (np.sqrt(then) * beta * x0 + np.sqrt(1 - beta) * (1 - then) * x) / (1 - now)
        x = mean + (level > 1) * np.sqrt(beta) * noises[step]
    np.testing.assert_allclose(result, x, rtol=1e-9, atol=1e-9)


def test_duplicate_levels_of_the_published_list_change_nothing():
    _, x = start(3, 2)
    published = sampling_levels("quad_published", 1000, 100)
    distinct = np.unique(published)[::-1]
    assert len(distinct) == 96
    predict = make_predict(toy_network, "eps")
    with_duplicates = sample(predict, x, ddim_table(LINEAR, level_pairs(published)))
    without = sample(predict, x, ddim_table(LINEAR, level_pairs(distinct)))
    np.testing.assert_allclose(with_duplicates, without, rtol=1e-11, atol=1e-12)


def test_objectives_of_the_same_denoiser_give_the_same_images():
    keys, x = start(4, 2)
    table = table_of(steps=10, eta=0.5)
    alpha_bars = jnp.asarray(LINEAR.alpha_bar)

    def network(objective):
        def answer(x, time):
            alpha_bar = alpha_bars[time[0].astype(int) + 1]
            prediction = DATA.predict(x, table._replace(alpha_bar=alpha_bar))
            v = jnp.sqrt(alpha_bar) * prediction.eps - jnp.sqrt(1 - alpha_bar) * prediction.x0
            return {"eps": prediction.eps, "x0": prediction.x0, "v": v}[objective]

        return answer

    predicts = [DATA.predict, *(make_predict(network(objective), objective) for objective in ("eps", "x0", "v"))]
    direct, *results = jax.jit(lambda x: [sample(predict, x, table, keys) for predict in predicts])(x)
    for result in results:
        np.testing.assert_allclose(result, direct, rtol=1e-9)


@pytest.mark.parametrize("objective", ["x0", "v"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm_small", "ddpm_large", "consistency"])
def test_jsd_starts_from_nothing_but_noise(sampler, objective):
    keys, x = start(5, 2)
    table = table_of(sampler, 1000, 1.0, schedule=make_schedule("jsd"))
    assert table.alpha_bar[0] == 0
    assert np.all(np.isfinite(sample(make_predict(toy_network, objective), x, table, keys)))


# --- against closed forms ---------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["uniform", "quad"])
@pytest.mark.parametrize("end", [0, 1], ids=["to the clean image", "to the last noisy level"])
def test_ddim_is_a_first_order_solver_of_the_flow(spacing, end):
    x = np.linspace(-2, 2, 32).reshape(1, 4, 4, 2)
    counts = [50, 200, 800]
    errors = []
    for steps in counts:
        pairs = level_pairs(sampling_levels(spacing, 4000, steps))
        table = ddim_table(FINE, pairs[: steps - end])
        exact = DATA.flow(x, table.alpha_bar[0], table.alpha_bar_next[-1])
        errors.append(np.abs(np.asarray(sample(DATA.predict, jnp.asarray(x), table)) - exact).max())
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -1.03 < slope < -0.97
    assert errors[-1] < 0.004


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("ddpm_small", 0.0), ("ddpm_large", 0.0)]
)
def test_moments_of_samples_follow_the_samplers_own_recursion(sampler, eta):
    table = table_of(sampler, 20, eta)
    keys, x = start(6, 2000)
    pixels = np.asarray(sample(DATA.predict, x, table, keys)).ravel()
    means, variances = DATA.sampler_moments(table)
    assert abs(pixels.mean() - means[-1]) < 4 * np.sqrt(variances[-1] / pixels.size)
    assert abs(pixels.var() / variances[-1] - 1) < 4 * np.sqrt(2 / pixels.size)


@pytest.mark.parametrize(
    ("sampler", "eta", "sign"),
    [("ddim", 0.0, -1), ("ddim", 0.5, -1), ("ddim", 1.0, -1), ("ddpm_small", 0.0, -1), ("ddpm_large", 0.0, 1)],
)
def test_moments_approach_the_datas_as_steps_grow(sampler, eta, sign):
    """With few steps DDIM and DDPM make too little variance, and σ̂ too much, as the paper's figures show."""
    counts = [50, 100, 200, 400, 800]
    errors = []
    for steps in counts:
        means, variances = DATA.sampler_moments(table_of(sampler, steps, eta, schedule=FINE))
        assert abs(means[-1] - DATA.mean) < 0.002
        errors.append(variances[-1] - DATA.deviation**2)
    assert np.all(np.sign(errors) == sign)
    slope = np.polyfit(np.log(counts), np.log(np.abs(errors)), 1)[0]
    assert -1.1 < slope < -0.85


def consistency_function(x, row):
    """Where the flow ends; the noise, which multistep consistency sampling has no use for, is left out."""
    return Prediction(x0=DATA.flow(x, row.alpha_bar, 1.0), eps=jnp.nan * x)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("schedule", ["jsd", "flow"])
def test_consistency_sampling_is_exact_in_any_number_of_steps(schedule, steps):
    """Given the exact consistency function, from pure noise: the moments of each step, and those of samples."""
    schedule = make_schedule(schedule)
    levels = sampling_levels("trailing", 1000, steps, schedule)
    table = make_sampler("consistency", schedule, level_pairs(levels)).table
    assert table.alpha_bar[0] == 0
    mean, variance = 0.0, 1.0
    for alpha_bar, a, c in zip(table.alpha_bar, table.of_x0, table.noise, strict=True):
        level_mean, level_variance = DATA.marginal(alpha_bar)
        np.testing.assert_allclose([mean, variance], [level_mean, level_variance], atol=1e-12)
        slope = a * DATA.deviation / level_variance**0.5
        mean, variance = a * DATA.mean + slope * (mean - level_mean), slope**2 * variance + c**2
    np.testing.assert_allclose([mean, variance], [DATA.mean, DATA.deviation**2], atol=1e-12)
    keys, x = start(6, 500)
    pixels = np.asarray(sample(consistency_function, x, table, keys)).ravel()
    assert abs(pixels.mean() - DATA.mean) < 4 * DATA.deviation / pixels.size**0.5
    assert abs(pixels.var() / DATA.deviation**2 - 1) < 4 * np.sqrt(2 / pixels.size)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm_large", 0.0)])
def test_modes_of_a_mixture_are_drawn_as_often_as_they_occur(sampler, eta):
    means = np.stack([np.full(SHAPE, -0.6), np.full(SHAPE, 0.6)])
    mixture = GaussianMixture(weights=[0.3, 0.7], means=means, deviation=0.1)
    keys = image_keys(7, jnp.arange(2000))
    table = table_of(sampler, 100, eta)
    images = np.asarray(
        jax.jit(lambda keys: sample(mixture.predict, initial_noise(keys, SHAPE, jnp.float64), table, keys))(keys)
    )
    share = (images.mean((1, 2, 3)) > 0).mean()
    assert abs(share - 0.7) < 4 * np.sqrt(0.3 * 0.7 / 2000)
    assert abs(np.abs(images.mean((1, 2, 3))).mean() - 0.6) < 0.01


# --- the program --------------------------------------------------------------------------------


def test_an_image_does_not_depend_on_its_batch():
    table = table_of(steps=8, eta=1.0)

    @jax.jit
    def draw(index):
        keys = image_keys(8, index)
        return sample(make_predict(toy_network, "eps"), initial_noise(keys, SHAPE, jnp.float64), table, keys)

    whole = draw(jnp.arange(6))
    np.testing.assert_allclose(draw(jnp.array([4])), whole[4:5], rtol=1e-12)
    np.testing.assert_allclose(draw(jnp.array([5, 0, 3])), whole[jnp.array([5, 0, 3])], rtol=1e-12)
    assert not np.allclose(whole[0], whole[1])


def test_same_images_on_eight_devices():
    assert jax.local_device_count() == 8
    predict, table = make_predict(toy_network, "eps"), table_of(steps=8, eta=0.5)

    @jax.jit
    def draw(index):
        keys = image_keys(9, index)
        return sample(predict, initial_noise(keys, SHAPE, jnp.float64), table, keys)

    split = jax.pmap(draw)(jnp.arange(16).reshape(8, 2))
    np.testing.assert_allclose(np.asarray(split).reshape(16, *SHAPE), draw(jnp.arange(16)), rtol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_table_passed_as_an_argument_gives_the_same_images(eta):
    keys, x = start(10, 2)
    predict = make_predict(toy_network, "eps")
    traced = []

    @jax.jit
    def draw(table):
        traced.append(True)
        return sample(predict, x, table, keys)

    np.testing.assert_allclose(draw(table_of(eta=eta)), sample(predict, x, table_of(eta=eta), keys), rtol=1e-12)
    assert not np.allclose(draw(table_of(eta=eta)), draw(table_of(eta=0.3)))
    assert len(traced) == 1


def test_deterministic_programs_hold_no_random_numbers():
    keys = image_keys(11, jnp.arange(2))
    x = jnp.zeros((2, *SHAPE))

    def program(eta):
        return str(jax.make_jaxpr(lambda x, keys: sample(DATA.predict, x, table_of(eta=eta), keys))(x, keys))

    assert "random" in program(0.5)
    assert "random" not in program(0.0)


def test_memory_does_not_grow_with_the_number_of_steps():
    keys = image_keys(12, jnp.arange(4))
    x = jnp.zeros((4, 32, 32, 3))

    def memory(steps):
        table = table_of(steps=steps, eta=0.5)
        compiled = jax.jit(lambda x, keys: sample(DATA.predict, x, table, keys)).lower(x, keys).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Beyond the rows themselves, that is 8 numbers a step.
    assert memory(1000) - memory(10) <= 990 * 8 * 8


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_arithmetic_is_in_the_dtype_of_x(dtype):
    keys, x = start(13, 2, dtype)
    result = sample(make_predict(toy_network, "eps"), x, table_of(eta=0.5), keys)
    assert x.dtype == result.dtype == dtype


def test_float32_stays_close_to_float64():
    _, x = start(14, 4, jnp.float32)
    table = table_of(steps=1000)
    single, double = sample(DATA.predict, x, table), sample(DATA.predict, x.astype(jnp.float64), table)
    assert np.abs(single - double).max() < 2e-5


def test_initial_noise_is_draw_0_of_each_image():
    noise = initial_noise(image_keys(15, jnp.arange(3)), SHAPE)
    assert noise.dtype == jnp.float32
    key = jax.random.fold_in(image_keys(15, jnp.array([2]))[0], 0)
    np.testing.assert_array_equal(noise[2], jax.random.normal(key, SHAPE, jnp.float32))


def test_missing_keys_are_an_error_rather_than_missing_noise():
    x = jnp.zeros((2, *SHAPE))
    with pytest.raises(ValueError, match="give keys"):
        sample(DATA.predict, x, table_of(eta=0.1))
    with pytest.raises(ValueError, match="give keys"):
        jax.jit(lambda table: sample(DATA.predict, x, table))(table_of(eta=0.0))
    with pytest.raises(ValueError, match="one per image"):
        sample(DATA.predict, x, table_of(eta=0.1), image_keys(0, jnp.arange(3)))
