"""Mean and standard deviation of the pixels of a data set, by which they can be normalised.

Ho et al. (2020) scale pixels to [-1, 1] whatever the data. The alternative is to give the data
mean 0 and variance 1 in each channel, so that the noise, whose variance is 1 too, drowns it at the
level where the schedule says so. Keras' DDIM example does this with its ``Normalization`` layer,
whose ``adapt`` measures the same numbers as :func:`pixel_statistics`.
"""

import logging
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ddim_jax import writers
from ddim_jax.config import DataConfig
from ddim_jax.data.batches import read_example
from ddim_jax.data.sources import Source
from ddim_jax.data.transforms import ImageError
from ddim_jax.errors import UserError

_log = logging.getLogger(__name__)

# Images that a thread sums at a time.
_CHUNK = 256


def pixel_statistics(
    source: Source, config: DataConfig, progress: bool = True
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, over all pixels of all prepared images.

    Pixels count as values in [0, 1]. The variance is that of the population, as in Keras: the
    mean square deviation, without Bessel's correction. Sums are taken over integers, exactly, so
    neither the order of the images nor the number of threads shows in the result.

    Args:
        source: the images; they are read once.
        config: preparation, ``threads`` and ``on_error``. Images that are left out of training
            are left out here.
        progress: show a progress bar.

    Returns:
        (mean, standard deviation), each of ``data.channels`` values.

    Raises:
        ImageError: an image cannot be used (under skip: none of them can).
        UserError: a channel is the same everywhere, so that it cannot be scaled to variance 1.
    """
    num = len(source)

    def sums(rows: range) -> tuple[np.ndarray, np.ndarray, dict[int, ImageError]]:
        total, squares = np.zeros((2, config.channels), np.int64)
        errors: dict[int, ImageError] = {}
        for row in rows:
            try:
                values = read_example(source, row, config).image.reshape(-1, config.channels)
            except ImageError as error:
                if config.on_error == "fail":
                    raise
                errors[row] = error
                continue
            total += values.sum(0, dtype=np.int64)
            squares += np.square(values, dtype=np.uint16).sum(0, dtype=np.int64)
        return total, squares, errors

    total, squares = np.zeros((2, config.channels), np.int64)
    errors: dict[int, ImageError] = {}
    chunks = [range(start, min(start + _CHUNK, num)) for start in range(0, num, _CHUNK)]
    bar = writers.progress(num, f"measuring {source.name}", " images", show=progress)
    with bar, ThreadPoolExecutor(config.threads) as pool:
        for rows, part in zip(chunks, pool.map(sums, chunks), strict=True):
            total += part[0]
            squares += part[1]
            errors |= part[2]
            bar.update(len(rows))
    if errors:
        first = errors[min(errors)]
        if len(errors) == num:
            raise ImageError(f"none of {num} images can be used; the first: {first}")
        _log.warning("left out %d of %d images; the first: %s", len(errors), num, first)
    count = (num - len(errors)) * config.image_size**2
    # Python's integers do not overflow: count^2 times the variance is exact, for a set of any size.
    deviations = [math.sqrt(count * s2 - s1**2) for s1, s2 in zip(total.tolist(), squares.tolist(), strict=True)]
    if not all(deviations):
        raise UserError(
            f"channel {deviations.index(0)} of {source.name} is the same in all pixels, so its standard deviation is "
            "0; set data.mean and data.std"
        )
    return (
        tuple(s1 / (255 * count) for s1 in total.tolist()),
        tuple(deviation / (255 * count) for deviation in deviations),
    )
