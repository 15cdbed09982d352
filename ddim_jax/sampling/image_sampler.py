"""Images by index: image i depends on (weights, settings, seed, i) and on nothing else."""

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from ddim_jax import parallel
from ddim_jax.config import Config, Role, SampleConfig, keys_of
from ddim_jax.configured import build_sampler
from ddim_jax.diffusion.table import as_data
from ddim_jax.memory import check_room, power_of_two_below
from ddim_jax.models import Model
from ddim_jax.sampling.programs import Given, Items, image_program, numbers_only
from ddim_jax.sharded_map import BatchSize, ShardedMap

# Pixels that keep a device busy: larger batches draw no more images a second, and need more memory. The cores of a CPU
# are shared by its devices.
_BUSY_PIXELS = 2**22
_BUSY_PIXELS_OF_CPU = 2**15
_MOST_IMAGES = 1024


# Of lists of images that are drawn, that are there, that are missing, with seeds and classes: bytes for each image.
_BYTES_PER_INDEX = 64


def image_count(config: Config) -> int:
    """How many images ``config.sample`` asks for."""
    sample = config.sample
    return len(sample.indices) or sample.per_class * config.model.num_classes or sample.num


def image_indices(config: Config, most: int | None = None) -> np.ndarray:
    """The images that ``config.sample`` asks for: ``indices``, or ``num`` (or ``per_class``) of them from ``start`` on.

    Classes take turns by index, so that ``per_class`` times the number of classes in a row are as many of each.

    Args:
        config: the run.
        most: the first of them alone, so many; all when None.

    Raises:
        UserError: memory does not hold so many.
    """
    sample, num = config.sample, image_count(config)
    num = num if most is None else min(num, most)
    if sample.indices:
        return np.asarray(sample.indices[:num], np.int64)
    key = "per_class" if sample.per_class else "num"
    check_room(num * _BYTES_PER_INDEX, f"sample.{key}", getattr(sample, key), "so many images")
    return np.arange(sample.start, sample.start + num)


def image_items(config: Config, indices: Sequence[int] | np.ndarray) -> Items:
    """The images of these indices, with their classes: ``sample.label``, or the classes in turn by image index."""
    indices = np.asarray(indices, np.int32)
    seeds = np.full(len(indices), config.sample.seed, np.int32)
    if config.sample.label is not None:
        return Items(seeds, indices, np.full(len(indices), config.sample.label, np.int32))
    return Items(seeds, indices, (indices % max(1, config.model.num_classes)).astype(np.int32))


def program_config(config: Config) -> Config:
    """The config that a compiled program depends on: what is data to it has its default.

    Which images it draws is data, and so is the sampler, but for what that remembers of earlier steps: the shape of the
    data tells it.
    """
    defaults = SampleConfig()
    which = [key for key, known in keys_of(config.sample) if known.role is Role.SELECTION or known.is_traced]
    sample = dataclasses.replace(config.sample, **{key: getattr(defaults, key) for key in which})
    return dataclasses.replace(config, sample=sample)


def batch_size_for(config: Config, num: int) -> BatchSize:
    """Images per device: ``sample.batch_size``, or less if ``num`` images need no more.

    Where the config leaves it open (0), as many as keep a device busy, a power of two; it shrinks where they do not fit
    in the device's memory. Images do not depend on it, to rounding.
    """
    devices = parallel.local_devices()
    height, width, channels = config.data.image_shape
    pixels = _BUSY_PIXELS_OF_CPU // len(devices) if devices[0].platform == "cpu" else _BUSY_PIXELS
    busy = power_of_two_below(min(_MOST_IMAGES, pixels // (height * width)))
    return BatchSize(
        min(config.sample.batch_size or busy, max(1, math.ceil(num / len(devices)))),
        may_shrink=config.sample.batch_size == 0,
        what=f"images of {width}x{height}x{channels}",
        key="sample.batch_size",
    )


def reusable_batch_size_for(config: Config, num: int) -> BatchSize:
    """As :func:`batch_size_for`, but a power of two where that is less than a full batch.

    Who asks for sixteen images and then for twenty would wait for another program to be compiled, much longer than for
    the images; so programs of few sizes serve all numbers of images.
    """
    devices = len(parallel.local_devices())
    power_of_two_above = 1 << (math.ceil(num / devices) - 1).bit_length()
    return batch_size_for(config, power_of_two_above * devices)


class ImageSampler:
    """A sampler for one network and one set of settings; its compiled program may serve further settings."""

    def __init__(self, config: Config, model: Model, batch_size: int | BatchSize) -> None:
        """Prepares the program; it is compiled at the first call, or by :meth:`compile`.

        Args:
            config: the run; ``config.sample`` says how to draw.
            model: the network.
            batch_size: images per device at a time, see :func:`batch_size_for`. The same images come out for any value,
                to rounding.

        Raises:
            UserError: see :func:`~ddim_jax.configured.build_sampler`.
        """
        self.config = config
        self.sampler = build_sampler(config)
        self._program = program_config(config)
        self._map = ShardedMap(image_program(self._program, model), batch_size)

    def may_draw(self, sample: SampleConfig) -> bool:
        """Whether the program of this sampler serves other settings, too."""
        return program_config(dataclasses.replace(self.config, sample=sample)) == self._program

    def with_settings(self, sample: SampleConfig) -> Self:
        """The sampler of other settings that :meth:`may_draw` allows, with the same program.

        Raises:
            UserError: see :func:`~ddim_jax.configured.build_sampler`.
        """
        assert self.may_draw(sample), "settings of another program"
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, sample=sample)
        other.sampler = build_sampler(other.config)
        return other

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return self.sampler.evaluations

    @property
    def batch_size(self) -> int:
        """Images per device at a time; once compiled, as many as fit."""
        return self._map.batch_size

    def compile(self, variables: Any) -> None:
        """Compiles the program, and settles how many images fit in the devices' memory at a time.

        Args:
            variables: in place on the devices (``parallel.replicate``).

        Raises:
            UserError: ``sample.batch_size`` images do not fit.
        """
        self._map.compile(self._given(variables), image_items(self.config, [0]))

    def batches(self, variables: Any, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Draws the images of ``indices``, yielding (indices [k], images [k, h, w, c]) as they are ready.

        Raises:
            UserError: NaN in place of an image.
        """
        items = image_items(self.config, indices)
        for where, checked in self._map.chunks(self._given(variables), items):
            yield items.index[where], numbers_only(checked, items.index[where])

    def draw(self, variables: Any, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Draws the images of ``indices``: [n, h, w, c] of the data's type, in that order."""
        return np.concatenate([images for _, images in self.batches(variables, indices)])

    def _given(self, variables: Any) -> Given:
        return Given(variables, as_data(self.sampler.table))


def sampler_for(config: Config, model: Model, num: int) -> ImageSampler:
    """An :class:`ImageSampler` for about ``num`` images.

    The batch is that of :func:`batch_size_for`: few images do not pay for a full one.
    """
    return ImageSampler(config, model, batch_size_for(config, num))
