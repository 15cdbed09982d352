"""``--mode=import``: make a workdir of weights that another project, or this one, published."""

import contextlib
import time
from typing import Any

import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.errors import UserError
from ddim_jax.files import make_folder
from ddim_jax.models import parameter_count
from ddim_jax.one_writer import check_no_other_writer, one_writer
from ddim_jax.training.checkpoint import Checkpoints, newest_step
from ddim_jax.training.checksums import digest_of_weights
from ddim_jax.training.state import TrainState, fresh_optimizer_state, make_optimizer, with_power_averages
from ddim_jax.weights.download import sha256_of_file
from ddim_jax.weights.forms import Weights, read_weights
from ddim_jax.workdir import (
    checkpoint_dir,
    config_path,
    is_resumed,
    prepare_for_training,
    read_run_record,
    run_in,
    write_run_record,
)
from ddim_jax.writers import say


def import_weights(config: Config, workdir: epath.PathLike) -> None:
    """Reads ``weights.path`` and writes a workdir as training does, on which every job runs.

    The optimiser's state is not taken over: training that goes on from here starts with a fresh one, at the learning
    rate that its schedule has at the step imported. What was imported is recorded in ``WORKDIR/import/run.json``: of
    weights that were fetched also where from, with the commit or the hash, so that the same command means the same
    weights for ever. An import that was killed begins anew; one that is done is left as it is.

    Args:
        config: the command line's config. It must agree with what the file states of its network.
        workdir: a folder without a run, or with this import.

    Raises:
        UserError: the workdir holds a run or another job is at work there, several processes were started, or the file
            cannot be read, holds another network or contradicts the config. Nothing is written then.
    """
    started = time.perf_counter()
    workdir = epath.Path(workdir)
    if parallel.process_count() > 1:
        raise UserError("--mode=import is one process's work: start it without --num_processes and --distributed")
    if not config.weights.path:
        raise UserError(
            "weights.path is empty: name the file or folder to import, or hf:OWNER/NAME, published:NAME, https://..."
        )
    check_no_other_writer(*run_in(workdir))
    _check_free(workdir)
    kept = read_run_record(_record_dir(workdir)).get("origin")
    weights = read_weights(
        config.weights.path, config, config.weights.ema, kept=kept if isinstance(kept, dict) else None
    )
    if config_path(workdir).exists():
        _finish(workdir, weights, started)
        say(f"workdir {workdir} holds {weights.file} already, as step {weights.step:,}")
        return
    state = _state(weights)

    checkpoints = checkpoint_dir(workdir)
    with one_writer(*run_in(workdir)) as writing:
        _check_free(workdir)  # another job may have been here meanwhile
        # The record first: it says whose the checkpoints are, should this be killed. The config last: a folder with one
        # is a run.
        _record(workdir, weights)
        checkpoints.rmtree(missing_ok=True)  # of an import that was killed
        make_folder(checkpoints)
        try:
            with Checkpoints(checkpoints) as manager:
                manager.save(weights.step, state)
            writing.check()
            prepare_for_training(workdir, weights.config)
        except BaseException:
            for folder in (checkpoints, _record_dir(workdir)):
                with contextlib.suppress(OSError):  # what fails now has failed above
                    folder.rmtree(missing_ok=True)
            raise
        _record(workdir, weights, seconds=_seconds_since(started))
    say(
        f"workdir {workdir} holds {config.model.name} with {parameter_count(state.params):,} parameters as step "
        f"{weights.step:,}: go on with --mode=sample, or any other"
    )


def _check_free(workdir: epath.Path) -> None:
    """Refuses a workdir with anything but an import: one that may be this one, or that was killed."""
    record = read_run_record(_record_dir(workdir))
    is_import = record.get("mode") == "import"
    if config_path(workdir).exists():
        if not is_import:
            raise _refused(workdir)
    elif checkpoint_dir(workdir).exists() and not (is_import and "seconds" not in record):
        raise UserError(
            f"workdir {workdir} has checkpoints without config.json: put that back, delete {checkpoint_dir(workdir)}, "
            "or choose another --workdir"
        )


def _finish(workdir: epath.Path, weights: Weights, started: float) -> None:
    """Completes the record of an import that was killed at its very end; refuses a workdir that holds anything else."""
    record = read_run_record(_record_dir(workdir))
    is_untouched = newest_step(checkpoint_dir(workdir)) == weights.step
    if record.get("sha256") != sha256_of_file(weights.file) or not is_untouched:
        raise _refused(workdir)
    # Of one file there may be several imports; earlier versions did not write the hash of what they had taken.
    taken = _taken(weights)
    if any(record.get(key, value) != value for key, value in taken.items()):
        raise _refused(workdir)
    if not is_resumed(workdir, weights.config):
        raise _refused(workdir)
    if "seconds" not in record:
        _record(workdir, weights, seconds=_seconds_since(started))


def _taken(weights: Weights) -> dict[str, Any]:
    """What was taken of a file."""
    return {"averaged": weights.averaged, "weights_sha256": digest_of_weights(weights.variables)}


def _refused(workdir: epath.Path) -> UserError:
    return UserError(f"workdir {workdir} holds a run already: choose another --workdir")


def _seconds_since(started: float) -> float:
    return round(time.perf_counter() - started, 3)


def _state(weights: Weights) -> TrainState:
    """Makes a training state with these weights and a fresh optimiser."""
    averages, raw = weights.variables, weights.raw or weights.variables
    optimizer = make_optimizer(weights.config.train, max(1, weights.config.train.steps))
    state = TrainState(
        step=np.int32(weights.step),
        params=raw["params"],
        opt_state=fresh_optimizer_state(optimizer, raw["params"], weights.step),
        ema_params=averages["params"],
        batch_stats=raw["batch_stats"],
        ema_batch_stats=averages["batch_stats"],
    )
    return with_power_averages(state, weights.config.train, averages["params"], averages["batch_stats"])


def _record_dir(workdir: epath.Path) -> epath.Path:
    return workdir / "import"


def _record(workdir: epath.Path, weights: Weights, **facts: float) -> None:
    """Writes ``run.json``; the ``seconds`` that it took say that all is done."""
    folder = _record_dir(workdir)
    make_folder(folder)
    write_run_record(
        folder,
        weights.config,
        mode="import",
        file=str(weights.file.absolute()),
        sha256=sha256_of_file(weights.file),
        **_taken(weights),
        checkpoint_step=weights.step,
        **({"origin": weights.origin} if weights.origin else {}),
        **facts,
    )
