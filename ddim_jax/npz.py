"""Arrays by name in ``.npz`` files that appear whole or not at all."""

import os
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from ddim_jax.errors import UserError
from ddim_jax.files import whole_file

# The last bytes of a zip archive: signature, two numbers of disks, members on this one and in all, size and place of
# the directory, length of a comment.
_END = struct.Struct("<4s4H2LH")


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
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            _check_number(archive)
            return {
                member.filename.removesuffix(".npy"): _read_member(archive, member) for member in archive.infolist()
            }
    except MemoryError:
        # How much of it there is, is no property of the file.
        raise
    except Exception as error:
        # What a wrong byte leads the zip archive's and NumPy's readers to: no list of exceptions is complete.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no whole .npz of arrays"
        raise UserError(f"{path} cannot be read: {reason}") from error


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


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    """Reads an array to its file's end, where the archive compares its checksum; bytes of a file of another kind.

    NumPy's own reader stops where the header says: one that a flipped bit has made smaller would go unnoticed.
    """
    with archive.open(member) as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            return archive.read(member)
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{member.filename} is longer than its header says")
    return array


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
