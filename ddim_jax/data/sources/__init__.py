"""Where images come from: scikit-learn's digits, a folder of image files, a TFDS data set, or a source of one's own.

To add one, write a class with the members of :class:`Source` and put a row into :data:`SOURCES`, under a name that
``names.DataSource`` has too. ``data.split`` takes a part of any source; ``splits.py`` helps those that have but one.
"""

from collections.abc import Callable

from ddim_jax.config import DataConfig
from ddim_jax.data.sources.digits import DigitsSource
from ddim_jax.data.sources.folder import FolderSource
from ddim_jax.data.sources.protocol import Example, Source, check_labels
from ddim_jax.data.sources.tfds import TfdsSource
from ddim_jax.errors import UserError
from ddim_jax.names import lookup

__all__ = [
    "SOURCES",
    "DigitsSource",
    "Example",
    "FolderSource",
    "Source",
    "TfdsSource",
    "check_labels",
    "open_source",
]


def open_source(config: DataConfig) -> Source:
    """Opens the part ``data.split`` of the source that ``data.source`` names.

    Raises:
        UserError: it does not exist, is empty, or needs a package that is not installed.
    """
    return lookup(SOURCES, config.source, "data source")(config)


def _open_folder(config: DataConfig) -> Source:
    if not config.path:
        # Not when configs are checked: jobs that open no data need no path.
        raise UserError("data.path='': name the folder of images")
    return FolderSource(config.path, config.name, config.split)


# By ``names.DataSource``: what opens the images that a config describes.
SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "digits": lambda config: DigitsSource(config.split),
    "folder": _open_folder,
    "tfds": lambda config: TfdsSource(config.name, config.split, config.dir),
}
