"""Arrays by name in ``.npz`` files that appear whole or not at all.

A file may be hostile or damaged. What an array's header claims is compared with what the archive holds before memory is
taken for it, and that with what deflate can have packed into so many bytes.
"""

import io
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from ddim_jax.errors import UserError
from ddim_jax.files import check_kind, whole_file

# Of a packed byte deflate makes no more than this, and a little at the start.
_MOST_UNPACKED = 1032
_LEAST_BYTES = 2**16

# Nothing that is this long packs so well: not images, not weights, not statistics.
_LONG_BYTES = 2**29
_MOST_UNPACKED_OF_LONG = 200

# Bytes of an array's header that are looked at: more than any array without fields has.
_HEADER_BYTES = 2**16
_MAX_DIMENSIONS = 32


def save_arrays(path: epath.PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes ``.npz``; several programs may write the same file at once, and one of them wins.

    Raises:
        UserError: the file cannot be written.
    """
    path = epath.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def load_arrays(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Reads a whole ``.npz``.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = epath.Path(path)
    check_kind(path)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            _check_sizes(members, file.seek(0, 2))
            return {info.filename.removesuffix(".npy"): _read_member(archive, info) for info in members}
    except MemoryError:
        # How much of it there is, is no property of the file.
        raise
    except Exception as error:
        # What a wrong byte leads the zip archive's and NumPy's readers to: no list of exceptions is complete.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no whole .npz of arrays"
        raise UserError(f"{path} cannot be read: {reason}") from error


def _check_sizes(members: Sequence[zipfile.ZipInfo], file_size: int) -> None:
    """Refuses members that NumPy never writes, or that claim more than the file can hold.

    Raises:
        ValueError: there is one.
    """
    for info in members:
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("encrypted, or compressed in a way that NumPy does not know")
        most = info.compress_size * (1 if info.compress_type == zipfile.ZIP_STORED else _MOST_UNPACKED)
        if info.file_size > max(most, _LEAST_BYTES):
            raise ValueError("a member claims more than it can hold")
    unpacked, packed = sum(info.file_size for info in members), sum(info.compress_size for info in members)
    if unpacked > max(_LONG_BYTES, _MOST_UNPACKED_OF_LONG * packed):
        raise ValueError("a bomb: a short file that unpacks to fill the memory")
    # Members of a hostile archive can lie over each other.
    if packed > file_size:
        raise ValueError("the members are longer than the file")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Reads an array, if its header claims just the bytes that follow.

    Raises:
        ValueError: it claims others, or holds Python objects.
    """
    with archive.open(info) as file:
        start = io.BytesIO(file.read(_HEADER_BYTES))
    version = np.lib.format.read_magic(start)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = readers[version](start)
    if (
        dtype.hasobject
        or dtype.names
        or not dtype.itemsize
        or len(shape) > _MAX_DIMENSIONS
        or any(size < 0 for size in shape)
    ):
        raise ValueError("Python objects, elements with fields or of no length, or an impossible shape")
    if start.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError("an array is not as long as its header says")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def load_if_whole(path: epath.PathLike) -> dict[str, np.ndarray] | None:
    """Reads an ``.npz`` that a killed program may have left for its successor; None if there is none, or not whole."""
    try:
        return load_arrays(path)
    except UserError:
        return None


def array_names(path: epath.PathLike) -> list[str]:
    """Names of the arrays in an ``.npz``, which are not read.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = epath.Path(path)
    check_kind(path)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no .npz of arrays"
        raise UserError(f"{path} cannot be read: {reason}") from error


class NpzInParts:
    """An ``.npz`` of arrays [n, ...], one of them ``index`` [n], that many batches and processes fill.

    Each batch is a file in ``parts/`` until all are there; a program that was killed goes on with what is missing. A
    file that is not whole counts as missing, and files of other names are nothing of ours.
    """

    def __init__(self, path: epath.Path, process: int = 0) -> None:
        """Makes nothing yet.

        Args:
            path: the file.
            process: number of this process, for names of parts.
        """
        self._path = path
        self._parts = path.parent / "parts"
        self._process = process

    def _paths(self) -> list[epath.Path]:
        if _is_whole(self._path):
            return [self._path]
        parts = sorted(path for path in self._parts.glob("*.npz") if re.fullmatch(r"\d{6,}-\d+", path.stem))
        return [path for path in parts if _is_whole(path)]

    def indices(self) -> np.ndarray:
        """The items that are there: int64 [k], in no order."""
        found = [np.empty(0, np.int64)]
        for path in self._paths():
            with path.open("rb") as file, np.load(file) as part:
                found.append(part["index"])
        return np.concatenate(found)

    def load(self) -> dict[str, np.ndarray]:
        """All arrays so far; empty if there are none."""
        return _joined(self._paths())

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        """Keeps a batch: arrays by name, ``index`` among them, whose first value is no other batch's."""
        save_arrays(self._parts / f"{values['index'][0]:06d}-{self._process}.npz", values)

    def finish(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Joins the parts in the order of ``indices``, and returns all arrays."""
        paths = self._paths()
        values = _joined(paths)
        assert np.array_equal(np.sort(values["index"]), np.sort(indices)), "parts do not add up to what was asked for"
        order = np.argsort(values["index"])[np.argsort(np.argsort(indices))]
        values = {name: of_items[order] for name, of_items in values.items()}
        if paths != [self._path]:
            save_arrays(self._path, values)
        self._parts.rmtree(missing_ok=True)
        return values


def _joined(paths: Sequence[epath.Path]) -> dict[str, np.ndarray]:
    parts = [load_arrays(path) for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _is_whole(path: epath.Path) -> bool:
    """Whether a file is a whole ``.npz`` with an ``index``: all of it is read, for the checksums."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return "index.npy" in archive.namelist() and archive.testzip() is None
    except Exception:
        return False
