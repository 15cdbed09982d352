"""What is kept of the features of a set of images, while they come batch by batch, on one machine or many."""

import dataclasses
import types
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np

from ddim_jax import names
from ddim_jax.config import EvalConfig
from ddim_jax.measuring.accumulators import ACCUMULATORS, input_obstacle
from ddim_jax.measuring.extractor import Extractor, Features
from ddim_jax.measuring.image_sets import spread_indices
from ddim_jax.measuring.rows_on_disk import flush
from ddim_jax.measuring.wanted import COMPARISONS, Known

# Features wait until there are so many, since adding to a covariance costs as much for one image as for thousands.
_BLOCK = 2048


@dataclasses.dataclass(eq=False)
class FeatureSums:
    """Sums over the images 0 ... num - 1 of a set, and the features of some of them.

    Where images come in the same order the result has the same bits for any batch sizes, also when it was saved and
    read again in between. In another order, or merged from several machines, it is equal to rounding.

    Attributes:
        seen: bool [num], the images that have come.
        kept_index: int64 [m], the images whose features are kept: evenly spread.
        kept: float32 [m, d], their features; 0 until they come.
        sums: by name of an accumulator.
        waiting_index: int64 [w], images that have come but are in no sum yet.
        waiting: by input of an accumulator, what is to be added of them.
        rows: float32 [num, width] by name, what is kept of every image: ``features``, or ``pixels``. On disk, and no
            part of :meth:`to_arrays`.
        derived: what was computed from the finished sums and rows and is needed again, by name.
    """

    seen: np.ndarray
    kept_index: np.ndarray
    kept: np.ndarray
    sums: dict[str, Any]
    waiting_index: np.ndarray
    waiting: dict[str, np.ndarray]
    rows: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    derived: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def empty(
        cls,
        extractor: Extractor,
        num: int,
        settings: EvalConfig,
        accumulators: Iterable[str],
        known: Known = Known(),  # noqa: B008 - immutable
    ) -> Self:
        """Starts with no images.

        Args:
            extractor: what the features come from.
            num: images that there will be.
            settings: ``features_kept`` says of how many images the features are kept; accumulators read theirs.
            accumulators: names of the sums to keep. Those whose input the extractor has not, or that need what is not
                known, are left out.
            known: what is known of the images.

        Raises:
            UserError: the images cannot be summed so, e.g. more splits of the Inception score than images.
        """
        widths = extractor.widths
        rows = {name: names.lookup(ACCUMULATORS, name, "accumulator") for name in accumulators}
        rows = {name: row for name, row in rows.items() if not input_obstacle(name, extractor, known)}
        kept_index = spread_indices(num, settings.features_kept)
        return cls(
            seen=np.zeros(num, bool),
            kept_index=kept_index,
            kept=np.zeros((len(kept_index), extractor.dimension), np.float32),
            sums={name: row.empty(extractor, num, settings) for name, row in rows.items()},
            waiting_index=np.empty(0, np.int64),
            waiting={row.input: np.empty((0, widths.get(row.input, 1)), np.float32) for row in rows.values()},
        )

    @property
    def missing(self) -> np.ndarray:
        """The images that have not come, ascending: int64 [k]."""
        return np.flatnonzero(~self.seen)

    @property
    def comparisons(self) -> list[str]:
        """The names of :data:`~ddim_jax.measuring.wanted.COMPARISONS` that are summed."""
        return [field for field in self.waiting if field in COMPARISONS]

    def add(
        self, index: np.ndarray, features: Features, compared: Mapping[str, np.ndarray] = types.MappingProxyType({})
    ) -> None:
        """Adds a batch.

        Args:
            index: int [b], which image each row is.
            features: of them.
            compared: by name of :attr:`comparisons`, float64 [b, 1]; and of :attr:`rows` but the features, [b, width].

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
        given = {**features._asdict(), **compared}
        for name, rows in self.rows.items():
            rows[index] = given[name]
        self.waiting = {field: np.concatenate([before, given[field]]) for field, before in self.waiting.items()}
        while len(self.waiting_index) >= _BLOCK:
            self._sum_up(_BLOCK)

    def merge(self, other: "FeatureSums") -> None:
        """Adds what another machine has seen of the same set.

        Raises:
            ValueError: it saw images that are in here too.
        """
        if (self.seen & other.seen).any():
            raise ValueError("an image was given to both")
        self.finish()
        other.finish()
        self.kept[other.seen[self.kept_index]] = other.kept[other.seen[self.kept_index]]
        theirs = np.flatnonzero(other.seen)
        for name, rows in self.rows.items():
            for start in range(0, len(theirs), _BLOCK):
                some = theirs[start : start + _BLOCK]
                rows[some] = other.rows[name][some]
        self.seen |= other.seen
        self.sums = {name: sums.merge(other.sums[name]) for name, sums in self.sums.items()}

    def finish(self) -> Self:
        """Puts all that has come into the sums, which can be read then; returns itself."""
        self._sum_up(len(self.waiting_index))
        return self

    @property
    def kept_features(self) -> np.ndarray:
        """The kept features that have come, in the order of the images: float32 [m', d]."""
        return self.kept[self.seen[self.kept_index]]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns everything but the rows as arrays by name, for ``numpy.savez``; the rows are on the disk by then."""
        for rows in self.rows.values():
            flush(rows)
        arrays = {name: getattr(self, name) for name in ("seen", "kept_index", "kept", "waiting_index")}
        for name, sums in self.sums.items():
            arrays |= with_prefix(name, sums.to_arrays())
        return arrays | with_prefix("waiting", self.waiting)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Reads what :meth:`to_arrays` returned, to the bit."""
        saved = {name: of_prefix(name, arrays) for name in ACCUMULATORS}
        return cls(
            seen=np.array(arrays["seen"]),
            kept_index=np.array(arrays["kept_index"]),
            kept=np.array(arrays["kept"]),
            sums={name: ACCUMULATORS[name].from_arrays(of_name) for name, of_name in saved.items() if of_name},
            waiting_index=np.array(arrays["waiting_index"]),
            waiting=of_prefix("waiting", arrays),
        )

    def fit(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Returns whether arrays are what :meth:`to_arrays` returns of sums of the same images and extractor as these.

        What a file of ours holds that another program, or another version, has written is nothing to go on with.
        """
        ours = {name: np.asarray(value) for name, value in self.to_arrays().items()}
        if ours.keys() != arrays.keys():
            return False
        num_waiting = len(np.atleast_1d(arrays["waiting_index"]))
        for name, like in ours.items():
            shape = (num_waiting, *like.shape[1:]) if name.split(".")[0] in ("waiting", "waiting_index") else like.shape
            if arrays[name].shape != shape or arrays[name].dtype.kind != like.dtype.kind:
                return False
        return True

    def _sum_up(self, count: int) -> None:
        """Moves the first waiting features into the sums."""
        if not count:
            return
        for name, sums in self.sums.items():
            row = ACCUMULATORS[name]
            self.sums[name] = row.update(sums, self.waiting[row.input][:count], self.waiting_index[:count])
        self.waiting = {field: values[count:] for field, values in self.waiting.items()}
        self.waiting_index = self.waiting_index[count:]


def with_prefix(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Puts ``PREFIX.`` before each name."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def of_prefix(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays whose names begin with ``PREFIX.``, by the rest of their names."""
    start = f"{prefix}."
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
