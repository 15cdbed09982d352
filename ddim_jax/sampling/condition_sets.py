"""What a job draws its images from: the conditions in a folder, an array or a table, or those of the data themselves.

Conditions are numbered, and image i is drawn from condition i // ``sample.per_condition``. The picture that a network is
given of an image (``conditions/tasks.py``) is found as it is, or made of a whole image, which then is the truth that
drawn images can be compared with.
"""

import csv
import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddim_jax.conditions.tasks import Task
from ddim_jax.config import Config, DataConfig
from ddim_jax.configured import build_normalization, build_task
from ddim_jax.data.prepared import open_images
from ddim_jax.data.reading import load_images
from ddim_jax.data.sources import Source, open_source
from ddim_jax.errors import UserError
from ddim_jax.pixels import to_unit
from ddim_jax.random_streams import Stream, fold_in_each, root_key

_KEY = "sample.condition_path"

# Folded into the stream of conditions before their numbers: training folds its steps in there, which are fewer.
_SAMPLING = 2**31 - 1


class Conditions(NamedTuple):
    """Conditions, and what they were made of; what a set does not know is None.

    Attributes:
        label: int32 [n].
        vector: float32 [n, d].
        given: float32 [n, h', w', c'] in [0, 1], the pictures of ``data.condition``.
        truth: [n, h, w, c] of the data's type, the images that ``given`` was made of, or that the data have.
    """

    label: np.ndarray | None = None
    vector: np.ndarray | None = None
    given: np.ndarray | None = None
    truth: np.ndarray | None = None


class ConditionSet:
    """Numbered conditions.

    Attributes:
        name: what to call the set in messages and pictures.
        has_truth: whether the images that conditions were made of are known.
    """

    def __init__(self, config: Config) -> None:
        """Opens ``sample.condition_path``, or the images of ``data.validation``, or of the data; reads no more than one.

        Raises:
            UserError: it does not exist, or holds something else than this model is drawn from.
        """
        self._config = config
        self._task = build_task(config) if "image" in config.model.condition else None
        path = config.sample.condition_path
        self.name = path or f"{config.data.name or config.data.source}, {config.data.validation or config.data.split}"
        self._table = _read_table(path, config) if path.endswith(".csv") else None
        self._source: Source | None = None
        self.has_truth = False
        if self._table is None:
            self._data, self.has_truth = config.data, True
            self._source = self._open(path)
        elif self._task is not None:
            raise UserError(f"{_KEY}={path!r} is a table, but this model is drawn from pictures; name a folder or array")

    def __len__(self) -> int:
        """The number of conditions."""
        source = self._source if self._table is None else next(x for x in self._table if x is not None)
        assert source is not None, "a table or a source"
        return len(source)

    def identity(self) -> dict[str, Any]:
        """Which conditions these are: sets with equal ones hold the same."""
        if self._table is not None:
            contents = b"".join(b"" if x is None else x.tobytes() for x in self._table)
            return {"table": hashlib.sha256(contents).hexdigest()}
        assert self._source is not None, "a table or a source"
        return self._source.identity()

    def load(self, numbers: np.ndarray) -> Conditions:
        """Reads conditions.

        Args:
            numbers: int [n], below the number of conditions.

        Raises:
            UserError: one cannot be used.
        """
        if self._table is not None:
            return Conditions(*(None if x is None else x[numbers] for x in self._table))
        assert self._source is not None, "a table or a source"
        # Several images may be drawn from one condition: it is read once.
        unique, places = np.unique(numbers, return_inverse=True)
        images = load_images(self._source, self._data, unique)
        if len(images.index) != len(unique):
            missing = np.setdiff1d(unique, images.index)[0]
            raise UserError(f"{self.name}: condition {missing} cannot be used, and no other may take its place")
        found = self._conditions_of(images, unique)
        return Conditions(*(None if x is None else x[places] for x in found))

    def _conditions_of(self, images: Any, numbers: np.ndarray) -> Conditions:
        model = self._config.model
        label = images.label if model.num_classes and self._source and self._source.num_classes else None
        vector = images.vector if "vector" in model.condition else None
        if self._task is None:
            return Conditions(label, vector, None, images.image)
        normalization = build_normalization(self._config)
        if not self.has_truth:
            return Conditions(label, vector, to_unit(images.image, normalization))
        if self._task.make is None:
            return Conditions(label, vector, to_unit(images.paired, normalization), images.image)
        key = jax.random.fold_in(root_key(self._config.sample.seed, Stream.CONDITION), _SAMPLING)
        keys = fold_in_each(key, np.asarray(numbers, np.int32))
        given = jax.jit(self._task.make)(to_unit(images.image, normalization), keys)
        return Conditions(label, vector, np.asarray(given), images.image)

    def _open(self, path: str) -> Source:
        """Opens the data, or what a path names; sets how its images are prepared, and whether they are the truth."""
        data = self._config.data
        if not path:
            return open_images(data, data.validation or None)
        found = Path(path)
        if not found.exists():
            raise UserError(f"{_KEY}={path!r} does not exist; name a folder, a .npy, .npz or .csv file")
        kind = "folder" if found.is_dir() else "array"
        data = dataclasses.replace(data, source=kind, path=path, split="train", cache="none", condition_path="")
        try:
            source = open_source(data)
            self.has_truth = self._task is None or self._is_truth(source, data)
        except UserError as error:
            raise UserError(f"{_KEY}: {error}") from error
        self._data = data if self.has_truth or self._task is None else _given_form(data, self._task)
        return source

    def _is_truth(self, source: Source, data: DataConfig) -> bool:
        """Whether pictures are whole images, of which the task makes what the network is given."""
        assert self._task is not None, "asked of pictures only"
        found, wanted = source[0].image.shape, self._task.shape
        if self._task.make is None or found == wanted:
            return False
        if found[:2] == wanted[:2] and found[:2] != data.image_shape[:2]:
            return False
        # Blurred or noisy pictures have the size of whole ones, and are taken as they are.
        return data.condition in ("downsample", "mask", "grey")


def _given_form(data: DataConfig, task: Task) -> DataConfig:
    """How pictures are read that are given as they are."""
    height, width, channels = task.shape
    return dataclasses.replace(data, image_size=(height, width), channels=channels, crop="none", resize="none")


def _read_table(path: str, config: Config) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Reads classes and vectors of a ``.csv``: a column ``label`` or the first, where the model has classes; then d more.

    Raises:
        UserError: it is no such table, or names a class that the model has not.
    """
    model = config.model
    try:
        with open(path, newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{_KEY}={path!r} cannot be read: {reason}") from error
    header = [name.strip() for name in rows[0]] if rows and not _is_numbers(rows[0]) else []
    rows = rows[bool(header) :]
    if not rows:
        raise UserError(f"{_KEY}={path!r} holds no row of numbers")
    has_vector = "vector" in model.condition
    width = bool(model.num_classes) + model.vector_size * has_vector
    for number, row in enumerate(rows, start=1 + bool(header)):
        if len(row) != width or not _is_numbers(row):
            wanted = " and ".join(
                ["a class"] * bool(model.num_classes) + [f"{model.vector_size} numbers"] * has_vector
            )
            raise UserError(f"{_KEY}={path!r}: line {number} has {len(row)} columns; this model is drawn from {wanted}")
    values = np.array(rows, np.float32)
    label = None
    if model.num_classes:
        place = header.index("label") if "label" in header else 0
        classes, values = values[:, place], np.delete(values, place, axis=1)
        wrong = np.flatnonzero((classes != np.round(classes)) | (classes < 0) | (classes >= model.num_classes))
        if len(wrong):
            raise UserError(
                f"{_KEY}={path!r}: row {wrong[0]} is of class {classes[wrong[0]]:g}, but the model has classes 0 to "
                f"{model.num_classes - 1}"
            )
        label = classes.astype(np.int32)
    return label, values if has_vector else None


def _is_numbers(row: list[str]) -> bool:
    try:
        return bool(np.isfinite([float(value) for value in row]).all())
    except ValueError:
        return False
