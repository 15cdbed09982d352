"""What the Fréchet distance would be of infinitely many images (Chong and Forsyth 2020, "Effectively unbiased FID").

The distance of n images is too large, by an amount that depends on the model and falls as 1 / n. So it is computed of
several numbers of them, and the straight line through these over 1 / n is read at 0:

    FID(n) ≈ FID∞ + b / n

The figure still depends on the reference: of real images there are only as many as there are.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ddim_jax.metrics.frechet import frechet_distance
from ddim_jax.metrics.moments import Gaussian, Moments

# As published: 15 numbers of images, at equal distances, from a tenth of all to all.
POINTS = 15
SMALLEST_SHARE = 10

# Of the random subsets.
_SEED = 2020

# Rows are read so many at a time.
_BLOCK = 2048


def extrapolated(counts: Sequence[int], figures: Sequence[float]) -> float:
    """Fits figures of n images by a straight line over 1 / n, by least squares, and returns its value at 1 / n = 0.

    >>> round(extrapolated([10, 20, 50], [3 + 40 / 10, 3 + 40 / 20, 3 + 40 / 50]), 9)
    3.0

    Args:
        counts: numbers n of images, at least two different ones.
        figures: one for each.
    """
    inverse = 1 / np.asarray(counts, np.float64)
    values = np.asarray(figures, np.float64)
    offset = inverse - inverse.mean()
    slope = offset @ (values - values.mean()) / (offset @ offset)
    return float(values.mean() - slope * inverse.mean())


def subset_sizes(num: int) -> np.ndarray:
    """Returns the numbers of images that :func:`frechet_at_infinity` compares, the last of which is all: int64 [k].

    >>> subset_sizes(50_000)[[0, 1, -1]].tolist()
    [5000, 8214, 50000]
    """
    return np.unique(np.linspace(max(2, num // SMALLEST_SHARE), num, POINTS).astype(np.int64))


def frechet_at_infinity(features: np.ndarray, reference: Gaussian) -> float:
    """Computes the Fréchet distance to the reference, extrapolated to infinitely many images.

    Each number of images has a random subset of its own. It may come out below 0, where the line's error is larger than
    the distance.

    Args:
        features: [n, d] of any dtype, n > 2; may be a memory map, of which a few thousand rows are read at a time.
        reference: mean and covariance of the real images.

    Raises:
        UserError: NaN or infinity, or another d than the reference's.
    """
    generator = np.random.Generator(np.random.Philox(_SEED))
    sizes = subset_sizes(len(features))
    distances = []
    for size in sizes:
        rows = np.sort(generator.permutation(len(features))[:size])
        distances.append(frechet_distance(gaussian_of_rows(features, rows), reference))
    return extrapolated(sizes.tolist(), distances)


def gaussian_of_rows(features: np.ndarray, rows: np.ndarray) -> Gaussian:
    """Returns mean and covariance of some rows, of each as often as it is named, with a few of them in memory.

    The number of rows is left open in the result: that subsets are small is meant.

    Args:
        features: [n, d].
        rows: int [m], ascending, so that a memory map is read in one direction.
    """
    moments = Moments.empty(features.shape[1])
    for start in range(0, len(rows), _BLOCK):
        moments = moments.update(features[rows[start : start + _BLOCK]])
    return dataclasses.replace(moments.gaussian(), count=None)
