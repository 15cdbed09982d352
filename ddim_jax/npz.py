"""Arrays by name in ``.npz`` files that appear whole or not at all."""

import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from ddim_jax.errors import UserError
from ddim_jax.files import whole_file


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
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no whole .npz of arrays"
        raise UserError(f"{path} cannot be read: {reason}") from error


def array_names(path: epath.PathLike) -> list[str]:
    """Names of the arrays in an ``.npz``, which are not read.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = epath.Path(path)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no .npz of arrays"
        raise UserError(f"{path} cannot be read: {reason}") from error


class NpzInParts:
    """An ``.npz`` of arrays [n, ...], one of them ``index`` [n], that many batches and processes fill.

    Each batch is a file in ``parts/`` until all are there; a program that was killed goes on with what is missing.
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
        return [self._path] if self._path.exists() else sorted(self._parts.glob("*.npz"))

    def indices(self) -> np.ndarray:
        """The items that are there: int64 [k], in no order."""
        found = [np.empty(0, np.int64)]
        for path in self._paths():
            with path.open("rb") as file, np.load(file) as part:
                found.append(part["index"])
        return np.concatenate(found)

    def load(self) -> dict[str, np.ndarray]:
        """All arrays so far; empty if there are none."""
        parts = [load_arrays(path) for path in self._paths()]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        """Keeps a batch: arrays by name, ``index`` among them, whose first value is no other batch's."""
        save_arrays(self._parts / f"{values['index'][0]:06d}-{self._process}.npz", values)

    def finish(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Joins the parts in the order of ``indices``, and returns all arrays."""
        values = self.load()
        assert np.array_equal(np.sort(values["index"]), np.sort(indices)), "parts do not add up to what was asked for"
        order = np.argsort(values["index"])[np.argsort(np.argsort(indices))]
        values = {name: of_items[order] for name, of_items in values.items()}
        if not self._path.exists():
            save_arrays(self._path, values)
        self._parts.rmtree(missing_ok=True)
        return values
