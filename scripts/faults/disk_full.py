"""A disk that is full, read-only or gone under each job, in its threads too.

One line with path and remedy, status 1; nothing half-written stays, what was whole stays as it was; and once the disk
is mended, the same command does its work.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from faults.jobs import JOBS, command_line, trained_copy, workdir_for
from faults.trial import Result, Trial, command, expect, expect_one_line, expect_success

_DISK = "12m"

# Bytes that are free when the job starts: it begins to write, and comes to no end.
_FREE = {
    "train": 700_000,
    "import": 200_000,
    "prepare": 60_000,
    "sample png": 60_000,
    "sample npz": 20_000,
    "evaluate": 30_000,
    "export": 60_000,
    "stats": 20_000,
}
_FREE_OF_OTHERS = 10_000

_SHORT = ("train", "sample png", "evaluate")

# Of files that others may read, and of what the trial itself puts there.
_OWN = ("filler",)
# Of these a job changes some while it works, whether it ends well or not.
_GROWING = ("metrics.jsonl", "tensorboard", "config.json", "cache")


def trials(long: bool) -> Iterator[Trial]:
    """Each job on a full and on a read-only disk, and those that take long on one that is removed."""
    for name in JOBS if long else _SHORT:
        if _refusal():
            print(f"disk_full: {name}: left out, since no disk can be mounted here: {_refusal()}", file=sys.stderr)
            continue
        yield Trial(f"{name}, full on the way", functools.partial(_full, name, _FREE.get(name, _FREE_OF_OTHERS)))
        if long:
            yield Trial(f"{name}, full from the start", functools.partial(_full, name, 0))
            yield Trial(f"{name}, read-only", functools.partial(_read_only, name))
    if long and not _refusal():
        yield Trial("train with TensorBoard and measurement, full on the way", _full_with_threads)
    for name in ("train", "sample png", "sample npz", "likelihood", "evaluate") if long else ("train",):
        yield Trial(f"{name}, folder removed", functools.partial(_removed, name))


@functools.cache
def _refusal() -> str:
    """Why no disk can be mounted; empty where it can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _disk(pathlib.Path(folder)):
                return ""
        except (OSError, subprocess.CalledProcessError) as error:
            return " ".join(str(getattr(error, "stderr", b"") or error).split())


@contextlib.contextmanager
def _disk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A disk of 12 MB in a folder."""
    place = folder / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", place], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True, capture_output=True)


def _fill(disk: pathlib.Path, free: int) -> None:
    """Leaves so many bytes of the disk free."""
    usage = shutil.disk_usage(disk)
    (disk / "filler").write_bytes(b"x" * max(0, usage.free - free))


def _full(name: str, free: int, folder: pathlib.Path, more: tuple[str, ...] = ()) -> None:
    with _disk(folder) as disk:
        workdir = workdir_for(name, disk)
        arguments = (*command_line(name, workdir), *more)
        before = _contents(disk)
        _fill(disk, free)
        result = command(*arguments)
        # What is known not to fit is refused before it is begun, as a mistake of who chose the place.
        expect_one_line(result, statuses=(1, 2) if name == "prepare" else (1,))
        _expect_words(result, ("No space left on device", "make space"), ("GiB more", "make space"))
        _expect_nothing_half_written(disk)
        _expect_kept(disk, before)
        (disk / "filler").unlink()
        expect_success(command(*arguments))
        _expect_nothing_half_written(disk)


def _full_with_threads(folder: pathlib.Path) -> None:
    more = (
        "--config.train.tensorboard=true",
        "--config.train.measure_every=5",
        "--config.train.measure_num=16",
        "--config.eval.extractor=pixels",
        "--config.train.sample_every=5",
    )
    _full("train", 900_000, folder, more)


def _read_only(name: str, folder: pathlib.Path) -> None:
    with _disk(folder) as disk:
        workdir = workdir_for(name, disk)
        before = _contents(disk)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True, capture_output=True)
        result = command(*command_line(name, workdir))
        expect_one_line(result, "Read-only file system", "mount it for writing", statuses=(1,))
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True, capture_output=True)
        expect(_contents(disk) == before, "something was written")
        expect_success(command(*command_line(name, workdir)))


# Jobs that do not end before the folder is gone.
_ENDLESS = {
    "train": ("--config.train.steps=1000000", "--config.train.checkpoint_every=50"),
    "sample png": ("--config.sample.num=100000",),
    "sample npz": ("--config.sample.num=100000", "--config.sample.batch_size=8"),
    "likelihood": ("--config.likelihood.num=1797", "--config.sample.batch_size=1"),
    "evaluate": ("--config.eval.num=100000", "--config.eval.keep_images=true"),
}


def _removed(name: str, folder: pathlib.Path) -> None:
    workdir = trained_copy(folder / "run")
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ddim_jax", *command_line(name, workdir), *_ENDLESS[name]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 240
        while process.poll() is None and not _is_at_work(name, workdir):
            expect(time.monotonic() < deadline, f"the job did not begin: {log.read_text()[-500:]}")
            time.sleep(0.05)
        started = time.monotonic()
        # While files appear there, a folder takes several tries.
        while workdir.exists():
            shutil.rmtree(workdir, ignore_errors=True)
        status = process.wait(240)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = Result(status, log.read_text(), time.monotonic() - started)
    expect_one_line(result, "cannot be written", "its folder was removed", statuses=(1,))
    expect(not workdir.exists(), f"the folder was made again: {sorted(_contents(workdir))[:5]}")


def _is_at_work(name: str, workdir: pathlib.Path) -> bool:
    if name == "train":
        return any(int(path.name) > 10 for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    pattern = {"sample npz": "parts/*.npz", "likelihood": "parts/*.npz", "evaluate": "images/*/*/*.png"}
    return any(workdir.glob(f"{JOBS[name].folder}/{pattern.get(name, '*/*.png')}"))


def _contents(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of each file."""
    files = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = pathlib.Path(parent) / name
            if path.name not in _OWN:
                files[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


def _expect_words(result: Result, *choices: tuple[str, ...]) -> None:
    said = any(all(word in result.output for word in words) for words in choices)
    expect(said, f"the line says neither of {choices}: {result.output[-500:]}")


def _expect_kept(disk: pathlib.Path, before: dict[str, str]) -> None:
    after = _contents(disk)
    changed = [
        name
        for name, digest in before.items()
        if after.get(name) != digest and not any(part in _GROWING for part in pathlib.Path(name).parts)
    ]
    expect(not changed, f"changed or gone: {changed[:5]}")


def _expect_nothing_half_written(folder: pathlib.Path) -> None:
    left = [
        path
        for path in folder.rglob("*")
        if path.name.endswith(".partial") or "orbax-checkpoint-tmp" in path.name or ".claim-" in path.name
    ]
    expect(not left, f"half-written: {[str(path) for path in left[:5]]}")
