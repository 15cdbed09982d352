"""What a training run says: what it is going to do, then the figures of its steps."""

import time

import jax
import numpy as np

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.models import parameter_count
from ddim_jax.training.program import StepResult
from ddim_jax.training.state import TrainState
from ddim_jax.training.step import shows_image_loss
from ddim_jax.writers import MetricWriter, say


def announce(
    config: Config, state: TrainState, num_examples: int, start: int, total_steps: int, devices: parallel.Devices
) -> None:
    """Says, once for all processes, what is trained on what.

    Args:
        config: the run.
        state: the state at its start.
        num_examples: number of training images.
        start: number of steps done.
        total_steps: number of steps when it is done.
        devices: the devices that share a batch.
    """
    if not parallel.is_main_process():
        return
    height, width, channels = config.data.image_shape
    used = f"{len(devices)} of " if len(devices) < jax.device_count() else ""
    say(
        f"{config.model.name} with {parameter_count(state.params):,} parameters; {num_examples:,} images of "
        f"{width}x{height}x{channels}; batch {config.train.batch_size} on "
        f"{used}{parallel.device_description()}; "
        + (f"resuming at step {start:,} of {total_steps:,}" if start else f"{total_steps:,} steps")
    )


class StepLog:
    """Averages what is told of steps, and writes a line every ``train.log_every`` of them and for the last."""

    def __init__(self, config: Config, writer: MetricWriter, total_steps: int) -> None:
        """Starts with no step.

        Args:
            config: the run.
            writer: where the lines go.
            total_steps: number of steps when the run is done.
        """
        self._config = config
        self._writer = writer
        self._total_steps = total_steps
        self._window_start = time.perf_counter()
        self._steps_in_window = 0
        self._losses: list[float] = []
        self._image_losses: list[float] = []
        self._norms: list[float] = []
        self._quartiles: list[tuple[np.ndarray, np.ndarray]] = []
        self.newest_loss: float | None = None

    def add(self, groups: list[tuple[range, StepResult]]) -> None:
        """Takes steps that were heard of at the same time, in order."""
        every = self._config.train.log_every
        self._steps_in_window += sum(len(steps) for steps, _ in groups)
        rate = self._steps_in_window / (time.perf_counter() - self._window_start)
        written = False
        for steps, result in groups:
            for i, step in enumerate(steps):
                metrics = result.metrics
                self._losses.append(float(metrics.loss[i]))
                self._image_losses.append(float(metrics.image_loss[i]))
                self._quartiles.append((metrics.quartile_loss[i], metrics.quartile_share[i]))
                self._norms.append(float(metrics.grad_norm[i]))
                if step % every == 0 or step == self._total_steps:
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
                **self._by_quartile(),
                "grad_norm": float(np.mean(self._norms)),
                "learning_rate": learning_rate,
                "steps_per_second": rate,
                "images_per_second": rate * self._config.train.batch_size,
            },
        )
        self._losses, self._image_losses, self._norms, self._quartiles = [], [], [], []

    def _by_quartile(self) -> dict[str, float]:
        """Mean losses by quarter of the noise levels; of those that no example was in, none."""
        loss, share = np.sum(np.asarray(self._quartiles, np.float64), axis=0)
        return {f"loss_quartile_{place + 1}": loss[place] / share[place] for place in range(4) if share[place] > 0}
