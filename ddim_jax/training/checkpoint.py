"""Checkpoints of a run: the only use of Orbax.

With the arrays their checksums are written, and compared when they are read (``checksums.py``). What is damaged is
named; who asked for no step in particular gets the newest checkpoint that is whole.
"""

import dataclasses
import logging
import textwrap
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals, Future

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.errors import UserError
from ddim_jax.memory import return_unused_memory
from ddim_jax.models import build_model
from ddim_jax.parallel import host_copy, is_lost_peer
from ddim_jax.training import checksums
from ddim_jax.training.state import TrainState, abstract_state, make_optimizer
from ddim_jax.weights.shapes import different_shapes, name_first
from ddim_jax.workdir import best_dir, checkpoint_dir, read_config
from ddim_jax.writers import say

# How Orbax's readers say that a file may not be read, or that memory is short: which is no damage.
_NO_DAMAGE = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED")

# What Orbax calls the one thing that a checkpoint of ours has in it.
_ITEM = "default"


class DamagedCheckpointError(UserError):
    """A checkpoint that is not what was saved, or cannot be read; another may serve."""


class _CheckedHandler(ocp.StandardCheckpointHandler):
    """Orbax's way to write a tree of arrays, with their checksums in a file beside them.

    Orbax gives the folder its final name when all files are written, this one among them: no checkpoint that was saved
    so is ever without, and what deletes it deletes both. Other programs, and versions before, pass the file over.
    """

    async def async_save(
        self, directory: Any, item: Any = None, save_args: Any = None, args: ocp.args.StandardSave | None = None
    ) -> list[Future] | None:
        assert args is not None, "the form that CheckpointManager calls"
        futures = await super().async_save(directory, item, save_args, args)
        if not parallel.is_main_process():
            return futures
        state = args.item

        async def write() -> None:
            # In a thread of its own, while others write the arrays.
            (directory / checksums.FILE_NAME).write_text(checksums.to_json(checksums.checksums_of(state)))

        return [*(futures or []), CommitFutureAwaitingContractedSignals(write(), name="checksums")]


@ocp.args.register_with_handler(_CheckedHandler, for_save=True)
@dataclasses.dataclass
class _CheckedSave(ocp.args.StandardSave):
    """What is written: a tree of NumPy arrays that nobody changes any more."""


@ocp.args.register_with_handler(_CheckedHandler, for_restore=True)
@dataclasses.dataclass
class _CheckedRestore(ocp.args.StandardRestore):
    """What is read: a tree of the same form."""


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
        # Orbax refuses relative paths.
        path = epath.Path(directory)
        self._directory = path if path.is_absolute() else path.absolute()
        self._read_only = read_only
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
        """
        # Copies of the whole state come and go here: what they took is returned before and after.
        self.wait()
        return_unused_memory()
        self._manager.save(step, args=_CheckedSave(host_copy(state)))  # pyright: ignore[reportCallIssue]
        return_unused_memory()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads the whole state as NumPy arrays, and compares them with their checksums.

        A checkpoint without checksums, of a version that wrote none, is read as it is.

        Args:
            step: one of :meth:`steps`.
            like: a state, or its shapes (``abstract_state``).

        Raises:
            UserError: there is no such checkpoint, or it is of another network.
            DamagedCheckpointError: it cannot be read, or is not what was saved.
        """
        if step not in self.steps():
            steps = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"no checkpoint of step {step} in {self._directory}; there are: {steps}")
        folder = self._directory / str(step)
        written = self._written_checksums(folder)
        if written is not None:
            _check_network(folder, {name: checksum.shape for name, checksum in written.items()}, like)
        try:
            state: Any = self._manager.restore(step, args=_CheckedRestore(like))  # pyright: ignore
        except MemoryError:
            raise
        except Exception as error:
            # Arrays are read side by side; of those that fail beside the first, asyncio would print stack traces later.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            # Orbax raises a bare Exception where a file is cut off, and messages of many thousand characters.
            reason = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...")
            harmless = isinstance(error, PermissionError) or any(sign in str(error) for sign in _NO_DAMAGE)
            kind = UserError if harmless else DamagedCheckpointError
            raise kind(f"checkpoint {folder} cannot be restored: {reason}") from error
        _check_network(folder, {name: leaf.shape for name, leaf in checksums.by_path(state).items()}, like)
        if written is not None:
            changed = checksums.changed_arrays(written, checksums.checksums_of(state))
            if changed:
                raise DamagedCheckpointError(
                    f"checkpoint {folder} is damaged: not what was saved are {name_first(changed)}"
                )
        return state

    def _written_checksums(self, folder: epath.Path) -> dict[str, checksums.Checksum] | None:
        path = folder / _ITEM / checksums.FILE_NAME
        if not path.exists():
            return None
        try:
            return checksums.from_json(path.read_bytes())
        except ValueError as error:
            raise DamagedCheckpointError(
                f"checkpoint {folder} is damaged: {path.name} is not what was saved"
            ) from error

    def restore_newest(self, like: TrainState, together: bool = False) -> tuple[int, TrainState]:
        """Reads the newest checkpoint that is whole, and says which ones are not.

        Where it may write, those are set aside as ``STEP.damaged``, so that the step can be saved again.

        Args:
            like: as for :meth:`restore`.
            together: all processes of the run call this, and get the same checkpoint.

        Returns:
            Its step, and the state.

        Raises:
            UserError: no checkpoint is whole, they are of another network, or there is none.
        """
        damaged: dict[int, UserError] = {}
        found: tuple[int, TrainState] | None = None
        for step in reversed(self.steps()):
            try:
                found = step, self.restore(step, like)
                break
            except DamagedCheckpointError as error:
                damaged[step] = error
        if together:
            # What is damaged for one process only, by its own memory or network, is left to none to decide.
            chosen = parallel.value_of_main_process(-1 if found is None else found[0])
            if chosen >= 0 and (found is None or found[0] != chosen):
                self._manager.reload()
                found = chosen, self.restore(chosen, like)
            if chosen < 0:
                found = None
        if found is None:
            raise self._none_is_whole(damaged)
        self._tell_of_damaged(damaged, found[0])
        if together and not self._read_only:
            parallel.barrier("damaged checkpoints set aside")
            self._manager.reload()
        return found

    def _none_is_whole(self, damaged: dict[int, UserError]) -> UserError:
        if not damaged:
            return UserError(f"no checkpoint in {self._directory} can be restored")
        (newest, error), others = next(iter(damaged.items())), list(damaged)[1:]
        steps = f" (nor can those of the steps {', '.join(map(str, others))})" if others else ""
        return UserError(f"{error}{steps}; put a copy of {self._directory / str(newest)} back, or name another workdir")

    def _tell_of_damaged(self, damaged: dict[int, UserError], chosen: int) -> None:
        """Says which checkpoints were passed over, and sets them aside."""
        if not damaged or not parallel.is_main_process():
            return
        for step, error in damaged.items():
            kept = ""
            if not self._read_only:
                aside = self._free_name(step)
                try:
                    (self._directory / str(step)).rename(aside)
                except OSError as failure:
                    raise UserError(
                        f"{error}; it cannot be renamed to {aside.name}: {failure.strerror or failure}"
                    ) from failure
                kept = f"; it is set aside as {aside.name}"
            say(f"warning: {error}; step {chosen} is taken instead{kept}")
        if not self._read_only:
            self._manager.reload()

    def _free_name(self, step: int) -> epath.Path:
        """A name that no listing of checkpoints takes for one."""
        names = [f"{step}.damaged", *(f"{step}.damaged-{number}" for number in range(2, 1000))]
        return next(path for path in (self._directory / name for name in names) if not path.exists())

    def wait(self) -> None:
        """Waits until the checkpoint being written is whole."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the checkpoint being written and releases the folder."""
        self._manager.close()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the folder, also when the run fails, unless the save under way would wait for a lost process."""
        if not is_lost_peer(error):
            self.close()


def _check_network(folder: epath.Path, shapes: dict[str, tuple[int, ...]], like: TrainState) -> None:
    """Compares the shapes in a checkpoint with those of the run's network and optimiser.

    Raises:
        UserError: they differ; the message names the first ones.
    """
    ours = {name: leaf.shape for name, leaf in checksums.by_path(like).items()}
    if different := different_shapes(shapes, ours):
        raise UserError(
            f"checkpoint {folder} is of another network or optimizer than config.json describes: "
            f"{name_first(different)}; put the config.json back that it was trained with"
        )


def _not_orbax_chatter(record: logging.LogRecord) -> bool:
    if "orbax" not in record.pathname:
        return True
    return record.levelno >= logging.WARNING and "Reached preemption sync point" not in record.getMessage()


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


def restore_trained(
    workdir: epath.PathLike, step: int | Literal["best"] | None = None, together: bool = False
) -> Trained:
    """Reads a checkpoint of a workdir without changing anything there.

    Args:
        workdir: a folder that ``--mode=train`` or ``--mode=import`` wrote.
        step: step of the checkpoint; the newest that is whole when None; ``"best"`` is the one whose samples were
            measured best.
        together: all processes of the run call this, and get the same checkpoint.

    Raises:
        UserError: the workdir holds no config or no such checkpoint, or that one is damaged.
    """
    config = read_config(workdir)
    directory = best_dir(workdir) if step == "best" else checkpoint_dir(workdir)
    if not directory.exists():
        what = " that was measured (train.measure_every)" if step == "best" else ""
        raise UserError(f"no checkpoint{what} in workdir {workdir}: train there first, or name another --workdir")
    like = state_shapes(config)
    with Checkpoints(directory, read_only=True) as checkpoints:
        newest = checkpoints.latest_step()
        if newest is None:
            raise UserError(f"no checkpoint in workdir {workdir}: train there first, or name another --workdir")
        if isinstance(step, int):
            return Trained(config, checkpoints.restore(step, like), step)
        found, state = checkpoints.restore_newest(like, together)
        return Trained(config, state, found)


def state_shapes(config: Config) -> TrainState:
    """The shapes of the state that a run of this config saves."""
    return abstract_state(config, build_model(config), make_optimizer(config.train, 1))


def select_weights(state: TrainState, ema: bool) -> dict[str, Any]:
    """The variables to run the network with: the moving averages, or the raw parameters."""
    if ema:
        return {"params": state.ema_params, "batch_stats": state.ema_batch_stats}
    return {"params": state.params, "batch_stats": state.batch_stats}
