"""Batches as a pure function of (seed, step).

The batch of training step k depends on the seed and k alone: not on the number of processes, not
on where a run was interrupted, not on whether images are kept in memory. So a checkpoint needs no
iterator state, and a resumed run goes on with exactly the batches it would have seen. The order is
easily stated: all epochs, each a fresh permutation of the examples, are laid end to end, and step
k takes places k * batch_size ... (k + 1) * batch_size - 1 of that endless row. An epoch may end
inside a batch; nothing is dropped.
"""

import functools
import itertools
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import NamedTuple, Protocol

import grain
import numpy as np
from tqdm import tqdm

from ddim_jax.config import ConfigError, DataConfig
from ddim_jax.data.prepared import PreparedSource
from ddim_jax.data.sources import Example, Source
from ddim_jax.data.transforms import ImageError, prepare_image
from ddim_jax.random_streams import Stream, host_generator

_log = logging.getLogger(__name__)

# Images that a thread reads at a time: enough to hide the cost of handing out work.
_CHUNK = 32


class Batch(NamedTuple):
    """One process's share of a training batch.

    Attributes:
        image: uint8 [b, s, s, c].
        label: int32 [b].
        index: int32 [b], positions in the *global* batch: the keys of per-example random draws.
    """

    image: np.ndarray
    label: np.ndarray
    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]


class Images(NamedTuple):
    """Prepared images in memory.

    Attributes:
        image: uint8 [n, s, s, c].
        label: int32 [n].
        index: int64 [n], which example of the source each is.
    """

    image: np.ndarray
    label: np.ndarray
    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]


class BatchIterator(Protocol):
    """An endless iterator over batches; ``close`` stops its threads (``contextlib.closing``)."""

    def __iter__(self) -> Iterator[Batch]:
        """Returns itself."""
        ...

    def __next__(self) -> Batch:
        """The next step's batch."""
        ...

    def close(self) -> None:
        """Stops the reader threads."""
        ...


def train_batches(
    source: Source,
    config: DataConfig,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Endless training batches from ``start_step`` on; see the module's text for their order.

    Each process gets a contiguous slice of the global batch: process p of P the examples
    p * B / P ... (p + 1) * B / P - 1. Horizontal flips (``data.flip``) are drawn for the global
    batch from (seed, step).

    Under ``data.on_error=skip`` the place of an unreadable image is taken by the next readable
    one in the source's order (after the last comes the first). This needs no look at the whole
    set beforehand, and gives the same batches however images are read.

    Args:
        source: the examples.
        config: preparation, cache, threads, and what to do about unreadable images. Where the
            cache is memory (``device`` counts as ``host``, see ``on_device.py``) the images are
            read before this function returns; else ``threads``
            threads each make one batch at a time, ``prefetch`` batches (or one a thread, if that
            is more) ahead.
        seed: the run's seed.
        batch_size: B, the *global* batch size.
        start_step: the first batch's step, counted from 0.
        process_index: this process, 0 ... process_count - 1.
        process_count: number of processes that share the batch.

    Returns:
        An iterator whose k-th batch (k from 0) is that of step ``start_step + k``.

    Raises:
        ConfigError: ``process_count`` does not divide ``batch_size``.
        ImageError: (also while iterating) an image cannot be used, and ``data.on_error`` is fail.
    """
    share, positions = process_share(batch_size, process_index, process_count)
    in_memory = _fits_in_memory(len(source), config)
    if in_memory:
        images = load_images(source, config, range(len(source)), progress=True)
        fetch = _array_fetcher(images.image, images.label, substitutes(images.index, len(source)))
    elif isinstance(source, PreparedSource):
        rows = source.usable[substitutes(source.usable, len(source))]
        fetch = _array_fetcher(source.images, source.labels, rows)
    else:
        fetch = _reading_fetcher(source, config)

    def batch_at(step: int) -> Batch:
        image, label = fetch(example_indices(seed, step, batch_size, len(source))[share])
        if config.flip:
            flipped = flips(seed, step, batch_size)[share]
            image[flipped] = image[flipped, :, ::-1]
        return Batch(image, label, positions)

    if in_memory:
        return (batch_at(step) for step in itertools.count(start_step))
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=max(config.prefetch, config.threads))
    return iter(grain.MapDataset.range(start_step, sys.maxsize).map(batch_at).to_iter_dataset(options))


def process_share(batch_size: int, process_index: int, process_count: int) -> tuple[slice, np.ndarray]:
    """Which examples of a global batch a process gets: a slice, and their positions as int32, read-only.

    Raises:
        ConfigError: ``process_count`` does not divide ``batch_size``.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must lie in 0 ... {process_count - 1}")
    if batch_size % process_count:
        raise ConfigError(
            f"train.batch_size={batch_size} must be divisible by {process_count}, the number of processes"
        )
    local_size = batch_size // process_count
    share = slice(process_index * local_size, (process_index + 1) * local_size)
    positions = np.arange(batch_size, dtype=np.int32)[share]
    positions.setflags(write=False)  # every batch holds this one array
    return share, positions


def example_indices(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """Which examples form the global batch of a step: int64 [batch_size].

    Place p = step * batch_size + i of the endless row of epochs is element p mod n of the
    permutation of epoch p // n.
    """
    epoch, place = np.divmod(step * batch_size + np.arange(batch_size), num_examples)
    indices = np.empty(batch_size, np.int64)
    for number in range(epoch[0], epoch[-1] + 1):
        inside = epoch == number
        indices[inside] = epoch_order(seed, number, num_examples)[place[inside]]
    return indices


# Two, since a batch may lie across the end of an epoch. Permuting a million takes 20 ms.
@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of the examples in an epoch: a permutation, int64 [num_examples], read-only."""
    order = host_generator(seed, Stream.ORDER, epoch).permutation(num_examples)
    order.setflags(write=False)
    return order


def flips(seed: int, step: int, batch_size: int) -> np.ndarray:
    """Which examples of a step's global batch are mirrored: bool [batch_size], each with 1/2."""
    return host_generator(seed, Stream.FLIP, step).random(batch_size) < 0.5


def steps_for_epochs(num_examples: int, batch_size: int, epochs: float) -> int:
    """Steps that show every example ``epochs`` times: ceil(num_examples * epochs / batch_size)."""
    # As decimals: in floats 10 * 1.1 is a hair above 11, and would cost a step more.
    return math.ceil(num_examples * Fraction(str(epochs)) / batch_size)


def substitutes(usable: np.ndarray, num_examples: int) -> np.ndarray:
    """Place in ``usable`` of each example, or of the next one that is there; past the last one, of the first."""
    return np.searchsorted(usable, np.arange(num_examples)) % len(usable)


def load_images(
    source: Source, config: DataConfig, indices: Sequence[int] | np.ndarray, progress: bool = False
) -> Images:
    """Reads the given examples, in the given order, without flips.

    Args:
        source: the examples.
        config: preparation, ``threads`` and ``on_error``.
        indices: [n] which examples; repeats are allowed.
        progress: show a progress bar on a terminal.

    Returns:
        The prepared images. Under ``data.on_error=skip`` unreadable ones are left out, with a
        warning that counts them, so there may be fewer than n; ``index`` says which are there.

    Raises:
        ImageError: an image cannot be used (under skip: none of them can).
    """
    indices = np.asarray(indices, np.int64).reshape(-1)
    num = len(indices)
    images = np.empty((num, *config.image_shape), np.uint8)
    labels = np.empty(num, np.int32)
    errors: dict[int, ImageError] = {}

    def read(rows: range) -> int:
        for row in rows:
            try:
                images[row], labels[row] = read_example(source, int(indices[row]), config)
            except ImageError as error:
                if config.on_error == "fail":
                    raise
                errors[row] = error
        return len(rows)

    chunks = [range(start, min(start + _CHUNK, num)) for start in range(0, num, _CHUNK)]
    bar = tqdm(total=num, desc=f"reading {source.name}", unit=" images", disable=None if progress else True)
    with bar, ThreadPoolExecutor(config.threads) as pool:
        for count in pool.map(read, chunks):
            bar.update(count)
    if not errors:
        return Images(images, labels, indices)
    first = errors[min(errors)]
    if len(errors) == num:
        raise ImageError(f"none of {num} images can be used; the first: {first}")
    _log.warning("left out %d of %d images; the first: %s", len(errors), num, first)
    kept = np.array([row for row in range(num) if row not in errors])
    return Images(images[kept], labels[kept], indices[kept])


def read_example(source: Source, index: int, config: DataConfig) -> Example:
    """Reads one example and prepares its image, if that is not done: uint8 [image_size, image_size, channels].

    Raises:
        ImageError: it cannot be used; the line says which image and why.
    """
    try:
        example = source[index]
        if source.prepared:
            return example
        return Example(prepare_image(example.image, config), example.label)
    except ImageError as error:
        raise ImageError(f"{source.where(index)}: {error}") from error


_Fetcher = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _fits_in_memory(num_examples: int, config: DataConfig) -> bool:
    fits = bytes_of_images(num_examples, config) <= config.cache_limit_gib * 2**30
    return config.cache in ("host", "device") or (config.cache == "auto" and fits)


def bytes_of_images(num_examples: int, config: DataConfig) -> int:
    """Memory of that many prepared images."""
    return num_examples * config.image_size**2 * config.channels


def _array_fetcher(images: np.ndarray, labels: np.ndarray, row_of: np.ndarray) -> _Fetcher:
    """Returns a function from indices [b] to copies of the rows ``row_of[indices]`` of two arrays."""

    def fetch(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = row_of[indices]
        return images[rows], labels[rows]

    return fetch


def _reading_fetcher(source: Source, config: DataConfig) -> _Fetcher:
    """Returns a function that reads the examples with indices [b] anew each time."""
    unreadable: set[int] = set()

    def read(index: int) -> Example:
        for candidate in itertools.chain(range(index, len(source)), range(index)):
            if candidate in unreadable:
                continue
            try:
                return read_example(source, candidate, config)
            except ImageError as error:
                if config.on_error == "fail":
                    raise
                unreadable.add(candidate)
                _log.warning("left out an image, %d so far: %s", len(unreadable), error)
        raise ImageError(f"none of the {len(source)} images of {source.name} can be used; see the log for reasons")

    def fetch(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        examples = [read(int(index)) for index in indices]
        images = np.stack([example.image for example in examples])
        return images, np.array([example.label for example in examples], np.int32)

    return fetch
