"""Group normalisation (Wu and He 2018).

Two forms of it: :func:`group_norm` says what is computed, and its derivatives are JAX's. :func:`norm_in_few_passes`
computes the same, with what stands before and after it, in as few passes over memory as a GPU can do with.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddim_jax.models.dropout import Kept

# [n, h, w, c], or several such arrays for what their concatenation along the channels is.
Parts = jax.Array | tuple[jax.Array, ...]

# Whether the gradient of what a norm gives is computed anew in the second pass of the backward pass, or kept: a third
# of the traffic of the norm's gradient, or the exponential functions of swish.
_COMPUTES_TWICE = True


class GroupNorm(nn.Module):
    """:func:`group_norm` with a learned scale and bias per channel, started at 1 and 0.

    Attributes:
        num_groups: number of groups.
        dtype: dtype of the result.
        eps: added to the variance.
        few_passes: take :func:`norm_in_few_passes`.
    """

    num_groups: int = 32
    dtype: jax.typing.DTypeLike = jnp.float32
    eps: float = 1e-6
    few_passes: bool = False

    @nn.compact
    def __call__(
        self, x: Parts, *, offset: jax.Array | None = None, swish: bool = False, kept: Kept | None = None
    ) -> jax.Array:
        """Normalises [n, h, w, c], whole or in parts.

        Args:
            x: images.
            offset: [n, c], is added to x first; only with ``few_passes``.
            swish: whether swish follows.
            kept: what dropout leaves of that; only with ``few_passes``.
        """
        parts = x if isinstance(x, tuple) else (x,)
        c = sum(part.shape[-1] for part in parts)
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        if self.few_passes:
            return norm_in_few_passes(self.num_groups, self.eps, swish, parts, offset, scale, bias, kept)
        y = group_norm(x, scale, bias, self.num_groups, self.eps).astype(self.dtype)
        return nn.swish(y) if swish else y


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


# --- in few passes over memory ------------------------------------------------------------------


class Moments(NamedTuple):
    """What a norm knows of x, float32.

    Attributes:
        of_channels: [n, c] mean of each channel over its pixels.
        mean: [n, c] mean of the channel's group.
        scale: [n, c] what its deviations from that mean are multiplied by: 1 over the standard deviation.
    """

    of_channels: jax.Array
    mean: jax.Array
    scale: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def norm_in_few_passes(
    num_groups: int,
    eps: float,
    swish: bool,
    parts: tuple[jax.Array, ...],
    offset: jax.Array | None,
    scale: jax.Array,
    bias: jax.Array,
    kept: Kept | None,
) -> jax.Array:
    """The norm of bfloat16 images with what precedes and follows it: dropout(swish(group_norm(x + offset))).

    A GPU reads and writes memory for as long as it computes convolutions, so passes are what counts here: forwards one
    that sums and one that writes the result, backwards likewise. What is cheap is computed twice, not kept: in float32,
    from x as it came from a convolution. All gradients of what has no pixels come from two sums over pixels, for

        d x = s (scale d u - mean(scale d u) - x^ mean(scale d u x^)),   x^ = s (x + offset - mean(x + offset)),

    where u = scale x^ + bias, is linear in x^ and d u, whose sums over pixels are known.

    There are no forward-mode derivatives.

    Args:
        num_groups: of :func:`group_norm`.
        eps: of :func:`group_norm`.
        swish: whether the result is u sigmoid(u) of the norm's u.
        parts: bfloat16 [n, h, w, c], whose concatenation x is.
        offset: float32 [n, c], or None for 0.
        scale: [c].
        bias: [c].
        kept: what dropout leaves; None for all.

    Returns:
        bfloat16 [n, h, w, c].
    """
    return _forward(num_groups, eps, swish, parts, offset, scale, bias, kept)[0]


def _forward(
    num_groups: int,
    eps: float,
    swish: bool,
    parts: tuple[jax.Array, ...],
    offset: jax.Array | None,
    scale: jax.Array,
    bias: jax.Array,
    kept: Kept | None,
) -> tuple[jax.Array, tuple]:
    moments = _moments(parts, offset, num_groups, eps)
    results = []
    for x, at in _places(parts):
        u = _centred(x, offset, moments, at) * _by_pixel(moments.scale * scale, at) + _by_pixel(bias[None], at)
        results.append(_dropped(jax.nn.swish(u) if swish else u, kept, at).astype(x.dtype))
    y = results[0] if len(results) == 1 else jnp.concatenate(results, axis=-1)
    return y, (parts, offset, scale, bias, kept, moments)


def _backward(num_groups: int, eps: float, swish: bool, remembered: tuple, gradient: jax.Array) -> tuple:
    del eps
    parts, offset, scale, bias, kept, moments = remembered
    pixels = gradient.shape[1] * gradient.shape[2]

    def inside(x: jax.Array, at: slice) -> tuple[jax.Array, jax.Array]:
        """Centred x, and the gradient of u."""
        centred = _centred(x, offset, moments, at)
        of_u = _dropped(gradient[..., at].astype(jnp.float32), kept, at)
        if swish:
            u = centred * _by_pixel(moments.scale * scale, at) + _by_pixel(bias[None], at)
            sigmoid = jax.nn.sigmoid(u)
            of_u = of_u * (sigmoid * (1 + u * (1 - sigmoid)))
        return centred, of_u

    # Two sums as one of complex numbers: left to itself, XLA stores in float32 what they have in common, or adds up all
    # images in a pass of its own.
    both = []
    for x, at in _places(parts):
        centred, of_u = inside(x, at)
        both.append(jnp.sum(jax.lax.complex(of_u, of_u * centred), axis=(1, 2)))
    joined = both[0] if len(both) == 1 else jnp.concatenate(both, axis=-1)
    of_u_sum, of_u_with_x = joined.real, joined.imag * moments.scale

    def group_mean(values: jax.Array) -> jax.Array:
        return _over_groups(values * scale, num_groups) / pixels

    constant = moments.scale * group_mean(of_u_sum)
    slope = jnp.square(moments.scale) * group_mean(of_u_with_x)
    factor = moments.scale * scale
    of_parts = []
    for x, at in _places(jax.lax.optimization_barrier(parts) if _COMPUTES_TWICE else parts):
        centred, of_u = inside(x, at)
        of_x = _by_pixel(factor, at) * of_u - _by_pixel(constant, at) - _by_pixel(slope, at) * centred
        of_parts.append(of_x.astype(x.dtype))
    of_offset = None
    if offset is not None:
        centred_sum = moments.of_channels - moments.mean
        of_offset = factor * of_u_sum - pixels * (constant + slope * centred_sum)
    # As one sum again, of which the optimiser's kernels for scale and bias are one too.
    of_scale_and_bias = jnp.sum(jax.lax.complex(of_u_with_x, of_u_sum), axis=0)
    return tuple(of_parts), of_offset, of_scale_and_bias.real, of_scale_and_bias.imag, None


norm_in_few_passes.defvjp(_forward, _backward)


def _places(parts: tuple[jax.Array, ...]) -> list[tuple[jax.Array, slice]]:
    """Parts, and which of all channels they have."""
    places, start = [], 0
    for part in parts:
        places.append((part, slice(start, start + part.shape[-1])))
        start += part.shape[-1]
    return places


def _by_pixel(values: jax.Array, at: slice) -> jax.Array:
    """Values of channels, [n, c], for images: [n, 1, 1, channels at hand]."""
    return values[:, None, None, at]


def _over_groups(of_channels: jax.Array, num_groups: int) -> jax.Array:
    """Means over the channels of each group, repeated for its channels: [n, c]."""
    n, c = of_channels.shape
    of_groups = jnp.mean(of_channels.reshape(n, num_groups, -1), axis=-1)
    return jnp.repeat(of_groups, c // num_groups, axis=-1)


def _moments(parts: tuple[jax.Array, ...], offset: jax.Array | None, num_groups: int, eps: float) -> Moments:
    """From the sums of x and of its square, which one pass finds; see :func:`group_norm` for what that loses."""
    values = [part.astype(jnp.float32) for part in parts]
    mean = jnp.concatenate([jnp.mean(part, axis=(1, 2)) for part in values], axis=-1)
    square = jnp.concatenate([jnp.mean(jnp.square(part), axis=(1, 2)) for part in values], axis=-1)
    if offset is not None:
        square = square + offset * (2 * mean + offset)
        mean = mean + offset
    of_groups = _over_groups(mean, num_groups)
    variance = jnp.maximum(_over_groups(square, num_groups) - jnp.square(of_groups), 0)
    return Moments(mean, of_groups, jax.lax.rsqrt(variance + eps))


def _centred(x: jax.Array, offset: jax.Array | None, moments: Moments, at: slice) -> jax.Array:
    shift = -moments.mean if offset is None else offset - moments.mean
    return x.astype(jnp.float32) + _by_pixel(shift, at)


def _dropped(values: jax.Array, kept: Kept | None, at: slice) -> jax.Array:
    return values if kept is None else jnp.where(kept.mask()[..., at], values / kept.share, 0)
