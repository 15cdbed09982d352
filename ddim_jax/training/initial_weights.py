"""Weights that a new run begins with (``train.init_from``): fine-tuning.

Everything but the weights is the new run's own: steps are counted from 0, and optimiser, learning rate, data, batches
and classes are those of its config. The state of step 0 is saved as a checkpoint, so that the source is read once.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config, with_values
from ddim_jax.errors import UserError
from ddim_jax.training.checkpoint import Checkpoints, restore_trained, select_weights
from ddim_jax.training.state import TrainState, fresh_optimizer_state
from ddim_jax.weights.agreement import agreed_config, deciding_values
from ddim_jax.weights.forms import read_weights
from ddim_jax.weights.shipped import meant_by, shipped_file
from ddim_jax.workdir import best_dir, changes_to_run, checkpoint_dir, config_path
from ddim_jax.writers import say


class InitialWeights(NamedTuple):
    """Weights of a network that is the run's own, but perhaps for the table of its classes, and for what it is told.

    Attributes:
        source: what ``train.init_from`` says.
        config: config of the source's network, with the run's ``data``, ``model`` and ``diffusion`` where they agree.
        raw: ``params`` and ``batch_stats`` to go on from.
        averages: their moving averages; the same where the source has only one of the two.
        step: number of steps that the source was trained; 0 when it does not say.
    """

    source: str
    config: Config
    raw: Mapping[str, Any]
    averages: Mapping[str, Any]
    step: int

    def begin(self, state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
        """Puts the weights into the state of step 0, and says what was taken.

        Args:
            state: from :func:`~ddim_jax.training.state.init_state`; what the source has not stays as it is.
            optimizer: the run's, which starts anew.
        """
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        raw, averages = _filled(variables, self.raw), _filled(variables, self.averages)
        if parallel.is_main_process():
            say(self._what_was_taken(variables))
        return dataclasses.replace(
            state,
            params=raw["params"],
            opt_state=fresh_optimizer_state(optimizer, raw["params"], 0),
            ema_params=averages["params"],
            batch_stats=raw["batch_stats"],
            ema_batch_stats=averages["batch_stats"],
        )

    def _what_was_taken(self, variables: Mapping[str, Any]) -> str:
        ours, theirs = _shapes(variables), _shapes(self.raw)
        anew = [name for name, shape in ours.items() if theirs.get(name) != shape]
        grown = [name for name in anew if _grows(ours[name], theirs.get(name, ()), name.split("/")[-2])]
        anew = [name for name in anew if name not in grown]
        left = [name for name in theirs if name not in ours]
        step = f", step {self.step:,}" if self.step else ""
        return (
            f"begins with the weights of {self.source}{step}: took {len(ours) - len(anew)} of {len(ours)} arrays and "
            f"their moving averages{_in_words(grown)}; {''.join(f'{name}, ' for name in anew)}optimiser, learning rate "
            f"and steps start anew{''.join(f'; {name} is left out' for name in left)}"
        )


def _in_words(grown: list[str]) -> str:
    return f" ({', '.join(grown)}: new inputs begin with zeros)" if grown else ""


def read_initial_weights(config: Config, workdir: epath.PathLike) -> tuple[Config, InitialWeights | None]:
    """Reads ``train.init_from`` if the run is to begin now, and checks that its network is the config's.

    Args:
        config: the run.
        workdir: where it is written; where it has been begun already, the source is not looked at.

    Returns:
        The config, with the source's normalisation where it leaves that open; and the weights, if there are any.

    Raises:
        UserError: there are no such weights, or the config contradicts them.
    """
    source = config.train.init_from
    if not source or not _begins_now(config, workdir):
        return config, None
    # What the rest of the config asks of a network, e.g. to have classes, is not asked of the source's.
    network = Config(data=config.data, model=config.model, diffusion=config.diffusion)
    try:
        weights = _read(source, network)
    except UserError as error:
        raise UserError(f"train.init_from={source}: {error}") from error
    if not config.data.mean:
        taken = weights.config.data
        config = with_values(config, {"data.mean": taken.mean, "data.std": taken.std})
    return config, weights


def _begins_now(config: Config, workdir: epath.PathLike) -> bool:
    """Whether the run starts at step 0, not from a checkpoint of its own."""
    if changes_to_run(workdir, config):
        return config.train.overwrite  # else the workdir is refused
    directory = checkpoint_dir(workdir)
    if not directory.exists():
        return True
    with Checkpoints(directory, read_only=True) as checkpoints:
        return checkpoints.latest_step() is None


def _read(source: str, network: Config) -> InitialWeights:
    """Reads weights from wherever they are."""
    shipped = shipped_file(source)
    of_workdir = None if shipped else checkpoint_named(epath.Path(source).expanduser())
    if of_workdir is not None:
        trained = restore_trained(*of_workdir, together=True)
        agreed = agreed_config(network, deciding_values(trained.config), str(of_workdir[0]), any_classes=True)
        raw, averages = (select_weights(trained.state, ema) for ema in (False, True))
        return InitialWeights(source, agreed, raw, averages, trained.step)
    if shipped is None and (meant := meant_by(source)) is not None:
        raise UserError(f"there is no such file or folder; did you mean '{meant}', a model in the package?")
    weights = read_weights(shipped or source, network, any_classes=True)
    return InitialWeights(source, weights.config, weights.raw or weights.variables, weights.variables, weights.step)


def checkpoint_named(path: epath.Path) -> tuple[epath.Path, Any] | None:
    """The workdir and the step that a path means; None where it is no path of a workdir."""
    named: list[tuple[epath.Path, Any]] = [(path, None)]
    if path.name == "best":
        named.append((path.parent, "best"))
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        named.append((path.parent.parent, int(path.name)))
    return next((each for each in named if _is_workdir(each[0])), None)


def _is_workdir(path: epath.Path) -> bool:
    # A folder of diffusers has a config.json too. Training makes ``samples`` before its first checkpoint.
    others = (checkpoint_dir(path), best_dir(path), path / "samples")
    return config_path(path).exists() and any(folder.exists() for folder in others)


# Layers whose inputs grow by what a network is newly told, and the layer by which a vector is newly heard: its
# parameters begin with zeros there, so that the network begins as the one it comes from.
_GROWING = ("conv_in", "vector_dense_0")
_PYRAMID = "_pyramid"
_NEWLY_HEARD = "vector_dense_1"


def _filled(ours: Any, theirs: Any, layer: str = "") -> Any:
    """A tree of arrays with those of another that have the same path and shape in their place.

    Where inputs are new, the weights of the others are taken, and theirs are zeros.
    """
    if isinstance(ours, Mapping):
        names = {name: layer if name in ("kernel", "bias") else name for name in ours}
        return {name: _filled(value, theirs.get(name, {}), names[name]) for name, value in ours.items()}
    if isinstance(theirs, Mapping):
        return np.zeros_like(ours) if layer == _NEWLY_HEARD else ours
    if np.shape(theirs) == np.shape(ours):
        return np.asarray(theirs, np.float32)
    if _grows(np.shape(ours), np.shape(theirs), layer):
        new = np.shape(ours)[-2] - np.shape(theirs)[-2]
        return np.pad(np.asarray(theirs, np.float32), [(0, 0)] * (np.ndim(theirs) - 2) + [(0, new), (0, 0)])
    return ours


def _grows(ours: tuple[int, ...], theirs: tuple[int, ...], layer: str) -> bool:
    """Whether a kernel differs by a number of new inputs alone."""
    same = len(ours) == len(theirs) and (*ours[:-2], ours[-1]) == (*theirs[:-2], theirs[-1])
    return (layer in _GROWING or layer.endswith(_PYRAMID)) and same and ours[-2] > theirs[-2]


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf) for path, leaf in leaves}
