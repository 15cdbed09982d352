"""Mean and standard deviation of the pixels of a data set, by which they can be normalised.

Ho et al. (2020) scale pixels to [-1, 1] whatever the data. The alternative is to give the data
mean 0 and variance 1 in each channel, so that the noise, whose variance is 1 too, drowns it at the
level where the schedule says so. Keras' DDIM example does this with its ``Normalization`` layer,
whose ``adapt`` measures the same numbers as :func:`pixel_statistics`.
"""

import math

import numpy as np

from ddim_jax import writers
from ddim_jax.config import DataConfig
from ddim_jax.data.reading import Chunk, cut_into_chunks, map_chunks, read_example, report_left_out
from ddim_jax.data.sources import Source
from ddim_jax.errors import UserError

# Images that a thread sums at a time.
_CHUNK = 256


def pixel_statistics(
    source: Source, config: DataConfig, progress: bool = True
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measures mean and standard deviation of each channel, over all pixels of all prepared images.

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

    def sums(chunk: Chunk) -> np.ndarray:
        total, squares = np.zeros((2, config.channels), np.int64)
        for _, example in chunk:
            values = example.image.reshape(-1, config.channels)
            total += values.sum(0, dtype=np.int64)
            squares += np.square(values, dtype=np.uint16).sum(0, dtype=np.int64)
        return np.stack([total, squares])

    bar = writers.progress(num, f"measuring {source.name}", " images", show=progress)
    parts, errors = map_chunks(
        sums, cut_into_chunks(num, _CHUNK), lambda row: read_example(source, row, config), config, bar
    )
    if errors:
        report_left_out(len(errors), num, errors[min(errors)])
    total, squares = np.sum(parts, axis=0).tolist()
    height, width, _ = config.image_shape
    count = (num - len(errors)) * height * width
    # Python's integers do not overflow: count^2 times the variance is exact, for a set of any size.
    deviations = [math.sqrt(count * s2 - s1**2) for s1, s2 in zip(total, squares, strict=True)]
    if not all(deviations):
        raise UserError(
            f"channel {deviations.index(0)} of {source.name} is the same in all pixels, so its standard deviation is "
            "0; set data.mean and data.std"
        )
    return (
        tuple(s1 / (255 * count) for s1 in total),
        tuple(deviation / (255 * count) for deviation in deviations),
    )
