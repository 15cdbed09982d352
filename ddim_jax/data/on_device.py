"""Training images that live in the devices' memory: the host only says which ones form a batch.

CIFAR-10 needs 150 MB as uint8. Kept there, a batch costs the host a few hundred bytes a step, and no batch has to be on
its way before a step can begin. The batches are those of ``pipeline.py``, to the bit: order and flips are drawn by the
same functions on the host.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ddim_jax.config import DataConfig
from ddim_jax.data.batches import (
    Batch,
    bytes_of_images,
    example_indices,
    flips,
    load_images,
    process_share,
    substitutes,
)
from ddim_jax.data.sources import Source

# What images may take of a device's memory where nobody asked for it: the rest is for the network.
_SHARE_OF_DEVICE = 0.1


class ImageSet(NamedTuple):
    """All training images.

    Attributes:
        image: uint8 [n, s, s, c].
        label: int32 [n].
    """

    image: Any
    label: Any


class Selection(NamedTuple):
    """One process's share of a training batch, as places in an :class:`ImageSet`.

    Attributes:
        row: int32 [b].
        flip: bool [b], which to mirror.
        index: int32 [b], positions in the *global* batch, as in :class:`~ddim_jax.data.batches.Batch`.
    """

    row: Any
    flip: Any
    index: Any  # pyright: ignore[reportIncompatibleMethodOverride]


def lives_on_device(num_examples: int, config: DataConfig, device_bytes: int | None) -> bool:
    """Whether ``data.cache`` puts that many images into the devices' memory.

    Args:
        num_examples: number of images.
        config: cache, limit and size of images.
        device_bytes: a device's memory; None where it is the host's, which ``auto`` leaves to the host.
    """
    if config.cache != "auto" or device_bytes is None:
        return config.cache == "device"
    limit = min(config.cache_limit_gib * 2**30, _SHARE_OF_DEVICE * device_bytes)
    return bytes_of_images(num_examples, config) <= limit


def read_image_set(source: Source, config: DataConfig) -> tuple[ImageSet, np.ndarray]:
    """Reads all images, still on the host.

    Returns:
        The images, as many as the source has; and the row of each example: int64 [len(source)], that of the next
        readable one where ``data.on_error=skip`` left an image out. Then some last rows are black and not used.

    Raises:
        ImageError: an image cannot be used (under skip: none of them can).
    """
    images = load_images(source, config, range(len(source)), progress=True)
    left_out = len(source) - len(images.index)
    image, label = images.image, images.label
    if left_out:
        image = np.pad(image, [(0, left_out), (0, 0), (0, 0), (0, 0)])
        label = np.pad(label, (0, left_out))
    return ImageSet(image, label), substitutes(images.index, len(source))


def train_selections(
    row_of: np.ndarray,
    config: DataConfig,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Selection]:
    """Endless training batches from ``start_step`` on: those of :func:`~ddim_jax.data.batches.train_batches`.

    Args:
        row_of: int64 [n], the row of each example.
        config: whether to flip.
        seed: see there, as for all others.
        batch_size: the global one.
        start_step: counted from 0.
        process_index: this process.
        process_count: number of processes.

    Raises:
        ConfigError: ``process_count`` does not divide ``batch_size``.
    """
    share, positions = process_share(batch_size, process_index, process_count)

    def at(step: int) -> Selection:
        rows = row_of[example_indices(seed, step, batch_size, len(row_of))[share]]
        flip = flips(seed, step, batch_size)[share] if config.flip else np.zeros(len(rows), bool)
        return Selection(rows.astype(np.int32), flip, positions)

    return (at(step) for step in itertools.count(start_step))


def gather(images: ImageSet, selection: Selection) -> Batch:
    """Takes the batch out of the images, on the device.

    Args:
        images: all of them.
        selection: places in them; [b] of this device.
    """
    image: Any = jnp.take(images.image, selection.row, axis=0)
    image = jnp.where(selection.flip[:, None, None, None], image[:, :, ::-1], image)
    label: Any = jnp.take(images.label, selection.row, axis=0)
    return Batch(image, label, selection.index)
