"""Caches: those that others could have written are not used."""

import logging
import os

import pytest

from ddim_jax import cache, compilation
from ddim_jax.cache import is_trusted
from ddim_jax.config import DataConfig
from ddim_jax.data.prepared import PreparedSource, open_images


@pytest.fixture
def folder(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "above" / "cache").mkdir(parents=True)
    (tmp_path / "above").chmod(0o755)
    return tmp_path / "above" / "cache"


@pytest.mark.parametrize(
    ("mode", "above", "trusted"),
    [
        (0o755, 0o755, True),
        (0o700, 0o755, True),
        (0o775, 0o775, True),
        # As a folder of one's own in /tmp.
        (0o755, 0o1777, True),
        (0o777, 0o755, False),
        (0o1777, 0o755, False),
        # Anybody can put another in its place.
        (0o755, 0o777, False),
    ],
)
def test_rights_decide_and_are_told_once(folder, caplog, mode, above, trusted):
    folder.chmod(mode)
    folder.parent.chmod(above)
    with caplog.at_level(logging.WARNING):
        assert [is_trusted(folder), is_trusted(folder)] == [trusted, trusted]
    assert len(caplog.records) == (not trusted)
    assert trusted or ("is not used: " in caplog.text and "is writable by all" in caplog.text)


def test_what_is_still_to_be_made_is_as_its_folder(folder):
    assert is_trusted(folder / "not" / "there")
    folder.chmod(0o777)
    assert not is_trusted(folder / "neither" / "there")


def test_a_link_counts_as_what_it_leads_to(folder, tmp_path):
    folder.chmod(0o777)
    (tmp_path / "link").symlink_to(folder)
    assert not is_trusted(tmp_path / "link")


def test_somebody_elses_is_not_used(folder, monkeypatch, caplog):
    owner = folder.stat().st_uid
    monkeypatch.setattr(cache.os, "getuid", lambda: owner + 1)
    cache._is_trusted.cache_clear()
    assert is_trusted(folder) == (owner == 0)  # root's are all users'
    assert owner == 0 or f"belongs to user {owner}" in caplog.text


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_somebody_elses_is_not_used_by_root(folder):
    os.chown(folder, 12345, -1)
    assert not is_trusted(folder)


def test_object_stores_have_rights_of_their_own():
    assert is_trusted("gs://bucket/cache")


@pytest.mark.parametrize("by", ["setting", "environment"])
def test_programs_of_others_are_not_run(folder, monkeypatch, by):
    changed = {}
    monkeypatch.setattr(compilation.jax.config, "update", changed.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if by == "environment":
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
    folder.chmod(0o777)
    compilation.keep_compiled_programs(str(folder))
    assert changed == ({} if by == "setting" else {"jax_enable_compilation_cache": False})


def test_images_of_others_are_prepared_anew_for_each_run(folder):
    config = DataConfig(source="digits", image_size=8, channels=1, cache="disk", cache_dir=str(folder))
    folder.chmod(0o777)
    assert not isinstance(open_images(config), PreparedSource)
    assert not list(folder.iterdir())
