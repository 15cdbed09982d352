"""Training on conditions: what is made of a batch, what is left out, and that the split of the work does not matter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import assert_same_training

from ddim_jax import parallel
from ddim_jax.config import Config, DataConfig, DiffusionConfig, ModelConfig, TrainConfig
from ddim_jax.data.batches import Batch
from ddim_jax.data.on_device import DeviceImages, Selection, gather
from ddim_jax.errors import UserError
from ddim_jax.models import build_model
from ddim_jax.random_streams import Stream, example_keys
from ddim_jax.training.conditions import drop_conditions, example_condition
from ddim_jax.training.state import init_state, make_optimizer
from ddim_jax.training.step import make_train_step

CONFIG = Config(
    data=DataConfig(image_size=8, channels=1, vector="a", condition="downsample", condition_factor=2,
                    condition_augmentation=0.4),
    model=ModelConfig(
        channels=16, num_groups=8, multipliers=(1,), num_blocks=1, attention_resolutions=(), dropout=0.1,
        num_classes=3, condition=("class", "vector", "image"), vector_size=2,
    ),
    diffusion=DiffusionConfig(num_levels=100),
    train=TrainConfig(batch_size=16, steps=10, learning_rate=1e-3, ema_decay=0.9, condition_dropout=(0.1, 0.2, 0.3)),
)  # fmt: skip


def changed(**changes):
    config = CONFIG
    for dotted, value in changes.items():
        group, _, key = dotted.partition("__")
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{key: value})})
    return config


def make_batch(size=16):
    random = np.random.default_rng(0)
    return Batch(
        random.integers(0, 256, (size, 8, 8, 1), np.uint8),
        (np.arange(size) % 3).astype(np.int32),
        np.arange(size, dtype=np.int32),
        random.normal(size=(size, 2)).astype(np.float32),
    )


def condition_of(config, batch, step=5):
    keys = example_keys(config.seed, Stream.CONDITION, jnp.int32(step), jnp.asarray(batch.index))
    return example_condition(config, batch, keys)


def train_state(start, steps, devices=1, state=None):
    model = build_model(CONFIG)
    optimizer = make_optimizer(CONFIG.train, CONFIG.train.steps)
    state = init_state(CONFIG, model, optimizer) if state is None else state
    batch = make_batch()
    if devices == 1:
        step = jax.jit(make_train_step(CONFIG, model, optimizer))
    else:
        used = parallel.training_devices(16, 1)
        assert len(used) == devices
        step = parallel.step_over_batch(make_train_step(CONFIG, model, optimizer, parallel.mean_over_devices), used)
        state, batch = parallel.replicate(state, used), parallel.split_batch(batch, devices)
    losses = []
    for _ in range(start, steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    return parallel.host_copy(state), losses


def test_a_condition_is_in_the_units_of_the_network():
    batch = make_batch()
    told = condition_of(changed(data__condition_augmentation=0.0), batch)
    np.testing.assert_array_equal(told.label, batch.label)
    np.testing.assert_array_equal(told.vector[:, :2], batch.vector)
    np.testing.assert_array_equal(told.vector[:, 2], 1)
    assert told.level is None
    assert told.image.shape == (16, 8, 8, 1)
    # Of a grey of 51 there is a grey of -0.6, enlarged or not.
    grey = batch._replace(image=np.full((16, 8, 8, 1), 51, np.uint8))
    np.testing.assert_allclose(condition_of(changed(data__condition_augmentation=0.0), grey).image, -0.6, atol=1e-5)
    # A network without kinds is told nothing.
    nothing = changed(model__condition=(), model__num_classes=0, data__condition="")
    assert not jax.tree.leaves(condition_of(nothing, batch))


def test_noise_is_added_to_pictures_at_levels_drawn_evenly_and_told():
    size = 4000
    batch = make_batch(size)._replace(image=np.full((size, 8, 8, 1), 255, np.uint8))
    told = condition_of(CONFIG, batch)
    level = np.asarray(told.level)
    assert 0 <= level.min() < 0.001 and 0.399 < level.max() <= 0.4
    np.testing.assert_allclose(np.quantile(level, [0.25, 0.5, 0.75]), [0.1, 0.2, 0.3], atol=0.01)
    # White is 1: what is left of it is sqrt(1 - level^2), and the noise has the level's deviation.
    rest = np.asarray(told.image) - np.sqrt(1 - level**2)[:, None, None, None]
    np.testing.assert_allclose(np.mean(rest / level[:, None, None, None]), 0, atol=0.01)
    np.testing.assert_allclose(np.std(rest / level[:, None, None, None]), 1, atol=0.01)


def test_each_kind_is_left_out_at_its_own_rate_and_apart_from_the_others():
    size = 20_000
    batch = make_batch(size)._replace(image=np.full((size, 8, 8, 1), 255, np.uint8))
    config = changed(data__condition_augmentation=0.0)
    whole = condition_of(config, batch)
    told = jax.jit(lambda told: drop_conditions(config, told, jnp.int32(5), jnp.asarray(batch.index)))(whole)
    gone = np.stack([told.label == 3, told.vector[:, 2] == 0, ~np.any(told.image, axis=(1, 2, 3))])
    np.testing.assert_allclose(gone.mean(axis=1), [0.1, 0.2, 0.3], atol=0.01)
    np.testing.assert_allclose(np.corrcoef(gone), np.eye(3), atol=0.03)
    none = changed(train__condition_dropout=(0.0, 0.0, 0.0))
    kept = drop_conditions(none, whole, jnp.int32(5), jnp.asarray(batch.index))
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_condition_depends_on_seed_step_and_position_alone():
    batch = make_batch()
    part = jax.tree.map(lambda x: x[5:9], batch)
    for one, other in zip(condition_of(CONFIG, batch), condition_of(CONFIG, part), strict=True):
        np.testing.assert_array_equal(one[5:9], other)
    assert not np.array_equal(condition_of(CONFIG, batch).level, condition_of(CONFIG, batch, step=6).level)


@pytest.mark.slow
def test_eight_devices_train_like_one():
    assert_same_training(train_state(0, 4), train_state(0, 4, devices=8), 1e-3)


def test_training_goes_on_as_if_it_had_not_stopped():
    whole, losses = train_state(0, 4)
    half, first = train_state(0, 2)
    resumed, second = train_state(2, 4, state=half)
    assert losses == first + second
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_images_on_the_devices_bring_vectors_and_pictures_with_them():
    batch = make_batch()
    images = DeviceImages(batch.image, batch.label, batch.vector, batch.image[:, ::2, ::2])
    selection = Selection(np.array([3, 0]), np.array([True, False]), np.array([0, 1]))
    taken = gather(images, selection)
    np.testing.assert_array_equal(taken.vector, batch.vector[[3, 0]])
    np.testing.assert_array_equal(taken.paired[0], batch.image[3, ::2, ::2][:, ::-1])
    np.testing.assert_array_equal(taken.paired[1], batch.image[0, ::2, ::2])
    assert gather(DeviceImages(batch.image, batch.label), selection).vector is None


def test_data_without_vectors_or_pictures_are_refused():
    with pytest.raises(UserError, match=r"no vectors.*data\.vector"):
        condition_of(CONFIG, make_batch()._replace(vector=None))
    with pytest.raises(UserError, match=r"data\.condition=paired"):
        condition_of(changed(data__condition="paired"), make_batch())
