"""The Fréchet distance between two normal distributions; of Inception features it is called FID (Heusel et al. 2017).

    FID = |mean_1 - mean_2|² + tr(S_1 + S_2 - 2 (S_1 S_2)^½)

which is the squared Wasserstein-2 distance between N(mean_1, S_1) and N(mean_2, S_2) (Dowson and Landau 1982). S_1 S_2
is not symmetric, so most codes call a general matrix square root for it, which is slow, and gives complex numbers to be
thrown away when a covariance is singular. Only the trace is wanted, and that needs no square root: see
:func:`trace_sqrt_product`.
"""

import functools
import logging

import numpy as np
import scipy.linalg

from ddim_jax.errors import UserError
from ddim_jax.metrics.moments import Gaussian, Moments

_log = logging.getLogger(__name__)

# Of a matrix's trace: more than float32 statistics lose by rounding, less than any other mistake.
_NOT_COVARIANCE = 1e-3


def frechet_distance(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """Computes the (squared) Fréchet distance between the normal distributions fitted to two sets; 0 or more.

    It is an estimate with a bias that falls as 1 / n, so it only compares between equal numbers of images. If one of
    these is not above d, covariances are singular and the bias is large: that is logged, once for each such case.

    Between N(0, 1) and N(3, 2²) it is 3² + (2 - 1)²:

    >>> frechet_distance(Gaussian(np.zeros(1), np.eye(1)), Gaussian(np.array([3.0]), 4 * np.eye(1)))
    10.0

    Args:
        a: one set's moments, or mean and covariance read from a file.
        b: the other's.

    Raises:
        UserError: different d, NaN or infinity, fewer than 2 features, or a matrix that is no covariance.
    """
    covariance_a, covariance_b = _checked_covariance(a), _checked_covariance(b)
    if len(a.mean) != len(b.mean):
        raise UserError(
            f"Fréchet distance between features of dimensions {len(a.mean)} and {len(b.mean)}:"
            " use one feature network for both"
        )
    for statistics in (a, b):
        if statistics.count is not None and statistics.count <= len(statistics.mean):
            _warn_of_few(statistics.count, len(statistics.mean))

    difference = np.asarray(a.mean, np.float64) - np.asarray(b.mean, np.float64)
    traces = np.trace(covariance_a) + np.trace(covariance_b)
    distance = difference @ difference + traces - 2 * trace_sqrt_product(covariance_a, covariance_b)
    # Between equal sets the three terms cancel up to rounding.
    return max(float(distance), 0.0)


def trace_sqrt_product(a: np.ndarray, b: np.ndarray) -> float:
    """Computes tr((A B)^½) of two covariances, which may be singular.

    With A = F F' and B = G G', and M = F' G, the matrices A B and M M' have the same eigenvalues except zeros. M M' is
    symmetric, so its eigenvalues are real, and not negative but for rounding:

        tr((A B)^½) = sum of the square roots of the eigenvalues of M M'

    F and G are pivoted Cholesky factors. Their columns stop where only rounding is left, so that of n <= d images there
    are n - 1, and zero eigenvalues are left out instead of becoming the square root of a rounding error. And they come
    in falling order, which lets the solver find small eigenvalues nearly to their own precision: condition numbers of
    1e12 still leave 10 digits.

    >>> trace_sqrt_product(np.diag([4.0, 0.0]), np.diag([9.0, 1.0]))
    6.0

    Args:
        a: float64 [d, d], symmetric and positive semi-definite.
        b: the same.

    Raises:
        UserError: a matrix has a negative eigenvalue, far beyond rounding.
    """
    product = _factor(a).T @ _factor(b)
    # M' M has them too. Either may be the smaller one.
    gram = product @ product.T if product.shape[0] <= product.shape[1] else product.T @ product
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0)).sum())


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Returns F [d, rank] with covariance = F F'."""
    (pivoted_cholesky,) = scipy.linalg.get_lapack_funcs(("pstrf",), (covariance,))
    factor, order, rank, _ = pivoted_cholesky(covariance, lower=1)
    rows = np.empty((len(covariance), rank))
    # LAPACK counts rows from 1, and leaves the other triangle as it was.
    rows[order - 1] = np.tril(factor)[:, :rank]
    trace = np.trace(covariance)
    if not abs(np.sum(rows**2) - trace) <= _NOT_COVARIANCE * trace:
        raise UserError("a covariance has negative eigenvalues: the statistics are broken, make them anew")
    return rows


def _checked_covariance(statistics: Moments | Gaussian) -> np.ndarray:
    if statistics.count is not None and statistics.count < 2:
        raise UserError(f"a Fréchet distance needs the features of 2 or more images, got {statistics.count}")
    covariance = np.asarray(statistics.covariance, np.float64)
    dimension = len(statistics.mean)
    if statistics.mean.shape != (dimension,) or covariance.shape != (dimension, dimension):
        raise UserError(
            f"a mean of shape {statistics.mean.shape} with a covariance of shape {covariance.shape}:"
            " the statistics are broken, make them anew"
        )
    if not (np.isfinite(statistics.mean).all() and np.isfinite(covariance).all()):
        raise UserError("the statistics of features hold NaN or infinity: check the images and the weights")
    if not np.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6 * np.abs(covariance).max()):
        raise UserError("a covariance is not symmetric: the statistics are broken, make them anew")
    return covariance


@functools.cache
def _warn_of_few(count: int, dimension: int) -> None:
    _log.warning(
        "Fréchet distance from %d images, no more than the %d features: it is far too large, do not report it",
        count,
        dimension,
    )
