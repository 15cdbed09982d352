"""The config files that come with the package: ``configs/`` of a checkout, and the same files where it is installed."""

import pathlib

_PACKAGE = pathlib.Path(__file__).parents[1]


def shipped_configs() -> dict[str, pathlib.Path]:
    """The files by name, e.g. ``{"cifar10": .../cifar10.py, ...}``."""
    installed = _PACKAGE / "configs"
    folder = installed if installed.is_dir() else _PACKAGE.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}
