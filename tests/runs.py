"""Real runs for tests: the command line in processes of its own, watched, stopped and killed."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from ddim_jax.images import load_png
from ddim_jax.models import build_model
from ddim_jax.training.checkpoint import Checkpoints
from ddim_jax.training.state import TrainState, abstract_state, make_optimizer
from ddim_jax.workdir import checkpoint_dir, read_config

_REPOSITORY = pathlib.Path(__file__).parent.parent
_TIMEOUT = 240

# The smallest network that has all kinds of layers, a line for each step, no pictures. It predicts x0, since a hardly
# trained network for eps draws black and white pixels, in which no rounding shows.
OVERRIDES = (
    "--config.model.multipliers=(1,)",
    "--config.model.attention_resolutions=(8,)",
    "--config.model.dropout=0.1",
    "--config.diffusion.schedule=linear",
    "--config.diffusion.objective=x0",
    "--config.train.batch_size=4",
    "--config.train.lr_schedule=constant",
    "--config.train.log_every=1",
    "--config.train.tensorboard=false",
    "--config.train.sample_every=0",
    "--config.train.final_sample_steps=()",
)


def linked_run(trained: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    """Makes a workdir of a trained model without its results, and returns it."""
    workdir.mkdir()
    for name in ("config.json", "checkpoints"):
        (workdir / name).symlink_to(trained / name)
    return workdir


def arguments(workdir: pathlib.Path, *more: str) -> list[str]:
    """What follows ``python -m ddim_jax.main``."""
    config = _REPOSITORY / "configs" / "digits.py"
    return [f"--config={config}:tiny", f"--workdir={workdir}", *OVERRIDES, *more]


class Run:
    """One process of a run; its output goes to a file."""

    def __init__(self, argv: list[str], log: pathlib.Path, devices: int) -> None:
        self._log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ddim_jax.main", *argv],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=_REPOSITORY,
                env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait(self) -> int:
        """Waits for the end; returns the exit status, negative for a signal."""
        return self.process.wait(_TIMEOUT)

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Waits until something happened, or the process ended."""
        deadline = time.monotonic() + _TIMEOUT
        while self.process.poll() is None and not happened():
            assert time.monotonic() < deadline, self.output
            time.sleep(0.002)

    def expect_success(self) -> str:
        assert self.wait() == 0, self.output
        return self.output


@contextlib.contextmanager
def started(
    workdir: pathlib.Path, *more: str, processes: int = 1, devices: int = 1, own: list[str] | None = None
) -> Iterator[list[Run]]:
    """Starts a run of one or several processes, and sees to it that none is left; ``own`` in place of a training's."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    runs = []
    try:
        for index in range(processes):
            argv = [*(arguments(workdir) if own is None else own), *more]
            if processes > 1:
                argv += [f"--coordinator=localhost:{port}", f"--num_processes={processes}", f"--process_id={index}"]
            runs.append(Run(argv, workdir.parent / f"{workdir.name}-{index}.log", devices))
        yield runs
    finally:
        for run in runs:
            run.process.kill()
            run.process.wait()


def completed(
    workdir: pathlib.Path, *more: str, processes: int = 1, devices: int = 1, own: list[str] | None = None
) -> list[str]:
    """Runs to the end; returns what each process printed."""
    with started(workdir, *more, processes=processes, devices=devices, own=own) as runs:
        return [run.expect_success() for run in runs]


def losses(workdir: pathlib.Path) -> list[tuple[int, float]]:
    """(step, loss) of each whole line of ``metrics.jsonl``."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    records = [json.loads(line) for line in lines]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def reached(workdir: pathlib.Path, step: int) -> bool:
    """Whether ``step`` has been logged."""
    path = workdir / "metrics.jsonl"
    return path.exists() and any(int(s) >= step for s in re.findall(r'"step": (\d+),', path.read_text()))


def half_written(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoints that do not have their final name."""
    return list((workdir / "checkpoints").glob("*tmp*"))


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def final_state(workdir: pathlib.Path) -> TrainState:
    """The newest checkpoint, whole."""
    config = read_config(workdir)
    like = abstract_state(config, build_model(config), make_optimizer(config.train, config.train.steps))
    with Checkpoints(checkpoint_dir(workdir), read_only=True) as checkpoints:
        return checkpoints.restore(checkpoints.steps()[-1], like)


def digest(state: TrainState) -> str:
    """SHA-256 of all leaves: parameters, optimiser, averages, step."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def pictures(folder):
    """Index to pixels of all images of a sampling job."""
    if (folder / "samples.npz").exists():
        with np.load(folder / "samples.npz") as stored:
            return dict(zip(stored["index"].tolist(), stored["arr_0"], strict=True))
    return {int(path.stem): load_png(path) for path in folder.glob("[0-9]*.png")}


def leaves_by_name(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_training(one, other, learning_rate):
    """Equal losses, and parameters that differ by rounding.

    Adam divides by the gradient's size, so a parameter whose true gradient is 0 moves by rounding noise of the order of
    the learning rate: the biases before a norm and the attention's key biases are left out.
    """
    (state_one, losses_one), (state_other, losses_other) = one, other
    np.testing.assert_allclose(losses_one, losses_other, rtol=2e-4)
    ones, others = leaves_by_name(state_one.params), leaves_by_name(state_other.params)
    for name, value in ones.items():
        if not name.endswith("['bias']"):
            assert np.abs(value - others[name]).mean() < 0.05 * learning_rate, name
