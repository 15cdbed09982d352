"""One array a file, as ``.npy``: for images of types and channels that no picture file holds."""

import math
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ddim_jax.errors import UserError
from ddim_jax.files import whole_file


class ArrayForm(NamedTuple):
    """What the header of a file says.

    Attributes:
        shape: of the array.
        dtype: of its values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype


def save_array(path: epath.PathLike, array: np.ndarray) -> None:
    """Writes an array; the file appears whole or not at all."""
    with whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)


def load_array(path: epath.PathLike) -> np.ndarray:
    """Reads what :func:`save_array` wrote.

    Raises:
        UserError: there is no such file, or it is not whole.
    """
    if array_form(path) is None:
        raise UserError(f"{path} cannot be read: it is no whole .npy of numbers")
    with epath.Path(path).open("rb") as file:
        return np.load(file, allow_pickle=False)


def read_header(file: Any) -> tuple[ArrayForm, bool]:
    """What the header of an open file says, which is left where the values begin; and whether columns come first.

    Raises:
        Exception: of any kind: it is no header of NumPy's.
    """
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, is_fortran, dtype = readers[version](file)
    return ArrayForm(shape, dtype), is_fortran


def array_form(path: epath.PathLike) -> ArrayForm | None:
    """What a file's header says, if the file is a whole ``.npy`` of numbers; else None.

    An emptied, cut-off or longer file is found out by its size; its values are not read.
    """
    try:
        with epath.Path(path).open("rb") as file:
            (shape, dtype), _ = read_header(file)
            begins, ends = file.tell(), file.seek(0, 2)
    except Exception:
        # What wrong bytes lead NumPy's readers to: no list of exceptions is complete.
        return None
    is_whole = dtype.kind in "buif" and begins + math.prod(shape) * dtype.itemsize == ends
    return ArrayForm(shape, dtype) if is_whole else None
