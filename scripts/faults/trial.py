"""A trial: a fault made on purpose in a run of its own, and the promise that it is held against."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

_REPOSITORY = pathlib.Path(__file__).parent.parent.parent

# The smallest run that has all kinds of layers; see the config.
TINY = (
    f"--config={_REPOSITORY / 'configs' / 'digits.py'}:tiny",
    "--config.model.multipliers=(1,)",
    "--config.model.attention_resolutions=(8,)",
    "--config.train.batch_size=4",
    "--config.train.log_every=1",
    "--config.train.tensorboard=false",
    "--config.train.sample_every=0",
    "--config.train.final_sample_steps=()",
)

# No command of a trial may take longer; what hangs has failed.
_LIMIT_SECONDS = 300.0


class BrokenPromiseError(Exception):
    """What was promised did not hold; the message says what happened instead."""


class Trial(NamedTuple):
    """A fault, and what is done with it.

    Attributes:
        name: the fault in words, one of its kind.
        run: makes the fault in an empty folder, and raises :class:`BrokenPromiseError` where the promise is not held.
    """

    name: str
    run: Callable[[pathlib.Path], None]


class Result(NamedTuple):
    """What a command did.

    Attributes:
        status: its exit status; negative for the signal that ended it.
        output: standard output and standard error together.
        seconds: that it took.
    """

    status: int
    output: str
    seconds: float


def command(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    limit_seconds: float = _LIMIT_SECONDS,
    program: Sequence[str] = ("-m", "ddim_jax"),
) -> Result:
    """Runs ``python -m ddim_jax`` to its end.

    Args:
        arguments: of the command line.
        environment: variables beside those of this process.
        limit_seconds: after which it is killed.
        program: what Python runs.

    Raises:
        BrokenPromiseError: it took longer.
    """
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *program, *arguments],
            cwd=_REPOSITORY,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        tail = (error.stdout or b"").decode(errors="replace")[-500:]
        raise BrokenPromiseError(f"no end after {limit_seconds:.0f} s: {tail}") from error
    return Result(done.returncode, done.stdout.decode(errors="replace"), time.monotonic() - started)


def expect_success(result: Result) -> None:
    """Checks that a command did what it should, without a traceback.

    Raises:
        BrokenPromiseError: it did not.
    """
    if result.status != 0 or "Traceback" in result.output:
        raise BrokenPromiseError(f"status {result.status}: {result.output[-800:]}")


def expect_one_line(result: Result, *words: str, statuses: Sequence[int] = (2,)) -> None:
    """Checks that a command was refused with one clear line.

    Args:
        result: of the command.
        words: that the line must have.
        statuses: exit statuses that are right: 2 for a user's mistake, 1 for a machine that fails.

    Raises:
        BrokenPromiseError: another status, a traceback, or a line that lacks a word.
    """
    lines = [line for line in result.output.splitlines() if line.startswith("ddim_jax: error:")]
    if result.status not in statuses or "Traceback" in result.output or len(lines) != 1:
        raise BrokenPromiseError(f"status {result.status}, {len(lines)} lines of error: {result.output[-800:]}")
    missing = [word for word in words if word not in lines[0]]
    if missing:
        raise BrokenPromiseError(f"the line does not say {', '.join(missing)}: {lines[0]}")


def expect(holds: bool, otherwise: str) -> None:
    """Checks anything else that is promised.

    Raises:
        BrokenPromiseError: it does not hold.
    """
    if not holds:
        raise BrokenPromiseError(otherwise)
