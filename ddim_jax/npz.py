"""Arrays by name in ``.npz`` files that appear whole or not at all.

A file may be hostile or damaged. What an array's header claims is compared with what the archive holds before memory is
taken for it, and that with what deflate can have packed into so many bytes.
"""

import io
import math
import os
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from ddim_jax.errors import UserError
from ddim_jax.files import check_kind, make_folder, whole_file
from ddim_jax.npy import read_header

# Of a packed byte deflate makes no more than this, and a little at the start.
_MOST_UNPACKED = 1032
_LEAST_BYTES = 2**16

# Nothing that is this long packs so well: not images, not weights, not statistics.
_LONG_BYTES = 2**29
_MOST_UNPACKED_OF_LONG = 200

# Bytes of an array's header that are looked at: more than any array without fields has.
_HEADER_BYTES = 2**16
_MAX_DIMENSIONS = 32

# The last bytes of a zip archive: signature, two numbers of disks, members on this one and in all, size and place of
# the directory, length of a comment.
_END = struct.Struct("<4s4H2LH")


def save_arrays(path: epath.PathLike, arrays: Mapping[str, Any], make_parent: bool = True) -> None:
    """Writes ``.npz``; several programs may write the same file at once, and one of them wins.

    Args:
        path: the file.
        arrays: by name.
        make_parent: make its folder if needed. A job does not do that in the midst of its work: a folder that is gone
            was removed by somebody.

    Raises:
        UserError: the file cannot be written.
    """
    path = epath.Path(path)
    if make_parent:
        make_folder(path.parent)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def load_arrays(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Reads a whole ``.npz``.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = epath.Path(path)
    check_kind(path)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            _check_number(archive)
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            _check_sizes(members, file.seek(0, 2))
            for info in archive.infolist():
                archive.open(info).close()  # compares the name with that in the directory
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
    (shape, dtype), _ = read_header(start)
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
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # at its end the archive compares its checksum
    return array


def _check_number(archive: zipfile.ZipFile) -> None:
    """Compares the number of members found with that at the archive's end: a wrong byte can hide some.

    Raises:
        ValueError: they differ.
    """
    file = archive.fp
    assert file is not None, "open"
    file.seek(-_END.size, os.SEEK_END)
    signature, *_, number, _, _, _ = _END.unpack(file.read())
    # Elsewhere where a comment follows, which NumPy does not write, and of another form from 2^16 members on.
    if signature == b"PK\5\6" and number != len(archive.infolist()) & 0xFFFF and number != 0xFFFF:
        raise ValueError(f"{len(archive.infolist())} of {number} members can be found")


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
    file that is not whole counts as missing, and files of other names, or with other arrays than the first whole one,
    are nothing of ours. An item that is in two files is taken from the first.
    """

    def __init__(self, path: epath.Path, process: int = 0, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """Makes nothing yet.

        Args:
            path: the file.
            process: number of this process, for names of parts.
            shapes: of one item of each array but ``index``; None where that is not known beforehand.
        """
        self._path = path
        self._parts = path.parent / "parts"
        self._process = process
        self._shapes = shapes
        self._made = False

    def _files(self) -> list[tuple[epath.Path, np.ndarray]]:
        """The whole files, each with its index."""
        parts = self._parts.glob("*.npz")
        named = sorted(path for path in parts if re.fullmatch(r"\d{6,}-\d+", path.stem, re.ASCII))
        files, shapes = [], self._shapes
        for path in (self._path, *named):
            found = _read_shapes(path)
            if found is not None and (shapes is None or found[1] == shapes):
                shapes = found[1]
                files.append((path, found[0]))
        return files

    def indices(self) -> np.ndarray:
        """The items that are there: int64 [k], ascending."""
        return np.unique(np.concatenate([np.empty(0, np.int64), *(index for _, index in self._files())]))

    def load(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """All arrays of these items, in this order.

        Raises:
            UserError: one is not there.
        """
        return _joined(self._path, self._files(), indices)

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        """Keeps a batch: arrays by name, ``index`` among them, whose first value is no other batch's."""
        save_arrays(self._parts / f"{values['index'][0]:06d}-{self._process}.npz", values, make_parent=not self._made)
        self._made = True

    def finish(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Joins the parts in the order of ``indices``, and returns all arrays.

        Raises:
            UserError: see :meth:`load`.
        """
        files = self._files()
        values = _joined(self._path, files, indices)
        if not files or files[0][0] != self._path or not np.array_equal(files[0][1], indices):
            save_arrays(self._path, values)
        self._parts.rmtree(missing_ok=True)
        self._made = False
        return values


def _joined(
    path: epath.Path, files: Sequence[tuple[epath.Path, np.ndarray]], indices: np.ndarray
) -> dict[str, np.ndarray]:
    places, first = np.unique(
        np.concatenate([np.empty(0, np.int64), *(index for _, index in files)]), return_index=True
    )
    missing = np.setdiff1d(indices, places)
    if len(missing):
        raise UserError(
            f"{path}: item {missing[0]} is not there any more, perhaps deleted meanwhile; give the same command again"
        )
    order = first[np.searchsorted(places, indices)]
    parts = [load_arrays(part) for part, _ in files]
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]} if parts else {}


def _read_shapes(path: epath.Path) -> tuple[np.ndarray, dict[str, tuple[int, ...]]] | None:
    """The index in a file, and the shape of one item of each other array; None where it is no whole part.

    All of it is read, for the checksums, but not kept.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            headers = {name.removesuffix(".npy"): _read_shape(archive, name) for name in archive.namelist()}
            length = headers.pop("index")
            if archive.testzip() is not None or any(shape[:1] != length for shape in headers.values()):
                return None
            with archive.open("index.npy") as member:
                index = np.lib.format.read_array(member, allow_pickle=False)
    except Exception:
        # What wrong bytes lead to: no list of exceptions is complete.
        return None
    is_index = index.shape == length and index.ndim == 1 and index.dtype.kind in "iu"
    return (index.astype(np.int64), {name: shape[1:] for name, shape in headers.items()}) if is_index else None


def _read_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name) as member:
        return read_header(member)[0].shape
