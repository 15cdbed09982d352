"""The kernel distance between two sets of features; of Inception features it is called KID (Bińkowski et al. 2018).

It is the squared maximum mean discrepancy with the kernel k(x, y) = (x·y / d + 1)³: how much more alike two images
of one set are, on average, than two of different sets,

    MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y),    x ≠ x', y ≠ y'.

Unlike FID its estimate has no bias, whatever the number of images, so it is the one to take when there are few. It may
come out below 0 when the sets are nearly alike: that is no mistake, since its expectation is 0 there.

CMMD (Jayasumana et al. 2024) is the same of CLIP's embeddings with a Gaussian kernel, see :func:`gaussian_distance`.
"""

from typing import NamedTuple

import numpy as np

from ddim_jax.metrics.features import check_pair

# CMMD's, for embeddings of length 1.
_DEVIATION = 10.0
_SCALE = 1000.0


class KernelDistance(NamedTuple):
    """The mean and deviation of the distance over random subsets.

    Attributes:
        mean: of the subsets' distances.
        std: their standard deviation, divided by their number (``ddof=0``), as torch-fidelity does. That of one
            subset's distance, and so not the error of the mean.
        subset_size: images in a subset, of each set.
    """

    mean: float
    std: float
    subset_size: int


def kernel_distance(
    generated: np.ndarray, real: np.ndarray, subsets: int = 100, max_subset_size: int = 1000, seed: int = 2020
) -> KernelDistance:
    """Computes KID: the mean of :func:`squared_mmd` over random subsets, which are the ones that torch-fidelity draws.

    A set smaller than ``max_subset_size`` sets the size of all subsets. (torch-fidelity refuses that.) The mean
    stays comparable, having no bias; the deviation does not, and is small once subsets are nearly all of a set.

    >>> kernel_distance(np.array([[0.0], [0.0]]), np.array([[1.0], [1.0]]))
    KernelDistance(mean=7.0, std=0.0, subset_size=2)

    Args:
        generated: [n, d] of any dtype; computed in float64.
        real: [m, d].
        subsets: number of subsets, 1 or more.
        max_subset_size: images in each of them, 2 or more, none of them twice.
        seed: of ``numpy.random.RandomState``.

    Raises:
        ValueError: not two axes, no subsets, or subsets of fewer than 2.
        UserError: different d, NaN or infinity, or fewer than 2 images.
    """
    generated, real = np.asarray(generated), np.asarray(real)
    check_pair(generated, real, at_least=2)
    if subsets < 1 or max_subset_size < 2:
        raise ValueError(f"{subsets} subsets of {max_subset_size}: at least 1 subset of 2 images is needed")
    size = min(max_subset_size, len(generated), len(real))
    rng = np.random.RandomState(seed)
    distances = []
    for _ in range(subsets):
        subset = generated[rng.choice(len(generated), size, replace=False)]
        distances.append(squared_mmd(subset, real[rng.choice(len(real), size, replace=False)]))
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)), size)


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Computes the unbiased estimate of MMD² with k(x, y) = (x·y / d + 1)³ (Gretton et al. 2012, eq. 3).

    Here k is 1 between images of the first set and between the two sets, and (1 + 1)³ = 8 within the second:

    >>> squared_mmd(np.array([[0.0], [0.0]]), np.array([[1.0], [1.0]]))
    7.0

    Args:
        x: [n, d], n >= 2.
        y: [m, d], m >= 2.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return _mean_between_different(x) + _mean_between_different(y) - 2 * float(np.mean(_kernel(x, y)))


def _mean_between_different(x: np.ndarray) -> float:
    kernel = _kernel(x, x)
    return float((kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1)))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    # Powers of arrays go through pow, several times slower than two products.
    return base * base * base


def gaussian_distance(generated: np.ndarray, real: np.ndarray, block: int = 2048) -> float:
    """Computes CMMD: 1000 MMD² with k(x, y) = exp(-|x - y|² / (2 · 10²)), of all images.

    It is the form with the least variance, as in the paper's code: each image counts beside itself, too. So it is never
    below 0, and larger than the unbiased one by what two of its means have for x = x'; of 10,000 images each, whose
    embeddings have length 1, by 0.004 at most.

    >>> round(gaussian_distance(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])), 3)
    19.9

    Args:
        generated: [n, d] of any dtype; computed in float64.
        real: [m, d].
        block: distances are computed for this many features of both sides at a time.

    Raises:
        ValueError: not two axes, or block below 1.
        UserError: different d, NaN or infinity, or no images.
    """
    generated, real = np.asarray(generated), np.asarray(real)
    if block < 1:
        raise ValueError(f"block={block}: must be at least 1")
    check_pair(generated, real, at_least=1)
    alike = _mean_likeness(generated, generated, block) + _mean_likeness(real, real, block)
    return _SCALE * (alike - 2 * _mean_likeness(generated, real, block))


def _mean_likeness(x: np.ndarray, y: np.ndarray, block: int) -> float:
    """The mean of k - 1 over all pairs; ones cancel in the distance, and most kernels are near 1."""
    total = 0.0
    for i in range(0, len(x), block):
        rows = x[i : i + block].astype(np.float64)
        for j in range(0, len(y), block):
            columns = y[j : j + block].astype(np.float64)
            norms = np.sum(rows * rows, axis=1)[:, None] + np.sum(columns * columns, axis=1)
            distances = np.maximum(norms - 2 * (rows @ columns.T), 0)
            total += float(np.expm1(-distances / (2 * _DEVIATION**2)).sum())
    return total / (len(x) * len(y))
