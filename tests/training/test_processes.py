"""Runs of several processes on one machine: the results of one process, and how such runs end."""

import json
import signal

import pytest
from runs import (
    arguments,
    assert_same_training,
    checkpoint_steps,
    completed,
    digest,
    final_state,
    leaves_by_name,
    linked_run,
    losses,
    pictures,
    reached,
    started,
)

from ddim_jax import main
from ddim_jax.errors import PeerLostError, UserError
from ddim_jax.parallel import failing_fast
from ddim_jax.pipeline import load

SHORT = ("--config.train.steps=6", "--config.train.checkpoint_every=4")
LONG = ("--config.train.steps=60", "--config.train.checkpoint_every=20")
UNENDING = (*LONG, "--config.train.steps=100000")
DRAW = ("--mode=sample", "--config.sample.num=13", "--config.sample.eta=1.0", "--config.sample.steps=4")
LEARNING_RATE = 2e-3  # of configs/digits.py


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A run and a sampling job in this process, on its eight devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    assert main.run(["main", *arguments(workdir, *SHORT)]) == 0
    assert main.run(["main", *arguments(workdir, *SHORT, *DRAW)]) == 0
    return workdir


@pytest.fixture(scope="module")
def uninterrupted_pair(tmp_path_factory):
    """A long run of two processes."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    completed(workdir, *LONG, processes=2)
    return workdir


def assert_resumes(workdir, reference):
    """Started again, the run ends like one that was never stopped."""
    saved = checkpoint_steps(workdir)[-1]
    assert saved < 60
    first, _ = completed(workdir, *LONG, processes=2)
    assert f"resuming at step {saved} of 60" in first
    assert losses(workdir) == losses(reference)
    assert digest(final_state(workdir)) == digest(final_state(reference))


def training(workdir):
    return final_state(workdir), [loss for _, loss in losses(workdir)]


def job_folder(workdir):
    (folder,) = (workdir / "sample").iterdir()
    return folder


def assert_same_pictures(one, other):
    """Equal but for at most one value in a thousand that rounding tipped over."""
    ones, others = pictures(one), pictures(other)
    assert ones.keys() == others.keys() == set(range(13))
    differing = sum((ones[index] != others[index]).sum() for index in ones)
    print(f"{differing} of {sum(image.size for image in ones.values())} bytes differ")
    assert differing / sum(image.size for image in ones.values()) < 1e-3


def check_two_processes(tmp_path, one_process, devices):
    workdir = tmp_path / "two"
    first, second = completed(workdir, *SHORT, processes=2, devices=devices)
    assert f"{2 * devices} x cpu in 2 processes" in first
    assert "parameters" not in second  # what concerns the run is said once
    assert [step for step, _ in losses(workdir)] == [1, 2, 3, 4, 5, 6]
    assert checkpoint_steps(workdir) == [4, 6]
    assert_same_training(training(workdir), training(one_process), LEARNING_RATE)

    # The same parameters as the other job's, so that only the drawing differs.
    drawn = linked_run(one_process, tmp_path / "drawn")
    completed(drawn, *SHORT, *DRAW, processes=2, devices=devices)
    assert_same_pictures(job_folder(drawn), job_folder(one_process))
    names = [path.name for path in job_folder(drawn).iterdir()]
    assert sorted(names) == sorted([*(f"{i:06d}.png" for i in range(13)), "grid.png", "run.json"])
    facts = json.loads((job_folder(drawn) / "run.json").read_text())
    assert (facts["images"], facts["images_computed"]) == (13, 13)


@pytest.mark.slow
def test_two_processes_train_and_draw_like_one(tmp_path, one_process):
    check_two_processes(tmp_path, one_process, devices=1)


@pytest.mark.slow
def test_two_processes_with_two_devices_each(tmp_path, one_process):
    check_two_processes(tmp_path, one_process, devices=2)


@pytest.mark.slow
def test_two_processes_with_images_on_their_devices_and_groups_of_steps(tmp_path, one_process):
    faster = ("--config.data.cache=device", "--config.train.steps_per_call=2")
    completed(tmp_path / "two", *SHORT, *faster, processes=2)
    assert checkpoint_steps(tmp_path / "two") == [4, 6]
    assert_same_training(training(tmp_path / "two"), training(one_process), LEARNING_RATE)


@pytest.mark.slow
def test_two_processes_keep_the_averages_of_one(tmp_path, one_process):
    kept = ("--config.train.ema_widths=(0.05,0.1)", "--config.train.ema_snapshot_every=2")
    completed(tmp_path / "run", *SHORT, *kept, processes=2)
    state = final_state(tmp_path / "run")
    assert_same_training(training(one_process), (state, training(tmp_path / "run")[1]), LEARNING_RATE)
    assert sorted(path.name[:8] for path in (tmp_path / "run" / "averages").iterdir()) == [
        f"{step:08d}" for step in (2, 4, 6)
    ]
    drawn = completed(tmp_path / "run", "--config.sample.ema_width=0.1", *DRAW, processes=2)
    assert len(drawn) == 2
    tracked = load(tmp_path / "run", ema_width=0.1)
    for name, leaf in leaves_by_name(tracked.params).items():
        assert (leaf == leaves_by_name(state.power_averages[1]["params"])[name]).all()


@pytest.mark.slow
def test_two_processes_write_one_npz(tmp_path, one_process):
    workdir = linked_run(one_process, tmp_path / "drawn")
    completed(workdir, *SHORT, *DRAW, "--config.sample.format=npz", processes=2)
    assert sorted(path.name for path in job_folder(workdir).iterdir()) == ["grid.png", "run.json", "samples.npz"]
    assert_same_pictures(job_folder(workdir), job_folder(one_process))


@pytest.mark.slow
@pytest.mark.parametrize("receiver", [0, 1])
def test_sigterm_to_one_process_stops_all_at_the_same_step(tmp_path, uninterrupted_pair, receiver):
    workdir = tmp_path / "run"
    with started(workdir, *UNENDING, processes=2) as runs:
        runs[0].wait_for(lambda: reached(workdir, 7))
        runs[receiver].process.send_signal(signal.SIGTERM)
        outputs = [run.expect_success() for run in runs]
    saved = losses(workdir)[-1][0]
    assert checkpoint_steps(workdir)[-1] == saved
    for output in outputs:
        assert f"stopped by SIGTERM after saving step {saved}; start the same command again" in output
    assert_resumes(workdir, uninterrupted_pair)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_killed_the_other_ends_and_the_run_resumes(tmp_path, uninterrupted_pair, victim):
    workdir = tmp_path / "run"
    with started(workdir, *UNENDING, processes=2) as runs:
        runs[0].wait_for((workdir / "checkpoints" / "20").exists)
        runs[victim].process.kill()
        survivor = runs[1 - victim]
        status = survivor.wait()
    if status == 1:
        assert "another one died or cannot be reached; start the same commands again" in survivor.output
    else:
        # Process 0 holds JAX's coordination service, which may abort the others before they can speak for themselves.
        assert (victim, status) == (0, -signal.SIGABRT)
        assert "This most likely indicates that another task died" in survivor.output
    assert_resumes(workdir, uninterrupted_pair)


@pytest.mark.slow
def test_sigterm_ends_a_sampling_process(tmp_path, one_process):
    workdir = linked_run(one_process, tmp_path / "drawn")
    many = ("--config.sample.num=100000", "--config.sample.batch_size=4")
    with started(workdir, *SHORT, *DRAW, *many, processes=2) as runs:
        runs[0].wait_for(lambda: any(workdir.glob("sample/*/*/[0-9]*.png")))
        for run in runs:
            run.process.send_signal(signal.SIGTERM)
        assert all(run.wait() != 0 for run in runs)
        assert -signal.SIGTERM in [run.wait() for run in runs]


@pytest.mark.slow
def test_a_mistake_that_all_processes_make_ends_all_with_status_2(tmp_path):
    with started(tmp_path / "run", "--config.train.batch_size=5", processes=2) as runs:
        for run in runs:
            assert run.wait() == 2, run.output
            assert "train.batch_size=5 must be divisible by 2 processes" in run.output


def test_with_one_process_errors_propagate():
    reported = []
    with pytest.raises(UserError, match="no such luck"), failing_fast(reported.append):
        raise UserError("no such luck")
    assert reported == []


def test_a_lost_process_is_no_mistake_of_the_user():
    assert (UserError.status, PeerLostError.status) == (2, 1)


@pytest.mark.slow
def test_all_processes_go_on_from_the_checkpoint_before_a_damaged_one(tmp_path):
    workdir = tmp_path / "run"
    completed(workdir, *SHORT, processes=2)
    finished = digest(final_state(workdir))
    checksums = workdir / "checkpoints" / "6" / "default" / "checksums.json"
    checksums.write_text(checksums.read_text()[:-20])
    first, second = completed(workdir, *SHORT, processes=2)
    assert "6 is damaged: checksums.json is not what was saved; step 4 is taken instead" in first
    assert "damaged" not in second
    assert "resuming at step 4 of 6" in first
    assert checkpoint_steps(workdir) == [4, 6]
    assert (workdir / "checkpoints" / "6.damaged").is_dir()
    assert digest(final_state(workdir)) == finished
