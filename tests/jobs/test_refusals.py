"""What memory or time cannot hold is refused by an estimate before work begins, and leaves the workdir as it was."""

import math

import numpy as np
import pytest
from small import small_digits

from ddim_jax import memory
from ddim_jax.config import with_values
from ddim_jax.data.batch_order import steps_for_epochs
from ddim_jax.errors import UserError
from ddim_jax.images import grid, grid_bytes
from ddim_jax.jobs.edit import edit
from ddim_jax.jobs.evaluate import evaluate
from ddim_jax.jobs.interpolate import interpolate
from ddim_jax.jobs.likelihood import likelihood
from ddim_jax.jobs.reconstruct import reconstruct
from ddim_jax.jobs.sample import sample
from ddim_jax.jobs.sweep import sweep
from ddim_jax.jobs.train import train
from ddim_jax.jobs.trajectory import trajectory
from ddim_jax.pipeline import load
from ddim_jax.training.pictures import _epochs_at

ROOM = 1 << 30


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals") / "run"
    train(with_values(small_digits(), {"eval.extractor": "pixels"}), folder)
    return folder


@pytest.fixture
def room(monkeypatch):
    """A machine with one GiB, and as much on each device."""
    monkeypatch.setattr(memory, "available_host_bytes", lambda: ROOM)
    monkeypatch.setattr(memory, "free_bytes", lambda devices: ROOM)


@pytest.mark.parametrize(
    ("job", "values", "line"),
    [
        (interpolate, {"interpolate.points": 100_000}, "interpolate.points=100000: 400,000 images need "),
        (interpolate, {"interpolate.side": 1000}, "interpolate.side=1000: 1,000,000 images need "),
        (
            trajectory,
            {"trajectory.num": 2000, "sample.num": 2000, "trajectory.moments": 1000, "sample.steps": 900},
            "trajectory.moments=1000: 2000 x 901 pictures of each kind need ",
        ),
        (sweep, {"sweep.num": 50_000, "sample.num": 50_000}, "cells of 50000 images need "),
        (sample, {"sample.num": 2**31}, "sample.num=2147483648: so many images need 128.0 GiB of memory or more, 1.0"),
        (evaluate, {"eval.num": 2**31}, "eval.num=2147483648: lists of so many images need 128.0 GiB"),
        (
            evaluate,
            {"eval.num": 2**24, "eval.features_kept": 2**24},
            "eval.features_kept=16777216: the features kept need ",
        ),
        (
            evaluate,
            {"eval.num": 100_000, "eval.features_kept": 100_000, "eval.kid_subset_size": 100_000},
            "eval.kid_subset_size=100000: products of a subset need ",
        ),
        (
            likelihood,
            {"likelihood.method": "ode", "likelihood.probes": 10_000, "likelihood.steps": 4, "sample.steps": 4},
            "",
        ),
        (reconstruct, {"reconstruct.iterations": 1000}, "iterations=1000 in 500 steps: 200,000 network evaluations"),
        (
            edit,
            {"edit.task": "inpaint", "edit.mask": "mask", "edit.resamplings": 100_000},
            "resamplings=100000 in 4 steps: 200,000 network evaluations an image are the most",
        ),
    ],
)
def test_a_job_that_is_too_large_is_refused_and_writes_nothing(workdir, room, monkeypatch, tmp_path, job, values, line):
    if job is likelihood:
        monkeypatch.setattr(memory, "available_host_bytes", lambda: 1 << 20)
        line = "likelihood.probes=10000: so many probes of one image need "
    mask = np.zeros((8, 8), bool)
    mask[0] = True
    monkeypatch.setattr("ddim_jax.jobs.edit.read_mask", lambda path, size: mask)
    before = sorted(workdir.rglob("*"))
    config = with_values(small_digits(), {"eval.extractor": "pixels", **values})
    with pytest.raises(UserError) as raised:
        job(config, workdir)
    assert line in str(raised.value)
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"train.batch_size": 2**20}, "train.batch_size=1048576 (131072 images per device) needs "),
        ({"data.prefetch": 10_000, "train.batch_size": 2**14}, "data.prefetch=10000: so many batches need 9.8 GiB"),
        (
            {"train.steps_per_call": 100_000, "train.steps": 100_000, "train.batch_size": 1024},
            "train.steps_per_call=100000: the images of so many steps need ",
        ),
        ({"train.sample_num": 1_000_000}, "train.sample_num=1000000: so many images of a sample grid need "),
        ({"model.channels": 32 * 1024}, "model.channels=32768, model.multipliers=(1,), model.num_blocks=1"),
        ({"train.epochs": 1e9}, "train.epochs=1e+09: 224,625,000,000 steps; 2^31 - 1 are the most"),
    ],
)
def test_a_training_that_is_too_large_is_refused_and_writes_nothing(tmp_path, room, values, line):
    with pytest.raises(UserError) as raised:
        train(with_values(small_digits(), values), tmp_path / "run")
    assert line in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_the_compiled_step_has_no_room_for_writes_nothing(tmp_path, monkeypatch):
    """Known only once the step is compiled; and a run that is set aside for it stays where it was."""
    run = tmp_path / "run"
    monkeypatch.setattr(memory, "free_bytes", lambda devices: 300_000)
    with pytest.raises(UserError, match=r"^train.batch_size=8 \(1 images per device\) needs 1 MiB per device, 0 MiB"):
        train(small_digits(), run)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    train(small_digits(), run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr(memory, "free_bytes", lambda devices: 300_000)
    with pytest.raises(UserError, match=r"^train.batch_size=16 "):
        train(with_values(small_digits(), {"train.batch_size": 16, "train.overwrite": True}), run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_from_python_too(workdir, room):
    pipe = load(workdir)
    with pytest.raises(UserError, match=r"^points=10000000: 10,000,000 images need .*; ask for less$"):
        pipe.interpolate([0], [1], points=10**7)
    with pytest.raises(UserError, match=r"^side=10000: 100,000,000 images need "):
        pipe.interpolate_grid([0, 1, 2, 3], side=10**4)
    with pytest.raises(UserError, match=r"^iterations=1000000000 in 4 steps: "):
        pipe.encode(np.zeros((1, 8, 8, 1), np.uint8), iterations=10**9)
    with pytest.raises(UserError, match=r"^resamplings=1000000000 in 4 steps: "):
        pipe.inpaint(np.zeros((1, 8, 8, 1), np.uint8), np.eye(8, dtype=bool), resamplings=10**9)


@pytest.mark.parametrize("shape", [(8, 8, 1), (20, 64, 3), (64, 64, 1), (100, 90, 3)])
def test_a_grid_takes_what_is_estimated(shape):
    images = np.zeros((16, *shape), np.uint8)
    assert images.nbytes < grid_bytes(16, shape) <= 3 * grid(images, padding=0).nbytes


@pytest.mark.parametrize("every", [1e-9, 0.003, 0.1, 1 / 3, 1.0, 1.1, 7.0, 1e9])
def test_pictures_by_epochs_are_due_when_they_always_were(every):
    """Counted from the first one; 10^-9 of an epoch asks for billions, and one a step is all that there can be."""
    config = with_values(small_digits(), {"train.sample_every_epochs": every})
    examples, batch, steps = 100, 8, 200
    ends = {}
    for count in range(1, 1 + math.ceil(steps * batch / examples / max(every, 1e-4))):
        ends[steps_for_epochs(examples, batch, count * every)] = count * every
    found = {step: _epochs_at(config, examples, step) for step in range(1, steps + 1)}
    if every > 1e-9:
        assert {step: end for step, end in found.items() if end is not None} == {
            step: end for step, end in ends.items() if step <= steps
        }
    else:
        assert None not in found.values()
