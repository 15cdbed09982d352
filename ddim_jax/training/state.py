"""What a training run carries from step to step, and how it starts."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddim_jax.config import Config, TrainConfig
from ddim_jax.models import Model
from ddim_jax.names import lookup
from ddim_jax.random_streams import Stream, root_key
from ddim_jax.training.gradients import clip_by_global_norm
from ddim_jax.training.power_average import gamma_of, newest_share


@flax.struct.dataclass
class TrainState:
    """Everything that decides the next step, together with the config and the data.

    Attributes:
        step: int32 scalar, optimiser steps done.
        params: parameters of the network, float32.
        opt_state: optax state.
        ema_params: moving average of ``params``; what samples and metrics use.
        batch_stats: running statistics of batch norms; empty for networks without them.
        ema_batch_stats: moving average of those.
    """

    step: Any
    params: Any
    opt_state: Any
    ema_params: Any
    batch_stats: Any
    ema_batch_stats: Any


@flax.struct.dataclass
class PowerTrainState(TrainState):
    """The state of a run with ``train.ema_widths``; without them checkpoints are what they were before there were any.

    Attributes:
        power_averages: by place in ``train.ema_widths``, averages of ``params`` and of ``batch_stats`` (by these names)
            with the profiles of ``power_average.py``.
    """

    power_averages: Any


def learning_rate_schedule(train: TrainConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then ``train.lr_schedule``."""
    after = lookup(LEARNING_RATE_SCHEDULES, train.lr_schedule, "train.lr_schedule")(train, total_steps)
    if train.warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, train.learning_rate, train.warmup_steps)
    return optax.join_schedules([warmup, after], [train.warmup_steps])


def _constant(train: TrainConfig, total_steps: int) -> optax.Schedule:
    del total_steps
    return optax.constant_schedule(train.learning_rate)


def _cosine(train: TrainConfig, total_steps: int) -> optax.Schedule:
    """Decay to 0 at ``total_steps``."""
    return optax.cosine_decay_schedule(train.learning_rate, max(1, total_steps - train.warmup_steps))


def _linear(train: TrainConfig, total_steps: int) -> optax.Schedule:
    """A straight line to 0 at ``total_steps``."""
    return optax.linear_schedule(train.learning_rate, 0.0, max(1, total_steps - train.warmup_steps))


# What follows the warm-up, by names.LearningRateSchedule: its step 0 is the warm-up's last.
LEARNING_RATE_SCHEDULES: Mapping[str, Callable[[TrainConfig, int], optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
}


def make_optimizer(train: TrainConfig, total_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then ``train.optimizer`` with the learning-rate schedule."""
    clip = clip_by_global_norm(train.grad_clip) if train.grad_clip else optax.identity()
    make_update = lookup(OPTIMIZERS, train.optimizer, "train.optimizer")
    return optax.chain(clip, make_update(train, learning_rate_schedule(train, total_steps)))


def fresh_optimizer_state(optimizer: optax.GradientTransformation, params: Any, step: int) -> Any:
    """The state of an optimiser that has seen nothing yet, while the learning rate is already that of a later step.

    optax counts the steps of its schedule itself, apart from those of Adam.

    Args:
        optimizer: from :func:`make_optimizer`.
        params: the network's parameters.
        step: number of steps done.
    """

    def move(node: Any) -> Any:
        is_schedule = isinstance(node, optax.ScaleByScheduleState)
        return optax.ScaleByScheduleState(count=np.int32(step)) if is_schedule else node  # pyright: ignore

    fresh = jax.jit(optimizer.init)(params)
    return jax.tree.map(move, fresh, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))


def _adam(train: TrainConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adam(rate, train.adam_b1, train.adam_b2, train.adam_eps)


def _adamw(train: TrainConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(rate, train.adam_b1, train.adam_b2, train.adam_eps, weight_decay=train.weight_decay)


# By names.Optimizer.
OPTIMIZERS: Mapping[str, Callable[[TrainConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adamw,
}


def init_state(config: Config, model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; depends on ``config.seed`` alone.

    The moving averages start at the initial values, as in DDPM and DDIM.
    """
    return _init_program(config, model, optimizer)(root_key(config.seed, Stream.INIT))


def abstract_state(config: Config, model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and dtypes of :func:`init_state`, without computing anything."""
    key = jax.eval_shape(lambda: root_key(config.seed, Stream.INIT))
    return _init_program(config, model, optimizer).eval_shape(key)


@functools.lru_cache(maxsize=1)
def _init_program(config: Config, model: Model, optimizer: optax.GradientTransformation) -> Any:
    """Makes the state before the first step from a key: a program, traced once for its shapes and its values."""

    def init(key: jax.Array) -> TrainState:
        variables = model.init(key, jnp.zeros((1, *config.data.image_shape)), jnp.zeros((1,)))
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        state = TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=optimizer.init(params),
            ema_params=params,
            batch_stats=batch_stats,
            ema_batch_stats=batch_stats,
        )
        return with_power_averages(state, config.train, params, batch_stats)

    # Run once, so compiled with little effort: optimising dozens of random draws takes longer than making them.
    return jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})


def ema_decay(train: TrainConfig, step: jax.Array) -> jax.Array:
    """Decay of the moving average at ``step`` steps done: constant as published, or warmed up.

    The warm-up, min(decay, (1 + step) / (10 + step)), lets a short run forget its initial values.
    """
    constant = jnp.float32(train.ema_decay)
    return jnp.minimum(constant, (1.0 + step) / (10.0 + step)) if train.ema_warmup else constant


def with_power_averages(state: TrainState, train: TrainConfig, params: Any, batch_stats: Any) -> TrainState:
    """The state with an average for each of ``train.ema_widths`` that begins at these values; as it is without any."""
    if not train.ema_widths:
        return state
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(TrainState)}
    each = {"params": params, "batch_stats": batch_stats}
    return PowerTrainState(**fields, power_averages=tuple(each for _ in train.ema_widths))


def update_power_averages(train: TrainConfig, state: PowerTrainState) -> PowerTrainState:
    """Moves the averages of ``train.ema_widths`` towards the state, whose ``step`` counts the step just done."""
    done = state.step.astype(jnp.float32)
    new = {"params": state.params, "batch_stats": state.batch_stats}
    averages = []
    for width, average in zip(train.ema_widths, state.power_averages, strict=True):
        share = newest_share(gamma_of(width), done)
        averages.append(jax.tree.map(lambda a, n, share=share: a + share * (n - a), average, new))
    return dataclasses.replace(state, power_averages=tuple(averages))


def update_ema(average: Any, new: Any, decay: jax.Array) -> Any:
    """Moves the average: average ← decay · average + (1 - decay) · new, leaf by leaf."""
    return jax.tree.map(lambda a, n: decay * a + (1.0 - decay) * n, average, new)
