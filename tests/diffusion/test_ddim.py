import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from ddim_jax.diffusion.ddim import ddim_table, ddpm_large_table, ddpm_learned_table, ddpm_small_table
from ddim_jax.diffusion.prediction import make_predict
from ddim_jax.diffusion.samplers import make_sampler
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels
from ddim_jax.diffusion.table import sample
from ddim_jax.errors import UserError
from ddim_jax.random_streams import image_keys, normal_each

LINEAR = make_schedule("linear")


def pairs_of(steps, spacing="uniform", num_levels=1000):
    return level_pairs(sampling_levels(spacing, num_levels, steps))


def table_of(sampler, schedule, pairs, eta=0.0):
    return make_sampler(sampler, schedule, pairs, eta).table


@pytest.mark.parametrize("spacing", ["uniform", "quad"])
@pytest.mark.parametrize("name", ["linear", "cosine", "jsd"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_perfect_prediction_lands_exactly_on_the_next_level(name, spacing, eta):
    """DDIM's lemma 1: mean sqrt(alpha_bar') x_0 and noise of variance 1 - alpha_bar', for any eta."""
    schedule = make_schedule(name)
    pairs = pairs_of(37, spacing)
    table = ddim_table(schedule, pairs, eta)
    np.testing.assert_array_equal(table.alpha_bar_next, schedule.alpha_bar[pairs[:, 1]])
    np.testing.assert_allclose(table.of_x0**2, table.alpha_bar_next, rtol=1e-14)
    np.testing.assert_allclose(table.of_eps**2 + table.noise**2, 1 - table.alpha_bar_next, rtol=1e-13)
    np.testing.assert_array_equal(table.time, pairs[:, 0] - 1)
    assert all(column.dtype == np.float64 and len(column) == 37 for column in table)


@pytest.mark.parametrize("name", ["linear", "quad", "sigmoid", "const", "cosine"])
def test_eta_1_on_all_levels_is_the_ddpm_posterior(name):
    """DDPM, eq. 7: mean and variance of q(x_{t-1} | x_t, x_0)."""
    schedule = make_schedule(name)
    table = ddpm_small_table(schedule, pairs_of(1000))
    beta = schedule.beta[::-1]
    alpha_bar, previous = schedule.alpha_bar[:0:-1], schedule.alpha_bar[-2::-1]
    of_x0 = np.sqrt(previous) * beta / (1 - alpha_bar)
    of_x = np.sqrt(1 - beta) * (1 - previous) / (1 - alpha_bar)
    # With eps = (x - sqrt(alpha_bar) x0) / sqrt(1 - alpha_bar) put into a x0 + b eps:
    np.testing.assert_allclose(
        table.of_x0 - table.of_eps * np.sqrt(alpha_bar / (1 - alpha_bar)), of_x0, rtol=1e-6, atol=1e-12
    )
    np.testing.assert_allclose(table.of_eps / np.sqrt(1 - alpha_bar), of_x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(table.noise**2, (1 - previous) / (1 - alpha_bar) * beta, rtol=1e-12)


def test_fixed_large_differs_from_fixed_small_in_the_noise_alone():
    small, large = ddpm_small_table(LINEAR, pairs_of(50)), ddpm_large_table(LINEAR, pairs_of(50))
    for name in ("time", "alpha_bar", "alpha_bar_next", "of_x0", "of_eps", "keep", "weights"):
        np.testing.assert_array_equal(getattr(small, name), getattr(large, name))
    np.testing.assert_allclose(large.noise[:-1] ** 2, 1 - large.alpha_bar[:-1] / large.alpha_bar_next[:-1], rtol=1e-12)
    assert large.noise[-1] == small.noise[-1] == 0
    assert np.all(large.noise[:-1] > small.noise[:-1])


def test_fixed_large_on_all_levels_adds_noise_of_variance_beta():
    table = ddpm_large_table(LINEAR, pairs_of(1000))
    np.testing.assert_allclose(table.noise[:-1] ** 2, np.linspace(0.02, 1e-4, 1000)[:-1], rtol=1e-9)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm_small", "ddpm_large", "ddpm_learned"])
@pytest.mark.parametrize("spacing", ["uniform", "quad"])
def test_the_last_step_returns_the_predicted_clean_image(sampler, spacing):
    table = table_of(sampler, LINEAR, pairs_of(20, spacing), eta=0.7)
    assert (table.alpha_bar_next[-1], table.of_x0[-1], table.of_eps[-1], table.noise[-1]) == (1, 1, 0, 0)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm_small", "ddpm_large", "ddpm_learned"])
def test_a_step_to_the_same_level_is_the_identity(sampler):
    pairs = pairs_of(1000, "quad_published")
    table = table_of(sampler, LINEAR, pairs, eta=0.5)
    same = pairs[:, 0] == pairs[:, 1]
    assert same.sum() == 312
    np.testing.assert_allclose(table.of_x0[same], np.sqrt(table.alpha_bar[same]), rtol=1e-14)
    np.testing.assert_allclose(table.of_eps[same], np.sqrt(1 - table.alpha_bar[same]), rtol=1e-14)
    np.testing.assert_array_equal(table.noise[same], 0)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm_small", "ddpm_large", "ddpm_learned"])
def test_starting_from_nothing_but_noise_is_finite(sampler):
    pairs = np.array([[1000, 1000], [1000, 600], [600, 0]])
    table = table_of(sampler, make_schedule("jsd"), pairs, eta=1.0)
    assert table.alpha_bar[0] == 0
    assert all(np.isfinite(column).all() for column in table)
    np.testing.assert_array_equal([table.of_x0[0], table.of_eps[0], table.noise[0]], [0, 1, 0])


def test_eta_per_step():
    pairs = pairs_of(4)
    mixed = ddim_table(LINEAR, pairs, [0.0, 0.5, 1.0, 0.0])
    for step, eta in enumerate([0.0, 0.5, 1.0, 0.0]):
        whole = ddim_table(LINEAR, pairs, eta)
        assert (mixed.of_eps[step], mixed.noise[step]) == (whole.of_eps[step], whole.noise[step])


def test_the_largest_eta_named_in_the_error_is_usable_and_a_little_more_is_not():
    pairs = np.array([[500, 499], [499, 100], [100, 0]])
    with pytest.raises(UserError, match=r"eta=50 is too large for step 1 of 3 \(level 500 to 499\)") as caught:
        ddim_table(LINEAR, pairs, 50.0)
    assert "\n" not in str(caught.value)
    largest = float(str(caught.value).split("at most ")[1].split()[0])
    assert np.all(np.isfinite(ddim_table(LINEAR, pairs, [largest * 0.999, 0, 0]).of_eps))
    with pytest.raises(UserError, match="step 1 of 3"):
        ddim_table(LINEAR, pairs, [largest * 1.001, 0, 0])


@pytest.mark.parametrize("eta", [-0.1, float("nan"), float("inf"), [0.0, 0.5]])
def test_unusable_etas_are_refused(eta):
    with pytest.raises(UserError, match="eta"):
        ddim_table(LINEAR, pairs_of(10), eta)


def test_unknown_sampler():
    with pytest.raises(UserError, match="choose from: ddim"):
        table_of("ddimm", LINEAR, pairs_of(10))


@pytest.mark.parametrize("pair", [[0, 0], [5, 6], [1001, 0], [5, -1]])
def test_steps_to_more_noise_or_off_the_schedule_are_refused(pair):
    with pytest.raises(ValueError, match="steps must lead"):
        ddim_table(LINEAR, np.array([pair]))


# --- learned variance -------------------------------------------------------------------------------


def predict_with(v):
    """A network whose second half is v everywhere."""

    def network(x, time):
        del time
        return jnp.concatenate([jnp.sin(x), jnp.full_like(x, v)], axis=-1)

    return make_predict(network, "eps", "rederive_eps", learn_variance=True)


@pytest.mark.parametrize("spacing", ["uniform", "quad", "openai"])
def test_the_ends_of_the_learned_range_are_the_small_and_the_large_variance(spacing):
    keys, pairs = image_keys(3, jnp.arange(2)), pairs_of(12, spacing)
    learned, small, large = (make(LINEAR, pairs) for make in (ddpm_learned_table, ddpm_small_table, ddpm_large_table))
    with jax.enable_x64(True):
        x = normal_each(keys, 0, (2, 3, 1), jnp.float64)
        for v, table in ((-1, small), (1, large)):
            ours, theirs = (sample(predict_with(v), x, each, keys) for each in (learned, table))
            np.testing.assert_allclose(ours, theirs, rtol=1e-11)


def test_learned_variances_on_a_subsequence_are_between_those_of_its_own_steps():
    """Equation 15 of Nichol and Dhariwal with the betas that the levels kept have between them, written out."""
    levels = sampling_levels("openai", 1000, 25)
    table = ddpm_learned_table(LINEAR, level_pairs(levels))
    alpha_bar = LINEAR.alpha_bar[levels[::-1]]
    now, previous = alpha_bar[1:], alpha_bar[:-1]
    beta = 1 - now / previous
    smallest = beta * (1 - previous) / (1 - now)
    for fraction in (0.0, 0.3, 1.0):
        expected = np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(smallest))
        deviation = table.noise * np.exp(fraction * table.log_range[:, 0] / 2)
        np.testing.assert_allclose(deviation[::-1][1:] ** 2, expected, rtol=1e-10)
    assert table.noise[-1] == table.log_range[-1, 0] == 0


def test_the_right_fraction_samples_a_gaussian_without_error_in_any_number_of_steps():
    """Of Gaussian data a step back is Gaussian too, with a variance between the two: then each level is hit exactly."""
    data = Gaussian(0.3, 0.4)
    table = ddpm_learned_table(LINEAR, level_pairs(np.array([1000, 500, 200, 50, 10])))
    # Without the last step, whose end is the clean image.
    now, then, noise, log_range = (
        column[:-1] for column in (table.alpha_bar, table.alpha_bar_next, table.noise, table.log_range[:, 0])
    )
    beta, smallest = 1 - now / then, noise**2
    of_x0 = np.sqrt(then) * beta / (1 - now)
    variance_of_x0 = data.deviation**2 * (1 - now) / data.marginal(now)[1]
    true = smallest + of_x0**2 * variance_of_x0
    fraction = np.log(true / smallest) / np.log(beta / smallest)
    assert np.all((fraction > 0) & (fraction < 1))
    deviation = noise * np.exp(fraction * log_range / 2)
    mean, variance = data.marginal(now[0])  # instead of N(0, 1)
    for row in range(len(now)):
        level_mean, level_variance = data.marginal(now[row])
        slope = table.of_x0[row] * np.sqrt(now[row]) * data.deviation**2 / level_variance
        slope += table.of_eps[row] * np.sqrt(1 - now[row]) / level_variance
        mean = table.of_x0[row] * data.mean + slope * (mean - level_mean)
        variance = slope**2 * variance + deviation[row] ** 2
        np.testing.assert_allclose((mean, variance), data.marginal(then[row]), rtol=1e-12)


def test_a_network_that_learned_no_variance_cannot_say_it():
    keys = image_keys(3, jnp.arange(1))
    predict = make_predict(lambda x, time: x, "eps")
    with pytest.raises(UserError, match="takes its variance from the network, which has learned none"):
        sample(predict, jnp.ones((1, 2, 2, 1)), ddpm_learned_table(LINEAR, pairs_of(3)), keys)
