"""The losses on images that training does not see."""

from typing import Any

import jax
import numpy as np

from ddim_jax import parallel
from ddim_jax.conditions import Condition
from ddim_jax.config import Config
from ddim_jax.configured import build_schedule
from ddim_jax.data.reading import Images, load_images
from ddim_jax.data.sources import Source
from ddim_jax.diffusion.losses import TIME_SAMPLINGS, draw_levels
from ddim_jax.models import Model, call
from ddim_jax.names import lookup
from ddim_jax.random_streams import Stream, fold_in_each, root_key
from ddim_jax.sampling.image_sampler import batch_size_for
from ddim_jax.sharded_map import ShardedMap
from ddim_jax.training.checkpoint import select_weights
from ddim_jax.training.conditions import example_condition
from ddim_jax.training.state import TrainState
from ddim_jax.training.step import Losses, draw_training_levels, make_example_losses, shows_image_loss


class Validation:
    """Measures the averaged weights, in the state that samples are drawn in, on all images of ``data.validation``.

    Each image has one noise level, one noise and one condition, always the same, so that successive figures can be
    compared; the levels are spread evenly over the images, or over time where it is continuous.
    """

    def __init__(self, config: Config, model: Model, source: Source) -> None:
        """Reads the images.

        Raises:
            UserError: they cannot be read.
        """
        self._images = load_images(source, config.data, np.arange(len(source)), progress=True)
        self._ema = config.sample.ema
        self._shows_image_loss = shows_image_loss(config)
        count = len(self._images.image)
        schedule = build_schedule(config)
        is_continuous = lookup(TIME_SAMPLINGS, config.diffusion.time_sampling, "time sampling").is_continuous
        example_losses = make_example_losses(config)

        def program(variables: Any, items: tuple[Images, jax.Array]) -> Losses:
            def network(x: jax.Array, time: jax.Array, condition: Condition) -> tuple[Any, None]:
                return call(model, variables, x, time, condition), None

            images, number = items
            key = root_key(config.seed, Stream.VALIDATION)
            if is_continuous:
                level = draw_training_levels(config, schedule, key, number, count)
            else:
                level = draw_levels("stratified", schedule, key, number, count)
            noise_keys, condition_keys = (fold_in_each(jax.random.fold_in(key, fold), number) for fold in (1, 2))
            condition = example_condition(config, images, condition_keys)
            return example_losses(network, images.image, condition, level, noise_keys)[0]

        self._map = ShardedMap(program, batch_size_for(config, count))

    def measure(self, state: TrainState) -> dict[str, float]:
        """The mean losses: ``validation_loss`` and ``validation_image_loss``."""
        weights = select_weights(parallel.host_copy(state), self._ema)
        numbers = np.arange(len(self._images.image), dtype=np.int32)
        each = self._map(weights, (self._images._replace(index=numbers), numbers))
        measured = {"validation_loss": float(np.mean(each.loss))}
        if self._shows_image_loss:
            measured["validation_image_loss"] = float(np.mean(each.image_loss))
        return measured
