"""Reads the files that ``torch.save`` writes, without PyTorch and without running anything from them.

Such a file is a pickle, in which tensors stand as (storage, offset, size, stride), and the bytes of the storages beside
it. Pickles are programs: ``torch_pickle`` runs them, and says why they can do no harm.

Both layouts are read:

- since PyTorch 1.6 a zip archive, uncompressed: ``NAME/data.pkl`` is the pickle, ``NAME/data/KEY`` a storage,
  ``NAME/byteorder`` says ``little`` or ``big``;
- before, pickles in a row (magic number, protocol version, the writer's machine, the saved object, the list of storage
  keys), then the storages in the order of the list, each as its length (int64) and its elements, little-endian.

A file may be hostile or damaged. Whatever it claims is checked against its size before memory is taken for it.
"""

import io
import math
import mmap
import os
import pathlib
import struct
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from ddim_jax.errors import UserError
from ddim_jax.files import check_kind
from ddim_jax.weights.torch_pickle import (
    MAGIC_NUMBER,
    PROTOCOL_VERSION,
    Foreign,
    GlobalName,
    RefusedError,
    Storage,
    Tensor,
    unpickle,
)

ZIP_START = b"PK\x03\x04"

# A file of a few bytes can describe a list that contains itself, or one that holds another twice, which holds another
# twice, and so on. Checkpoints are far from these bounds.
_MAX_DEPTH = 100
_MAX_VALUES = 500_000
# An expanded tensor shows the same elements many times. NumPy shows them so too, until someone copies the array.
_MAX_EXPANDED_BYTES = 2**30
_MAX_DIMENSIONS = 32

# What reading a damaged file raises here, in pickletools and in zipfile (warnings where they are made errors).
_SIGNS_OF_DAMAGE = (
    *(ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError, Warning),
    *(struct.error, zipfile.BadZipFile),
)


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """Reads what ``torch.save`` wrote: a state dict, or any nest of plain containers around tensors.

    Args:
        path: the file, in either of PyTorch's layouts; ``~`` is understood.

    Returns:
        The saved object. Tensors and parameters are read-only NumPy arrays of the same shape and dtype (bfloat16 by
        ``ml_dtypes``) wherever they were stored from; views of one storage share memory, as they did. Dictionaries of
        all kinds are ``dict``, ``torch.Size`` is ``tuple``, and devices and dtypes are strings such as ``cuda:0`` and
        ``torch.float32``. Attributes of dictionaries, gradients' flags and hooks are left out.

    Raises:
        UserError: there is no such file, it was not written by ``torch.save``, it is damaged or cut short, or it holds
            something else than tensors and plain containers.
    """
    return _read_by(_read, path)


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Reads what Python's own ``pickle`` wrote of objects with tensors in them, such as whole networks.

    Args:
        path: the file; ``~`` is understood.

    Returns:
        The object, as :func:`read_torch_file` returns it. Objects of classes are
        :class:`~ddim_jax.weights.torch_pickle.Foreign`, with what the file says of them; no code of theirs is run, be
        it in the file or on this machine.

    Raises:
        UserError: there is no such file, it is damaged, or it does what such pickles never do.
    """
    return _read_by(_read_objects, path)


def is_pickle(start: bytes) -> bool:
    """Whether a file that begins with these bytes was written by Python's own ``pickle``, not by ``torch.save``."""
    return start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and not _has_magic_number(start)


def _has_magic_number(start: bytes) -> bool:
    return MAGIC_NUMBER.to_bytes(10, "little") in start[:32]


def _read_by(read: Callable[[BinaryIO], Any], path: str | os.PathLike[str]) -> Any:
    path = pathlib.Path(os.path.expanduser(path))
    check_kind(path)
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read: {reason}") from error
    with file:
        try:
            return read(file)
        except RefusedError as error:
            raise UserError(f"{path} {error}") from error
        except _SIGNS_OF_DAMAGE as error:
            raise UserError(f"{path} is damaged or cut short: download or copy it again") from error


def _read(file: BinaryIO) -> Any:
    start = file.read(512)
    file.seek(0)
    if not start:
        raise RefusedError("is empty: download or copy it again")
    if start.startswith(ZIP_START):
        return _read_zip(file)
    if _has_magic_number(start):
        # A mapping never reads past its end, however much the program asks for.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _read_old(mapped)
    if start.lstrip().startswith(b"<"):
        raise RefusedError("is a web page, not weights: download it again, from the address of the file itself")
    raise RefusedError("is not a PyTorch file, or only the start of one: give what torch.save wrote")


# --- the two layouts ----------------------------------------------------------------------------


def _read_zip(file: BinaryIO) -> Any:
    file_size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        folders = [name.split("/")[0] for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise RefusedError("is a zip archive, but not one that torch.save wrote")
        folder = folders[0]
        if f"{folder}/constants.pkl" in names:
            raise RefusedError("is a TorchScript archive, a program with its weights: give a file of weights alone")

        def record(name: str) -> bytes:
            info = archive.getinfo(f"{folder}/{name}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise RefusedError("is a compressed zip archive, as torch.save never writes: give the file it wrote")
            if info.flag_bits & 1:
                raise RefusedError("is an encrypted zip archive, as torch.save never writes: give the file it wrote")
            if info.file_size != info.compress_size or info.header_offset + info.file_size > file_size:
                raise ValueError("a record is longer than the file")
            return archive.read(info)

        saved = unpickle(io.BytesIO(record("data.pkl")))
        byte_order = record("byteorder") if f"{folder}/byteorder" in names else b"little"
        if byte_order not in (b"little", b"big"):
            raise ValueError("unknown byte order")
        contents = {}
        left = file_size
        for key in saved.storages:
            contents[key] = np.frombuffer(record(f"data/{key}"), np.uint8)
            # Records of a hostile archive can lie over each other.
            left -= len(contents[key])
            if left < 0:
                raise ValueError("the storages are longer than the file")
    return _Resolver(contents, swap=byte_order.decode() != sys.byteorder).resolve(saved.value)


def _read_old(file: mmap.mmap) -> Any:
    magic_number, protocol_version, _, saved, keys = [unpickle(file) for _ in range(5)]
    if magic_number.value != MAGIC_NUMBER or protocol_version.value != PROTOCOL_VERSION:
        raise ValueError("unknown protocol version")
    contents = {}
    for key in keys.value:
        (length,) = struct.unpack("<q", file.read(8))
        size = length * saved.storages[key].dtype.itemsize
        if not 0 <= size <= len(file) - file.tell():
            raise ValueError("a storage is longer than the file")
        contents[key] = np.frombuffer(file.read(size), np.uint8)
    return _Resolver(contents, swap=sys.byteorder != "little").resolve(saved.value)


def _read_objects(file: BinaryIO) -> Any:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        saved = unpickle(mapped, foreign=True)
    if sum(map(len, saved.contents.values())) > file.seek(0, io.SEEK_END):
        raise ValueError("the storages are longer than the file")
    return _Resolver(saved.contents, swap=sys.byteorder != "little", foreign=True).resolve(saved.value)


# --- tensors ------------------------------------------------------------------------------------


class _Resolver:
    """Replaces tensors by arrays in what a pickle made, and copies the containers on the way."""

    def __init__(self, contents: dict[str, np.ndarray], swap: bool, foreign: bool = False) -> None:
        """Keeps what tensors are made of.

        Args:
            contents: the bytes of the storages, by key.
            swap: whether they are in the other byte order than this machine's.
            foreign: whether there may be names of classes; else they are refused.
        """
        self._contents = contents
        self._swap = swap
        self._foreign = foreign
        self._values_left = _MAX_VALUES

    def resolve(self, value: Any, depth: int = 0) -> Any:
        """Makes the value anew with arrays in place of tensors: a tree, in which no container stands twice."""
        self._values_left -= 1
        if depth > _MAX_DEPTH or self._values_left < 0:
            raise RefusedError("holds containers nested without end, or more values than any checkpoint: not read")
        match value:
            case Tensor():
                return self._array(value)
            case Storage():
                return self._array(Tensor(value, 0, (value.length,), (1,)))
            case Foreign():
                arguments, state = (self.resolve(item, depth + 1) for item in (value.arguments, value.state))
                return Foreign(value.name, arguments, state)
            case GlobalName() if self._foreign:
                return value.text
            case GlobalName():
                raise RefusedError(f"holds the class {value.text} itself; only tensors and plain containers are read")
            case dict():
                return {key: self.resolve(item, depth + 1) for key, item in value.items()}
            case list():
                return [self.resolve(item, depth + 1) for item in value]
            case tuple():
                return tuple(self.resolve(item, depth + 1) for item in value)
        return value

    def _array(self, tensor: Tensor) -> np.ndarray:
        storage, offset, size, stride = tensor
        itemsize = storage.dtype.itemsize
        elements = self._contents[storage.key][storage.start * itemsize :][: storage.length * itemsize]
        if len(elements) != storage.length * itemsize:
            raise ValueError("a storage is shorter than its tensors")
        if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
            raise ValueError("an impossible shape")
        # Zeros count as ones, for NumPy has bounds for empty arrays too.
        if math.prod(max(n, 1) for n in size) * itemsize > max(len(elements), _MAX_EXPANDED_BYTES):
            raise ValueError("a tensor is much longer than its storage")
        if 0 in size:
            empty = np.empty(size, storage.dtype)
            empty.flags.writeable = False
            return empty
        if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= storage.length:
            raise ValueError("a tensor reaches beyond its storage")
        # The step between one element and no other may be anything.
        steps = [step * itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
        values = self._in_native_order(elements, storage.dtype)[offset:]
        return np.lib.stride_tricks.as_strided(values, size, steps, writeable=False)

    def _in_native_order(self, elements: np.ndarray, dtype: np.dtype) -> np.ndarray:
        if not self._swap:
            return elements.view(dtype)
        # Of a complex number each half is swapped; NumPy cannot swap bfloat16, but integers of its length.
        part = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
        return elements.view(f"u{part}").byteswap().view(dtype)
