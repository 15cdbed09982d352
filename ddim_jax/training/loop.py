"""The loop over training steps, and what happens at which step."""

import contextlib
import dataclasses
import itertools
import signal
import threading
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


@dataclasses.dataclass(frozen=True)
class Duties:
    """What a training loop drives beside the steps themselves.

    Attributes:
        writer: where losses go.
        checkpoints: where states go.
        pictures: draws them on the way.
        validation: measures the losses on images that training does not see; None where nobody asked for it.
        best: measures the samples, and keeps the best state; None likewise.
        average: the moving average where the host keeps it; None where it is part of the state.
    """

    writer: MetricWriter
    checkpoints: Checkpoints
    pictures: TrainingPictures
    validation: Validation | None = None
    best: BestCheckpoint | None = None
    average: HostAverage | None = None


@contextlib.contextmanager
def catching_sigterm() -> Iterator[threading.Event]:
    """Yields an event that is set when SIGTERM arrives, instead of ending the process.

    With several processes JAX's own service takes the signal, see ``parallel.stop_requested_anywhere``.
    """
    received = threading.Event()
    if parallel.process_count() > 1:
        yield received
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)


class TrainingLoop:
    """Runs groups of steps (``train.steps_per_call``), and what is due after them.

    The host runs ahead of the devices by a few groups, and hears of a step's losses when it is done: log lines follow
    their steps. Whatever else is due inside a group happens at its end, once all its steps are done, in the order log,
    validation, checkpoint, measurement, picture. So nothing is saved before the losses of all steps up to it are known
    to be finite.
    """

    def __init__(self, config: Config, duties: Duties, total_steps: int, num_examples: int) -> None:
        """Prepares a run.

        Args:
            config: the run.
            duties: what the loop drives; the job (``jobs/train.py``) makes all of it.
            total_steps: the last step.
            num_examples: of the data, which make an epoch.
        """
        self._config = config
        self._duties = duties
        self._total_steps = total_steps
        self._epoch_ends = _epoch_ends(config, num_examples, total_steps)
        self._size = config.train.steps_per_call
        # In groups of many steps two are enough to keep the devices busy. Who wants a line for each step wants it at
        # once: none follows its step by as many as lie between lines.
        most = max(2, parallel.MAX_STEPS_IN_FLIGHT // self._size)
        self._in_flight = parallel.StepsInFlight(min(most, (config.train.log_every - 1) // self._size))
        self._log = _Log(config, duties.writer)
        self.stopped_at: int | None = None

    def run(
        self, program: TrainProgram, state: TrainState, batches: Iterator[Any], start: int, terminated: threading.Event
    ) -> TrainState:
        """Runs steps ``start + 1`` to the last one, or until SIGTERM.

        Args:
            program: the compiled step.
            state: replicated over the devices; without average where the host keeps it.
            batches: of the steps from ``start`` on.
            start: steps done.
            terminated: set when SIGTERM arrives, see :func:`catching_sigterm`.

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
                if self._duties.average is not None:
                    self._duties.average.update(steps[0] - 1, state)
                self._take(self._in_flight.add((steps, result)))
                bar.update(len(steps))
                step, last = steps[-1], steps[-1] == self._total_steps
                validate = self._duties.validation is not None and (last or _due(train.validate_every, steps))
                stop = terminated.is_set() or parallel.stop_requested_anywhere(step)
                save = last or stop or _due(train.checkpoint_every, steps)
                measure = self._duties.best is not None and (last or _due(train.measure_every, steps))
                picture = self._picture_after(steps)
                if validate or save or measure or picture is not None:
                    self._take(self._in_flight.drain())
                    whole = state if self._duties.average is None else self._duties.average.whole(state)
                    if validate and self._duties.validation is not None:
                        self._duties.writer.scalars(step, self._duties.validation.measure(whole))
                    if save:
                        self._duties.checkpoints.save(step, whole)
                    if measure and self._duties.best is not None:
                        self._duties.best.measure(step, whole, self._duties.writer)
                    if picture is not None and not (stop and not last):
                        self._duties.pictures.draw(step, whole, self._duties.writer, picture)
                if self._duties.best is not None:
                    self._duties.best.collect(self._duties.writer, wait=last or stop)
                if self._log.newest_loss is not None:
                    bar.set_postfix_str(f"loss {self._log.newest_loss:.4g}", refresh=False)
                if stop and not last:
                    self.stopped_at = step
                    break
        self._duties.checkpoints.wait()
        return state if self._duties.average is None else self._duties.average.whole(state)

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
                    saved = self._duties.checkpoints.latest_step()
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
