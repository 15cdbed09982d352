"""Whole runs on float rectangles of two channels that are drawn from pictures: kills, processes and devices."""

import signal

import numpy as np
import pytest
from runs import arguments, completed, digest, final_state, linked_run, losses, reached, started

from ddim_jax import main

pytestmark = pytest.mark.slow

STEPS = ("--config.train.steps=24", "--config.train.checkpoint_every=4")
SHORT = ("--config.train.steps=6", "--config.train.checkpoint_every=6")
DRAW = (
    "--mode=sample", "--config.sample.num=7", "--config.sample.per_condition=2", "--config.sample.eta=1.0",
    "--config.sample.steps=4", "--config.sample.format=npz",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """What follows the overrides of ``runs.py``: 20 fields of 8x16 with two channels of different ranges."""
    path = tmp_path_factory.mktemp("data") / "fields.npy"
    rows, columns = np.meshgrid(np.linspace(0, 1, 8), np.linspace(0, 1, 16), indexing="ij")
    shifts = np.random.default_rng(0).random((20, 2, 1, 1)).astype(np.float32)
    waves = np.sin(6 * (rows + shifts[:, 0])), 300 + 40 * np.cos(5 * (columns + shifts[:, 1]))
    np.save(path, np.stack(np.broadcast_arrays(*waves), axis=-1).astype(np.float32))
    return (
        "--config.data.source=array", f"--config.data.path={path}", "--config.data.dtype=float32",
        "--config.data.image_size=8,16", "--config.data.channels=2",
        "--config.data.condition=downsample", "--config.data.condition_factor=2",
        "--config.data.condition_augmentation=0.2", "--config.model.condition=('image',)",
        "--config.train.condition_dropout=(0.2,)",
    )  # fmt: skip


@pytest.fixture(scope="module")
def one_device(data, tmp_path_factory):
    """A run and its samples in a process of its own, with one device."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    completed(workdir, *data, *SHORT)
    completed(workdir, *DRAW)
    return workdir


def samples(workdir):
    (path,) = workdir.glob("sample/*/samples.npz")
    with np.load(path) as arrays:
        return arrays["arr_0"]


def assert_near(one, other):
    """Equal to the rounding of a float32 network, in the units of each channel's range."""
    assert one.dtype == other.dtype == np.float32
    assert one.shape == other.shape == (7, 8, 16, 2)
    assert (np.abs(one - other) / np.array([2.0, 80.0])).max() < 2e-4


def test_samples_lie_in_the_range_of_the_data(one_device):
    found = samples(one_device)
    assert np.abs(found[..., 0]).max() <= 1.0
    assert found[..., 1].min() >= 260
    assert found[..., 1].max() <= 340
    # Not a step of 8 bits on the way.
    assert len(np.unique(found)) > 1000


def test_killed_runs_end_like_one_that_was_not(data, tmp_path):
    completed(tmp_path / "whole", *data, *STEPS)
    workdir = tmp_path / "killed"
    for step in (7, 15):
        with started(workdir, *data, *STEPS) as (run,):
            run.wait_for(lambda step=step: reached(workdir, step))
            run.process.send_signal(signal.SIGKILL)
            run.wait()
    completed(workdir, *data, *STEPS)
    assert digest(final_state(workdir)) == digest(final_state(tmp_path / "whole"))
    assert losses(workdir) == losses(tmp_path / "whole")


def test_two_processes_train_and_draw_like_one(data, one_device, tmp_path):
    workdir = tmp_path / "two"
    completed(workdir, *data, *SHORT, processes=2)
    np.testing.assert_allclose(
        [loss for _, loss in losses(workdir)], [loss for _, loss in losses(one_device)], rtol=1e-4
    )
    shared = linked_run(one_device, tmp_path / "shared")
    completed(shared, *DRAW, processes=2)
    assert_near(samples(shared), samples(one_device))


def test_eight_devices_train_and_draw_like_one(data, one_device, tmp_path):
    workdir = tmp_path / "eight"
    assert main.run(["main", *arguments(workdir, *data, *SHORT)]) == 0
    np.testing.assert_allclose(
        [loss for _, loss in losses(workdir)], [loss for _, loss in losses(one_device)], rtol=1e-4
    )
    shared = linked_run(one_device, tmp_path / "shared")
    assert main.run(["main", *arguments(shared, *DRAW)]) == 0
    assert_near(samples(shared), samples(one_device))
