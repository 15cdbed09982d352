"""The classifier that is trained on a data set's own labels."""

import dataclasses

import numpy as np
import pytest

from ddim_jax.config import DataConfig
from ddim_jax.data.sources import DigitsSource
from ddim_jax.errors import UserError
from ddim_jax.images import save_png
from ddim_jax.measuring import classifier
from ddim_jax.measuring.classifier import classifier_for, labelled_images
from ddim_jax.models.classifier import NUM_FEATURES

DIGITS = DataConfig(image_size=8, channels=1)


@pytest.fixture(scope="module")
def trained(cache):
    return classifier_for(DIGITS)


def test_it_knows_digits_that_it_has_not_seen(trained):
    learnt, held_out = labelled_images(DigitsSource(), DIGITS)
    assert len(held_out.image) == 179 and not set(held_out.index) & set(learnt.index)
    right = trained(held_out.image).logits.argmax(1) == held_out.label
    assert trained.accuracy == right.mean() == trained.provenance["held_out_accuracy"]
    assert trained.accuracy > 0.95
    assert set(held_out.label) == set(range(10))


def test_its_features_tell_classes_apart(trained):
    """Distances between digits of one class are smaller than between classes."""
    images = labelled_images(DigitsSource(), DIGITS)[1]
    found = trained(images.image)
    assert found.features.shape == (179, NUM_FEATURES) and found.logits.shape == (179, 10)
    assert found.features.dtype == np.float32
    distance = np.linalg.norm(found.features[:, None] - found.features, axis=-1)
    same = images.label[:, None] == images.label
    assert distance[same].mean() < 0.6 * distance[~same].mean()


def test_it_is_trained_once(trained, monkeypatch):
    monkeypatch.setattr(classifier, "_train", lambda *_: pytest.fail("trained again"))
    again = classifier_for(DIGITS, batch_size=3)
    images = labelled_images(DigitsSource(), DIGITS)[1].image[:20]
    np.testing.assert_allclose(again(images).logits, trained(images).logits, rtol=1e-4, atol=1e-4)
    assert again.provenance == trained.provenance


def test_training_depends_on_the_images_alone(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(classifier, "_FEWEST_STEPS", 5)
    monkeypatch.setattr(classifier, "_EPOCHS", 0)
    found = []
    for name in ("a", "b"):
        monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / name))
        found.append(classifier_for(dataclasses.replace(DIGITS, split="train[:200]")).provenance)
    assert found[0] == found[1]
    other = classifier_for(dataclasses.replace(DIGITS, split="train[:201]")).provenance
    assert other["weights_sha256"] != found[0]["weights_sha256"]


@pytest.mark.parametrize("damaged", [b"", b"PK\x03\x04 cut off"])
def test_a_damaged_classifier_is_trained_anew(monkeypatch, tmp_path, damaged):
    monkeypatch.setattr(classifier, "_FEWEST_STEPS", 2)
    monkeypatch.setattr(classifier, "_EPOCHS", 0)
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path))
    few = dataclasses.replace(DIGITS, split="train[:100]")
    first = classifier_for(few).provenance
    (kept,) = (tmp_path / "classifiers").iterdir()
    kept.write_bytes(damaged)
    assert classifier_for(few).provenance == first
    assert kept.stat().st_size > 1000


def test_shifts_move_whole_images():
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)
    moved = classifier._shifted(images, np.random.default_rng(1))
    shifts = set()
    for before, after in zip(images, moved, strict=True):
        padded = np.pad(before, ((1, 1), (1, 1), (0, 0)), mode="edge")
        fits = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if np.array_equal(padded[top : top + 8, left : left + 8], after)
        ]
        assert len(fits) == 1
        shifts |= set(fits)
    assert len(shifts) == 9


def test_images_without_classes_are_refused(tmp_path):
    for number in range(3):
        save_png(tmp_path / f"{number}.png", np.zeros((8, 8, 1), np.uint8))
    data = DataConfig(source="folder", path=str(tmp_path), image_size=8, channels=1)
    with pytest.raises(UserError, match="has no labels, from which no classifier can learn"):
        classifier_for(data)
    (tmp_path / "only").mkdir()
    for number in range(3):
        (tmp_path / f"{number}.png").rename(tmp_path / "only" / f"{number}.png")
    with pytest.raises(UserError, match="has one class only"):
        classifier_for(data)
    with pytest.raises(UserError, match="10 images are too few"):
        classifier_for(dataclasses.replace(DIGITS, split="train[:10]"))
