"""Figures of one set of images: how near it is to the reference, computed in one pass over its images."""

from collections.abc import Mapping
from typing import Self

import numpy as np

from ddim_jax.config import EvalConfig
from ddim_jax.measuring.extractor import Extractor
from ddim_jax.measuring.feature_sums import FeatureSums
from ddim_jax.measuring.reference import Reference
from ddim_jax.metrics.frechet import frechet_distance
from ddim_jax.metrics.kernel_distance import kernel_distance
from ddim_jax.metrics.precision_recall import precision_recall


class Measurement:
    """A set of images 0 ... num - 1 that is being measured.

    Images may come in any order and in batches of any size, and on several machines; see
    :class:`~ddim_jax.measuring.feature_sums.FeatureSums`. To go on after a kill, save :meth:`to_arrays`.
    """

    def __init__(self, extractor: Extractor, settings: EvalConfig, num: int) -> None:
        """Starts with no images.

        Args:
            extractor: what images are compared by.
            settings: ``metrics`` and how each is computed.
            num: images that there will be; the Inception score needs to know.

        Raises:
            UserError: more splits of the Inception score than images.
        """
        self._extractor = extractor
        self._settings = settings
        splits = settings.is_splits if "is" in settings.metrics else 0
        self._sums = FeatureSums.empty(extractor, num, settings.features_kept, splits)

    @property
    def missing(self) -> np.ndarray:
        """The images that have not come, ascending: int64 [k]."""
        return self._sums.missing

    def update(self, indices: np.ndarray, images: np.ndarray) -> None:
        """Adds images.

        Args:
            indices: int [b], which images they are, of 0 ... num - 1.
            images: uint8 [b, h, w, c].

        Raises:
            TypeError: images are not uint8.
            ValueError: an image came before, or is out of range.
            UserError: images of a shape that the extractor does not take, or features that are not finite.
        """
        self._sums.add(indices, self._extractor(images))

    def merge(self, other: "Measurement") -> None:
        """Adds what another machine has seen of the same set.

        Raises:
            ValueError: it saw images that are in here too.
        """
        self._sums.merge(other._sums)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """By name, for ``numpy.savez``."""
        return self._sums.to_arrays()

    @classmethod
    def from_arrays(cls, extractor: Extractor, settings: EvalConfig, arrays: Mapping[str, np.ndarray]) -> Self:
        """The inverse of :meth:`to_arrays`, to the bit, with the same extractor and settings."""
        measurement = cls(extractor, settings, len(arrays["seen"]))
        measurement._sums = FeatureSums.from_arrays(arrays)
        return measurement

    def figures(self, reference: Reference) -> dict[str, float]:
        """The figures of ``eval.metrics``, once all images have come.

        Args:
            reference: of the same extractor. Without features of single images, those that need them are left out.

        Returns:
            With ``inception``: ``fid``, ``is_mean``, ``is_std``, ``kid_mean``, ``kid_std``, ``precision``, ``recall``.
            Figures of another extractor are something else, and have other names: with ``classifier``,
            ``classifier_frechet``, ``classifier_score_mean``, ``classifier_score_std``,
            ``classifier_kernel_distance_mean``, ``classifier_kernel_distance_std``, ``classifier_precision``,
            ``classifier_recall``. Without logits there is no score.

        Raises:
            ValueError: images are missing.
            UserError: too few images, or a reference that cannot be compared with.
        """
        if len(self.missing):
            raise ValueError(f"{len(self.missing)} images are missing, the first is {self.missing[0]}")
        settings, sums = self._settings, self._sums.finish()
        found: dict[str, float] = {}
        if "fid" in settings.metrics:
            found["fid"] = frechet_distance(sums.moments, reference.gaussian)
        if sums.class_sums is not None:
            score = sums.class_sums.score()
            found |= {"is_mean": score.mean, "is_std": score.std}
        if "kid" in settings.metrics and reference.features is not None:
            distance = kernel_distance(
                sums.kept_features, reference.features, settings.kid_subsets, settings.kid_subset_size
            )
            found |= {"kid_mean": distance.mean, "kid_std": distance.std}
        if "precision_recall" in settings.metrics and reference.features is not None:
            shares = precision_recall(sums.kept_features, reference.features, settings.neighbours)
            found |= {"precision": shares.precision, "recall": shares.recall}
        return {figure_name(name, self._extractor.prefix): value for name, value in found.items()}


def figure_name(name: str, prefix: str) -> str:
    """What a figure of an extractor is called: FID, IS and KID are those of Inception alone.

    >>> figure_name("fid", "inception"), figure_name("fid", "pixels"), figure_name("is_mean", "classifier")
    ('fid', 'pixels_frechet', 'classifier_score_mean')
    """
    if prefix == "inception":
        return name
    general = {"fid": "frechet", "is": "score", "kid": "kernel_distance"}
    first, *rest = name.split("_")
    return "_".join([prefix, general.get(first, first), *rest])
