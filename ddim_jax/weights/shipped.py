"""The models that come with the package; ``pretrained/NAME.md`` says what each is."""

import difflib
import os
import pathlib

from etils import epath

SHIPPED = ("mnist-small", "mnist-unconditional")


def shipped_file(name: epath.PathLike) -> pathlib.Path | None:
    """The weights of a model by its name; None where there is none, or something of that name lies in the way."""
    if os.fspath(name) not in SHIPPED or epath.Path(name).exists():
        return None
    return pathlib.Path(__file__).parent.parent / "pretrained" / f"{os.fspath(name)}.safetensors"


def meant_by(name: epath.PathLike) -> str | None:
    """The model that a misspelt name perhaps means; None where there is something of that name, or none is near."""
    close = difflib.get_close_matches(os.fspath(name), SHIPPED, n=1)
    return close[0] if close and not epath.Path(name).exists() else None
