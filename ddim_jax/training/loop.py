"""The loop over training steps, and what happens at which step."""

import dataclasses
import itertools
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.errors import UserError
from ddim_jax.one_writer import Writing
from ddim_jax.training.averages import AverageSnapshots
from ddim_jax.training.best import BestCheckpoint
from ddim_jax.training.checkpoint import Checkpoints
from ddim_jax.training.groups import is_due, step_groups
from ddim_jax.training.host_average import HostAverage
from ddim_jax.training.log import StepLog
from ddim_jax.training.pictures import TrainingPictures
from ddim_jax.training.program import StepResult, TrainProgram
from ddim_jax.training.state import TrainState
from ddim_jax.training.validation import Validation
from ddim_jax.writers import MetricWriter, progress


class LoopEnd(NamedTuple):
    """What is left when the loop ends.

    Attributes:
        state: whole, its average included.
        stopped_at: the step after which a signal ended the loop; None if it ran to the last one.
    """

    state: TrainState
    stopped_at: int | None


@dataclasses.dataclass(kw_only=True)
class TrainingLoop:
    """Runs groups of steps (``train.steps_per_call``), and what is due after them.

    The host runs ahead of the devices by a few groups, and hears of a step's losses when it is done: log lines follow
    their steps. Whatever else is due inside a group happens at its end, once all its steps are done, in the order log,
    validation, snapshot of averages, checkpoint, measurement, picture. So nothing is saved before the losses of all
    steps up to it are known to be finite.

    Attributes:
        config: the run.
        total_steps: number of steps when it is done.
        writer: where figures and pictures go.
        writing: what this job has that alone may write the workdir.
        checkpoints: where states are saved.
        pictures: draws samples.
        validation: measures the losses on other images; None does without.
        best: measures samples and keeps the best state; None does without.
        average: the moving averages, where the host keeps them.
        snapshots: writes those of ``train.ema_widths``; None without.
    """

    config: Config
    total_steps: int
    writer: MetricWriter
    writing: Writing
    checkpoints: Checkpoints
    pictures: TrainingPictures
    validation: Validation | None
    best: BestCheckpoint | None
    average: HostAverage | None
    snapshots: AverageSnapshots | None = None

    def __post_init__(self) -> None:
        """Starts with no step in flight."""
        train = self.config.train
        # In groups of many steps two are enough to keep the devices busy. Who wants a line for each step wants it at
        # once: none follows its step by as many as lie between lines.
        most = max(2, parallel.MAX_STEPS_IN_FLIGHT // train.steps_per_call)
        self._in_flight = parallel.StepsInFlight(min(most, (train.log_every - 1) // train.steps_per_call))
        self._log = StepLog(self.config, self.writer, self.total_steps)

    def run(
        self, program: TrainProgram, state: TrainState, batches: Iterator[Any], start: int, stop: threading.Event
    ) -> LoopEnd:
        """Runs steps ``start + 1`` to the last one, or until it is told to stop.

        Args:
            program: the compiled step.
            state: replicated over the devices; without average where the host keeps it.
            batches: the batches of the steps from ``start`` on.
            start: number of steps done.
            stop: once it is set, the loop saves after the current group, and stops.

        Raises:
            UserError: the loss stopped being finite.
        """
        stopped_at = None
        with progress(self.total_steps, "training", "step", start, parallel.is_main_process()) as bar:
            for steps in step_groups(start, self.total_steps, self.config.train.steps_per_call):
                state, result = program(state, list(itertools.islice(batches, len(steps))))
                if self.average is not None:
                    self.average.update(steps[0] - 1, state)
                self._take(self._in_flight.add((steps, result)))
                bar.update(len(steps))
                step, last = steps[-1], steps[-1] == self.total_steps
                stopping = stop.is_set() or parallel.stop_requested_anywhere(step)
                self._do_what_is_due(steps, state, stopping)
                if self._log.newest_loss is not None:
                    bar.set_postfix_str(f"loss {self._log.newest_loss:.4g}", refresh=False)
                if stopping and not last:
                    stopped_at = step
                    break
        self.checkpoints.wait()
        return LoopEnd(self._whole(state), stopped_at)

    def _do_what_is_due(self, steps: range, state: TrainState, stopping: bool) -> None:
        """Validates, saves, measures and draws the state after these steps, where that is due."""
        train = self.config.train
        step, last = steps[-1], steps[-1] == self.total_steps
        validate = self.validation is not None and (last or is_due(train.validate_every, steps))
        save = last or stopping or is_due(train.checkpoint_every, steps)
        measure = self.best is not None and (last or is_due(train.measure_every, steps))
        picture = self.pictures.due_after(steps)
        snapshot = self.snapshots is not None and self.snapshots.are_due(steps)
        if validate or save or measure or snapshot or picture is not None:
            self._take(self._in_flight.drain())
            self.writing.check()
            whole = self._whole(state)
            if validate and self.validation is not None:
                self.writer.scalars(step, self.validation.measure(whole))
            if snapshot and self.snapshots is not None:
                # Before the checkpoint that a resumed run may go on from, without coming here again.
                self.snapshots.write(step, whole)
            if save:
                # A resumed run writes the figures of later steps alone.
                self.writer.flush()
                self.checkpoints.save(step, whole)
            if measure and self.best is not None:
                self.best.measure(step, whole, self.writer)
            if picture is not None and (last or not stopping):
                self.pictures.draw(step, whole, self.writer, picture)
        if self.best is not None:
            self.best.collect(self.writer, wait=last or stopping)

    def _whole(self, state: TrainState) -> TrainState:
        return state if self.average is None else self.average.whole(state)

    def _take(self, groups: list[tuple[range, StepResult]]) -> None:
        """Hears of finished steps: checks and logs their losses."""
        for steps, result in groups:
            for i, step in enumerate(steps):
                loss, norm = result.metrics.loss[i], result.metrics.grad_norm[i]
                if not (np.isfinite(loss) and np.isfinite(norm)):
                    saved = self.checkpoints.latest_step()
                    newest = (
                        "there is no checkpoint yet" if saved is None else f"the newest checkpoint is of step {saved}"
                    )
                    raise UserError(
                        f"the loss stopped being finite at step {step} (loss {loss}, gradient norm {norm}); "
                        f"{newest}; try a lower train.learning_rate, a longer train.warmup_steps "
                        "or train.grad_clip"
                    )
        self._log.add(groups)
