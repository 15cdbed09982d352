import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.diffusion.losses import diffuse, draw_levels, example_loss, min_snr_weight, training_target
from ddim_jax.diffusion.prediction import to_prediction
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.errors import UserError
from ddim_jax.random_streams import Stream, root_key

LINEAR = make_schedule("linear")
KINDS = ("antithetic", "uniform", "stratified")


def key(step):
    return jax.random.fold_in(root_key(0, Stream.TIME), step)


def normal(seed, shape=(6, 4, 4, 3)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_diffusing_keeps_unit_variance_and_mixes_by_level():
    x0, eps = normal(0, (2, 64, 64, 3)), normal(1, (2, 64, 64, 3))
    x = diffuse(x0, eps, jnp.array([0.9, 0.1]))
    np.testing.assert_allclose(x[0], np.sqrt(0.9) * x0[0] + np.sqrt(0.1) * eps[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.var(x, axis=(1, 2, 3)), 1, atol=0.05)
    np.testing.assert_array_equal(diffuse(x0, eps, 1.0), x0)
    np.testing.assert_array_equal(diffuse(x0, eps, 0.0), eps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_levels", [1, 7, 1000])
def test_levels_lie_in_range_and_cover_it_uniformly(kind, num_levels):
    draw = jax.jit(
        jax.vmap(lambda step: draw_levels(kind, make_schedule("linear", num_levels), key(step), jnp.arange(64), 64))
    )
    levels = np.asarray(draw(jnp.arange(200)))
    assert levels.dtype == np.int32
    assert levels.min() == 1
    assert levels.max() == num_levels
    # Mean of a uniform integer is (T + 1) / 2 with variance (T² - 1) / 12; dependence only narrows the spread.
    deviation = np.sqrt((num_levels**2 - 1) / 12 / levels.size)
    assert abs(levels.mean() - (num_levels + 1) / 2) <= 4 * deviation
    if num_levels == 7:
        counts = np.bincount(levels.ravel(), minlength=8)[1:]
        expected = levels.size / 7
        assert np.all(np.abs(counts - expected) < 5 * np.sqrt(2 * expected))


@pytest.mark.parametrize("kind", KINDS)
def test_any_split_of_the_batch_gives_the_same_levels(kind):
    whole = draw_levels(kind, LINEAR, key(3), jnp.arange(24), 24)
    for parts in (3, 8, 24):
        split = jax.vmap(lambda index: draw_levels(kind, LINEAR, key(3), index, 24))(jnp.arange(24).reshape(parts, -1))
        np.testing.assert_array_equal(np.ravel(split), whole)
    assert not np.array_equal(draw_levels(kind, LINEAR, key(4), jnp.arange(24), 24), whole)


def test_antithetic_pairs_mirror_each_other():
    levels = np.asarray(draw_levels("antithetic", LINEAR, key(0), jnp.arange(33), 33))
    np.testing.assert_array_equal(levels[:-1:2] + levels[1::2], 1001)
    assert len(set(levels[::2])) > 12


@pytest.mark.parametrize("batch_size", [10, 100, 1000])
def test_strata_hold_one_example_each(batch_size):
    levels = np.asarray(draw_levels("stratified", LINEAR, key(0), jnp.arange(batch_size), batch_size))
    width = 1000 // batch_size
    np.testing.assert_array_equal((levels - 1) // width, np.arange(batch_size))


def test_losses_by_hand():
    output, target = normal(2), normal(3)
    difference = (output - target).reshape(6, -1).astype(np.float64)
    expected = {
        ("mse", "mean"): (difference**2).mean(1),
        ("mse", "sum"): (difference**2).sum(1),
        ("mae", "mean"): np.abs(difference).mean(1),
        ("mae", "sum"): np.abs(difference).sum(1),
    }
    for (loss, reduction), value in expected.items():
        result = example_loss(output, target, loss, reduction)
        assert result.shape == (6,)
        np.testing.assert_allclose(result, value, rtol=1e-5)


def test_losses_of_bfloat16_outputs_are_taken_in_float32():
    output = jnp.asarray(normal(2), jnp.bfloat16)
    result = example_loss(output, normal(3))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, example_loss(np.asarray(output, np.float32), normal(3)), rtol=1e-6)


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("alpha_bar", [0.999, 0.8, 0.3, 0.01])
def test_min_snr_weights_are_one_and_the_same_loss_on_the_clean_image(objective, alpha_bar):
    with jax.enable_x64(True):
        x0, eps, output = (jnp.asarray(normal(seed), jnp.float64) for seed in (4, 5, 6))
        target = training_target(objective, x0, eps, alpha_bar)
        x0_hat = to_prediction(output, diffuse(x0, eps, alpha_bar), alpha_bar, objective).x0
        weighted = min_snr_weight(alpha_bar, objective, gamma=5.0) * jnp.sum((output - target) ** 2)
        on_the_image = min(alpha_bar / (1 - alpha_bar), 5.0) * jnp.sum((x0_hat - x0) ** 2)
        np.testing.assert_allclose(weighted, on_the_image, rtol=1e-9)


def test_min_snr_weights_at_pure_noise_are_finite():
    weights = [float(min_snr_weight(jnp.float32(0), objective, 5.0)) for objective in ("eps", "x0", "v")]
    assert weights == [1, 0, 0]


def test_wrong_names_are_explained():
    x = normal(0)
    with pytest.raises(UserError, match="choose from: eps, x0, v"):
        training_target("noise", x, x, 0.5)
    with pytest.raises(UserError, match="choose from: antithetic"):
        draw_levels("importance", LINEAR, key(0), jnp.arange(4), 4)
    with pytest.raises(UserError, match="choose from: mse, mae"):
        example_loss(x, x, "huber")
    with pytest.raises(UserError, match="choose from: mean, sum"):
        example_loss(x, x, "mse", "max")
    with pytest.raises(UserError, match="choose from: eps, x0, v"):
        min_snr_weight(0.5, "noise", 5.0)
    with pytest.raises(UserError, match="positive"):
        min_snr_weight(0.5, "eps", 0.0)


def test_continuous_levels_are_uniform_and_never_0():
    key, index = jax.random.key(0), jnp.arange(20_000)
    levels = np.asarray(draw_levels("continuous", LINEAR, key, index, 20_000))
    assert levels.dtype == np.float32
    assert levels.min() > 0 and levels.max() <= 1000
    histogram = np.histogram(levels, 10, (0, 1000))[0]
    assert np.abs(histogram / 2000 - 1).max() < 0.1
    np.testing.assert_array_equal(levels[100:110], draw_levels("continuous", LINEAR, key, index[100:110], 20_000))
