"""The images that a model was trained on, and those that were held out, as points among which samples have neighbours.

Features and pixels of all training images are computed once and kept in the cache, in files that are read through
memory maps (``rows_on_disk.py``); a program that is killed meanwhile goes on with the images that are missing.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.cache import cache_dir, is_trusted
from ddim_jax.config import Config
from ddim_jax.configured import build_normalization
from ddim_jax.digests import digest_of_facts
from ddim_jax.errors import UserError
from ddim_jax.files import make_folder
from ddim_jax.measuring.extractor import Extractor
from ddim_jax.measuring.image_sets import DataImages, ImageSet, spread_indices
from ddim_jax.measuring.pixel_rows import pixel_rows, pixel_width
from ddim_jax.measuring.rows_on_disk import flush, open_rows
from ddim_jax.metrics.memorization import Neighbours, check_training, neighbours
from ddim_jax.metrics.nearest import nearest
from ddim_jax.npz import load_if_whole, save_arrays
from ddim_jax.one_writer import one_writer
from ddim_jax.pixels import Normalization
from ddim_jax.writers import progress

# How much of a killed program's work may be lost.
_SAVE_EVERY_SECONDS = 60

# More would tell the same: what is typical of images that were not trained on.
_MOST_HELD_OUT = 10_000

# Of these, looked for among the training images.
_TRIED = 100


class ImageRows(NamedTuple):
    """Images as points.

    Attributes:
        number: int64 [n], which images of their set, ascending; unusable ones are left out.
        features: float32 [n, d].
        pixels: float32 [n, p], see ``pixel_rows.py``.
    """

    number: np.ndarray
    features: np.ndarray
    pixels: np.ndarray


class TrainingImages(NamedTuple):
    """The training images, and what is known of the held-out ones.

    Attributes:
        images: the set.
        rows: of it.
        held_out: the training images nearest to each held-out one, by features; None where none were held out.
    """

    images: ImageSet
    rows: ImageRows
    held_out: Neighbours | None

    def load(self, rows: np.ndarray) -> np.ndarray:
        """Reads the images of these rows, [n, h, w, c] of the data's type."""
        numbers = self.rows.number[rows]
        chosen, place = np.unique(numbers, return_inverse=True)
        return self.images.load(chosen).image[place]


def held_out_split(config: Config) -> str:
    """Returns the split of images that the model was not trained on: ``data.validation``, else that of the reference.

    Empty if there is none.
    """
    reference = config.eval.reference_split
    return config.data.validation or (reference if reference != config.data.split else "")


def training_facts(config: Config) -> dict[str, Any]:
    """Says which images are searched for copies, as JSON's types.

    Raises:
        UserError: they cannot be opened.
    """
    split = held_out_split(config)
    held_out = DataImages(config.data, split).identity if split else None
    return {"images": DataImages(config.data).identity, "held_out": held_out}


def training_images(config: Config, extractor: Extractor) -> TrainingImages:
    """Computes the training images and held-out images as points, or reads them from the cache.

    Args:
        config: ``data`` says which they are.
        extractor: of the features.

    Raises:
        UserError: they cannot be read, there are fewer than three, or the held-out images are training images.
    """
    normalization, shape = build_normalization(config), config.data.image_shape
    images = DataImages(config.data)
    rows = image_rows(images, np.arange(len(images)), shape, extractor, normalization)
    check_training(len(rows.number))
    split = held_out_split(config)
    if not split:
        return TrainingImages(images, rows, None)
    others = DataImages(config.data, split)
    chosen = spread_indices(len(others), _MOST_HELD_OUT)
    other_rows = image_rows(others, chosen, shape, extractor, normalization)
    some = other_rows.pixels[spread_indices(len(other_rows.pixels), _TRIED)]
    if np.median(nearest(some, rows.pixels).distance) == 0:
        key = "data.validation" if config.data.validation else "eval.reference_split"
        raise UserError(
            f"{key}={split!r}: these images are training images (data.split={config.data.split!r}), and say nothing of "
            "how near to them fresh ones are; name images that were held out, or leave memorization out of eval.metrics"
        )
    return TrainingImages(images, rows, neighbours(other_rows.features, rows.features))


def image_rows(
    images: ImageSet,
    chosen: np.ndarray,
    shape: tuple[int, int, int],
    extractor: Extractor,
    normalization: Normalization,
) -> ImageRows:
    """Computes features and pixels of images, or reads them from the cache.

    Args:
        images: the set.
        chosen: int64 [n], which of them, ascending.
        shape: of each, [h, w, c].
        extractor: of the features.
        normalization: says which values are pixels 0 and 1.

    Raises:
        UserError: images cannot be read, or the cache cannot be written.
    """
    facts = {
        "images": images.identity,
        "count": len(chosen),
        "extractor": extractor.provenance,
        "pixels": normalization.facts,
    }
    folder = epath.Path(cache_dir("rows")) / f"{images.name}-{digest_of_facts(facts)[:12]}".replace("/", "_")
    rows = _Rows(images, chosen, shape, extractor, normalization)
    if not is_trusted(folder):
        return rows.filled(None)
    make_folder(folder)
    with one_writer(
        folder.parent,
        folder.name,
        str(folder),
        "set DDIM_JAX_CACHE to a folder elsewhere",
        of_each_process=True,
        while_waiting=lambda: None,
    ):
        return rows.filled(folder)


class _Rows(NamedTuple):
    """What :func:`image_rows` computes."""

    images: ImageSet
    chosen: np.ndarray
    shape: tuple[int, int, int]
    extractor: Extractor
    normalization: Normalization

    def filled(self, folder: epath.Path | None) -> ImageRows:
        """Computes what is not there yet, and what could not be used before; in memory without a folder."""
        num = len(self.chosen)
        opened: dict[str, np.ndarray] = {}
        are_new = []
        for name, size in (("features", self.extractor.dimension), ("pixels", pixel_width(self.shape))):
            opened[name], is_new = open_rows(None if folder is None else folder / f"{name}.npy", num, size)
            are_new.append(is_new)
        usable = np.zeros(num, bool)
        saved = None if folder is None or any(are_new) else load_if_whole(folder / "usable.npz")
        if saved is not None and "usable" in saved and saved["usable"].shape == usable.shape:
            usable = saved["usable"].astype(bool)
        todo = np.flatnonzero(~usable)
        if len(todo):
            self._fill(todo, opened, usable, folder)
        rows = {name: array if usable.all() else array[usable] for name, array in opened.items()}
        return ImageRows(self.chosen[usable], rows["features"], rows["pixels"])

    def _fill(
        self, todo: np.ndarray, opened: Mapping[str, np.ndarray], usable: np.ndarray, folder: epath.Path | None
    ) -> None:
        def keep() -> None:
            for array in opened.values():
                flush(array)
            if folder is not None:
                save_arrays(folder / "usable.npz", {"usable": usable})

        num, last = len(usable), time.monotonic()
        name = f"rows of {self.images.name}"
        with progress(num, name, "image", num - len(todo), parallel.is_main_process()) as bar:
            for loaded in self.images.batches(self.chosen[todo], self.extractor.images_per_call):
                place = np.searchsorted(self.chosen, loaded.index)
                opened["features"][place] = self.extractor(loaded.image).features
                opened["pixels"][place] = pixel_rows(loaded.image, self.normalization)
                usable[place] = True
                bar.update(len(place))
                if time.monotonic() - last > _SAVE_EVERY_SECONDS:
                    keep()
                    last = time.monotonic()
        keep()
