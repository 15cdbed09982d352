"""Docstrings as Markdown: references of Sphinx's form become links, examples and ``::`` blocks become code."""

# The site's packages are in the extra "docs", which a type checker need not have.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportUntypedBaseClass=false

import re
from collections.abc import Callable
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|attr|data|mod):`([^`]+)`")


def as_markdown(text: str, resolve: Callable[[str], str | None]) -> str:
    """A docstring in the words of Markdown.

    Args:
        text: the docstring, without its indentation.
        resolve: from a name as it is written to its full path, or None where there is none.

    >>> as_markdown("See :func:`~a.b`.", lambda name: name)
    'See [`b`][a.b].'
    """

    def link(match: re.Match[str]) -> str:
        name = match[1]
        shown = name.rpartition(".")[2] if name.startswith("~") else name
        path = resolve(name.removeprefix("~"))
        return f"`{shown}`" if path is None else f"[`{shown}`][{path}]"

    return _ROLE.sub(link, _with_fenced_examples(re.sub(r"::$", ":", text, flags=re.MULTILINE)))


def _with_fenced_examples(text: str) -> str:
    """Puts each run of ``>>>`` lines, with what they print, into a fence."""
    done: list[str] = []
    inside, indent = False, ""
    for line in [*text.split("\n"), ""]:
        begins = line.lstrip().startswith(">>> ")
        if begins and not inside:
            indent = line[: len(line) - len(line.lstrip())]
            done += ["", f"{indent}```pycon"]
            inside = True
        elif inside and not line.strip():
            done += [f"{indent}```"]
            inside = False
        # What only the runner of the examples reads.
        done.append(re.sub(r" *# doctest: .*", "", line) if inside else line)
    return "\n".join(done[:-1])


class Docstrings(griffe.Extension):
    """Rewrites each docstring once the whole package is known."""

    def on_package(self, *, pkg: Any, **_: Any) -> None:
        """Called by griffe with the package that it has read."""
        self._rewrite(pkg, pkg)

    def _rewrite(self, item: Any, package: Any) -> None:
        if item.docstring is not None:
            item.docstring.value = as_markdown(item.docstring.value, lambda name: _path_of(name, item, package))
        for member in item.members.values():
            if not member.is_alias:
                self._rewrite(member, package)


def _path_of(name: str, item: Any, package: Any) -> str | None:
    """The full path of what a docstring names, looked up from the inside out as Python does."""
    if name.startswith(f"{package.path}."):
        return _canonical(package, name.removeprefix(f"{package.path}."))
    scope = item
    while scope is not None:
        path = _canonical(scope, name)
        if path is not None:
            return path
        scope = scope.parent
    return None


def _canonical(scope: Any, name: str) -> str | None:
    for part in name.split("."):
        scope = scope.members.get(part)
        if scope is None:
            return None
        if scope.is_alias:
            try:
                scope = scope.final_target
            except griffe.GriffeError:
                return None
    hidden = any(part.startswith("_") for part in scope.path.split("."))
    return None if hidden or scope.docstring is None else scope.path
