"""The training step as it runs: groups of steps, images on the devices, the average on the host."""

import dataclasses
import doctest

import jax
import numpy as np
import pytest

from ddim_jax import parallel
from ddim_jax.config import Config, ConfigError, DataConfig, DiffusionConfig, ModelConfig, TrainConfig
from ddim_jax.config.checks import check
from ddim_jax.data.batch_order import BatchOrder
from ddim_jax.data.batches import train_batches
from ddim_jax.data.on_device import gather, lives_on_device, read_device_images, train_selections
from ddim_jax.data.sources import open_source
from ddim_jax.models import build_model
from ddim_jax.training import fitting
from ddim_jax.training.fitting import largest_batch
from ddim_jax.training.groups import step_groups
from ddim_jax.training.host_average import HostAverage
from ddim_jax.training.program import compile_ahead, make_program
from ddim_jax.training.state import init_state, learning_rate_schedule, make_optimizer

CONFIG = Config(
    data=DataConfig(image_size=8, channels=1, flip=True),
    model=ModelConfig(channels=32, num_groups=8, multipliers=(1,), num_blocks=1, attention_resolutions=(), dropout=0.1),
    diffusion=DiffusionConfig(num_levels=100),
    train=TrainConfig(batch_size=16, learning_rate=1e-3, warmup_steps=4, ema_decay=0.9),
)
STEPS = 7


def with_train(**changes):
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **changes))


def run(config, images_on_device=False, start=0, stop=STEPS, state=None):
    """Trains on the digits from step ``start`` to ``stop``; returns state, losses and learning rates."""
    devices = parallel.training_devices(config.train.batch_size)
    model = build_model(config, parallel.mean_over_devices)
    optimizer = make_optimizer(config.train, STEPS)
    program = make_program(config, model, optimizer, STEPS, devices, images_on_device=images_on_device)
    source = open_source(config.data)
    assert compile_ahead(program, config, model, optimizer, STEPS, len(source)).total > 0
    order = BatchOrder(config.seed, config.train.batch_size)
    if images_on_device:
        images, row_of = read_device_images(source, config.data)
        program.place(images)
        batches = train_selections(row_of, config.data, order, start)
    else:
        batches = train_batches(source, config.data, order, start)
    state = init_state(config, model, optimizer) if state is None else state
    average = HostAverage(config.train, state) if config.train.ema_on_host else None
    state = parallel.replicate(state if average is None else average.part_for_devices(state), devices)
    losses, rates = [], []
    for steps in step_groups(start, stop, config.train.steps_per_call):
        state, result = program(state, [next(batches) for _ in steps])
        if average is not None:
            average.update(steps[0] - 1, state)
        losses.extend(result.metrics.loss.tolist())
        rates.extend(result.learning_rate.tolist())
    return parallel.host_copy(state if average is None else average.whole(state)), losses, rates


@pytest.fixture(scope="module")
def plain():
    return run(CONFIG)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_same_rates(one, other):
    """Equal but for float32's rounding: another program's last bit depends on what XLA fuses the rate with."""
    np.testing.assert_allclose(one, other, rtol=3e-7)


def largest_difference(one, other):
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max(initial=0)), one, other)))


# --- groups -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "total", "size", "groups"),
    [
        (0, 3, 1, [[1], [2], [3]]),
        (0, 10, 4, [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]),
        (6, 10, 4, [[7, 8], [9, 10]]),
        (4, 8, 4, [[5, 6, 7, 8]]),
        (8, 8, 4, []),
    ],
)
def test_groups_end_at_multiples_of_their_size(start, total, size, groups):
    assert [list(steps) for steps in step_groups(start, total, size)] == groups


@pytest.fixture(scope="module")
def grouped():
    return run(with_train(steps_per_call=3))


def test_groups_of_steps_train_like_single_steps(plain, grouped):
    state, losses, rates = grouped
    np.testing.assert_allclose(losses, plain[1], rtol=1e-5)
    assert_same_rates(rates, plain[2])
    assert state.step == STEPS
    assert largest_difference(state.ema_params, plain[0].ema_params) < 1e-5


def test_a_resumed_run_makes_the_same_groups(grouped):
    config = with_train(steps_per_call=3)
    stopped, _, _ = run(config, stop=6)
    resumed, losses, _ = run(config, start=6, state=stopped)
    assert_equal(resumed, grouped[0])
    assert losses == grouped[1][6:]


def test_the_learning_rate_is_that_of_the_step(plain):
    schedule = learning_rate_schedule(CONFIG.train, STEPS)
    np.testing.assert_allclose(plain[2], [schedule(step) for step in range(STEPS)], rtol=1e-6)


# --- images on the devices ----------------------------------------------------------------------


def test_selections_stand_for_the_batches_of_the_pipeline():
    source = open_source(CONFIG.data)
    images, row_of = read_device_images(source, CONFIG.data)
    for process in range(2):
        order = BatchOrder(seed=3, batch_size=16, process_index=process, process_count=2)
        selections = train_selections(row_of, CONFIG.data, order, start_step=200)
        batches = train_batches(source, CONFIG.data, order, start_step=200)
        for _ in range(3):
            assert_equal(tuple(jax.jit(gather)(images, next(selections))), tuple(next(batches)))


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_where_the_images_live_does_not_change_the_training(plain, size):
    state, losses, rates = run(with_train(steps_per_call=size), images_on_device=True)
    np.testing.assert_allclose(losses, plain[1], rtol=1e-5)
    assert_same_rates(rates, plain[2])
    assert largest_difference(state.ema_params, plain[0].ema_params) < 1e-5


@pytest.mark.parametrize(
    ("cache", "device_bytes", "lives"),
    [
        ("device", None, True),
        ("auto", None, False),
        ("auto", 10 * 64_000, True),
        ("auto", 10 * 64_000 - 10, False),
        ("host", 2**40, False),
        ("none", 2**40, False),
        ("disk", 2**40, False),
    ],
)
def test_auto_takes_a_tenth_of_a_device_at_most(cache, device_bytes, lives):
    data = DataConfig(image_size=8, channels=1, cache=cache)
    assert lives_on_device(1000, data, device_bytes) == lives


def test_auto_keeps_to_its_limit():
    data = DataConfig(image_size=8, channels=1, cache="auto", cache_limit_gib=63_999 / 2**30)
    assert not lives_on_device(1000, data, 2**40)


# --- the average on the host --------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_host_averages_like_the_devices(plain, warmup):
    expected = run(with_train(ema_warmup=True))[0] if warmup else plain[0]
    state, losses, _ = run(with_train(ema_on_host=True, ema_warmup=warmup))
    assert losses == plain[1]
    assert_equal(state.params, expected.params)
    assert largest_difference(state.ema_params, expected.ema_params) < 1e-7


def test_the_host_cannot_average_groups():
    with pytest.raises(ConfigError, match=r"train.steps_per_call=2.*ema_on_host"):
        check(with_train(ema_on_host=True, steps_per_call=2))


# --- memory -------------------------------------------------------------------------------------


def test_the_largest_batch_leaves_room_for_activations():
    model, optimizer = build_model(CONFIG, parallel.mean_over_devices), make_optimizer(CONFIG.train, STEPS)
    devices = parallel.training_devices(CONFIG.train.batch_size)
    program = make_program(CONFIG, model, optimizer, STEPS, devices)
    needed = compile_ahead(program, CONFIG, model, optimizer, STEPS, 0)
    params = sum(leaf.size for leaf in jax.tree.leaves(init_state(CONFIG, model, optimizer).params))
    memories = (needed.total, needed.total - 1, 2 * needed.total, 0)
    fits = [largest_batch(CONFIG, params, len(devices), needed, free) for free in memories]
    assert fits[0] == 16
    assert fits[1] == 8
    assert fits[2] > 16 and fits[2] % 8 == 0
    assert fits[3] == 0


def test_examples_of_refusals():
    results = doctest.testmod(fitting)
    assert results.attempted and not results.failed
