"""Jobs killed at random moments: the same command, given again, ends with what an uninterrupted one has made."""

import functools
import json
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image
from tensorboardX.proto import event_pb2

import ddim_jax
from ddim_jax.npz import load_arrays
from ddim_jax.weights.array_files import read_safetensors
from faults.in_process import contents, trained
from faults.trial import TINY, Trial, expect

_REPOSITORY = pathlib.Path(__file__).parent.parent.parent
_LIMIT_SECONDS = 300.0

# What says when and how fast something was made.
_TIMES = re.compile(r'"(?:seconds|\w+_seconds|images_computed|rows_measured)": [\d.]+,?')


class _Job(NamedTuple):
    """A command that is killed.

    Attributes:
        arguments: of it.
        begin: puts what it needs into a folder.
        result: what it has made, in a form that two of them can be compared by.
        grown: files that tell that it has begun, as a pattern in the folder.
    """

    arguments: tuple[str, ...]
    begin: Callable[[pathlib.Path], object]
    result: Callable[[pathlib.Path], object]
    grown: str


def trials(long: bool) -> Iterator[Trial]:
    """Yields each job, killed at another moment each time."""
    names = list(_JOBS) if long else ["import", "sample as npz", "training with TensorBoard", "stats"]
    for seed in range(6 if long else 1):
        for name in names:
            yield Trial(f"{name}, {seed}", functools.partial(_killed, name, seed))


def _killed(name: str, seed: int, folder: pathlib.Path) -> None:
    job = _JOBS[name]
    expected, first, last = _uninterrupted(name)
    job.begin(folder)
    moments = random.Random(f"{name} {seed}")
    process = _started(job, folder)
    try:
        # From shortly before it writes something until after its end.
        _wait(process, first - 0.3 + moments.uniform(0, 1) * (last - first + 0.6))
        process.kill()
    finally:
        process.kill()
        process.wait()
    status, output = _completed(job, folder)
    expect(status == 0 and "Traceback" not in output, f"status {status} after a kill: {output[-800:]}")
    expect(job.result(folder) == expected, "what was made is not what an uninterrupted command has made")
    left = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith((".partial", ".parts"))]
    expect(not left, f"left behind: {left[:4]}")


@functools.cache
def _uninterrupted(name: str) -> tuple[object, float, float]:
    """Returns the result of a command that nothing disturbed, and after how many seconds it began to write, and ended.

    The second of two is timed, which finds its programs compiled as those do that are killed.
    """
    job = _JOBS[name]
    result, first, last = None, 0.0, 0.0
    for _ in range(2):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            folder = pathlib.Path(place)
            job.begin(folder)
            process, started = _started(job, folder), time.monotonic()
            first = 0.0
            while process.poll() is None and time.monotonic() - started < _LIMIT_SECONDS:
                if not first and any(folder.glob(job.grown)):
                    first = time.monotonic() - started
                time.sleep(0.01)
            last = time.monotonic() - started
            process.kill()
            output = (folder / "log").read_text(errors="replace")
            expect(process.wait() == 0, f"{name} fails without a kill: {output[-800:]}")
            result = job.result(folder)
    return result, first or last, last


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        time.sleep(0.005)


def _started(job: _Job, folder: pathlib.Path) -> subprocess.Popen[bytes]:
    arguments = [argument.replace("FOLDER", str(folder)) for argument in job.arguments]
    environment = {**os.environ, "DDIM_JAX_CACHE": str(folder / "cache")}
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ddim_jax", *arguments],
            cwd=_REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _completed(job: _Job, folder: pathlib.Path) -> tuple[int, str]:
    process = _started(job, folder)
    try:
        status = process.wait(_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        status = 124
    finally:
        process.kill()
        process.wait()
    return status, (folder / "log").read_text(errors="replace")


# --- what is compared ---------------------------------------------------------------------------


def _files(pattern: str, folder: pathlib.Path) -> dict[str, object]:
    """Files of a pattern, or under folders of it, by name: images byte by byte, arrays by value."""
    found: dict[str, object] = {}
    for place in sorted(folder.glob(pattern)):
        for name, data in (contents(place) if place.is_dir() else {"": place.read_bytes()}).items():
            path = place / name if name else place
            if path.suffix == ".npz":
                arrays = load_arrays(path)
                found[str(path.relative_to(folder))] = {key: _comparable(value) for key, value in arrays.items()}
            elif path.suffix == ".safetensors":
                # The order in which its writer puts texts is not the same twice.
                read = read_safetensors(path)
                arrays = {key: _comparable(value) for key, value in read.arrays.items()}
                found[str(path.relative_to(folder))] = arrays, read.texts
            elif path.suffix == ".json":
                found[str(path.relative_to(folder))] = _TIMES.sub("", data.decode()).replace(str(folder), "")
            else:
                found[str(path.relative_to(folder))] = data
    return found


def _comparable(array: np.ndarray) -> object:
    return array.shape, array.dtype.str, array.tobytes()


def _weights(folder: pathlib.Path) -> object:
    """The parameters and averages of an imported workdir, and its config."""
    pipe = ddim_jax.load(folder / "new")
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(pipe.variables)]
    record = json.loads((folder / "new" / "import" / "run.json").read_text())
    expect("seconds" in record, "run.json does not say that the import is done")
    return leaves, pipe.step, _files("new/config.json", folder)


def _rows(folder: pathlib.Path) -> object:
    results = {path.name: json.loads(path.read_text()) for path in folder.glob("run/evaluate/*/rows/*.json")}
    tables = [path.name for path in folder.glob("run/evaluate/*/*") if path.is_file()]
    return {name: result["figures"] for name, result in results.items()}, sorted(tables)


def _curves(folder: pathlib.Path) -> object:
    """The losses of a run; that TensorBoard's files hold each of them is a promise of its own."""
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["loss"] for record in records if "loss" in record}
    shown: dict[int, float] = {}
    for path in sorted((folder / "run" / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        for event in _events(path.read_bytes()):
            if event.HasField("session_log"):
                shown = {step: value for step, value in shown.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == "loss":
                    shown[event.step] = value.simple_value
    missing = sorted(losses.keys() - shown.keys())
    expect(not missing, f"TensorBoard's files lack the steps {missing[:5]} of {len(losses)}")
    wrong = [step for step, value in shown.items() if np.float32(losses[step]) != np.float32(value)]
    expect(not wrong, f"TensorBoard's files have other losses of the steps {wrong[:5]}")
    return losses


def _events(data: bytes) -> Iterator[Any]:
    """Yields the whole events of a file; the last one of a killed run may be cut."""
    while len(data) > 12:
        (length,) = struct.unpack_from("<Q", data)
        if len(data) < length + 16:
            return
        yield event_pb2.Event.FromString(data[12 : 12 + length])  # pyright: ignore[reportAttributeAccessIssue]
        data = data[16 + length :]


# --- the jobs -----------------------------------------------------------------------------------


def _with_export(folder: pathlib.Path) -> None:
    workdir = trained(folder, "--mode=export", "--config.weights.format=diffusers")
    (out,) = (workdir / "export").iterdir()
    shutil.move(out, folder / "weights")


def _nothing(folder: pathlib.Path) -> None:
    del folder


def _with_images(folder: pathlib.Path) -> None:
    (folder / "images").mkdir()
    for index in range(600):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index:03d}.png")
        # The name of a folder of prepared images depends on when these were changed.
        os.utime(folder / "images" / f"{index:03d}.png", (1e9, 1e9))


_RUN = "--workdir=FOLDER/run"
_SAMPLE = (_RUN, "--mode=sample", "--config.sample.num=60", "--config.sample.steps=40", "--config.sample.batch_size=4")
_JOBS = {
    "import": _Job(
        (
            *("--config=FOLDER/run/config.json", "--workdir=FOLDER/new", "--mode=import"),
            "--config.weights.path=FOLDER/weights",
        ),
        _with_export,
        _weights,
        "new/import/*",
    ),
    **{
        f"export as {form}": _Job(
            (_RUN, "--mode=export", f"--config.weights.format={form}"),
            trained,
            functools.partial(_files, "run/export/*"),
            "run/export/*",
        )
        for form in ("npz", "safetensors", "diffusers")
    },
    "preparation": _Job(
        (
            *TINY,
            *("--workdir=FOLDER/run", "--config.data.source=folder", "--config.data.path=FOLDER/images"),
            *("--config.data.cache=disk", "--config.data.resize=bicubic", "--config.data.crop=center"),
            *("--config.train.steps=1", "--config.model.num_classes=0"),
        ),
        _with_images,
        functools.partial(_files, "cache/prepared/*/*.npy"),
        "cache/prepared/*",
    ),
    "stats": _Job(
        (_RUN, "--mode=stats", "--config.eval.extractor=pixels", "--config.eval.batch_size=2"),
        trained,
        functools.partial(_files, "run/stats/*.npz"),
        "run/stats/*",
    ),
    "sample": _Job(_SAMPLE, trained, functools.partial(_files, "run/sample/*/*.png"), "run/sample/*"),
    "sample as npz": _Job(
        (*_SAMPLE, "--config.sample.format=npz"),
        trained,
        functools.partial(_files, "run/sample/*/samples.npz"),
        "run/sample/*",
    ),
    "evaluate": _Job(
        (
            *(_RUN, "--mode=evaluate", "--config.eval.num=40", "--config.eval.extractor=pixels"),
            *("--config.eval.steps=(4,8)", "--config.eval.samplers=('ddim',)", "--config.eval.etas=(0.0,)"),
            *("--config.eval.metrics=('fid',)", "--config.sample.batch_size=4"),
        ),
        trained,
        _rows,
        "run/evaluate/*",
    ),
    "likelihood": _Job(
        (_RUN, "--mode=likelihood", "--config.likelihood.num=60", "--config.sample.batch_size=2"),
        trained,
        functools.partial(_files, "run/likelihood/*/likelihood.*"),
        "run/likelihood/*",
    ),
    "reconstruct": _Job(
        (_RUN, "--mode=reconstruct", "--config.reconstruct.num=8", "--config.reconstruct.steps=(5,10,20)"),
        trained,
        functools.partial(_files, "run/reconstruct/*/*.png"),
        "run/reconstruct/*",
    ),
    "training with TensorBoard": _Job(
        (
            *(*TINY, _RUN, "--config.train.tensorboard=true", "--config.train.steps=60"),
            "--config.train.checkpoint_every=7",
        ),
        _nothing,
        _curves,
        "run/metrics.jsonl",
    ),
}
