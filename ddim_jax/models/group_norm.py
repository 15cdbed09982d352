"""Group normalisation (Wu and He 2018)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# [n, h, w, c], or several such arrays for what their concatenation along the channels is.
Parts = jax.Array | tuple[jax.Array, ...]


class GroupNorm(nn.Module):
    """:func:`group_norm` with a learned scale and bias per channel, started at 1 and 0.

    Attributes:
        num_groups: number of groups.
        dtype: dtype of the result.
        eps: added to the variance.
    """

    num_groups: int = 32
    dtype: jax.typing.DTypeLike = jnp.float32
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Parts) -> jax.Array:
        """Normalises [n, h, w, c], whole or in parts."""
        c = sum(part.shape[-1] for part in x) if isinstance(x, tuple) else x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        return group_norm(x, scale, bias, self.num_groups, self.eps).astype(self.dtype)


def group_norm(x: Parts, scale: jax.Array, bias: jax.Array, num_groups: int = 32, eps: float = 1e-6) -> jax.Array:
    """Zero mean and unit variance over pixels and channels of a group, then scale and bias.

    Each channel is averaged over its pixels on its own and channels are joined into groups only
    afterwards, on [n, c] numbers: XLA runs that faster than a reduction over a reshaped image. And it takes an average
    while it writes what is averaged, so an x that is a concatenation is best given in parts: theirs are known already.

    The variance of float32 is that of the centred values, E[(x - m)^2]: a second pass over memory, but E[x^2] - m^2
    loses its digits when the mean m is large. That of bfloat16 is E[x^2] - m^2 in float32: both means come from one
    pass. It loses nothing: float32 rounds m^2 by 2^-24 of it, while the rounding of x to 8 bits has already moved the
    variance by m^2 2^-18 / 3 or more.

    Args:
        x: [n, h, w, c], any float dtype, whole or in parts; computed in float32.
        scale: [c] factor after normalisation.
        bias: [c] offset after normalisation.
        num_groups: number of groups of neighbouring channels.
        eps: added to the variance.

    Returns:
        [n, h, w, c] float32.

    Raises:
        ValueError: c is not a multiple of ``num_groups``.
    """
    parts = x if isinstance(x, tuple) else (x,)
    whole = jnp.concatenate(parts, axis=-1)
    n, _, _, c = whole.shape
    if c % num_groups:
        raise ValueError(f"{c} channels cannot be split into {num_groups} groups")

    def group_mean(*parts: jax.Array) -> jax.Array:
        """Means over pixels and channels of each group, repeated for its channels: [n, 1, 1, c]."""
        of_channels = jnp.concatenate([jnp.mean(part, axis=(1, 2)) for part in parts], axis=-1)
        of_groups = jnp.mean(of_channels.reshape(n, num_groups, -1), axis=-1)
        return jnp.repeat(of_groups, c // num_groups, axis=-1)[:, None, None, :]

    values = [part.astype(jnp.float32) for part in parts]
    mean = group_mean(*values)
    centred = whole.astype(jnp.float32) - mean
    if whole.dtype == jnp.bfloat16:
        variance = jnp.maximum(group_mean(*map(jnp.square, values)) - jnp.square(mean), 0)
    else:
        variance = group_mean(jnp.square(centred))
    return centred * (jax.lax.rsqrt(variance + eps) * scale) + bias
