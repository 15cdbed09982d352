"""Training killed at random moments and started again: it ends with the state of a run that was not."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from ddim_jax.models import build_model
from ddim_jax.training.checkpoint import Checkpoints
from ddim_jax.training.state import abstract_state, make_optimizer
from ddim_jax.workdir import checkpoint_dir, read_config
from faults.trial import TINY, Trial, expect

_REPOSITORY = pathlib.Path(__file__).parent.parent.parent
_STEPS = 40
_KILLS_OF_A_RUN = 3
_LIMIT_SECONDS = 300.0

# Ways to train that differ in what is under way when the process dies: settings, and number of processes.
_WAYS: dict[str, tuple[tuple[str, ...], int]] = {
    "plain": ((), 1),
    "images in memory": (("--config.data.cache=host",), 1),
    "images on the device": (("--config.data.cache=device",), 1),
    "images prepared on disk": (("--config.data.cache=disk",), 1),
    "images read anew": (("--config.data.cache=none",), 1),
    "groups of four steps": (("--config.train.steps_per_call=4",), 1),
    "average on the host": (("--config.train.ema_on_host=true",), 1),
    "averages of any width": (("--config.train.ema_widths=(0.05,0.1)", "--config.train.ema_snapshot_every=3"), 1),
    "measuring": (
        (
            "--config.train.measure_every=8",
            "--config.train.measure_num=8",
            "--config.eval.extractor=pixels",
            "--config.train.measure_metric=fid",
        ),
        1,
    ),
    "two devices": (("--config.train.cpu_devices=2",), 1),
    "two processes": (("--config.train.cpu_devices=1",), 2),
}


def trials(long: bool) -> Iterator[Trial]:
    """Yields runs of every way, each killed a few times; of two ways, or more than a hundred kills."""
    ways = list(_WAYS) if long else ["groups of four steps", "two devices"]
    for seed in range(4 if long else 1):
        for way in ways:
            yield Trial(f"{way}, {_KILLS_OF_A_RUN} kills, {seed}", functools.partial(_killed_run, way, seed))


def _killed_run(way: str, seed: int, folder: pathlib.Path) -> None:
    state, figures, seconds = _uninterrupted(way)
    moments = random.Random(f"{way} {seed}")
    workdir = folder / "run"
    for _ in range(_KILLS_OF_A_RUN):
        with _started(way, workdir) as processes:
            # From the start of Python to after the last step.
            until = time.monotonic() + moments.uniform(0.1, 1.1) * seconds
            while time.monotonic() < until and any(process.poll() is None for process in processes):
                time.sleep(0.01)
            processes[moments.randrange(len(processes))].kill()
    with _started(way, workdir) as processes:
        statuses = [process.wait(_LIMIT_SECONDS) for process in processes]
    output = (folder / "run-0.log").read_text()
    expect(not any(statuses), f"statuses {statuses} after {_KILLS_OF_A_RUN} kills: {output[-800:]}")
    expect(_figures(workdir) == figures, "metrics.jsonl has other losses than that of a run that was not killed")
    expect(_state(workdir) == state, "the final state is not that of a run that was not killed")
    left = [path.name for path in workdir.rglob("*") if "tmp" in path.name or path.name.endswith(".partial")]
    expect(not left, f"left behind: {left}")


@functools.cache
def _uninterrupted(way: str) -> tuple[str, list[tuple[int, float]], float]:
    """Returns the final state, the losses and the seconds of a run that nothing disturbed."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        started = time.monotonic()
        with _started(way, workdir) as processes:
            statuses = [process.wait(_LIMIT_SECONDS) for process in processes]
        expect(not any(statuses), (workdir.parent / "run-0.log").read_text()[-800:])
        return _state(workdir), _figures(workdir), time.monotonic() - started


@contextlib.contextmanager
def _started(way: str, workdir: pathlib.Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Starts the processes of a run, and sees to it that none is left."""
    settings, count = _WAYS[way]
    arguments = [*TINY, f"--workdir={workdir}", f"--config.train.steps={_STEPS}", "--config.train.checkpoint_every=4"]
    # The cache of prepared images is part of what is killed.
    environment = {**os.environ, "DDIM_JAX_CACHE": str(workdir.parent / "cache")}
    processes = []
    try:
        for flags in _connected(count):
            log = (workdir.parent / f"run-{len(processes)}.log").open("w")
            command = [sys.executable, "-m", "ddim_jax", *arguments, *settings, *flags]
            processes.append(
                subprocess.Popen(command, cwd=_REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
            log.close()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _connected(count: int) -> list[Sequence[str]]:
    """The flags by which processes find one another."""
    if count == 1:
        return [()]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"--coordinator=localhost:{free.getsockname()[1]}"
    return [(address, f"--num_processes={count}", f"--process_id={index}") for index in range(count)]


def _figures(workdir: pathlib.Path) -> list[tuple[int, float]]:
    """(step, loss) of each line of ``metrics.jsonl`` that has a loss."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def _state(workdir: pathlib.Path) -> str:
    """SHA-256 of the newest checkpoint's parameters, optimiser, averages and step."""
    config = read_config(workdir)
    like = abstract_state(config, build_model(config), make_optimizer(config.train, config.train.steps))
    with Checkpoints(checkpoint_dir(workdir), read_only=True) as checkpoints:
        step = checkpoints.steps()[-1]
        state = checkpoints.restore(step, like)
    expect(step == _STEPS, f"the newest checkpoint is of step {step}")
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        sha.update(f"{jax.tree_util.keystr(path)} {np.asarray(leaf).dtype} {np.shape(leaf)}".encode())
        sha.update(np.asarray(leaf).tobytes())
    return sha.hexdigest()
