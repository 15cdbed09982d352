"""Figures of a set of images: the sums they are made of, and what they are called."""

import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.config import EvalConfig
from ddim_jax.errors import UserError
from ddim_jax.measuring import feature_sums
from ddim_jax.measuring.extractor import Extractor, FeatureProgram, Features
from ddim_jax.measuring.measurement import Measurement
from ddim_jax.measuring.neighbours import fast_overlap
from ddim_jax.measuring.reference_file import Reference
from ddim_jax.metrics.frechet import frechet_distance
from ddim_jax.metrics.inception_score import InceptionSums
from ddim_jax.metrics.kernel_distance import gaussian_distance, kernel_distance
from ddim_jax.metrics.moments import Moments
from ddim_jax.metrics.precision_recall import density_coverage, precision_recall

NUM, DIMENSION, CLASSES = 50, 6, 5
SETTINGS = EvalConfig(is_splits=3, kid_subsets=4, kid_subset_size=20, features_kept=30)


def extractor(prefix="inception", classes=CLASSES):
    """Linear features, and logits, of images 4x4."""
    matrix = np.random.default_rng(1).normal(size=(16, DIMENSION + classes)).astype(np.float32)

    def function(matrix, images):
        found = jnp.matmul(images.reshape(len(images), -1) / 255, matrix, precision="highest")
        return Features(found[:, :DIMENSION], found[:, DIMENSION:] if classes else None)

    return Extractor(prefix, {"name": prefix}, FeatureProgram(function, matrix, 1), DIMENSION, classes)


def pictures(seed=0, num=NUM):
    return np.random.default_rng(seed).integers(0, 256, (num, 4, 4, 1), np.uint8)


def reference(features, kept=True):
    moments = Moments.empty(DIMENSION).update(features)
    return Reference(moments.mean, moments.covariance, len(features), features if kept else None, {})


def measured(order=None, sizes=(NUM,), **settings):
    measurement = Measurement(extractor(), dataclasses.replace(SETTINGS, **settings), NUM)
    order, images, start = np.arange(NUM) if order is None else order, pictures(), 0
    for size in sizes:
        rows = order[start : start + size]
        measurement.update(rows, images[rows])
        start += size
    return measurement


def through_a_file(measurement):
    file = io.BytesIO()
    np.savez(file, **measurement.to_arrays())
    file.seek(0)
    with np.load(file) as arrays:
        return Measurement.from_arrays(measurement._extractor, measurement._settings, dict(arrays))


REAL = reference(np.random.default_rng(5).normal(size=(40, DIMENSION)).astype(np.float32))


def test_figures_are_those_of_the_metrics():
    features = extractor()(pictures())
    kept = features.features[np.arange(30) * NUM // 30]
    score = InceptionSums.empty(NUM, CLASSES, 3).update(features.logits, np.arange(NUM)).score()
    kernel = kernel_distance(kept, REAL.features, 4, 20)
    shares = precision_recall(kept, REAL.features, 3)
    expected = {
        "fid": frechet_distance(Moments.empty(DIMENSION).update(features.features), REAL.gaussian),
        **{"is_mean": score.mean, "is_std": score.std, "kid_mean": kernel.mean, "kid_std": kernel.std},
        **{"precision": shares.precision, "recall": shares.recall},
    }
    found = measured().figures(REAL)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-10)


def test_further_figures_are_of_the_kept_features():
    measurement = measured(metrics=("cmmd", "density_coverage"))
    kept = measurement._sums.kept_features
    expected = density_coverage(kept, REAL.features, 3)
    assert measurement.figures(REAL) == {
        "inception_gaussian_distance": gaussian_distance(kept, REAL.features),
        "density": expected.density,
        "coverage": expected.coverage,
    }
    assert measurement.figures(REAL._replace(features=None)) == {}


def test_precision_and_coverage_are_read_from_the_same_distances(monkeypatch):
    compared = []

    def overlap(generated, real, k):
        compared.append(real)
        return fast_overlap(generated, real, k)

    monkeypatch.setattr("ddim_jax.measuring.figures.fast_overlap", overlap)
    measurement = measured(metrics=("precision_recall", "density_coverage"))
    other = reference(REAL.features + 1)
    for real in (REAL, other):
        found = measurement.figures(real)
        kept = measurement._sums.kept_features
        assert found["precision"] == precision_recall(kept, real.features, 3).precision
        assert found["coverage"] == density_coverage(kept, real.features, 3).coverage
    assert len(compared) == 2


def test_a_set_compared_with_itself():
    found = measured(features_kept=NUM).figures(reference(extractor()(pictures()).features))
    assert found["fid"] < 1e-9 and found["precision"] == found["recall"] == 1


def test_the_same_bits_for_any_batch_sizes_and_after_a_resume(monkeypatch):
    monkeypatch.setattr(feature_sums, "_BLOCK", 16)
    whole = measured().figures(REAL)
    assert measured(sizes=(1, 30, 2, 17)).figures(REAL) == whole
    half = measured(sizes=(7, 14))
    half = through_a_file(half)
    np.testing.assert_array_equal(half.missing, np.arange(21, NUM))
    half.update(half.missing, pictures()[half.missing])
    assert half.figures(REAL) == whole


def test_any_order_and_several_machines(monkeypatch):
    monkeypatch.setattr(feature_sums, "_BLOCK", 16)
    whole = measured().figures(REAL)
    shuffled = np.random.default_rng(3).permutation(NUM)
    assert measured(shuffled, (20, 30)).figures(REAL) == pytest.approx(whole, rel=1e-9)
    parts = [measured(np.arange(process, NUM, 3), (NUM,)) for process in range(3)]
    merged = through_a_file(parts[0])
    for part in parts[1:]:
        merged.merge(through_a_file(part))
    assert merged.figures(REAL) == pytest.approx(whole, rel=1e-9)


def test_an_image_counts_once():
    measurement = measured(sizes=(10,))
    with pytest.raises(ValueError, match="given twice"):
        measurement.update(np.array([9]), pictures(num=1))
    with pytest.raises(ValueError, match="given twice"):
        measurement.update(np.array([20, 20]), pictures(num=2))
    with pytest.raises(ValueError, match=r"50 \.\.\. 50 is not within 0 \.\.\. 49"):
        measurement.update(np.array([50]), pictures(num=1))
    with pytest.raises(ValueError, match="given to both"):
        measurement.merge(measured(sizes=(1,)))
    with pytest.raises(ValueError, match="40 images are missing, the first is 10"):
        measurement.figures(REAL)


def test_only_figures_of_inception_have_its_names():
    for prefix, classes, expected in (
        ("inception", CLASSES, "fid is_mean is_std kid_mean kid_std precision recall"),
        (
            "classifier",
            CLASSES,
            "classifier_frechet classifier_score_mean classifier_score_std classifier_kernel_distance_mean "
            "classifier_kernel_distance_std classifier_precision classifier_recall",
        ),
        (
            "pixels_pca",
            0,
            "pixels_pca_frechet pixels_pca_kernel_distance_mean pixels_pca_kernel_distance_std pixels_pca_precision "
            "pixels_pca_recall",
        ),
    ):
        measurement = Measurement(extractor(prefix, classes), SETTINGS, NUM)
        measurement.update(np.arange(NUM), pictures())
        assert " ".join(measurement.figures(REAL)) == expected


def test_figures_asked_for_and_figures_that_can_be_had():
    assert list(measured(metrics=("fid",)).figures(REAL)) == ["fid"]
    assert list(measured(metrics=("kid", "is")).figures(REAL)) == ["is_mean", "is_std", "kid_mean", "kid_std"]
    without = reference(REAL.features, kept=False)
    assert list(measured().figures(without)) == ["fid", "is_mean", "is_std"]


def test_more_splits_than_images_are_refused_at_once():
    with pytest.raises(UserError, match="of 2 images in 3 splits"):
        Measurement(extractor(), SETTINGS, 2)
    Measurement(extractor(), dataclasses.replace(SETTINGS, metrics=("fid",)), 2)
