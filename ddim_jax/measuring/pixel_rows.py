"""Pixels as points, so that images can be compared without any network: of large images, those of small copies."""

import math

import numpy as np

from ddim_jax.pixels import Normalization, scaled

# Values of an image of 32x32 in colours: what is larger is averaged down to no more than that.
_MOST_VALUES = 3072


def pixel_width(shape: tuple[int, int, int]) -> int:
    """Returns how many numbers :func:`pixel_rows` makes of an image [h, w, c].

    >>> pixel_width((32, 32, 3)), pixel_width((64, 64, 3)), pixel_width((65, 64, 3))
    (3072, 3072, 2016)
    """
    factor = _factor(shape)
    return math.ceil(shape[0] / factor) * math.ceil(shape[1] / factor) * shape[2]


def pixel_rows(images: np.ndarray, normalization: Normalization) -> np.ndarray:
    """Returns pixels in [0, 1], where that makes more than 3,072 numbers the means of squares of them: float32 [n, p].

    Squares are as small as they may be; at the lower and right border they are cut off where they stick out.

    Args:
        images: [n, h, w, c] of the data's type.
        normalization: says which values are pixels 0 and 1.
    """
    pixels = scaled(np.asarray(images, np.float32), normalization)
    factor = _factor(images.shape[1:])
    if factor > 1:
        for axis in (1, 2):
            starts = np.arange(0, pixels.shape[axis], factor)
            lengths = np.diff(np.append(starts, pixels.shape[axis])).astype(np.float32)
            sums = np.add.reduceat(pixels, starts, axis=axis)
            pixels = sums / lengths.reshape([-1 if place == axis else 1 for place in range(4)])
    return pixels.reshape(len(images), -1)


def _factor(shape: tuple[int, ...]) -> int:
    height, width, channels = shape
    factor = 1
    while factor < max(height, width) and _values(height, width, channels, factor) > _MOST_VALUES:
        factor += 1
    return factor


def _values(height: int, width: int, channels: int, factor: int) -> int:
    return math.ceil(height / factor) * math.ceil(width / factor) * channels
