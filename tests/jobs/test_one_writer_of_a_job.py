"""What each job does where another one is at work on the same files, or the disk cannot be written."""

import errno
import os
import pathlib
import resource
import shutil

import pytest
from small import DIGITS, plain_digits

from ddim_jax import main
from ddim_jax.jobs.train import train
from ddim_jax.one_writer import one_writer
from ddim_jax.workdir import run_in

SAMPLE = ("--mode=sample", "--config.sample.num=4", "--config.sample.steps=2")
NPZ = (*SAMPLE, "--config.sample.format=npz")
LIKELIHOOD = ("--mode=likelihood", "--config.likelihood.num=4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(plain_digits(), workdir)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line(capsys, status, *arguments):
    capsys.readouterr()
    assert main.run(["ddim_jax", *map(str, arguments)]) == status
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("ddim_jax: error: ")]
    return line


def ended_well(*arguments):
    return main.run(["ddim_jax", *map(str, arguments)]) == 0


@pytest.mark.parametrize("mode", ["train", "import"])
def test_a_workdir_has_one_writer(workdir, capsys, mode):
    before = contents(workdir)
    with one_writer(*run_in(workdir)):
        here = contents(workdir)
        line = one_line(
            capsys, 2, *DIGITS, f"--workdir={workdir}", f"--mode={mode}", "--config.train.steps=3",
            "--config.weights.path=x.npz",
        )  # fmt: skip
        assert f"(process {os.getpid()})" in line and "name another --workdir" in line
        assert contents(workdir) == here
    assert contents(workdir) == before


@pytest.mark.parametrize("job", [NPZ, LIKELIHOOD], ids=["sample npz", "likelihood"])
def test_parts_of_one_file_have_one_writer(workdir, capsys, job):
    assert ended_well(*DIGITS, f"--workdir={workdir}", *job)
    mode = job[0].removeprefix("--mode=")
    (folder,) = (workdir / mode).iterdir()
    before = contents(workdir)
    with one_writer(folder, "samples" if mode == "sample" else mode, str(folder), ""):
        assert "is at work there" in one_line(capsys, 2, *DIGITS, f"--workdir={workdir}", *job)
    assert contents(workdir) == before
    assert ended_well(*DIGITS, f"--workdir={workdir}", *job)


def test_images_in_files_of_their_own_are_shared(workdir):
    assert ended_well(*DIGITS, f"--workdir={workdir}", *SAMPLE)
    (folder,) = (workdir / "sample").iterdir()
    (folder / "000001.png").unlink()
    with one_writer(folder, "samples", str(folder), ""):
        assert ended_well(*DIGITS, f"--workdir={workdir}", *SAMPLE)
    assert (folder / "000001.png").exists()


def test_exports_and_statistics_have_one_writer(workdir, tmp_path, capsys):
    out = tmp_path / "out" / "file.npz"
    jobs = (
        ("--mode=export", "--config.weights.format=npz", f"--config.weights.out={out}"),
        ("--mode=stats", "--config.eval.extractor=pixels", f"--config.eval.out={out}"),
    )
    for job in jobs:
        with one_writer(out.parent, out.name, str(out), ""):
            assert "is at work there" in one_line(capsys, 2, *DIGITS, f"--workdir={workdir}", *job)
        assert list(out.parent.iterdir()) == []


def test_a_training_sets_another_run_aside_but_not_its_claim(workdir):
    more = ("--config.train.overwrite=true", "--config.train.batch_size=16", "--config.train.steps=1")
    assert ended_well(*DIGITS, f"--workdir={workdir}", *more)
    assert [path for path in workdir.rglob("*.claim-*") if path.is_file()] == []
    assert len(list(workdir.glob("replaced-*"))) == 1


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_image_that_cannot_be_written_ends_the_job_with_one_line(workdir, monkeypatch, capsys):
    """Files are written by threads."""
    monkeypatch.setattr("PIL.Image.Image.save", full)
    line = one_line(capsys, 1, *DIGITS, f"--workdir={workdir}", *SAMPLE)
    assert ".png cannot be written: No space left on device; make space on that disk" in line
    assert not list(pathlib.Path(workdir).rglob("*.partial"))
    monkeypatch.undo()
    assert ended_well(*DIGITS, f"--workdir={workdir}", *SAMPLE)


def test_a_save_that_fails_in_the_background_ends_training_with_one_line(workdir, capsys):
    steps = ("--config.train.steps=4", "--config.train.checkpoint_every=1")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, so that longer files are errors.
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, limits[1]))
    try:
        line = one_line(capsys, 1, *DIGITS, f"--workdir={workdir}", *steps)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{workdir / 'checkpoints'} cannot be written: File too large" in line
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2"]
    assert ended_well(*DIGITS, f"--workdir={workdir}", *steps)
