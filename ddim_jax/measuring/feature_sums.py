"""What is kept of the features of a set of images, while they come batch by batch, on one machine or many."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ddim_jax.measuring.extractor import SPATIAL_DIMENSION, Extractor, Features
from ddim_jax.measuring.image_sets import spread_indices
from ddim_jax.metrics.inception_score import InceptionSums
from ddim_jax.metrics.moments import Moments

# Features wait until there are so many, since adding to a covariance costs as much for one image as for thousands.
_BLOCK = 2048


@dataclasses.dataclass(eq=False)
class FeatureSums:
    """Moments, class sums, and some of the features themselves, of images 0 ... num - 1.

    Where images come in the same order the result has the same bits for any batch sizes, also when it was saved and
    read again in between. In another order, or merged from several machines, it is equal to rounding.

    Attributes:
        seen: bool [num], the images that have come.
        kept_index: int64 [m], the images whose features are kept: evenly spread.
        kept: float32 [m, d], their features; 0 until they come.
        moments: of the features.
        spatial_moments: of ``Features.spatial``, or None.
        class_sums: for the Inception score, or None.
        waiting_index: int64 [w], images that have come but are in no sum yet.
        waiting: their features.
    """

    seen: np.ndarray
    kept_index: np.ndarray
    kept: np.ndarray
    moments: Moments
    spatial_moments: Moments | None
    class_sums: InceptionSums | None
    waiting_index: np.ndarray
    waiting: Features

    @classmethod
    def empty(cls, extractor: Extractor, num: int, keep: int, is_splits: int = 0) -> Self:
        """Of no images yet.

        Args:
            extractor: what the features come from; its class sums and spatial moments are kept if it has them.
            num: images that there will be.
            keep: images whose features are kept.
            is_splits: splits of the Inception score; 0 for no score.

        Raises:
            UserError: more splits than images.
        """
        dimension = extractor.dimension
        kept_index = spread_indices(num, keep)
        scored = is_splits > 0 and extractor.num_logits > 0
        return cls(
            seen=np.zeros(num, bool),
            kept_index=kept_index,
            kept=np.zeros((len(kept_index), dimension), np.float32),
            moments=Moments.empty(dimension),
            spatial_moments=Moments.empty(SPATIAL_DIMENSION) if extractor.spatial else None,
            class_sums=InceptionSums.empty(num, extractor.num_logits, is_splits) if scored else None,
            waiting_index=np.empty(0, np.int64),
            waiting=Features(
                np.empty((0, dimension), np.float32),
                np.empty((0, extractor.num_logits), np.float32) if scored else None,
                np.empty((0, SPATIAL_DIMENSION), np.float32) if extractor.spatial else None,
            ),
        )

    @property
    def missing(self) -> np.ndarray:
        """The images that have not come, ascending: int64 [k]."""
        return np.flatnonzero(~self.seen)

    def add(self, index: np.ndarray, features: Features) -> None:
        """Adds a batch.

        Args:
            index: int [b], which image each row is.
            features: of them.

        Raises:
            ValueError: an image that is out of range, or came before.
            UserError: NaN or infinity among the features.
        """
        index = np.asarray(index, np.int64)
        if len(index) and (index.min() < 0 or index.max() >= len(self.seen)):
            raise ValueError(f"image {index.min()} ... {index.max()} is not within 0 ... {len(self.seen) - 1}")
        if self.seen[index].any() or len(np.unique(index)) < len(index):
            raise ValueError("an image was given twice")
        self.seen[index] = True
        place = np.searchsorted(self.kept_index, index)
        is_kept = np.isin(index, self.kept_index)
        self.kept[place[is_kept]] = features.features[is_kept]

        self.waiting_index = np.concatenate([self.waiting_index, index])
        self.waiting = Features(
            *(
                None if before is None else np.concatenate([before, new])
                for before, new in zip(self.waiting, features, strict=True)
            )
        )
        while len(self.waiting_index) >= _BLOCK:
            self._sum_up(_BLOCK)

    def merge(self, other: "FeatureSums") -> None:
        """Adds what another machine has seen of the same set.

        Raises:
            ValueError: it saw images that are in here too.
        """
        if (self.seen & other.seen).any():
            raise ValueError("an image was given to both")
        self._sum_up(len(self.waiting_index))
        other._sum_up(len(other.waiting_index))
        self.kept[other.seen[self.kept_index]] = other.kept[other.seen[self.kept_index]]
        self.seen |= other.seen
        self.moments = self.moments.merge(other.moments)
        if self.spatial_moments is not None and other.spatial_moments is not None:
            self.spatial_moments = self.spatial_moments.merge(other.spatial_moments)
        if self.class_sums is not None and other.class_sums is not None:
            self.class_sums = self.class_sums.merge(other.class_sums)

    def finish(self) -> Self:
        """Puts all that has come into the sums, which can be read then; returns itself."""
        self._sum_up(len(self.waiting_index))
        return self

    @property
    def kept_features(self) -> np.ndarray:
        """Float32 [m', d]: the kept features that have come, in the order of the images."""
        return self.kept[self.seen[self.kept_index]]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """By name, for ``numpy.savez``."""
        arrays = {name: getattr(self, name) for name in ("seen", "kept_index", "kept", "waiting_index")}
        parts = {
            "moments": self.moments.to_arrays(),
            "spatial": None if self.spatial_moments is None else self.spatial_moments.to_arrays(),
            "classes": None if self.class_sums is None else self.class_sums.to_arrays(),
            "waiting": {name: x for name, x in self.waiting._asdict().items() if x is not None},
        }
        for part, of_part in parts.items():
            arrays |= {f"{part}.{name}": array for name, array in (of_part or {}).items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """The inverse of :meth:`to_arrays`, to the bit."""

        def part(prefix: str) -> dict[str, Any]:
            return {name.removeprefix(f"{prefix}."): arrays[name] for name in arrays if name.startswith(f"{prefix}.")}

        spatial, classes = part("spatial"), part("classes")
        return cls(
            seen=np.array(arrays["seen"]),
            kept_index=np.array(arrays["kept_index"]),
            kept=np.array(arrays["kept"]),
            moments=Moments.from_arrays(part("moments")),
            spatial_moments=Moments.from_arrays(spatial) if spatial else None,
            class_sums=InceptionSums.from_arrays(classes) if classes else None,
            waiting_index=np.array(arrays["waiting_index"]),
            waiting=Features(**part("waiting")),
        )

    def _sum_up(self, count: int) -> None:
        """Moves the first waiting features into the sums."""
        first = Features(*(None if x is None else x[:count] for x in self.waiting))
        if count:
            self.moments = self.moments.update(first.features)
            if self.spatial_moments is not None:
                self.spatial_moments = self.spatial_moments.update(first.spatial)
            if self.class_sums is not None:
                self.class_sums = self.class_sums.update(first.logits, self.waiting_index[:count])
        self.waiting = Features(*(None if x is None else x[count:] for x in self.waiting))
        self.waiting_index = self.waiting_index[count:]
