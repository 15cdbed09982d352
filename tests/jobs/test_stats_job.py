"""``--mode=stats`` writes statistics of images, once."""

import dataclasses
import json
import os

import numpy as np
import pytest
from runs import completed

from ddim_jax.config import Config, DataConfig, EvalConfig
from ddim_jax.errors import UserError
from ddim_jax.jobs.stats import stats
from ddim_jax.measuring import reference as reference_module
from ddim_jax.measuring.extractor import Extractor
from ddim_jax.measuring.extractors import make_extractor
from ddim_jax.measuring.reference import reference_for
from ddim_jax.measuring.reference_file import read_reference

CONFIG = Config(
    data=DataConfig(image_size=8, channels=1, split="train[:200]"), eval=EvalConfig(extractor="pixels", batch_size=4)
)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / "cache"))


def with_eval(**settings):
    return dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, **settings))


def assert_same(path, expected):
    for ours, theirs in zip(read_reference(path)[:4], expected[:4], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_file_is_the_reference_of_the_training_images(tmp_path, capsys):
    path = stats(CONFIG, tmp_path)
    assert path.parent == tmp_path / "stats" and path.name == "digits-train-to200-200-pixels.npz"
    assert json.loads(capsys.readouterr().out) == read_reference(path).provenance
    assert_same(path, reference_for(CONFIG, make_extractor(CONFIG)))
    assert_same(path, reference_for(with_eval(reference=str(path)), make_extractor(CONFIG)))


def test_a_file_that_is_there_is_kept(tmp_path, capsys):
    path = stats(CONFIG, tmp_path)
    written = os.stat(path).st_mtime_ns
    assert stats(CONFIG, tmp_path) == path and os.stat(path).st_mtime_ns == written
    assert "is there already" in capsys.readouterr().err
    out = str(tmp_path / "own.npz")
    assert str(stats(with_eval(out=out), tmp_path)) == out
    with pytest.raises(UserError, match=r"own\.npz holds other statistics; move it away"):
        stats(with_eval(out=out, reference_num=50), tmp_path)
    assert read_reference(out).count == 200


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-9], lambda data: bytes(len(data))])
def test_a_damaged_file_of_ours_is_measured_again_and_a_users_is_named(tmp_path, capsys, damage):
    expected = read_reference(path := stats(CONFIG, tmp_path))
    path.write_bytes(damage(path.read_bytes()))
    stats(CONFIG, tmp_path)
    assert f"warning: {path} cannot be read" in capsys.readouterr().err
    assert_same(path, expected)
    out = tmp_path / "own.npz"
    out.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"own\.npz cannot be read"):
        stats(with_eval(out=str(out)), tmp_path)


def test_a_killed_job_goes_on(tmp_path, monkeypatch):
    expected = read_reference(stats(CONFIG, tmp_path / "whole"))
    monkeypatch.setattr(reference_module, "_SAVE_EVERY_SECONDS", -1)
    measured = Extractor.__call__
    batches = []

    def counted(self, images):
        batches.append(len(images))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return measured(self, images)

    monkeypatch.setattr(Extractor, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        stats(CONFIG, tmp_path)
    path = stats(CONFIG, tmp_path)
    assert sum(batches) - batches[2] == 200
    assert_same(path, expected)
    assert [entry.name for entry in (tmp_path / "stats").iterdir()] == [path.name]


def test_images_of_a_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "drawn.npz", arr_0=images)
    for key in ("images", "reference"):
        path = stats(with_eval(**{key: str(tmp_path / "drawn.npz")}), tmp_path / key)
        assert path.name == "drawn-20-pixels.npz"
        np.testing.assert_allclose(read_reference(path).mean, images.reshape(20, -1).mean(0) / 255, atol=1e-7)


def test_mistakes_are_one_clear_line(tmp_path):
    path = stats(CONFIG, tmp_path)
    no_archive = tmp_path / "text.npz"
    no_archive.write_text("text")
    for config, message in (
        (with_eval(reference=str(path)), "these are statistics already; name images"),
        (with_eval(out="statistics"), "statistics are .npz files"),
        (with_eval(format="adm"), "ADM's statistics are those of eval.extractor=inception"),
        (with_eval(images=str(tmp_path / "none")), "^eval.images='.*none' does not exist; name a folder"),
        (with_eval(reference=str(tmp_path / "none")), "^eval.reference='.*none' does not exist; name a folder"),
        (with_eval(reference=str(no_archive)), "^eval.reference: .*text.npz cannot be read: it is no .npz of arrays"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            stats(config, tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_processes_are_as_good_as_one(tmp_path):
    settings = ("--mode=stats", "--config.eval.extractor=pixels", "--config.eval.features_kept=100")
    completed(tmp_path / "one", *settings)
    completed(tmp_path / "two", *settings, processes=2)
    (one,), (two,) = ((list((tmp_path / name / "stats").iterdir())) for name in ("one", "two"))
    expected, found = read_reference(one), read_reference(two)
    assert found.provenance == expected.provenance and found.count == 1797
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, expected.covariance, atol=1e-14)
    np.testing.assert_array_equal(found.features, expected.features)
