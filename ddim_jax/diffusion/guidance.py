"""Guidance: images that fit what they are drawn from more closely than the data do.

A conditional network that was trained with some conditions replaced by "none" can predict both with and without one.
The difference says what the condition is about, and classifier-free guidance exaggerates it (Ho and Salimans 2022).
With the scale w, as most code counts,

    eps = eps_uncond + w (eps_cond - eps_uncond),

so that w = 0 is unconditional, w = 1 the plain conditional model, and larger w trades variety for fidelity. (The
paper's own w is this one less 1.) For networks that predict x0 or v the same formula applies to what they predict: for
a given x these are the noise times a number plus another number, and the weights add up to 1. What a network says
beside, of the variance, is taken from the conditional prediction as it is.

Autoguidance (Karras et al. 2024) leads away from another network of the same condition, smaller or trained less, in
place of the unconditional one: away from its mistakes, which are those of the better network and larger. It needs no
condition.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddim_jax.diffusion.prediction import Network, per_image
from ddim_jax.errors import UserError

# network(x [n, h, w, c], time [n], condition) -> output like x. A condition is any tree of arrays with n rows.
ConditionalNetwork = Callable[[jax.Array, jax.Array, Any], jax.Array]


def guided(
    network: ConditionalNetwork,
    condition: Any,
    none: Any,
    scale: float,
    interval: tuple[float, float] | None = None,
    times_differ: bool = False,
) -> Network:
    """Fixes the conditions of a network and guides it towards them.

    >>> network = lambda x, time, label: label.reshape(-1, 1, 1, 1) * jnp.ones_like(x)
    >>> guide = guided(network, condition=jnp.array([3]), none=jnp.array([10]), scale=2.0)
    >>> float(guide(jnp.zeros((1, 1, 1, 1)), jnp.zeros(1))[0, 0, 0, 0])  # 10 + 2 (3 - 10)
    -4.0

    Both predictions are made in one batch of 2 n, which costs twice the time of a plain one. With scale 1 there is
    nothing to add and only the plain one is made; likewise, while sampling, outside the interval.

    Args:
        network: of x, time and condition.
        condition: a tree of arrays [n, ...].
        none: the same tree, of arrays that mean "none" or broadcast to such; parts may be equal, which are not guided
            towards.
        scale: w.
        interval: the lowest and highest time, both included, at which to guide; None for all. Guidance at high noise
            costs variety and at low noise does nothing, so that a middle interval is best (Kynkäänniemi et al. 2024).
            Times are numbers that the network is told, ``Schedule.time_input`` of levels.
        times_differ: whether images may have different times; without an interval it makes no difference.

    Returns:
        A network of x and time.

    Raises:
        UserError: scale is not finite, or the interval is empty.
    """

    def plain(x: jax.Array, time: jax.Array) -> jax.Array:
        return network(x, time, condition)

    def beside(value: jax.Array, none: Any) -> jax.Array:
        return jnp.concatenate([value, jnp.broadcast_to(jnp.asarray(none, value.dtype), value.shape)])

    def both(x: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        conditions = jax.tree.map(beside, condition, none)
        output = network(jnp.concatenate([x, x]), jnp.concatenate([time, time]), conditions)
        conditional, unconditional = jnp.split(output, 2)
        return conditional, unconditional

    return _led_away(plain, both, scale, interval, times_differ)


def guided_by(network: Network, guide: Network, scale: float, interval: tuple[float, float] | None = None) -> Network:
    """Leads a network away from what another one predicts: autoguidance.

    >>> better, worse = (lambda x, time: 3 * x), (lambda x, time: 2 * x)
    >>> float(guided_by(better, worse, 3.0)(jnp.ones((1, 1, 1, 1)), jnp.zeros(1))[0, 0, 0, 0])  # 2 + 3 (3 - 2)
    5.0

    Args:
        network: of x and time.
        guide: another, which predicts the same of the same input.
        scale: w; with 1 the guide is not asked.
        interval: see :func:`guided`.

    Raises:
        UserError: scale is not finite, or the interval is empty.
    """
    return _led_away(network, lambda x, time: (network(x, time), guide(x, time)), scale, interval)


def _led_away(
    plain: Network,
    both: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    scale: float,
    interval: tuple[float, float] | None,
    times_differ: bool = False,
) -> Network:
    """A network that goes on from the second of two predictions to the first and beyond, inside the interval."""
    if not math.isfinite(scale):
        raise UserError(f"guidance scale {scale}: must be a finite number; 1 means no guidance")
    if interval is not None and not interval[0] <= interval[1]:
        raise UserError(f"guidance interval {tuple(interval)}: its lower end must not be above its upper one")

    def guide(x: jax.Array, time: jax.Array) -> jax.Array:
        better, worse = both(x, time)
        channels = x.shape[-1]
        # Beyond these is what the better one says of the variance; the other may say nothing of it.
        mean, other = better[..., :channels], worse[..., :channels]
        mixed = other + scale * (mean - other)
        if better.shape[-1] == channels:
            return mixed
        return jnp.concatenate([mixed, better[..., channels:]], axis=-1)

    if scale == 1:
        return plain
    if interval is None:
        return guide
    low, high = interval

    def guide_inside(x: jax.Array, time: jax.Array) -> jax.Array:
        if times_differ:
            return jnp.where(per_image((time >= low) & (time <= high), x), guide(x, time), plain(x, time))
        return jax.lax.cond((time[0] >= low) & (time[0] <= high), guide, plain, x, time)

    return guide_inside
