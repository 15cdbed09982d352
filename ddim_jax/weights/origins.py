"""Where weights come from that are not on this machine yet: ``hf:``, ``published:`` and addresses of the web."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ddim_jax.errors import UserError
from ddim_jax.weights.download import address_of, fetch_address
from ddim_jax.weights.hub import fetch_snapshot, repository_named
from ddim_jax.weights.published_files import published_address

HUB = "hf:"
PUBLISHED = "published:"


class Origin(NamedTuple):
    """Weights that were fetched.

    Attributes:
        path: file or folder that they are in now.
        facts: what a workdir keeps of where they come from: ``asked``, what the user wrote, and what it was then.
    """

    path: pathlib.Path
    facts: Mapping[str, str]


def fetched(path: str | os.PathLike[str], kept: Mapping[str, Any] | None = None) -> Origin | None:
    """Fetches weights, unless they are in a cache; None for a path of this machine.

    Args:
        path: what the user wrote; ``./hf:NAME`` is a file of such a name.
        kept: facts of the weights that a workdir has already; asked for in the same words, these are meant.

    Raises:
        UserError: there are no such weights, they cannot be fetched, or are others than they were.
    """
    asked = os.fspath(path)
    pinned = kept if kept and kept.get("asked") == asked else {}
    if asked.startswith(HUB):
        repository = repository_named(asked.removeprefix(HUB))
        if repository is None:
            raise UserError(f"{asked}: {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION is meant")
        if isinstance(pinned.get("commit"), str):
            repository = repository._replace(revision=pinned["commit"])
        snapshot = fetch_snapshot(repository)
        facts = {"asked": asked, "repository": repository.name, "commit": snapshot.commit}
        return Origin(snapshot.folder, facts)
    is_named = asked.startswith(PUBLISHED)
    address = published_address(asked.removeprefix(PUBLISHED)) if is_named else address_of(asked)
    if address is None:
        return None
    if isinstance(pinned.get("sha256"), str) and not address.sha256:
        address = address._replace(sha256=pinned["sha256"])
    found = fetch_address(address)
    return Origin(found.path, {"asked": asked, "url": address.url, "sha256": found.sha256})


def meant_elsewhere(text: str) -> str | None:
    """What weights are meant where a workdir is asked for; None for a path of this machine.

    Something of that name on this machine is always what is meant.

    >>> meant_elsewhere("google/ddpm-cifar10-32")
    'hf:google/ddpm-cifar10-32'

    Args:
        text: what the user wrote.
    """
    if text.startswith((HUB, PUBLISHED)) or address_of(text) is not None:
        return text
    return f"{HUB}{text}" if repository_named(text) and not os.path.exists(text) else None
