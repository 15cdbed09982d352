"""The loop over training steps, and what happens at which step."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.data.batch_order import steps_for_epochs
from ddim_jax.errors import UserError
from ddim_jax.training.best import BestCheckpoint
from ddim_jax.training.checkpoint import Checkpoints
from ddim_jax.training.host_average import HostAverage
from ddim_jax.training.pictures import TrainingPictures
from ddim_jax.training.program import StepResult, TrainProgram, step_groups
from ddim_jax.training.state import TrainState
from ddim_jax.training.step import shows_image_loss
from ddim_jax.training.validation import Validation
from ddim_jax.writers import MetricWriter, progress


class TrainingLoop:
    """Runs groups of steps (``train.steps_per_call``), and what is due after them.

    The host runs ahead of the devices by a few groups, and hears of a step's losses when it is done: log lines follow
    their steps. Whatever else is due inside a group happens at its end, once all its steps are done, in the order log,
    validation, checkpoint, measurement, picture. So nothing is saved before the losses of all steps up to it are known
    to be finite.
    """

    def __init__(
        self,
        config: Config,
        writer: MetricWriter,
        checkpoints: Checkpoints,
        pictures: TrainingPictures,
        validation: Validation | None,
        best: BestCheckpoint | None,
        average: HostAverage | None,
        total_steps: int,
        num_examples: int,
    ) -> None:
        """Gathers what the loop drives; see the job (``jobs/train.py``), which makes all of it."""
        self._config = config
        self._writer = writer
        self._checkpoints = checkpoints
        self._pictures = pictures
        self._validation = validation
        self._best = best
        self._average = average
        self._total_steps = total_steps
        self._epoch_ends = _epoch_ends(config, num_examples, total_steps)
        self._size = config.train.steps_per_call
        # In groups of many steps two are enough to keep the devices busy. Who wants a line for each step wants it at
        # once: none follows its step by as many as lie between lines.
        most = max(2, parallel.MAX_STEPS_IN_FLIGHT // self._size)
        self._in_flight = parallel.StepsInFlight(min(most, (config.train.log_every - 1) // self._size))
        self._log = _Log(config, writer)
        self.stopped_at: int | None = None

    def run(
        self, program: TrainProgram, state: TrainState, batches: Iterator[Any], start: int, terminated: list[bool]
    ) -> TrainState:
        """Runs steps ``start + 1`` to the last one, or until SIGTERM.

        Args:
            program: the compiled step.
            state: replicated over the devices; without average where the host keeps it.
            batches: of the steps from ``start`` on.
            start: steps done.
            terminated: becomes non-empty when SIGTERM arrives.

        Returns:
            The whole state.

        Raises:
            UserError: the loss stopped being finite.
        """
        train = self._config.train
        bar = progress(self._total_steps, "training", "step", start, parallel.is_main_process())
        with bar:
            for steps in step_groups(start, self._total_steps, self._size):
                state, result = program(state, list(itertools.islice(batches, len(steps))))
                if self._average is not None:
                    self._average.update(steps[0] - 1, state)
                self._take(self._in_flight.add((steps, result)))
                bar.update(len(steps))
                step, last = steps[-1], steps[-1] == self._total_steps
                validate = self._validation is not None and (last or _due(train.validate_every, steps))
                stop = bool(terminated) or parallel.stop_requested_anywhere(step)
                save = last or stop or _due(train.checkpoint_every, steps)
                measure = self._best is not None and (last or _due(train.measure_every, steps))
                picture = self._picture_after(steps)
                if validate or save or measure or picture is not None:
                    self._take(self._in_flight.drain())
                    whole = state if self._average is None else self._average.whole(state)
                    if validate and self._validation is not None:
                        self._writer.scalars(step, self._validation.measure(whole))
                    if save:
                        self._checkpoints.save(step, whole)
                    if measure and self._best is not None:
                        self._best.measure(step, whole, self._writer)
                    if picture is not None and not (stop and not last):
                        self._pictures.draw(step, whole, self._writer, picture)
                if self._best is not None:
                    self._best.collect(self._writer, wait=last or stop)
                if self._log.newest_loss is not None:
                    bar.set_postfix_str(f"loss {self._log.newest_loss:.4g}", refresh=False)
                if stop and not last:
                    self.stopped_at = step
                    break
        self._checkpoints.wait()
        return state if self._average is None else self._average.whole(state)

    def _picture_after(self, steps: range) -> str | None:
        """What the name of the picture due after these steps ends with; None where none is."""
        train = self._config.train
        if train.sample_every_epochs:
            epochs = [self._epoch_ends[step] for step in steps if step in self._epoch_ends]
            return f"_epoch_{epochs[-1]:04g}" if epochs else None
        return "" if _due(train.sample_every, steps) and steps[-1] != self._total_steps else None

    def _take(self, groups: list[tuple[range, StepResult]]) -> None:
        """Hears of finished steps: checks and logs their losses."""
        for steps, result in groups:
            for i, step in enumerate(steps):
                loss, norm = result.metrics.loss[i], result.metrics.grad_norm[i]
                if not (np.isfinite(loss) and np.isfinite(norm)):
                    saved = self._checkpoints.latest_step()
                    raise UserError(
                        f"the loss stopped being finite at step {step} (loss {loss}, gradient norm {norm}); the newest "
                        f"checkpoint is of step {saved}; try a lower train.learning_rate, a longer train.warmup_steps "
                        "or train.grad_clip"
                    )
        self._log.add(groups, self._total_steps)


class _Log:
    """Averages what is told of steps, and writes a line every ``train.log_every`` of them and for the last."""

    def __init__(self, config: Config, writer: MetricWriter) -> None:
        self._config = config
        self._writer = writer
        self._window_start = time.perf_counter()
        self._steps_in_window = 0
        self._losses: list[float] = []
        self._image_losses: list[float] = []
        self._norms: list[float] = []
        self.newest_loss: float | None = None

    def add(self, groups: list[tuple[range, StepResult]], total_steps: int) -> None:
        """Takes steps that were heard of at the same time, in order."""
        every = self._config.train.log_every
        self._steps_in_window += sum(len(steps) for steps, _ in groups)
        rate = self._steps_in_window / (time.perf_counter() - self._window_start)
        written = False
        for steps, result in groups:
            for i, step in enumerate(steps):
                self._losses.append(float(result.metrics.loss[i]))
                self._image_losses.append(float(result.metrics.image_loss[i]))
                self._norms.append(float(result.metrics.grad_norm[i]))
                if step % every == 0 or step == total_steps:
                    self._write(step, float(result.learning_rate[i]), rate)
                    written = True
        if written:
            self._window_start, self._steps_in_window = time.perf_counter(), 0

    def _write(self, step: int, learning_rate: float, rate: float) -> None:
        self.newest_loss = float(np.mean(self._losses))
        image_loss = float(np.mean(self._image_losses))
        self._writer.scalars(
            step,
            {
                "loss": self.newest_loss,
                **({"image_loss": image_loss} if shows_image_loss(self._config) else {}),
                "grad_norm": float(np.mean(self._norms)),
                "learning_rate": learning_rate,
                "steps_per_second": rate,
                "images_per_second": rate * self._config.train.batch_size,
            },
        )
        self._losses, self._image_losses, self._norms = [], [], []


def _due(every: int, steps: range) -> bool:
    """Whether a multiple of ``every`` is among the steps; never for 0."""
    return every > 0 and steps[-1] // every > (steps[0] - 1) // every


def _epoch_ends(config: Config, num_examples: int, total_steps: int) -> dict[int, float]:
    """The steps after which ``train.sample_every_epochs`` asks for a picture, and how many epochs they complete."""
    every = config.train.sample_every_epochs
    ends: dict[int, float] = {}
    for count in itertools.count(1) if every else ():
        step = steps_for_epochs(num_examples, config.train.batch_size, count * every)
        if step > total_steps:
            break
        ends[step] = count * every
    return ends
