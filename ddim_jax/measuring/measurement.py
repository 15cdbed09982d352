"""Figures of one set of images: how near it is to the reference, computed in one pass over its images."""

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from etils import epath

from ddim_jax.config import EvalConfig
from ddim_jax.measuring.extractor import Extractor
from ddim_jax.measuring.feature_sums import FeatureSums
from ddim_jax.measuring.figures import Metric, chosen_metrics, training_neighbours
from ddim_jax.measuring.pixel_rows import pixel_rows, pixel_width
from ddim_jax.measuring.reference_file import Reference
from ddim_jax.measuring.rows_on_disk import open_rows
from ddim_jax.measuring.wanted import Known, Wanted, compared
from ddim_jax.metrics.memorization import Neighbours
from ddim_jax.writers import progress

# Kept whatever is asked for: they notice features that are not finite at once.
_ALWAYS_KEPT = "moments"

# Of the images that a bootstrap draws.
_BOOTSTRAP_SEED = 1979


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
        files: str = "",
    ) -> None:
        """Starts with no images.

        Args:
            extractor: what images are compared by.
            settings: ``metrics`` and how each is computed.
            num: images that there will be; the Inception score needs to know.
            known: what is known of them. Metrics that need more are left out.
            files: how the names of files begin that hold what is kept of every image, where metrics need that:
                ``FILES.features.npy``. In memory when empty.

        Raises:
            UserError: a metric that does not exist, or more splits of the Inception score than images; or a file cannot
                be written.
        """
        self._extractor = extractor
        self._settings = settings
        self._metrics = chosen_metrics(settings)
        self._known = known
        needed = [_ALWAYS_KEPT, *(name for metric in self._metrics for name in metric.all_accumulators)]
        self._sums = FeatureSums.empty(extractor, num, settings, dict.fromkeys(needed), known)
        self._files = files
        self._is_new = False
        for name in dict.fromkeys(name for metric in self._metrics for name in metric.all_rows(settings)):
            width = pixel_width(known.shape) if name == "pixels" else extractor.dimension
            path = epath.Path(f"{files}.{name}.npy") if files else None
            self._sums.rows[name], is_new = open_rows(path, num, width)
            self._is_new |= is_new

    @property
    def missing(self) -> np.ndarray:
        """The images that have not come, ascending: int64 [k]."""
        return self._sums.missing

    @property
    def is_slow(self) -> bool:
        """Whether figures take so long, once all images have come, that a kill meanwhile should not cost the images."""
        return bool(self._sums.rows)

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
        if "pixels" in self._sums.rows:
            found["pixels"] = pixel_rows(images, self._known.normalization)
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
        """Returns whether arrays are what :meth:`to_arrays` returns of a measurement like this one, with its files."""
        return not self._is_new and self._sums.fit(arrays)

    @classmethod
    def from_arrays(
        cls,
        extractor: Extractor,
        settings: EvalConfig,
        arrays: Mapping[str, np.ndarray],
        known: Known = Known(),  # noqa: B008 - immutable
        files: str = "",
    ) -> Self:
        """Reads what :meth:`to_arrays` returned, to the bit, with the same extractor, settings, knowledge and files."""
        measurement = cls(extractor, settings, len(arrays["seen"]), known, files)
        rows = measurement._sums.rows
        measurement._sums = FeatureSums.from_arrays(arrays)
        measurement._sums.rows = rows
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
        sums = self._finished()
        found: dict[str, float] = {}
        for metric in self._metrics:
            if not metric.obstacle(self._extractor, reference, self._known):
                found |= self._named(metric, metric.compute(sums, reference, self._settings))
        return found

    def deviations(self, reference: Reference) -> dict[str, float]:
        """Computes how much figures of so many images vary, by ``eval.bootstrap`` sets drawn from the images.

        Each set has as many images as there are, drawn with replacement (Efron 1979). The spread of figures over sets
        is about that over new images. Their mean is not: a set in which images occur twice has a Fréchet distance that
        is too large, so that nothing but the spread is reported.

        Args:
            reference: taken as it is; that it is of finitely many images too is no part of the spread.

        Returns:
            Standard deviations by name of a figure, of those that can be computed of such sets; none without
            ``eval.bootstrap``.

        Raises:
            ValueError: images are missing.
        """
        sums, count = self._finished(), self._settings.bootstrap
        metrics = [
            (metric, metric.resampled)
            for metric in self._metrics
            if metric.resampled is not None and not metric.obstacle(self._extractor, reference, self._known)
        ]
        if not count or not metrics:
            return {}
        found: dict[str, list[float]] = {}
        num = len(sums.seen)
        with progress(count, "bootstrap", "set") as bar:
            for place in range(count):
                generator = np.random.Generator(np.random.Philox(key=np.array([_BOOTSTRAP_SEED, place], np.uint64)))
                drawn = np.sort(generator.integers(num, size=num))
                for metric, compute in metrics:
                    for name, value in self._named(metric, compute(sums, reference, drawn)).items():
                        found.setdefault(name, []).append(value)
                bar.update()
        return {name: float(np.std(values, ddof=1)) for name, values in found.items()}

    def neighbours(self, reference: Reference) -> dict[str, Neighbours]:
        """Returns the training images nearest to each image, by what they are near in: ``features``, ``pixels``.

        Nothing, unless ``eval.metrics`` has ``memorization``.
        """
        sums = self._finished()
        if reference.training is None:
            return {}
        return {space: training_neighbours(sums, reference, space) for space in sums.rows if "pixels" in sums.rows}

    def _finished(self) -> FeatureSums:
        if len(self.missing):
            raise ValueError(f"{len(self.missing)} images are missing, the first is {self.missing[0]}")
        return self._sums.finish()

    def _named(self, metric: Metric, values: Sequence[float | None]) -> dict[str, float]:
        names = [figure.name_with(self._extractor.prefix) for figure in metric.figures]
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}
