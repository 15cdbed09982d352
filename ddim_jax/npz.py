"""Arrays by name in ``.npz`` files that appear whole or not at all."""

import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from ddim_jax.errors import UserError
from ddim_jax.files import make_folder, whole_file


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
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except MemoryError:
        # How much of it there is, is no property of the file.
        raise
    except Exception as error:
        # What a wrong byte leads the zip archive's and NumPy's readers to: no list of exceptions is complete.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no whole .npz of arrays"
        raise UserError(f"{path} cannot be read: {reason}") from error


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
        self._made = False

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
        save_arrays(self._parts / f"{values['index'][0]:06d}-{self._process}.npz", values, make_parent=not self._made)
        self._made = True

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
        self._made = False
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
