"""The sums that can be kept of images while they come in batches: one row of :data:`ACCUMULATORS` for each kind.

Metrics say by name which of them they are computed from (``figures.py``), and ``feature_sums.py`` keeps those.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import numpy as np

from ddim_jax.config import EvalConfig
from ddim_jax.measuring.extractor import Extractor
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
        input: the field of :class:`~ddim_jax.measuring.extractor.Features` that is summed. Extractors without it have
            no such sums.
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
}
