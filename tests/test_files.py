"""Files and folders that appear whole, and what killed programs leave of them."""

import os
import socket
import subprocess
import sys

import pytest

from ddim_jax.files import remove_folder, remove_left_over, whole_folder, write_whole

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
