"""Arrays with a row for each of many images, on disk: what figures need of all images, and not only of their sums.

Features of 50,000 images, 2,048 numbers each, take 400 MiB. Sums over blocks of images, from which a bootstrap could
draw too, would take more: a block has a covariance of 32 MiB, and some tens of blocks are needed for a spread that
means something. So all features are kept, in a file that is read through a memory map: memory stays flat, single images
can be drawn, in any order, and a job that was killed has lost nothing of them.
"""

import numpy as np
from etils import epath

from ddim_jax.files import whole_file
from ddim_jax.npy import array_form

# Bytes of zeros written at a time.
_ZEROS = 2**24


def open_rows(path: epath.PathLike | None, num: int, width: int) -> tuple[np.ndarray, bool]:
    """Opens float32 [num, width] for reading and writing, zeros where nothing was written yet.

    A new file is filled at once, so that a disk that is too small is found before the work, and not in its midst: to
    run out of disk under a memory map ends the program without a word.

    Args:
        path: ``.npy`` file, made if it is not there or of another shape; None for an array in memory.
        num: rows.
        width: of each.

    Returns:
        The array, and whether it is new.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        return np.zeros((num, width), np.float32), True
    path = epath.Path(path)
    form = array_form(path)
    is_new = form is None or form.shape != (num, width) or form.dtype != np.float32
    if is_new:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
        with whole_file(path) as partial, partial.open("wb") as file:
            np.lib.format.write_array_header_2_0(file, {**header, "shape": (num, width)})
            left = 4 * num * width
            while left:
                left -= file.write(bytes(min(left, _ZEROS)))
    return np.load(path, mmap_mode="r+"), is_new


def flush(array: np.ndarray) -> None:
    """Sees that what was written into an array is on the disk."""
    if isinstance(array, np.memmap):
        array.flush()
