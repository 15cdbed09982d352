"""Batches as a pure function of (seed, step).

The batch of training step k depends on the seed and k alone: not on the number of processes, not
on where a run was interrupted, not on whether images are kept in memory. So a checkpoint needs no
iterator state, and a resumed run goes on with exactly the batches it would have seen.
``batch_order.py`` says which examples they are; here they are fetched: from memory, from the disk
where they were prepared, or from the source, anew each time.
"""

import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from ddim_jax.config import DataConfig
from ddim_jax.data.batch_order import BatchOrder, substitutes
from ddim_jax.data.prepared import PreparedSource
from ddim_jax.data.reading import (
    Images,
    bytes_of_images,
    check_range,
    empty_images,
    load_images,
    put_example,
    read_in_range,
    select_rows,
)
from ddim_jax.data.sources import Example, Source
from ddim_jax.data.transforms import ImageError

_log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """One process's share of a training batch.

    Attributes:
        image: [b, h, w, c], of the type ``data.dtype``.
        label: int32 [b].
        index: int32 [b], positions in the *global* batch: the keys of per-example random draws.
        vector: float32 [b, d], or None where the data have none.
        paired: [b, h', w', c'], of the type ``data.dtype``; None where the data have none.
    """

    image: np.ndarray
    label: np.ndarray
    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]
    vector: np.ndarray | None = None
    paired: np.ndarray | None = None


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


def train_batches(source: Source, config: DataConfig, order: BatchOrder, start_step: int = 0) -> BatchIterator:
    """Makes endless training batches from ``start_step`` on.

    Under ``data.on_error=skip`` the place of an unreadable image is taken by the next readable
    one in the source's order (after the last comes the first). This needs no look at the whole
    set beforehand, and gives the same batches however images are read.

    Args:
        source: the examples.
        config: preparation, flips, cache, threads, and what to do about unreadable images. Where
            the cache is memory (``device`` counts as ``host``, see ``on_device.py``) the images are
            read before this function returns; else ``threads`` threads each make one batch at a
            time, ``prefetch`` batches (or one a thread, if that is more) ahead.
        order: which examples form each batch.
        start_step: the first batch's step, counted from 0.

    Returns:
        An iterator whose k-th batch (k from 0) is that of step ``start_step + k``.

    Raises:
        ImageError: (also while iterating) an image cannot be used, and ``data.on_error`` is fail.
    """
    positions = order.positions
    in_memory = _fits_in_memory(len(source), config)
    if in_memory:
        images = load_images(source, config, range(len(source)), progress=True, read=read_in_range)
        fetch = _array_fetcher(images, substitutes(images.index, len(source)))
    elif isinstance(source, PreparedSource):
        rows = source.usable[substitutes(source.usable, len(source))]
        fetch = _prepared_fetcher(source, config, rows)
    else:
        fetch = _reading_fetcher(source, config)

    def batch_at(step: int) -> Batch:
        examples = fetch(order.examples(step, len(source)))
        if config.flip:
            flipped = order.flips(step)
            for pictures in (examples.image, examples.paired):
                if pictures is not None:
                    pictures[flipped] = pictures[flipped, :, ::-1]
        return Batch(examples.image, examples.label, positions, examples.vector, examples.paired)

    if in_memory:
        return (batch_at(step) for step in itertools.count(start_step))
    import grain  # only here, for it takes a tenth of a second

    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=max(config.prefetch, config.threads))
    return iter(grain.MapDataset.range(start_step, sys.maxsize).map(batch_at).to_iter_dataset(options))


def _fits_in_memory(num_examples: int, config: DataConfig) -> bool:
    fits = bytes_of_images(num_examples, config) <= config.cache_limit_gib * 2**30
    return config.cache in ("host", "device") or (config.cache == "auto" and fits)


# From the numbers of examples [b] to them, whose arrays the caller owns.
_Fetcher = Callable[[np.ndarray], Images]


def _array_fetcher(images: Images, row_of: np.ndarray) -> _Fetcher:
    """Returns a function from indices [b] to copies of the rows ``row_of[indices]`` of images in memory."""
    return lambda indices: select_rows(images, row_of[indices])


def _prepared_fetcher(source: PreparedSource, config: DataConfig, row_of: np.ndarray) -> _Fetcher:
    """Returns a function from indices [b] to the examples ``row_of[indices]``, compared with their checksums.

    The range was not known when they were prepared: what lies beyond it is left out here.
    """
    read = _reader(source, config)

    def fetch(indices: np.ndarray) -> Images:
        images = source.rows(row_of[indices])
        for row, index in enumerate(images.index):
            paired = None if images.paired is None else images.paired[row]
            try:
                check_range(images.image[row], paired, config)
            except ImageError:
                put_example(images, row, read(int(index)))
        return images

    return fetch


def _reading_fetcher(source: Source, config: DataConfig) -> _Fetcher:
    """Returns a function that reads the examples with indices [b] anew each time."""
    read = _reader(source, config)

    def fetch(indices: np.ndarray) -> Images:
        images = empty_images(source, config, indices)
        for row, index in enumerate(indices):
            put_example(images, row, read(int(index)))
        return images

    return fetch


def _reader(source: Source, config: DataConfig) -> Callable[[int], Example]:
    """Returns a function that reads an example, or under ``data.on_error=skip`` the next that can be used."""
    unusable: set[int] = set()

    def read(index: int) -> Example:
        for candidate in itertools.chain(range(index, len(source)), range(index)):
            if candidate in unusable:
                continue
            try:
                return read_in_range(source, candidate, config)
            except ImageError as error:
                if config.on_error == "fail":
                    raise
                unusable.add(candidate)
                _log.warning("left out an image, %d so far: %s", len(unusable), error)
        raise ImageError(f"none of the {len(source)} images of {source.name} can be used; see the log for reasons")

    return read
