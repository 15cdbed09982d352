"""Runs that are stopped, killed or fail, and are started again."""

import dataclasses
import json
import pathlib
import random
import re
import signal

import jax
import numpy as np
import pytest
from runs import (
    arguments,
    checkpoint_steps,
    completed,
    digest,
    final_state,
    half_written,
    linked_run,
    losses,
    pictures,
    reached,
    started,
)

from ddim_jax import main, npz, parallel
from ddim_jax.jobs import sample as sample_job
from ddim_jax.jobs.sample import sample
from ddim_jax.pipeline import load
from ddim_jax.workdir import read_config
from ddim_jax.writers import MetricWriter

# --- training -----------------------------------------------------------------------------------

IN_PROCESS = ("--config.train.steps=7", "--config.train.checkpoint_every=3")
KILLED = ("--config.train.steps=30", "--config.train.checkpoint_every=3")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run in this process, on eight devices."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main.run(["main", *arguments(workdir, *IN_PROCESS)]) == 0
    return workdir


def assert_same_run(workdir, reference):
    assert losses(workdir) == losses(reference)
    assert digest(final_state(workdir)) == digest(final_state(reference))


def test_more_steps_go_on_bit_by_bit(tmp_path, uninterrupted):
    """Readers leave a checkpoint that is being written alone; the next run removes what a killed one left."""
    workdir = tmp_path / "run"
    argv = arguments(workdir, *IN_PROCESS)
    assert main.run(["main", *argv, "--config.train.steps=4"]) == 0
    partial = workdir / "checkpoints" / "5.orbax-checkpoint-tmp-123"
    partial.mkdir()
    assert load(workdir).step == 4
    assert half_written(workdir) == [partial]
    assert main.run(["main", *argv]) == 0
    assert half_written(workdir) == []
    assert_same_run(workdir, uninterrupted)


def test_sigterm_saves_the_current_step(tmp_path, uninterrupted, monkeypatch, capsys):
    """The signal comes in the middle of step 5, which no checkpoint is due for."""
    workdir = tmp_path / "run"
    write = MetricWriter.scalars

    def terminated_at_step_5(self, step, values):
        write(self, step, values)
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(MetricWriter, "scalars", terminated_at_step_5)
    assert main.run(["main", *arguments(workdir, *IN_PROCESS)]) == 0
    assert "stopped by SIGTERM after saving step 5; start the same command again to go on" in capsys.readouterr().err
    assert checkpoint_steps(workdir) == [3, 5]
    assert signal.getsignal(signal.SIGTERM) is handler

    monkeypatch.setattr(MetricWriter, "scalars", write)
    assert main.run(["main", *arguments(workdir, *IN_PROCESS)]) == 0
    assert "resuming at step 5 of 7" in capsys.readouterr().err
    assert_same_run(workdir, uninterrupted)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, capsys):
    workdir = tmp_path / "run"
    argv = arguments(workdir, "--config.train.learning_rate=1e30", "--config.train.checkpoint_every=1")
    assert main.run(["main", *argv]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ddim_jax: error:")]
    assert len(errors) == 1
    assert "the loss stopped being finite at step" in errors[0]
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(final_state(workdir)))
    last_good = checkpoint_steps(workdir)[-1]
    assert f"at step {last_good + 1} " in errors[0]
    assert f"the newest checkpoint is of step {last_good};" in errors[0]


def test_a_loss_that_is_never_finite(tmp_path, capsys):
    """There is no checkpoint to speak of."""
    argv = arguments(tmp_path / "run", "--config.train.learning_rate=1e30", "--config.train.checkpoint_every=9")
    assert main.run(["main", *argv, "--config.train.steps=9"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "; there is no checkpoint yet; try a lower train.learning_rate" in line


def kill_at_random_moments(workdir, seed, kills, devices):
    """Kills a run several times, every other time while it writes a checkpoint; returns how often that was hit."""
    moments = random.Random(seed)
    hits = 0
    for number in range(kills):
        step = (losses(workdir) or [(0, 0)])[-1][0]
        target = min(28, step + moments.randint(1, 7))
        with started(workdir, *KILLED, devices=devices) as (run,):
            run.wait_for(lambda target=target: reached(workdir, target))
            if number % 2 == 0:
                run.wait_for(lambda: bool(half_written(workdir)))
            run.process.kill()
            assert run.wait() == -signal.SIGKILL, run.output
        hits += bool(half_written(workdir))
    return hits


def test_killed_while_writing_a_checkpoint(tmp_path, uninterrupted):
    workdir = tmp_path / "run"
    with started(workdir, *IN_PROCESS, devices=8) as (run,):
        run.wait_for(lambda: bool(half_written(workdir)))
        run.process.kill()
        assert run.wait() == -signal.SIGKILL, run.output
    completed(workdir, *IN_PROCESS, devices=8)
    assert half_written(workdir) == []
    assert_same_run(workdir, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_at_many_moments(tmp_path, devices):
    workdir, reference = tmp_path / "killed", tmp_path / "reference"
    completed(reference, *KILLED, devices=devices)
    hits = kill_at_random_moments(workdir, seed=devices, kills=4, devices=devices)
    completed(workdir, *KILLED, devices=devices)
    assert hits >= 1  # some kill found a checkpoint half-written
    assert_same_run(workdir, reference)


@pytest.mark.slow
def test_sigterm_to_a_process(tmp_path):
    workdir, reference = tmp_path / "stopped", tmp_path / "reference"
    completed(reference, *KILLED)
    with started(workdir, *KILLED) as (run,):
        run.wait_for(lambda: reached(workdir, 7))
        run.process.send_signal(signal.SIGTERM)
        run.expect_success()
    saved = int(re.search(r"after saving step (\d+);", run.output)[1])
    assert checkpoint_steps(workdir)[-1] == saved == losses(workdir)[-1][0] < 30
    completed(workdir, *KILLED)
    assert_same_run(workdir, reference)


# --- sampling -----------------------------------------------------------------------------------


def draw(workdir, **settings):
    """Runs the sampling job in this process; returns its folder."""
    config = read_config(workdir)
    return sample(dataclasses.replace(config, sample=dataclasses.replace(config.sample, **settings)), workdir)


def files(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}


def record(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize(("storage", "files_written"), [("png", 9), ("npz", 1), ("npz", 3)])
def test_sampling_computes_what_is_missing(tmp_path, uninterrupted, monkeypatch, storage, files_written):
    """Stopped in the second of three batches, or when all parts are there, the files are those of an unstopped job."""
    workdir = linked_run(uninterrupted, tmp_path / "run")
    # Other images for each format: the folder depends on what is in it alone.
    settings = {"num": 21, "eta": 1.0, "steps": 3, "batch_size": 1, "format": storage, "seed": storage == "npz"}
    reference = draw(uninterrupted, **settings)

    class Stopped(Exception):
        pass

    def stopping(target):
        calls, original = [], getattr(*target)

        def write(*args, **options):
            calls.append(args)
            if len(calls) > files_written:
                raise Stopped
            return original(*args, **options)

        return write

    target = (sample_job, "save_png") if storage == "png" else (npz, "save_arrays")
    with monkeypatch.context() as patch:
        patch.setattr(*target, stopping(target))
        with pytest.raises(Stopped):
            draw(workdir, **settings)
    folder = draw(workdir, **settings)
    one, other = files(folder), files(reference)
    assert one.keys() == other.keys()
    assert one["grid.png"] == other["grid.png"]
    assert pictures(folder).keys() == set(range(21))
    for index, image in pictures(folder).items():
        np.testing.assert_array_equal(image, pictures(reference)[index])
    assert record(reference)["images_computed"] == 21
    assert record(folder)["images_computed"] == {9: 12, 1: 13, 3: 0}[files_written]
    before = files(folder)
    assert files(draw(workdir, **settings)) == before  # all is there: nothing is touched


def test_png_and_npz_hold_the_same_images(uninterrupted):
    settings = {"num": 10, "start": 5, "eta": 0.5, "steps": 3}
    png, npz = (pictures(draw(uninterrupted, format=storage, **settings)) for storage in ("png", "npz"))
    assert png.keys() == npz.keys() == set(range(5, 15))
    for index, image in png.items():
        np.testing.assert_array_equal(image, npz[index])


def test_batch_size_and_number_of_devices_hardly_change_the_images(tmp_path, uninterrupted, monkeypatch):
    """Also with more devices than images, and with images that do not divide among them."""

    def drawn(num, batch_size):
        folder = draw(uninterrupted, num=num, batch_size=batch_size, eta=1.0, steps=4, seed=3)
        images = pictures(folder)
        folder.rename(tmp_path / str(len(results)))
        assert images.keys() == set(range(num))
        return images

    results = {}
    for batch_size in (64, 1, 7):
        results[f"batch {batch_size}, 8 devices"] = drawn(21, batch_size)
    results["3 images on 8 devices"] = drawn(3, 64)
    monkeypatch.setattr(parallel, "local_devices", lambda: jax.local_devices()[:1])
    results["batch 64, 1 device"] = drawn(21, 64)
    reference = results["batch 64, 8 devices"]
    assert np.mean([(image > 0) & (image < 255) for image in reference.values()]) > 0.9
    for name, images in results.items():
        fraction = np.mean([np.mean(image != reference[index]) for index, image in images.items()])
        print(f"differing bytes, {name}: {fraction:.2g}")
        assert fraction < 1e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["png", "npz"])
def test_killed_sampling(tmp_path, uninterrupted, storage):
    workdir = linked_run(uninterrupted, tmp_path / "run")
    options = [f"--config.sample.{o}" for o in ("num=41", "eta=1.0", "steps=200", "batch_size=2", f"format={storage}")]
    command = (*IN_PROCESS, "--mode=sample", *options)

    def written():
        return sorted(workdir.glob("sample/*/[0-9]*.png")) + sorted(workdir.glob("sample/*/parts/*.npz"))

    for fresh in (1, 3):
        with started(workdir, *command) as (run,):
            enough = len(written()) + fresh
            run.wait_for(lambda enough=enough: len(written()) >= enough)
            run.process.kill()
            assert run.wait() == -signal.SIGKILL, run.output
    assert 0 < len(written()) < 41
    completed(workdir, *command)
    (killed,) = (workdir / "sample").iterdir()

    for folder in ("config.json", "checkpoints"):
        (workdir / folder).unlink()
    reference = linked_run(uninterrupted, tmp_path / "reference")
    completed(reference, *command)
    (whole,) = (reference / "sample").iterdir()
    assert pictures(killed).keys() == pictures(whole).keys() == set(range(41))
    for index, image in pictures(killed).items():
        np.testing.assert_array_equal(image, pictures(whole)[index])
