import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, Mixture1D
from scipy.stats import norm

from ddim_jax.diffusion.likelihood import (
    bound_table,
    flow_table,
    level_bits,
    log_bin_probability,
    ode_bits_per_dim,
    ode_log_density,
    variational_bound,
)
from ddim_jax.diffusion.losses import diffuse
from ddim_jax.diffusion.prediction import Prediction, make_predict
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import sampling_levels
from ddim_jax.errors import UserError
from ddim_jax.pixels import Normalization, to_float
from ddim_jax.random_streams import fold_in_each, image_keys, normal_each

LINEAR = make_schedule("linear")
FINE = make_schedule("linear", 4000, 1e-4 / 4, 0.02 / 4)
# As much noise at the end as LINEAR has, in few levels.
COARSE = make_schedule("linear", 40, 1e-4 * 25, 0.02 * 25)
DATA = Gaussian(mean=0.3, deviation=0.5)
MIXTURE = Mixture1D([0.3, 0.7], [-0.6, 0.5], 0.2)
SHAPE = (4, 4, 2)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def of_level_each(predict):
    """``predict`` for rows with a level for each image: oracles know one level at a time."""

    def each(x, row):
        return jax.vmap(predict, in_axes=(0, type(row)(*(0 for _ in row))))(x, row)

    return each


def pictures(num, seed=0):
    """All values from 0 to 255 among them."""
    values = np.random.default_rng(seed).integers(0, 256, (num, *SHAPE))
    values.flat[:2] = 0, 255
    return jnp.asarray(values, jnp.uint8)


def quantized_gaussian(num, data, seed=0):
    """Images of N(mean, deviation²) cut into 256 levels, and the probability of each level."""
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 127.5 - 1, [np.inf]])
    probability = np.diff(norm.cdf(edges, data.mean, data.deviation))
    values = np.random.default_rng(seed).choice(256, (num, *SHAPE), p=probability)
    return jnp.asarray(values, jnp.uint8), probability


def bound(predict, images, schedule=COARSE, variance="small", seed=0, dtype=jnp.float64, **settings):
    keys = image_keys(seed, jnp.arange(len(images)))
    table = bound_table(schedule, variance)
    return jax.jit(lambda images: variational_bound(predict, images, table, keys, dtype=dtype, **settings))(images)


def toy_network(x, time):
    return 0.8 * x - 0.3 * x**3 / (1 + x**2) + time.reshape(-1, 1, 1, 1) / 4000


# --- the variational bound ----------------------------------------------------------------------


def network_with_variance(x, time):
    return jnp.concatenate([toy_network(x, time), jnp.sin(3 * x)], axis=-1)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_terms_are_those_of_ddpm_written_out(variance):
    """A loop over levels in NumPy with textbook Gaussians: the table's algebra is not used."""
    images = pictures(3)
    is_learned = variance == "learned"
    network = network_with_variance if is_learned else toy_network
    result = bound(make_predict(network, "eps", learn_variance=is_learned), images, variance=variance, seed=1)
    keys = image_keys(1, jnp.arange(3))
    x0 = np.asarray(images) / 127.5 - 1
    alpha_bar, beta, num_levels = COARSE.alpha_bar, COARSE.beta, COARSE.num_levels
    posterior = np.array([(1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t - 1] for t in range(1, num_levels + 1)])

    def to_bits(nats):
        return np.mean(nats, (1, 2, 3)) / np.log(2)

    for column, level in enumerate(range(num_levels, 0, -1)):
        noise = normal_each(fold_in_each(keys, jnp.full(3, level)), 0, SHAPE, jnp.float64)
        now, then = alpha_bar[level], alpha_bar[level - 1]
        x = np.sqrt(now) * x0 + np.sqrt(1 - now) * np.asarray(noise)
        eps = toy_network(x, np.full(3, level - 1.0))
        guess = np.clip((x - np.sqrt(1 - now) * eps) / np.sqrt(now), -1, 1)
        v = posterior[level - 1] if level > 1 else posterior[1]
        s = v if variance == "small" or level == 1 else beta[level - 1]
        if is_learned:
            fraction = (np.sin(3 * x) + 1) / 2
            s = np.exp(fraction * np.log(beta[level - 1]) + (1 - fraction) * np.log(v))

        def mean(clean, x=x, now=now, then=then, level=level):
            of_x0 = np.sqrt(then) * beta[level - 1] / (1 - now)
            of_x = np.sqrt(1 - beta[level - 1]) * (1 - then) / (1 - now)
            return of_x0 * clean + of_x * x

        if level > 1:
            kl = 0.5 * (np.log(s / v) + (v + (mean(x0) - mean(guess)) ** 2) / s - 1)
            np.testing.assert_allclose(result.kl[:, column], to_bits(kl), rtol=1e-9)
        else:
            upper = np.where(x0 == 1, np.inf, x0 + 1 / 255 - mean(guess)) / np.sqrt(s)
            lower = np.where(x0 == -1, -np.inf, x0 - 1 / 255 - mean(guess)) / np.sqrt(s)
            # On the side of the mean where probabilities are small.
            tail = np.where(lower > 0, norm.sf(lower) - norm.sf(upper), norm.cdf(upper) - norm.cdf(lower))
            assert tail.min() > 0
            np.testing.assert_allclose(result.decoder, to_bits(-np.log(tail)), rtol=1e-9)
    prior = 0.5 * (alpha_bar[-1] * x0**2 - alpha_bar[-1] - np.log(1 - alpha_bar[-1]))
    np.testing.assert_allclose(result.prior, to_bits(prior), rtol=1e-9)
    np.testing.assert_allclose(result.total, result.prior + result.kl.sum(1) + result.decoder, rtol=1e-12)


@pytest.mark.parametrize(("v", "variance"), [(-1, "small"), (1, "large")])
def test_the_ends_of_the_learned_range_cost_what_the_small_and_the_large_variance_do(v, variance):
    images = pictures(2)

    def network(x, time):
        return jnp.concatenate([toy_network(x, time), jnp.full_like(x, v)], axis=-1)

    predict = make_predict(network, "eps", learn_variance=True)
    learned, fixed = (bound(predict, images, variance=name, levels_per_image=5) for name in ("learned", variance))
    np.testing.assert_allclose(learned.kl, fixed.kl, rtol=1e-9)
    # At level 1 the largest is beta_1, for which ``large`` takes the smallest of level 2, as DDPM does.
    assert np.allclose(learned.decoder, fixed.decoder, rtol=1e-12) == (v == -1)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_part_of_a_level_is_that_of_the_whole_bound(variance):
    images, keys, num = pictures(3), image_keys(1, jnp.arange(3)), COARSE.num_levels
    predict = make_predict(network_with_variance, "eps", learn_variance=True)
    whole = bound(predict, images, variance=variance, seed=1, clip=False)
    expected = np.concatenate([whole.kl, np.asarray(whole.decoder)[:, None]], axis=1)
    x0, alpha_bar = to_float(images, Normalization(), jnp.float64), jnp.asarray(COARSE.alpha_bar)
    table = bound_table(COARSE, variance)
    part = jax.jit(lambda prediction, level: level_bits(images, x0, prediction, level, table))
    for level in (jnp.array([1, 2, num]), jnp.array([7, 1, 30])):
        noise = normal_each(fold_in_each(keys, level), 0, SHAPE, jnp.float64)
        row = SimpleNamespace(alpha_bar=alpha_bar[level], time=level - 1.0)
        prediction = predict(diffuse(x0, noise, row.alpha_bar), row)
        np.testing.assert_allclose(part(prediction, level), expected[np.arange(3), num - level], rtol=1e-10)


def test_the_variance_that_costs_least_is_the_true_one():
    """Where x̂0 is off by a known amount the best variance is v + f² error², if the range holds it; here by gradient."""
    table, level = bound_table(COARSE, "learned"), jnp.array([20])
    v, log_range = table.deviation[19] ** 2, table.log_range[19]
    f_squared = 2 * v * table.factor[19]
    wanted = 0.4
    error = np.sqrt(v * np.expm1(wanted * log_range) / f_squared)
    images = pictures(1)
    x0 = to_float(images, Normalization(), jnp.float64)

    def cost(fraction):
        prediction = Prediction(x0 + error, x0, jnp.full_like(x0, fraction))
        return level_bits(images, x0, prediction, level, table)[0]

    slope = jax.jit(jax.grad(cost))
    assert abs(slope(wanted)) < 1e-10
    assert slope(wanted - 0.1) < -1e-5 and slope(wanted + 0.1) > 1e-5


def test_the_bound_needs_a_network_that_says_its_variance():
    with pytest.raises(UserError, match="variance=learned: the network has learned none; choose small or large"):
        bound(make_predict(toy_network, "eps"), pictures(1), variance="learned")


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["small", "large"])
def test_divergences_have_the_expectation_of_the_closed_form(variance):
    """Of Gaussian data x̂0 is linear in x, and the mean over noise of its squared error is known."""
    image = pictures(1)
    images = jnp.tile(image, (1000, 1, 1, 1))
    result = np.asarray(bound(of_level_each(DATA.predict), images, variance=variance, clip=False).kl)
    x0 = np.asarray(image[0]) / 127.5 - 1
    level = np.arange(COARSE.num_levels, 1, -1)
    now, then, beta = COARSE.alpha_bar[level], COARSE.alpha_bar[level - 1], COARSE.beta[level - 1]
    posterior = (1 - then) / (1 - now) * beta
    chosen = posterior if variance == "small" else beta
    slope = np.sqrt(now) * DATA.deviation**2 / (now * DATA.deviation**2 + 1 - now)
    squared_bias = np.mean((x0 - DATA.mean) ** 2) * (1 - slope * np.sqrt(now)) ** 2
    squared_error = squared_bias + slope**2 * (1 - now)
    mean_factor = np.sqrt(then) * beta / (1 - now)
    expected = np.log(chosen / posterior) - 1 + (posterior + mean_factor**2 * squared_error) / chosen
    expected /= 2 * np.log(2)
    standard_error = result.std(0) / np.sqrt(len(result))
    assert np.abs((result.mean(0) - expected) / standard_error).max() < 4
    np.testing.assert_allclose(result.mean(0), expected, rtol=0.05)


@pytest.mark.parametrize("normalization", [Normalization(), Normalization((0.2, 0.7), (0.5, 0.13))])
@pytest.mark.parametrize("deviation", [0.005, 0.3, 40.0])
def test_bins_hold_all_probability(deviation, normalization):
    values = jnp.broadcast_to(jnp.arange(256, dtype=jnp.uint8)[:, None, None, None], (256, *SHAPE))
    mean = jnp.broadcast_to(jnp.linspace(-1.4, 1.4, 32).reshape(SHAPE), values.shape)
    logs = log_bin_probability(values, mean, deviation, normalization)
    np.testing.assert_allclose(np.exp(logs).sum(0), 1, rtol=1e-11)
    single = log_bin_probability(values, mean.astype(jnp.float32), deviation, normalization)
    np.testing.assert_allclose(single, logs, rtol=2e-3, atol=2e-4)


def expected_bound(data, probability, schedule, variance):
    """The mean of the bound over noise and images whose pixels have these probabilities, by quadrature."""
    x0 = np.arange(256) / 127.5 - 1
    second_moment = probability @ (x0 - data.mean) ** 2
    total = (schedule.alpha_bar[-1] * (probability @ x0**2 - 1) - np.log(1 - schedule.alpha_bar[-1])) / 2
    for level in range(schedule.num_levels, 1, -1):
        now, then, beta = schedule.alpha_bar[level], schedule.alpha_bar[level - 1], schedule.beta[level - 1]
        v = (1 - then) / (1 - now) * beta
        s = v if variance == "small" else beta
        slope = np.sqrt(now) * data.deviation**2 / data.marginal(now)[1]
        squared_error = second_moment * (1 - slope * np.sqrt(now)) ** 2 + slope**2 * (1 - now)
        total += (np.log(s / v) - 1 + (v + then * (beta / (1 - now)) ** 2 * squared_error) / s) / 2
        first = np.sqrt(v)  # ends as that of level 2, the decoder's
    now = schedule.alpha_bar[1]
    slope = np.sqrt(now) * data.deviation**2 / data.marginal(now)[1]
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    x = np.sqrt(now) * x0[:, None] + np.sqrt(1 - now) * nodes
    mean = data.mean + slope * (x - np.sqrt(now) * data.mean)
    values = jnp.broadcast_to(jnp.arange(256, dtype=jnp.uint8)[:, None, None, None], (256, 60, 1, 1))
    logs = np.asarray(log_bin_probability(values, jnp.asarray(mean)[..., None, None], first))[..., 0, 0]
    return (total - probability @ logs @ weights / weights.sum()) / np.log(2)


@pytest.mark.slow
@pytest.mark.parametrize(("variance", "excess"), [("small", 0.75), ("large", 0.12)])
def test_the_bound_is_above_the_entropy_by_what_is_expected(variance, excess):
    """With a perfect denoiser. The larger variance is nearly the right one for Gaussian data, and the bound tight."""
    data = Gaussian(0.1, 0.25)
    images, probability = quantized_gaussian(100, data)
    expected = expected_bound(data, probability, LINEAR, variance)
    entropy = -np.sum(probability * np.log2(probability))
    assert abs(expected - entropy - excess) < 0.01
    total = np.asarray(bound(of_level_each(data.predict), images, LINEAR, variance).total)
    assert abs(total.mean() - expected) < 4 * total.std() / 10
    assert total.std() < 0.5


@pytest.mark.slow
def test_a_subset_of_levels_estimates_the_same_sum():
    images = jnp.tile(pictures(1), (3000, 1, 1, 1))
    predict = make_predict(toy_network, "eps")
    every = bound(predict, images, seed=2)
    some = bound(predict, images, seed=3, levels_per_image=3)
    assert some.kl.shape == (3000, 3)
    sums = np.stack([every.kl.sum(1), some.kl.sum(1)])
    assert abs(np.diff(sums.mean(1))[0]) < 4 * np.sqrt((sums.var(1) / 3000).sum())
    np.testing.assert_allclose(some.prior, every.prior, rtol=1e-12)
    # Less than a third of the deviation that one level from each 13 in a row would give.
    of_thirds = np.asarray(every.kl).mean(0).reshape(3, 13)
    assert sums[1].std() < 13 * np.sqrt(of_thirds.var(1).sum()) / 3
    # One level from each third of the chances, the noisiest first.
    asked = []

    def note(x, row):
        jax.debug.callback(lambda time: asked.append(np.asarray(time)), row.time)
        return Prediction(x, x)

    bound(note, images[:500], levels_per_image=3)
    jax.effects_barrier()
    noisy, middle, low, last = (1 + np.asarray(times) for times in sorted(asked, key=np.mean, reverse=True))
    assert np.all(last == 1)
    assert low.min() == 2 and noisy.max() == 40
    assert low.max() <= middle.min() <= low.max() + 1 and middle.max() <= noisy.min() <= middle.max() + 1


@pytest.mark.slow
def test_levels_are_drawn_with_their_chances():
    table = bound_table(COARSE)
    assert table.chance[0] == 0
    assert table.chance.sum() == pytest.approx(1)
    assert np.all(table.chance[1:] > 0.5 / 39)
    asked = []

    def note(x, row):
        jax.debug.callback(lambda time: asked.append(np.asarray(time)), row.time)
        return Prediction(x, x)

    bound(note, pictures(20_000), levels_per_image=2)
    jax.effects_barrier()
    levels = 1 + np.concatenate([times for times in asked if times.max() > 0]).astype(int)
    counts = np.bincount(levels, minlength=41)[1:]
    expected = 40_000 * table.chance
    assert np.all(np.abs(counts - expected) <= 4.5 * np.sqrt(expected))


def test_all_levels_by_number_are_all_levels():
    images, predict = pictures(2), make_predict(toy_network, "eps")
    np.testing.assert_array_equal(bound(predict, images).kl, bound(predict, images, levels_per_image=39).kl)


def test_clipping_lowers_every_divergence():
    images, predict = pictures(4), make_predict(toy_network, "eps")
    clipped, free = bound(predict, images), bound(predict, images, clip=False)
    assert np.all(clipped.kl <= free.kl)
    assert clipped.kl.sum() < 0.9 * free.kl.sum()


@pytest.mark.slow
@pytest.mark.parametrize("levels_per_image", [0, 5])
def test_the_bound_of_an_image_does_not_depend_on_its_batch(levels_per_image):
    predict, table = make_predict(toy_network, "eps"), bound_table(COARSE)
    images = pictures(8)

    @jax.jit
    def total(images, index):
        keys = image_keys(4, index)
        return variational_bound(predict, images, table, keys, levels_per_image=levels_per_image).total

    whole = total(images, jnp.arange(8))
    np.testing.assert_allclose(total(images[5:6], jnp.array([5])), whole[5:6], rtol=1e-5)
    split = jax.pmap(total)(images[:, None], jnp.arange(8)[:, None])
    np.testing.assert_allclose(np.ravel(split), whole, rtol=1e-5)
    assert len(np.unique(whole)) == 8


def test_jsd_ends_in_nothing_but_noise():
    result = bound(make_predict(toy_network, "x0"), pictures(2), make_schedule("jsd", 30))
    np.testing.assert_array_equal(result.prior, 0)
    assert np.all(np.isfinite(result.total))


def test_one_level_is_a_decoder_alone():
    result = bound(make_predict(toy_network, "x0"), pictures(2), make_schedule("const", 1, 0.5, 0.5))
    assert result.kl.shape == (2, 0)
    assert np.all(np.isfinite(result.total))


def test_float32_is_close_to_float64():
    images, predict = pictures(4), make_predict(toy_network, "x0")
    single = bound(predict, images, LINEAR, dtype=jnp.float32)
    assert single.total.dtype == jnp.float32
    table, keys = bound_table(LINEAR), image_keys(0, jnp.arange(4))
    # The same noise, drawn in float32.
    double = jax.jit(
        lambda: variational_bound(
            lambda x, row: jax.tree.map(lambda y: y.astype(jnp.float32), predict(x.astype(jnp.float64), row)),
            images,
            table,
            keys,
        )
    )()
    np.testing.assert_allclose(single.total, double.total, rtol=1e-5)


# --- the probability flow -----------------------------------------------------------------------


def flow(schedule, steps, spacing="logsnr"):
    return flow_table(schedule, sampling_levels(spacing, schedule.num_levels, steps + 1, schedule))


def noisy_pictures(num=3):
    return jnp.linspace(-1.5, 1.5, num * 32).reshape(num, *SHAPE)


def log_density(predict, x, table, **settings):
    return np.asarray(jax.jit(lambda x: ode_log_density(predict, x, table, **settings))(x))


def gaussian_flow_density(data, x, begin, end):
    """The density that the flow of Gaussian data gives x if images at its end are taken for N(0, I)."""
    (mean, variance), (mean_end, variance_end) = data.marginal(begin), data.marginal(end)
    scale = np.sqrt(variance_end / variance)
    noise = mean_end + scale * (x - mean)
    return np.sum(norm.logpdf(noise) + np.log(scale), (1, 2, 3))


@pytest.mark.parametrize("spacing", ["logsnr", "karras"])
def test_the_log_density_converges_with_order_2(spacing):
    counts, errors, x = [50, 100, 200, 400], [], noisy_pictures()
    for steps in counts:
        table = flow(FINE, steps, spacing)
        exact = gaussian_flow_density(DATA, x, table.alpha_bar[0], table.alpha_bar_next[-1])
        errors.append(np.abs(log_density(DATA.predict, x, table, probes=0) - exact).max() / 32)
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -2.2 < slope < -1.8
    assert errors[-1] < 1e-3


def test_the_log_density_is_that_of_the_data():
    """Images of level 1000 are taken for N(0, I), which they are but for sqrt(alpha_bar) of 0.6%."""
    x = noisy_pictures()
    mean, variance = DATA.marginal(LINEAR.alpha_bar[1])
    exact = np.sum(norm.logpdf(x, mean, np.sqrt(variance)), (1, 2, 3))
    np.testing.assert_allclose(log_density(DATA.predict, x, flow(LINEAR, 400), probes=0), exact, atol=32 * 6e-3)


def test_the_log_density_of_a_mixture():
    x = jnp.linspace(-1.4, 1.4, 32).reshape(1, *SHAPE)
    table = flow(FINE, 400)
    begin = table.alpha_bar[0]
    deviation = math.sqrt(begin * MIXTURE.deviation**2 + 1 - begin)
    components = [norm.pdf(x, math.sqrt(begin) * mean, deviation) for mean in MIXTURE.means]
    exact = np.log(np.tensordot(MIXTURE.weights, components, 1)).sum()
    np.testing.assert_allclose(log_density(MIXTURE.predict, x, table, probes=0), exact, atol=32 * 1e-3)


def test_random_signs_are_exact_for_a_derivative_without_off_diagonal():
    """Of images with independent pixels the derivative of ε̂ is diagonal, and squares of signs are 1."""
    x, keys, table = noisy_pictures(), image_keys(0, jnp.arange(3)), flow(COARSE, 20)
    for data in (DATA, MIXTURE):
        exact = log_density(data.predict, x, table, probes=0)
        for probes in (1, 3):
            np.testing.assert_allclose(log_density(data.predict, x, table, keys=keys, probes=probes), exact, rtol=1e-10)


def mixing_network(x, time):
    """Every pixel depends on its neighbours."""
    mixed = 0.6 * jnp.roll(x, 1, 1) - 0.5 * jnp.roll(x, 1, 2) + 0.4 * x[..., ::-1]
    return jnp.tanh(0.5 * x + mixed) + time.reshape(-1, 1, 1, 1) / 100


@pytest.mark.slow
def test_random_signs_estimate_the_exact_divergence():
    predict, table = make_predict(mixing_network, "eps"), flow(COARSE, 10)
    x = jnp.tile(noisy_pictures(1), (1000, 1, 1, 1))
    exact = log_density(predict, x[:1], table, probes=0)[0]
    errors = []
    for probes in (1, 4):
        keys = image_keys(5, jnp.arange(1000))
        estimates = log_density(predict, x, table, keys=keys, probes=probes)
        errors.append(estimates.std())
        assert abs(estimates.mean() - exact) < 4 * errors[-1] / np.sqrt(1000)
    assert 1.8 < errors[0] / errors[1] < 2.2  # the square root of 4
    assert errors[0] > 1e-3


def test_the_exact_divergence_is_the_trace_of_the_jacobian():
    """One step: the whole computation by hand, with the full matrix of derivatives."""
    predict = make_predict(mixing_network, "eps")
    x = noisy_pictures(2)
    table = flow_table(COARSE, np.array([7, 3]))
    begin, end = COARSE.alpha_bar[3], COARSE.alpha_bar[7]

    def ask(x, level):
        def eps(flat):
            return mixing_network(flat.reshape(1, *SHAPE), jnp.full(1, level - 1.0)).ravel()

        return np.asarray(eps(x)), np.trace(jax.jacobian(eps)(x))

    expected = []
    for image in x:
        y = np.ravel(image) / np.sqrt(begin)
        sigma, sigma_end = np.sqrt(1 / begin - 1), np.sqrt(1 / end - 1)
        first, first_trace = ask(np.ravel(image), 3)
        second, second_trace = ask(np.sqrt(end) * (y + (sigma_end - sigma) * first), 7)
        y = y + (sigma_end - sigma) * (first + second) / 2
        slopes = sigma * np.sqrt(begin) * first_trace + sigma_end * np.sqrt(end) * second_trace
        integral = np.log(sigma_end / sigma) * slopes / 2
        at_the_end = norm.logpdf(np.sqrt(end) * y).sum() + 16 * np.log(end / begin)
        expected.append(at_the_end + integral)
    np.testing.assert_allclose(log_density(predict, x, table, probes=0), expected, rtol=1e-10)


@pytest.mark.parametrize("level", [1, 300])
@pytest.mark.parametrize("normalization", [Normalization(), Normalization((0.2, 0.7), (0.5, 0.13))])
def test_bits_of_dequantized_images(normalization, level):
    """Gaussian in the network's floats, whatever their scale: the density of v + u, by a change of variables."""
    images, keys = pictures(3), image_keys(6, jnp.arange(3))
    levels = sampling_levels("logsnr", 1000, 201, LINEAR)
    table = flow_table(LINEAR, np.append(levels[levels > level], level))

    @jax.jit
    def bits(images):
        return ode_bits_per_dim(DATA.predict, images, table, keys, normalization, probes=0, dtype=jnp.float64)

    spread = np.stack([jax.random.uniform(jax.random.fold_in(key, 0), SHAPE, jnp.float64) for key in keys])
    assert spread.min() >= 0 and spread.max() < 1
    mean, std = (np.array(values) for values in (normalization.mean, normalization.std))
    x0 = ((np.asarray(images) + spread) / 256 - mean) / std
    # What the flow knows are images of the first level, here brought back to the scale of clean ones.
    deviation = np.sqrt(DATA.deviation**2 + 1 / LINEAR.alpha_bar[level] - 1)
    logs = norm.logpdf(x0, DATA.mean, deviation) - np.log(256 * std)
    np.testing.assert_allclose(bits(images), -logs.mean((1, 2, 3)) / np.log(2), rtol=1e-3)


def test_noise_that_is_all_a_model_knows_costs_eight_bits():
    """A network for which nothing is more probable than anything else in [0, 256) would answer ε̂ = 0 there."""
    table = flow(COARSE, 5)
    images, keys = jnp.full((1, *SHAPE), 128, jnp.uint8), image_keys(0, jnp.arange(1))
    bits = ode_bits_per_dim(
        lambda x, row: Prediction(x, jnp.zeros_like(x)), images, table, keys, probes=0, dtype=jnp.float64
    )
    # x_T = sqrt(alpha_bar_T) x0, almost 0: the peak of a Gaussian of deviation 1 / sqrt(alpha_bar_T).
    peak = -0.5 * np.log(2 * np.pi) + 0.5 * np.log(table.alpha_bar_next[-1]) - np.log(128)
    np.testing.assert_allclose(bits, -peak / np.log(2), rtol=1e-5)


def test_bits_by_the_flow_are_near_the_entropy():
    """Of a perfect network, on data whose probabilities are known, with as few steps as the job takes."""
    data = Gaussian(0.1, 0.25)
    images, probability = quantized_gaussian(100, data)
    own = -np.log2(probability[np.asarray(images)]).mean()
    table, keys = flow(LINEAR, 100), image_keys(1, jnp.arange(100))
    bits = jax.jit(lambda images: ode_bits_per_dim(data.predict, images, table, keys, dtype=jnp.float64))(images)
    assert abs(bits.mean() - own) < 0.01


def test_a_density_does_not_depend_on_its_batch():
    predict, table, images = make_predict(mixing_network, "eps"), flow(COARSE, 8), pictures(8)

    @jax.jit
    def bits(images, index):
        return ode_bits_per_dim(predict, images, table, image_keys(7, index))

    whole = bits(images, jnp.arange(8))
    assert whole.dtype == jnp.float32
    np.testing.assert_allclose(bits(images[5:6], jnp.array([5])), whole[5:6], rtol=1e-5)
    split = jax.pmap(bits)(images[:, None], jnp.arange(8)[:, None])
    np.testing.assert_allclose(np.ravel(split), whole, rtol=1e-5)


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: bound_table(COARSE, "tiny"), "variance 'tiny' does not exist; choose from: small, large, learned"),
        (lambda: bound(DATA.predict, pictures(1), levels_per_image=40), r"levels_per_image=40: choose from 1 to 39"),
        (lambda: bound(DATA.predict, pictures(1), levels_per_image=-1), r"levels_per_image=-1"),
        (lambda: flow_table(COARSE, np.array([3])), r"at least 2 levels"),
        (lambda: flow_table(make_schedule("jsd", 9), np.array([9, 1])), r"level 9 is pure noise.*end at level 8"),
        (lambda: ode_log_density(DATA.predict, noisy_pictures(), flow(COARSE, 3), probes=-1), r"probes=-1"),
    ],
)
def test_mistakes_are_one_clear_line(run, message):
    with pytest.raises(UserError, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)


def test_probes_without_keys_are_an_error():
    with pytest.raises(ValueError, match="need keys"):
        ode_log_density(DATA.predict, noisy_pictures(), flow(COARSE, 3))


def test_16_bits_have_65536_bins():
    normalization = Normalization(dtype="uint16", high=(65535.0,))
    every = jnp.arange(65536, dtype=jnp.uint16).reshape(1, 256, 256, 1)
    mean = jnp.full((1, 256, 256, 1), 0.3, jnp.float64)
    probabilities = jnp.exp(log_bin_probability(every, mean, 0.01, normalization))
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-6)
    # A narrow Gaussian within bins of 2 / 65535: the density times their width.
    at = int(every.reshape(-1)[42598])
    offset = 2 * at / 65535 - 1 - 0.3
    expected = np.exp(-0.5 * (offset / 0.01) ** 2) / (0.01 * np.sqrt(2 * np.pi)) * 2 / 65535
    assert float(probabilities.reshape(-1)[42598]) == pytest.approx(expected, rel=1e-4)


def test_floats_have_no_bins():
    normalization = Normalization(dtype="float32", high=(1.0,))
    with pytest.raises(UserError, match="float data have no levels"):
        log_bin_probability(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1)), 0.1, normalization)
