import math

import numpy as np
import pytest

from ddim_jax.metrics import psnr, ssim


def pair(shape, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    truth = rng.random(shape)
    return np.clip(truth + noise * rng.normal(size=shape), 0, 1), truth


def slow_ssim(image, truth, data_range):
    """The formula of the paper, place by place and with deviations from the local mean."""
    height, width, channels = image.shape
    sides = [min(11, side if side % 2 else side - 1) for side in (height, width)]
    weights = np.array(
        [
            [math.exp(-((i - sides[0] // 2) ** 2 + (j - sides[1] // 2) ** 2) / (2 * 1.5**2)) for j in range(sides[1])]
            for i in range(sides[0])
        ]
    )
    weights /= weights.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = []
    for channel in range(channels):
        for i in range(height - sides[0] + 1):
            for j in range(width - sides[1] + 1):
                x, y = (a[i : i + sides[0], j : j + sides[1], channel].astype(float) for a in (image, truth))
                mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
                variance_x, variance_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
                covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
                found.append(
                    (2 * mean_x * mean_y + c1)
                    * (2 * covariance + c2)
                    / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
                )
    return np.mean(found)


@pytest.mark.parametrize("shape", [(11, 11, 1), (16, 13, 3), (8, 8, 1), (9, 20, 2), (1, 12, 1), (2, 2, 1)])
def test_ssim_is_that_of_the_formula(shape):
    images, truth = pair((2, *shape))
    expected = [slow_ssim(x, y, 1.0) for x, y in zip(images, truth, strict=True)]
    assert ssim(images, truth, data_range=1.0) == pytest.approx(expected, rel=1e-9)
    assert ssim(255 * images, 255 * truth, data_range=255) == pytest.approx(expected, rel=1e-9)


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    images, truth = pair((3, 24, 17, 3))
    for x, y, found in zip(images, truth, ssim(images, truth, data_range=1.0), strict=True):
        expected = metrics.structural_similarity(
            y, x, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert found == pytest.approx(expected, rel=1e-9)


def test_psnr_is_that_of_the_formula():
    images, truth = pair((3, 5, 6, 2))
    expected = [20 * math.log10(1 / math.sqrt(((x - y) ** 2).mean())) for x, y in zip(images, truth, strict=True)]
    assert psnr(images, truth, data_range=1.0) == pytest.approx(expected, rel=1e-12)


def test_bytes_do_not_wrap_around():
    images, truth = (np.full((1, 8, 8, 1), value, np.uint8) for value in (0, 255))
    assert psnr(images, truth, data_range=255).tolist() == [0.0]
    assert ssim(images, truth, data_range=255) == pytest.approx([1e-4 / (1 + 1e-4)])


def test_an_image_that_is_its_truth():
    images, _ = pair((2, 12, 12, 1))
    assert psnr(images, images, data_range=1.0).tolist() == [math.inf, math.inf]
    assert ssim(images, images, data_range=1.0) == pytest.approx([1.0, 1.0], abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_an_image_does_not_depend_on_the_others(metric):
    images, truth = pair((5, 16, 16, 3))
    whole = metric(images, truth, data_range=1.0)
    assert [metric(images[i : i + 1], truth[i : i + 1], data_range=1.0)[0] for i in range(5)] == whole.tolist()


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_what_cannot_be_compared_is_refused(metric):
    images = np.zeros((2, 8, 8, 1))
    with pytest.raises(ValueError, match=r"must be \[n, h, w, c\] both"):
        metric(images, images[:1], data_range=1.0)
    with pytest.raises(ValueError, match="data_range=0 must be above 0"):
        metric(images, images, data_range=0)
