"""``--mode=train``: train, or resume, until the last step; draw grids on the way and at the end."""

import contextlib
import dataclasses
import itertools
import signal
import time
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config, DataConfig
from ddim_jax.data.pipeline import read_example, steps_for_epochs, train_batches
from ddim_jax.data.prepared import open_images, open_validation
from ddim_jax.data.sources import Source, check_labels
from ddim_jax.data.statistics import pixel_statistics
from ddim_jax.errors import UserError
from ddim_jax.images import as_rgb, grid, labelled_rows, save_png
from ddim_jax.jobs.best import BestCheckpoint
from ddim_jax.jobs.validation import Validation
from ddim_jax.models import build_model, parameter_count
from ddim_jax.sampling.sampler import sampler_for
from ddim_jax.training.checkpoint import Checkpoints, select_weights
from ddim_jax.training.state import TrainState, init_state, learning_rate_schedule, make_optimizer
from ddim_jax.training.step import StepMetrics, make_train_step, shows_image_loss
from ddim_jax.workdir import checkpoint_dir, measured_statistics, prepare_for_training, sample_grid_path
from ddim_jax.writers import MetricWriter, SilentWriter, progress, say


def train(config: Config, workdir: epath.PathLike) -> None:
    """Runs the job.

    A run that was killed, at whatever moment, and is started again goes on from its newest checkpoint and ends with
    the parameters of an uninterrupted run, bit by bit: each step depends on (config, seed, step) alone.

    Args:
        config: the run.
        workdir: where it is written.

    Raises:
        UserError: the workdir, data or config cannot be used, or the loss stopped being finite.
    """
    main_process = parallel.is_main_process()
    devices = parallel.training_devices(config.train.batch_size, config.train.accumulate)
    source, validation_source = _open_sources(config.data)
    check_labels(source, config.model.num_classes)
    config = _with_statistics(config, workdir, source)
    total_steps = _total_steps(config, len(source))
    model = build_model(config, parallel.mean_over_devices)
    pictures = _Pictures(config, model, epath.Path(workdir), total_steps)
    validation = best = None
    if main_process and config.train.validate_every and validation_source is not None:
        validation = Validation(config, model, validation_source)
    # All that a config can get wrong has been tried: only now is anything written.
    prepare_for_training(workdir, config, write=main_process)
    parallel.barrier("workdir")

    optimizer = make_optimizer(config.train, total_steps)
    train_step = parallel.pmap_step(
        make_train_step(config, model, optimizer, parallel.mean_over_devices), devices, donate=True
    )

    with contextlib.ExitStack() as stack:
        if main_process and config.train.measure_every:
            best = stack.enter_context(contextlib.closing(BestCheckpoint(config, model, workdir)))
        checkpoints = stack.enter_context(
            Checkpoints(checkpoint_dir(workdir), config.train.keep_last, config.train.keep_every or None)
        )
        state = init_state(config, model, optimizer)
        saved = checkpoints.latest_step()
        if saved is not None:  # 0 where imported weights do not say how long they were trained
            state = checkpoints.restore(saved, state)
        start = saved or 0
        _announce(config, state, len(source), start, total_steps, devices)
        state = parallel.replicate(state, devices)
        writer: MetricWriter = SilentWriter()
        if main_process:
            writer = stack.enter_context(MetricWriter(workdir, start, config.train.tensorboard))
        if best is not None and start and (start == total_steps or start % config.train.measure_every == 0):
            # The run may have been killed while this was being measured.
            best.measure_if_missing(start, state, writer)
        if start < total_steps:
            loop = _Loop(config, writer, checkpoints, pictures, validation, best, total_steps, len(source))
            with _catch_sigterm() as terminated:
                state = loop.run(train_step, state, source, start, devices, terminated)
            if loop.stopped_at is not None:
                say(f"stopped by SIGTERM after saving step {loop.stopped_at}; start the same command again to go on")
                return
        if main_process:
            pictures.draw_final(state, writer)
        parallel.barrier("final pictures")


def _open_sources(data: DataConfig) -> tuple[Source, Source | None]:
    """Opens training and validation images on process 0 first, which may have to prepare them, then on the others."""
    if not parallel.is_main_process():
        parallel.barrier("data prepared")
    source, validation = open_images(data), open_validation(data)
    if parallel.is_main_process():
        parallel.barrier("data prepared")
    if data.on_error == "fail":
        # A wrong crop or size shows at the first image, before the workdir is touched.
        read_example(source, 0, data)
    return source, validation


def _with_statistics(config: Config, workdir: epath.PathLike, source: Source) -> Config:
    """The config with mean and standard deviation of the data where it leaves them open: the run's, or measured."""
    if config.data.mean:
        return config
    known = measured_statistics(workdir, config)
    mean, std = known or pixel_statistics(source, config.data, progress=parallel.is_main_process())
    return dataclasses.replace(config, data=dataclasses.replace(config.data, mean=mean, std=std))


def _total_steps(config: Config, num_examples: int) -> int:
    if config.train.epochs:
        return steps_for_epochs(num_examples, config.train.batch_size, config.train.epochs)
    return config.train.steps


def _announce(
    config: Config, state: TrainState, num_examples: int, start: int, total_steps: int, devices: parallel.Devices
) -> None:
    if not parallel.is_main_process():
        return
    used = f"{len(devices)} of " if len(devices) < jax.device_count() else ""
    say(
        f"{config.model.name} with {parameter_count(state.params):,} parameters; {num_examples:,} images of "
        f"{config.data.image_size}x{config.data.image_size}x{config.data.channels}; batch {config.train.batch_size} on "
        f"{used}{parallel.device_description()}; "
        + (f"resuming at step {start:,} of {total_steps:,}" if start else f"{total_steps:,} steps")
    )


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


class _Loop:
    """The loop over steps, and what happens at which step.

    Order at a step that is due for all: log, validation, checkpoint, measurement, picture. Nothing is saved before the
    losses of all steps up to it are known to be finite.
    """

    def __init__(
        self,
        config: Config,
        writer: MetricWriter,
        checkpoints: Checkpoints,
        pictures: "_Pictures",
        validation: Validation | None,
        best: BestCheckpoint | None,
        total_steps: int,
        num_examples: int,
    ) -> None:
        self._config = config
        self._writer = writer
        self._checkpoints = checkpoints
        self._pictures = pictures
        self._validation = validation
        self._best = best
        self._total_steps = total_steps
        self._epoch_ends = _epoch_ends(config, num_examples, total_steps)
        self._learning_rate = learning_rate_schedule(config.train, total_steps)
        self._finished: list[StepMetrics] = []
        self.stopped_at: int | None = None

    def run(
        self,
        train_step: Any,
        state: TrainState,
        source: Any,
        start: int,
        devices: parallel.Devices,
        terminated: list[bool],
    ) -> TrainState:
        """Runs steps ``start + 1`` to the last one, or until SIGTERM; returns the state."""
        train = self._config.train
        in_flight = parallel.StepsInFlight()
        local_count = len(devices) // parallel.process_count()
        batches = train_batches(
            source,
            self._config.data,
            seed=self._config.seed,
            batch_size=train.batch_size,
            start_step=start,
            process_index=parallel.process_index(),
            process_count=parallel.process_count(),
        )
        bar = progress(self._total_steps, "training", "step", start, parallel.is_main_process())
        window_start = time.perf_counter()
        with contextlib.closing(batches), bar:
            for step in range(start + 1, self._total_steps + 1):
                batch = parallel.shard(next(batches), local_count)
                state, metrics = train_step(state, batch)
                self._take(in_flight.add((step, metrics)))
                bar.update()
                last = step == self._total_steps
                if last or step % train.log_every == 0:
                    self._take(in_flight.drain())
                    now = time.perf_counter()
                    loss = self._log(step, now - window_start)
                    window_start = now
                    bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
                if self._validation is not None and (last or step % train.validate_every == 0):
                    self._writer.scalars(step, self._validation.measure(state))
                stop = bool(terminated) or parallel.stop_requested_anywhere(step)
                measure = self._best is not None and (last or step % train.measure_every == 0)
                if last or stop or measure or step % train.checkpoint_every == 0:
                    self._take(in_flight.drain())
                if last or stop or step % train.checkpoint_every == 0:
                    self._checkpoints.save(step, state)
                if self._best is not None:
                    if measure:
                        self._best.measure(step, state, self._writer)
                    self._best.collect(self._writer, wait=last or stop)
                if stop and not last:
                    self.stopped_at = step
                    break
                if train.sample_every_epochs:
                    if step in self._epoch_ends:
                        self._pictures.draw(step, state, self._writer, f"_epoch_{self._epoch_ends[step]:04g}")
                elif train.sample_every and step % train.sample_every == 0 and not last:
                    self._pictures.draw(step, state, self._writer)
        self._checkpoints.wait()
        return state

    def _take(self, results: list[tuple[int, StepMetrics]]) -> None:
        for step, metrics in results:
            if not (np.isfinite(metrics.loss) and np.isfinite(metrics.grad_norm)):
                saved = self._checkpoints.latest_step()
                raise UserError(
                    f"the loss stopped being finite at step {step} (loss {metrics.loss}, gradient norm "
                    f"{metrics.grad_norm}); the newest checkpoint is of step {saved}; try a lower "
                    "train.learning_rate, a longer train.warmup_steps or train.grad_clip"
                )
            self._finished.append(metrics)

    def _log(self, step: int, seconds: float) -> float:
        losses = [float(metrics.loss) for metrics in self._finished]
        image_losses = [float(metrics.image_loss) for metrics in self._finished]
        norms = [float(metrics.grad_norm) for metrics in self._finished]
        rate = len(losses) / seconds
        self._writer.scalars(
            step,
            {
                "loss": float(np.mean(losses)),
                **({"image_loss": float(np.mean(image_losses))} if shows_image_loss(self._config) else {}),
                "grad_norm": float(np.mean(norms)),
                "learning_rate": float(np.asarray(self._learning_rate(step - 1))),
                "steps_per_second": rate,
                "images_per_second": rate * self._config.train.batch_size,
            },
        )
        self._finished = []
        return float(np.mean(losses))


class _Pictures:
    """Grids of images drawn from fixed noise, so that successive pictures show the same images improving."""

    def __init__(self, config: Config, model: nn.Module, workdir: epath.Path, total_steps: int) -> None:
        self._config = config
        self._workdir = workdir
        self._total_steps = total_steps
        # Made now, though compiled when first used: a mistake in config.sample must not wait for the first picture.
        num = config.train.sample_num
        self._sampler = sampler_for(config, model, num)
        self._final_samplers = [
            sampler_for(config, model, num, sampler="ddim", steps=steps, eta_per_step=())
            for steps in config.train.final_sample_steps
        ]

    def draw(self, step: int, state: TrainState, writer: MetricWriter, suffix: str = "") -> None:
        """Draws ``samples/step_NNNNNNNN{suffix}.png`` with the settings of ``config.sample``; process 0 alone."""
        if not parallel.is_main_process():
            return
        images = self._sampler.draw(self._weights(state), range(self._config.train.sample_num))
        picture = grid(images)
        save_png(sample_grid_path(self._workdir, step, suffix), picture)
        writer.image(step, "samples", picture)

    def draw_final(self, state: TrainState, writer: MetricWriter) -> None:
        """Draws one picture with a grid for each of ``train.final_sample_steps``, and says where it is."""
        path = sample_grid_path(self._workdir, self._total_steps)
        num = self._config.train.sample_num
        if self._final_samplers and not path.exists():
            rows = []
            for sampler in self._final_samplers:
                steps = sampler.config.sample.steps
                images = sampler.draw(self._weights(state), range(num))
                rows.append((f"DDIM, {sampler.evaluations} steps, eta {self._config.sample.eta:g}", images))
                save_png(sample_grid_path(self._workdir, self._total_steps, f"_ddim_{steps}"), grid(images))
            picture = labelled_rows(rows, columns=max(1, min(16, num // 2)))
            save_png(path, picture)
            writer.image(self._total_steps, "samples", as_rgb(picture))
        say(f"done: {self._total_steps:,} steps")
        for picture_path in sorted((self._workdir / "samples").glob(f"step_{self._total_steps:08d}*.png")):
            say(f"wrote {picture_path}")

    def _weights(self, state: TrainState) -> Any:
        return select_weights(parallel.host_copy(state), self._config.sample.ema)


@contextlib.contextmanager
def _catch_sigterm() -> Iterator[list[bool]]:
    """Yields a list that becomes non-empty when SIGTERM arrives.

    With several processes JAX's own service takes the signal, see ``parallel.stop_requested_anywhere``.
    """
    received: list[bool] = []
    if parallel.process_count() > 1:
        yield received
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)
