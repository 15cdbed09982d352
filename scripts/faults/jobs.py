"""Small jobs of every mode, for trials that want each of them."""

import functools
import pathlib
import shutil
import tempfile
from typing import NamedTuple

from faults.trial import TINY, command, expect_success

# Of the run that all jobs are on.
_STEPS = 10


class Job(NamedTuple):
    """A small job of a mode.

    Attributes:
        arguments: beside the workdir, on which :func:`trained_copy` has a run unless it is ``is_new``.
        is_new: whether the workdir must not hold a run.
        folder: what it writes in the workdir, as a pattern.
        is_alone: whether a second one of its kind is refused; others share the work, or do it twice.
    """

    arguments: tuple[str, ...]
    folder: str
    is_new: bool = False
    is_alone: bool = False


def _on_run(mode: str, *more: str) -> tuple[str, ...]:
    return (f"--mode={mode}", "--config.sample.steps=5", *more)


_NUM = 64
_SAMPLE = f"--config.sample.num={_NUM}"
_EVAL = (
    "--config.eval.num=24",
    "--config.eval.extractor=pixels",
    "--config.eval.metrics=('fid',)",
    "--config.eval.steps=(2, 3, 4)",
)

JOBS = {
    "train": Job((*TINY, "--config.train.steps=30", "--config.train.checkpoint_every=5"), "checkpoints", is_alone=True),
    "import": Job((*TINY, "--mode=import"), "checkpoints", is_new=True, is_alone=True),
    "prepare": Job((*TINY, "--config.train.steps=30", "--config.data.cache=disk"), "checkpoints", is_alone=True),
    "sample png": Job(_on_run("sample", _SAMPLE), "sample/*"),
    "sample npz": Job(_on_run("sample", _SAMPLE, "--config.sample.format=npz"), "sample/*", is_alone=True),
    "evaluate": Job(_on_run("evaluate", *_EVAL), "evaluate/*"),
    "likelihood": Job(_on_run("likelihood", "--config.likelihood.num=64"), "likelihood/*", is_alone=True),
    "reconstruct": Job(
        _on_run("reconstruct", "--config.reconstruct.num=8", "--config.reconstruct.steps=(5, 10)"), "reconstruct/*"
    ),
    "interpolate": Job(_on_run("interpolate"), "interpolate/*"),
    "trajectory": Job(_on_run("trajectory", "--config.trajectory.num=4"), "trajectory/*"),
    "edit": Job(_on_run("edit", "--config.edit.num=4", "--config.edit.level=100"), "edit/*"),
    "sweep": Job(_on_run("sweep", "--config.sweep.steps=(2, 5)", "--config.sweep.num=4"), "sweep/*"),
    "stats": Job((*TINY, "--mode=stats", "--config.eval.extractor=pixels"), "stats/*", is_alone=True),
    "export": Job(("--mode=export", "--config.weights.format=npz"), "export/*", is_alone=True),
}


def command_line(name: str, workdir: pathlib.Path) -> tuple[str, ...]:
    """What follows ``python -m ddim_jax`` for a job; prepared images go beside the workdir."""
    more = ()
    if name == "import":
        more = (f"--config.weights.path={_exported()}",)
    if name == "prepare":
        more = (f"--config.data.cache_dir={workdir / 'cache'}",)
    return (*JOBS[name].arguments, *more, f"--workdir={workdir}")


def workdir_for(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Makes the workdir of a job in a folder: a copy of a trained one where the job needs that."""
    return folder / "new" if JOBS[name].is_new else trained_copy(folder / "run")


def trained_copy(workdir: pathlib.Path) -> pathlib.Path:
    """Copies a workdir in which 10 steps were trained; returns the copy."""
    shutil.copytree(_trained(), workdir, dirs_exist_ok=True)
    return workdir


@functools.cache
def _of_all_trials() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="torture-trained-")


@functools.cache
def _trained() -> pathlib.Path:
    workdir = pathlib.Path(_of_all_trials().name) / "run"
    expect_success(command(*TINY, f"--config.train.steps={_STEPS}", f"--workdir={workdir}"))
    return workdir


@functools.cache
def _exported() -> pathlib.Path:
    file = pathlib.Path(_of_all_trials().name) / "weights.npz"
    arguments = ("--mode=export", "--config.weights.format=npz", f"--config.weights.out={file}")
    expect_success(command(*arguments, f"--workdir={_trained()}"))
    return file
