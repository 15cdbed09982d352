"""Figures of one set of images: how near it is to the reference, computed in one pass over its images."""

from collections.abc import Mapping
from typing import Self

import numpy as np

from ddim_jax.config import EvalConfig
from ddim_jax.measuring.extractor import Extractor
from ddim_jax.measuring.feature_sums import FeatureSums
from ddim_jax.measuring.figures import chosen_metrics
from ddim_jax.measuring.reference_file import Reference
from ddim_jax.measuring.wanted import Known, Wanted, compared

# Kept whatever is asked for: they notice features that are not finite at once.
_ALWAYS_KEPT = "moments"


class Measurement:
    """A set of images 0 ... num - 1 that is being measured.

    Images may come in any order and in batches of any size, and on several machines; see
    :class:`~ddim_jax.measuring.feature_sums.FeatureSums`. To go on after a kill, save :meth:`to_arrays`.
    """

    def __init__(
        self,
        extractor: Extractor,
        settings: EvalConfig,
        num: int,
        known: Known = Known(),  # noqa: B008 - immutable
    ) -> None:
        """Starts with no images.

        Args:
            extractor: what images are compared by.
            settings: ``metrics`` and how each is computed.
            num: images that there will be; the Inception score needs to know.
            known: what is known of them. Metrics that need more are left out.

        Raises:
            UserError: a metric that does not exist, or more splits of the Inception score than images.
        """
        self._extractor = extractor
        self._settings = settings
        self._metrics = chosen_metrics(settings)
        self._known = known
        needed = [_ALWAYS_KEPT, *(name for metric in self._metrics for name in metric.all_accumulators)]
        self._sums = FeatureSums.empty(extractor, num, settings, dict.fromkeys(needed), known)

    @property
    def missing(self) -> np.ndarray:
        """The images that have not come, ascending: int64 [k]."""
        return self._sums.missing

    def update(
        self,
        indices: np.ndarray,
        images: np.ndarray,
        wanted: Wanted = Wanted(),  # noqa: B008 - immutable
    ) -> None:
        """Adds images.

        Args:
            indices: int [b], which images they are, of 0 ... num - 1.
            images: [b, h, w, c], of the extractor's type.
            wanted: what they should be, as far as that is known.

        Raises:
            TypeError: images are of another type.
            ValueError: an image came before, or is out of range.
            UserError: images of a shape that the extractor does not take, or features that are not finite.
        """
        features = self._extractor(images)
        found = compared(self._sums.comparisons, images, features, wanted, self._known)
        self._sums.add(indices, features, found)

    def merge(self, other: "Measurement") -> None:
        """Adds what another machine has seen of the same set.

        Raises:
            ValueError: it saw images that are in here too.
        """
        self._sums.merge(other._sums)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns all sums so far as arrays by name, for ``numpy.savez``."""
        return self._sums.to_arrays()

    def fits(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Returns whether arrays are what :meth:`to_arrays` returns of a measurement like this one."""
        return self._sums.fit(arrays)

    @classmethod
    def from_arrays(
        cls,
        extractor: Extractor,
        settings: EvalConfig,
        arrays: Mapping[str, np.ndarray],
        known: Known = Known(),  # noqa: B008 - immutable
    ) -> Self:
        """Reads what :meth:`to_arrays` returned, to the bit, with the same extractor, settings and knowledge."""
        measurement = cls(extractor, settings, len(arrays["seen"]), known)
        measurement._sums = FeatureSums.from_arrays(arrays)
        return measurement

    def figures(self, reference: Reference) -> dict[str, float]:
        """Computes the figures of ``eval.metrics``, once all images have come.

        Args:
            reference: of the same extractor. Without features of single images, those that need them are left out.

        Returns:
            The figures by name, see :data:`~ddim_jax.measuring.figures.METRICS`: with ``inception`` e.g. ``fid``. Those
            of another extractor are something else, and have other names, e.g. ``classifier_frechet``. Without logits
            there is no score.

        Raises:
            ValueError: images are missing.
            UserError: too few images, or a reference that cannot be compared with.
        """
        if len(self.missing):
            raise ValueError(f"{len(self.missing)} images are missing, the first is {self.missing[0]}")
        sums = self._sums.finish()
        found: dict[str, float] = {}
        for metric in self._metrics:
            if metric.obstacle(self._extractor, reference, self._known):
                continue
            values = metric.compute(sums, reference, self._settings)
            names = [figure.name_with(self._extractor.prefix) for figure in metric.figures]
            found |= {name: value for name, value in zip(names, values, strict=True) if value is not None}
        return found
