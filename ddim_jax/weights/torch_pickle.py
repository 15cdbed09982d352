"""Runs the pickles in PyTorch's files, without anything in them reaching a class or function of Python.

A pickle is a small program for a stack machine. Python's own ``pickle`` calls whatever function the program names, so
a file from the internet could do anything. Here it is run by a machine that knows only tensors and plain containers,
and whose whole stock of functions is ``_CALLABLES``. Where a file would be refused for naming anything else, it can be
run past the name all the same, with an object in its place that is nothing but that name and what it was given. Of
whole networks, pickled with their classes, settings and arrays are read so, and nothing is imported.

``pickle.Unpickler`` with ``find_class`` restricted to the same few names would not do. It hashes whatever the program
makes a key: a megabyte of tuples in tuples ends the process there, and 300 bytes of tuples that each hold another
twice keep it busy for ever. It makes room for all memo indices below the largest, a gigabyte for ten bytes of file,
and it sets attributes of the functions that it was given. To refuse the first two beforehand one must know what lies
on the stack, and that is to run the machine.
"""

import io
import pickletools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

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

# The instructions that do nothing but put their argument on the stack.
_LITERALS = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINSTRING", "BINSTRING"),
        *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    )
)

# What may be a key of a dictionary or lie in a set, alone or in a tuple. Hashing tuples in tuples in tuples would
# overflow the interpreter's stack. Numbers that someone has chosen for their equal hashes make a dictionary as slow as
# a list; so there are no complex ones among them, and no whole ones that are longer than their hash.
_SCALARS = (str, int, float, bool, type(None), bytes)
_MAX_KEY = 2**60
_MAX_KEY_PARTS = 16

# Checkpoints have some ten thousand instructions. Half a million take about half a second.
_MAX_STEPS = 500_000
# Letters of a text that count as one instruction when it is copied.
_LETTERS_PER_STEP = 64

# What every file of PyTorch's old layout begins with.
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

# A function that makes a storage of the bytes of such a file: so a storage is pickled by Python's own pickle.
_EMBEDDED = "torch.storage._load_from_bytes"
# Classes that are dictionaries.
_DICTIONARIES = ("collections.OrderedDict", "dnnlib.util.EasyDict")
# Letters in the name of a class and its module.
_LONGEST_NAME = 1000


class RefusedError(Exception):
    """Refusal of a file; the message continues a sentence that starts with its path."""


class GlobalName(NamedTuple):
    """Name of a class or function: a key of ``_CALLABLES``, or a storage type."""

    text: str


class Storage(NamedTuple):
    """Reference to a part of a storage: ``length`` elements from element ``start`` on."""

    key: str
    dtype: np.dtype
    start: int
    length: int


class Tensor(NamedTuple):
    """Tensor without its bytes; offset and stride count elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Foreign:
    """Object of a class, or result of a function, that is nothing but a name here.

    Attributes:
        name: of the class or function, with its module.
        arguments: that it was called with.
        state: attributes that it was given; None where there are none.
    """

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: Any, state: Any = None) -> None:
        """Keeps what the pickle says of it."""
        self.name = name
        self.arguments = arguments
        self.state = state


class Unpickled(NamedTuple):
    """Result of a pickle.

    Attributes:
        value: plain containers and values, with :class:`Tensor`, :class:`Storage`, :class:`GlobalName` and
            :class:`Foreign` in them.
        storages: first reference to each storage, by key.
        contents: bytes of the storages that lie in the pickle itself, by key.
        steps: number of instructions that were run.
    """

    value: Any
    storages: dict[str, Storage]
    contents: dict[str, np.ndarray]
    steps: int


def unpickle(file: Any, foreign: bool = False) -> Unpickled:
    """Runs the pickle that starts where ``file`` stands, and leaves ``file`` behind it.

    Args:
        file: file open for reading; a read past the end must be short, not take memory.
        foreign: whether to go on where it names a class or function that is not known here, with a :class:`Foreign` in
            place of its object; else it is refused.

    Raises:
        RefusedError: it does what PyTorch's pickles never do, or names a class that holds no tensors.
        ArithmeticError, LookupError, TypeError, ValueError: it is no whole pickle.
    """
    storages: dict[str, Storage] = {}
    contents: dict[str, np.ndarray] = {}
    steps = 0
    stack: list[Any] = []
    stacks_below_marks: list[list[Any]] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, stacks_below_marks.pop()
        return items

    for opcode, argument, _ in pickletools.genops(file):
        steps += 1
        if steps > _MAX_STEPS:
            raise RefusedError(f"is a pickle of more than {_MAX_STEPS:,} instructions, as no checkpoint has: not read")
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            # Values.
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case _ if opcode.name in _LITERALS:
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
                module, name = _expect(argument, str).split(" ", 1)
                stack.append(_named(module, name, foreign))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_named(_expect(module, str), _expect(name, str), foreign))
            case "REDUCE":
                arguments, function = _expect(stack.pop(), tuple), _expect(stack.pop(), GlobalName)
                steps += sum(map(_work, arguments))
                if foreign and function.text == _EMBEDDED:
                    storage, values, its_steps = _embedded(arguments, f"{_EMBEDDED} {len(contents)}")
                    steps += its_steps
                    contents[storage.key] = values
                    stack.append(storage)
                elif foreign and function.text not in _CALLABLES:
                    stack.append(_foreign(function.text, arguments))
                else:
                    stack.append(_CALLABLES[function.text](*arguments))
            case "NEWOBJ" if foreign:
                arguments, kind = _expect(stack.pop(), tuple), _expect(stack.pop(), GlobalName)
                stack.append({} if kind.text in _DICTIONARIES else Foreign(kind.text, arguments))
            case "BUILD":
                state = stack.pop()
                if type(stack[-1]) is Foreign:
                    stack[-1].state = state
                else:
                    _expect(stack[-1], dict)
            case "BINPERSID":
                storage = _storage(*_expect(stack.pop(), tuple))
                storages.setdefault(storage.key, storage)
                stack.append(storage)
            case other:
                raise RefusedError(
                    f"is a pickle with the instruction {other}, which torch.save has no use for: not read"
                )
    return Unpickled(stack.pop(), storages, contents, steps)


def _expect(value: Any, kind: type) -> Any:
    """Returns ``value``, which must be a ``kind`` itself, not of a class derived from it."""
    if type(value) is not kind:
        raise TypeError(f"not a {kind.__name__}")
    return value


def _work(argument: Any) -> int:
    """How many instructions it is worth to look through an argument of a call."""
    if type(argument) is str:
        return len(argument) // _LETTERS_PER_STEP
    return len(argument) if type(argument) in (list, tuple, dict) else 0


def _hashable(key: Any) -> Any:
    parts = key if type(key) is tuple else (key,)
    if len(parts) > _MAX_KEY_PARTS or any(type(part) not in _SCALARS for part in parts):
        raise TypeError("not a key")
    if any(type(part) is int and abs(part) > _MAX_KEY for part in parts):
        raise ValueError("not a key")
    return key


def _pairs(items: Any = ()) -> dict[Any, Any]:
    return {_hashable(key): value for key, value in items}


def _named(module: str, name: str, foreign: bool) -> Any:
    """Finds what stands for the class, function or constant of that name."""
    full = f"{module}.{name}".replace("__builtin__.", "builtins.")
    if full in _CALLABLES or (module in _STORAGE_MODULES and name in _STORAGE_DTYPES):
        return GlobalName(full)
    if module == "torch" and name in _DTYPE_NAMES:
        return full
    if foreign:
        if len(full) > _LONGEST_NAME:
            raise RefusedError(f"names a class with {len(full):,} letters, as there is none: not read")
        return GlobalName(full)
    raise RefusedError(f"holds a foreign class {ascii(full)[1:-1]:.100}; only tensors and plain containers are read")


def _foreign(function: str, arguments: tuple[Any, ...]) -> Any:
    """What stands for the result of a function that is not known; for a number of NumPy's, the number."""
    match function, arguments:
        case "copyreg._reconstructor" | "copy_reg._reconstructor", (GlobalName(text=kind), *_):
            return Foreign(kind, ())
        case "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar", (
            Foreign(name="numpy.dtype", arguments=("f8", *_)),
            bytes(value),
        ) if len(value) == 8:
            return struct.unpack("<d", value)[0]
    return Foreign(function, arguments)


def _embedded(arguments: tuple[Any, ...], key: str) -> tuple[Storage, np.ndarray, int]:
    """Reads a storage that was saved as a file of its own, in PyTorch's old layout.

    Args:
        arguments: the bytes of that file, alone.
        key: that it gets.

    Returns:
        The storage, its bytes, and the number of instructions that were run.
    """
    (file,) = arguments
    opened = io.BytesIO(_expect(file, bytes))
    magic_number, protocol_version, machine, saved, keys = parts = [unpickle(opened) for _ in range(5)]
    if magic_number.value != MAGIC_NUMBER or protocol_version.value != PROTOCOL_VERSION:
        raise ValueError("unknown protocol version")
    storage = _expect(saved.value, Storage)
    if _expect(machine.value, dict).get("little_endian", True) is not True or keys.value != [storage.key]:
        raise ValueError("not one storage")
    (length,) = struct.unpack("<q", opened.read(8))
    size = length * storage.dtype.itemsize
    if storage.start or length != storage.length or not 0 <= size <= len(file) - opened.tell():
        raise ValueError("a storage is longer than its file")
    values = np.frombuffer(file, np.uint8, size, opened.tell())
    return storage._replace(key=key), values, sum(part.steps for part in parts)


def _storage(tag: Any, kind: Any, key: Any, location: Any, length: Any, view: Any = None) -> Storage:
    """Reads a persistent id; ``location``, the device, is of no interest."""
    if tag != "storage":
        raise ValueError("not a storage")
    dtype = _STORAGE_DTYPES[_expect(kind, GlobalName).text.rpartition(".")[2]]
    start = 0
    if view is not None:
        _, start, length = _expect(view, tuple)
    return Storage(_expect(key, str), dtype, _size(start), _size(length))


def _size(value: Any) -> int:
    if _expect(value, int) < 0:
        raise ValueError("a negative size")
    return value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """``torch._utils._rebuild_tensor``; later versions say also whether the tensor wants a gradient, and its hooks."""
    return Tensor(
        _expect(storage, Storage),
        _size(offset),
        tuple(map(_size, _expect(size, tuple))),
        tuple(map(_size, _expect(stride, tuple))),
    )


def _parameter(data: Any, *_: Any) -> Tensor:
    return _expect(data, Tensor)


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
