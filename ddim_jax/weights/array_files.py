"""Named arrays with a text beside them, in one file: ``.safetensors`` or ``.npz``.

Both are read without running anything from them, and both say themselves how long they ought to be. ``.npz`` has
checksums of its own; in a ``.safetensors`` of ours there is one among the texts, which other programs pass over.
"""

import json
import pathlib
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from ddim_jax.digests import crc32_of_array, crc32_of_bytes
from ddim_jax.errors import UserError
from ddim_jax.files import check_kind, write_whole
from ddim_jax.npz import load_arrays, save_arrays

# NumPy's format has no bfloat16: its bits are kept as integers, under a name that says so.
_BFLOAT16_SUFFIX = ":bfloat16"
_TEXT_PREFIX = "text:"

# The text that is the checksum of all others and of the arrays.
_CHECKSUM = "ddim_jax.crc32"


class ArrayFile(NamedTuple):
    """Contents of a file of arrays.

    Attributes:
        arrays: arrays by name.
        texts: texts by name.
    """

    arrays: dict[str, np.ndarray]
    texts: dict[str, str]


def is_safetensors(start: bytes) -> bool:
    """Tells whether a file with these first bytes is ``.safetensors``: eight bytes of length, then JSON."""
    return start[8:9] == b"{"


def is_npz(path: pathlib.Path) -> bool:
    """Tells whether a file is ``.npz``: a zip archive of ``.npy`` files alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.endswith(".npy") for name in archive.namelist())
    except Exception:
        # What wrong bytes in the archive's directory lead to: no list of exceptions is complete.
        return False


def read_safetensors(path: pathlib.Path) -> ArrayFile:
    """Reads a whole ``.safetensors``, and compares it with its checksum where it has one of ours.

    Raises:
        UserError: it is damaged, cut short, or claims what it does not hold.
    """
    check_kind(path)
    try:
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            texts = dict(file.metadata() or {})
        written = texts.pop(_CHECKSUM, None)
        if written is not None and written != _checksum(arrays, texts):
            raise ValueError("it is not what its checksum says")
        return ArrayFile(arrays, texts)
    except (SafetensorError, OSError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged or cut short: download or copy it again ({error})") from error


def write_safetensors(path: epath.PathLike, contents: ArrayFile) -> None:
    """Writes ``.safetensors``, under its final name once it is whole."""
    arrays = {name: np.ascontiguousarray(array) for name, array in contents.arrays.items()}
    texts = {**contents.texts, _CHECKSUM: _checksum(arrays, contents.texts)}
    write_whole(path, safetensors_bytes(arrays, texts))


def _checksum(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> str:
    """CRC-32 of all that a file holds, in whatever order."""
    facts = {name: [array.dtype.name, array.shape, crc32_of_array(array)] for name, array in arrays.items()}
    return crc32_of_bytes(json.dumps([facts, dict(texts)], sort_keys=True).encode())


def read_npz(path: pathlib.Path) -> ArrayFile:
    """Reads a whole ``.npz`` of ours.

    Raises:
        UserError: it is damaged or cut short, or holds Python objects.
    """
    arrays, texts = {}, {}
    try:
        # NumPy warns of some kinds of damage.
        with warnings.catch_warnings(action="error"):
            stored = load_arrays(path)
        for name, array in stored.items():
            if name.startswith(_TEXT_PREFIX):
                texts[name.removeprefix(_TEXT_PREFIX)] = str(array)
            elif name.endswith(_BFLOAT16_SUFFIX):
                arrays[name.removesuffix(_BFLOAT16_SUFFIX)] = array.view(ml_dtypes.bfloat16)
            else:
                arrays[name] = array
    except (UserError, ValueError, KeyError, TypeError, MemoryError, Warning) as error:
        raise UserError(f"{path} is damaged or cut short, or no .npz of arrays: copy it again") from error
    return ArrayFile(arrays, texts)


def write_npz(path: epath.PathLike, contents: ArrayFile) -> None:
    """Writes ``.npz``, under its final name once it is whole.

    Raises:
        UserError: the file cannot be written.
    """
    stored: dict[str, Any] = {_TEXT_PREFIX + name: np.array(text) for name, text in contents.texts.items()}
    for name, array in contents.arrays.items():
        if array.dtype == ml_dtypes.bfloat16:
            stored[name + _BFLOAT16_SUFFIX] = array.view(np.uint16)
        else:
            stored[name] = array
    save_arrays(path, stored)
