"""What a job draws its images from: the conditions in a folder, an array or a table, or those of the data themselves.

Conditions are numbered, and image i is drawn from condition i // ``sample.per_condition``. The picture that a network
is given of an image (``conditions/tasks.py``) is found as it is, or made of a whole image, which then is the truth that
drawn images can be compared with.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from ddim_jax.conditions import DataCondition
from ddim_jax.conditions.tasks import Task
from ddim_jax.config import Config, DataConfig
from ddim_jax.configured import build_task
from ddim_jax.data.prepared import open_images
from ddim_jax.data.reading import load_images, read_example
from ddim_jax.data.sources import Source, open_source
from ddim_jax.data.tables_of_numbers import read_table
from ddim_jax.errors import UserError
from ddim_jax.sampling.conditions import as_unit, condition_of_images
from ddim_jax.sampling.image_sampler import ImageSampler, image_labels

_KEY = "sample.condition_path"

# Images whose conditions are held in memory at a time.
_AT_ONCE = 1024


class Conditions(NamedTuple):
    """What n images are drawn from.

    Attributes:
        told: what their network is told.
        truth: [n, h, w, c] of the data's type, the images that conditions were made of, or belong to; None where they
            are not known.
    """

    told: DataCondition
    truth: np.ndarray | None


class ConditionSet:
    """Numbered conditions, read as they are needed.

    Attributes:
        name: what to call the set in messages and pictures.
        has_truth: whether the images that conditions were made of are known.
    """

    def __init__(self, config: Config) -> None:
        """Opens ``sample.condition_path``, or the images of ``data.validation``, or of the data; reads one at most.

        Raises:
            UserError: it does not exist, or holds something else than this model is drawn from.
        """
        self._config = config
        self._task = build_task(config) if "image" in config.model.kinds else None
        path = config.sample.condition_path
        self.name = path or f"{config.data.name or config.data.source}, {config.data.validation or config.data.split}"
        self._table = _read_table(path, config) if path.endswith(".csv") else None
        self._source: Source | None = None
        self.has_truth = False
        if self._table is None:
            self._data, self.has_truth = config.data, True
            self._source = self._open(path)
        elif self._task is not None:
            raise UserError(
                f"{_KEY}={path!r} is a table, but this model is drawn from pictures; name a folder or array"
            )

    @classmethod
    def of(cls, config: Config) -> Self | None:
        """What the config draws images from; None where it is a class alone, which no set has to say."""
        if not config.sample.condition_path and all(kind == "class" for kind in config.model.kinds):
            return None
        return cls(config)

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

    def read(self, indices: np.ndarray) -> Conditions:
        """Reads what images are drawn from, and the truth where that is known.

        Args:
            indices: int [n], of the images.

        Raises:
            UserError: there is no condition of such a number, or it cannot be used.
        """
        numbers, labels = self.numbers(indices), image_labels(self._config, indices)
        if self._table is not None:
            label, vector = (None if column is None else column[numbers] for column in self._table)
            return Conditions(DataCondition(labels if label is None else label, vector), None)
        assert self._source is not None, "a table or a source"
        # Of several images that are drawn from one condition, that is read once.
        unique, places = np.unique(numbers, return_inverse=True)
        images = load_images(self._source, self._data, unique)
        if len(images.index) != len(unique):
            missing = np.setdiff1d(unique, images.index)[0]
            raise UserError(f"{self.name}: condition {missing} cannot be used, and no other may take its place")
        if self.has_truth:
            told = condition_of_images(self._config, images)
        else:
            told = DataCondition(images.label, images.vector, as_unit(images.image, self._config))
        told = jax.tree.map(lambda x: np.asarray(x)[places], told)
        told = told if self._source.num_classes else told._replace(label=labels)
        return Conditions(told, images.image[places] if self.has_truth else None)

    def load(self, indices: np.ndarray) -> DataCondition:
        """What images are drawn from; see :meth:`read`."""
        return self.read(indices).told

    def truth(self, indices: np.ndarray) -> np.ndarray:
        """The images that conditions were made of, or belong to: [n, h, w, c] of the data's type; see :meth:`read`.

        Raises:
            UserError: they are not known (see ``has_truth``), or cannot be read.
        """
        truth = self.read(indices).truth
        if truth is None:
            raise UserError(f"{self.name}: the images that these pictures were made of are not known")
        return truth

    def numbers(self, indices: np.ndarray) -> np.ndarray:
        """The numbers of the conditions that images are drawn from.

        Raises:
            UserError: there are not so many.
        """
        numbers = np.asarray(indices) // self._config.sample.per_condition
        if len(numbers) and numbers.max() >= len(self):
            most = len(self) * self._config.sample.per_condition
            raise UserError(
                f"{self.name} holds {len(self):,} conditions, but image {np.max(indices):,} needs number "
                f"{numbers.max():,}; ask for {most:,} images by sample.num, or for more of each by sample.per_condition"
            )
        return numbers

    def _open(self, path: str) -> Source:
        """Opens the data, or what a path names; sets how its images are prepared, and whether they are the truth."""
        data = self._config.data
        if not path:
            return open_images(data, data.validation or None)
        found = Path(path)
        if not found.exists():
            raise UserError(f"{_KEY}={path!r} does not exist; name a folder, a .npy, .npz or .csv file")
        kind = "folder" if found.is_dir() else "array"
        # Paired pictures stand for themselves here: there are no others beside them.
        condition = "" if data.condition == "paired" else data.condition
        data = dataclasses.replace(
            data, source=kind, path=path, split="train", cache="none", condition=condition, condition_path=""
        )
        try:
            source = open_source(data)
            self.has_truth = self._task is None or self._is_truth(source, data)
            self._data = data if self.has_truth or self._task is None else _given_form(data, self._task)
            # One of a wrong size is refused before anything is drawn.
            read_example(source, 0, self._data)
        except UserError as error:
            wanted = f"; this model is given pictures of {_in_words(self._task)}" if self._task is not None else ""
            raise UserError(f"{_KEY}: {error}{wanted}") from error
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


def draw_in_parts(
    sampler: ImageSampler, variables: Any, indices: np.ndarray, conditions: ConditionSet | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draws images, the conditions of some of them in memory at a time; see :meth:`ImageSampler.batches`.

    Args:
        sampler: of the job.
        variables: in place on the devices.
        indices: of the images.
        conditions: what they are drawn from; None where no set has to say it.
    """
    if conditions is None:
        yield from sampler.batches(variables, indices)
        return
    for start in range(0, len(indices), _AT_ONCE):
        part = indices[start : start + _AT_ONCE]
        yield from sampler.batches(variables, part, conditions.load(part))


def _in_words(task: Task) -> str:
    height, width, channels = task.shape
    return f"{width}x{height}x{channels}"


def _given_form(data: DataConfig, task: Task) -> DataConfig:
    """How pictures are read that are given as they are."""
    height, width, channels = task.shape
    return dataclasses.replace(data, image_size=(height, width), channels=channels, crop="none", resize="none")


def _read_table(path: str, config: Config) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Reads classes, of a column ``label`` or the first, and vectors, the other columns, of a ``.csv``.

    Raises:
        UserError: it is no such table, or names a class that the model has not.
    """
    model, key = config.model, f"{_KEY}={path!r}"
    table = read_table(Path(path), key)
    has_vector = "vector" in model.kinds
    width = bool(model.num_classes) + model.vector_size * has_vector
    found = table.values.shape[1] + (table.names is not None)
    wrong = np.flatnonzero(~np.isfinite(table.values).all(axis=1))
    if found != width or table.names is not None or len(wrong):
        wanted = " and ".join(["a class"] * bool(model.num_classes) + [f"{model.vector_size} numbers"] * has_vector)
        line = table.lines[wrong[0] if len(wrong) else 0]
        raise UserError(f"{key}: line {line} has {found} columns; this model is drawn from {wanted}")
    label, values = None, table.values
    if model.num_classes:
        place = table.titles.index("label") if "label" in table.titles else 0
        classes, values = values[:, place], np.delete(values, place, axis=1)
        wrong = np.flatnonzero((classes != np.round(classes)) | (classes < 0) | (classes >= model.num_classes))
        if len(wrong):
            raise UserError(
                f"{key}: row {wrong[0]} is of class {classes[wrong[0]]:g}, but the model has classes 0 to "
                f"{model.num_classes - 1}"
            )
        label = classes.astype(np.int32)
    return label, values if has_vector else None
