"""Mean and standard deviation of the pixels of a data set, by which they can be normalised.

Ho et al. (2020) scale pixels to [-1, 1] whatever the data. The alternative is to give the data
mean 0 and variance 1 in each channel, so that the noise, whose variance is 1 too, drowns it at the
level where the schedule says so. Keras' DDIM example does this with its ``Normalization`` layer,
whose ``adapt`` measures the same numbers as :func:`pixel_statistics`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ddim_jax import writers
from ddim_jax.config import DataConfig
from ddim_jax.data.reading import Chunk, cut_into_chunks, map_chunks, read_in_range, report_left_out
from ddim_jax.data.sources import Source
from ddim_jax.errors import UserError
from ddim_jax.pixels import whole_range

# Images that a thread sums at a time.
_CHUNK = 256

Result = TypeVar("Result")


def pixel_statistics(
    source: Source, config: DataConfig, progress: bool = True
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measures mean and standard deviation of each channel, over all pixels of all prepared images.

    Pixels count as values in [0, 1], which are those of ``data.range``. The variance is that of the population, as in
    Keras: the mean square deviation, without Bessel's correction. The number of threads does not show in the result.
    Nor does the order of images of integers, whose sums are exact; those of floats have 64 bits and a fixed order.

    Args:
        source: the images; they are read once.
        config: preparation, ``range``, ``threads`` and ``on_error``. Images that are left out of training are left out
            here.
        progress: show a progress bar.

    Returns:
        (mean, standard deviation), each of ``data.channels`` values.

    Raises:
        ImageError: an image cannot be used (under skip: none of them can).
        UserError: a channel is the same everywhere, so that it cannot be scaled to variance 1.
    """
    measure = _moments_of_floats if config.dtype == "float32" else _moments_of_integers
    count, totals, deviations = measure(source, config, progress)
    if not all(deviations):
        raise UserError(
            f"channel {deviations.index(0)} of {source.name} is the same in all pixels, so its standard deviation is "
            "0; set data.mean and data.std"
        )
    limits = config.range or whole_range(config.dtype) or ()
    # Quotients of Python's integers are rounded once, at the end.
    starts, ends = ([int(each) if each.is_integer() else each for each in limits[first::2]] for first in (0, 1))
    starts, ends = (list(each) * (config.channels // len(each)) for each in (starts, ends))
    units = [end - start for start, end in zip(starts, ends, strict=True)]
    return (
        tuple((s1 - start * count) / (unit * count) for s1, start, unit in zip(totals, starts, units, strict=True)),
        tuple(deviation / (unit * count) for deviation, unit in zip(deviations, units, strict=True)),
    )


# The number of pixels; by channel, the sum of their values; and the standard deviation of these times the number.
_Moments = tuple[int, list[Any], list[float]]


def _moments_of_integers(source: Source, config: DataConfig, progress: bool) -> _Moments:
    """Adds up values and squares, exactly."""
    # The square of the largest value has twice its bits.
    wide = np.uint16 if config.dtype == "uint8" else np.uint32

    def sums(chunk: Chunk) -> np.ndarray:
        total, squares = np.zeros((2, config.channels), np.int64)
        for _, example in chunk:
            values = example.image.reshape(-1, config.channels)
            total += values.sum(0, dtype=np.int64)
            squares += np.square(values, dtype=wide).sum(0, dtype=np.int64)
        return np.stack([total, squares])

    parts, count = _over_all(source, config, progress, sums)
    # Python's integers do not overflow: count^2 times the variance is exact, for a set of any size.
    totals, squares = np.sum([part.astype(object) for part in parts], axis=0).tolist()
    return count, totals, [math.sqrt(count * s2 - s1**2) for s1, s2 in zip(totals, squares, strict=True)]


def _moments_of_floats(source: Source, config: DataConfig, progress: bool) -> _Moments:
    """Merges mean and squared deviations: image by image, then chunk by chunk, whichever thread reads them.

    Sums of squares would lose to rounding what a channel far from 0 varies by, and make a constant one vary.
    """

    def moments(chunk: Chunk) -> _Part:
        found: _Part = 0, np.zeros(config.channels), np.zeros(config.channels)
        for _, example in chunk:
            values = example.image.reshape(-1, config.channels).astype(np.float64)
            mean = values.mean(0)
            found = _merged(found, (len(values), mean, np.square(values - mean).sum(0)))
        return found

    parts, count = _over_all(source, config, progress, moments)
    _, mean, squares = functools.reduce(_merged, parts)
    return count, (mean * count).tolist(), np.sqrt(squares * count).tolist()


# Of some pixels: their number; by channel, the mean, and the sum of squared deviations from it.
_Part = tuple[int, np.ndarray, np.ndarray]


def _merged(one: _Part, other: _Part) -> _Part:
    """The two together, after Chan, Golub and LeVeque (1983)."""
    count = one[0] + other[0]
    if not count:
        return one
    shift = other[1] - one[1]
    mean = one[1] + shift * (other[0] / count)
    return count, mean, one[2] + other[2] + np.square(shift) * (one[0] * other[0] / count)


def value_range(source: Source, config: DataConfig, progress: bool = True) -> tuple[float, ...]:
    """Measures the lowest and the highest value of each channel, over all prepared images.

    Pictures that are paired with the images, which are scaled as these are, count too. Pictures of other channels than
    the images' have no channel's range of their own: then there is one for all.

    Args:
        source: the images; they are read once.
        config: preparation, ``threads`` and ``on_error``.
        progress: show a progress bar.

    Returns:
        What ``data.range`` is to be: the lowest and the highest value of the first channel, then of the next; or of
        all.

    Raises:
        ImageError: an image cannot be used (under skip: none of them can).
        UserError: a channel is the same everywhere.
    """

    def extremes(chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        """Of images and of pictures, the lowest and the highest value of each channel: [2, c]."""
        of_images, of_pictures = (
            np.array([np.full(channels, np.inf), np.full(channels, -np.inf)])
            for channels in (config.channels, config.paired_shape[2])
        )
        for _, example in chunk:
            for found, values in ((of_images, example.image), (of_pictures, example.paired)):
                if values is not None:
                    np.minimum(found[0], values.min((0, 1)), out=found[0])
                    np.maximum(found[1], values.max((0, 1)), out=found[1])
        return of_images, of_pictures

    parts, _ = _over_all(source, config, progress, extremes)
    low, high = _widest([images for images, _ in parts])
    if (low == high).any():
        channel = int(np.argmax(low == high))
        raise UserError(
            f"channel {channel} of {source.name} is {low[channel]:g} in all pixels, so there is nothing to learn of "
            "it; leave it out of the data, or state data.range"
        )
    pictures = _widest([pictures for _, pictures in parts])
    if config.condition in ("grey", "paired") and config.picture_channels != config.channels:
        return float(min(low.min(), pictures[0].min())), float(max(high.max(), pictures[1].max()))
    if config.condition == "paired":
        low, high = _widest([np.stack([low, high]), pictures])
    return tuple(np.stack([low, high], axis=1).reshape(-1).tolist())


def _widest(extremes: list[np.ndarray]) -> np.ndarray:
    """The lowest of the lowest and the highest of the highest values [2, c]."""
    return np.stack([np.min([low for low, _ in extremes], axis=0), np.max([high for _, high in extremes], axis=0)])


def _over_all(
    source: Source, config: DataConfig, progress: bool, work: Callable[[Chunk], Result]
) -> tuple[list[Result], int]:
    """What some work on chunks of all images returns, in their order; and how many pixels images have that are used."""
    num = len(source)
    bar = writers.progress(num, f"measuring {source.name}", " images", show=progress)
    parts, errors = map_chunks(
        work, cut_into_chunks(num, _CHUNK), lambda row: read_in_range(source, row, config), config, bar
    )
    if errors:
        report_left_out(len(errors), num, errors[min(errors)])
    height, width, _ = config.image_shape
    return parts, (num - len(errors)) * height * width
