"""Where images come from: scikit-learn's digits, a folder, an array, a TFDS or Parquet data set, or one's own source.

To add one, write a class with the members of :class:`Source` and put a row into :data:`SOURCES`, under a name that
``names.DataSource`` has too. ``data.split`` takes a part of any source; ``splits.py`` helps those that have but one.
"""

from collections.abc import Callable

from ddim_jax.config import DataConfig
from ddim_jax.data.sources.array import ArraySource
from ddim_jax.data.sources.companions import with_companions
from ddim_jax.data.sources.digits import DigitsSource
from ddim_jax.data.sources.folder import FolderSource
from ddim_jax.data.sources.parquet import ParquetSource
from ddim_jax.data.sources.protocol import Example, Source, check_labels
from ddim_jax.data.sources.tfds import TfdsSource
from ddim_jax.errors import UserError
from ddim_jax.names import lookup

__all__ = [
    "SOURCES",
    "ArraySource",
    "DigitsSource",
    "Example",
    "FolderSource",
    "ParquetSource",
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
    source = lookup(SOURCES, config.source, "data source")(config)
    return with_companions(source, config) if config.vector or config.condition == "paired" else source


def _open_folder(config: DataConfig) -> Source:
    if not config.path:
        # Not when configs are checked: jobs that open no data need no path.
        raise UserError("data.path='': name the folder of images")
    return FolderSource(config.path, config.name, config.split, dtype=config.dtype, channels=config.channels)


def _open_tfds(config: DataConfig) -> Source:
    return TfdsSource(config.name, config.split, config.dir, config.dtype, config.channels, config.vector)


# By ``names.DataSource``: what opens the images that a config describes.
SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "digits": lambda config: DigitsSource(config.split),
    "folder": _open_folder,
    "tfds": _open_tfds,
    "array": ArraySource,
    "parquet": ParquetSource,
}
