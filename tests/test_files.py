"""How files are written, and what is not read: links, pipes, devices."""

import os
import re
import socket

import pytest

from ddim_jax import files
from ddim_jax.errors import UserError
from ddim_jax.files import check_kind, read_file, write_whole


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path):
    other, link = tmp_path / "other", tmp_path / "config.json"
    other.write_text("mine")
    link.symlink_to(other)
    write_whole(link, "new")
    assert other.read_text() == "mine"
    assert not link.is_symlink() and link.read_text() == "new"


def test_a_file_is_made_anew_or_not_at_all(tmp_path, monkeypatch):
    other = tmp_path / "other"
    monkeypatch.setattr(files, "_own_name", lambda path: path.with_name("guessed"))
    (tmp_path / "guessed").symlink_to(other)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "config.json", "new")
    assert not other.exists() and not (tmp_path / "config.json").exists()


def test_folders_may_be_links(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")
    write_whole(tmp_path / "checkpoints" / "a", "new")
    assert (tmp_path / "disk" / "a").read_text() == "new"


@pytest.mark.parametrize("read", [check_kind, read_file])
@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_is_no_file_is_named_and_not_opened(tmp_path, monkeypatch, read, kind):
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(tmp_path)  # paths of sockets are short
        made = socket.socket(socket.AF_UNIX)
        made.bind("x.png")
        made.close()
    with pytest.raises(UserError, match=re.escape(f"{path} is a {kind}, not a file")):
        read(path)


def test_files_folders_and_what_is_missing_are_for_their_readers(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    for name in ("file", ".", "missing", "name\0with"):
        check_kind(tmp_path / name)
    check_kind("gs://bucket/file")
    assert read_file(tmp_path / "file") == b"content"
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "missing")


def test_a_terabyte_is_not_read(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"x.png has 1,099,511,627,776 bytes, more than any file of its kind"):
        read_file(tmp_path / "x.png")
