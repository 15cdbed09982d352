"""Formats in which weights are exported, each with a description of what it holds.

``npz`` and ``safetensors`` are one file with all in it that is needed to use it here: arrays with the names and the
layout of our parameters, e.g. ``params/conv_in/kernel`` [3, 3, in, out], and a text beside them, ``ddim_jax``, that is
the :class:`~ddim_jax.weights.description.Description`. ``diffusers`` is a folder for that library, with the same text
beside its arrays.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from etils import epath

from ddim_jax.errors import UserError
from ddim_jax.names import WeightsFormat
from ddim_jax.weights.array_files import ArrayFile, read_npz, read_safetensors, write_npz, write_safetensors
from ddim_jax.weights.description import KEY, Description
from ddim_jax.weights.diffusers_folder import PIPELINE_WEIGHTS, write_folder


class ExportFormat(NamedTuple):
    """Form that exported weights can have.

    Attributes:
        ending: end of the name that an export has by default; files must have it.
        is_folder: whether it is a folder, whose name may be anything.
        write: function that writes variables by their paths, and their description, to a place where nothing is.
    """

    ending: str
    is_folder: bool
    write: Callable[[epath.PathLike, Mapping[str, np.ndarray], Description], None]


def _with_text(arrays: Mapping[str, np.ndarray], description: Description) -> ArrayFile:
    return ArrayFile(dict(arrays), {KEY: description.to_json()})


def _write_npz(path: epath.PathLike, arrays: Mapping[str, np.ndarray], description: Description) -> None:
    write_npz(path, _with_text(arrays, description))


def _write_safetensors(path: epath.PathLike, arrays: Mapping[str, np.ndarray], description: Description) -> None:
    write_safetensors(path, _with_text(arrays, description))


EXPORT_FORMATS: dict[WeightsFormat, ExportFormat] = {
    "diffusers": ExportFormat("-diffusers", True, write_folder),
    "npz": ExportFormat(".npz", False, _write_npz),
    "safetensors": ExportFormat(".safetensors", False, _write_safetensors),
}
_READERS: dict[str, Callable[[pathlib.Path], ArrayFile]] = {".npz": read_npz, ".safetensors": read_safetensors}


def read_description(path: epath.PathLike) -> Description | None:
    """Reads what an exported file or diffusers folder says of itself; None where it is none of ours."""
    path = pathlib.Path(path)
    file = path / PIPELINE_WEIGHTS if path.is_dir() else path
    try:
        return Description.from_json(_READERS[file.suffix](file).texts[KEY], str(file))
    except (KeyError, UserError):
        return None
