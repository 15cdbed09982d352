"""The images that a run trains on: opened for all processes, described, and dealt out in batches."""

import dataclasses
from typing import Any

from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config, ConfigError, DataConfig
from ddim_jax.config.keys import LARGEST_INDEX
from ddim_jax.data.batch_order import BatchOrder, steps_for_epochs
from ddim_jax.data.batches import train_batches
from ddim_jax.data.on_device import lives_on_device, read_device_images, train_selections
from ddim_jax.data.prepared import open_images, open_validation
from ddim_jax.data.reading import read_in_range
from ddim_jax.data.sources import Source
from ddim_jax.data.statistics import pixel_statistics, value_range
from ddim_jax.training.program import TrainProgram
from ddim_jax.workdir import measured_statistics


def open_sources(data: DataConfig) -> tuple[Source, Source | None]:
    """Opens training and validation images on process 0 first, which may have to prepare them, then on the others.

    Raises:
        UserError: they cannot be opened, or the first cannot be read.
    """
    if not parallel.is_main_process():
        parallel.barrier("data prepared")
    source, validation = open_images(data), open_validation(data)
    if parallel.is_main_process():
        parallel.barrier("data prepared")
    if data.on_error == "fail":
        # A wrong crop or size shows at the first image, before the workdir is touched.
        read_in_range(source, 0, data)
    return source, validation


def with_statistics(config: Config, workdir: epath.PathLike, source: Source) -> Config:
    """The config with range, mean and standard deviation of the data where it leaves them open: the run's, or measured.

    The range is left open by floats alone: that of integers is what they can hold.
    """
    data, progress = config.data, parallel.is_main_process()
    is_open = data.dtype == "float32" and not data.range
    if data.mean and not is_open:
        return config
    known = measured_statistics(workdir, config)
    if is_open:
        measured = known.range if known is not None else value_range(source, data, progress)
        data = dataclasses.replace(data, range=measured)
    if not data.mean:
        mean, std = (known.mean, known.std) if known is not None else pixel_statistics(source, data, progress)
        data = dataclasses.replace(data, mean=mean, std=std)
    return dataclasses.replace(config, data=data)


def count_steps(config: Config, num_examples: int) -> int:
    """The steps of the whole run, given as ``train.steps`` or ``train.epochs``.

    Raises:
        ConfigError: more than can be counted.
    """
    if config.train.epochs:
        steps = steps_for_epochs(num_examples, config.train.batch_size, config.train.epochs)
        if steps > LARGEST_INDEX:
            raise ConfigError(f"train.epochs={config.train.epochs:g}: {steps:,} steps; 2^31 - 1 are the most")
        return steps
    return config.train.steps


def live_on_devices(num_examples: int, data: DataConfig, devices: parallel.Devices, free: int | None) -> bool:
    """Whether the images are kept in the devices' memory; the same for all processes, which run one program.

    Args:
        num_examples: number of training images.
        data: the run's ``data``.
        devices: the devices that share a batch.
        free: bytes free on each device of this process; None where not known.
    """
    # A CPU device's memory is the host's, where images are kept anyway.
    there = lives_on_device(num_examples, data, None if devices[0].platform == "cpu" else free)
    return bool(parallel.value_of_main_process(there))


def batches_for(program: TrainProgram, config: Config, source: Source, start: int) -> Any:
    """This process's batches from step ``start`` on, or the selections that stand for them; to be closed.

    Args:
        program: the step, which is given the images where they live on the devices.
        config: the run.
        source: the images.
        start: number of steps done.
    """
    order = BatchOrder(config.seed, config.train.batch_size, parallel.process_index(), parallel.process_count())
    if not program.images_on_device:
        return train_batches(source, config.data, order, start)
    images, row_of = read_device_images(source, config.data)
    program.place(images)
    return train_selections(row_of, config.data, order, start)
