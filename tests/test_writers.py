"""metrics.jsonl: one line a step, whatever happened before."""

import errno
import json
import os
import time

import pytest

from ddim_jax.errors import WriteError
from ddim_jax.writers import MetricWriter, progress


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_replaces_the_lines_after_its_checkpoint(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        for step in (10, 20, 30):
            writer.scalars(step, {"loss": step / 10})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    with MetricWriter(tmp_path, resume_step=20, tensorboard=False) as writer:
        writer.scalars(30, {"loss": 7.0})
    assert records(tmp_path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": 7.0}]


def test_values_that_json_cannot_hold_are_null(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.scalars(1, {"loss": float("nan")})
    assert records(tmp_path) == [{"step": 1, "loss": None}]


def test_tensorboard_files_are_written(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(1, {"loss": 0.5})
    files = list((tmp_path / "tensorboard").iterdir())
    assert len(files) == 1
    assert b"loss" in files[0].read_bytes()


def test_tensorboard_gets_text_as_it_is(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.text(0, "config", '{\n  "seed": 0\n}')
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b'    {\n      "seed": 0\n    }\n' in file.read_bytes()


def test_a_log_gets_lines(capsys):
    """There is no terminal here, whose line could be written over."""
    with progress(3, "training", "step") as bar:
        bar.update(3)
        bar.set_postfix_str("loss 0.5", refresh=True)
    lines = capsys.readouterr().err.split("\n")
    assert lines[0].startswith("training:   0% 0/3 [")
    assert lines[-2].startswith("training: 100% 3/3 [")
    assert lines[-2].endswith(", loss 0.5]")
    assert not any("\r" in line for line in lines)


def test_a_full_disk_is_one_error_also_in_the_thread_of_tensorboard(tmp_path, monkeypatch, capsys):
    """Without it that thread ends with a traceback, and the queue to it fills until the run stands still."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = MetricWriter(tmp_path)
    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.write", full)
    with pytest.raises(WriteError, match="tensorboard cannot be written: No space left"), writer:
        for step in range(1000):
            writer.scalars(step, {"loss": 1.0})
            time.sleep(0.001)
    assert "Traceback" not in capsys.readouterr().err


def test_who_fails_for_another_reason_says_that_one(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.flush", full)
    with pytest.raises(RuntimeError, match="the first"), MetricWriter(tmp_path):
        raise RuntimeError("the first")
