"""Images cropped and resized once, and kept on disk for this and later runs (``data.cache=disk``).

Decoding a large JPEG takes hundreds of times as long as copying the 64x64 pixels that a network
sees of it. Here that work is done once. One folder holds one split, prepared in one way::

    CACHE/NAME-HASH/
        images.npy      [n, h, w, c] of the type data.dtype, read through a memory map
        labels.npy      int32 [n]
        vectors.npy     float32 [n, d], where the data have vectors
        paired.npy      [n, h', w', c'], where they have pictures beside the images
        states.npy      uint8 [n]: 0 still to do, 1 done, 2 unusable
        unusable.jsonl  one line for each unusable image: which, where, why
        info.json       what was prepared, and how

CACHE is ``data.cache_dir``, by default ``prepared`` in ddim_jax's cache folder (``cache.py``). The
hash covers all that decides the pixels: the source's identity, crop, resize, size, channels, and
the version of Pillow, which decodes and resizes. Change one, and another folder is used; the old
one stays until you delete it, which is safe at any time when no run uses it.

Images are prepared in chunks by several threads. A chunk's pixels reach the disk before its states
say so, hence whatever stops the program, at whatever moment, what is marked done is there, and the
next run goes on with the rest. A damaged folder is made again. Of several programs that need the
same folder one prepares it, and the others wait (``one_writer.py``).

An image is compared with its checksum whenever it is read. One that a failing disk has changed is
prepared again from its source, and a line says so. Folders of earlier versions have no checksums;
they are read as they are.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from ddim_jax import writers
from ddim_jax.cache import cache_dir, is_trusted
from ddim_jax.config import DataConfig
from ddim_jax.data.reading import (
    Chunk,
    Images,
    bytes_of_images,
    cut_into_chunks,
    empty_images,
    map_chunks,
    put_example,
    read_example,
    report_left_out,
)
from ddim_jax.data.sources import Example, Source, open_source
from ddim_jax.data.transforms import ImageError
from ddim_jax.digests import digest_of_facts
from ddim_jax.errors import UserError
from ddim_jax.files import remove_folder, whole_folder, writing
from ddim_jax.one_writer import one_writer
from ddim_jax.records import read_lines

# Images that a thread prepares between two writes: about a second's work, ...
_CHUNK = 256
# ... but no more than this many bytes, which each thread holds in memory.
_CHUNK_BYTES = 2**24

# To who waits for another job.
_SAY_EVERY_SECONDS = 10.0

_REMEDY = "set data.cache_dir to a folder elsewhere"

# How many damaged images are told of: of a failing disk there may be a million.
_MENDED_TOLD = 5

# Values of states.npy.
_TO_DO, _DONE, _UNUSABLE = range(3)


def open_images(config: DataConfig, split: str | None = None) -> Source:
    """Opens the images of a config; with ``data.cache=disk`` prepares them first, once for all runs.

    Args:
        config: where they are, and how they are prepared.
        split: instead of ``data.split``.

    Returns:
        The source, or with ``data.cache=disk`` a :class:`PreparedSource`, unless others could have written the cache.

    Raises:
        UserError: the source or the folder of prepared images cannot be used.
        ImageError: with ``data.cache=disk``: an image cannot be used and ``data.on_error`` is fail,
            or none can.
    """
    if split is not None:
        config = dataclasses.replace(config, split=split)
    source = open_source(config)
    if config.cache != "disk" or not is_trusted(_prepared_dir(source, config, _info(source, config))):
        return source
    return prepare_on_disk(source, config)


def open_validation(config: DataConfig) -> Source | None:
    """Opens the images of ``data.validation`` as :func:`open_images` does; None if it names none."""
    return open_images(config, config.validation) if config.validation else None


class PreparedSource(Source):
    """Images of another source, prepared on disk; the same examples under the same numbers.

    Unusable ones keep their numbers, so that an epoch has the same order as without this cache.

    Attributes:
        images: [n, h, w, c] of the type ``data.dtype``, a memory map; of unusable images the pixels mean nothing.
        labels: int32 [n].
        vectors: float32 [n, d]; None where there are none.
        paired: [n, h', w', c'], a memory map; None where there are none.
        usable: int64 [m], the numbers of the usable examples, in order.
    """

    prepared = True

    def __init__(self, source: Source, folder: Path, config: DataConfig) -> None:
        """Opens a complete folder; see :func:`prepare_on_disk`."""
        self._source = source
        self._folder = folder
        self._config = config
        self.name = source.name
        self.num_classes = source.num_classes
        # Classes that have the members of a source without being subclasses may lack this one.
        self.no_labels_because = getattr(source, "no_labels_because", "")
        self.vector_size = getattr(source, "vector_size", 0)
        self.has_paired = getattr(source, "has_paired", False)
        arrays = _open_arrays(folder, source, config)
        self.images, self.labels = arrays["images"], np.array(arrays["labels"])
        self.vectors = np.array(arrays["vectors"]) if "vectors" in arrays else None
        self.paired = arrays.get("paired")
        self._checksums = arrays.get("checksums")
        self._mending = threading.Lock()
        self._mended = 0
        usable = arrays["states"] == _DONE
        self.usable = np.flatnonzero(usable)
        self._reasons = {} if usable.all() else _read_reasons(folder)

    def __len__(self) -> int:
        """The number of examples, unusable ones among them."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        """Reads example ``index``, prepared.

        Raises:
            ImageError: it is unusable, for the reason found when it was prepared.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} examples; there is no number {index}")
        place = np.searchsorted(self.usable, index)
        if place == len(self.usable) or self.usable[place] != index:
            raise ImageError(self._reasons.get(index, f"it was found unusable; see {self._folder / 'unusable.jsonl'}"))
        return _example(self.rows(np.array([index])), 0)

    def rows(self, indices: np.ndarray) -> Images:
        """Copies usable examples, compared with their checksums; those that are damaged are prepared again.

        Args:
            indices: their numbers, int64 [b].

        Returns:
            The examples, [b] of them.

        Raises:
            ImageError: one is damaged and cannot be prepared again.
        """
        vectors, paired = (None if array is None else array[indices] for array in (self.vectors, self.paired))
        images = Images(self.images[indices], self.labels[indices], indices, vectors, paired)
        if self._checksums is not None:
            for place, index in enumerate(indices):
                if _checksum(_example(images, place)) != self._checksums[index]:
                    put_example(images, place, self._mend(int(index)))
        return images

    def _mend(self, index: int) -> Example:
        """Prepares an example again, and keeps it."""
        try:
            example = read_example(self._source, index, self._config)
        except ImageError as error:
            reason = f"what was prepared of it in {self._folder} is damaged, and it cannot be again: {error.reason}"
            raise ImageError(reason, self._source.where(index)) from error
        with self._mending:
            self.labels[index] = example.label
            if self.vectors is not None:
                self.vectors[index] = example.vector
            self._mended += 1
            # What cannot be kept is prepared again the next time.
            with contextlib.suppress(OSError):
                images = empty_images(self, self._config, np.array([index]))
                put_example(images, 0, example)
                _write_examples(self._folder, index, images)
            if self._mended <= _MENDED_TOLD:
                more = "; further ones are not told" if self._mended == _MENDED_TOLD else ""
                writers.say(
                    f"warning: {self._folder}: image {index} is damaged; it is prepared again from "
                    f"{self._source.where(index)}{more}"
                )
        return example

    def where(self, index: int) -> str:
        """The file or record that the image was made from."""
        return self._source.where(index)

    def identity(self) -> dict[str, str | int]:
        """The folder, whose name has a hash of all that decides the pixels."""
        return {"source": "prepared", "folder": self._folder.name}

    def describe(self) -> str:
        """Describes the source in one line for the log, with the folder."""
        return f"{super().describe()}, prepared in {self._folder}"


def prepare_on_disk(source: Source, config: DataConfig) -> PreparedSource:
    """Prepares all images of a source that are not prepared yet, and opens the result.

    Args:
        source: the examples.
        config: the keys crop, resize, image_size, channels and dtype decide the pixels; ``cache_dir``
            says where they are kept, ``threads`` how many are prepared at a time. Under
            ``on_error=skip`` unusable images are left out with a warning, as everywhere.

    Raises:
        UserError: the folder cannot be written.
        ImageError: an image cannot be used and ``data.on_error`` is fail, or none can. The images
            prepared so far are kept.
    """
    info = _info(source, config)
    folder = _prepared_dir(source, config, info)
    if not _is_complete(folder, source, config):
        with one_writer(
            folder.parent, folder.name, str(folder), _REMEDY, of_each_process=True, while_waiting=_progress_of(folder)
        ):
            _prepare(folder, source, config, info)
    states = _open_arrays(folder, source, config)["states"]
    unusable = np.flatnonzero(states == _UNUSABLE)
    if len(unusable):
        error = _image_error(source, int(unusable[0]), _read_reasons(folder))
        if config.on_error == "fail":
            raise error
        report_left_out(len(unusable), len(source), error)
    return PreparedSource(source, folder, config)


def _prepare(folder: Path, source: Source, config: DataConfig, info: dict[str, Any]) -> None:
    """Prepares what is still to do, perhaps all."""
    if folder.exists() and (damage := _find_damage(folder, source, config)):
        writers.say(f"warning: {damage}; the images are prepared again")
        _remove(folder)
    if not folder.exists():
        _create(folder, source, config, info)
    states = _open_arrays(folder, source, config)["states"]
    with writing(folder, _REMEDY):
        for index in np.flatnonzero(_doubtful(folder, states)):
            _write_rows(folder / "states.npy", int(index), np.array([_TO_DO], np.uint8))
    unusable = np.flatnonzero(states == _UNUSABLE)
    if len(unusable) and config.on_error == "fail":
        raise _image_error(source, int(unusable[0]), _read_reasons(folder))
    if np.any(states == _TO_DO):
        _fill(folder, source, config, states)


def _progress_of(folder: Path) -> Callable[[], None]:
    """Makes what says now and then how far another job is that prepares the folder."""
    said_at = time.monotonic()

    def tell() -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _SAY_EVERY_SECONDS and folder.exists():
            states = np.load(folder / "states.npy", mmap_mode="r")
            writers.say(f"{folder}: {np.count_nonzero(states):,} of {len(states):,} images are prepared")
            said_at = time.monotonic()

    return tell


def _info(source: Source, config: DataConfig) -> dict[str, Any]:
    """Collects all that decides what the folder holds."""
    keys = ["crop", "resize", "image_size", "channels"]
    # What is as it always was has no part in the hash, so that folders of earlier versions are found.
    if config.dtype != "uint8":
        keys.append("dtype")
    paired = {"paired_shape": config.paired_shape} if getattr(source, "has_paired", False) else {}
    return {
        "source": source.identity(),
        **{key: getattr(config, key) for key in keys},
        **paired,
        "pillow": PIL.__version__,
    }


def _prepared_dir(source: Source, config: DataConfig, info: dict[str, Any]) -> Path:
    if "://" in config.cache_dir:
        raise UserError(f"data.cache_dir={config.cache_dir!r}: name a folder of this machine: images are memory-mapped")
    root = Path(config.cache_dir).expanduser() if config.cache_dir else cache_dir("prepared")
    name = re.sub(r"[^\w.-]+", "_", source.name)[:60]
    return root / f"{name}-{digest_of_facts(info)[:12]}"


def _arrays(source: Source, config: DataConfig) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """The arrays of a folder: dtype and shape by name."""
    num, size = len(source), getattr(source, "vector_size", 0)
    found = {
        "images": (np.dtype(config.dtype), (num, *config.image_shape)),
        "labels": (np.dtype(np.int32), (num,)),
        "checksums": (np.dtype(np.uint32), (num,)),
        "states": (np.dtype(np.uint8), (num,)),
    }
    if size:
        found["vectors"] = (np.dtype(np.float32), (num, size))
    if getattr(source, "has_paired", False):
        found["paired"] = (np.dtype(config.dtype), (num, *config.paired_shape))
    return found


def _find_damage(folder: Path, source: Source, config: DataConfig) -> str:
    """Says what keeps a folder from being used or completed; empty if nothing."""
    try:
        _open_arrays(folder, source, config)
    except UserError as error:
        return str(error)
    return ""


def _is_complete(folder: Path, source: Source, config: DataConfig) -> bool:
    """Whether a folder can be used as it is."""
    if not folder.exists() or _find_damage(folder, source, config):
        return False
    states = _open_arrays(folder, source, config)["states"]
    return not np.any((states == _TO_DO) | _doubtful(folder, states))


def _doubtful(folder: Path, states: np.ndarray) -> np.ndarray:
    """Finds what only a damaged file can say: states that there are not, and unusable images without reason.

    The reason is written before the state.
    """
    doubtful = states > _UNUSABLE
    if np.any(states == _UNUSABLE):
        known = np.zeros(len(states), bool)
        known[[index for index in _read_reasons(folder) if index in range(len(states))]] = True
        doubtful |= (states == _UNUSABLE) & ~known
    return doubtful


def _remove(folder: Path) -> None:
    """Removes a damaged folder; programs that have it open keep what they see."""
    try:
        remove_folder(folder)
    except FileNotFoundError:
        return  # another program was faster
    except OSError as error:
        raise UserError(f"{folder} is damaged and cannot be removed: {error.strerror}; delete it") from error


def _create(folder: Path, source: Source, config: DataConfig, info: dict[str, Any]) -> None:
    """Makes a folder in which all is still to do: whole under its final name, or not at all."""
    with whole_folder(folder, _REMEDY) as partial:
        for name, (dtype, shape) in _arrays(source, config).items():
            # A file of zeros, which take no space before they are overwritten.
            np.lib.format.open_memmap(partial / f"{name}.npy", "w+", dtype, shape).flush()
        (partial / "info.json").write_text(json.dumps(info, indent=2) + "\n")


def _example(images: Images, place: int) -> Example:
    """One of some images."""
    vector, paired = (None if array is None else array[place] for array in (images.vector, images.paired))
    return Example(images.image[place], int(images.label[place]), vector, paired)


def _checksum(example: Example) -> int:
    checksum = zlib.crc32(np.int32(example.label).tobytes(), zlib.crc32(_bytes(example.image)))
    for array in (example.vector, example.paired):
        if array is not None:
            checksum = zlib.crc32(_bytes(array), checksum)
    return checksum


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write_examples(folder: Path, start: int, images: Images) -> None:
    """Writes consecutive examples with their checksums, where the folder has any."""
    for name, array in zip(
        ("images", "labels", "vectors", "paired"),
        (images.image, images.label, images.vector, images.paired),
        strict=True,
    ):
        if array is not None:
            _write_rows(folder / f"{name}.npy", start, array)
    if (folder / "checksums.npy").exists():
        checksums = [_checksum(_example(images, place)) for place in range(len(images.label))]
        _write_rows(folder / "checksums.npy", start, np.array(checksums, np.uint32))


def _fill(folder: Path, source: Source, config: DataConfig, states: np.ndarray) -> None:
    """Prepares the images that ``states``, a memory map that shows each change, marks as to do."""
    length = max(1, min(_CHUNK, _CHUNK_BYTES // bytes_of_images(1, config)))
    chunks = [rows for rows in cut_into_chunks(len(states), length) if _has_to_do(states, rows)]
    num = sum(map(len, chunks))
    needed, free = bytes_of_images(num, config), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} needs {needed / 2**30:.3g} GiB more, but {free / 2**30:.3g} GiB are free; "
            "make space, set data.cache_dir to a folder elsewhere, or data.cache=none"
        )

    def prepare(chunk: Chunk) -> None:
        start, size = chunk.rows.start, len(chunk.rows)
        if not _has_to_do(states, chunk.rows):
            return  # Another program was here meanwhile.
        images = empty_images(source, config, np.arange(start, start + size))
        marks = np.full(size, _UNUSABLE, np.uint8)
        for row, example in chunk:
            put_example(images, row - start, example)
            marks[row - start] = _DONE
        with writing(folder, _REMEDY):
            _write_examples(folder, start, images)
            _add_reasons(folder, source, {row: error.reason for row, error in chunk.errors.items()})
            _write_rows(folder / "states.npy", start, marks)

    bar = writers.progress(len(states), f"preparing {source.name}", " images", len(states) - num)
    map_chunks(prepare, chunks, lambda row: read_example(source, row, config), config, bar)


def _has_to_do(states: np.ndarray, rows: range) -> bool:
    return bool(np.any(states[rows.start : rows.stop] == _TO_DO))


def _write_rows(path: Path, start: int, rows: np.ndarray) -> None:
    """Overwrites rows of an array's file; they are on the disk when this returns.

    A write through the memory map would crash the process where the disk is full; this raises.
    """
    offset: int = np.load(path, mmap_mode="r").offset
    with path.open("r+b") as file:
        file.seek(offset + start * rows[0].nbytes)
        file.write(rows.tobytes())
        _to_disk(file)


def _add_reasons(folder: Path, source: Source, reasons: dict[int, str]) -> None:
    if not reasons:
        return
    lines = [
        json.dumps({"index": index, "where": source.where(index), "reason": reason})
        for index, reason in reasons.items()
    ]
    # The first new line ends one that was cut off when a program was killed. Without a buffer all lines are one write,
    # so that those of several threads do not mix.
    with (folder / "unusable.jsonl").open("ab", buffering=0) as file:
        file.write(("\n" + "\n".join(lines) + "\n").encode())
        _to_disk(file)


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _read_reasons(folder: Path) -> dict[int, str]:
    """Reads the reason of each unusable image; lines that were cut off, and blank ones, are passed over."""
    path = folder / "unusable.jsonl"
    records = [record for _, record in read_lines(path) if record] if path.exists() else []
    kinds = {"index": int, "reason": str}
    sound = [each for each in records if all(isinstance(each.get(key), kind) for key, kind in kinds.items())]
    return {record["index"]: record["reason"] for record in sound}


def _image_error(source: Source, index: int, reasons: dict[int, str]) -> ImageError:
    return ImageError(reasons.get(index, "the image cannot be used"), source.where(index))


def _open_arrays(folder: Path, source: Source, config: DataConfig) -> dict[str, np.ndarray]:
    """Opens the arrays of a folder through memory maps; folders of earlier versions have no ``checksums``.

    Raises:
        UserError: one is missing, cut off, or says that it is another than was made.
    """
    found = {}
    for name, (dtype, shape) in _arrays(source, config).items():
        path = folder / f"{name}.npy"
        if name == "checksums" and not path.exists():
            continue
        try:
            array: Any = np.load(path, mmap_mode="r")
            if (array.dtype, array.shape, array.flags.c_contiguous) != (dtype, shape, True):
                raise ValueError(f"it says that it is {array.dtype} {list(array.shape)}")
            if path.stat().st_size != array.offset + array.nbytes:
                raise ValueError("it has not the size that it says")
        except Exception as error:
            # What a wrong byte leads NumPy's reader to: no list of exceptions is complete.
            reason = " ".join(str(error).split())
            raise UserError(f"{path} cannot be read: {reason}") from error
        found[name] = array
    return found
