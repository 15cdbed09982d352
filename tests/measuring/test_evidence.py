"""What is kept of every image: on disk or in memory, in any order, by one machine or many; and spreads from it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.config import EvalConfig
from ddim_jax.measuring.extractor import Extractor, FeatureProgram, Features
from ddim_jax.measuring.measurement import Measurement
from ddim_jax.measuring.pixel_rows import pixel_rows, pixel_width
from ddim_jax.measuring.reference_file import Reference
from ddim_jax.measuring.rows_on_disk import flush, open_rows
from ddim_jax.measuring.training_images import ImageRows, TrainingImages
from ddim_jax.measuring.wanted import Known
from ddim_jax.metrics.memorization import neighbours
from ddim_jax.metrics.moments import Moments
from ddim_jax.pixels import Normalization

NUM = 60
SETTINGS = EvalConfig(metrics=("fid", "fid_infinity", "memorization"), features_kept=5, bootstrap=3)
KNOWN = Known(shape=(2, 3, 1))


def extractor():
    """The first four pixels as features."""

    def function(_, images):
        return Features(jnp.reshape(images, (len(images), -1))[:, :4] / 255)

    return Extractor("pixels", {"name": "pixels"}, FeatureProgram(function, (), 2), 4)


def pictures(num=NUM, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, 2, 3, 1), np.uint8)


def reference(num=80):
    images = pictures(num, seed=1)
    features, pixels = extractor()(images).features, pixel_rows(images, Normalization())
    moments = Moments.empty(4).update(features)
    held_out = neighbours(extractor()(pictures(30, seed=2)).features, features)
    rows = ImageRows(np.arange(num), features, pixels)
    return Reference(moments.mean, moments.covariance, num, features, {}, None, TrainingImages(None, rows, held_out))


def start(files="", **changes):
    return Measurement(extractor(), dataclasses.replace(SETTINGS, **changes), NUM, KNOWN, files)


def everything(measurement):
    found = measurement.neighbours(reference())
    return (
        measurement.figures(reference()),
        measurement.deviations(reference()),
        {space: one.index.tolist() for space, one in found.items()},
    )


@pytest.fixture(scope="module")
def whole():
    measurement = start()
    measurement.update(np.arange(NUM), pictures())
    return everything(measurement)


@pytest.mark.parametrize("sizes", [(1, 59), (20, 20, 20), (7, 50, 3)])
def test_the_same_bits_for_any_batch_sizes_and_on_disk(sizes, whole, tmp_path):
    measurement, begin = start(str(tmp_path / "row")), 0
    for size in sizes:
        measurement.update(np.arange(begin, begin + size), pictures()[begin : begin + size])
        begin += size
    assert everything(measurement) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"row.features.npy", "row.pixels.npy"}


def test_several_machines(whole, tmp_path):
    parts = []
    for process in range(3):
        part = start(str(tmp_path / f"part-{process}"))
        mine = np.random.default_rng(process).permutation(np.arange(process, NUM, 3))
        part.update(mine, pictures()[mine])
        parts.append(part)
    for part in parts[1:]:
        parts[0].merge(part)
    figures, deviations, nearest = everything(parts[0])
    # What is computed from rows has the same bits; sums are equal to rounding.
    assert figures == pytest.approx(whole[0], rel=1e-9)
    assert figures["pixels_frechet_infinity"] == whole[0]["pixels_frechet_infinity"]
    assert (deviations, nearest) == whole[1:]


def test_deviations_of_means_are_those_of_binomials():
    """Of a share p of n images it is sqrt(p (1 - p) / n)."""
    measurement = start(bootstrap=400)
    measurement.update(np.arange(NUM), pictures())
    share = measurement.figures(reference())["pixels_authenticity"]
    found = measurement.deviations(reference())
    assert 0.2 < share < 0.8
    assert found["pixels_authenticity"] == pytest.approx(np.sqrt(share * (1 - share) / NUM), rel=0.12)
    assert "pixels_copy_test" not in found and "pixels_frechet_infinity" not in found


def test_deviations_of_distances_are_those_over_new_images():
    settings = EvalConfig(metrics=("fid",), bootstrap=60)
    distances, deviations = [], []
    for seed in range(40):
        measurement = Measurement(extractor(), settings, 300, KNOWN)
        measurement.update(np.arange(300), np.clip(0.7 * pictures(300, seed), 0, 255).astype(np.uint8))
        distances.append(measurement.figures(reference())["pixels_frechet"])
        if seed < 6:
            deviations.append(measurement.deviations(reference())["pixels_frechet"])
    assert np.mean(deviations) == pytest.approx(np.std(distances, ddof=1), rel=0.3)


def test_without_being_asked_nothing_is_kept():
    measurement = start(metrics=("fid",), bootstrap=0)
    measurement.update(np.arange(NUM), pictures())
    assert measurement.deviations(reference()) == {} == measurement.neighbours(reference())
    assert not measurement.is_slow


def test_without_training_images_there_is_no_word_of_copies():
    measurement = start()
    measurement.update(np.arange(NUM), pictures())
    found = measurement.figures(reference()._replace(training=None))
    assert list(found) == ["pixels_frechet", "pixels_frechet_infinity"]


def test_rows_stay_on_disk_and_other_ones_are_replaced(tmp_path):
    path = tmp_path / "a.npy"
    rows, is_new = open_rows(path, 5, 3)
    assert is_new and rows.shape == (5, 3) and not rows.any()
    rows[2] = 7
    flush(rows)
    again, is_new = open_rows(path, 5, 3)
    assert not is_new and again[2].tolist() == [7, 7, 7]
    assert np.load(path).dtype == np.float32
    other, is_new = open_rows(path, 6, 3)
    assert is_new and not other.any()


def test_pixels_of_large_images_are_means_of_squares():
    images = np.random.default_rng(3).integers(0, 256, (2, 70, 50, 1), np.uint8)
    assert pixel_width((70, 50, 1)) == 35 * 25
    expected = images.reshape(2, 35, 2, 25, 2).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(pixel_rows(images, Normalization()), expected.reshape(2, -1), rtol=1e-5)
    odd = np.full((1, 71, 51, 3), 51, np.uint8)
    assert pixel_rows(odd, Normalization()).shape == (1, pixel_width((71, 51, 3)))
    np.testing.assert_allclose(pixel_rows(odd, Normalization()), 0.2, rtol=1e-6)
    small = images[:, :8, :8]
    np.testing.assert_array_equal(pixel_rows(small, Normalization()), small.reshape(2, 64) / np.float32(255))
