"""One job at a time on files that two would spoil."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from ddim_jax import claims, one_writer
from ddim_jax.errors import UserError, WriteError
from ddim_jax.one_writer import check_no_other_writer

REMEDY = "go elsewhere"

# Takes the lock, says so, and sleeps.
OWNER = """
import sys, time
from ddim_jax.one_writer import one_writer
with one_writer(sys.argv[1], "run", "the run", "go elsewhere"):
    print("mine", flush=True)
    time.sleep(60)
"""


def mine(folder, **more):
    return one_writer.one_writer(folder, "run", "the run", REMEDY, **more)


@pytest.fixture
def owner(tmp_path):
    """Another process that has the files."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parent.parent,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
        process.kill()


def holder_of(folder):
    (path,) = folder.glob("run.claim-*")
    return path, json.loads(path.read_text())


def leave_claim(folder, **changes):
    """As a job would leave it that was killed: of this process, but for the changes."""
    with mine(folder):
        _, holder = holder_of(folder)
    path = folder / "run.claim-0"
    path.write_text(json.dumps({**holder, "token": "other", **changes}))
    return path


def test_the_second_is_told_who_has_the_files_and_changes_nothing(tmp_path, owner):
    path, holder = holder_of(tmp_path)
    expected = rf"the run: {socket.gethostname()} \(process {owner.pid}\), since {holder['since']}, is .*{REMEDY}"
    for ask in (lambda: mine(tmp_path).__enter__(), lambda: check_no_other_writer(tmp_path, "run", "the run", REMEDY)):
        with pytest.raises(UserError, match=expected) as caught:
            ask()
        assert (caught.value.status, "\n" in str(caught.value)) == (2, False)
    assert list(tmp_path.iterdir()) == [path]


def test_after_a_kill_the_next_starts_at_once(tmp_path, owner):
    owner.kill()
    owner.wait()
    started = time.monotonic()
    with mine(tmp_path) as writing:
        writing.check()
    assert time.monotonic() - started < 1
    assert list(tmp_path.iterdir()) == []


def test_a_killed_owner_whose_number_another_process_has(tmp_path):
    leave_claim(tmp_path, started="1")
    with mine(tmp_path) as writing:
        writing.check()
    leave_claim(tmp_path)
    with pytest.raises(UserError, match="is at work there"), mine(tmp_path):
        pass


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"machine": "before the restart", "pid": 2**22 + 1}])
def test_an_owner_elsewhere_is_watched(tmp_path, monkeypatch, capsys, changes):
    monkeypatch.setattr(one_writer, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(one_writer, "Claims", lambda folder: claims.Claims(folder, 0.1, 0.3))
    leave_claim(tmp_path, **changes)
    started = time.monotonic()
    with mine(tmp_path) as writing:
        writing.check()
    assert time.monotonic() - started > 0.25
    assert "watching for up to" in capsys.readouterr().err

    # It was alive.
    path = leave_claim(tmp_path, **changes)
    monkeypatch.setattr(one_writer, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(one_writer.time, "sleep", lambda _: os.utime(path, (1, 1)))
    with pytest.raises(UserError, match="is at work there"), mine(tmp_path):
        pass
    assert path.exists()


def test_an_owner_that_was_stopped_loses_the_files(tmp_path, monkeypatch, owner):
    monkeypatch.setattr(one_writer, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(one_writer, "Claims", lambda folder: claims.Claims(folder, 0.1, 0.3))
    owner.send_signal(signal.SIGSTOP)
    while not claims._process(owner.pid).is_stopped:
        time.sleep(0.01)
    with mine(tmp_path):
        pass


def test_who_lost_the_files_finds_out_before_it_writes(tmp_path):
    with mine(tmp_path) as writing:
        writing.check()
        later = tmp_path / "run.claim-1"
        later.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "later"}))
        with pytest.raises(WriteError, match=r"the run: this job slept .* nothing more is written here"):
            writing.check()
    assert later.exists()


def test_a_folder_that_is_removed_meanwhile(tmp_path):
    folder = tmp_path / "run"
    with mine(folder) as writing:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        with pytest.raises(WriteError, match=f"{folder} cannot be written: No such file .* bring it back"):
            writing.check()
    assert not folder.exists()


def test_waiting_for_another_job(tmp_path, monkeypatch, owner, capsys):
    monkeypatch.setattr(one_writer, "LOOK_SECONDS", 0.02)
    looks = []

    def wait():
        looks.append(None)
        if len(looks) == 3:
            owner.kill()
            owner.wait()

    with mine(tmp_path, while_waiting=wait) as writing:
        writing.check()
    assert len(looks) >= 3
    assert f"(process {owner.pid})" in capsys.readouterr().err


def test_a_disk_that_is_full_leaves_no_claim(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(claims.json, "dump", full)
    with pytest.raises(WriteError, match="No space left on device; make space"), mine(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_object_stores_have_no_lock_and_say_so(capsys):
    with mine("gs://bucket/run") as writing:
        writing.check()
    assert "gs://bucket/run is no place where jobs can tell who else writes" in capsys.readouterr().err
