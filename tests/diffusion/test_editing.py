import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.diffusion.editing import InpaintTable, inpaint, inpaint_table, noise_to_level
from ddim_jax.diffusion.prediction import Prediction, make_predict
from ddim_jax.diffusion.samplers import initial_noise, make_sampler
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import level_pairs, levels_from, sampling_levels
from ddim_jax.errors import UserError
from ddim_jax.random_streams import image_keys, normal_each

LINEAR = make_schedule("linear")
SHAPE = (3, 4, 1)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def pictures(n=3):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (n, *SHAPE)))


def keys_of(n=3):
    return image_keys(0, jnp.arange(n))


def toy_network(x, time):
    return 0.8 * x - 0.3 * x**3 / (1 + x**2) + time.reshape(-1, 1, 1, 1) / 4000


def table_of(steps, sampler="ddpm_small"):
    return make_sampler(sampler, LINEAR, level_pairs(sampling_levels("uniform", 1000, steps))).table


# --- noise up to a level ------------------------------------------------------------------------


def test_noise_of_a_level_is_that_of_x_T():
    z = initial_noise(keys_of(), SHAPE, jnp.float64)
    np.testing.assert_array_equal(noise_to_level(pictures(), LINEAR, 0, keys_of()), pictures())
    for level in (1, 400, 1000):
        alpha_bar = LINEAR.alpha_bar[level]
        expected = np.sqrt(alpha_bar) * pictures() + np.sqrt(1 - alpha_bar) * z
        np.testing.assert_allclose(noise_to_level(pictures(), LINEAR, level, keys_of()), expected, rtol=1e-12)


@pytest.mark.parametrize("level", [-1, 1001])
def test_levels_that_do_not_exist(level):
    with pytest.raises(UserError, match="choose from 0"):
        noise_to_level(pictures(), LINEAR, level, keys_of())


def test_levels_from_a_level_on():
    levels = np.array([901, 601, 301, 1])
    assert list(levels_from(levels, 1000)) == [1000, 901, 601, 301, 1]
    assert list(levels_from(levels, 601)) == [601, 301, 1]
    assert list(levels_from(levels, 400)) == [400, 301, 1]
    assert list(levels_from(levels, 1)) == [1]
    with pytest.raises(UserError, match="1 or higher"):
        levels_from(levels, 0)


def test_recovering_with_a_perfect_network_gives_the_picture_back():
    """The network that knows the noise: whatever the level, the sampler returns the clean picture."""
    for level in (50, 400, 1000):
        noisy = noise_to_level(pictures(), LINEAR, level, keys_of())
        eps = initial_noise(keys_of(), SHAPE, jnp.float64)
        pairs = level_pairs(levels_from(sampling_levels("uniform", 1000, 20), level))
        predict = make_predict(lambda x, time, eps=eps: eps, "eps")
        result = make_sampler("ddim", LINEAR, pairs).run(predict, noisy)
        np.testing.assert_allclose(result, pictures(), atol=1e-10)


# --- inpainting ---------------------------------------------------------------------------------


def test_the_walk_of_resampling():
    table = inpaint_table(table_of(5), resamplings=3, jump=2)
    times = [800, 600] * 3 + [400, 200] * 3 + [0]
    assert table.step.time.tolist() == times
    back = np.flatnonzero(table.again_noise)
    assert back.tolist() == [1, 3, 7, 9]  # after each block but its last time
    ratio = LINEAR.alpha_bar[801] / LINEAR.alpha_bar[401]
    np.testing.assert_allclose([table.again_keep[1], table.again_noise[1]], [ratio**0.5, (1 - ratio) ** 0.5])


def test_jumps_that_do_not_divide_the_steps_and_no_resampling():
    assert inpaint_table(table_of(5), resamplings=2, jump=3).step.time.tolist() == [*[800, 600, 400] * 2, 200, 0]
    plain = inpaint_table(table_of(5), resamplings=1)
    assert plain.step.time.tolist() == [800, 600, 400, 200, 0]
    assert not plain.again_noise.any()


def test_scan_equals_algorithm_1():
    """RePaint with jumps of one step, from the paper's pseudo-code."""
    steps, resamplings = 4, 3
    known, mask = pictures(), np.zeros((1, *SHAPE))
    mask[:, :, :2] = 1
    x = initial_noise(keys_of(), SHAPE, jnp.float64)
    table = inpaint_table(table_of(steps, "ddpm_large"), resamplings)
    result = inpaint(make_predict(toy_network, "eps"), x, known, jnp.asarray(mask), table, keys_of())

    x, known, row = np.asarray(x), np.asarray(known), 0
    pairs = level_pairs(sampling_levels("uniform", 1000, steps))
    for step, (level, level_next) in enumerate(pairs):
        now, then = LINEAR.alpha_bar[level], LINEAR.alpha_bar[level_next]
        beta = 1 - now / then
        for again in range(resamplings if level_next else 1):
            z = [np.asarray(normal_each(keys_of(), 1 + 3 * row + i, SHAPE, jnp.float64)) for i in range(3)]
            row += 1
            x_known = np.sqrt(then) * known + np.sqrt(1 - then) * z[1]
            eps = toy_network(x, np.full(3, level - 1.0))
            x_unknown = (x - beta / np.sqrt(1 - now) * eps) / np.sqrt(1 - beta) + (level_next > 0) * np.sqrt(beta) * z[
                0
            ]
            x = mask * x_known + (1 - mask) * x_unknown
            if again + 1 < resamplings and step + 1 < steps:
                x = np.sqrt(1 - beta) * x + np.sqrt(beta) * z[2]
    np.testing.assert_allclose(result, x, rtol=1e-9, atol=1e-9)


def test_a_learned_variance_inpaints_too():
    mask = np.zeros((1, *pictures().shape[1:3], 1), bool)

    def network(x, time):
        return jnp.concatenate([toy_network(x, time), jnp.full_like(x, -1)], axis=-1)

    predict = make_predict(network, "eps", learn_variance=True)
    x = jnp.ones_like(pictures())
    learned, small = (
        inpaint(predict, x, pictures(), mask, inpaint_table(table_of(6, name), 2), keys_of())
        for name in ("ddpm_learned", "ddpm_small")
    )
    np.testing.assert_allclose(learned, small, rtol=1e-5)


def test_the_known_part_comes_back_exactly():
    mask = jnp.asarray(np.random.default_rng(1).integers(0, 2, (3, *SHAPE)))
    x = initial_noise(keys_of(), SHAPE, jnp.float64)
    result = inpaint(make_predict(toy_network, "eps"), x, pictures(), mask, inpaint_table(table_of(6), 2), keys_of())
    np.testing.assert_array_equal(np.where(mask, result, 0), np.where(mask, pictures(), 0))
    assert not np.allclose(result, pictures())


@pytest.mark.slow
def test_resampling_makes_the_unknown_part_go_with_the_known_one():
    """Pixels of an image are all equal, N(0, 1): the unknown half has to take the value of the known one."""

    def predict(x, row):
        # The posterior mean of the common value, given all pixels.
        alpha_bar, n = row.alpha_bar, x[0].size
        mean = jnp.sqrt(alpha_bar) * jnp.sum(x, (1, 2, 3), keepdims=True) / (n * alpha_bar + 1 - alpha_bar)
        x0 = jnp.broadcast_to(mean, x.shape)
        return Prediction(x0, (x - jnp.sqrt(alpha_bar) * x0) / jnp.sqrt(1 - alpha_bar))

    keys = keys_of(200)
    value = jnp.asarray(np.random.default_rng(2).normal(size=(200, 1, 1, 1)))
    known = jnp.broadcast_to(value, (200, *SHAPE))
    mask = jnp.zeros((1, *SHAPE)).at[:, :, :1].set(1)
    x = initial_noise(keys, SHAPE, jnp.float64)
    errors = []
    for resamplings in (1, 10):
        table = inpaint_table(table_of(50), resamplings)
        result = jax.jit(lambda x, table=table: inpaint(predict, x, known, mask, table, keys))(x)
        errors.append(float(jnp.sqrt(jnp.mean((result - known)[:, :, 1:] ** 2))))
    assert errors[1] < 0.7 * errors[0], errors


@pytest.mark.parametrize("shape", [(3, *SHAPE), (1, *SHAPE), (3, 4, 1), (3, 4, 1, 1, 1), (2, *SHAPE), (4, 3, 1)])
def test_masks_of_other_sizes_are_refused(shape):
    table = inpaint_table(table_of(2), 1)

    def run():
        return inpaint(make_predict(toy_network, "eps"), pictures(), pictures(), jnp.ones(shape), table, keys_of())

    if shape in ((3, *SHAPE), (1, *SHAPE), SHAPE):
        assert run().shape == (3, *SHAPE)
    else:
        with pytest.raises(UserError, match="resize the mask"):
            run()


def test_other_mistakes():
    with pytest.raises(UserError, match="1 or more"):
        inpaint_table(table_of(5), 0)
    with pytest.raises(UserError, match="1 or more"):
        inpaint_table(table_of(5), 2, 0)
    with pytest.raises(UserError, match="the model draws"):
        inpaint(
            make_predict(toy_network, "eps"),
            pictures(),
            jnp.zeros((3, 8, 8, 1)),
            jnp.ones((1, *SHAPE)),
            InpaintTable(table_of(2), np.ones(2), np.zeros(2)),
            keys_of(),
        )
