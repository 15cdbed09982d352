"""3x3 convolutions with 4 multiplications where the plain form has 9: Winograd's minimal filtering F(2x2, 3x3).

Two neighbouring pixels of a correlation with three weights g read four pixels d. Written out they need six products;

    [d0 g0 + d1 g1 + d2 g2,  d1 g0 + d2 g1 + d3 g2]  =  [m1 + m2 + m3,  m2 - m3 - m4],
    m1 = (d0 - d2) g0,   m2 = (d1 + d2) (g0 + g1 + g2) / 2,   m3 = (d2 - d1) (g0 - g1 + g2) / 2,   m4 = (d1 - d3) g2

needs four, and the factors of the weights are the same for all pixels. As matrices: A ((G g) * (B d)). Along both axes
2x2 pixels read a tile d of 4x4, and A ((G g Gᵀ) * (B d Bᵀ)) Aᵀ takes 16 products instead of 36. With many channels each
of the 16 is a product of matrices, which is nearly all of the work; the transformations are sums. It is exact but for
rounding, which is a few times that of the plain form (Winograd 1980, "Arithmetic Complexity of Computations"; Lavin and
Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1).

The gradients have functions of their own, of the same form.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Of the pixels, of the weights, and of the products.
_B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
_G = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.float32) / 2
_A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)

# So many tiles are transformed and multiplied at a time: with 128 channels they just fill the cache of a core.
_TILES_AT_A_TIME = 512


@jax.jit
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Correlates images with a 3x3 kernel at stride 1, with zeros around the image.

    Args:
        x: [n, h, w, c].
        kernel: [3, 3, c, features].

    Returns:
        [n, h, w, features].
    """
    return _convolve(x, _transformed_kernel(kernel, _G), 1)


@jax.jit
def image_gradient(gradient: jax.Array, kernel: jax.Array) -> jax.Array:
    """The gradient of :func:`convolve` by the image: a correlation with the mirrored kernel, from features to channels.

    Args:
        gradient: of the result, [n, h, w, features].
        kernel: [3, 3, c, features].

    Returns:
        [n, h, w, c].
    """
    return _convolve(gradient, _transformed_kernel(kernel, _G[:, ::-1]), 2)


@jax.jit
def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient of :func:`convolve` by the kernel: Gᵀ (the sum over all tiles of (B d Bᵀ) * (Aᵀ gradient A)) G.

    Args:
        x: [n, h, w, c].
        gradient: of the result, [n, h, w, features].

    Returns:
        [3, 3, c, features].
    """
    parts = _parts(x)

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        images, gradients = part
        # B / 2 and 2 G for B and G are the same numbers in the end. But tiles that are those of the convolution XLA
        # would keep from there to here, and they are four times as large as the image.
        return total + _products(_transformed_tiles(images, _B / 2), _transformed_pixels(gradients), 1, 1), None

    zeros = jnp.zeros((16, x.shape[-1], gradient.shape[-1]), x.dtype)
    products, _ = lax.scan(add, zeros, (x.reshape(parts), gradient.reshape(*parts[:-1], -1)))
    return _both_sides(2 * _G.T, products.reshape(4, 4, *zeros.shape[1:]))


def _convolve(x: jax.Array, transformed_kernel: jax.Array, axis: int) -> jax.Array:
    """Correlates images with a transformed kernel, along one axis of which are the images' channels."""

    def of_part(images: jax.Array) -> jax.Array:
        n, height, width, _ = images.shape
        rows, columns = math.ceil(height / 2), math.ceil(width / 2)
        products = _products(_transformed_tiles(images, _B), transformed_kernel, 2, axis)
        pixels = _both_sides(_A, products.reshape(4, 4, n, rows, columns, -1))
        image = pixels.transpose(2, 3, 0, 4, 1, 5).reshape(n, 2 * rows, 2 * columns, -1)
        return image[:, :height, :width]

    return lax.map(of_part, x.reshape(_parts(x))).reshape(*x.shape[:3], -1)


def _parts(x: jax.Array) -> tuple[int, ...]:
    """The shape of images [n, h, w, c] in equal parts: the largest that are few enough tiles.

    Two parts at least, if there are two images: a loop, with which XLA cannot merge what comes before and after it.
    Merged, a transformation would be computed anew for all who ask for it.
    """
    n, height, width, channels = x.shape
    tiles = math.ceil(height / 2) * math.ceil(width / 2)
    most = min(n // 2, _TILES_AT_A_TIME // tiles)
    size = max(size for size in range(1, n + 1) if n % size == 0 and size <= max(1, most))
    return n // size, size, height, width, channels


def _products(a: jax.Array, b: jax.Array, axis_of_a: int, axis_of_b: int) -> jax.Array:
    """The 16 products of matrices a [16, ...] and b [16, ...], along an axis of each."""
    return lax.dot_general(a, b, (((axis_of_a,), (axis_of_b,)), ((0,), (0,))), precision="highest")


def _transformed_tiles(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    """B d Bᵀ of all tiles: [16, tiles, c] of images [n, h, w, c]."""
    _, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    # Tiles begin two pixels apart.
    rows = _times(matrix, [padded[:, p : p + height : 2] for p in range(4)])
    return _times(matrix, [rows[:, :, :, q : q + width : 2] for q in range(4)]).reshape(16, -1, channels)


def _transformed_pixels(gradient: jax.Array) -> jax.Array:
    """Aᵀ y A of all 2x2 pixels y: [16, tiles, features] of a gradient [n, h, w, features]."""
    _, height, width, features = gradient.shape
    padded = jnp.pad(gradient, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows = _times(_A.T, [padded[:, p::2] for p in range(2)])
    return _times(_A.T, [rows[:, :, :, q::2] for q in range(2)]).reshape(16, -1, features)


def _transformed_kernel(kernel: jax.Array, matrix: np.ndarray) -> jax.Array:
    """G g Gᵀ: [16, c, features] of a kernel [3, 3, c, features]."""
    return _both_sides(matrix, kernel).reshape(16, *kernel.shape[2:])


def _both_sides(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """The product matrix · x · matrixᵀ of arrays x [columns, columns, ...], transposed: [rows, rows, ...]."""
    return _times(matrix, _times(matrix, x).swapaxes(0, 1))


def _times(matrix: np.ndarray, entries: Any) -> jax.Array:
    """The product of a matrix [rows, columns] and a column of arrays of one shape: [rows, *that shape].

    As a sum with zeros, in which a compiler finds one short loop.
    """
    terms = [matrix[:, p].reshape(-1, *(1,) * entries[p].ndim) * entries[p] for p in range(matrix.shape[1])]
    return functools.reduce(jnp.add, terms)
