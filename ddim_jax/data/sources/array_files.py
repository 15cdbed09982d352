"""Arrays in files, ``.npy`` or ``.npz``, of which as little is read as can be: a file may be larger than the memory."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax.errors import UserError, shown
from ddim_jax.memory import check_room
from ddim_jax.npy import read_header

SUFFIXES = (".npy", ".npz")

# Of a zip archive's local header, which comes before a member: its length without name and extra field, and where the
# lengths of these two stand.
_LOCAL_HEADER = 30
_LENGTHS = slice(26, 30)


class ArrayFile:
    """A ``.npy`` or ``.npz`` file.

    Attributes:
        names: of the arrays in an ``.npz``; none for ``.npy``.
    """

    def __init__(self, path: str, key: str) -> None:
        """Looks at what the file holds.

        Args:
            path: the file; ``~`` is understood.
            key: the config's key that names it, for messages.

        Raises:
            UserError: it is no such file.
        """
        self.path = Path(path).expanduser()
        self._key = f"{key}={shown(path)}"
        if self.path.suffix.lower() not in SUFFIXES or not self.path.is_file():
            reason = "is no .npy or .npz file" if self.path.exists() else "does not exist"
            raise UserError(f"{self._key} {reason}; name a file of arrays")
        self.names: tuple[str, ...] = ()
        self._members: dict[str, zipfile.ZipInfo] = {}
        if self.path.suffix.lower() == ".npz":
            try:
                with zipfile.ZipFile(self.path) as archive:
                    found = archive.infolist()
            except Exception as error:
                raise self._unreadable(error) from error
            self._members = {info.filename.removesuffix(".npy"): info for info in found}
            self.names = tuple(self._members)

    def open(self, name: str = "") -> np.ndarray:
        """Opens an array through a memory map; one that is compressed is read.

        Args:
            name: of the array in an ``.npz``; empty for the one of a ``.npy``.

        Raises:
            UserError: there is none of that name, it cannot be read, or does not fit into the memory.
        """
        try:
            if not self._members:
                return np.load(self.path, mmap_mode="r", allow_pickle=False)
            if name not in self._members:
                raise UserError(f"{self._key} has no array {shown(name)}; it has {', '.join(self.names)}")
            info = self._members[name]
            if info.compress_type == zipfile.ZIP_STORED:
                return self._map_member(info)
            check_room(info.file_size, self._key, name, "the array, which is compressed and has to be read whole,")
            with zipfile.ZipFile(self.path) as archive, archive.open(info) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except (UserError, MemoryError):
            raise
        except Exception as error:
            # What a wrong byte leads the zip archive's and NumPy's readers to: no list of exceptions is complete.
            raise self._unreadable(error) from error

    def identity(self) -> str:
        """What stands for the content; see :func:`file_identity`."""
        return file_identity(self.path)

    def _map_member(self, info: zipfile.ZipInfo) -> np.ndarray:
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER)
            name, extra = np.frombuffer(header[_LENGTHS], "<u2").tolist()
            file.seek(info.header_offset + _LOCAL_HEADER + name + extra)
            (shape, dtype), is_fortran = read_header(file)
            if dtype.hasobject:
                raise ValueError("it holds Python objects")
            order = "F" if is_fortran else "C"
            return np.memmap(self.path, dtype, "r", file.tell(), shape, order)

    def _unreadable(self, error: Exception) -> UserError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        return UserError(f"{self._key} cannot be read: {reason or 'it is no whole file of arrays'}")


def file_identity(path: Path) -> str:
    """Name, size and time of change, which stand for a file's content: that may be too long to be read for this."""
    found = path.stat()
    return f"{path.name} {found.st_size} {found.st_mtime_ns}"


def is_array_file(path: str) -> bool:
    """Whether a path is that of a file of arrays, by its name."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def image_array(array: np.ndarray, what: str) -> Any:
    """Images as [n, h, w, c], of which the last axis may be missing; what a memory map is stays one.

    Raises:
        UserError: they have another form.
    """
    if array.ndim not in (3, 4) or not array.size:
        raise UserError(
            f"{what} has the shape {tuple(array.shape)}; images are [n, height, width, channels], or without channels"
        )
    return array if array.ndim == 4 else array[..., None]
