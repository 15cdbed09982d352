"""Images read in a given order by several threads, and what becomes of those that cannot be used.

Whoever needs many images cuts them into chunks, each read by one thread (:func:`map_chunks`). An image that cannot be
used ends the work under ``data.on_error=fail``, as the first one in the order, whichever was read first; under ``skip``
it is left out, and in the end one line says how many were (:func:`report_left_out`).
"""

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

_log = logging.getLogger(__name__)

# Images that a thread reads at a time: enough to hide the cost of handing out work.
_CHUNK = 32

Result = TypeVar("Result")


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

    def store(chunk: Chunk) -> None:
        for row, example in chunk:
            images[row], labels[row] = example.image, example.label

    bar = writers.progress(num, f"reading {source.name}", " images", show=progress and sys.stderr.isatty())
    _, errors = map_chunks(
        store, cut_into_chunks(num, _CHUNK), lambda row: read_example(source, int(indices[row]), config), config, bar
    )
    if not errors:
        return Images(images, labels, indices)
    report_left_out(len(errors), num, errors[min(errors)])
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
        raise ImageError(error.reason, source.where(index)) from error


def bytes_of_images(num_examples: int, config: DataConfig) -> int:
    """The memory that so many prepared images take."""
    return num_examples * math.prod(config.image_shape)


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
