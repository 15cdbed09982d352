"""What a key of the config is for, and which values it can have: stated beside its default, in ``schema.py``.

Everything that has to know keys by their purpose asks here: what a resumed run may change, which keys name the folder
of a job, what exported weights say of themselves, which settings a compiled program depends on.
"""

import dataclasses
import difflib
import enum
import os
import typing
from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple

from ddim_jax.errors import ConfigError, shown
from ddim_jax.names import choices

# The largest seed and image index.
LARGEST_INDEX = 2**31 - 1

# Values in a list, where the key says nothing else.
_LONGEST = 1000

# Characters in a text: the longest path that Linux takes.
_LONGEST_TEXT = 4096

# Bytes in the name of a file or folder, on nearly all file systems.
_LONGEST_NAME = 255


class Role(enum.Enum):
    """What a key decides.

    - ``NETWORK``: which function of image and noise level the weights are, and what its output means. Imported weights
      must agree with it, as must every job on a trained model.
    - ``TRAINING``: what training makes of the data. A run is resumed with the same values only.
    - ``PROGRESS``: how long a run goes on, and what it writes on the way. A resumed run may change it.
    - ``MACHINE``: where files lie, how fast things go and in how much memory; never what comes out, but for rounding.
    - ``PIXELS``: what the image of a given index looks like. It is part of the names of folders.
    - ``SELECTION``: which images a job draws or takes.
    - ``WEIGHTS``: which of the weights at hand are used; names of folders have the step of the checkpoint instead.
    - ``STORAGE``: what is written and in which form; never what was found.
    - ``RESULT``: anything else that decides the result of the group's own job.
    """

    NETWORK = enum.auto()
    TRAINING = enum.auto()
    PROGRESS = enum.auto()
    MACHINE = enum.auto()
    PIXELS = enum.auto()
    SELECTION = enum.auto()
    WEIGHTS = enum.auto()
    STORAGE = enum.auto()
    RESULT = enum.auto()


class Range(NamedTuple):
    """The numbers that a key may have, each of them if it is a list; None where there is no bound.

    Attributes:
        at_least: the smallest.
        at_most: the largest.
        above: a bound that is not reached.
        below: a bound that is not reached.
    """

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """What the number must be, in words.

        >>> print(Range(at_least=0)), print(Range(at_least=0, below=1)), print(Range(above=0, at_most=1e6))
        must not be negative
        must lie in [0, 1)
        must be positive, and at most 1e+06
        (None, None, None)
        """
        match self:
            case Range(at_least=0, at_most=None, below=None):
                return "must not be negative"
            case Range(above=0, at_most=None, below=None):
                return "must be positive"
            case Range(above=0, below=None):
                return f"must be positive, and at most {_number(self.at_most)}"
            case Range(above=None, at_most=None, below=None):
                return f"must be at least {self.at_least}"
            case Range(above=None, below=None):
                return f"must lie in {_number(self.at_least)} ... {_number(self.at_most)}"
            case Range(at_least=None):
                return f"must lie strictly between {self.above} and {self.below}"
        return f"must lie in [{self.at_least}, {self.below})"


def _number(value: float | None) -> str:
    """A bound in words.

    >>> _number(1000), _number(-10_000), _number(2**31), _number(10**12), _number(1e-6)
    ('1000', '-10,000', '2^31', '1,000,000,000,000', '1e-06')
    """
    if value in (LARGEST_INDEX, LARGEST_INDEX + 1):
        return "2^31 - 1" if value == LARGEST_INDEX else "2^31"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if value and abs(value) > 9999 else str(value)


class Key(NamedTuple):
    """What is known of a key beside its name, type and default.

    Attributes:
        role: what it decides.
        range: the numbers that it may have; None where any will do, or where it is no number.
        is_path: whether it names a file or folder of this machine.
        is_traced: whether it is data to compiled programs, so that another value compiles nothing.
        is_filled: whether it is a list that must not be empty.
        longest: of a list, the most values that it may hold.
        is_later: whether it came after version 0.1.0. At its default, it is no part of the hashes in names of folders:
            jobs of earlier versions find theirs.
    """

    role: Role
    range: Range | None = None
    is_path: bool = False
    is_traced: bool = False
    is_filled: bool = False
    longest: int = _LONGEST
    is_later: bool = False


def key(
    default: Any,
    role: Role,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    is_path: bool = False,
    is_traced: bool = False,
    is_filled: bool = False,
    longest: int = _LONGEST,
    is_later: bool = False,
) -> Any:
    """A key of the schema: its default, and what :class:`Key` and :class:`Range` know."""
    bounds = Range(at_least, at_most, above, below)
    known = Key(role, None if bounds == Range() else bounds, is_path, is_traced, is_filled, longest, is_later)
    return dataclasses.field(default=default, metadata={"key": known})


def _fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, field) of all keys of a config, a group of it, or their classes."""
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(field.type):
            yield from _fields_of(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def keys_of(config: Any) -> Iterator[tuple[str, Key]]:
    """Yields (dotted name, :class:`Key`) of all keys of a config, a group of it, or their classes."""
    return ((name, field.metadata["key"]) for name, field in _fields_of(config))


def keys_with(config: Any, *roles: Role) -> tuple[str, ...]:
    """The dotted names of all keys with one of these roles, in the order of the schema."""
    return tuple(name for name, known in keys_of(config) if known.role in roles)


def deciding_values(group: Any, names: Collection[str] | None = None) -> dict[str, Any]:
    """The values of a group of the config that names of folders are made of, see :attr:`Key.is_later`.

    Args:
        group: e.g. ``config.sample``.
        names: of the keys that decide; all when None.
    """
    default = type(group)()
    return {
        name: getattr(group, name)
        for name, known in keys_of(group)
        if (names is None or name in names) and not (known.is_later and getattr(group, name) == getattr(default, name))
    }


def flatten(config: Any) -> dict[str, Any]:
    """All values by dotted key, e.g. ``{"data.source": "digits", ...}``."""
    flat = {}
    for field in dataclasses.fields(config):
        group = getattr(config, field.name)
        if dataclasses.is_dataclass(group):
            flat.update(
                {f"{field.name}.{inner.name}": getattr(group, inner.name) for inner in dataclasses.fields(group)}
            )
        else:
            flat[field.name] = group
    return flat


def check_name(annotation: Any, value: Any, key: str) -> bool:
    """Checks the value of a key whose type is a list of names.

    Args:
        annotation: the key's type.
        value: one of its names, it is hoped.
        key: the dotted name, for the message.

    Returns:
        Whether the type is such a list.

    Raises:
        ConfigError: it is, and does not have that name.
    """
    arms = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Union else (annotation,)
    if any(typing.get_origin(arm) is not Literal for arm in arms):
        return False
    known = [name for arm in arms for name in choices(arm)]
    if value not in known:
        close = difflib.get_close_matches(value if isinstance(value, str) else shown(value), known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        listed = ", ".join(name or "''" for name in known)
        raise ConfigError(f"{key}: {shown(value)} is not one of {listed}{hint}")
    return True


def check_values(config: Any) -> None:
    """Checks each value by itself.

    Raises:
        ConfigError: the first value that is out of its range or no name of its list, a list that is empty and should
            not be, or is too long, or a text that cannot be the name of anything.
    """
    flat = flatten(config)
    for name, field in _fields_of(config):
        value, known = flat[name], field.metadata["key"]
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        if isinstance(value, tuple) and len(value) > known.longest:
            raise ConfigError(f"{name} holds {len(value):,} values; {known.longest:,} are the most")
        if known.range is not None and not all(map(known.range.holds, values)):
            raise ConfigError(f"{name}={shown(value)}: {known.range}")
        if known.is_filled and not value:
            raise ConfigError(f"{name}={value}: name at least one")
        of_each = typing.get_args(field.type)[0] if typing.get_origin(field.type) is tuple else field.type
        for each in values:
            check_name(of_each, each, name)
            if isinstance(each, str):
                (check_path if known.is_path else check_text)(each, name)


def check_text(text: str, name: str) -> None:
    """Checks that a text can be the name of something: no system has names with NUL, or of any length.

    Args:
        text: the text.
        name: of the key or flag, for the message.

    Raises:
        ConfigError: it cannot.
    """
    if "\0" in text:
        raise ConfigError(f"{name}={shown(text)}: holds a NUL character; leave that out")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name}={shown(text)}: no file system can write this; {error.reason}") from error
    if len(text) > _LONGEST_TEXT:
        raise ConfigError(f"{name}={shown(text)}: {len(text):,} characters; {_LONGEST_TEXT:,} are the most")


def check_path(path: str, name: str) -> None:
    """Checks that a path can be one of a file or folder, whether or not there is one.

    Args:
        path: an empty one is nobody's concern; with ``~`` already replaced by a home folder.
        name: of the key or flag, for the message.

    Raises:
        ConfigError: it cannot.
    """
    check_text(path, name)
    first, *others = path.split("/")
    if first.startswith("~"):
        user = first.removeprefix("~")
        raise ConfigError(
            f"{name}={shown(path)}: there is no user {user!r} with a home folder; a folder of that name is ./{first}"
        )
    for part in (first, *others):
        if len(os.fsencode(part)) > _LONGEST_NAME:
            raise ConfigError(
                f"{name}={shown(path)}: a part of it has {len(part):,} characters; {_LONGEST_NAME} are the most"
            )
