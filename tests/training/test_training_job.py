"""What a training run does between steps: groups of steps, averages on the host, batches that do not fit."""

import json
import re
import signal

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from small import changed, metrics, plain_digits

from ddim_jax import memory
from ddim_jax.errors import UserError
from ddim_jax.images import load_png, save_png
from ddim_jax.jobs.train import train
from ddim_jax.pipeline import load
from ddim_jax.training.checkpoint import Checkpoints
from ddim_jax.training.program import TrainProgram
from ddim_jax.workdir import checkpoint_dir
from ddim_jax.writers import MetricWriter


def changed_digits(**changes):
    return changed(plain_digits(), **changes)


def saved_steps(workdir):
    return sorted(int(path.name) for path in checkpoint_dir(workdir).iterdir() if path.name.isdecimal())


def leaves(workdir, step):
    with Checkpoints(checkpoint_dir(workdir), read_only=True) as checkpoints:
        return jax.tree.leaves(checkpoints._manager.restore(step))


SHORT = {"train__final_sample_steps": (), "train__log_every": 1, "train__tensorboard": False}


@pytest.mark.slow
def test_what_is_due_inside_a_group_comes_at_its_end(tmp_path):
    train(
        changed_digits(
            train__steps=7, train__steps_per_call=3, train__checkpoint_every=2, train__keep_last=9,
            train__sample_every=4, train__sample_num=1, sample__steps=1, **SHORT,
        ),
        tmp_path,
    )  # fmt: skip
    assert saved_steps(tmp_path) == [3, 6, 7]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step_00000006.png"]
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == [1, 2, 3, 4, 5, 6, 7]


def test_pictures_that_are_damaged_are_drawn_again_and_whole_ones_left(tmp_path):
    settings = {**SHORT, "train__final_sample_steps": (1, 2)}
    config = changed_digits(train__steps=1, train__sample_num=2, **settings)
    train(config, tmp_path)
    paths = sorted((tmp_path / "samples").iterdir())
    assert [path.name for path in paths] == [f"step_00000001{end}.png" for end in ("", "_ddim_1", "_ddim_2")]
    whole = [path.read_bytes() for path in paths]
    for damaged in paths[:2]:
        damaged.write_bytes(damaged.read_bytes()[:-20])
        train(config, tmp_path)
        assert [path.read_bytes() for path in paths] == whole
    times = [path.stat().st_mtime_ns for path in paths]
    train(config, tmp_path)
    assert [path.stat().st_mtime_ns for path in paths] == times


@pytest.mark.slow
def test_final_pictures_are_of_the_settings_asked_for(tmp_path, capsys):
    config = changed_digits(train__steps=1, train__sample_num=2, **{**SHORT, "train__final_sample_steps": (1, 2)})
    train(config, tmp_path)
    path = tmp_path / "samples" / "step_00000001.png"
    first = path.read_bytes()
    # Of an earlier version, which wrote no note, a picture is left as it is.
    save_png(path, load_png(path))
    old = path.read_bytes()
    train(config, tmp_path)
    assert path.read_bytes() == old
    capsys.readouterr()
    train(changed(config, train__final_sample_steps=(2, 3)), tmp_path)
    told = re.findall(r"wrote .*step_00000001(\w*)\.png", capsys.readouterr().err)
    assert told == ["", "_ddim_2", "_ddim_3"]
    # Nothing is lost of those that were asked for before.
    assert (path.parent / "step_00000001_ddim_1.png").exists()
    seeded = changed(config, train__final_sample_steps=(2, 3), sample__seed=1)
    of_seed_0 = path.read_bytes()
    train(seeded, tmp_path)
    assert path.read_bytes() not in (first, of_seed_0)
    train(config, tmp_path)
    assert path.read_bytes() == first


@pytest.mark.slow
def test_a_resumed_run_with_its_average_on_the_host_and_images_on_the_device(tmp_path):
    settings = {"train__ema_on_host": True, "data__cache": "device", **SHORT}
    train(changed_digits(train__steps=4, train__checkpoint_every=2, **settings), tmp_path / "whole")
    train(changed_digits(train__steps=2, **settings), tmp_path / "resumed")
    train(changed_digits(train__steps=4, **settings), tmp_path / "resumed")
    for one, other in zip(leaves(tmp_path / "whole", 4), leaves(tmp_path / "resumed", 4), strict=True):
        np.testing.assert_array_equal(one, other)
    # The average is whole in the checkpoint, and goes on where it was.
    train(changed_digits(train__steps=4, **SHORT), tmp_path / "on_device")
    for one, other in zip(leaves(tmp_path / "whole", 4), leaves(tmp_path / "on_device", 4), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_batch_that_cannot_fit_is_refused_before_the_first_step(tmp_path, monkeypatch):
    def compile_and_need(self, *_):
        return memory.ProgramMemory(arguments=10 * 2**20, temporary=80 * 2**20, results=0)

    monkeypatch.setattr(TrainProgram, "compile", compile_and_need)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 60 * 2**20)
    with pytest.raises(
        UserError, match=r"^train.batch_size=16 .*needs 90 MiB .*, 60 MiB are free; train.batch_size=8 fits"
    ):
        train(changed_digits(train__batch_size=16, **SHORT), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_running_out_of_memory_names_a_smaller_batch(tmp_path, monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte")

    monkeypatch.setattr(TrainProgram, "__call__", fail)
    with pytest.raises(UserError, match=r"^train.batch_size=16 .*needs \d+ MiB per device.*train.batch_size=8 fits"):
        train(changed_digits(train__batch_size=16, **SHORT), tmp_path)


@pytest.mark.slow
def test_lines_of_the_log_follow_their_steps(tmp_path):
    train(changed_digits(train__steps=20, train__validate_every=5, data__validation="train[:16]", **SHORT), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert all(line["steps_per_second"] > 0 for line in lines if "loss" in line)


# --- figures of the samples ---------------------------------------------------------------------


OF_SAMPLES = ("sample_mean", "sample_std", "sample_clipped", "data_mean", "data_std", "data_clipped")


def test_pixels_of_samples_are_told_beside_the_data(tmp_path):
    settings = {**SHORT, "train__final_sample_steps": (1, 2), "train__sample_every": 1, "train__sample_num": 3}
    config = changed_digits(train__steps=2, sample__steps=2, **settings)
    train(config, tmp_path)
    found = [line for line in metrics(tmp_path) if "sample_mean" in line]
    assert [line["step"] for line in found] == [1, 2]
    assert all(tuple(name for name in line if name != "step") == OF_SAMPLES for line in found)
    images = load_digits().images / 16
    assert found[0]["data_mean"] == pytest.approx(images.mean(), abs=0.01)
    assert found[0]["data_std"] == pytest.approx(images.std(), abs=0.01)
    assert found[0]["data_clipped"] == pytest.approx(((images == 0) | (images == 1)).mean(), abs=0.01)
    # Those of step 2 are of the most steps.
    drawn = load(tmp_path).sample(3, steps=2, seed=config.sample.seed) / 255
    assert found[1]["sample_mean"] == pytest.approx(drawn.mean())
    assert found[1]["sample_std"] == pytest.approx(drawn.std())
    assert found[1]["sample_clipped"] == pytest.approx(((drawn == 0) | (drawn == 1)).mean())


def test_a_stopped_run_tells_the_same(tmp_path, monkeypatch):
    """It is stopped in the step that a picture is due after, which then comes before the next one."""
    settings = {**SHORT, "train__sample_every": 2, "train__sample_num": 2, "train__checkpoint_every": 9}
    config = changed_digits(train__steps=5, sample__steps=1, **settings)
    train(config, tmp_path / "whole")
    write = MetricWriter.scalars

    def terminated_at_step_2(self, step, values):
        write(self, step, values)
        if step == 2 and "loss" in values:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "scalars", terminated_at_step_2)
        assert train(config, tmp_path / "stopped") == 2
    assert not (tmp_path / "stopped" / "samples" / "step_00000002.png").exists()
    assert train(config, tmp_path / "stopped") is None
    found, expected = (
        [{key: value for key, value in line.items() if "per_second" not in key} for line in metrics(tmp_path / name)]
        for name in ("stopped", "whole")
    )
    assert found == expected and any("loss_quartile_1" in line for line in found)
    pictures = [sorted(path.name for path in (tmp_path / name / "samples").iterdir()) for name in ("stopped", "whole")]
    assert pictures[0] == pictures[1] == ["step_00000002.png", "step_00000004.png"]
