"""The network that a student learns from (``distill.teacher``): its weights, and what tells it from another."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from ddim_jax.config import Config, DistillConfig
from ddim_jax.errors import UserError
from ddim_jax.training.checkpoint import restore_trained, select_weights
from ddim_jax.training.checksums import digest_of_weights
from ddim_jax.training.initial_weights import checkpoint_named
from ddim_jax.weights.array_files import read_safetensors
from ddim_jax.weights.description import KEY, Description
from ddim_jax.weights.forms import read_weights
from ddim_jax.weights.shipped import shipped_file
from ddim_jax.workdir import read_config


class Teacher(NamedTuple):
    """A trained network.

    Attributes:
        config: of its run.
        variables: its weights, the moving averages.
        step: number of steps that it was trained; 0 when it does not say.
        sha256: of the weights.
    """

    config: Config
    variables: Any
    step: int
    sha256: str


def read_teacher(named: str, step: int | None = None) -> Teacher:
    """Reads a teacher; all processes of the run call this, and get the same one.

    Args:
        named: a workdir, its ``best`` or ``checkpoints/STEP``, or a model that comes with the package.
        step: of its checkpoint, where the name says none; the newest when None.

    Raises:
        UserError: there is no such teacher, or it cannot be read.
    """
    shipped = shipped_file(named)
    if shipped is not None:
        weights = read_weights(shipped, None)
        return _teacher(weights.config, weights.variables, weights.step)
    workdir, of_name = _workdir_and_step(named)
    trained = restore_trained(workdir, step if of_name is None else of_name, together=True)
    return _teacher(trained.config, select_weights(trained.state, ema=True), trained.step)


def config_of_teacher(named: str) -> Config:
    """The config of a teacher's run, see :func:`read_teacher`, but for what it may have been distilled from itself.

    Raises:
        UserError: there is none.
    """
    shipped = shipped_file(named)
    if shipped is not None:
        # The arrays are left alone: JAX must not be used before its devices are chosen.
        return Description.from_json(read_safetensors(shipped).texts[KEY], named).config
    return dataclasses.replace(read_config(_workdir_and_step(named)[0]), distill=DistillConfig())


def is_workdir_of(named: str, workdir: epath.PathLike) -> bool:
    """Whether a teacher, see :func:`read_teacher`, lies in a workdir."""
    found = None if shipped_file(named) else checkpoint_named(epath.Path(named).expanduser())
    return found is not None and found[0].resolve() == epath.Path(workdir).resolve()


def _workdir_and_step(named: str) -> tuple[epath.Path, Any]:
    found = checkpoint_named(epath.Path(named).expanduser())
    if found is None:
        raise UserError("no workdir of a trained or imported network")
    return found


def _teacher(config: Config, variables: Any, step: int) -> Teacher:
    return Teacher(config, jax.tree.map(np.asarray, variables), step, digest_of_weights(variables))
