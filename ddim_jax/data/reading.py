"""Images read in a given order by several threads, and what becomes of those that cannot be used.

Whoever needs many images cuts them into chunks, each read by one thread (:func:`map_chunks`). An image that cannot be
used ends the work under ``data.on_error=fail``, as the first one in the order, whichever was read first; under ``skip``
it is left out, and in the end one line says how many were (:func:`report_left_out`).
"""

import dataclasses
import functools
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from ddim_jax import writers
from ddim_jax.config import DataConfig
from ddim_jax.data.sources import Example, Source
from ddim_jax.data.transforms import ImageError, prepare_image
from ddim_jax.errors import UserError

_log = logging.getLogger(__name__)

# Images that a thread reads at a time: enough to hide the cost of handing out work.
_CHUNK = 32

Result = TypeVar("Result")

# The key that says where paired pictures are, for messages.
_PAIRED = "data.condition_path"


class Images(NamedTuple):
    """Prepared images in memory.

    Attributes:
        image: [n, h, w, c], of the type ``data.dtype``.
        label: int32 [n].
        index: int64 [n], which example of the source each is.
        vector: float32 [n, d], or None where the data have none.
        paired: [n, h', w', c'], of the type ``data.dtype``; None where the data have none.
    """

    image: np.ndarray
    label: np.ndarray
    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]
    vector: np.ndarray | None = None
    paired: np.ndarray | None = None

    def put(self, row: int, example: Example) -> None:
        """Puts an example into a row; the number in ``index`` is not touched."""
        self.image[row], self.label[row] = example.image, example.label
        if self.vector is not None:
            self.vector[row] = example.vector
        if self.paired is not None:
            self.paired[row] = example.paired

    def take(self, rows: np.ndarray) -> "Images":
        """Copies rows [b]."""
        return Images(*(None if array is None else array[rows] for array in self))  # pyright: ignore


def empty_images(num: int, source: Source, config: DataConfig) -> Images:
    """Room for so many examples of a source, with those of the arrays that it has."""
    paired = config.condition == "paired"
    vector_size = getattr(source, "vector_size", 0)
    return Images(
        np.zeros((num, *config.image_shape), config.dtype),
        np.zeros(num, np.int32),
        np.zeros(num, np.int64),
        np.zeros((num, vector_size), np.float32) if vector_size else None,
        np.zeros((num, *config.paired_shape), config.dtype) if paired else None,
    )


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
    images = empty_images(num, source, config)

    def store(chunk: Chunk) -> None:
        for row, example in chunk:
            images.put(row, example)

    bar = writers.progress(num, f"reading {source.name}", " images", show=progress and sys.stderr.isatty())
    _, errors = map_chunks(
        store, cut_into_chunks(num, _CHUNK), lambda row: read_example(source, int(indices[row]), config), config, bar
    )
    images.index[:] = indices
    if not errors:
        return images
    report_left_out(len(errors), num, errors[min(errors)])
    return images.take(np.array([row for row in range(num) if row not in errors]))


def read_example(source: Source, index: int, config: DataConfig) -> Example:
    """Reads one example and prepares its pictures, if that is not done: [h, w, channels] of the type ``data.dtype``.

    Raises:
        ImageError: it cannot be used; the line says which image and why.
    """
    try:
        example = source[index]
        if source.prepared:
            return example
        image, paired = prepare_image(example.image, config), None
        vector = None if example.vector is None else _sound_vector(example.vector, source)
        if config.condition == "paired":
            if example.paired is None:
                raise UserError(f"data.condition=paired: {source.name} has no second picture; name them by {_PAIRED}")
            try:
                paired = prepare_image(example.paired, _config_of_paired(config))
            except ImageError as error:
                raise ImageError(f"its paired picture: {error.reason}") from error
        return Example(image, example.label, vector, paired)
    except ImageError as error:
        raise ImageError(error.reason, source.where(index)) from error


def _sound_vector(vector: np.ndarray, source: Source) -> np.ndarray:
    """The numbers of an example as float32 [d].

    Raises:
        ImageError: there are more or fewer than the others', or one is NaN or infinite.
    """
    vector = np.asarray(vector, np.float32).reshape(-1)
    if len(vector) != getattr(source, "vector_size", 0):
        raise ImageError(f"its vector has {len(vector)} numbers, those of the others have not")
    if not np.isfinite(vector).all():
        raise ImageError(f"number {np.flatnonzero(~np.isfinite(vector))[0]} of its vector is NaN or infinite")
    return vector


@functools.cache
def _config_of_paired(config: DataConfig) -> DataConfig:
    """How the paired pictures are prepared: as the images, at their own size."""
    *size, channels = config.paired_shape
    # A range of each channel is that of the images' channels.
    values = config.range if len(config.range) == 2 or channels == config.channels else ()
    return dataclasses.replace(config, image_size=tuple(size), channels=channels, range=values)


def bytes_of_images(num_examples: int, config: DataConfig) -> int:
    """The memory that so many prepared images take, with the pictures that belong to them."""
    values = math.prod(config.image_shape)
    if config.condition == "paired":
        values += math.prod(config.paired_shape)
    return num_examples * values * np.dtype(config.dtype).itemsize


# --- chunks -------------------------------------------------------------------------------------


class Chunk:
    """Consecutive images that one thread reads one after the other, as they are iterated over.

    Attributes:
        rows: the places of all of them in the order of reading.
        errors: by row, why those met so far that cannot be used cannot.
    """

    def __init__(self, rows: range, read: Callable[[int], Example]) -> None:
        """Reads nothing yet.

        Args:
            rows: the places of the images.
            read: reads the image at a place.
        """
        self.rows = rows
        self.errors: dict[int, ImageError] = {}
        self._read = read

    def __iter__(self) -> Iterator[tuple[int, Example]]:
        """Yields row and example of each image that can be used."""
        for row in self.rows:
            try:
                example = self._read(row)
            except ImageError as error:
                self.errors[row] = error
            else:
                yield row, example


def cut_into_chunks(num: int, length: int) -> list[range]:
    """Cuts 0 ... num - 1 into ranges of ``length``, the last one shorter."""
    return [range(start, min(start + length, num)) for start in range(0, num, length)]


def map_chunks(
    work: Callable[[Chunk], Result],
    chunks: Sequence[range],
    read: Callable[[int], Example],
    config: DataConfig,
    bar: tqdm,
) -> tuple[list[Result], dict[int, ImageError]]:
    """Does some work on chunks of images, ``data.threads`` of them at a time.

    Args:
        work: iterates over a chunk, once if at all; called by several threads at once.
        chunks: the rows of each.
        read: reads the image of a row, see :class:`Chunk`.
        config: ``threads`` and ``on_error``.
        bar: shows how many images are done; closed in the end.

    Returns:
        What the work returned, in the order of the chunks; and by row, why images cannot be used (under skip).

    Raises:
        ImageError: an image cannot be used, and ``data.on_error`` is fail: the first such image of the first chunk that
            has one, after the work on that chunk.
    """

    def do(rows: range) -> tuple[Result, dict[int, ImageError]]:
        chunk = Chunk(rows, read)
        result = work(chunk)
        if chunk.errors and config.on_error == "fail":
            raise chunk.errors[min(chunk.errors)]
        return result, chunk.errors

    results: list[Result] = []
    errors: dict[int, ImageError] = {}
    with bar, ThreadPoolExecutor(config.threads) as pool:
        for rows, (result, unusable) in zip(chunks, pool.map(do, chunks), strict=True):
            results.append(result)
            errors |= unusable
            bar.update(len(rows))
    return results, errors


def report_left_out(num_left_out: int, num: int, first: ImageError) -> None:
    """Warns of images that cannot be used and are left out.

    Args:
        num_left_out: how many, at least 1.
        num: of how many.
        first: what is wrong with the first of them.

    Raises:
        ImageError: they are all.
    """
    if num_left_out == num:
        raise ImageError(f"none of {num} images can be used; the first: {first}")
    _log.warning("left out %d of %d images; the first: %s", num_left_out, num, first)
