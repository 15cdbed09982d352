"""Arrays in ``.npy`` and ``.npz`` files, mapped into memory where they lie there as they are: nothing is read in vain.

NumPy maps ``.npy`` files alone. A member of an ``.npz`` that is stored (``numpy.savez``) is the same bytes at some
place of the archive; one that is compressed (``numpy.savez_compressed``) has to be read whole.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddim_jax.errors import UserError
from ddim_jax.files import check_kind
from ddim_jax.memory import check_room
from ddim_jax.npz import array_names, load_array

# Bytes of a member's own header in an archive, before its name, and where the lengths of name and extra field stand.
_LOCAL_HEADER = 30
_LENGTHS = slice(26, 30)


class ArrayFile:
    """The arrays of one file by name; the array of a ``.npy`` has the name "".

    Attributes:
        path: the file.
        name: what to call it in messages.
        names: of the arrays in it.
    """

    def __init__(self, path: str, key: str) -> None:
        """Opens a file; no array is read.

        Args:
            path: ends in .npy or .npz; ``~`` is understood.
            key: the config's key that names it, for messages.

        Raises:
            UserError: it is not there, or no such file.
        """
        self.path = Path(path).expanduser()
        self.name = self.path.name
        self._key = key
        if self.path.suffix.lower() not in (".npy", ".npz"):
            raise UserError(f"{key}={path!r}: name a .npy or .npz file")
        if not self.path.exists():
            raise UserError(f"{key}={path!r} does not exist; name a .npy or .npz file")
        check_kind(self.path)
        self._is_archive = self.path.suffix.lower() == ".npz"
        self.names = array_names(self.path) if self._is_archive else [""]

    def __getitem__(self, name: str) -> np.ndarray:
        """Maps an array, or reads it where it is compressed.

        Raises:
            UserError: it is not there, damaged, no array of numbers, or too large for the memory.
        """
        where = f"{self.path}: {name}" if name else str(self.path)
        if name not in self.names:
            raise UserError(f"{self.path} has no array {name!r}; it has {', '.join(sorted(self.names)) or 'none'}")
        try:
            array = self._map_member(name) if self._is_archive else _map(self.path, 0)
        except (UserError, MemoryError):
            raise
        except Exception as error:
            # What a wrong byte leads the readers of archives and arrays to: no list of exceptions is complete.
            raise UserError(f"{where} cannot be read: {' '.join(str(error).split())}") from error
        return array

    def _map_member(self, name: str) -> np.ndarray:
        with self.path.open("rb") as file, zipfile.ZipFile(file) as archive:
            info = archive.getinfo(f"{name}.npy")
            if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                file.seek(info.header_offset)
                lengths = np.frombuffer(file.read(_LOCAL_HEADER)[_LENGTHS], "<u2")
                return _map(self.path, info.header_offset + _LOCAL_HEADER + int(lengths.sum()))
        check_room(info.file_size, self._key, str(self.path), f"the values of its compressed array {name!r}")
        return load_array(self.path, name)

    def facts(self) -> str:
        """What tells this file from others without reading it: name, size and time of change."""
        found = self.path.stat()
        return f"{self.path.name} {found.st_size} {found.st_mtime_ns}"


def _map(path: Path, place: int) -> np.ndarray:
    """Maps an array whose header begins at a place of a file.

    Raises:
        ValueError: there is none of numbers there, or the file ends before it.
    """
    with path.open("rb") as file:
        file.seek(place)
        shape, fortran_order, dtype = _read_header(file)
        start = file.tell()
        size = file.seek(0, io.SEEK_END)
    if dtype.hasobject or dtype.names or not dtype.itemsize:
        raise ValueError("it holds Python objects, as NumPy makes of images of mixed sizes; store one array of numbers")
    if start + math.prod(shape) * dtype.itemsize > size:
        raise ValueError("the file is shorter than its header says")
    order = "F" if fortran_order else "C"
    if not math.prod(shape):
        return np.zeros(shape, dtype, order)  # nothing cannot be mapped
    return np.memmap(path, dtype, "r", start, shape, order)


def _read_header(file: BinaryIO) -> tuple[Any, bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of NumPy's format is not known")
    return readers[version](file)


class ArraysInMemory(Mapping[str, np.ndarray]):
    """Arrays that a program holds, with the members that :class:`ArrayFile` has.

    Attributes:
        name: what to call them in messages.
        names: of the arrays.
    """

    name = "the arrays in memory"

    def __init__(self, arrays: Mapping[str, np.ndarray], digest: str) -> None:
        """Keeps the arrays, which are not copied.

        Args:
            arrays: by name.
            digest: of their contents.
        """
        self._arrays = dict(arrays)
        self._digest = digest
        self.names = list(self._arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        """The array of a name."""
        return self._arrays[name]

    def __iter__(self) -> Any:
        """The names."""
        return iter(self._arrays)

    def __len__(self) -> int:
        """The number of arrays."""
        return len(self._arrays)

    def facts(self) -> str:
        """What tells these arrays from others."""
        return self._digest
