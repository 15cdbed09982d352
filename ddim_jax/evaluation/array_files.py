"""Arrays in ``.npz`` files that appear whole or not at all, and hashes to name files by."""

import hashlib
import json
import uuid
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from ddim_jax.errors import UserError


def save_arrays(path: epath.PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes ``.npz``; several programs may write the same file at once, and one of them wins.

    Raises:
        UserError: the file cannot be written.
    """
    path = epath.Path(path)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
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


def digest(facts: Any) -> str:
    """SHA-256 of JSON's types, in hexadecimal; names of files take its beginning."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
