"""Images by index: image i depends on (weights, settings, seed, i) and on nothing else.

Here the pieces of ``diffusion/`` meet a network: config → schedule → subsequence → step
table → sampler, one random key per image, padding to full batches, and rounding to uint8.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.diffusion import prediction, samplers
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.steps import StepTable, make_table
from ddim_jax.diffusion.timesteps import level_pairs, sampling_levels
from ddim_jax.images import Normalization, to_uint8
from ddim_jax.random_streams import image_keys
from ddim_jax.sampling.sharded_map import ShardedMap


def build_table(config: Config) -> StepTable:
    """The step table that ``config.sample`` asks for, on the schedule of ``config.diffusion``.

    Raises:
        UserError: an eta too large, or ``sample.eta_per_step`` of another length than the steps.
    """
    diffusion, sample = config.diffusion, config.sample
    schedule = make_schedule(diffusion.schedule, diffusion.num_levels, diffusion.beta_start, diffusion.beta_end)
    pairs = level_pairs(sampling_levels(sample.spacing, diffusion.num_levels, sample.steps))
    eta = np.asarray(sample.eta_per_step) if sample.eta_per_step else sample.eta
    return make_table(sample.sampler, schedule, pairs, eta)


def image_program(config: Config, model: nn.Module, table: StepTable) -> Callable[[Any, Any], jax.Array]:
    """The pure function behind :class:`ImageSampler`.

    Returns:
        ``program(variables, (index int32 [n], label int32 [n]))`` -> uint8 [n, h, w, c], to be compiled.
    """
    shape = (config.data.image_size, config.data.image_size, config.data.channels)
    normalization = Normalization(config.data.mean, config.data.std)
    conditional = config.model.num_classes > 0

    def program(variables: Any, items: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, label = items

        def network(x: jax.Array, time: jax.Array) -> Any:
            return model.apply(variables, x, time, label if conditional else None)

        predict = prediction.make_predict(network, config.diffusion.objective, config.sample.clip)
        keys = image_keys(config.sample.seed, index)
        x = samplers.initial_noise(keys, shape, jnp.float32)
        with jax.default_matmul_precision(config.sample.precision):
            return to_uint8(samplers.sample(predict, x, table, keys), normalization)

    return program


class ImageSampler:
    """A compiled sampler for one network and one set of settings.

    Example:
        >>> sampler = ImageSampler(config, model, batch_size=8)  # doctest: +SKIP
        >>> images = sampler.draw(variables, range(100))  # doctest: +SKIP
    """

    def __init__(self, config: Config, model: nn.Module, batch_size: int | None = None) -> None:
        """Prepares the program; it is compiled at the first call.

        Args:
            config: the run; ``config.sample`` says how to draw.
            model: the network.
            batch_size: images per device at a time; ``config.sample.batch_size`` when None. The same images come out
                for any value, to rounding.

        Raises:
            UserError: see :func:`build_table`.
        """
        self.config = config
        self.table = build_table(config)
        self._map = ShardedMap(image_program(config, model, self.table), batch_size or config.sample.batch_size)

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return len(self.table.time)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """The class of each image: ``sample.label``, or the classes in turn by image index."""
        if self.config.sample.label is not None:
            return np.full(len(indices), self.config.sample.label, np.int32)
        return (indices % max(1, self.config.model.num_classes)).astype(np.int32)

    def batches(self, variables: Any, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Draws the images of ``indices``, yielding (indices [k], uint8 images [k, h, w, c]) as they are ready."""
        indices = np.asarray(indices, np.int32)
        for where, images in self._map.chunks(variables, (indices, self.labels(indices))):
            yield indices[where], images

    def draw(self, variables: Any, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Draws the images of ``indices``: uint8 [n, h, w, c], in that order."""
        return np.concatenate([images for _, images in self.batches(variables, indices)])


def sampler_for(config: Config, model: nn.Module, num: int, **settings: Any) -> ImageSampler:
    """An :class:`ImageSampler` for about ``num`` images, with changed ``config.sample`` settings.

    The batch is no larger than ``num`` images need, so that few images do not pay for a full batch.
    """
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, **settings))
    needed = math.ceil(num / len(parallel.local_devices()))
    return ImageSampler(config, model, min(config.sample.batch_size, needed))
