"""Mean and standard deviation of the pixels of a data set, by which they can be normalised.

Ho et al. (2020) scale pixels to [-1, 1] whatever the data. The alternative is to give the data
mean 0 and variance 1 in each channel, so that the noise, whose variance is 1 too, drowns it at the
level where the schedule says so. Keras' DDIM example does this with its ``Normalization`` layer,
whose ``adapt`` measures the same numbers as :func:`pixel_statistics`.
"""

import math
from collections.abc import Callable

import numpy as np

from ddim_jax import writers
from ddim_jax.config import DataConfig
from ddim_jax.data.reading import Chunk, cut_into_chunks, map_chunks, read_example, report_left_out
from ddim_jax.data.sources import Source
from ddim_jax.errors import UserError
from ddim_jax.pixels import whole_range

# Images that a thread sums at a time.
_CHUNK = 256


def pixel_statistics(
    source: Source, config: DataConfig, progress: bool = True
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measures mean and standard deviation of each channel, over all pixels of all prepared images.

    Pixels count as values in [0, 1], which are those of ``data.range``. The variance is that of the population, as in
    Keras: the mean square deviation, without Bessel's correction. Sums are taken over integers, exactly, so neither the
    order of the images nor the number of threads shows in the result; those of floats have 64 bits and a fixed order.

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
    is_float = config.dtype == "float32"
    values_of = whole_range(config.dtype) if not config.range else None
    limits = np.array(config.range or values_of, np.float64).reshape(-1, 2)
    low, high = np.broadcast_to(limits[:, 0], config.channels), np.broadcast_to(limits[:, 1], config.channels)

    def sums(chunk: Chunk) -> np.ndarray:
        total, squares = np.zeros((2, config.channels), np.float64 if is_float else np.int64)
        for _, example in chunk:
            values = example.image.reshape(-1, config.channels)
            if is_float:
                # Near the middle of the range, squares lose no digits to a mean far from 0.
                values = (values - low) / (high - low)
                total += values.sum(0)
                squares += np.square(values).sum(0)
            else:
                total += values.sum(0, dtype=np.int64)
                # The square of the largest value has twice its bits.
                wide = np.uint16 if values.dtype == np.uint8 else np.uint32
                squares += np.square(values, dtype=wide).sum(0, dtype=np.int64)
        return np.stack([total, squares])

    parts, num = _over_all(source, config, progress, sums)
    height, width, _ = config.image_shape
    count = num * height * width
    # Python's integers do not overflow: count^2 times the variance is exact, for a set of any size.
    total, squares = ([sum(column) for column in zip(*rows, strict=True)] for rows in zip(*_lists(parts), strict=True))
    deviations = [math.sqrt(max(0, count * s2 - s1**2)) for s1, s2 in zip(total, squares, strict=True)]
    if not all(deviations):
        raise UserError(
            f"channel {deviations.index(0)} of {source.name} is the same in all pixels, so its standard deviation is "
            "0; set data.mean and data.std"
        )
    if is_float:
        return tuple(s1 / count for s1 in total), tuple(deviation / count for deviation in deviations)
    # Exact as long as the range is of whole numbers.
    starts, units = (
        [int(each) if each.is_integer() else each for each in array.tolist()] for array in (low, high - low)
    )
    return (
        tuple((s1 - start * count) / (unit * count) for s1, start, unit in zip(total, starts, units, strict=True)),
        tuple(deviation / (unit * count) for deviation, unit in zip(deviations, units, strict=True)),
    )


def value_range(source: Source, config: DataConfig, progress: bool = True) -> tuple[float, ...]:
    """Measures the lowest and the highest value of each channel, over all prepared images.

    Args:
        source: the images; they are read once.
        config: preparation, ``threads`` and ``on_error``.
        progress: show a progress bar.

    Returns:
        The lowest and the highest value of the first channel, then of the next: 2 ``data.channels`` values.

    Raises:
        ImageError: an image cannot be used (under skip: none of them can).
        UserError: a channel is the same everywhere.
    """

    def extremes(chunk: Chunk) -> np.ndarray:
        found = np.array([np.full(config.channels, np.inf), np.full(config.channels, -np.inf)])
        for _, example in chunk:
            values = example.image.reshape(-1, config.channels)
            found = np.stack([np.minimum(found[0], values.min(0)), np.maximum(found[1], values.max(0))])
        return found

    parts, _ = _over_all(source, config, progress, extremes)
    low, high = np.min([part[0] for part in parts], axis=0), np.max([part[1] for part in parts], axis=0)
    if (low == high).any():
        channel = int(np.argmax(low == high))
        raise UserError(
            f"channel {channel} of {source.name} is {low[channel]:g} in all pixels, so there is nothing to learn of "
            "it; leave it out of the data, or state data.range"
        )
    return tuple(np.stack([low, high], axis=1).reshape(-1).tolist())


def _over_all(
    source: Source, config: DataConfig, progress: bool, work: Callable[[Chunk], np.ndarray]
) -> tuple[list[np.ndarray], int]:
    """What some work on chunks of all images returns, in their order; and how many images could be used."""
    num = len(source)
    bar = writers.progress(num, f"measuring {source.name}", " images", show=progress)
    parts, errors = map_chunks(
        work, cut_into_chunks(num, _CHUNK), lambda row: read_example(source, row, config), config, bar
    )
    if errors:
        report_left_out(len(errors), num, errors[min(errors)])
    return parts, num - len(errors)


def _lists(parts: list[np.ndarray]) -> list[list[list[float]]]:
    return [part.tolist() for part in parts]
