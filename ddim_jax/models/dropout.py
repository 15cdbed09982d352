"""Dropout whose mask an example draws from a key of its own, so that it depends on no other example."""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p


@flax.struct.dataclass
class Kept:
    """What dropout keeps of images [n, h, w, c].

    Attributes:
        bits: uint8 [n, h / 4 rounded up, w, c]: bit k of row r says whether row 4 r + k keeps its value.
        height: h.
        share: how much is kept on average: what kept values are divided by.
    """

    bits: jax.Array
    height: int = flax.struct.field(pytree_node=False)
    share: float = flax.struct.field(pytree_node=False)

    def mask(self) -> jax.Array:
        """Whether each value is kept, bool [n, h, w, c]."""
        n, rows, *rest = self.bits.shape
        shifts = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 4, *(1 for _ in rest))
        unpacked = (self.bits[:, :, None] >> shifts) & 1
        return (unpacked != 0).reshape(n, 4 * rows, *rest)[:, : self.height]


def kept_each(shape: tuple[int, ...], keys: jax.Array, rate: float) -> Kept:
    """The mask of :func:`dropout_each`, a bit a value.

    Args:
        shape: of the activations, [n, h, w, c].
        keys: as there.
        rate: as there.
    """

    def keep_one(key: jax.Array) -> jax.Array:
        return functools.reduce(
            jnp.bitwise_or, (kept.astype(jnp.uint8) << k for k, kept in enumerate(_quarters(key, shape[1:], rate)))
        )

    return Kept(jax.lax.optimization_barrier(jax.vmap(keep_one)(keys)), shape[1], 1 - rate)


def _quarters(key: jax.Array, shape: tuple[int, ...], rate: float) -> list[jax.Array]:
    """Which values are kept of rows 4 r, 4 r + 1, 4 r + 2, 4 r + 3, four times bool [h / 4 rounded up, ...]."""
    drawn_shape = (-(-shape[0] // 4), *shape[1:])
    threshold = round((1 - rate) * 2**16)
    key_words = (jnp.broadcast_to(word, drawn_shape) for word in jax.random.key_data(key))
    counter = jnp.arange(math.prod(drawn_shape), dtype=jnp.uint32).reshape(drawn_shape)
    drawn = threefry2x32_p.bind(*key_words, jnp.zeros_like(counter), counter)
    return [bits < threshold for word in drawn for bits in (word & 0xFFFF, word >> 16)]


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

    def keep_one(key: jax.Array) -> jax.Array:
        return jnp.stack(_quarters(key, x.shape[1:], rate), axis=1).reshape(-1, *rest)[:count]

    # The barrier keeps the mask in memory, a byte a value. Without it compilers draw it again wherever it is used.
    keep = jax.lax.optimization_barrier(jax.vmap(keep_one)(keys))
    return jnp.where(keep, x.astype(jnp.float32) / (1 - rate), 0).astype(x.dtype)
