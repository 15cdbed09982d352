"""Augmentation against what each transformation must do to an image, and its place in a training step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    SampleConfig,
    TrainConfig,
    check,
)
from ddim_jax.data.batches import Batch
from ddim_jax.models import build_model
from ddim_jax.training.augmentation import augment, draw_parameters, transform, warp, what_is_told
from ddim_jax.training.state import init_state, make_optimizer
from ddim_jax.training.step import make_train_step

TINY = Config(
    data=DataConfig(image_size=8, channels=1),
    model=ModelConfig(
        name="song_unet", channels=8, multipliers=(1,), num_blocks=1, attention_resolutions=(), init="torch",
        augmentation_inputs=9,
    ),
    diffusion=DiffusionConfig(num_levels=10),
    train=TrainConfig(batch_size=4, augment_probability=0.5, final_sample_steps=()),
    sample=SampleConfig(steps=10),
)  # fmt: skip


def images(n=1, height=8, width=12):
    """Random pixels: no symmetry hides a mistake."""
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (n, height, width, 3)), jnp.float32)


def parameters(**values):
    a = np.zeros((1, 8), np.float32)
    for name, value in values.items():
        a[0, int(name.removeprefix("a"))] = value
    return jnp.asarray(a)


def changed(image, **values):
    return np.asarray(jax.jit(transform)(image, parameters(**values)))


# --- each transformation ---------------------------------------------------------------------------


def test_flips_are_exact():
    x = images()
    np.testing.assert_array_equal(changed(x), x)
    np.testing.assert_array_equal(changed(x, a0=1), x[:, :, ::-1])
    np.testing.assert_array_equal(changed(x, a1=1), x[:, ::-1])


def test_whole_pixels_are_moved_exactly_and_the_border_is_a_mirror():
    x = np.asarray(images(height=8, width=16))
    # a / 8 of 16 columns: three to the right; of 8 rows: two up.
    moved = changed(jnp.asarray(x), a6=1.5, a7=-2)
    np.testing.assert_array_equal(moved[:, :-2, 3:], x[:, 2:, :-3])
    np.testing.assert_array_equal(moved[:, :-2, :3], x[:, 2:, 2::-1])
    np.testing.assert_array_equal(moved[:, -2:, 3:], x[:, :-3:-1, :-3])
    # Farther than the image is wide: the mirror image of the mirror image.
    np.testing.assert_array_equal(changed(jnp.asarray(x), a6=16), x)


def test_turns_by_a_quarter_are_exact():
    x = images(height=8, width=8)
    # From the right upwards: what was at the right is on top.
    np.testing.assert_allclose(changed(x, a3=np.pi / 2), np.rot90(x, 1, (1, 2)), atol=1e-3)
    np.testing.assert_allclose(changed(x, a3=-np.pi / 2), np.rot90(x, -1, (1, 2)), atol=1e-3)
    np.testing.assert_allclose(changed(x, a3=np.pi), np.rot90(x, 2, (1, 2)), atol=1e-3)


def waves(size, scale_right=1.0, scale_down=1.0):
    """A smooth image around the centre, whose features are that many times larger."""
    offset = np.arange(size) - (size - 1) / 2
    right, down = np.meshgrid(offset / scale_right, offset / scale_down)
    return (np.sin(2 * np.pi * right / size + 0.3) * np.cos(3 * np.pi * down / size - 0.2))[None, :, :, None]


@pytest.mark.parametrize("a2", [2.5, -2.5])
def test_scaling_scales(a2):
    actual = changed(jnp.asarray(waves(32), jnp.float32), a2=a2)
    inner = slice(10, 22)  # the mirror image beyond the border is another one
    np.testing.assert_allclose(
        actual[:, inner, inner], waves(32, 2 ** (a2 / 5), 2 ** (a2 / 5))[:, inner, inner], atol=0.02
    )


def test_stretching_stretches_along_its_axis():
    x, inner = jnp.asarray(waves(32), jnp.float32), slice(10, 22)
    wide = changed(x, a5=2.5)
    np.testing.assert_allclose(wide[:, inner, inner], waves(32, 2**0.5, 2**-0.5)[:, inner, inner], atol=0.02)
    high = changed(x, a4=np.pi / 2, a5=2.5)
    np.testing.assert_allclose(high[:, inner, inner], waves(32, 2**-0.5, 2**0.5)[:, inner, inner], atol=0.02)
    # Without stretch the axis does nothing.
    np.testing.assert_allclose(changed(x, a4=1.0, a2=1.0), changed(x, a2=1.0), atol=1e-5)


def test_what_is_done_is_done_in_order():
    """Turned first and moved then: moved along the axes of the result."""
    x = images(height=16, width=16)
    np.testing.assert_allclose(changed(x, a3=np.pi / 2, a6=1), changed(jnp.rot90(x, 1, (1, 2)), a6=1), atol=1e-3)
    np.testing.assert_allclose(changed(x, a0=1, a6=1), changed(x[:, :, ::-1], a6=1), atol=1e-6)


def test_shrinking_does_not_alias():
    """Stripes a pixel wide become grey, at half the size and less."""
    stripes = jnp.asarray(np.indices((32, 32)).sum(0) % 2 * 2.0 - 1, jnp.float32)[:, :, None]
    shrunk = warp(stripes, 0.45 * jnp.eye(2), jnp.zeros(2))[11:21, 11:21]  # at the border a stripe is twice as wide
    assert np.max(np.abs(shrunk)) < 0.1
    np.testing.assert_allclose(warp(jnp.ones((8, 8, 1)), 0.3 * jnp.eye(2), jnp.ones(2)), 1, atol=1e-6)


# --- what is drawn, and told -----------------------------------------------------------------------


def drawn(probability, n=4000):
    keys = jax.random.split(jax.random.key(3), n)
    return np.asarray(jax.jit(jax.vmap(lambda key: draw_parameters(key, probability)))(keys), np.float64)


def test_zero_probability_is_the_identity():
    keys = jax.random.split(jax.random.key(0), 16)
    x = images(16)
    same, told = augment(x, keys, 0.0)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(told, np.zeros((16, 9)))


def test_each_transformation_has_its_probability():
    a = drawn(0.12)
    share = (a != 0).mean(axis=0)
    expected = np.array([0.5, 0.06, 0.12, 0.12, 0.06, 0.12, 0.12, 0.12])
    assert np.all(np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / len(a)))
    # There is no axis without stretch; right and down come together; others do not.
    assert not np.any(a[a[:, 5] == 0, 4])
    np.testing.assert_array_equal(a[:, 6] != 0, a[:, 7] != 0)
    assert abs(((a[:, 2] != 0) & (a[:, 6] != 0)).mean() - 0.12**2) < 0.01


def test_parameters_have_their_distributions():
    a = drawn(1.0)
    assert set(a[:, 0]) == set(a[:, 1]) == {0.0, 1.0}
    for i in (2, 5, 6, 7):
        assert abs(a[:, i].mean()) < 5 / np.sqrt(len(a))
        assert abs(a[:, i].var() - 1) < 5 * np.sqrt(2 / len(a))
    axis = a[a[:, 4] != 0, 4]
    assert abs(len(axis) / len(a) - 0.5) < 5 * 0.5 / np.sqrt(len(a))
    for angle in (a[:, 3], axis):
        assert np.max(np.abs(angle)) <= np.pi
        assert abs(angle.var() - np.pi**2 / 3) < 5 * np.sqrt(4 * np.pi**4 / 45 / len(angle))
    correlation = np.corrcoef(a, rowvar=False)[~np.eye(8, dtype=bool)]
    assert np.max(np.abs(correlation)) < 5 / np.sqrt(len(a))


def test_what_is_told():
    a = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    expected = np.stack(
        [a[:, 0], a[:, 1], a[:, 2], np.cos(a[:, 3]) - 1, np.sin(a[:, 3]), a[:, 5] * np.cos(a[:, 4]),
         a[:, 5] * np.sin(a[:, 4]), a[:, 6], a[:, 7]], axis=-1,
    )  # fmt: skip
    np.testing.assert_allclose(what_is_told(jnp.asarray(a)), expected, atol=1e-6)
    np.testing.assert_array_equal(what_is_told(jnp.zeros((2, 8))), np.zeros((2, 9)))


def test_an_image_does_not_depend_on_its_batch():
    x, keys = images(6, 8, 8), jax.random.split(jax.random.key(1), 6)
    whole, told = augment(x, keys, 0.9)
    parts = [augment(x[i : i + 2], keys[i : i + 2], 0.9) for i in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate([part.told for part in parts]), told)
    np.testing.assert_allclose(np.concatenate([part.images for part in parts]), whole, atol=1e-6)


# --- in training -----------------------------------------------------------------------------------


def batch_of(n=4):
    image = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1), np.uint8)
    return Batch(image, np.zeros(n, np.int32), np.arange(n, dtype=np.int32))


def one_step(**train):
    config = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, **train))
    check(config)
    model, optimizer = build_model(config), make_optimizer(config.train, 10)
    state = init_state(config, model, optimizer)
    return jax.jit(make_train_step(config, model, optimizer))(state, batch_of())


@pytest.mark.slow
def test_a_step_augments_and_tells_the_network():
    state, metrics = one_step()
    plain, plain_metrics = one_step(augment_probability=0.0)
    assert np.isfinite(metrics.loss)
    assert metrics.loss != plain_metrics.loss

    def told(state):
        return np.asarray(state.params["augmentation_dense"]["kernel"])

    fresh = told(init_state(TINY, build_model(TINY), make_optimizer(TINY.train, 10)))
    assert np.all(np.any(told(state) != fresh, axis=1))
    np.testing.assert_array_equal(told(plain), fresh)


@pytest.mark.slow
def test_a_batch_in_parts_is_augmented_as_the_whole():
    _, whole = one_step()
    _, parts = one_step(accumulate=2)
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-5)
    np.testing.assert_allclose(parts.grad_norm, whole.grad_norm, rtol=1e-4)


@pytest.mark.parametrize("model", [{"augmentation_inputs": 0}, {"augmentation_inputs": 3}, None])
def test_networks_that_are_not_told_are_refused(model):
    changed_model = ModelConfig() if model is None else dataclasses.replace(TINY.model, **model)
    config = Config(model=changed_model, train=TrainConfig(augment_probability=0.12))
    with pytest.raises(ConfigError, match=r"train.augment_probability=0.12: .* model.augmentation_inputs=9, or 0"):
        check(config)
