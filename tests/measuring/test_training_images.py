"""Training images as points: computed once, resumed where a kill left them, without those that cannot be used."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.measuring import training_images as module
from ddim_jax.measuring.extractor import Extractor, FeatureProgram, Features
from ddim_jax.measuring.image_sets import ImageSet, Loaded
from ddim_jax.measuring.training_images import ImageRows, TrainingImages, image_rows
from ddim_jax.pixels import Normalization

NUM = 40
IMAGES = np.random.default_rng(0).integers(0, 256, (NUM, 2, 3, 1), np.uint8)


class Killed(Exception):
    """Stands for a kill."""


class Images(ImageSet):
    """A set of which some cannot be used, and that notes what is read, until it is killed."""

    def __init__(self, unusable=(), killed_after=NUM):
        self.name = "some/images"
        self.identity = {"made": list(unusable)}
        self.unusable, self.killed_after, self.read = unusable, killed_after, []

    def __len__(self):
        return NUM

    def load(self, indices):
        if len(self.read) >= self.killed_after and len(indices):
            raise Killed
        indices = np.array([index for index in indices.tolist() if index not in self.unusable], np.int64)
        self.read += indices.tolist()
        return Loaded(indices, IMAGES[indices])


@pytest.fixture(scope="module")
def extractor():
    def function(_, images):
        return Features(jnp.reshape(images, (len(images), -1))[:, :4] / 255)

    return Extractor("pixels", {"name": "pixels"}, FeatureProgram(function, (), 2), 4)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir(mode=0o700)


def rows_of(images, extractor, chosen=None):
    return image_rows(images, np.arange(NUM) if chosen is None else chosen, (2, 3, 1), extractor, Normalization())


def test_they_are_computed_once(extractor, tmp_path):
    first = rows_of(Images(), extractor)
    flat = IMAGES.reshape(NUM, 6) / np.float32(255)
    np.testing.assert_allclose(first.features, flat[:, :4], rtol=1e-6)
    np.testing.assert_allclose(first.pixels, flat, rtol=1e-6)
    images = Images()
    again = rows_of(images, extractor)
    assert images.read == [] and isinstance(again.features, np.memmap)
    np.testing.assert_array_equal(again.features, first.features)


def test_a_kill_costs_what_was_not_saved(extractor, monkeypatch):
    monkeypatch.setattr(module, "_SAVE_EVERY_SECONDS", -1)
    killed = Images(killed_after=2 * extractor.images_per_call)
    with pytest.raises(Killed):
        rows_of(killed, extractor)
    images = Images()
    found = rows_of(images, extractor)
    assert 0 < len(images.read) < NUM and max(images.read) == NUM - 1
    np.testing.assert_allclose(found.pixels, IMAGES.reshape(NUM, 6) / np.float32(255), rtol=1e-6)


def test_unusable_images_are_left_out(extractor):
    bad = (0, 3, 17, 39)
    usable = np.setdiff1d(np.arange(NUM), bad)
    for _ in range(2):
        rows = rows_of(Images(unusable=bad), extractor)
        np.testing.assert_array_equal(rows.number, usable)
        np.testing.assert_allclose(rows.pixels, IMAGES[usable].reshape(-1, 6) / np.float32(255), rtol=1e-6)


def test_some_of_a_set_are_another_file(extractor):
    rows_of(Images(), extractor)
    chosen = np.arange(0, NUM, 4)
    found = rows_of(Images(), extractor, chosen)
    np.testing.assert_array_equal(found.number, chosen)
    np.testing.assert_allclose(found.pixels, IMAGES[chosen].reshape(-1, 6) / np.float32(255), rtol=1e-6)


def test_images_are_read_by_row():
    number = np.array([2, 5, 9, 30])
    training = TrainingImages(Images(), ImageRows(number, np.zeros((4, 4)), np.zeros((4, 6))), None)
    np.testing.assert_array_equal(training.load(np.array([3, 0, 3])), IMAGES[[30, 2, 30]])


def test_a_batch_of_which_all_are_left_out_is_none():
    batches = Images(unusable=(2, 3)).batches(np.arange(6), 2)
    assert [loaded.index.tolist() for loaded in batches] == [[0, 1], [4, 5]]
    assert list(Images(unusable=(0, 1)).batches(np.arange(2), 2)) == []
