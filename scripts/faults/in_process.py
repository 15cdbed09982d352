"""Commands that are run within this process, where starting Python with JAX would take longer than the trial."""

import contextlib
import functools
import io
import os
import pathlib
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable

from ddim_jax import main
from ddim_jax.errors import UserError
from faults.trial import TINY, Result, expect, expect_success

STEPS = 2
MEASURED = (
    "--config.train.measure_every=1",
    "--config.train.measure_num=8",
    "--config.train.measure_metric=fid",
    "--config.eval.extractor=pixels",
)


def in_process(*arguments: str) -> Result:
    """Runs ``python -m ddim_jax`` with these arguments, without a process of its own."""
    started, output = time.monotonic(), io.StringIO()
    os.environ.setdefault("DDIM_JAX_CACHE", tempfile.mkdtemp(prefix="torture-cache-"))
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status = main.run(["ddim_jax", *arguments])
        except BaseException:  # what would end the program with a stack trace
            status = 1
            traceback.print_exc(file=output)
    return Result(status, output.getvalue(), time.monotonic() - started)


def call(work: Callable[[], object]) -> Result:
    """Runs a part of a command; what it raises is told as the command would tell it."""
    started, output, status = time.monotonic(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            work()
        except UserError as error:
            status = error.status
            print(f"ddim_jax: error: {error}")
        except BaseException:
            status = 1
            traceback.print_exc(file=output)
    return Result(status, output.getvalue(), time.monotonic() - started)


@functools.cache
def _trained_once() -> pathlib.Path:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="torture-trained-"))
    workdir = folder / "run"
    settings = ("--config.model.init=torch", f"--config.train.steps={STEPS}", *MEASURED)
    expect_success(in_process(*TINY, *settings, f"--workdir={workdir}"))
    return workdir


@functools.cache
def _done_once(job: tuple[str, ...]) -> pathlib.Path:
    workdir = trained(pathlib.Path(tempfile.mkdtemp(prefix="torture-done-")))
    expect_success(in_process(f"--workdir={workdir}", *job))
    return workdir


def trained(folder: pathlib.Path, *job: str) -> pathlib.Path:
    """Puts a workdir of a tiny trained model, which has been measured, into a folder.

    Args:
        folder: where it becomes ``run``.
        job: arguments of a job that has been done there.
    """
    workdir = folder / "run"
    shutil.copytree(_done_once(job) if job else _trained_once(), workdir)
    return workdir


def train_again(workdir: pathlib.Path) -> Result:
    """Gives the command of :func:`trained` again."""
    settings = ("--config.model.init=torch", f"--config.train.steps={STEPS}", *MEASURED)
    return in_process(*TINY, *settings, f"--workdir={workdir}")


def contents(folder: pathlib.Path, *left_out: str) -> dict[str, bytes]:
    """All files under a folder, but for those of some names, which say when and how fast they were made."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in left_out)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def expect_same(after: dict[str, bytes], before: dict[str, bytes]) -> None:
    """Checks that files are those that there were.

    Raises:
        BrokenPromiseError: they are not.
    """
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    expect(not names, f"not as before: {', '.join(names[:5])}")
