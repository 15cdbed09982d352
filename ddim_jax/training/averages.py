"""Averages of any width: snapshots of ``train.ema_widths`` on the disk, and weights that are made of them.

``WORKDIR/averages/STEP.safetensors`` holds all tracked averages at one step, ``WIDTH/params/...``, with a checksum and
what they are. A file of another type, width or network than asked for is named, never mixed in. The mathematics is in
``power_average.py``.
"""

import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from ddim_jax.config import Config, TrainConfig
from ddim_jax.errors import UserError
from ddim_jax.files import make_folder, remove_left_over
from ddim_jax.parallel import host_view, is_main_process
from ddim_jax.training.checksums import by_path
from ddim_jax.training.groups import is_due
from ddim_jax.training.power_average import Combination, Profile, combine, gamma_of
from ddim_jax.training.state import PowerTrainState, TrainState
from ddim_jax.weights.array_files import ArrayFile, read_safetensors, write_safetensors
from ddim_jax.workdir import averages_dir

# The text that says what a file holds.
_KEY = "ddim_jax.averages"

# A profile that is missed by more is not what was asked for.
MOST_ERROR = 0.1

# Widths among which the reachable ones are looked for, to tell of them.
_TRIED = tuple(round(number * 0.005, 3) for number in range(1, 57))


class Plan(NamedTuple):
    """How the weights of a checkpoint are averaged with some width.

    Attributes:
        step: of the checkpoint.
        snapshots: steps of the snapshots that are needed, all before that.
        weights: float64, of the averages in these, a row of ``train.ema_widths`` for each; the last row is of those in
            the checkpoint.
        record: what decides the average beside the checkpoint, as JSON's types.
        error: how far the profile is off, see :attr:`~ddim_jax.training.power_average.Combination.error`.
    """

    step: int
    snapshots: list[int]
    weights: np.ndarray
    record: dict[str, Any]
    error: float

    def in_words(self) -> str:
        """What it is made of."""
        count = len(self.snapshots)
        what = f"made of {count:,} snapshot{'' if count == 1 else 's'} and the checkpoint" if count else "tracked"
        error = f"; its profile is {self.error:.2%} off" if self.error else ""
        return f"average of width {self.record['width']:g} at step {self.step:,}: {what}{error}"


# --- while training -----------------------------------------------------------------------------


class AverageSnapshots:
    """Writes the snapshots of a run; process 0 alone does.

    They depend on the step alone, so that a run that was killed writes the same files again.
    """

    def __init__(self, config: Config, workdir: epath.PathLike) -> None:
        """Makes nothing yet.

        Args:
            config: the run, with ``train.ema_widths``.
            workdir: where it is written.
        """
        self._train = config.train
        self._folder = averages_dir(workdir)

    def are_due(self, steps: range) -> bool:
        """Whether a snapshot is due in a group of steps, at whose end it is taken."""
        return is_due(self._train.ema_snapshot_every or self._train.checkpoint_every, steps)

    def write(self, step: int, state: TrainState) -> None:
        """Writes the averages of a state.

        Raises:
            UserError: they cannot be written.
        """
        if not is_main_process():
            return
        assert isinstance(state, PowerTrainState), "of a run with widths"
        dtype = np.dtype(self._train.ema_snapshot_dtype)
        make_folder(self._folder)
        remove_left_over(self._folder)
        arrays = {}
        for width, average in zip(self._train.ema_widths, state.power_averages, strict=True):
            for name, leaf in by_path(average).items():
                arrays[f"{width}/{name}"] = _stored(host_view(leaf), dtype)
        about = {"step": step, "widths": list(self._train.ema_widths), "dtype": dtype.name}
        write_safetensors(_path(self._folder, step), ArrayFile(arrays, {_KEY: json.dumps(about)}))


def _stored(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """The values in the type of the file; what float16 cannot hold, such as a large variance, stays as it is."""
    if dtype == values.dtype or np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        return np.array(values)
    return values.astype(dtype)


def snapshot_bytes(config: Config, state: TrainState) -> int:
    """Size of a snapshot's file; 0 for a run without."""
    if not isinstance(state, PowerTrainState):
        return 0
    size = np.dtype(config.train.ema_snapshot_dtype).itemsize
    return sum(size * int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.power_averages))


def _path(folder: epath.Path, step: int) -> epath.Path:
    return folder / f"{step:08d}.safetensors"


# --- afterwards ---------------------------------------------------------------------------------


def plan_average(workdir: epath.PathLike, config: Config, step: int, width: float) -> Plan:
    """Plans the average of some width at the step of a checkpoint, without reading any weights.

    It is made of the averages in the checkpoint and of the snapshots up to its step; later ones would make the weights
    depend on how long the run went on. Of a width that was tracked it is the checkpoint's, bit by bit.

    Args:
        workdir: of the run.
        config: the run's.
        step: of the checkpoint.
        width: ``sample.ema_width``.

    Raises:
        UserError: the run kept no averages, or no sum of them comes near this width.
    """
    asked, tracked = f"ema_width={width:g}", config.train.ema_widths
    if not tracked:
        raise UserError(
            f"{asked}: the run in workdir {os.fspath(workdir)} kept no averages of which others can be made "
            "(train.ema_widths is empty); leave it out, or train with --config.train.ema_widths='(0.05,0.1)'"
        )
    if step == 0:
        raise UserError(f"{asked}: step 0 has nothing to average; name a later checkpoint")
    steps = [earlier for earlier in _steps(workdir) if earlier < step]
    found = _combination(tracked, [*steps, step], step, width)
    if found.error > MOST_ERROR:
        raise UserError(f"{asked}: {_cannot(workdir, tracked, steps, step, found)}")
    if found.error == 0:
        steps = []
    weights = found.weights.reshape(-1, len(tracked))[-len(steps) - 1 :]
    return Plan(step, steps, weights, {"width": width, "tracked": list(tracked), "snapshots": steps}, found.error)


def averaged_variables(workdir: epath.PathLike, config: Config, state: TrainState, plan: Plan) -> dict[str, Any]:
    """The weights of a plan: ``params`` and ``batch_stats``, float32 NumPy arrays, added up in float64.

    Batch norms' running statistics are averaged as the weights are, as in the average of ``train.ema_decay``. A
    variance that negative terms would bring below that of all snapshots is kept at the least of these.

    Args:
        workdir: of the run.
        config: the run's.
        state: of the checkpoint.
        plan: from :func:`plan_average`.

    Raises:
        UserError: a snapshot is damaged or of another run.
    """
    assert isinstance(state, PowerTrainState), "of a run with widths"
    total: dict[str, np.ndarray] = {}
    least: dict[str, np.ndarray] = {}
    for weight, arrays in zip(plan.weights.ravel(), _sources(workdir, config, state, plan.snapshots), strict=True):
        for name, leaf in arrays.items():
            if weight:
                term = weight * np.asarray(leaf, np.float64)
                total[name] = total[name] + term if name in total else term
            if _is_variance(name):
                least[name] = np.minimum(least.get(name, np.inf), leaf)
    for name, bound in least.items():
        total[name] = np.maximum(total[name], bound)
    like = state.power_averages[0]
    leaves = [total[name].astype(np.float32) for name in by_path(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _combination(tracked: Sequence[float], snapshots: Sequence[int], step: int, width: float) -> Combination:
    profiles = [Profile(earlier, gamma_of(each)) for earlier in snapshots for each in tracked]
    return combine(profiles, Profile(step, gamma_of(width)))


def _cannot(
    workdir: epath.PathLike, tracked: Sequence[float], steps: Sequence[int], step: int, found: Combination
) -> str:
    """Why there is no such average, and which there are."""
    widths = [each for each in _TRIED if _combination(tracked, [*steps, step], step, each).error <= MOST_ERROR]
    there = f"{len(steps):,} snapshot{'' if len(steps) == 1 else 's'} before step {step:,} in {averages_dir(workdir)}"
    return (
        f"the {there} and the checkpoint miss the profile of this width by {found.error:.0%}; "
        + (f"within {MOST_ERROR:.0%} they reach {widths[0]:g} ... {widths[-1]:g}, and " if widths else "")
        + "snapshots nearer to one another (train.ema_snapshot_every) reach further"
    )


def _steps(workdir: epath.PathLike) -> list[int]:
    """Steps of the snapshots of a workdir, oldest first."""
    folder = averages_dir(workdir)
    if not folder.exists():
        return []
    found = (re.fullmatch(r"(\d{8,})\.safetensors", path.name, re.ASCII) for path in folder.iterdir())
    return sorted(int(name[1]) for name in found if name is not None)


def _sources(
    workdir: epath.PathLike, config: Config, state: PowerTrainState, steps: Sequence[int]
) -> Iterator[Mapping[str, np.ndarray]]:
    """Yields the arrays of each average by path, those of the snapshots of these steps first."""
    of_state = [by_path(average) for average in state.power_averages]
    for step in steps:
        arrays = _read(_path(averages_dir(workdir), step), config.train, step)
        for width, like in zip(config.train.ema_widths, of_state, strict=True):
            prefix = f"{width}/"
            mine = {name.removeprefix(prefix): leaf for name, leaf in arrays.items() if name.startswith(prefix)}
            if {name: leaf.shape for name, leaf in mine.items()} != {name: leaf.shape for name, leaf in like.items()}:
                raise UserError(
                    f"snapshot {_path(averages_dir(workdir), step)} is of another network than config.json describes: "
                    "delete it, which leaves fewer to make averages of"
                )
            yield mine
    yield from of_state


def _read(path: epath.Path, train: TrainConfig, step: int) -> dict[str, np.ndarray]:
    remedy = "delete it, which leaves fewer to make averages of"
    try:
        contents = _read_anywhere(path)
        about = json.loads(contents.texts[_KEY])
        if about["step"] != step or tuple(about["widths"]) != train.ema_widths:
            raise ValueError
    except UserError as error:
        raise UserError(f"snapshot {error}; or {remedy}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"snapshot {path} is not one of step {step:,} of this run: {remedy}") from error
    return contents.arrays


def _read_anywhere(path: epath.Path) -> ArrayFile:
    if "://" not in os.fspath(path):
        return read_safetensors(pathlib.Path(path))
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        return read_safetensors(copy)


def _is_variance(name: str) -> bool:
    return name.startswith("batch_stats/") and name.endswith("/variance")
