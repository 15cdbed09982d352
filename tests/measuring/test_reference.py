"""Statistics of real images: made from images, kept, written, read, and refused where they do not fit."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from ddim_jax.cache import cache_dir
from ddim_jax.config import Config, DataConfig, EvalConfig
from ddim_jax.errors import UserError
from ddim_jax.images import save_png
from ddim_jax.measuring import reference as module
from ddim_jax.measuring.extractor import SPATIAL_DIMENSION, Extractor, FeatureProgram, Features
from ddim_jax.measuring.extractors import make_extractor
from ddim_jax.measuring.feature_sums import FeatureSums
from ddim_jax.measuring.image_sets import open_image_set
from ddim_jax.measuring.reference import (
    check_provenance,
    measure_reference,
    reference_for,
    reference_provenance,
    remove_parts,
    same_provenance,
)
from ddim_jax.measuring.reference_file import Reference, is_statistics, read_reference, write_reference
from ddim_jax.metrics.moments import Gaussian

GREY = DataConfig(image_size=8, channels=1)
CONFIG = Config(data=GREY, eval=EvalConfig(extractor="pixels", batch_size=16))
EXTRACTOR = make_extractor(CONFIG)
DIGITS = open_image_set("", GREY)
ALL = DIGITS.load(np.arange(len(DIGITS))).image.reshape(-1, 64) / 255


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def with_eval(**settings):
    return dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, **settings))


def said(capsys):
    return capsys.readouterr().err


def inception():
    """An extractor with the name and dimension of the real one."""
    provenance = {"name": "inception-tf1", "protocol": "tf1", "weights_sha256": "6726", "logits": "without bias"}
    return Extractor("inception", provenance, FeatureProgram(lambda v, x: x, (), 1), 2048, 1008)


def inception_reference(**changes):
    provenance = {"name": "cifar10", "count": 9, "extractor": {**inception().provenance, **changes}}
    return Reference(np.zeros(2048), np.eye(2048), 9, None, provenance)


# --- from images --------------------------------------------------------------------------------


def test_statistics_are_mean_and_covariance():
    found = reference_for(CONFIG, EXTRACTOR)
    np.testing.assert_allclose(found.mean, ALL.mean(0), atol=1e-7)
    np.testing.assert_allclose(found.covariance, np.cov(ALL, rowvar=False), atol=1e-7)
    np.testing.assert_allclose(found.features, ALL, atol=1e-7)
    assert found.count == 1797 and found.gaussian.count == 1797


def test_a_part_of_the_images_is_evenly_spread():
    found = reference_for(with_eval(reference_num=100, features_kept=10), EXTRACTOR)
    chosen = np.arange(100) * 1797 // 100
    np.testing.assert_allclose(found.mean, ALL[chosen].mean(0), atol=1e-7)
    np.testing.assert_allclose(found.features, ALL[chosen[::10]], atol=1e-7)
    assert found.count == 100


def test_statistics_are_computed_once(monkeypatch, cache):
    first = reference_for(CONFIG, EXTRACTOR)
    calls = []
    monkeypatch.setattr(module, "measure_reference", lambda *a, **k: calls.append(a) or measure_reference(*a, **k))
    again = reference_for(CONFIG, EXTRACTOR)
    assert not calls
    for ours, expected in zip(again[:4], first[:4], strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert again.provenance == first.provenance
    # Whatever decides the statistics leads to others.
    others = [
        with_eval(reference_num=500),
        with_eval(features_kept=50),
        with_eval(reference_split="train[:300]"),
        dataclasses.replace(CONFIG, data=dataclasses.replace(GREY, split="train[:300]")),
        dataclasses.replace(CONFIG, data=dataclasses.replace(GREY, crop="center")),
    ]
    for number, config in enumerate(others[:3]):
        reference_for(config, EXTRACTOR)
        assert len(calls) == number + 1
    digests = {
        module.provenance_digest(
            reference_provenance(open_image_set("", c.data, c.eval.reference_split), EXTRACTOR, c.eval)
        )
        for c in [CONFIG, *others]
    }
    assert len(digests) == 5  # the third and the fourth are the same images
    assert not list((cache / "reference").glob("*.parts"))


def test_provenance_says_all():
    found = reference_for(with_eval(features_kept=7), EXTRACTOR).provenance
    assert found["count"] == 1797 and found["features_kept"] == 7 and found["extractor"] == EXTRACTOR.provenance
    assert found["images"].keys() == {"data", "split", "crop", "resize", "image_size", "channels", "decoder"}
    assert found["ddim_jax"] and found["images"]["decoder"].startswith("pillow ")
    assert same_provenance(found, found | {"ddim_jax": "another version"})
    assert not same_provenance(found, found | {"count": 3})


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_reference_of_other_images(tmp_path, kind):
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    if kind == "folder":
        path = tmp_path / "real"
        path.mkdir()
        for number, image in enumerate(images):
            save_png(path / f"{number}.png", image)
    else:
        path = tmp_path / "real.npz"
        np.savez(path, arr_0=images)
    found = reference_for(with_eval(reference=str(path)), EXTRACTOR)
    np.testing.assert_allclose(found.mean, images.reshape(30, -1).mean(0) / 255, atol=1e-7)
    assert found.provenance["name"] == "real"


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-50], lambda data: data[:3000] + b"x" * 99])
def test_damaged_statistics_in_the_cache_are_measured_anew(cache, capsys, damage):
    first = reference_for(CONFIG, EXTRACTOR)
    (kept,) = (cache / "reference").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    capsys.readouterr()
    again = reference_for(CONFIG, EXTRACTOR)
    assert f"{kept} cannot be read" in said(capsys)
    np.testing.assert_array_equal(again.covariance, first.covariance)
    assert read_reference(kept).provenance == first.provenance
    reference_for(CONFIG, EXTRACTOR)
    assert "measuring" not in said(capsys)


def test_the_cache_may_be_named_from_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DDIM_JAX_CACHE", "~/mine")
    assert cache_dir("reference") == tmp_path / "mine" / "reference"
    monkeypatch.delenv("DDIM_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/all")
    assert cache_dir("reference") == tmp_path / "all" / "ddim_jax" / "reference"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir("reference") == tmp_path / ".cache" / "ddim_jax" / "reference"


def test_unreadable_images_are_left_out_if_that_is_wanted(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), np.uint8)
    for number, image in enumerate(images):
        save_png(tmp_path / f"{number}.png", image)
    (tmp_path / "4.png").write_bytes(b"broken")
    data = dataclasses.replace(GREY, source="folder", path=str(tmp_path), on_error="skip")
    found = reference_for(Config(data=data, eval=CONFIG.eval), EXTRACTOR)
    kept = np.delete(images, 4, 0).reshape(8, -1) / 255
    np.testing.assert_allclose(found.features, kept, atol=1e-7)
    np.testing.assert_allclose(found.mean, kept.mean(0), atol=1e-7)
    assert (found.count, found.provenance["count"], found.provenance["left_out"]) == (8, 9, 1)
    with pytest.raises(UserError, match=r"4\.png"):
        reference_for(Config(data=dataclasses.replace(data, on_error="fail"), eval=CONFIG.eval), EXTRACTOR)


def test_a_killed_measurement_goes_on_to_the_same_bits(monkeypatch, tmp_path):
    settings = dataclasses.replace(CONFIG.eval, features_kept=300)
    whole = measure_reference(DIGITS, EXTRACTOR, settings, epath.Path(tmp_path / "whole"))
    monkeypatch.setattr(module, "_SAVE_EVERY_SECONDS", -1)
    asked = []

    class Stopping:
        """Fails at the fourth batch."""

        def __getattr__(self, name):
            return getattr(EXTRACTOR, name)

        def __call__(self, images):
            asked.append(len(images))
            if len(asked) == 4:
                raise KeyboardInterrupt
            return EXTRACTOR(images)

    parts = epath.Path(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        measure_reference(DIGITS, Stopping(), settings, parts)
    assert parts.exists()
    resumed = measure_reference(DIGITS, Stopping(), settings, parts)
    assert sum(asked) - asked[3] == 1797  # each image once, but for those of the batch that failed
    for ours, expected in zip(resumed[:4], whole[:4], strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert parts.exists()  # until the result is kept
    remove_parts(parts)
    assert not parts.exists()


@pytest.mark.parametrize("change", ["gone", "other images", "other numbers", "another form"])
def test_sums_of_another_form_are_not_gone_on_with(tmp_path, change):
    settings = EvalConfig()
    sums = FeatureSums.empty(EXTRACTOR, 1797, settings, ("moments", "spatial"))
    arrays = sums.to_arrays()
    assert sums.fit(arrays)
    assert FeatureSums.from_arrays(arrays).fit(arrays)
    if change == "gone":
        del arrays["moments.mean"]
    elif change == "other images":
        arrays["seen"] = np.zeros(1796, bool)
    elif change == "other numbers":
        arrays["kept"] = arrays["kept"].astype(str)
    else:
        arrays["waiting_index"] = np.zeros((2, 2), np.int64)
    assert not sums.fit(arrays)


def test_spatial_statistics_for_adm(tmp_path):
    """Of an extractor that gives the same pixels as features and, repeated, as spatial features."""

    def function(variables, images):
        pixels = images.reshape(len(images), -1) / 255
        return Features(pixels, None, jnp.tile(pixels, (1, 32))[:, :SPATIAL_DIMENSION])

    extractor = Extractor("pixels", EXTRACTOR.provenance, FeatureProgram(function, (), 16), 64, spatial=True)
    settings = dataclasses.replace(CONFIG.eval, reference_num=200)
    found = measure_reference(DIGITS, extractor, settings, epath.Path(tmp_path / "parts"))
    write_reference(tmp_path / "adm.npz", found, "adm")
    spatial = read_reference(tmp_path / "adm.npz").spatial
    np.testing.assert_allclose(spatial.mean, np.tile(found.mean, 32)[:SPATIAL_DIMENSION], rtol=1e-12)
    np.testing.assert_allclose(spatial.covariance[64:128, :64], found.covariance, atol=1e-12)


# --- files --------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    found = reference_for(with_eval(features_kept=20), EXTRACTOR)
    spatial = Gaussian(np.arange(3.0), np.eye(3))
    write_reference(tmp_path / "a.npz", found._replace(spatial=spatial), "adm")
    again = read_reference(tmp_path / "a.npz")
    for ours, expected in zip(again[:4], found[:4], strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert again.provenance == found.provenance
    np.testing.assert_array_equal(again.spatial.mean, spatial.mean)
    with np.load(tmp_path / "a.npz") as arrays:  # as pytorch-fid, EDM and ADM read it
        assert arrays["mu"].dtype == arrays["sigma"].dtype == np.float64
        assert arrays["mu_s"].shape == (3,) and arrays["sigma_s"].shape == (3, 3)
        assert json.loads(str(arrays["provenance"])) == found.provenance
    with pytest.raises(ValueError, match="needs spatial statistics"):
        write_reference(tmp_path / "b.npz", found, "adm")


def test_statistics_are_told_from_images(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2), sigma=np.eye(2))
    (tmp_path / "text.npz").write_text("text")
    assert is_statistics(tmp_path / "statistics.npz")
    assert not is_statistics(tmp_path / "images.npz")
    assert not is_statistics(tmp_path)
    for name, message in (("text.npz", "it is no .npz"), ("missing", "No such file")):
        with pytest.raises(UserError, match=message):
            is_statistics(tmp_path / name)


@pytest.mark.parametrize("more", [{}, {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}], ids=["pytorch-fid", "adm"])
def test_statistics_of_other_programs_are_taken_with_a_warning(tmp_path, capsys, more):
    path = tmp_path / "foreign.npz"
    np.savez(path, mu=np.ones(2048, np.float32), sigma=np.eye(2048), **more)
    found = reference_for(with_eval(reference=str(path)), inception())
    assert found.mean.dtype == np.float64 and found.count is None and found.provenance == {}
    assert (found.spatial is not None) == bool(more)
    first, second = said(capsys).splitlines()
    assert "foreign.npz does not say how it was made; unknown are data set, split" in first
    assert "no features of single images: no kernel distance, precision or recall" in second
    with pytest.raises(UserError, match="2048 features, but extractor 'pixels' has 64"):
        reference_for(with_eval(reference=str(path)), EXTRACTOR)
    np.savez(path, mu=np.ones(64), sigma=np.eye(64))
    with pytest.raises(UserError, match=r"can only be statistics of Inception; set eval\.extractor=inception"):
        reference_for(with_eval(reference=str(path)), EXTRACTOR)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "clean"}, "made with protocol 'clean' and not 'tf1'"),
        ({"weights_sha256": "ffff"}, "made with weights_sha256 'ffff' and not '6726'"),
        ({"name": "classifier"}, "made with name 'classifier' and not 'inception-tf1'"),
        ({"new": 1}, "made with new 1 and not None"),
    ],
)
def test_statistics_of_another_extractor_are_refused(changes, message):
    check_provenance(inception_reference(), inception(), "a.npz")
    with pytest.raises(UserError, match=f"^a.npz cannot be compared with extractor 'inception-tf1': it was {message}"):
        check_provenance(inception_reference(**changes), inception(), "a.npz")


@pytest.mark.parametrize("name", ["mu", "sigma", "features", "mu_s", "sigma_s"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_that_are_no_numbers_are_refused_by_the_files_name(tmp_path, name, value):
    arrays = {"mu": np.zeros(2), "sigma": np.eye(2), "features": np.ones((3, 2)), "mu_s": np.zeros(2)}
    arrays["sigma_s"] = np.eye(2)
    np.savez(tmp_path / "good.npz", **arrays)
    assert read_reference(tmp_path / "good.npz").features is not None
    arrays[name].flat[1] = value
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=rf"a.npz: {name} holds NaN or infinity; make the file anew"):
        read_reference(tmp_path / "a.npz")


def test_broken_statistics_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    for arrays, message in (
        ({"mu": np.zeros(3)}, "expected arrays mu and sigma, found mu"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"mu \[3\] and sigma \[2, 2\] are not"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "provenance": "{"}, "its provenance cannot be read"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=message):
            read_reference(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        read_reference(path)
