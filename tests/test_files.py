"""Files and folders that appear whole, what killed programs leave of them, and what is not read: pipes, devices."""

import os
import re
import socket
import subprocess
import sys

import pytest

from ddim_jax import files
from ddim_jax.errors import UserError
from ddim_jax.files import check_kind, read_file, remove_folder, remove_left_over, whole_folder, write_whole

KILLED = """
import os, sys, signal
from ddim_jax.files import whole_file, whole_folder
os.chdir(sys.argv[1])
with whole_file("results.json") as file, whole_folder("export") as folder:
    file.write_text("half")
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_program_was_writing_is_removed_by_the_next(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert len(names(tmp_path)) == 2
    remove_left_over(tmp_path)
    assert names(tmp_path) == []


def test_what_others_are_writing_stays(tmp_path):
    token = "0" * 32
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], check=True, capture_output=True)
    pid, host = int(gone.stdout), socket.gethostname()
    stay = [f".a.json.{host}-{os.getpid()}-{token}.partial", f".a.json.elsewhere-{pid}-{token}.partial", "a.partial"]
    for name in (*stay, f".a.json.{host}-{pid}-{token}.partial"):
        (tmp_path / name).touch()
    remove_left_over(tmp_path)
    assert names(tmp_path) == sorted(stay)
    remove_left_over(tmp_path / "none")


def test_a_folder_is_removed_and_made_again(tmp_path):
    for text in ("one", "two"):
        with whole_folder(tmp_path / "export") as folder:
            (folder / "a").write_text(text)
        assert (tmp_path / "export" / "a").read_text() == text
        remove_folder(tmp_path / "export")
        assert names(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        remove_folder(tmp_path / "export")


def test_a_long_name_is_no_obstacle(tmp_path):
    write_whole(tmp_path / ("a" * 250), "text")
    assert names(tmp_path) == ["a" * 250]


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
    with pytest.raises(UserError, match=r"config\.json cannot be written: File exists"):
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
