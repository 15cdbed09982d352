"""One training step (DDPM's algorithm 1) as a pure function of state and batch."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ddim_jax.conditions import Condition
from ddim_jax.config import Config
from ddim_jax.configured import build_normalization, build_schedule
from ddim_jax.diffusion import losses
from ddim_jax.diffusion.likelihood import bound_table, level_bits
from ddim_jax.diffusion.prediction import per_image, to_prediction
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.models import Model, call
from ddim_jax.pixels import to_float
from ddim_jax.random_streams import Stream, example_keys, normal_each, root_key
from ddim_jax.training.augmentation import augment
from ddim_jax.training.conditions import batch_condition
from ddim_jax.training.gradients import arranged_for_optimizer, global_norm
from ddim_jax.training.state import PowerTrainState, TrainState, ema_decay, update_ema, update_power_averages


class Losses(NamedTuple):
    """What a network is judged by on spoilt images, lower is better.

    Attributes:
        loss: distance between the network's output and its target, weighted as ``config.diffusion`` says.
        image_loss: distance between the clean image that the output implies and the true one; not trained on.
        quartile: int32, in which quarter of the noise levels that are drawn the image's is, 0 for the least noise.
    """

    loss: Any
    image_loss: Any
    quartile: Any


def shows_image_loss(config: Config) -> bool:
    """Whether the image loss tells anything.

    An image is implied by a predicted noise divided by sqrt(alpha_bar): where that almost vanishes, as on most
    schedules, the few noisiest levels drown the others.
    """
    return config.diffusion.objective != "eps" or build_schedule(config).rule.noise_shows_image


class MeanLosses(NamedTuple):
    """Means over examples, float32.

    Attributes:
        loss: see :class:`Losses`.
        image_loss: likewise.
        quartile_loss: [4], of the loss of examples in each quarter of the noise levels, and 0 for all others.
        quartile_share: [4], share of the examples there.
    """

    loss: Any
    image_loss: Any
    quartile_loss: Any
    quartile_share: Any


def mean_losses(each: Losses) -> MeanLosses:
    """Averages the losses of examples."""
    is_there = each.quartile[:, None] == jnp.arange(4)
    loss = jax.lax.stop_gradient(each.loss)[:, None]
    return MeanLosses(
        jnp.mean(each.loss),
        jnp.mean(each.image_loss),
        jnp.mean(jnp.where(is_there, loss, 0), axis=0),
        jnp.mean(is_there.astype(jnp.float32), axis=0),
    )


class StepMetrics(NamedTuple):
    """What is told of one step, over the global batch: float32.

    Attributes:
        loss: see :class:`MeanLosses`, as the next three.
        image_loss: likewise.
        quartile_loss: likewise.
        quartile_share: likewise.
        grad_norm: global norm of the gradient before clipping.
    """

    loss: Any
    image_loss: Any
    quartile_loss: Any
    quartile_share: Any
    grad_norm: Any


# (state, batch, *constants) -> (state, metrics)
TrainStep = Callable[..., tuple[TrainState, StepMetrics]]

# A network, for training or not: (x, time, condition) -> (output, whatever else it returns). Where images are
# augmented, it takes what it is told of that, as ``augmentation``.
Network = Callable[..., tuple[jax.Array, Any]]

# What is learned: (network, batch, step, *constants) -> (Losses of each example, what else the network returned).
BatchLosses = Callable[..., tuple[Losses, Any]]


def make_example_losses(config: Config) -> Callable[..., tuple[Losses, Any]]:
    """Builds ``losses(network, images, condition, level, noise_keys) -> (Losses, what else the network returned)``.

    For each image: add noise up to its level, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM, eq. 4),
    ask the network for the target, and compare.

    A network that learns the variance has a second loss for that, L_hybrid = L_simple + lambda L_vlb (Nichol and
    Dhariwal 2021, eq. 16): T times the level's part of the variational bound, in bits per dimension as there, in which
    the mean is taken as it is, so that this teaches the variance alone.

    Args:
        config: the run.

    Returns:
        The function. ``images`` are [n, h, w, c] of the type ``data.dtype``, ``condition`` a
        :class:`~ddim_jax.conditions.Condition`, ``level`` [n] from
        :func:`~ddim_jax.diffusion.losses.draw_levels`, ``noise_keys`` are n keys; the losses are float32 [n]. With
        ``augmentation_keys``, n more, images are augmented first.
    """
    diffusion = config.diffusion
    schedule, normalization = build_schedule(config), build_normalization(config)
    learn_variance = config.model.learn_variance
    table = bound_table(schedule, "learned") if learn_variance else None
    between = losses.quartile_levels(diffusion.time_sampling, schedule, *time_distribution(config))

    def example_losses(
        network: Network,
        images: jax.Array,
        condition: Condition,
        level: jax.Array,
        noise_keys: jax.Array,
        augmentation_keys: jax.Array | None = None,
    ) -> tuple[Losses, Any]:
        x0 = to_float(images, normalization)
        if augmentation_keys is not None:
            x0, told = augment(x0, augmentation_keys, config.train.augment_probability)
            network = functools.partial(network, augmentation=told)
        eps = normal_each(noise_keys, 0, x0.shape[1:], x0.dtype)
        alpha_bar, time = schedule.at(level)
        x = losses.diffuse(x0, eps, alpha_bar)
        output, extra = network(schedule.network_input(x, per_image(alpha_bar, x)), time, condition)
        output, v = jnp.split(output, 2, axis=-1) if learn_variance else (output, None)
        target = losses.training_target(diffusion.objective, x0, eps, alpha_bar)
        loss = losses.example_loss(output, target, diffusion.loss, diffusion.reduction)
        if diffusion.min_snr_gamma:
            loss = loss * losses.min_snr_weight(alpha_bar, diffusion.objective, diffusion.min_snr_gamma)
        implied = to_prediction(jax.lax.stop_gradient(output), x, alpha_bar, diffusion.objective)
        if v is not None and table is not None:
            guess = dataclasses.replace(implied, fraction=(v.astype(x0.dtype) + 1) / 2)
            bits = level_bits(images, x0, guess, level, table, normalization)
            of_image = x0[0].size if diffusion.reduction == "sum" else 1
            loss = loss + diffusion.vlb_weight * diffusion.num_levels * of_image * bits
        image_loss = losses.example_loss(implied.x0, x0, diffusion.loss)
        return Losses(loss, image_loss, losses.quartile_of(level, between)), extra

    return example_losses


def draw_training_levels(
    config: Config, schedule: Schedule, key: jax.Array, index: jax.Array, batch_size: int
) -> jax.Array:
    """Noise levels as ``config.diffusion`` draws them, see :func:`~ddim_jax.diffusion.losses.draw_levels`."""
    mean, std = time_distribution(config)
    return losses.draw_levels(config.diffusion.time_sampling, schedule, key, index, batch_size, mean, std)


def time_distribution(config: Config) -> tuple[float, float]:
    """Mean and deviation of the normal distribution that noise levels are drawn from, where they are."""
    diffusion = config.diffusion
    mean = diffusion.time_mean
    if diffusion.time_sampling == "lognormal":
        mean = mean - math.log(diffusion.sigma_data)  # of noise to signal, in whose units x is
    return mean, diffusion.time_std


def make_batch_losses(config: Config) -> BatchLosses:
    """Builds ``losses(network, batch, step) -> (Losses, what else the network returned)`` of ``--mode=train``.

    A level and noise are drawn for each example of the batch, then see :func:`make_example_losses`: DDPM's algorithm 1,
    for eps and the mean squared error.
    """
    train, seed = config.train, config.seed
    example_losses, schedule = make_example_losses(config), build_schedule(config)

    def batch_losses(network: Network, batch: Any, step: jax.Array) -> tuple[Losses, Any]:
        time_key = jax.random.fold_in(root_key(seed, Stream.TIME), step)
        level = draw_training_levels(config, schedule, time_key, batch.index, train.batch_size)
        noise_keys = example_keys(seed, Stream.NOISE, step, batch.index)
        condition = batch_condition(config, batch, step)
        augmentation_keys = (
            example_keys(seed, Stream.AUGMENTATION, step, batch.index) if train.augment_probability else None
        )
        return example_losses(network, batch.image, condition, level, noise_keys, augmentation_keys)

    return batch_losses


def make_train_step(
    config: Config,
    model: Model,
    optimizer: optax.GradientTransformation,
    mean_over_devices: Callable[[Any], Any] = lambda tree: tree,
    batch_losses: BatchLosses | None = None,
) -> TrainStep:
    """Builds ``step(state, batch, *constants) -> (state, metrics)``.

    It descends the gradient of the losses, averaged over the examples of the batch.

    All random numbers are keyed by (seed, step, position in the global batch), so the split of the batch over devices
    or into micro-batches does not change them.

    Args:
        config: the run.
        model: the network, built with the same ``mean_over_devices``.
        optimizer: from :func:`~ddim_jax.training.state.make_optimizer`.
        mean_over_devices: averages a tree over the devices that share the batch; the identity on one device.
        batch_losses: what is learned; None for :func:`make_batch_losses`.

    Returns:
        The step; it leaves the averages alone under ``train.ema_on_host``. Its batch is a
        :class:`~ddim_jax.data.batches.Batch`, the device's share; the constants, if any, are handed to
        ``batch_losses``.
    """
    train, seed = config.train, config.seed
    losses_of = batch_losses or make_batch_losses(config)

    def batch_loss(
        params: Any, batch_stats: Any, batch: Any, step: jax.Array, constants: tuple[Any, ...]
    ) -> tuple[jax.Array, Any]:
        dropout_keys = example_keys(seed, Stream.DROPOUT, step, batch.index) if config.model.dropout else None

        def network(x: jax.Array, time: jax.Array, condition: Condition, **told: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": batch_stats}
            return call(
                model, variables, x, time, condition, dropout_keys=dropout_keys, mutable=["batch_stats"], **told
            )

        each, new_stats = losses_of(network, batch, step, *constants)
        mean = mean_losses(each)
        return mean.loss, (mean, new_stats.get("batch_stats", {}))

    def gradient(state: TrainState, batch: Any, constants: tuple[Any, ...]) -> tuple[MeanLosses, Any, Any]:
        """Losses, batch statistics and gradient of this device's share, in ``accumulate`` parts."""
        value_and_grad = jax.value_and_grad(batch_loss, has_aux=True)
        if train.accumulate == 1:
            (_, (mean, batch_stats)), grads = value_and_grad(
                state.params, state.batch_stats, batch, state.step, constants
            )
            return mean, batch_stats, grads

        def accumulate(carry: Any, part: Any) -> tuple[Any, None]:
            total, batch_stats, total_grads = carry
            (_, (mean, batch_stats)), grads = value_and_grad(state.params, batch_stats, part, state.step, constants)
            total, total_grads = jax.tree.map(jnp.add, (total, total_grads), (mean, grads))
            return (total, batch_stats, total_grads), None

        parts = jax.tree.map(lambda x: x.reshape(train.accumulate, -1, *x.shape[1:]), batch)
        zeros = MeanLosses(jnp.float32(0), jnp.float32(0), jnp.zeros(4), jnp.zeros(4))
        start = (zeros, state.batch_stats, jax.tree.map(jnp.zeros_like, state.params))
        (total, batch_stats, total_grads), _ = jax.lax.scan(accumulate, start, parts)
        mean, grads = jax.tree.map(lambda sum_of_parts: sum_of_parts / train.accumulate, (total, total_grads))
        return mean, batch_stats, grads

    def train_step(state: TrainState, batch: Any, *constants: Any) -> tuple[TrainState, StepMetrics]:
        mean, batch_stats, grads = mean_over_devices(gradient(state, batch, constants))
        grads = arranged_for_optimizer(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new_state = dataclasses.replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, batch_stats=batch_stats
        )
        if not train.ema_on_host:
            decay = ema_decay(train, state.step)
            new_state = dataclasses.replace(
                new_state,
                ema_params=update_ema(state.ema_params, params, decay),
                ema_batch_stats=update_ema(state.ema_batch_stats, batch_stats, decay),
            )
            if isinstance(new_state, PowerTrainState):
                new_state = update_power_averages(train, new_state)
        return new_state, StepMetrics(**mean._asdict(), grad_norm=global_norm(grads))

    return train_step
