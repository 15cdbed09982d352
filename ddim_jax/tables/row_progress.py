"""What has been measured of a table's row, and how it survives a kill."""

import dataclasses
import os
from typing import Self

import numpy as np
from etils import epath

from ddim_jax.config import EvalConfig
from ddim_jax.measuring.extractor import Extractor
from ddim_jax.measuring.feature_sums import of_prefix, with_prefix
from ddim_jax.measuring.measurement import Measurement
from ddim_jax.measuring.wanted import Known
from ddim_jax.npz import load_arrays, load_if_whole, save_arrays
from ddim_jax.tables.row_images import RowBatch

# Of each row, in the report.
_SHOWN_IMAGES = 64


@dataclasses.dataclass
class RowProgress:
    """What one process has of a row.

    Attributes:
        measurement: of the images so far.
        shown_index: indices of images for the report.
        shown: those images.
        seconds: time spent, by all jobs that worked on this.
        batches: drawn.
        timed_batches: those of them whose time is known.
        timed_seconds: it.
    """

    measurement: Measurement
    shown_index: np.ndarray
    shown: np.ndarray | None
    seconds: float = 0.0
    batches: int = 0
    timed_batches: int = 0
    timed_seconds: float = 0.0

    @classmethod
    def start(cls, extractor: Extractor, settings: EvalConfig, num: int, known: Known, path: epath.Path) -> Self:
        """Starts with no images; ``path`` is where :meth:`save` will write."""
        return cls(Measurement(extractor, settings, num, known, _files(path)), np.empty(0, np.int64), None)

    def add(self, batch: RowBatch) -> None:
        """Measures a batch."""
        self.measurement.update(batch.index, batch.image, batch.wanted)
        is_shown = batch.index < _SHOWN_IMAGES
        if is_shown.any():
            self._show(batch.index[is_shown], batch.image[is_shown])
        self.batches += 1
        if batch.seconds is not None:
            self.timed_batches += 1
            self.timed_seconds += batch.seconds

    def merge(self, other: Self) -> None:
        """Adds what another process has, which worked at the same time."""
        self.measurement.merge(other.measurement)
        if other.shown is not None:
            self._show(other.shown_index, other.shown)
        self.seconds = max(self.seconds, other.seconds)

    def _show(self, index: np.ndarray, images: np.ndarray) -> None:
        self.shown = images if self.shown is None else np.concatenate([self.shown, images])
        self.shown_index = np.concatenate([self.shown_index, index])

    @property
    def sampling_seconds(self) -> float | None:
        """The time of drawing all batches, had they all taken as long as those that were timed; None if none was."""
        return self.timed_seconds / self.timed_batches * self.batches if self.timed_batches else None

    def first_images(self) -> np.ndarray:
        """Returns the first images of the row, in order: [n, h, w, c]."""
        assert self.shown is not None, "image 0 is shown"
        return self.shown[np.argsort(self.shown_index)]

    def save(self, path: epath.Path) -> None:
        """Writes all of it, whole or not at all."""
        own = {
            field.name: np.asarray(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "measurement" and getattr(self, field.name) is not None
        }
        save_arrays(path, {**own, **with_prefix("measurement", self.measurement.to_arrays())}, make_parent=False)

    @classmethod
    def load(cls, path: epath.Path, extractor: Extractor, settings: EvalConfig, known: Known) -> Self:
        """Reads what :meth:`save` wrote, with the same extractor, settings and knowledge."""
        return cls._of_arrays(load_arrays(path), extractor, settings, known, path)

    @classmethod
    def resume(cls, path: epath.Path, extractor: Extractor, settings: EvalConfig, num: int, known: Known) -> Self:
        """Goes on with what a killed job saved, or starts with no images where that is not there or not whole."""
        start, arrays = cls.start(extractor, settings, num, known, path), load_if_whole(path)
        return cls._of_arrays(arrays, extractor, settings, known, path) if arrays and start._fits(arrays) else start

    def _fits(self, arrays: dict[str, np.ndarray]) -> bool:
        own = {field.name for field in dataclasses.fields(self) if field.name != "measurement"}
        given = {name for name in arrays if "." not in name}
        if given | {"shown"} != own or not self.measurement.fits(of_prefix("measurement", arrays)):
            return False
        numbers = own - {"shown", "shown_index"}
        shown = arrays.get("shown", np.empty((0, 0, 0, 0)))
        return all(arrays[name].shape == () and arrays[name].dtype.kind in "if" for name in numbers) and (
            arrays["shown_index"].shape == shown.shape[:1] and shown.ndim == 4
        )

    @classmethod
    def _of_arrays(
        cls, arrays: dict[str, np.ndarray], extractor: Extractor, settings: EvalConfig, known: Known, path: epath.Path
    ) -> Self:
        return cls(
            Measurement.from_arrays(extractor, settings, of_prefix("measurement", arrays), known, _files(path)),
            arrays["shown_index"],
            arrays.get("shown"),
            float(arrays["seconds"]),
            int(arrays["batches"]),
            int(arrays["timed_batches"]),
            float(arrays["timed_seconds"]),
        )


def _files(path: epath.Path) -> str:
    """How the names begin of what is kept beside the file: the same as its own."""
    return os.fspath(path).removesuffix(".npz")
