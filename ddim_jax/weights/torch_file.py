"""Reads the files that ``torch.save`` writes, without PyTorch and without running anything from them.

Such a file is a pickle, a small program for a stack machine, in which tensors stand as (storage, offset, size,
stride), and the bytes of the storages beside it. Python's own ``pickle`` calls whatever function the program names, so
a file from the internet could do anything. Here the program is run by a machine that knows only tensors and plain
containers: no instruction of it can reach a Python class or function that is not in this file.

Both layouts are read:

- since PyTorch 1.6 a zip archive, uncompressed: ``NAME/data.pkl`` is the program, ``NAME/data/KEY`` a storage,
  ``NAME/byteorder`` says ``little`` or ``big``;
- before, pickles in a row (magic number, protocol version, the writer's machine, the program, the list of storage
  keys), then the storages in the order of the list, each as its length (int64) and its elements, little-endian.

A file may be hostile or damaged. Whatever it claims is checked against its size before memory is taken for it.
"""

import io
import math
import mmap
import os
import pathlib
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from ddim_jax.errors import UserError

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_ZIP_START = b"PK\x03\x04"

# A file of a few bytes can describe a list that contains itself, or one that holds another twice, which holds another
# twice, and so on. Checkpoints are far from these bounds.
_MAX_DEPTH = 100
_MAX_VALUES = 10_000_000
# An expanded tensor shows the same elements many times. NumPy shows them so too, until someone copies the array.
_MAX_EXPANDED_BYTES = 2**30
_MAX_DIMENSIONS = 32

_STORAGE_DTYPES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
    "UntypedStorage": np.dtype(np.uint8),
}
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
_DTYPE_NAMES = frozenset(
    (
        *("float64", "double", "float32", "float", "float16", "half", "bfloat16", "complex64", "cfloat", "complex128"),
        *("cdouble", "int64", "long", "int32", "int", "int16", "short", "int8", "uint8", "bool"),
    )
)

# What may be a key of a dictionary or lie in a set, alone or in a tuple. Hashing tuples in tuples in tuples would
# overflow the interpreter's stack.
_SCALARS = (str, int, float, bool, type(None), bytes, complex)

# What reading a damaged file raises here, in pickletools and in zipfile (warnings where they are made errors).
_SIGNS_OF_DAMAGE = (
    *(ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError, Warning),
    *(struct.error, zipfile.BadZipFile),
)


class _Refused(Exception):
    """The file is not read, for the reason in the message, which continues a sentence that starts with the path."""


class _Name(NamedTuple):
    """A class or function that the program names: a key of ``_CALLABLES``, or a storage type."""

    text: str


class _Storage(NamedTuple):
    """A part of a storage: ``length`` elements from element ``start`` on."""

    key: str
    dtype: np.dtype
    start: int
    length: int


class _Tensor(NamedTuple):
    """A tensor whose bytes are not looked up yet; offset and stride count elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


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
    path = pathlib.Path(os.path.expanduser(path))
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read: {reason}") from error
    with file:
        try:
            return _read(file)
        except _Refused as error:
            raise UserError(f"{path} {error}") from error
        except _SIGNS_OF_DAMAGE as error:
            raise UserError(f"{path} is damaged or cut short: download or copy it again") from error


def _read(file: BinaryIO) -> Any:
    start = file.read(512)
    file.seek(0)
    if not start:
        raise _Refused("is empty: download or copy it again")
    if start.startswith(_ZIP_START):
        return _read_zip(file)
    if _MAGIC_NUMBER.to_bytes(10, "little") in start[:32]:
        # A mapping never reads past its end, however much the program asks for.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _read_old(mapped)
    if start.lstrip().startswith(b"<"):
        raise _Refused("is a web page, not weights: download it again, from the address of the file itself")
    raise _Refused("is not a PyTorch file, or only the start of one: give what torch.save wrote")


# --- the two layouts ----------------------------------------------------------------------------


def _read_zip(file: BinaryIO) -> Any:
    file_size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        folders = [name.split("/")[0] for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise _Refused("is a zip archive, but not one that torch.save wrote")
        folder = folders[0]
        if f"{folder}/constants.pkl" in names:
            raise _Refused("is a TorchScript archive, a program with its weights: give a file of weights alone")

        def record(name: str) -> bytes:
            info = archive.getinfo(f"{folder}/{name}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise _Refused("is a compressed zip archive, as torch.save never writes: give the file it wrote")
            if info.file_size != info.compress_size or info.header_offset + info.file_size > file_size:
                raise ValueError("a record is longer than the file")
            return archive.read(info)

        storages: dict[str, _Storage] = {}
        tree = _run_program(io.BytesIO(record("data.pkl")), storages)
        byte_order = record("byteorder") if f"{folder}/byteorder" in names else b"little"
        if byte_order not in (b"little", b"big"):
            raise ValueError("unknown byte order")
        contents = {}
        left = file_size
        for key in storages:
            contents[key] = np.frombuffer(record(f"data/{key}"), np.uint8)
            # Records of a hostile archive can lie over each other.
            left -= len(contents[key])
            if left < 0:
                raise ValueError("the storages are longer than the file")
    return _Resolver(contents, swap=byte_order.decode() != sys.byteorder).resolve(tree)


def _read_old(file: mmap.mmap) -> Any:
    if _run_program(file, {}) != _MAGIC_NUMBER or _run_program(file, {}) != _PROTOCOL_VERSION:
        raise ValueError("unknown protocol version")
    _run_program(file, {})
    storages: dict[str, _Storage] = {}
    tree = _run_program(file, storages)
    contents = {}
    for key in _run_program(file, {}):
        (length,) = struct.unpack("<q", file.read(8))
        size = length * storages[key].dtype.itemsize
        if not 0 <= size <= len(file) - file.tell():
            raise ValueError("a storage is longer than the file")
        contents[key] = np.frombuffer(file.read(size), np.uint8)
    return _Resolver(contents, swap=sys.byteorder != "little").resolve(tree)


# --- the stack machine --------------------------------------------------------------------------


def _run_program(file: Any, storages: dict[str, _Storage]) -> Any:
    """Runs the pickle that starts where ``file`` stands, and leaves ``file`` behind it.

    Args:
        file: open for reading; a read past the end must be short, not take memory.
        storages: is given the first reference to each storage, by key.

    Returns:
        Plain containers and values, with :class:`_Tensor` and :class:`_Storage` in them.
    """
    stack: list[Any] = []
    stacks_below_marks: list[list[Any]] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, stacks_below_marks.pop()
        return items

    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            # Values.
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT" | "SHORT_BINSTRING" | "BINSTRING":
                stack.append(argument)
            case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8" | "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8":
                stack.append(argument)
            # Containers.
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_SET":
                stack.append(set())
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                if len(stack) < length:
                    raise IndexError("nothing to make a tuple of")
                stack[-length:] = [tuple(stack[-length:])]
            case "MARK":
                stacks_below_marks.append(stack)
                stack = []
            case "TUPLE":
                items = pop_to_mark()
                stack.append(tuple(items))
            case "APPEND":
                item = stack.pop()
                _expect(stack[-1], list).append(item)
            case "APPENDS":
                items = pop_to_mark()
                _expect(stack[-1], list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _expect(stack[-1], dict)[_hashable(key)] = value
            case "SETITEMS":
                items = pop_to_mark()
                _expect(stack[-1], dict).update(_pairs(zip(items[::2], items[1::2], strict=True)))
            case "ADDITEMS":
                items = pop_to_mark()
                _expect(stack[-1], set).update(map(_hashable, items))
            # Values met before.
            case "BINPUT" | "LONG_BINPUT":
                memo[_expect(argument, int)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[_expect(argument, int)])
            # What would be a class, a call, an assignment of attributes.
            case "GLOBAL":
                stack.append(_named(*_expect(argument, str).split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_named(_expect(module, str), _expect(name, str)))
            case "REDUCE":
                arguments, function = _expect(stack.pop(), tuple), _expect(stack.pop(), _Name)
                stack.append(_CALLABLES[function.text](*arguments))
            case "BUILD":
                stack.pop()
                _expect(stack[-1], dict)
            case "BINPERSID":
                storage = _storage(*_expect(stack.pop(), tuple))
                storages.setdefault(storage.key, storage)
                stack.append(storage)
            case other:
                raise _Refused(f"is a pickle with the instruction {other}, which torch.save has no use for: not read")
    return stack.pop()


def _expect(value: Any, kind: type) -> Any:
    """``value``, which must be a ``kind`` itself, not of a class derived from it."""
    if type(value) is not kind:
        raise TypeError(f"not a {kind.__name__}")
    return value


def _hashable(key: Any) -> Any:
    parts = key if type(key) is tuple else (key,)
    if any(type(part) not in _SCALARS for part in parts):
        raise TypeError("not a key")
    return key


def _pairs(items: Any = ()) -> dict[Any, Any]:
    return {_hashable(key): value for key, value in items}


def _named(module: str, name: str) -> Any:
    """What stands for the class, function or constant of that name."""
    full = f"{module}.{name}".replace("__builtin__.", "builtins.")
    if full in _CALLABLES or (module in _STORAGE_MODULES and name in _STORAGE_DTYPES):
        return _Name(full)
    if module == "torch" and name in _DTYPE_NAMES:
        return full
    raise _Refused(f"holds a foreign class {ascii(full)[1:-1]:.100}; only tensors and plain containers are read")


def _storage(tag: Any, kind: Any, key: Any, location: Any, length: Any, view: Any = None) -> _Storage:
    """What a persistent id of the program means; ``location``, the device, is of no interest."""
    if tag != "storage":
        raise ValueError("not a storage")
    dtype = _STORAGE_DTYPES[_expect(kind, _Name).text.rpartition(".")[2]]
    start = 0
    if view is not None:
        _, start, length = _expect(view, tuple)
    return _Storage(_expect(key, str), dtype, _size(start), _size(length))


def _size(value: Any) -> int:
    if _expect(value, int) < 0:
        raise ValueError("a negative size")
    return value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    """``torch._utils._rebuild_tensor``; later versions say also whether the tensor wants a gradient, and its hooks."""
    return _Tensor(
        _expect(storage, _Storage),
        _size(offset),
        tuple(map(_size, _expect(size, tuple))),
        tuple(map(_size, _expect(stride, tuple))),
    )


def _parameter(data: Any, *_: Any) -> _Tensor:
    return _expect(data, _Tensor)


def _shape(size: Any) -> tuple[Any, ...]:
    return _expect(size, tuple)


def _device(kind: Any, index: Any = None) -> str:
    return _expect(kind, str) if index is None else f"{_expect(kind, str)}:{_size(index)}"


def _set(items: Any) -> set[Any]:
    return set(map(_hashable, _expect(items, list)))


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(_expect(real, float), _expect(imaginary, float))


def _bytes(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise ValueError("bytes are written as latin1")
    return _expect(text, str).encode("latin1")


# All that a program can call.
_CALLABLES: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _shape,
    "torch.device": _device,
    "collections.OrderedDict": _pairs,
    "builtins.set": _set,
    "builtins.complex": _complex,
    "_codecs.encode": _bytes,
}


# --- tensors ------------------------------------------------------------------------------------


class _Resolver:
    """Replaces tensors by arrays in what a program made, and copies the containers on the way."""

    def __init__(self, contents: dict[str, np.ndarray], swap: bool) -> None:
        """Takes the bytes of the storages by key, and whether they are in the other byte order than this machine's."""
        self._contents = contents
        self._swap = swap
        self._values_left = _MAX_VALUES

    def resolve(self, value: Any, depth: int = 0) -> Any:
        """The value with arrays in place of tensors; a tree, in which no container stands twice."""
        self._values_left -= 1
        if depth > _MAX_DEPTH or self._values_left < 0:
            raise _Refused("holds containers nested without end, or more values than any checkpoint: not read")
        match value:
            case _Tensor():
                return self._array(value)
            case _Storage():
                return self._array(_Tensor(value, 0, (value.length,), (1,)))
            case _Name():
                raise _Refused(f"holds the class {value.text} itself; only tensors and plain containers are read")
            case dict():
                return {key: self.resolve(item, depth + 1) for key, item in value.items()}
            case list():
                return [self.resolve(item, depth + 1) for item in value]
            case tuple():
                return tuple(self.resolve(item, depth + 1) for item in value)
        return value

    def _array(self, tensor: _Tensor) -> np.ndarray:
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
