"""Several jobs on one folder: nobody does another's work, and a dead job's work is taken over."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from ddim_jax.claims import Claims
from ddim_jax.files import write_whole

TOUCH = 0.02
DEAD = 0.3
# Where a claim must not be taken for dead because the machine is busy.
NEVER = 600.0


def job(folder, dead_after=NEVER):
    return Claims(folder, TOUCH, dead_after)


def foreign_claim(folder, name, number=0, host="elsewhere", pid=1):
    """As a job on another machine would leave it."""
    path = folder / f"{name}.claim-{number}"
    path.write_text(json.dumps({"host": host, "pid": pid, "token": f"{number}"}))
    return path


def ended_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_work_belongs_to_one_job_until_it_is_given_back(tmp_path):
    one, two = job(tmp_path), job(tmp_path)
    claim = one.take("a")
    with claim:
        assert two.take("a") is None
        assert two.holder("a") == f"{socket.gethostname()} (process {os.getpid()})"
        other = two.take("b")
        with other:
            assert one.take("b") is None
    assert list(tmp_path.iterdir()) == []
    again = two.take("a")
    with again:
        assert one.take("a") is None


def test_work_is_given_back_when_it_fails(tmp_path):
    one = job(tmp_path)
    with pytest.raises(RuntimeError), one.take("a"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_seen_to_be_alive(tmp_path):
    one, two = job(tmp_path), job(tmp_path)
    with one.take("a"):
        assert two.state("a") == "unknown"
        two.wait(["a"])
        assert two.state("a") == "alive"
        assert two.take("a") is None


def test_what_counts_is_the_time_since_the_last_change(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("ddim_jax.claims.time.monotonic", lambda: now)
    path, two = foreign_claim(tmp_path, "a"), job(tmp_path, 10.0)
    assert two.state("a") == "unknown"
    for _ in range(5):
        now += 9.0
        # The other machine's clock is wrong, and that does not matter.
        os.utime(path, ns=(0, int(now)))
        assert two.state("a") == "alive"
    now += 9.0
    assert two.state("a") == "alive"
    now += 2.0
    assert two.state("a") == "free"


def test_a_claim_that_is_not_touched_is_taken_over(tmp_path):
    dead = foreign_claim(tmp_path, "a")
    two = job(tmp_path, DEAD)
    assert two.take("a") is None
    started = time.monotonic()
    two.wait(["a"])
    assert time.monotonic() - started >= DEAD - TOUCH
    with two.take("a") as claim:
        assert not claim.lost
        assert dead.exists()
        assert (tmp_path / "a.claim-1").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_of_a_dead_process_of_this_machine_is_free_at_once(tmp_path):
    foreign_claim(tmp_path, "a", host=socket.gethostname(), pid=ended_pid())
    with job(tmp_path).take("a") as claim:
        assert not claim.lost


def test_a_claim_just_made_and_not_yet_written_is_somebodys(tmp_path):
    (tmp_path / "a.claim-0").touch()
    assert job(tmp_path).take("a") is None
    assert job(tmp_path).holder("a") == "another job"


def test_who_slept_and_lost_the_claim_leaves_the_new_ones_alone(tmp_path):
    sleeper = job(tmp_path).take("a")
    newer = foreign_claim(tmp_path, "a", 1)
    assert sleeper.lost
    with sleeper:
        pass
    assert newer.exists()

    # The same name was given back and claimed anew meanwhile.
    sleeper = job(tmp_path).take("b")
    newer = foreign_claim(tmp_path, "b", 0)
    assert sleeper.lost
    with sleeper:
        pass
    assert newer.exists()


def test_waiting_ends_when_work_is_free_or_all_is_in_living_hands(tmp_path):
    two = job(tmp_path)
    two.wait([])
    with job(tmp_path).take("a"), job(tmp_path).take("b"):
        two.wait(["a", "b"])
        assert [two.state(name) for name in "abc"] == ["alive", "alive", "free"]
        two.wait(["a", "b", "c"])


def test_of_many_threads_one_takes_over(tmp_path):
    for attempt in range(20):
        name = f"work{attempt}"
        foreign_claim(tmp_path, name, host=socket.gethostname(), pid=ended_pid() if attempt == 0 else 2**22 + 1)
        gate, taken = threading.Barrier(8), []

        def contend(name=name, gate=gate, taken=taken):
            claims = job(tmp_path)
            gate.wait()
            claim = claims.take(name)
            if claim is not None:
                taken.append(claim)

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        with taken[0]:
            pass


def contend_process(folder, names, gate):
    """Takes every piece of work it can, and appends its mark to the file of each that it did."""
    claims = Claims(folder, TOUCH, 60)
    gate.wait()
    for name in names:
        claim = claims.take(name)
        if claim is None:
            continue
        with claim:
            if not (folder / f"{name}.done").exists():
                with (folder / f"{name}.log").open("a") as log:
                    log.write("x")
                write_whole(folder / f"{name}.done", b"done")


def test_processes_that_start_at_the_same_instant_do_each_piece_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    gate, names = context.Barrier(3), [f"work{i}" for i in range(30)]
    processes = [context.Process(target=contend_process, args=(tmp_path, names, gate)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert {name: (tmp_path / f"{name}.log").read_text() for name in names} == dict.fromkeys(names, "x")
    assert not list(tmp_path.glob("*.claim-*"))


def test_files_appear_whole_whoever_writes_them(tmp_path):
    path = tmp_path / "table.md"
    contents = [bytes([letter]) * 200_000 for letter in b"abcd"]
    stop, seen = threading.Event(), set()

    def read():
        while not stop.is_set():
            if path.exists():
                content = path.read_bytes()
                assert len(content) == 200_000 and len(set(content)) == 1
                seen.add(content[:1])

    def write(content):
        for _ in range(20):
            write_whole(path, content)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stop.set()
    reader.join()
    assert seen
    assert [p.name for p in tmp_path.iterdir()] == ["table.md"]
