"""One training step (DDPM's algorithm 1) as a pure function of state and batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ddim_jax.config import Config
from ddim_jax.diffusion import losses
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.images import Normalization, to_float
from ddim_jax.random_streams import Stream, example_keys, normal_each, root_key
from ddim_jax.training.state import TrainState, ema_decay, update_ema


class StepMetrics(NamedTuple):
    """Float32 scalars of one step, over the global batch.

    Attributes:
        loss: mean over examples of the (weighted) loss.
        grad_norm: global norm of the gradient before clipping.
    """

    loss: Any
    grad_norm: Any


TrainStep = Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]


def make_train_step(
    config: Config,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mean_over_devices: Callable[[Any], Any] = lambda tree: tree,
) -> TrainStep:
    """Builds ``step(state, batch) -> (state, metrics)``.

    For each example i of the batch: draw a level t and noise eps, diffuse the image to
    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM, eq. 4), ask the network for the target, and descend
    the gradient of the loss (DDPM, eq. 14 for eps and the mean squared error).

    All random numbers are keyed by (seed, step, position in the global batch), so the split of the batch over devices
    or into micro-batches does not change them.

    Args:
        config: the run.
        model: the network.
        optimizer: from :func:`~ddim_jax.training.state.make_optimizer`.
        mean_over_devices: averages a tree over the devices that share the batch; the identity on one device.

    Returns:
        The step. Its batch has ``image`` uint8 [n, h, w, c], ``label`` int32 [n] and ``index`` int32 [n], the
        examples' positions in the global batch; n is the device's share.
    """
    diffusion, train, seed = config.diffusion, config.train, config.seed
    schedule = make_schedule(diffusion.schedule, diffusion.num_levels, diffusion.beta_start, diffusion.beta_end)
    alpha_bars = jnp.asarray(schedule.alpha_bar, jnp.float32)
    normalization = Normalization(config.data.mean, config.data.std)

    def batch_loss(params: Any, batch_stats: Any, batch: Any, step: jax.Array) -> tuple[jax.Array, Any]:
        x0 = to_float(batch.image, normalization)
        time_key = jax.random.fold_in(root_key(seed, Stream.TIME), step)
        level = losses.draw_levels(
            diffusion.time_sampling, diffusion.num_levels, time_key, batch.index, train.batch_size
        )
        alpha_bar = alpha_bars[level]
        eps = normal_each(example_keys(seed, Stream.NOISE, step, batch.index), 0, x0.shape[1:], x0.dtype)
        output, new_stats = model.apply(
            {"params": params, "batch_stats": batch_stats},
            losses.diffuse(x0, eps, alpha_bar),
            schedule.time_input(level).astype(jnp.float32),
            drop_labels(batch.label, step, batch.index) if config.model.num_classes else None,
            dropout_keys=example_keys(seed, Stream.DROPOUT, step, batch.index) if config.model.dropout else None,
            mutable=["batch_stats"],
        )
        target = losses.training_target(diffusion.objective, x0, eps, alpha_bar)
        loss = losses.example_loss(output, target, diffusion.loss, diffusion.reduction)
        if diffusion.min_snr_gamma:
            loss = loss * losses.min_snr_weight(alpha_bar, diffusion.objective, diffusion.min_snr_gamma)
        return jnp.mean(loss), new_stats.get("batch_stats", {})

    def drop_labels(label: jax.Array, step: jax.Array, index: jax.Array) -> jax.Array:
        """Replaces a share of the labels by "none", for classifier-free guidance (Ho and Salimans 2022)."""
        keys = example_keys(seed, Stream.LABEL, step, index)
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, train.label_dropout))(keys)
        return jnp.where(dropped, config.model.num_classes, label)

    def gradient(state: TrainState, batch: Any) -> tuple[jax.Array, Any, Any]:
        """Loss, batch statistics and gradient of this device's share, in ``accumulate`` parts."""
        value_and_grad = jax.value_and_grad(batch_loss, has_aux=True)
        if train.accumulate == 1:
            (loss, batch_stats), grads = value_and_grad(state.params, state.batch_stats, batch, state.step)
            return loss, batch_stats, grads

        def accumulate(carry: Any, part: Any) -> tuple[Any, None]:
            total_loss, batch_stats, total_grads = carry
            (loss, batch_stats), grads = value_and_grad(state.params, batch_stats, part, state.step)
            return (total_loss + loss, batch_stats, jax.tree.map(jnp.add, total_grads, grads)), None

        parts = jax.tree.map(lambda x: x.reshape(train.accumulate, -1, *x.shape[1:]), batch)
        start = (jnp.float32(0), state.batch_stats, jax.tree.map(jnp.zeros_like, state.params))
        (loss, batch_stats, grads), _ = jax.lax.scan(accumulate, start, parts)
        return loss / train.accumulate, batch_stats, jax.tree.map(lambda g: g / train.accumulate, grads)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        loss, batch_stats, grads = mean_over_devices(gradient(state, batch))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(train, state.step)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=update_ema(state.ema_params, params, decay),
            batch_stats=batch_stats,
            ema_batch_stats=update_ema(state.ema_batch_stats, batch_stats, decay),
        )
        return new_state, StepMetrics(loss, optax.tree.norm(grads))

    return train_step
