"""The training step: what it computes, and that the split of the work does not matter."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import assert_same_training, leaves_by_name

from ddim_jax import parallel
from ddim_jax.config import Config, DataConfig, DiffusionConfig, ModelConfig, TrainConfig
from ddim_jax.configured import build_schedule
from ddim_jax.data.batches import Batch
from ddim_jax.diffusion.losses import quartile_levels, quartile_of
from ddim_jax.models import build_model
from ddim_jax.names import LearningRateSchedule, Optimizer, choices
from ddim_jax.training.state import (
    LEARNING_RATE_SCHEDULES,
    OPTIMIZERS,
    abstract_state,
    ema_decay,
    init_state,
    learning_rate_schedule,
    make_optimizer,
)
from ddim_jax.training.step import (
    Losses,
    draw_training_levels,
    make_example_losses,
    make_train_step,
    mean_losses,
    time_distribution,
)

CONFIG = Config(
    data=DataConfig(image_size=8, channels=1),
    model=ModelConfig(
        channels=32, num_groups=8, multipliers=(1,), num_blocks=1, attention_resolutions=(8,), dropout=0.3
    ),
    diffusion=DiffusionConfig(num_levels=100),
    train=TrainConfig(batch_size=16, steps=10, learning_rate=1e-3, ema_decay=0.9),
)


def changed(**changes):
    config = CONFIG
    for dotted, value in changes.items():
        group, _, key = dotted.partition("__")
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{key: value})})
    return config


def make_batch(config, size=None):
    size = size or config.train.batch_size
    shape = (size, config.data.image_size, config.data.image_size, config.data.channels)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Batch(image, np.zeros(size, np.int32), np.arange(size, dtype=np.int32))


def run_steps(config, count, devices=1, model=None):
    """Trains on one batch; returns the state and the losses."""
    model = model or build_model(config)
    optimizer = make_optimizer(config.train, config.train.steps)
    state = init_state(config, model, optimizer)
    if devices == 1:
        step = jax.jit(make_train_step(config, model, optimizer))
        batch = make_batch(config)
    else:
        used = parallel.training_devices(config.train.batch_size, config.train.accumulate)
        assert len(used) == devices
        step = parallel.step_over_batch(make_train_step(config, model, optimizer, parallel.mean_over_devices), used)
        state = parallel.replicate(state, used)
        batch = parallel.split_batch(make_batch(config), devices)
    losses = []
    for _ in range(count):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    return parallel.host_copy(state), losses


def test_eight_devices_train_like_one():
    assert_same_training(run_steps(CONFIG, 4), run_steps(CONFIG, 4, devices=8), 1e-3)


@pytest.mark.slow
def test_accumulated_gradients_train_like_the_whole_batch():
    parts = changed(train__accumulate=4)
    assert_same_training(run_steps(CONFIG, 4), run_steps(parts, 4), 1e-3)
    assert_same_training(run_steps(CONFIG, 4), run_steps(parts, 4, devices=4), 1e-3)


def test_the_first_loss_is_the_closed_form_one():
    # The DDPM initialisation makes the network's output almost zero, so the loss is E |eps|^2 = 1 for eps, and the mean
    # square of the data for x0.
    config = changed(model__dropout=0.0, train__batch_size=64)
    _, (loss,) = run_steps(config, 1)
    assert loss == pytest.approx(1.0, abs=0.1)
    _, (loss,) = run_steps(
        dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, objective="x0")), 1
    )
    pixels = make_batch(config).image / 127.5 - 1
    assert loss == pytest.approx(np.mean(pixels**2), rel=1e-3)


@pytest.mark.parametrize("objective", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("eps", "x0")), "v"])
def test_training_on_one_batch_lowers_the_loss(objective):
    # Random images, of which only the noise can be learned: v and x0 fall to less than for real ones.
    levels = {"model__multipliers": (1, 1), "model__attention_resolutions": (4,)}
    config = changed(**levels, model__dropout=0.0, diffusion__objective=objective)
    _, losses = run_steps(config, 40)
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_the_bound_teaches_the_variance_and_nothing_else():
    """L_hybrid: the mean learns from L_simple alone, the variance from lambda L_vlb alone."""
    batch = make_batch(CONFIG, 8)
    level = jnp.array([1, 2, 3, 10, 30, 50, 99, 100])
    keys = jax.random.split(jax.random.key(2), 8)
    output = jnp.asarray(np.random.default_rng(3).normal(size=(8, 8, 8, 2)), jnp.float32)

    def losses_and_gradient(output, **changes):
        losses = make_example_losses(changed(**changes))

        def total(output):
            each = losses(lambda *_: (output, {}), batch.image, None, level, keys)[0].loss
            return jnp.sum(each), each

        (_, each), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(output)
        return each, gradient

    simple, of_simple = losses_and_gradient(output[..., :1])
    for weight in (0.001, 0.002):
        each, gradient = losses_and_gradient(output, model__learn_variance=True, diffusion__vlb_weight=weight)
        np.testing.assert_allclose(gradient[..., :1], of_simple, rtol=1e-5, atol=1e-8)
        assert np.all(np.isfinite(gradient)) and np.all(np.abs(gradient[..., 1:]).max((1, 2, 3)) > 0)
        if weight == 0.001:
            first = each - simple, gradient[..., 1:]
        else:
            np.testing.assert_allclose(each - simple, 2 * first[0], rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(gradient[..., 1:], 2 * first[1], rtol=1e-5)


def test_a_network_with_learned_variance_trains():
    _, losses = run_steps(changed(model__dropout=0.0, model__learn_variance=True, model__scale_shift_norm=True), 20)
    assert np.all(np.isfinite(losses)) and np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.slow
def test_sum_reduction_is_the_mean_times_the_number_of_values():
    _, (mean,) = run_steps(CONFIG, 1)
    _, (total,) = run_steps(changed(diffusion__reduction="sum"), 1)
    assert total == pytest.approx(64 * mean, rel=1e-5)


@pytest.mark.slow
def test_min_snr_weights_enter_the_loss():
    _, (plain,) = run_steps(CONFIG, 1)
    _, (weighted,) = run_steps(changed(diffusion__min_snr_gamma=5.0), 1)
    assert 0 < weighted < plain


def test_steps_draw_new_noise_and_repeat_it_when_repeated():
    model, optimizer = build_model(CONFIG), make_optimizer(CONFIG.train, 10)
    step = jax.jit(make_train_step(CONFIG, model, optimizer))
    state = init_state(CONFIG, model, optimizer)
    batch = make_batch(CONFIG)
    losses = [float(step(state.replace(step=jnp.int32(k)), batch)[1].loss) for k in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_the_average_follows_the_published_recursion():
    state, _ = run_steps(CONFIG, 1)
    start = init_state(CONFIG, build_model(CONFIG), make_optimizer(CONFIG.train, 10))
    expected = jax.tree.map(lambda a, n: 0.9 * a + 0.1 * n, start.params, state.params)
    for name, value in leaves_by_name(state.ema_params).items():
        np.testing.assert_allclose(value, leaves_by_name(expected)[name], atol=1e-6)


def test_ema_warm_up():
    train = TrainConfig(ema_decay=0.9999, ema_warmup=True)
    assert float(ema_decay(train, jnp.int32(0))) == pytest.approx(0.1)
    assert float(ema_decay(train, jnp.int32(90))) == pytest.approx(0.91)
    assert float(ema_decay(train, jnp.int32(10**6))) == pytest.approx(0.9999)
    assert float(ema_decay(dataclasses.replace(train, ema_warmup=False), jnp.int32(0))) == pytest.approx(0.9999)


def test_learning_rate():
    constant = learning_rate_schedule(TrainConfig(learning_rate=2e-4, warmup_steps=10), 100)
    assert [float(constant(step)) for step in (0, 5, 10, 99)] == pytest.approx([0, 1e-4, 2e-4, 2e-4])
    cosine = learning_rate_schedule(TrainConfig(learning_rate=2e-4, warmup_steps=10, lr_schedule="cosine"), 110)
    assert [float(cosine(step)) for step in (10, 60, 110)] == pytest.approx([2e-4, 1e-4, 0], abs=1e-9)


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_gradients_are_clipped_by_global_norm(clip):
    optimizer = make_optimizer(TrainConfig(grad_clip=clip, adam_eps=1.0, learning_rate=1.0), 10)
    grads = {"w": jnp.full(4, 10.0)}
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    used = 10.0 if clip == 0 else clip / 2
    np.testing.assert_allclose(updates["w"], -used / (used + 1.0), rtol=1e-4)


def test_adamw_decays_weights():
    train = TrainConfig(optimizer="adamw", weight_decay=0.1, learning_rate=0.5, grad_clip=0.0)
    zero = {"w": jnp.zeros(3)}
    params = {"w": jnp.ones(3)}
    optimizer = make_optimizer(train, 10)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, updates)["w"], 1 - 0.5 * 0.1, rtol=1e-6)


def test_the_start_depends_on_the_seed_alone():
    model, optimizer = build_model(CONFIG), make_optimizer(CONFIG.train, 10)
    first, again = init_state(CONFIG, model, optimizer), init_state(CONFIG, model, optimizer)
    other = init_state(dataclasses.replace(CONFIG, seed=1), model, optimizer)
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), first.params, again.params)
    assert all(jax.tree.leaves(same))
    assert not np.array_equal(first.params["conv_in"]["kernel"], other.params["conv_in"]["kernel"])
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), first)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_state(CONFIG, model, optimizer))


def test_the_start_is_traced_once_for_shapes_and_values(monkeypatch):
    """Tracing takes half a second, and no other thread can do anything meanwhile."""
    traced = []
    monkeypatch.setattr(_WithBatchNorm, "init", lambda *given: traced.append(given) or nn.Module.init(*given))
    model, optimizer = _WithBatchNorm(), make_optimizer(CONFIG.train, 10)
    for _ in range(2):
        abstract_state(CONFIG, model, optimizer)
        init_state(CONFIG, model, optimizer)
    assert len(traced) == 1


class _WithBatchNorm(nn.Module):
    """The smallest network with running statistics."""

    @nn.compact
    def __call__(self, x, time, label=None, dropout_keys=None):
        x = nn.Conv(8, (3, 3))(x) + time[:, None, None, None] / 100
        return nn.Conv(1, (3, 3))(nn.BatchNorm(use_running_average=False, momentum=0.9)(x))


def test_batch_statistics_and_their_average_are_carried_along():
    state, _ = run_steps(CONFIG, 3, model=_WithBatchNorm())
    statistics = leaves_by_name(state.batch_stats)
    averages = leaves_by_name(state.ema_batch_stats)
    assert statistics
    for name, value in statistics.items():
        assert not np.allclose(value, averages[name])
        assert np.all(np.isfinite(averages[name]))


def test_dropped_labels_are_no_labels():
    conditional = changed(model__num_classes=3, model__init="torch", model__dropout=0.0)
    model, optimizer = build_model(conditional), make_optimizer(conditional.train, 10)
    state, batch = init_state(conditional, model, optimizer), make_batch(conditional)

    def loss(config, label):
        step = jax.jit(make_train_step(config, model, optimizer))
        return float(step(state, batch._replace(label=np.full(16, label, np.int32)))[1].loss)

    almost_all = dataclasses.replace(conditional, train=dataclasses.replace(conditional.train, label_dropout=1 - 1e-6))
    assert loss(almost_all, 1) == pytest.approx(loss(conditional, 3), rel=1e-6)
    assert loss(almost_all, 1) != pytest.approx(loss(conditional, 1), rel=1e-4)


def test_bfloat16_trains_float32_parameters():
    config = changed(model__dtype="bfloat16")
    state, losses = run_steps(config, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    _, reference = run_steps(CONFIG, 2)
    np.testing.assert_allclose(losses, reference, rtol=2e-2)


def test_every_name_has_its_function():
    assert tuple(OPTIMIZERS) == choices(Optimizer)
    assert tuple(LEARNING_RATE_SCHEDULES) == choices(LearningRateSchedule)


# --- the loss by noise level --------------------------------------------------------------------


REAL = {"edm": ("v", "lognormal"), "flow": ("flow", "logitnormal"), "linear": ("eps", "antithetic")}


@pytest.mark.parametrize("schedule", REAL)
def test_a_quarter_of_the_levels_is_in_each_quartile(schedule):
    objective, sampling = REAL[schedule]
    config = changed(
        diffusion__schedule=schedule, diffusion__objective=objective, diffusion__time_sampling=sampling,
        diffusion__time_mean=-1.2, diffusion__time_std=1.2, train__batch_size=4000,
    )  # fmt: skip
    built = build_schedule(config)
    level = draw_training_levels(config, built, jax.random.key(0), jnp.arange(4000), 4000)
    between = quartile_levels(sampling, built, *time_distribution(config))
    quartile = np.asarray(quartile_of(level, between))
    assert set(quartile) == {0, 1, 2, 3}
    np.testing.assert_allclose(np.bincount(quartile) / 4000, 0.25, atol=0.03)
    for less, more in itertools.pairwise(range(4)):
        assert level[quartile == less].max() <= level[quartile == more].min()


@pytest.mark.parametrize("changes", [{}, {"train__accumulate": 2}])
def test_the_quartiles_make_up_the_loss(changes):
    config = changed(**changes)
    optimizer, model = make_optimizer(config.train, config.train.steps), build_model(config)
    step = jax.jit(make_train_step(config, model, optimizer))
    _, metrics = step(init_state(config, model, optimizer), make_batch(config))
    assert metrics.quartile_share.sum() == pytest.approx(1)
    assert metrics.quartile_loss.sum() == pytest.approx(float(metrics.loss), rel=1e-5)


def test_means_by_quartile():
    each = Losses(jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.zeros(4), jnp.array([0, 3, 3, 1]))
    means = mean_losses(each)
    assert means.quartile_loss.tolist() == [0.25, 2.0, 0.0, 1.5]
    assert means.quartile_share.tolist() == [0.25, 0.25, 0.0, 0.5]
