"""metrics.jsonl: one line a step, whatever happened before."""

import json

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
