"""Checkpoints of a run: the only use of Orbax."""

import contextlib
import errno
import functools
import logging
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import orbax.checkpoint as ocp
from etils import epath

from ddim_jax.config import Config
from ddim_jax.errors import UserError, WriteError, failed_write, write_error
from ddim_jax.memory import return_unused_memory
from ddim_jax.models import build_model
from ddim_jax.parallel import host_copy, is_lost_peer, is_main_process
from ddim_jax.training.state import TrainState, abstract_state, make_optimizer
from ddim_jax.workdir import best_dir, checkpoint_dir, read_config

# How often, and how many seconds apart, it is tried to remove what is still being written.
_REMOVALS = 20
_REMOVAL_SECONDS = 0.1


def newest_step(directory: epath.PathLike) -> int | None:
    """The newest complete checkpoint's step in a folder, which is looked at alone; None when there is none."""
    directory = epath.Path(directory)
    return max(ocp.utils.checkpoint_steps(directory), default=None) if directory.exists() else None


class Checkpoints:
    """The folder ``checkpoints/STEP/`` of a workdir.

    Saving is asynchronous: the state is copied to the host, then written while training goes on. A checkpoint appears
    under its final name once it is whole, so a run killed at any moment finds only good ones.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        keep_last: int | None = None,
        keep_every: int | None = None,
        read_only: bool = False,
    ) -> None:
        """Opens the folder.

        Args:
            directory: ``WORKDIR/checkpoints``.
            keep_last: delete all but this many newest checkpoints; None keeps all.
            keep_every: never delete a checkpoint whose step is a multiple of this.
            read_only: change nothing, so that a run which writes there is not disturbed. Otherwise the folder is
                created if needed, and what a killed run left half-written is deleted.
        """
        logging.getLogger("absl").addFilter(_not_orbax_chatter)
        _ignore_ended_saves()
        # Orbax refuses relative paths.
        path = epath.Path(directory)
        self._directory = path if path.is_absolute() else path.absolute()
        self._failed = False
        with contextlib.nullcontext() if read_only else self._writing():
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep_last,
                    keep_period=keep_every,
                    create=not read_only,
                    cleanup_tmp_directories=not read_only,
                ),
            )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, None when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing ``state``; returns once it is copied and may be donated.

        With several processes all call it; the replicated values are written by process 0.

        Raises:
            WriteError: it, or the one before, cannot be written.
        """
        # Copies of the whole state come and go here: what they took is returned before and after.
        self.wait()
        return_unused_memory()
        with self._writing():
            self._manager.save(step, args=ocp.args.StandardSave(host_copy(state)))  # pyright: ignore[reportCallIssue]
        return_unused_memory()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads the whole state as NumPy arrays.

        Args:
            step: one of :meth:`steps`.
            like: a state, or its shapes (``abstract_state``).

        Raises:
            UserError: there is no such checkpoint, or it is of another network or cannot be read.
        """
        self._require(step)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(like))  # pyright: ignore
        except Exception as error:
            # Arrays are read side by side; of those that fail beside the first, asyncio would print stack traces later.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            # Orbax raises a bare Exception where a file is cut off, and messages of many thousand characters.
            reason = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...")
            raise UserError(
                f"checkpoint {self._directory / str(step)} cannot be restored; if it is damaged, delete that folder to "
                f"go on from an earlier one: {reason}"
            ) from error

    def _require(self, step: int) -> None:
        if step not in self.steps():
            steps = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"no checkpoint of step {step} in {self._directory}; there are: {steps}")

    def wait(self) -> None:
        """Waits until the checkpoint being written is whole.

        Raises:
            WriteError: it cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the checkpoint being written and releases the folder; nothing half-written stays.

        Raises:
            WriteError: it cannot be written.
        """
        try:
            with self._writing():
                self._manager.close()
        finally:
            if self._failed and is_main_process():
                _remove_half_written(self._directory)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Meanwhile what Orbax raises of a disk that cannot be written, from its threads too, is told in one line."""
        try:
            yield
        except Exception as error:
            self._failed = True
            failure = failed_write(error, was_writing=True)
            if failure is None and not self._directory.exists():
                failure = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if failure is None:
                raise
            raise write_error(self._directory, failure) from error

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the folder, also when the run fails, unless the save under way would wait for a lost process.

        Of a run that fails, the first reason counts.
        """
        if not is_lost_peer(error):
            with contextlib.nullcontext() if error is None else contextlib.suppress(WriteError):
                self.close()


def _not_orbax_chatter(record: logging.LogRecord) -> bool:
    if "orbax" not in record.pathname:
        return True
    # What its threads fail with comes to this one too, when it waits for them.
    if record.levelno >= logging.ERROR and record.exc_info:
        return False
    return record.levelno >= logging.WARNING and "Reached preemption sync point" not in record.getMessage()


@functools.cache
def _ignore_ended_saves() -> None:
    """From now on nothing is printed of what TensorStore's threads still hear of a save that has failed and ended.

    They tell an event loop that Orbax has closed, each array's with a stack trace.
    """
    previous_hook = sys.unraisablehook

    def tell(lost: "sys.UnraisableHookArgs") -> None:
        if not (isinstance(lost.exc_value, RuntimeError) and str(lost.exc_value) == "Event loop is closed"):
            previous_hook(lost)

    sys.unraisablehook = tell


def _remove_half_written(directory: epath.Path) -> None:
    """Removes what a failed save has left; threads of it may go on for a moment."""
    for _ in range(_REMOVALS):
        left = list(directory.glob("*.orbax-checkpoint-tmp*")) if directory.exists() else []
        if not left:
            return
        for folder in left:
            with contextlib.suppress(OSError):
                folder.rmtree(missing_ok=True)
        time.sleep(_REMOVAL_SECONDS)


class Trained(NamedTuple):
    """What a workdir holds.

    Attributes:
        config: the run's.
        state: the whole state of one checkpoint, NumPy arrays.
        step: number of training steps done.
    """

    config: Config
    state: TrainState
    step: int


def restore_trained(workdir: epath.PathLike, step: int | Literal["best"] | None = None) -> Trained:
    """Reads a checkpoint of a workdir without changing anything there.

    Args:
        workdir: a folder that ``--mode=train`` or ``--mode=import`` wrote.
        step: step of the checkpoint; the newest when None; ``"best"`` is the one whose samples were measured best.

    Raises:
        UserError: the workdir holds no config or no such checkpoint.
    """
    config = read_config(workdir)
    directory = best_dir(workdir) if step == "best" else checkpoint_dir(workdir)
    if not directory.exists():
        what = " that was measured (train.measure_every)" if step == "best" else ""
        raise UserError(f"no checkpoint{what} in workdir {workdir}: train there first, or name another --workdir")
    like = abstract_state(config, build_model(config), make_optimizer(config.train, 1))
    with Checkpoints(directory, read_only=True) as checkpoints:
        newest = checkpoints.latest_step()
        if newest is None:
            raise UserError(f"no checkpoint in workdir {workdir}: train there first, or name another --workdir")
        step = step if isinstance(step, int) else newest
        return Trained(config, checkpoints.restore(step, like), step)


def select_weights(state: TrainState, ema: bool) -> dict[str, Any]:
    """The variables to run the network with: the moving averages, or the raw parameters."""
    if ema:
        return {"params": state.ema_params, "batch_stats": state.ema_batch_stats}
    return {"params": state.params, "batch_stats": state.batch_stats}
