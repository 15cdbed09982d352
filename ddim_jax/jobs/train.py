"""``--mode=train``: train, or resume, until the last step; draw grids on the way and at the end."""

import concurrent.futures
import contextlib
import dataclasses
from typing import Any

import jax
from etils import epath

from ddim_jax import memory, parallel
from ddim_jax.config import Config, DataConfig
from ddim_jax.configured import build_sampler
from ddim_jax.data.batch_order import BatchOrder, steps_for_epochs
from ddim_jax.data.batches import train_batches
from ddim_jax.data.on_device import lives_on_device, read_device_images, train_selections
from ddim_jax.data.prepared import open_images, open_validation
from ddim_jax.data.reading import read_example
from ddim_jax.data.sources import Source, check_labels
from ddim_jax.data.statistics import pixel_statistics
from ddim_jax.models import build_model, parameter_count
from ddim_jax.training.best import BestCheckpoint, check_metric
from ddim_jax.training.checkpoint import Checkpoints
from ddim_jax.training.host_average import HostAverage
from ddim_jax.training.loop import Duties, TrainingLoop, catching_sigterm
from ddim_jax.training.pictures import TrainingPictures
from ddim_jax.training.program import TrainProgram, compile_ahead, refusing_what_does_not_fit
from ddim_jax.training.state import TrainState, init_state, learning_rate_schedule, make_optimizer
from ddim_jax.training.step import make_train_step
from ddim_jax.training.validation import Validation
from ddim_jax.workdir import checkpoint_dir, measured_statistics, prepare_for_training
from ddim_jax.writers import MetricWriter, SilentWriter, say


def train(config: Config, workdir: epath.PathLike) -> None:
    """Runs the job.

    A run that was killed, at whatever moment, and is started again goes on from its newest checkpoint and ends with
    the parameters of an uninterrupted run, bit by bit: each step depends on (config, seed, step) alone.

    Args:
        config: the run.
        workdir: where it is written.

    Raises:
        UserError: the workdir, data or config cannot be used, a batch does not fit into memory, or the loss stopped
            being finite.
    """
    # What can be refused without the data is refused before they are opened, which may mean to prepare them.
    build_sampler(config)
    check_metric(config)
    main_process = parallel.is_main_process()
    devices = parallel.training_devices(config.train.batch_size, config.train.accumulate)
    free = memory.free_bytes([device for device in devices if device in parallel.local_devices()])
    source, validation_source = _open_sources(config.data)
    check_labels(source, config.model.num_classes)
    config = _with_statistics(config, workdir, source)
    total_steps = _total_steps(config, len(source))
    model = build_model(config, parallel.mean_over_devices, flash_attention=True)
    pictures = TrainingPictures(config, model, epath.Path(workdir), total_steps)
    validation = best = None
    if main_process and config.train.validate_every and validation_source is not None:
        validation = Validation(config, model, validation_source)
    # All that a config can get wrong has been tried: only now is anything written.
    prepare_for_training(workdir, config, write=main_process)
    parallel.barrier("workdir")

    optimizer = make_optimizer(config.train, total_steps)
    on_device = lives_on_device(len(source), config.data, None if devices[0].platform == "cpu" else free)
    on_device = bool(parallel.value_of_main_process(on_device))  # one program for all processes
    program = TrainProgram(
        make_train_step(config, model, optimizer, parallel.mean_over_devices),
        learning_rate_schedule(config.train, total_steps),
        devices,
        images_on_device=on_device,
    )

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(checkpoint_dir(workdir), config.train.keep_last, config.train.keep_every or None)
        )
        saved = checkpoints.latest_step()
        start = saved or 0  # 0 also where imported weights do not say how long they were trained
        compiling = None
        if start < total_steps and parallel.process_count() == 1:
            # Beside the reading of images and checkpoints.
            compiler = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
            compiling = compiler.submit(compile_ahead, program, config, model, optimizer, total_steps, len(source))
        if main_process and config.train.measure_every:
            best = stack.enter_context(contextlib.closing(BestCheckpoint(config, model, workdir)))
        state = init_state(config, model, optimizer)
        if saved is not None:
            state = checkpoints.restore(saved, state)
        _announce(config, state, len(source), start, total_steps, devices)
        writer: MetricWriter = SilentWriter()
        if main_process:
            writer = stack.enter_context(MetricWriter(workdir, start, config.train.tensorboard))
        if best is not None and start and (start == total_steps or start % config.train.measure_every == 0):
            # The run may have been killed while this was being measured.
            best.measure_if_missing(start, state, writer)
        if start < total_steps:
            batches = stack.enter_context(contextlib.closing(_batches(config, source, program, start)))
            average = HostAverage(config.train, state) if config.train.ema_on_host else None
            num_params = parameter_count(state.params)
            with refusing_what_does_not_fit(config, num_params, len(devices), None, free):
                needed = None if compiling is None else compiling.result()
            memory.return_unused_memory()  # of the compiler
            if needed is not None and main_process:
                of_free = "" if free is None else f" of the {memory.in_words(free)} that are free"
                say(f"a step takes {memory.in_words(needed.total)} per device{of_free}")
            state = parallel.replicate(state if average is None else average.part_for_devices(state), devices)
            duties = Duties(writer, checkpoints, pictures, validation, best, average)
            loop = TrainingLoop(config, duties, total_steps, len(source))
            with (
                catching_sigterm() as terminated,
                refusing_what_does_not_fit(config, num_params, len(devices), needed, free),
            ):
                state = loop.run(program, state, batches, start, terminated)
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


def _batches(config: Config, source: Source, program: TrainProgram, start: int) -> Any:
    """This process's batches from step ``start`` on, or the selections that stand for them; to be closed."""
    order = BatchOrder(config.seed, config.train.batch_size, parallel.process_index(), parallel.process_count())
    if not program.images_on_device:
        return train_batches(source, config.data, order, start)
    images, row_of = read_device_images(source, config.data)
    program.place(images)
    return train_selections(row_of, config.data, order, start)
