"""Our own files of weights: one ``.npz`` or ``.safetensors``, with all in it that is needed to use them.

The arrays have the names and the layout of our parameters, e.g. ``params/conv_in/kernel`` [3, 3, in, out]; a text
beside them, ``ddim_jax``, describes them (:class:`~ddim_jax.weights.description.Description`).
"""

import pathlib
from collections.abc import Mapping

import numpy as np
from etils import epath

from ddim_jax.errors import UserError
from ddim_jax.weights.array_files import ArrayFile, read_npz, read_safetensors, write_npz, write_safetensors
from ddim_jax.weights.description import KEY, Description
from ddim_jax.weights.diffusers_folder import PIPELINE_WEIGHTS


def write_own_file(path: epath.PathLike, arrays: Mapping[str, np.ndarray], description: Description) -> None:
    """Writes variables by their paths; the ending of ``path`` says in which format."""
    write = write_npz if epath.Path(path).suffix == ".npz" else write_safetensors
    write(path, ArrayFile(dict(arrays), {KEY: description.to_json()}))


def read_description(path: epath.PathLike) -> Description | None:
    """What an exported file or diffusers folder says of itself; None where it is none of ours."""
    path = pathlib.Path(path)
    file = path / PIPELINE_WEIGHTS if path.is_dir() else path
    try:
        contents = read_npz(file) if file.suffix == ".npz" else read_safetensors(file)
        return Description.from_json(contents.texts[KEY], str(file))
    except (KeyError, UserError):
        return None
