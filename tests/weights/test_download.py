"""Published files: fetched once, whole, and only if they are what was published."""

import hashlib

import pytest

from ddim_jax.errors import UserError
from ddim_jax.weights.download import PublishedFile, fetch

CONTENT = b"weights" * 1000


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A file that is to be had, and an empty cache."""
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / "cache"))
    there = tmp_path / "there.pth"
    there.write_bytes(CONTENT)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return PublishedFile("weights", there.as_uri(), sha256, "networks", "here.pth", "eval.path")


def test_a_file_is_fetched_once_and_again_when_damaged(published, tmp_path):
    path = fetch(published)
    assert path == tmp_path / "cache" / "networks" / "here.pth"
    assert path.read_bytes() == CONTENT
    (tmp_path / "there.pth").rename(tmp_path / "away.pth")
    assert fetch(published) == path
    (tmp_path / "away.pth").rename(tmp_path / "there.pth")
    path.write_bytes(CONTENT[:100])
    assert fetch(published).read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["here.pth"]


def test_another_file_at_the_address_is_not_kept(published, tmp_path):
    with pytest.raises(UserError, match=r"has SHA-256 .*, not 000: try again, or set eval\.path to a copy of here"):
        fetch(published._replace(sha256="000"))
    assert list((tmp_path / "cache" / "networks").iterdir()) == []


def test_the_message_of_a_failure_is_one_line_with_the_remedy(published, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"could not be saved as .*: set eval\.path to a copy of here\.pth") as caught:
        fetch(published._replace(url=(tmp_path / "absent.pth").as_uri()))
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / "there.pth"))
    with pytest.raises(UserError, match=r"cannot be written: Not a directory; set eval\.path to a copy"):
        fetch(published)
