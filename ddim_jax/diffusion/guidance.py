"""Classifier-free guidance: images that fit their class more closely than the data do (Ho and Salimans 2022).

A class-conditional network that was trained with some labels replaced by "none" can predict both with and without a
class. The difference says what the class is about, and guidance exaggerates it. With the scale w, as most code counts,

    eps = eps_uncond + w (eps_cond - eps_uncond),

so that w = 0 is unconditional, w = 1 the plain conditional model, and larger w trades variety for fidelity. (The
paper's own w is this one less 1.) For networks that predict x0 or v the same formula applies to what they predict: for
a given x these are the noise times a number plus another number, and the weights add up to 1. What a network says
beside, of the variance, is taken from the conditional prediction as it is.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddim_jax.diffusion.prediction import Network
from ddim_jax.errors import UserError

# network(x [n, h, w, c], time [n], label int [n]) -> output like x.
ConditionalNetwork = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def guided(
    network: ConditionalNetwork,
    label: jax.Array,
    null_label: int,
    scale: float,
    interval: tuple[float, float] | None = None,
) -> Network:
    """Fixes the classes of a conditional network and guides it towards them.

    >>> network = lambda x, time, label: label.reshape(-1, 1, 1, 1) * jnp.ones_like(x)
    >>> guide = guided(network, label=jnp.array([3]), null_label=10, scale=2.0)
    >>> float(guide(jnp.zeros((1, 1, 1, 1)), jnp.zeros(1))[0, 0, 0, 0])  # 10 + 2 (3 - 10)
    -4.0

    Both predictions are made in one batch of 2 n, which costs twice the time of a plain one. With scale 1 there is
    nothing to add and only the plain one is made; likewise, while sampling, outside the interval.

    Args:
        network: knows "none" as the class ``null_label``.
        label: int [n].
        null_label: the class that stands for none.
        scale: w.
        interval: the lowest and highest time, both included, at which to guide; None for all. Guidance at high noise
            costs variety and at low noise does nothing, so that a middle interval is best (Kynkäänniemi et al. 2024).
            Times are numbers that the network is told, ``Schedule.time_input`` of levels.

    Returns:
        A network of x and time, the time being the same for all images.

    Raises:
        UserError: scale is not finite, or the interval is empty.
    """
    if not math.isfinite(scale):
        raise UserError(f"guidance scale {scale}: must be a finite number; 1 means no guidance")
    if interval is not None and not interval[0] <= interval[1]:
        raise UserError(f"guidance interval {tuple(interval)}: its lower end must not be above its upper one")

    def plain(x: jax.Array, time: jax.Array) -> jax.Array:
        return network(x, time, label)

    def guide(x: jax.Array, time: jax.Array) -> jax.Array:
        labels = jnp.concatenate([label, jnp.full_like(label, null_label)])
        output = network(jnp.concatenate([x, x]), jnp.concatenate([time, time]), labels)
        conditional, unconditional = jnp.split(output, 2)
        mixed = unconditional + scale * (conditional - unconditional)
        if output.shape[-1] == x.shape[-1]:
            return mixed
        return jnp.concatenate([mixed[..., : x.shape[-1]], conditional[..., x.shape[-1] :]], axis=-1)

    if scale == 1:
        return plain
    if interval is None:
        return guide
    low, high = interval

    def guide_inside(x: jax.Array, time: jax.Array) -> jax.Array:
        return jax.lax.cond((time[0] >= low) & (time[0] <= high), guide, plain, x, time)

    return guide_inside
