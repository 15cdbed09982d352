"""The schema in words: what each key is for, its type, default and bounds, for ``--help`` and the reference.

All of it is read off ``schema.py``, whose docstrings and fields are the only place where it is written.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from ddim_jax.config.keys import Key, Role
from ddim_jax.config.schema import Config

# The groups whose keys are a mode's own, the first of them first; ``data``, ``model`` and ``diffusion`` of a trained
# model are those of its workdir.
GROUPS_OF_MODES: dict[str, tuple[str, ...]] = {
    "train": ("train", "data", "model", "diffusion", "sample"),
    "distill": ("distill", "train", "sample"),
    "sample": ("sample",),
    "trajectory": ("trajectory", "sample"),
    "interpolate": ("interpolate", "sample"),
    "reconstruct": ("reconstruct", "sample"),
    "edit": ("edit", "sample"),
    "sweep": ("sweep", "sample"),
    "evaluate": ("eval", "sample"),
    "stats": ("eval", "data"),
    "likelihood": ("likelihood",),
    "tune": ("tune", "sample"),
    "average": ("eval", "sample"),
    "import": ("weights", "data", "model", "diffusion"),
    "export": ("weights",),
    "describe": ("describe", "data", "model", "diffusion", "train", "sample"),
}


class DocumentedKey(NamedTuple):
    """A key in words.

    Attributes:
        name: dotted, e.g. ``sample.steps``.
        kind: its type, e.g. ``int``, ``ddim | heun | ...`` or ``list of float``.
        default: as it is written on the command line.
        bounds: which values it may have beyond its type; may be empty.
        text: what it is for.
        role: what it decides.
    """

    name: str
    kind: str
    default: str
    bounds: str
    text: str
    role: Role


def documented_keys(group: str) -> list[DocumentedKey]:
    """Documents the keys of a group of the config, in their order.

    >>> documented_keys("describe")[0].default
    'false'
    """
    return list(_documented(_group_class(group), f"{group}."))


def about_group(group: str) -> str:
    """Says what a group of the config is for: the first paragraph of its docstring, as Markdown."""
    text = inspect.getdoc(_group_class(group)) or ""
    return _as_markdown(text.split("\n\n")[0])


def groups() -> list[str]:
    """Names of the groups, in the order of the schema."""
    return [field.name for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type)]


def _group_class(group: str) -> Any:
    return {field.name: field.type for field in dataclasses.fields(Config)}[group]


def _documented(group: Any, prefix: str) -> Iterator[DocumentedKey]:
    texts = _attributes(inspect.getdoc(group) or "")
    hints = typing.get_type_hints(group)
    for field in dataclasses.fields(group):
        known: Key = field.metadata["key"]
        bounds = "" if known.range is None else str(known.range)
        yield DocumentedKey(
            f"{prefix}{field.name}",
            _kind(hints[field.name]),
            _default(field.default),
            bounds,
            texts.get(field.name, ""),
            known.role,
        )


def _attributes(text: str) -> dict[str, str]:
    """The section "Attributes" of a docstring, by name, as Markdown."""
    _, _, section = text.partition("Attributes:\n")
    found: dict[str, list[str]] = {}
    name = ""
    for line in section.splitlines():
        begins = re.match(r"    (\w+): (.*)", line)
        if begins:
            name = begins[1]
            found[name] = [begins[2]]
        elif line.startswith("        ") and name:
            found[name].append(line.strip())
    return {name: _as_markdown(" ".join(lines)) for name, lines in found.items()}


def _as_markdown(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _kind(annotation: Any) -> str:
    """A type in words.

    >>> _kind(tuple[float, ...]), _kind(Literal["", "a"]), _kind(int | tuple[int, ...]), _kind(int | None)
    ('list of float', 'a, or empty', 'int or list of int', 'int')
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        inner = _kind(arguments[0])
        return f"list of {inner}" if " | " not in inner else f"list of: {inner}"
    if origin is Literal:
        names = " | ".join(str(value) for value in arguments if value != "")
        return f"{names}, or empty" if "" in arguments else names
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(argument) for argument in arguments if argument is not type(None)]
        literal = all(typing.get_origin(argument) is Literal for argument in arguments)
        if literal:
            return _kind(Literal[tuple(value for argument in arguments for value in typing.get_args(argument))])
        return " or ".join(kinds)
    return {str: "text", bool: "true | false"}.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(value: Any) -> str:
    """A value as the command line takes it.

    >>> _default(()), _default((1, 2)), _default(True), _default(""), _default(None)
    ('()', '(1, 2)', 'true', "''", 'none')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else repr(value) if isinstance(value, str) and not value else str(value)
