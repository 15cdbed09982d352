"""How near images come to those that they should be: PSNR and SSIM, of each pair of images.

Unlike all that compares sets, these need the truth, as restored or enlarged pictures have it. Everything is computed in
float64 and of each pair alone, so that an image's value does not depend on which others are at hand.

SSIM is that of Wang et al. (2004): a Gaussian window of deviation 1.5 and side 11, at all places where it lies within
the image, K1 = 0.01, K2 = 0.03, covariances divided by n; each channel on its own, and the mean over places and
channels. That is scikit-image's ``structural_similarity(..., gaussian_weights=True, sigma=1.5,
use_sample_covariance=False)``. Along a side shorter than 11, which scikit-image refuses, the window is the same
Gaussian cut off at the largest odd side that fits: 7 for images of 8x8. Such values compare with others of the same
size alone.
"""

import numpy as np

_SIGMA = 1.5
_WINDOW = 11
_K1, _K2 = 0.01, 0.03


def psnr(images: np.ndarray, truth: np.ndarray, data_range: float) -> np.ndarray:
    """Computes the peak signal-to-noise ratio of each image, 10 log10(range² / mean squared error), in dB.

    >>> psnr(np.full((1, 8, 8, 1), 25.5), np.zeros((1, 8, 8, 1)), data_range=255).round(6).tolist()
    [20.0]

    Args:
        images: [n, h, w, c] of any dtype.
        truth: [n, h, w, c], what they should be.
        data_range: difference of the largest and smallest value that an image may have, 255 for 8 bits.

    Returns:
        float64 [n]; infinity where an image is its truth.

    Raises:
        ValueError: different shapes, or no positive range.
    """
    _check(images, truth, data_range)
    errors = np.array([np.mean((_float(image) - _float(true)) ** 2) for image, true in zip(images, truth, strict=True)])
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / errors)


def ssim(images: np.ndarray, truth: np.ndarray, data_range: float) -> np.ndarray:
    """Computes the structural similarity of each image, at most 1, see the module's text.

    >>> ramp = np.arange(64.0).reshape(1, 8, 8, 1)
    >>> ssim(ramp, ramp, data_range=63).tolist(), ssim(ramp, 63 - ramp, data_range=63).round(2).tolist()
    ([1.0], [-0.94])

    Args:
        images: [n, h, w, c] of any dtype.
        truth: [n, h, w, c], what they should be.
        data_range: difference of the largest and smallest value that an image may have; values count from 0.

    Returns:
        float64 [n].

    Raises:
        ValueError: different shapes, or no positive range.
    """
    _check(images, truth, data_range)
    rows, columns = (_window_matrix(side) for side in images.shape[1:3])
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2

    def local_mean(planes: np.ndarray) -> np.ndarray:
        return rows @ planes @ columns.T

    found = np.empty(len(images))
    for place, (image, true) in enumerate(zip(images, truth, strict=True)):
        x, y = (np.moveaxis(_float(planes), -1, 0) for planes in (image, true))
        mean_x, mean_y = local_mean(x), local_mean(y)
        variance_x, variance_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
        covariance = local_mean(x * y) - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
        found[place] = np.mean(luminance * structure)
    return found


def _window_matrix(side: int) -> np.ndarray:
    """Means under the window along one side, at the places where it fits, as a matrix [side - window + 1, side]."""
    window = min(_WINDOW, side - 1 + side % 2)
    offsets = np.arange(window) - window // 2
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((side - window + 1, side))
    for place, row in enumerate(matrix):
        row[place : place + window] = weights
    return matrix


def _float(image: np.ndarray) -> np.ndarray:
    return np.asarray(image, np.float64)


def _check(images: np.ndarray, truth: np.ndarray, data_range: float) -> None:
    if images.ndim != 4 or images.shape != truth.shape:
        raise ValueError(f"images {images.shape} and their truth {truth.shape} must be [n, h, w, c] both")
    if not data_range > 0:
        raise ValueError(f"data_range={data_range} must be above 0")
