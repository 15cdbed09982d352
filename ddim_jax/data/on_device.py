"""Training images that live in the devices' memory: the host only says which ones form a batch.

CIFAR-10 needs 150 MB as uint8. Kept there, a batch costs the host a few hundred bytes a step, and no batch has to be on
its way before a step can begin. The batches are those of ``batches.py``, to the bit: order and flips are drawn on the
host, by the same ``batch_order.py``.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ddim_jax.config import DataConfig
from ddim_jax.data.batch_order import BatchOrder, substitutes
from ddim_jax.data.batches import Batch
from ddim_jax.data.reading import bytes_of_images, load_images, read_in_range
from ddim_jax.data.sources import Source

# What images may take of a device's memory where nobody asked for it: the rest is for the network.
_SHARE_OF_DEVICE = 0.1


class DeviceImages(NamedTuple):
    """All training images, as each device holds them.

    Attributes:
        image: [n, h, w, c], of the type ``data.dtype``.
        label: int32 [n].
        vector: float32 [n, d], or None where the data have none.
        paired: [n, h', w', c'], of the type ``data.dtype``; None where the data have none.
    """

    image: Any
    label: Any
    vector: Any = None
    paired: Any = None


class Selection(NamedTuple):
    """One process's share of a training batch, as places in :class:`DeviceImages`.

    Attributes:
        row: int32 [b].
        flip: bool [b], which to mirror.
        index: int32 [b], positions in the *global* batch, as in :class:`~ddim_jax.data.batches.Batch`.
    """

    row: Any
    flip: Any
    index: Any  # pyright: ignore[reportIncompatibleMethodOverride]


def lives_on_device(num_examples: int, config: DataConfig, device_bytes: int | None) -> bool:
    """Says whether ``data.cache`` puts that many images into the devices' memory.

    Args:
        num_examples: number of images.
        config: cache, limit and size of images.
        device_bytes: a device's memory; None where it is the host's, which ``auto`` leaves to the host.
    """
    if config.cache != "auto" or device_bytes is None:
        return config.cache == "device"
    limit = min(config.cache_limit_gib * 2**30, _SHARE_OF_DEVICE * device_bytes)
    return bytes_of_images(num_examples, config) <= limit


def read_device_images(source: Source, config: DataConfig) -> tuple[DeviceImages, np.ndarray]:
    """Reads all images that are to go to the devices; so far they are on the host.

    Returns:
        The images, as many as the source has; and the row of each example: int64 [len(source)], that of the next
        readable one where ``data.on_error=skip`` left an image out. Then some last rows are black and not used.

    Raises:
        ImageError: an image cannot be used (under skip: none of them can).
    """
    images = load_images(source, config, range(len(source)), progress=True, read=read_in_range)
    left_out = len(source) - len(images.index)

    def all_rows(values: np.ndarray | None) -> np.ndarray | None:
        if values is None or not left_out:
            return values
        return np.pad(values, [(0, left_out), *[(0, 0)] * (values.ndim - 1)])

    there = (images.image, images.label, images.vector, images.paired)
    return DeviceImages(*map(all_rows, there)), substitutes(images.index, len(source))


def train_selections(
    row_of: np.ndarray, config: DataConfig, order: BatchOrder, start_step: int = 0
) -> Iterator[Selection]:
    """Makes endless training batches from ``start_step`` on: those of :func:`~ddim_jax.data.batches.train_batches`.

    Args:
        row_of: int64 [n], the row of each example.
        config: whether to flip.
        order: which examples form each batch.
        start_step: counted from 0.
    """

    def at(step: int) -> Selection:
        rows = row_of[order.examples(step, len(row_of))]
        flip = order.flips(step) if config.flip else np.zeros(len(rows), bool)
        return Selection(rows.astype(np.int32), flip, order.positions)

    return (at(step) for step in itertools.count(start_step))


def gather(images: DeviceImages, selection: Selection) -> Batch:
    """Takes the batch out of the images, on the device.

    Args:
        images: all of them.
        selection: places in them; [b] of this device.
    """
    image: Any = _mirrored(jnp.take(images.image, selection.row, axis=0), selection.flip)
    paired: Any = None
    if images.paired is not None:
        paired = _mirrored(jnp.take(images.paired, selection.row, axis=0), selection.flip)
    label: Any = jnp.take(images.label, selection.row, axis=0)
    vector: Any = None if images.vector is None else jnp.take(images.vector, selection.row, axis=0)
    return Batch(image, label, selection.index, vector, paired)


def _mirrored(images: Any, flip: Any) -> Any:
    """Images [b, h, w, c], those mirrored that ``flip`` [b] names."""
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
