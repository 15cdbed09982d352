"""The sums that can be kept of images while they come in batches: one row of :data:`ACCUMULATORS` for each kind.

Metrics say by name which of them they are computed from (``figures.py``), and ``feature_sums.py`` keeps those.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import numpy as np

from ddim_jax.config import EvalConfig
from ddim_jax.measuring.extractor import Extractor
from ddim_jax.measuring.wanted import COMPARISONS, Known, obstacle
from ddim_jax.metrics.inception_score import InceptionSums
from ddim_jax.metrics.moments import Moments


class Sums(Protocol):
    """Sums over some images; a value that is never changed in place."""

    def merge(self, other: Self) -> Self:
        """Returns the sums over the images of both."""
        ...

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the sums as arrays by name."""
        ...


@dataclasses.dataclass(frozen=True)
class Accumulator:
    """A kind of sums, and how they begin, grow and are read again.

    Attributes:
        input: the field of :class:`~ddim_jax.measuring.extractor.Features` that is summed, or the name of one of
            :data:`~ddim_jax.measuring.wanted.COMPARISONS`. Where there is none of it there are no such sums.
        without: what an extractor without it lacks, in words.
        empty: ``empty(extractor, num, settings)``, the sums over none of the ``num`` images that there will be.
        update: ``update(sums, values, index)``, the sums with a batch added: ``values`` [b, width], and int64 [b] which
            images they are of.
        from_arrays: the inverse of ``to_arrays``, to the bit.
    """

    input: str
    without: str
    empty: Callable[[Extractor, int, EvalConfig], Sums]
    update: Callable[[Any, np.ndarray, np.ndarray], Sums]
    from_arrays: Callable[[Mapping[str, np.ndarray]], Sums]


def _update_moments(sums: Moments, values: np.ndarray, index: np.ndarray) -> Moments:
    del index
    return sums.update(values)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageValues:
    """A number of each image, by image: their mean does not depend on the order in which they came.

    Attributes:
        values: float64 [num], 0 for images that have not come.
    """

    values: np.ndarray

    def update(self, values: np.ndarray, index: np.ndarray) -> Self:
        """Returns these with those of a batch, [b, 1] and their images [b]."""
        all_values = self.values.copy()
        all_values[index] = values[:, 0]
        return type(self)(all_values)

    def merge(self, other: Self) -> Self:
        """Returns the numbers of both, which are of different images."""
        return type(self)(self.values + other.values)

    def mean(self) -> float:
        """Returns the mean, once all images have come."""
        return float(self.values.mean())

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the numbers as an array by name."""
        return {"values": self.values}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Reads what :meth:`to_arrays` returned."""
        return cls(np.array(arrays["values"]))


def _values_of(comparison: str) -> Accumulator:
    return Accumulator(
        input=comparison,
        without="",
        empty=lambda extractor, num, settings: ImageValues(np.zeros(num)),
        update=ImageValues.update,
        from_arrays=ImageValues.from_arrays,
    )


# The names are those of arrays in files, ``moments.count`` for example: they must stay.
ACCUMULATORS: dict[str, Accumulator] = {
    "moments": Accumulator(
        input="features",
        without="features",
        empty=lambda extractor, num, settings: Moments.empty(extractor.widths["features"]),
        update=_update_moments,
        from_arrays=Moments.from_arrays,
    ),
    "spatial": Accumulator(
        input="spatial",
        without="spatial features",
        empty=lambda extractor, num, settings: Moments.empty(extractor.widths["spatial"]),
        update=_update_moments,
        from_arrays=Moments.from_arrays,
    ),
    "classes": Accumulator(
        input="logits",
        without="classes",
        empty=lambda extractor, num, settings: InceptionSums.empty(num, extractor.num_logits, settings.is_splits),
        update=InceptionSums.update,
        from_arrays=InceptionSums.from_arrays,
    ),
    **{name: _values_of(name) for name in COMPARISONS},
}


def input_obstacle(name: str, extractor: Extractor, known: Known) -> str:
    """Returns why there are no sums of this name; empty if there are."""
    row = ACCUMULATORS[name]
    if row.input in COMPARISONS:
        return obstacle(row.input, extractor, known)
    return "" if row.input in extractor.widths else f"eval.extractor={extractor.prefix} has no {row.without}"
