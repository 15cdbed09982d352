"""What travels with an image from elsewhere: a vector from a table, a paired picture from a folder or an array."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ddim_jax.config import DataConfig
from ddim_jax.data.sources.array import IN_MEMORY
from ddim_jax.data.sources.array_files import ArrayFile, file_identity, image_array, is_array_file
from ddim_jax.data.sources.folder import FolderSource
from ddim_jax.data.sources.protocol import Example, Source
from ddim_jax.data.tables_of_numbers import read_table
from ddim_jax.data.transforms import ImageError, as_values
from ddim_jax.digests import digest_of_facts
from ddim_jax.errors import UserError, shown

# In the .npz of the images, or what a picture is called there, where ``data.condition_path`` names nothing else.
_PAIRED = "paired"

# Names that a line has room for.
_NAMES_SHOWN = 3


class AccompaniedSource(Source):
    """A source whose examples have vectors or paired pictures that come from elsewhere."""

    def __init__(
        self,
        source: Source,
        vectors: np.ndarray | None,
        paired: Callable[[int], np.ndarray] | None,
        identities: dict[str, str | int],
    ) -> None:
        """Puts them together.

        Args:
            source: the images.
            vectors: float32 [n, d], one for each of the source's examples.
            paired: reads the picture of an example.
            identities: what stands for vectors and pictures.
        """
        self._source, self._vectors, self._paired, self._identities = source, vectors, paired, identities
        self.name, self.num_classes = source.name, source.num_classes
        self.no_labels_because = source.no_labels_because
        self.vector_size = source.vector_size if vectors is None else vectors.shape[1]
        self.has_paired = paired is not None

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        """Reads example ``index`` and what belongs to it."""
        example = self._source[index]
        vector = example.vector if self._vectors is None else self._vectors[index]
        return Example(example.image, example.label, vector, None if self._paired is None else self._paired(index))

    def where(self, index: int) -> str:
        """The file or record that holds the image."""
        return self._source.where(index)

    def identity(self) -> dict[str, str | int]:
        """The source's, and those of what comes from elsewhere."""
        return {**self._source.identity(), **self._identities}


def with_companions(source: Source, config: DataConfig) -> Source:
    """The source with the vectors of ``data.vector`` and the pictures of ``data.condition=paired``.

    Raises:
        UserError: they are not there, or not as many as images.
    """
    identities: dict[str, str | int] = {}
    vectors = None
    if config.vector and not source.vector_size:
        vectors, identities["vector"] = _vectors(source, config)
    paired = None
    if config.condition == "paired" and not source.has_paired:
        paired, identities["paired"] = _paired(source, config)
    if vectors is None and paired is None:
        return source
    return AccompaniedSource(source, vectors, paired, identities)


def _numbers(source: Source, key: str) -> np.ndarray:
    """The number of each example in the whole data set."""
    if source.numbers is None:
        raise UserError(f"{key}: the order of {source.name} is not known; have it in the data set itself")
    return source.numbers


def _check_length(found: int, source: Source, key: str) -> None:
    if found != source.num_whole:
        raise UserError(f"{key} has {found:,} rows for the {source.num_whole:,} images of {source.name}")


# --- vectors ------------------------------------------------------------------------------------


def _vectors(source: Source, config: DataConfig) -> tuple[np.ndarray, str]:
    """The vector of each example, float32 [n, d], and what stands for all of them."""
    key = f"data.vector={shown(config.vector)}"
    names = None
    memory = IN_MEMORY.get(config.name) if config.source == "array" and not config.path else None
    if memory is not None:
        values, identity = memory.vectors, "content"
        if values is None:
            raise UserError(f"{key}: no vectors are in memory beside the images")
    elif config.vector.lower().endswith(".csv"):
        path = Path(config.vector).expanduser()
        table = read_table(path, key)
        names, values = table.names, table.values
        identity = file_identity(path)
    elif is_array_file(config.vector):
        file = ArrayFile(config.vector, "data.vector")
        values, identity = file.open(), file.identity()
    elif config.source == "array" and config.path.endswith(".npz"):
        file = ArrayFile(config.path, "data.path")
        values, identity = file.open(config.vector), config.vector
    else:
        raise UserError(f"{key}: name a .npy or .csv file with a row for each image")
    if values.ndim not in (1, 2) or not values.size or values.dtype.kind not in "biuf":
        raise UserError(f"{key}: its shape is {tuple(values.shape)} of {values.dtype}; it needs a row of numbers each")
    values = np.asarray(values).reshape(len(values), -1).astype(np.float32)
    if names is not None and isinstance(source, FolderSource):
        rows = _rows_by_name(names, source.files, key)
    else:
        _check_length(len(values), source, key)
        rows = _numbers(source, key)
    found = values[rows]
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        raise UserError(
            f"{key}: the row of {source.where(int(bad[0]))} has values that are not finite ({len(bad):,} rows)"
        )
    return found, identity


def _rows_by_name(names: Sequence[str], files: Sequence[str], key: str) -> np.ndarray:
    """The row of each file, which a table names by its path in the folder or its bare name, with suffix or without."""
    row_of: dict[str, int] = {}
    for row, name in enumerate(names):
        if row_of.setdefault(os.path.normpath(name), row) != row:
            raise UserError(f"{key} names {name} twice")
    rows, missing = [], []
    for file in files:
        bare = os.path.basename(file)
        tried = (file, os.path.splitext(file)[0], bare, os.path.splitext(bare)[0])
        found = next((row_of[name] for name in tried if name in row_of), None)
        rows.append(found)
        if found is None:
            missing.append(file)
    if missing:
        raise UserError(f"{key} has no row for {_some(missing)} of {len(files):,} images")
    return np.array(rows, np.int64)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


# --- paired pictures ----------------------------------------------------------------------------


def _paired(source: Source, config: DataConfig) -> tuple[Callable[[int], np.ndarray], str]:
    """What reads the picture of an example, and what stands for all of them."""
    path = config.condition_path
    key = f"data.condition_path={shown(path)}"
    memory = IN_MEMORY.get(config.name) if config.source == "array" and not config.path and not path else None
    if memory is not None or not path or is_array_file(path):
        if memory is not None:
            array, identity = memory.paired, "content"
        elif path:
            file = ArrayFile(path, "data.condition_path")
            array, identity = (
                file.open(_PAIRED if _PAIRED in file.names else next(iter(file.names), "")),
                file.identity(),
            )
        elif config.source == "array" and config.path.endswith(".npz"):
            array, identity = ArrayFile(config.path, "data.path").open(_PAIRED), _PAIRED
        else:
            array, identity = None, ""
        if array is None:
            raise UserError(f"{key}: data.condition=paired needs the folder or array of the pictures beside the images")
        pictures = image_array(array, key)
        _check_length(len(pictures), source, key)
        numbers = _numbers(source, key)

        def read_row(index: int) -> np.ndarray:
            return as_values(np.array(pictures[numbers[index]]), config.dtype)

        return read_row, identity
    folder = FolderSource(path, key="data.condition_path", dtype=config.dtype, channels=config.paired_shape[2])
    if isinstance(source, FolderSource):
        places = _places_by_name(source, folder, key)
    else:
        _check_length(len(folder), source, key)
        places = _numbers(source, key)

    def read_file(index: int) -> np.ndarray:
        place = int(places[index])
        try:
            return folder[place].image
        except ImageError as error:
            raise ImageError(f"{folder.where(place)}: {error.reason}") from error

    return read_file, digest_of_facts(folder.identity())


def _places_by_name(source: FolderSource, folder: FolderSource, key: str) -> np.ndarray:
    """The place of each example's picture in the other folder, where it has the same path, but for the suffix."""
    place_of = {os.path.splitext(file)[0]: place for place, file in enumerate(folder.files)}
    names = [os.path.splitext(file)[0] for file in source.files]
    missing = [file for file, name in zip(source.files, names, strict=True) if name not in place_of]
    if missing:
        raise UserError(f"{key} has no picture for {_some(missing)} of {source.name}; names must be the same")
    if len(source) == source.num_whole:
        unused = sorted(place_of.keys() - set(names))
        if unused:
            raise UserError(f"{key}: {source.name} has no image for {_some(unused)}; names must be the same")
    return np.array([place_of[name] for name in names], np.int64)
