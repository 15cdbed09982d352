"""The one way to read small files of JSON: what cannot be used is told in one line, never a stack trace.

A run keeps what it knows of itself in such files. A disk, a program that was killed, or a hand may have left anything
in them: no bytes or other bytes, half a text, a list where names were expected, numbers of thousands of digits, lists
in lists in lists. Whoever can make the file again reads it by :func:`read_if_sound`, whoever needs it by
:func:`read_object`.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from ddim_jax.errors import UserError

if TYPE_CHECKING:  # what reads texts alone is imported at once
    from etils import epath

# What no file or line of ours comes near to. The longest that are read are the indices of weights in many files.
_MOST_BYTES = 2**26
_MOST_LINE_BYTES = 2**20
_MOST_DEPTH = 64
_MOST_DIGITS = 40

Kinds = Mapping[str, type | tuple[type, ...]]


class RecordError(ValueError):
    """A text is no record; the message says why, to stand in brackets or after a colon."""


def parse(text: str | bytes) -> Any:
    """Reads JSON.

    Raises:
        RecordError: it is none, or holds what no record does.
    """
    if not text:
        raise RecordError("it is empty")
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise RecordError(f"lists or groups stand in each other more than {_MOST_DEPTH} deep") from None
    except UnicodeDecodeError:
        raise RecordError("its bytes are no text") from None
    except json.JSONDecodeError as error:
        raise RecordError(f"no JSON: {error}") from None
    _check(value)
    return value


def parse_object(text: str | bytes, kinds: Kinds | None = None) -> dict[str, Any]:
    """Reads a JSON object: values by name.

    Args:
        text: of it.
        kinds: names that must be there, each with the type or types of its value.

    Raises:
        RecordError: it is none, or lacks a name, or a value is of another type.
    """
    value = parse(text)
    if not isinstance(value, dict):
        raise RecordError("it holds no values by name")
    for name, kind in (kinds or {}).items():
        if name not in value:
            raise RecordError(f"it lacks '{name}'")
        # To Python true is an integer.
        is_wrong_bool = isinstance(value[name], bool) and kind is not bool
        if is_wrong_bool or not isinstance(value[name], kind):
            raise RecordError(f"its '{name}' is of another type")
    return value


def read_object(path: "pathlib.Path | epath.Path", remedy: str, kinds: Kinds | None = None) -> dict[str, Any]:
    """Reads a file that is needed.

    Args:
        path: of the file.
        remedy: what to do where it cannot be used.
        kinds: see :func:`parse_object`.

    Raises:
        UserError: it cannot be read, or see :func:`parse_object`.
    """
    try:
        return parse_object(_bytes(path), kinds)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; {remedy}") from error
    except RecordError as error:
        raise UserError(f"{path} cannot be used: {error}; {remedy}") from error


def read_if_sound(path: "pathlib.Path | epath.Path", kinds: Kinds | None = None) -> dict[str, Any] | None:
    """Reads a file that can be done without; None where it is not there or cannot be used, see :func:`read_object`."""
    try:
        return read_object(path, "", kinds)
    except UserError:
        return None


def read_lines(path: "pathlib.Path | epath.Path") -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yields the lines of a file that has an object on each, without their ends; None for the object of other lines.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        _require_file(path)
        with path.open("rb") as file:
            while line := file.readline(_MOST_LINE_BYTES):
                try:
                    yield line.rstrip(b"\r\n"), parse_object(line)
                except RecordError:
                    yield line.rstrip(b"\r\n"), None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; move it away") from error


def _bytes(path: "pathlib.Path | epath.Path") -> bytes:
    _require_file(path)
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise RecordError(f"it is longer than {_MOST_BYTES // 2**20} MiB")
    return data


def _require_file(path: "pathlib.Path | epath.Path") -> None:
    # A pipe would keep its reader waiting.
    if path.exists() and not path.is_file():
        raise OSError("it is no file")


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise RecordError(f"a number of {len(digits):,} digits")
    return int(digits)


def _check(value: Any) -> None:
    """Refuses what would fail far from here: what is nested deeply, and texts that are no names of files."""
    level = [value]
    for _ in range(_MOST_DEPTH):
        level = [part for holder in level for part in _parts(holder)]
        if not level:
            return
    _refuse_depth()


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        if "\0" in value:
            raise RecordError("a text with a NUL in it")
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise RecordError("a text with half a character in it") from None
    return []


def _refuse_depth() -> NoReturn:
    raise RecordError(f"lists or groups stand in each other more than {_MOST_DEPTH} deep")
