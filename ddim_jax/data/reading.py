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

_log = logging.getLogger(__name__)

# Images that a thread reads at a time: enough to hide the cost of handing out work.
_CHUNK = 32

# What a line begins with that is about a picture beside an image.
_OF_PAIRED = "the picture of data.condition=paired"

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
    source: Source,
    config: DataConfig,
    indices: Sequence[int] | np.ndarray,
    progress: bool = False,
    read: Callable[[Source, int, DataConfig], Example] | None = None,
) -> Images:
    """Reads the given examples, in the given order, without flips.

    Args:
        source: the examples.
        config: preparation, ``threads`` and ``on_error``.
        indices: [n] which examples; repeats are allowed.
        progress: show a progress bar on a terminal.
        read: reads one of them; :func:`read_example` when None.

    Returns:
        The prepared images. Under ``data.on_error=skip`` unreadable ones are left out, with a
        warning that counts them, so there may be fewer than n; ``index`` says which are there.

    Raises:
        ImageError: an image cannot be used (under skip: none of them can).
    """
    indices = np.asarray(indices, np.int64).reshape(-1)
    num = len(indices)
    images = empty_images(source, config, indices)

    def store(chunk: Chunk) -> None:
        for row, example in chunk:
            put_example(images, row, example)

    bar = writers.progress(num, f"reading {source.name}", " images", show=progress and sys.stderr.isatty())
    _, errors = map_chunks(
        store,
        cut_into_chunks(num, _CHUNK),
        lambda row: (read or read_example)(source, int(indices[row]), config),
        config,
        bar,
    )
    if not errors:
        return images
    report_left_out(len(errors), num, errors[min(errors)])
    kept = np.array([row for row in range(num) if row not in errors])
    return select_rows(images, kept)


def select_rows(images: Images, rows: np.ndarray) -> Images:
    """Copies of some rows of images in memory."""
    vector, paired = (None if array is None else array[rows] for array in (images.vector, images.paired))
    return Images(images.image[rows], images.label[rows], images.index[rows], vector, paired)


def empty_images(source: Source, config: DataConfig, indices: np.ndarray) -> Images:
    """Makes room for these examples, all zeros, of which each has what the source's examples have."""
    num = len(indices)
    # Classes that have the members of a source without being subclasses may lack the newer ones.
    size = getattr(source, "vector_size", 0)
    return Images(
        np.zeros((num, *config.image_shape), config.dtype),
        np.zeros(num, np.int32),
        indices,
        np.zeros((num, size), np.float32) if size else None,
        np.zeros((num, *config.paired_shape), config.dtype) if getattr(source, "has_paired", False) else None,
    )


def put_example(images: Images, row: int, example: Example) -> None:
    """Copies an example into its row."""
    images.image[row], images.label[row] = example.image, example.label
    if images.vector is not None:
        images.vector[row] = example.vector
    if images.paired is not None:
        images.paired[row] = example.paired


def read_example(source: Source, index: int, config: DataConfig) -> Example:
    """Reads one example and prepares its image and what is paired with it, if that is not done.

    Raises:
        ImageError: it cannot be used; the line says which image and why.
    """
    try:
        example = source[index]
        if source.prepared:
            return example
        vector, paired = example.vector, example.paired
        if vector is not None and not np.isfinite(vector).all():
            raise ImageError(f"its vector holds {np.count_nonzero(~np.isfinite(vector))} values that are not finite")
        if paired is not None:
            try:
                paired = prepare_image(paired, paired_config(config))
            except ImageError as error:
                reason = error.reason.replace("data.image_size", "data.condition_size")
                reason = reason.replace("data.channels", "data.condition_channels")
                raise ImageError(f"{_OF_PAIRED}: {reason}") from error
        return Example(prepare_image(example.image, config), example.label, vector, paired)
    except ImageError as error:
        raise ImageError(error.reason, source.where(index)) from error


def read_in_range(source: Source, index: int, config: DataConfig) -> Example:
    """Reads one example for training, whose values must lie in ``data.range``; same errors as :func:`read_example`."""
    example = read_example(source, index, config)
    try:
        check_range(example.image, example.paired, config)
    except ImageError as error:
        raise ImageError(error.reason, source.where(index)) from error
    return example


def check_range(image: np.ndarray, paired: np.ndarray | None, config: DataConfig) -> None:
    """Checks that the values of an image, and of the picture paired with it, lie in ``data.range``, if that is given.

    Raises:
        ImageError: one does not.
    """
    if not config.range:
        return
    _check_limits(image, config)
    if paired is not None:
        try:
            _check_limits(paired, config)
        except ImageError as error:
            raise ImageError(f"{_OF_PAIRED}: {error.reason}") from error


def _check_limits(image: np.ndarray, config: DataConfig) -> None:
    axes = tuple(range(image.ndim - 1))
    lows, highs = np.broadcast_arrays(*(np.array(config.range[start::2]) for start in (0, 1)))
    for found, limits, sign in ((image.min(axes), lows, 1), (image.max(axes), highs, -1)):
        # The config's numbers are Python's, to which float32's are rounded.
        outside = sign * found.astype(np.float64) < sign * limits.astype(image.dtype).astype(np.float64)
        if outside.any():
            channel = int(np.argmax(outside))
            low, high = (np.broadcast_to(each, len(found))[channel] for each in (lows, highs))
            raise ImageError(
                f"channel {channel} holds the value {found[channel]:g}, outside of data.range=({low:g}, {high:g}); "
                "widen the range"
            )


@functools.lru_cache(maxsize=8)
def paired_config(config: DataConfig) -> DataConfig:
    """How the pictures of ``data.condition=paired`` are prepared: like the images, but for size and channels."""
    height, width, channels = config.paired_shape
    return dataclasses.replace(config, image_size=(height, width), channels=channels)


def bytes_of_images(num_examples: int, config: DataConfig) -> int:
    """The memory that so many prepared images take."""
    values = math.prod(config.image_shape) + (math.prod(config.paired_shape) if config.condition == "paired" else 0)
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
