"""Images as the networks that compare them get them: square, RGB, by the protocols of published codes.

Inception gets 299x299 pixels by one of three protocols (:func:`resize`), DINOv2 and CLIP theirs by that of dgm-eval and
CMMD (:func:`resize_as_pillow`).

FID depends on how small images are enlarged: 32x32 noise made 299x299 by ``tf1`` and by ``pytorch`` differs by 37 of
255 grey levels on average. A figure is comparable only with figures by the same protocol.

Each protocol is linear and treats rows and columns alike, so it is a matrix: row i of ``weights`` says how pixel i of
the result is mixed from the pixels of a line, and an image X becomes ``weights_h @ X @ weights_w.T``. The matrices are
made on the host in float64.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import names
from ddim_jax.models.inception import INPUT_SIZE
from ddim_jax.names import ResizeProtocol


def resize(images: jax.typing.ArrayLike, protocol: ResizeProtocol, size: int = INPUT_SIZE) -> jax.Array:
    """Resizes and normalises images for the Inception network; may be part of a compiled function.

    Args:
        images: uint8 [n, h, w, 1 or 3]; grey becomes three equal channels.
        protocol: ``tf1``, what the network's TensorFlow graph does, and torch-fidelity after it; ``pytorch``, that of
            pytorch-fid; ``clean``, that of clean-fid (Parmar et al. 2022), the only one that shrinks without aliasing.
            See :func:`resize_matrix`.
        size: side of the result in pixels.

    Returns:
        float32 [n, size, size, 3]: (pixel - 128) / 128 for ``tf1`` and ``clean``, 2 pixel / 255 - 1 for ``pytorch``.

    Raises:
        ValueError: images are not uint8 (round them first, as one who saved them would), have another number of
            dimensions or channels.
        UserError: no protocol has that name.
    """
    images = _checked(images)
    height, width = images.shape[1:3]
    rows = jnp.asarray(resize_matrix(height, size, protocol), jnp.float32)
    columns = jnp.asarray(resize_matrix(width, size, protocol), jnp.float32)
    pixels = images.astype(jnp.float32)
    # Rows of pixels first, as in the originals. Faster products in bfloat16 or TF32 would be off by a grey level.
    pixels = jnp.einsum("nhwc,xw->nhxc", pixels, columns, precision=jax.lax.Precision.HIGHEST)
    pixels = jnp.einsum("nhxc,yh->nyxc", pixels, rows, precision=jax.lax.Precision.HIGHEST)
    normalized = names.lookup(PROTOCOLS, protocol, "resize protocol").normalize(pixels)
    return jnp.repeat(normalized, 3, axis=-1) if normalized.shape[-1] == 1 else normalized


def resize_matrix(length: int, size: int, protocol: ResizeProtocol) -> np.ndarray:
    """Returns the weights by which a line of ``length`` pixels becomes one of ``size`` pixels.

    With s = length / size, pixel i of the result is taken

    - ``tf1``: at i s, bilinearly between the centres of two pixels. The centre of pixel i lies at (i + 1/2) s - 1/2, so
      a picture that is enlarged is also shifted to the upper left, by up to half a pixel of the original;
    - ``pytorch``: at its centre, bilinearly, also when shrinking, where some pixels are then never looked at;
    - ``clean``: at its centre, by a cubic (Keys 1981, a = -1/2) over four pixels, when shrinking over 4 s of them, so
      that all count; as Pillow does.

    Beyond the border, the bilinear ones repeat the outermost pixel, the cubic leaves out what is not there.

    Returns:
        float64 [size, length]; each row sums to 1.

    Raises:
        UserError: no protocol has that name.
    """
    return names.lookup(PROTOCOLS, protocol, "resize protocol").matrix(length, size)


def _corner_matrix(length: int, size: int) -> np.ndarray:
    """Returns bilinear weights at i s."""
    return _bilinear_matrix((np.arange(size) * _scale(length, size)).astype(np.float32), length)


def _centre_matrix(length: int, size: int) -> np.ndarray:
    """Returns bilinear weights at the centres of the result's pixels."""
    positions = np.maximum((np.arange(size) + 0.5) * _scale(length, size) - 0.5, 0)
    return _bilinear_matrix(positions.astype(np.float32), length)


def _scale(length: int, size: int) -> float:
    """Returns s; the originals have it and positions in float32, which far from the start is not negligible."""
    return float(np.float32(length / size))


def _bilinear_matrix(positions: np.ndarray, length: int) -> np.ndarray:
    """Returns weights of the pixels below and above each position, those of pixels being 0 ... length - 1."""
    below = np.minimum(np.floor(positions).astype(int), length - 1)
    above = np.minimum(below + 1, length - 1)
    fraction = (positions - below).astype(np.float64)
    i = np.arange(len(positions))
    weights = np.zeros((len(positions), length))
    weights[i, below] += 1 - fraction
    weights[i, above] += fraction
    return weights


def _cubic_matrix(length: int, size: int) -> np.ndarray:
    """Returns Pillow's weights: the cubic kernel at the distance of each pixel, stretched when shrinking; sum 1."""
    scale = length / size
    stretch = max(scale, 1.0)
    centres = (np.arange(size)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centres) / stretch
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


# --- Pillow's 8-bit pictures --------------------------------------------------------------------

# Of a weight's fraction in Pillow.
_FRACTION_BITS = 22


def resize_as_pillow(images: jax.typing.ArrayLike, size: int) -> jax.Array:
    """Resizes 8-bit images to the bit as Pillow does (``BICUBIC``); may be part of a compiled function.

    Rows of pixels are resized first, and rounded to 8 bits, then columns. Pillow computes with whole numbers, weights
    being multiples of 2^-22, and so does this: float32 would round to another grey level here and there. (From version
    13 on, Pillow takes columns first in pictures whose height shrinks much more than their width; figures that are
    published were made by earlier ones, and square pictures are the same.)

    Args:
        images: uint8 [n, h, w, 1 or 3]; grey becomes three equal channels. Pictures that are not square become so.
        size: side of the result in pixels.

    Returns:
        float32 [n, size, size, 3], whole numbers 0 ... 255.

    Raises:
        ValueError: images are not uint8, have another number of dimensions or channels.
    """
    pixels = _checked(images)
    height, width = pixels.shape[1:3]
    pixels = _mixed("nhwc,xw->nhxc", pixels, width, size)
    pixels = _mixed("nhxc,yh->nyxc", pixels, height, size).astype(jnp.float32)
    return jnp.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def _mixed(axes: str, pixels: jax.Array, length: int, size: int) -> jax.Array:
    """Resizes one axis of 8-bit pixels, which stay so: int32 in 0 ... 255."""
    if length == size:
        return pixels.astype(jnp.int32)
    # Rounded half away from zero, as in C.
    weights = _cubic_matrix(length, size) * 2**_FRACTION_BITS
    whole = jnp.asarray(np.trunc(weights + np.copysign(0.5, weights)), jnp.int32)
    sums = jnp.einsum(axes, pixels.astype(jnp.int32), whole)
    return jnp.clip((sums + 2 ** (_FRACTION_BITS - 1)) >> _FRACTION_BITS, 0, 255)


def _checked(images: jax.typing.ArrayLike) -> jax.Array:
    images = jnp.asarray(images)
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be uint8 [n, h, w, 1 or 3], got {images.dtype} {images.shape}")
    return images


# --- Inception's protocols ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Resizing:
    """A way to make images as large as the network expects.

    Attributes:
        matrix: ``matrix(length, size)``, see :func:`resize_matrix`.
        normalize: from pixels in [0, 255] to what the network gets.
    """

    matrix: Callable[[int, int], np.ndarray]
    normalize: Callable[[jax.Array], jax.Array]


PROTOCOLS: dict[str, Resizing] = {
    "tf1": Resizing(_corner_matrix, lambda pixels: (pixels - 128) / 128),
    "pytorch": Resizing(_centre_matrix, lambda pixels: 2 * pixels / 255 - 1),
    # Cubic weights can be negative, and overshoot at edges.
    "clean": Resizing(_cubic_matrix, lambda pixels: (jnp.clip(pixels, 0, 255) - 128) / 128),
}
