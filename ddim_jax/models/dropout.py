"""Dropout whose mask an example draws from a key of its own, so that it depends on no other example."""

import math

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p


def dropout_each(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Dropout with one key per example: zeroes values with probability ``rate``, scales the rest by 1 / (1 - rate).

    Random bits are what dropout costs. A value takes 16, a quarter of what threefry makes at a time, so the
    probability is rounded to a multiple of 2^-16.

    Args:
        x: [n, ...] activations.
        keys: [n] threefry keys; example i's mask depends on ``keys[i]`` alone.
        rate: probability in [0, 1).

    Returns:
        [n, ...], of x's dtype.
    """
    count, *rest = x.shape[1:]
    drawn_shape = (-(-count // 4), *rest)
    threshold = round((1 - rate) * 2**16)

    def keep_one(key: jax.Array) -> jax.Array:
        key_words = (jnp.broadcast_to(word, drawn_shape) for word in jax.random.key_data(key))
        counter = jnp.arange(math.prod(drawn_shape), dtype=jnp.uint32).reshape(drawn_shape)
        drawn = threefry2x32_p.bind(*key_words, jnp.zeros_like(counter), counter)
        quarters = [bits < threshold for word in drawn for bits in (word & 0xFFFF, word >> 16)]
        return jnp.stack(quarters, axis=1).reshape(-1, *rest)[:count]

    # The barrier keeps the mask in memory, a byte a value. Without it compilers draw it again wherever it is used.
    keep = jax.lax.optimization_barrier(jax.vmap(keep_one)(keys))
    return jnp.where(keep, x.astype(jnp.float32) / (1 - rate), 0).astype(x.dtype)
