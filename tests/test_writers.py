"""metrics.jsonl: one line a step, whatever happened before."""

import errno
import json
import os
import struct

import pytest
from tensorboardX.proto import event_pb2

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


def test_lines_that_are_no_records_are_left_out_and_told(tmp_path, capsys):
    long, deep = b'{"step": ' + b"9" * 5000 + b"}\n", b"[" * 50_000 + b"\n"
    odd = (b"\xff\xfe\n", b"hello\n", deep, b"[1]\n", bytes(9) + b"\n", long)
    kept = (b'{"note": "by hand"}\n', b'{"step": "first"}\n', b'{"step": 1, "loss": 0.5}\n')
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(odd) + b"".join(kept) + b'{"step": 2}\n{"step": 3, "lo')
    with MetricWriter(tmp_path, resume_step=1, tensorboard=False) as writer:
        writer.scalars(2, {"loss": 0.25})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(kept) + b'{"step": 2, "loss": 0.25}\n'
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("metrics.jsonl: line 1 (and 5 more) cannot be read, and was left out")


def test_a_line_cut_by_a_kill_is_no_damage(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    MetricWriter(tmp_path, resume_step=1, tensorboard=False).close()
    assert capsys.readouterr().err == ""


def events(workdir):
    """(step, tag, value) of all scalars in TensorBoard's files."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[12 + length + 4 :]
    return found


def test_what_is_flushed_is_in_tensorboard_s_files(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in range(1, 40):
            writer.scalars(step, {"loss": step / 4, "rate": 0.5})
        writer.flush()
        # As a killed run leaves it: the file is not closed.
        assert events(tmp_path) == [
            (step, tag, value) for step in range(1, 40) for tag, value in (("loss", step / 4), ("rate", 0.5))
        ]


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
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the file that could not be closed
def test_who_fails_for_another_reason_says_that_one(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.flush", full)
    with pytest.raises(RuntimeError, match="the first"), MetricWriter(tmp_path):
        raise RuntimeError("the first")
