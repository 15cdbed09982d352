"""Two jobs on one workdir at once: one writer where two would spoil each other's files, and shared work where not.

Who comes second is told in one line who has the files, and changes nothing; the first loses nothing. A job that was
killed with ``kill -9`` hinders nobody, and one that slept while another took it for dead ends before it writes.
"""

import contextlib
import functools
import itertools
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from faults.jobs import JOBS, command_line, trained_copy, workdir_for
from faults.trial import TINY, Result, Trial, command, expect, expect_one_line, expect_success

_LIMIT_SECONDS = 400.0

# Of jobs that are refused, or find what another one is just making.
_REFUSALS = ("is at work there", "holds a run already", "has checkpoints without config.json")


def trials(long: bool) -> Iterator[Trial]:
    """Who comes second, and in the long run each pair of modes at the same instant."""
    yield Trial("train while a training is at work", _train_twice)
    yield Trial("sample npz while another one is at work; then kill -9", _npz_twice)
    yield Trial("train and sample png at once", functools.partial(_at_once, "train", "sample png"))
    if long:
        yield Trial("an owner that slept", _slept)
        for one, other in itertools.combinations_with_replacement(JOBS, 2):
            yield Trial(f"{one} and {other} at once", functools.partial(_at_once, one, other))


class _Running:
    """A job in a process of its own."""

    def __init__(self, arguments: Sequence[str], log: pathlib.Path) -> None:
        self._log = log
        self._started = time.monotonic()
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ddim_jax", *arguments],
                cwd=pathlib.Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> Result:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_LIMIT_SECONDS)
        expect(self.process.poll() is not None, f"no end after {_LIMIT_SECONDS:.0f} s: {self._log.read_text()[-500:]}")
        return Result(self.process.returncode, self._log.read_text(), time.monotonic() - self._started)

    def wait_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _LIMIT_SECONDS
        while not happened():
            ended = self.process.poll() is not None or time.monotonic() > deadline
            expect(not ended, f"it did not come so far: {self._log.read_text()[-800:]}")
            time.sleep(0.02)


@contextlib.contextmanager
def _started(folder: pathlib.Path, *command_lines: Sequence[str]) -> Iterator[list[_Running]]:
    running = [_Running(line, folder / f"{number}.log") for number, line in enumerate(command_lines)]
    try:
        yield running
    finally:
        for job in running:
            job.process.kill()
            job.process.wait()


def _train_twice(folder: pathlib.Path) -> None:
    workdir = trained_copy(folder / "run")
    long_run = (*TINY, "--config.train.steps=1000000", f"--workdir={workdir}")
    with _started(folder, long_run) as (first,):
        first.wait_until(lambda: _last_step(workdir) > 20)
        second = command(*TINY, "--config.train.steps=40", f"--workdir={workdir}")
        expect_one_line(second, f"(process {first.process.pid})", "since", "is at work there", "another --workdir")
        imported = command(*command_line("import", workdir))
        expect_one_line(imported, f"(process {first.process.pid})", "is at work there")
        first.process.send_signal(signal.SIGTERM)
        expect_success(first.wait())
    steps = _steps(workdir)
    expect(steps == list(range(1, len(steps) + 1)), f"metrics.jsonl lost steps: {steps}")
    expect(max(_saved(workdir)) == steps[-1], "the first one did not save its last step")
    expect_success(command(*TINY, f"--config.train.steps={steps[-1] + 2}", f"--workdir={workdir}"))
    expect(_steps(workdir) == list(range(1, steps[-1] + 3)), "the run did not go on")


def _npz_twice(folder: pathlib.Path) -> None:
    workdir = trained_copy(folder / "run")
    arguments = (
        *("--mode=sample", "--config.sample.format=npz", "--config.sample.steps=200", "--config.sample.batch_size=4"),
        *("--config.sample.num=200", f"--workdir={workdir}"),
    )
    with _started(folder, arguments) as (first,):
        first.wait_until(lambda: any(workdir.glob("sample/*/parts/*.npz")))
        expect_one_line(command(*arguments), f"(process {first.process.pid})", "is at work there")
    # It was killed.
    claims = list(workdir.glob("sample/*/*.claim-*"))
    expect(len(claims) == 1, f"claims: {claims}")
    last = command(*arguments)
    expect_success(last)
    expect("watching" not in last.output, "it waited for a job that was killed")
    expect(not list(workdir.glob("sample/*/*.claim-*")), "a claim stayed")


def _slept(folder: pathlib.Path) -> None:
    """The claim of a stopped training is broken, as after three minutes; it wakes, and must not write."""
    workdir = trained_copy(folder / "run")
    arguments = (*TINY, "--config.train.steps=1000000", "--config.train.checkpoint_every=20", f"--workdir={workdir}")
    with _started(folder, arguments) as (sleeper,):
        sleeper.wait_until(lambda: max(_saved(workdir)) > 20)
        sleeper.process.send_signal(signal.SIGSTOP)
        steps = f"--config.train.steps={max(_saved(workdir)) + 30}"
        expect_success(command(*TINY, steps, f"--workdir={workdir}", limit_seconds=900))
        steps, saved = _steps(workdir), _saved(workdir)
        sleeper.process.send_signal(signal.SIGCONT)
        expect_one_line(sleeper.wait(), "nothing more is written here", statuses=(1,))
    expect((_steps(workdir), _saved(workdir)) == (steps, saved), "it wrote after it woke")


def _at_once(one: str, other: str, folder: pathlib.Path) -> None:
    names = (one, other)
    new = all(JOBS[name].is_new for name in names)
    workdir = workdir_for(one, folder) if new else trained_copy(folder / "run")
    with _started(folder, *(command_line(name, workdir) for name in names)) as running:
        results = [job.wait() for job in running]
    for name, result in zip(names, results, strict=True):
        if result.status == 0:
            expect_success(result)
        else:
            alone = JOBS[name].is_alone
            expect(alone, f"{name} was refused: {result.output[-500:]}")
            expect_one_line(result)
            expect(any(words in result.output for words in _REFUSALS), result.output[-500:])
    of_one_kind = one == other or {one, other} <= {"train", "prepare"}
    refused = sum(result.status != 0 for result in results)
    imports = sum(name == "import" for name in names) if not new else 0
    expect(refused <= max(imports, int(of_one_kind)), f"{refused} of the jobs were refused")
    left = [path for path in workdir.rglob("*") if path.name.endswith(".partial") or ".claim-" in path.name]
    expect(not left, f"left: {left[:5]}")
    if "train" in names:
        steps = _steps(workdir)
        expect(steps == list(range(1, len(steps) + 1)), f"metrics.jsonl lost steps: {steps}")
    # What each was to do is done, or is done now.
    for name in names:
        if name != "import":
            expect_success(command(*command_line(name, workdir)))


def _steps(workdir: pathlib.Path) -> list[int]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [record["step"] for record in map(json.loads, lines) if "loss" in record]


def _last_step(workdir: pathlib.Path) -> int:
    try:
        return max(_steps(workdir), default=0)
    except ValueError:  # a line that is being written
        return 0


def _saved(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
