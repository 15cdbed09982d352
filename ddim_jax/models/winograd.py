"""3x3 convolutions with 4 multiplications where the plain form has 9: Winograd's minimal filtering F(2x2, 3x3).

Two neighbouring pixels of a correlation with three weights g read four pixels d. Written out they need six products;

    [d0 g0 + d1 g1 + d2 g2,  d1 g0 + d2 g1 + d3 g2]  =  [m1 + m2 + m3,  m2 - m3 - m4],
    m1 = (d0 - d2) g0,   m2 = (d1 + d2) (g0 + g1 + g2) / 2,   m3 = (d2 - d1) (g0 - g1 + g2) / 2,   m4 = (d1 - d3) g2

needs four, and the factors of the weights are the same for all pixels. Along both axes a tile of 2x2 pixels takes 16
products of transformed tiles of 4x4 pixels and transformed kernels, instead of 36. With many channels each of the 16 is
a product of matrices, which is nearly all of the work; the transformations are sums. All of it is exact but for
rounding, which is a few times that of the plain form (Winograd 1980, "Arithmetic Complexity of Computations"; Lavin and
Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1).

All operations here are linear in the image and in the kernel, and such that the derivatives that JAX takes of them are
of the same kind: the gradients need no code of their own.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

# So many tiles are transformed and multiplied at a time: with 128 channels and more they just fill the cache of a core.
_TILES_AT_A_TIME = 512


@functools.partial(jax.jit, static_argnames="rows_first")
def convolve(x: jax.Array, kernel: jax.Array, rows_first: bool = True) -> jax.Array:
    """Correlates images with a 3x3 kernel at stride 1, with zeros around the image.

    Args:
        x: [n, h, w, c].
        kernel: [3, 3, c, features].
        rows_first: which axis of image and kernel is transformed first. The result is the same; but a compiler would
            keep what two convolutions have in common, a transformed image of four times the size, from one to the
            other, and does not if the orders differ.

    Returns:
        [n, h, w, features].
    """
    n, height, width, _ = x.shape
    transformed = _transformed_kernel(kernel, rows_first)
    # The most images that are few enough tiles, one at least, and make equal parts.
    tiles = math.ceil(height / 2) * math.ceil(width / 2)
    part = max(size for size in range(1, n + 1) if n % size == 0 and (size == 1 or size * tiles <= _TILES_AT_A_TIME))
    parts = x.reshape(n // part, part, *x.shape[1:])
    convolved = lax.map(lambda images: _convolve_part(images, transformed, rows_first), parts)
    return convolved.reshape(*x.shape[:3], -1)


def _convolve_part(x: jax.Array, transformed_kernel: jax.Array, rows_first: bool) -> jax.Array:
    """Correlates images with a transformed kernel [16, c, features]."""
    n, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    tiles = jnp.stack([tile.reshape(-1, channels) for tile in _transformed_tiles(padded, rows_first)])
    products = lax.dot_general(tiles, transformed_kernel, (((2,), (1,)), ((0,), (0,))), precision="highest")
    shape = (n, math.ceil(height / 2), math.ceil(width / 2))
    entries = [product.reshape(*shape, -1) for product in _unstack(products, 0)]
    # The 16 are the entries of 4x4 matrices, row by row: rows are summed up first, then what columns are left.
    columns = [_sums(*entries[column::4]) for column in range(4)]
    rows = [_sums(*row) for row in zip(*columns, strict=True)]
    pixels = jnp.stack([jnp.stack(row, axis=3) for row in rows], axis=2)  # [n, h / 2, 2, w / 2, 2, features]
    return pixels.reshape(n, 2 * shape[1], 2 * shape[2], -1)[:, :height, :width]


def _transformed_tiles(x: jax.Array, rows_first: bool) -> list[jax.Array]:
    """The 16 entries of the transformed tiles of images [n, h + 2, w + 2, c], row by row, each [n, h / 2, w / 2, c]."""
    if rows_first:
        return [entry for row in _differences(x, 1) for entry in _differences(row, 2)]
    columns = [_differences(column, 1) for column in _differences(x, 2)]
    return [entry for row in zip(*columns, strict=True) for entry in row]


def _differences(x: jax.Array, axis: int) -> list[jax.Array]:
    """The four factors of d along an axis, of all tiles: of 2 t + 2 pixels, t of each."""
    halves = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = _unstack(halves, axis + 1)
    last = even.shape[axis]
    d0, d1 = (lax.slice_in_dim(pixels, 0, last - 1, axis=axis) for pixels in (even, odd))
    d2, d3 = (lax.slice_in_dim(pixels, 1, last, axis=axis) for pixels in (even, odd))
    return [d0 - d2, d1 + d2, d2 - d1, d1 - d3]


def _transformed_kernel(kernel: jax.Array, rows_first: bool) -> jax.Array:
    """[16, c, features] of a kernel [3, 3, c, features]."""
    if rows_first:
        return jnp.stack([entry for row in _means(*_unstack(kernel, 0)) for entry in _means(*_unstack(row, 0))])
    columns = [_means(*_unstack(column, 0)) for column in _means(*_unstack(kernel, 1))]
    return jnp.stack([entry for row in zip(*columns, strict=True) for entry in row])


def _means(g0: jax.Array, g1: jax.Array, g2: jax.Array) -> list[jax.Array]:
    """The four factors of g."""
    return [g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2]


def _sums(m1: jax.Array, m2: jax.Array, m3: jax.Array, m4: jax.Array) -> list[jax.Array]:
    """The two pixels."""
    return [m1 + m2 + m3, m2 - m3 - m4]


def _unstack(x: jax.Array, axis: int) -> Sequence[jax.Array]:
    """The parts of x along an axis; unlike of indexing, the gradient is one concatenation."""
    return [lax.squeeze(part, (axis,)) for part in lax.split(x, (1,) * x.shape[axis], axis)]
