"""Images by index: image i depends on (weights, settings, seed, i) and on nothing else."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.sampling.programs import Items, build_sampler, image_program
from ddim_jax.sharded_map import ShardedMap


def image_indices(config: Config) -> np.ndarray:
    """The images that ``config.sample`` asks for: ``indices``, or ``num`` (or ``per_class``) of them from ``start`` on.

    Classes take turns by index, so that ``per_class`` times the number of classes in a row are as many of each.
    """
    sample = config.sample
    if sample.indices:
        return np.asarray(sample.indices, np.int64)
    num = sample.per_class * config.model.num_classes if sample.per_class else sample.num
    return np.arange(sample.start, sample.start + num)


def image_items(config: Config, indices: Sequence[int] | np.ndarray) -> Items:
    """The images of these indices, with their classes: ``sample.label``, or the classes in turn by image index."""
    indices = np.asarray(indices, np.int32)
    seeds = np.full(len(indices), config.sample.seed, np.int32)
    if config.sample.label is not None:
        return Items(seeds, indices, np.full(len(indices), config.sample.label, np.int32))
    return Items(seeds, indices, (indices % max(1, config.model.num_classes)).astype(np.int32))


def batch_size_for(config: Config, num: int) -> int:
    """Images per device: ``sample.batch_size``, or less if ``num`` images need no more."""
    return min(config.sample.batch_size, max(1, math.ceil(num / len(parallel.local_devices()))))


class ImageSampler:
    """A compiled sampler for one network and one set of settings."""

    def __init__(self, config: Config, model: nn.Module, batch_size: int | None = None) -> None:
        """Prepares the program; it is compiled at the first call.

        Args:
            config: the run; ``config.sample`` says how to draw.
            model: the network.
            batch_size: images per device at a time; ``config.sample.batch_size`` when None. The same images come out
                for any value, to rounding.

        Raises:
            UserError: see :func:`~ddim_jax.sampling.programs.build_sampler`.
        """
        self.config = config
        self.sampler = build_sampler(config)
        self._map = ShardedMap(image_program(config, model, self.sampler), batch_size or config.sample.batch_size)

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return self.sampler.evaluations

    def batches(self, variables: Any, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Draws the images of ``indices``, yielding (indices [k], uint8 images [k, h, w, c]) as they are ready."""
        items = image_items(self.config, indices)
        for where, images in self._map.chunks(variables, items):
            yield items.index[where], images

    def draw(self, variables: Any, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Draws the images of ``indices``: uint8 [n, h, w, c], in that order."""
        return np.concatenate([images for _, images in self.batches(variables, indices)])


def sampler_for(config: Config, model: nn.Module, num: int, **settings: Any) -> ImageSampler:
    """An :class:`ImageSampler` for about ``num`` images, with changed ``config.sample`` settings.

    The batch is no larger than ``num`` images need, so that few images do not pay for a full batch.
    """
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, **settings))
    return ImageSampler(config, model, batch_size_for(config, num))
