"""Exactly N images: measured once each, whatever the batches and the devices, padding never among them."""

import functools

import jax
import numpy as np
import pytest
import scipy.linalg

from ddim_jax import parallel
from ddim_jax.config import EvalConfig
from ddim_jax.errors import UserError
from ddim_jax.measuring.extractors import pixels_extractor
from ddim_jax.measuring.measurement import Measurement
from ddim_jax.measuring.reference_file import Reference
from ddim_jax.metrics.moments import Moments

SHAPE, DIMENSION = (8, 8, 1), 64
SETTINGS = EvalConfig(metrics=("fid", "kid", "precision_recall"), kid_subsets=5, kid_subset_size=100, features_kept=500)
# Devices, images of each at a time, and images that come at a time; no number that is measured can be divided by these.
LAYOUTS = {
    "64 over 8 devices": (8, 8, 64),
    "64 over 8 devices, 50 at a time": (8, 8, 50),
    "5 on 1 device": (1, 5, 5),
    "13 on 1 device, all at once": (1, 13, None),
}


@functools.cache
def pictures(num):
    """Images that differ from one another in their brightness too; the last stands out, since it is what pads."""
    rng = np.random.default_rng(num)
    images = rng.integers(0, 256, (num, *SHAPE)) * rng.uniform(0.2, 1, (num, 1, 1, 1))
    images[-1] = 255
    return images.astype(np.uint8)


@functools.cache
def reference():
    features = (np.random.default_rng(0).integers(0, 256, (700, DIMENSION)) / 255).astype(np.float32)
    moments = Moments.empty(DIMENSION).update(features)
    return Reference(moments.mean, moments.covariance, len(features), features, {})


def measured(num, layout, monkeypatch, settings=SETTINGS):
    devices, batch_size, at_a_time = LAYOUTS[layout]
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "local_devices", lambda: jax.local_devices()[:devices])
        extractor = pixels_extractor(SHAPE, batch_size)
        assert extractor.images_per_call == devices * batch_size
        measurement = Measurement(extractor, settings, num)
        for start in range(0, num, at_a_time or num):
            rows = np.arange(start, min(start + (at_a_time or num), num))
            measurement.update(rows, pictures(num)[rows])
    return measurement


def distance(images):
    """The Fréchet distance to the reference by its formula, with the square roots of eigenvalues."""
    features = images.reshape(len(images), -1) / 255
    ours, theirs = np.cov(features, rowvar=False), reference().covariance
    values, vectors = scipy.linalg.eigh(theirs)
    root = vectors * np.sqrt(values) @ vectors.T
    between = np.sqrt(np.maximum(scipy.linalg.eigvalsh(root @ ours @ root), 0)).sum()
    return np.sum((features.mean(0) - reference().mean) ** 2) + np.trace(ours) + np.trace(theirs) - 2 * between


def check(num, layout, monkeypatch):
    """Counts, moments and figures of ``num`` images."""
    measurement = measured(num, layout, monkeypatch)
    assert len(measurement.missing) == 0
    moments = measurement._sums.finish().sums["moments"]
    assert moments.count == num == measurement._sums.seen.sum()
    features = pictures(num).reshape(num, -1) / 255
    np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-6)
    if num == 1:
        return
    np.testing.assert_allclose(moments.covariance, np.cov(features, rowvar=False), rtol=1e-6, atol=1e-8)
    found = measurement.figures(reference())
    assert found["pixels_frechet"] == pytest.approx(distance(pictures(num)), rel=1e-6)
    # One image too many would show in the sixth digit.
    padded = np.concatenate([pictures(num), pictures(num)[-1:]])
    assert distance(padded) != pytest.approx(found["pixels_frechet"], rel=1e-6)
    first = measured(num, next(iter(LAYOUTS)), monkeypatch).figures(reference())
    assert found == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num", [1, 7, 999, 2049])
def test_exactly_n_images_are_measured(num, layout, monkeypatch):
    check(num, layout, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["64 over 8 devices", "13 on 1 device, all at once"])
def test_fifty_thousand_images_are_measured(layout, monkeypatch):
    check(50_000, layout, monkeypatch)


@pytest.mark.parametrize("num", [7, 999])
def test_one_image_less_is_missed(num, monkeypatch):
    measurement = Measurement(pixels_extractor(SHAPE, 5), SETTINGS, num)
    measurement.update(np.arange(num - 1), pictures(num)[:-1])
    np.testing.assert_array_equal(measurement.missing, [num - 1])
    with pytest.raises(ValueError, match=f"1 images are missing, the first is {num - 1}"):
        measurement.figures(reference())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_image_has_no_distance(layout, monkeypatch):
    for metrics in (("fid",), SETTINGS.metrics):
        measurement = measured(1, layout, monkeypatch, EvalConfig(metrics=metrics))
        with pytest.raises(UserError, match=r"^[^\n]*2 or more images, got 1$"):
            measurement.figures(reference())
