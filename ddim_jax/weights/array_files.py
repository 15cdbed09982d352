"""Named arrays with a text beside them, in one file: ``.safetensors`` or ``.npz``.

Both are read without running anything from them, and both say themselves how long they ought to be.
"""

import io
import pathlib
import warnings
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from ddim_jax.errors import UserError
from ddim_jax.files import write_whole

# NumPy's format has no bfloat16: its bits are kept as integers, under a name that says so.
_BFLOAT16_SUFFIX = ":bfloat16"
_TEXT_PREFIX = "text:"


class ArrayFile(NamedTuple):
    """What such a file holds.

    Attributes:
        arrays: by name.
        texts: by name.
    """

    arrays: dict[str, np.ndarray]
    texts: dict[str, str]


def is_safetensors(start: bytes) -> bool:
    """Whether a file with these first bytes is ``.safetensors``: eight bytes of length, then JSON."""
    return start[8:9] == b"{"


def read_safetensors(path: pathlib.Path) -> ArrayFile:
    """Reads a whole ``.safetensors``.

    Raises:
        UserError: it is damaged, cut short, or claims what it does not hold.
    """
    try:
        with safe_open(path, "np") as file:
            return ArrayFile({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged or cut short: download or copy it again ({error})") from error


def write_safetensors(path: epath.PathLike, contents: ArrayFile) -> None:
    """Writes ``.safetensors``, under its final name once it is whole."""
    arrays = {name: np.ascontiguousarray(array) for name, array in contents.arrays.items()}
    write_whole(path, safetensors_bytes(arrays, contents.texts))


def read_npz(path: pathlib.Path) -> ArrayFile:
    """Reads a whole ``.npz`` of ours.

    Raises:
        UserError: it is damaged or cut short, or holds Python objects.
    """
    arrays, texts = {}, {}
    try:
        with warnings.catch_warnings(action="error"), np.load(path, allow_pickle=False) as file:
            for name in file.files:
                if name.startswith(_TEXT_PREFIX):
                    texts[name.removeprefix(_TEXT_PREFIX)] = str(file[name])
                elif name.endswith(_BFLOAT16_SUFFIX):
                    arrays[name.removesuffix(_BFLOAT16_SUFFIX)] = file[name].view(ml_dtypes.bfloat16)
                else:
                    arrays[name] = file[name]
    except (OSError, ValueError, EOFError, KeyError, TypeError, MemoryError, Warning, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or cut short, or no .npz of arrays: copy it again") from error
    return ArrayFile(arrays, texts)


def write_npz(path: epath.PathLike, contents: ArrayFile) -> None:
    """Writes ``.npz``, under its final name once it is whole."""
    stored: dict[str, Any] = {_TEXT_PREFIX + name: np.array(text) for name, text in contents.texts.items()}
    for name, array in contents.arrays.items():
        if array.dtype == ml_dtypes.bfloat16:
            stored[name + _BFLOAT16_SUFFIX] = array.view(np.uint16)
        else:
            stored[name] = array
    file = io.BytesIO()
    np.savez(file, **stored)
    write_whole(path, file.getbuffer())
