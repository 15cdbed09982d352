"""What images are drawn from, from the data's form to the network's.

Training, validation, likelihood and sampling all make conditions here; ``conditions/`` knows no config.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.conditions import Condition, DataCondition, told_vector
from ddim_jax.conditions.tasks import augment, to_network
from ddim_jax.config import Config
from ddim_jax.configured import build_normalization, build_task
from ddim_jax.errors import UserError
from ddim_jax.pixels import to_float, to_pixels
from ddim_jax.random_streams import Stream, example_keys, image_keys

# A draw of an image's key that no step of a trajectory takes: the noise of the picture that it is drawn from.
_CONDITION_DRAW = 2**31 - 1


def network_condition(
    config: Config, given: DataCondition, level: jax.Array | None = None, keys: jax.Array | None = None
) -> Condition:
    """What images are drawn from, in the network's form.

    Args:
        config: the run, whose network may know all kinds, some, or none. A kind that it knows and that is not given
            means "none".
        given: of n images.
        level: [n], noise to be added to the picture, for networks with ``data.condition_augmentation``; None for none.
        keys: n keys for that.
    """
    kinds, shape = config.model.kinds, config.data.image_shape
    label = given.label if "class" in kinds else None
    vector = image = told_level = None
    count = len(given.label)
    if "vector" in kinds:
        size = config.model.vector_size + 1
        vector = jnp.zeros((count, size)) if given.vector is None else told_vector(jnp.asarray(given.vector))
    if "image" in kinds:
        told_level = jnp.zeros(count) if config.data.condition_augmentation else None
        if given.picture is None:
            image = jnp.zeros((count, *shape[:2], config.data.picture_channels))
        else:
            image = to_network(given.picture, shape)
            if level is not None and keys is not None:
                image, told_level = augment(image, level, keys), level
    return Condition(label, vector, image, told_level)


def sampling_condition(config: Config, given: DataCondition, seed: jax.Array, index: jax.Array) -> Condition:
    """The same with the noise that ``sample.condition_augmentation`` adds, a draw of each image's own.

    Args:
        config: the run.
        given: of n images.
        seed: [n], of the images.
        index: [n], of the images.
    """
    level = config.sample.condition_augmentation
    if not level or "image" not in config.model.kinds:
        return network_condition(config, given)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _CONDITION_DRAW))(image_keys(seed, index))
    return network_condition(config, given, jnp.full(len(index), level), keys)


def as_unit(images: Any, config: Config) -> Any:
    """Values of the data's type as pixels in [0, 1], float32: what pictures are made of and given as."""
    return to_float(images, build_normalization(config)._replace(mean=(0.0,), std=(1.0,)))


def enlarged(config: Config, pictures: Any) -> np.ndarray:
    """What bicubic interpolation alone makes of pictures that images are drawn from.

    Args:
        config: the run.
        pictures: float32 [n, h', w', c] in [0, 1], of as many channels as the images.

    Returns:
        [n, h, w, c] of the data's type.
    """
    plain = build_normalization(config)._replace(mean=(0.5,), std=(0.5,))
    return np.asarray(to_pixels(to_network(jnp.asarray(pictures), config.data.image_shape), plain))


def data_condition(config: Config, examples: Any, keys: jax.Array) -> DataCondition:
    """What images of the data are drawn from, by a network of the config.

    Args:
        config: the run.
        examples: n of them, a :class:`~ddim_jax.data.batches.Batch` or :class:`~ddim_jax.data.reading.Images`.
        keys: n keys, of what is random in making a picture from an image.

    Raises:
        UserError: the data have not what the network is told.
    """
    kinds, vector, picture = config.model.kinds, None, None
    if "vector" in kinds:
        vector = examples.vector
        if vector is None:
            raise UserError("model.condition: the data have no vectors; say where they are by data.vector")
    task = build_task(config)
    if "image" in kinds and task is not None:
        if task.make is not None:
            picture = task.make(as_unit(examples.image, config), keys)
        elif examples.paired is None:
            raise UserError("data.condition=paired: the data have no pictures beside their images")
        else:
            picture = as_unit(examples.paired, config)
    return DataCondition(examples.label, vector, picture)


def condition_of_images(config: Config, images: Any) -> DataCondition:
    """What real images are drawn from, on the host: of an image always the same, whichever job asks.

    Args:
        config: the run.
        images: n of them, :class:`~ddim_jax.data.reading.Images`, whose ``index`` is that of the data.

    Raises:
        UserError: see :func:`data_condition`.
    """
    # A step that no run reaches.
    keys = example_keys(config.seed, Stream.CONDITION, jnp.int32(2**31 - 1), jnp.asarray(images.index, jnp.int32))
    with jax.default_matmul_precision("highest"):
        return jax.tree.map(np.asarray, data_condition(config, images, keys))
