"""An array of images, in a file or in the memory of the program."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ddim_jax.config import DataConfig
from ddim_jax.data.sources.array_files import ArrayFile, ArraysInMemory
from ddim_jax.data.sources.protocol import Example, Source
from ddim_jax.data.splits import split_indices
from ddim_jax.errors import UserError

# Names under which the images of an .npz are looked for, and those of what belongs to them.
_IMAGES, _LABELS, _PAIRED = ("images", "arr_0"), "labels", "paired"

# As many as a network may have.
_MOST_CLASSES = 10_000_000

# What a path begins with that means arrays in the memory of this program.
IN_MEMORY = "memory:"

# Those that the program has handed over, by path.
_handed_over: dict[str, ArraysInMemory] = {}


def hand_over(arrays: Mapping[str, np.ndarray], digest: str) -> str:
    """Lets configs name arrays that are in memory, and returns the ``data.path`` that does.

    Args:
        arrays: ``images``, and perhaps ``labels``, ``vectors`` and ``paired``.
        digest: of their contents, which tells them from others.
    """
    path = IN_MEMORY + digest
    _handed_over[path] = ArraysInMemory(arrays, digest)
    return path


def take_back(path: str) -> None:
    """Lets go of arrays that were handed over; nothing happens if they are gone."""
    _handed_over.pop(path, None)


class ArraySource(Source):
    """Images [n, h, w, c], or [n, h, w] of one channel, in a ``.npy`` or ``.npz`` file.

    The file is mapped into memory, so that it may be larger than that; only what is asked for is read. (Compressed
    members of an ``.npz`` have to be read whole.) Labels, vectors and paired pictures are other arrays of the same
    length: members of the ``.npz``, or files of their own.

    A split is a slice of the array's order. The number of classes is that of the whole array, whatever the slice.
    """

    def __init__(self, config: DataConfig) -> None:
        """Opens the file and reads labels and vectors.

        Args:
            config: the keys path, name, split, labels, vector, condition and condition_path.

        Raises:
            UserError: there is no such file or array, or the arrays do not belong together.
        """
        if not config.path:
            raise UserError("data.path='': name the .npy or .npz file of images")
        file = _open(config.path, "data.path")
        self._images = _as_images(file, _name_of_images(file), config)
        num = len(self._images)
        if not num:
            raise UserError(f"data.path={config.path!r} has no images: its length is 0")
        self.name = config.name or ("array" if config.path.startswith(IN_MEMORY) else Path(config.path).stem)
        self._facts = [file.facts(), config.split]
        self._rows = split_indices(config.split, num, self.name)
        labels = self._read_labels(file, config)
        self.num_classes = 0 if labels is None else int(labels.max()) + 1
        self._labels = np.zeros(num, np.int32) if labels is None else labels
        self._vectors = self._read_vectors(file, config)
        self.vector_size = 0 if self._vectors is None else self._vectors.shape[1]
        self._paired = self._open_paired(file, config)

    def __len__(self) -> int:
        """The number of images, or as many as are in the slice."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """Reads image ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images; there is no number {index}")
        row = self._rows[index]
        vector, paired = (None if array is None else np.array(array[row]) for array in (self._vectors, self._paired))
        return Example(np.array(self._images[row]), int(self._labels[row]), vector, paired)

    def where(self, index: int) -> str:
        """The row of the array."""
        return f"{self.name}, image {self._rows[index]}"

    def identity(self) -> dict[str, str | int]:
        """Names, sizes and times of change of the files, which are not read, and what of them is used."""
        return {"source": "array", "files": " ".join(self._facts)}

    def _read_labels(self, file: "ArrayFile | ArraysInMemory", config: DataConfig) -> np.ndarray | None:
        """The classes of all images, int32 [n]; None where there are none."""
        name = config.labels or (_LABELS if _LABELS in file.names else "")
        if not name:
            return None
        where = f"data.labels={name!r}"
        found = self._member(file, name, "data.labels")
        check_length(len(found), len(self._images), where, self.name)
        labels = np.asarray(found).reshape(len(found), -1)
        if labels.shape[1] != 1:
            raise UserError(f"{where}: give one number for each image, not an array {list(found.shape)}")
        labels = labels[:, 0]
        if labels.dtype.kind not in "iufb":
            raise UserError(f"{where} holds values like {labels[0]!r}; number the classes 0, 1, 2, ...")
        wrong = np.flatnonzero(~((labels >= 0) & (labels == np.floor(labels)) & (labels < _MOST_CLASSES)))
        if len(wrong):
            row = int(wrong[0])
            raise UserError(f"{where}: the label of image {row} is {labels[row]}; number the classes 0, 1, 2, ...")
        return labels.astype(np.int32)

    def _read_vectors(self, file: "ArrayFile | ArraysInMemory", config: DataConfig) -> np.ndarray | None:
        """The vectors of all images, float32 [n, d]; None where there are none."""
        if not config.vector:
            return None
        if config.vector.lower().endswith(".csv"):
            vectors = read_vectors(config.vector, None)
            self._facts.append(_stat(config.vector))
        else:
            vectors = self._member(file, config.vector, "data.vector")
        check_length(len(vectors), len(self._images), f"data.vector={config.vector!r}", self.name)
        return as_vectors(vectors, config.vector)

    def _open_paired(self, file: "ArrayFile | ArraysInMemory", config: DataConfig) -> np.ndarray | None:
        if config.condition != "paired":
            return None
        if config.condition_path:
            file = _open(config.condition_path, "data.condition_path")
            name = _name_of_images(file)
            self._facts.append(file.facts())
        elif _PAIRED in file.names:
            name = _PAIRED
        else:
            raise UserError(
                f"data.condition=paired: name the second pictures by data.condition_path, or store them as {_PAIRED!r} "
                "in an .npz beside the images"
            )
        paired = _as_images(file, name, config)
        check_length(len(paired), len(self._images), config.condition_path or f"{config.path}: {name}", self.name)
        return paired

    def _member(self, file: "ArrayFile | ArraysInMemory", name: str, key: str) -> np.ndarray:
        """An array of the images' file, or of a ``.npy`` file of its own."""
        if name not in file.names and name.lower().endswith(".npy"):
            file = ArrayFile(name, key)
            self._facts.append(file.facts())
            return _with_rows(file[""], f"{key}={name!r}")
        self._facts.append(name)
        if name not in file.names:
            has = ", ".join(sorted(filter(None, file.names))) or "one array without name"
            raise UserError(f"{key}={name!r}: no such array beside the images, and no .npy file; there is {has}")
        return _with_rows(file[name], f"{key}={name!r}")


def read_vectors(path: str, files: list[str] | None) -> np.ndarray:
    """Reads the vectors in a ``.csv`` or ``.npy`` file: float [n, d].

    Args:
        path: the file. A table may begin with a line of names. Its rows are those of the images in order; or, where
            ``files`` is given and the first column is no number, those whose file it names.
        files: relative names of the image files, in their order; None where images have none.

    Raises:
        UserError: it cannot be read, or does not name the files.
    """
    where = f"data.vector={path!r}"
    if path.lower().endswith(".npy"):
        return _with_rows(ArrayFile(path, "data.vector")[""], where)
    try:
        with Path(path).expanduser().open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if rows and not any(_is_number(cell) for cell in rows[0]):
        rows = rows[1:]  # names of the columns
    if not rows:
        raise UserError(f"{where} has no rows")
    if files is not None and not _is_number(rows[0][0]):
        by_name = {row[0]: row[1:] for row in rows}
        missing = [name for name in files if name not in by_name]
        if missing:
            raise UserError(f"{where} has no row for {len(missing):,} images, the first is {missing[0]!r}")
        rows = [by_name[name] for name in files]
    width = len(rows[0])
    for number, row in enumerate(rows):
        if len(row) != width or not all(map(_is_number, row)):
            raise UserError(f"{where}: row {number} is not {width} numbers: {', '.join(row)[:60]}")
    return np.array([[float(cell) for cell in row] for row in rows], np.float64)


def as_vectors(vectors: np.ndarray, name: str) -> np.ndarray:
    """Numbers of images [n] or [n, d] as float32 [n, d].

    Raises:
        UserError: they are of another shape, no numbers, or NaN or infinite.
    """
    if vectors.ndim not in (1, 2) or vectors.dtype.kind not in "iufb" or not vectors[:1].size:
        raise UserError(
            f"data.vector={name!r}: give an array of numbers [images, numbers of each], not {vectors.dtype} "
            f"{list(vectors.shape)}"
        )
    with np.errstate(over="ignore"):
        vectors = np.asarray(vectors, np.float32).reshape(len(vectors), -1)
    wrong = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(wrong):
        raise UserError(
            f"data.vector={name!r}: {len(wrong):,} vectors hold NaN or infinite values, the first is that of image "
            f"{wrong[0]}"
        )
    return vectors


def check_length(found: int, wanted: int, where: str, name: str) -> None:
    """Checks that something has as many rows as there are images.

    Raises:
        UserError: it has not.
    """
    if found != wanted:
        raise UserError(f"{where} has {found:,} rows, but {name} has {wanted:,} images; give one for each")


def _open(path: str, key: str) -> "ArrayFile | ArraysInMemory":
    if not path.startswith(IN_MEMORY):
        return ArrayFile(path, key)
    if path not in _handed_over:
        raise UserError(
            f"{key}={path!r}: the images were in the memory of a Python program; give them to ddim_jax.train again, or "
            "save them and name the .npy file by data.path"
        )
    return _handed_over[path]


def _name_of_images(file: "ArrayFile | ArraysInMemory") -> str:
    if len(file.names) == 1:
        return file.names[0]
    for name in _IMAGES:
        if name in file.names:
            return name
    raise UserError(f"{file.name} has no array 'images'; it has {', '.join(sorted(file.names)) or 'none'}")


def _as_images(file: "ArrayFile | ArraysInMemory", name: str, config: DataConfig) -> np.ndarray:
    """An array of a file as images [n, h, w, c].

    Raises:
        UserError: its shape or type is not that of images.
    """
    array = file[name]
    where = f"array {name!r}" if name else f"the array in {config.path}"
    if array.ndim not in (3, 4) or array.dtype.kind not in "iufb":
        raise UserError(
            f"{where} is {array.dtype} {list(array.shape)}; images are numbers [n, height, width, channels], or "
            "[n, height, width] of one channel"
        )
    if array.ndim == 3:
        return array[..., None]
    channels = config.channels
    if array.shape[1] == channels and array.shape[3] not in (1, channels):
        raise UserError(
            f"{where} is {list(array.shape)}, channels first; store it channels last: "
            "np.save(file, np.moveaxis(array, 1, -1))"
        )
    return array


def _with_rows(array: np.ndarray, where: str) -> np.ndarray:
    if not array.ndim:
        raise UserError(f"{where} is one number; give one for each image")
    return array


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _stat(path: str) -> str:
    found = Path(path).expanduser().stat()
    return f"{Path(path).name} {found.st_size} {found.st_mtime_ns}"
