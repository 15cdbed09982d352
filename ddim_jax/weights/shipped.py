"""The models that come with the package; ``pretrained/NAME.md`` says what each is."""

import os
import pathlib

from etils import epath

SHIPPED = ("mnist-small",)


def shipped_file(name: epath.PathLike) -> pathlib.Path | None:
    """The weights of a model by its name; None where there is none, or something of that name lies in the way."""
    if os.fspath(name) not in SHIPPED or epath.Path(name).exists():
        return None
    return pathlib.Path(__file__).parent.parent / "pretrained" / f"{os.fspath(name)}.safetensors"
