"""The metrics: one row of :data:`METRICS` says all there is to know of one.

A metric gives one or more *figures*. To add one, write a function of the finished sums, the reference and the settings,
and a row; where it needs other sums, add a row to ``ACCUMULATORS`` in ``accumulators.py`` too. From outside the package
its name is added by ``names.add(names.MetricName, NAME)``.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddim_jax import names
from ddim_jax.config import EvalConfig
from ddim_jax.errors import UserError
from ddim_jax.measuring.accumulators import input_obstacle
from ddim_jax.measuring.extractor import Extractor
from ddim_jax.measuring.feature_sums import FeatureSums
from ddim_jax.measuring.neighbours import fast_overlap
from ddim_jax.measuring.reference_file import Reference
from ddim_jax.measuring.wanted import COMPARISONS, NO_WEIGHTS, Known
from ddim_jax.metrics.extrapolation import SMALLEST_SHARE, frechet_at_infinity, gaussian_of_rows
from ddim_jax.metrics.frechet import frechet_distance
from ddim_jax.metrics.kernel_distance import gaussian_distance, kernel_distance
from ddim_jax.metrics.memorization import Neighbours, authentic, copy_test, near_copy, neighbours
from ddim_jax.metrics.precision_recall import Overlap

# The extractors whose figures have the names that papers use.
_INCEPTION = "inception"
_CLIP = "clip"

# Fresh images have fewer near copies of training images, and are nearer to these by a lesser number of deviations.
_MANY_COPIES = 0.01
_FAR_FROM_CHANCE = -3


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number that a metric gives.

    Attributes:
        name: with the standard extractor's features, e.g. ``fid``.
        general: with another extractor's, after its prefix, e.g. ``frechet``: FID, IS and KID are Inception's alone.
        heading: of its column, with the standard extractor's features.
        general_heading: of its column with another extractor's, after the prefix; the general name when empty.
        higher_is_better: whether it is; None where neither is, as of a deviation.
        decides: whether the best checkpoint is found by this figure, where it is found by this metric.
        is_main: whether tables that have it are read for it.
        has_published: whether published figures may stand beside it.
        of_features: whether it depends on the extractor, so that its name says which; else it is called the same with
            all of them.
        standard: prefix of the extractor with which papers report it.
        is_of_copies: ``is_of_copies(value)``, whether such a value tells of images that are copies of training images.
    """

    name: str
    general: str
    heading: str
    general_heading: str = ""
    higher_is_better: bool | None = None
    decides: bool = False
    is_main: bool = False
    has_published: bool = False
    of_features: bool = True
    standard: str = _INCEPTION
    is_of_copies: Callable[[float], bool] = lambda value: False

    def name_with(self, prefix: str) -> str:
        """Returns the name of this figure with an extractor's prefix.

        >>> fid, is_mean = METRICS["fid"].figures[0], METRICS["is"].figures[0]
        >>> fid.name_with("inception"), fid.name_with("pixels"), is_mean.name_with("classifier")
        ('fid', 'pixels_frechet', 'classifier_score_mean')
        """
        return self.name if prefix == self.standard or not self.of_features else f"{prefix}_{self.general}"

    def heading_with(self, prefix: str) -> str:
        """Returns the heading of the figure's column with an extractor's prefix.

        >>> METRICS["fid"].figures[0].heading_with("pixels_pca")
        'pixels pca Fréchet distance'
        """
        if prefix == self.standard or not self.of_features:
            return self.heading
        words = self.general_heading or self.general.replace("_", " ")
        return f"{prefix.replace('_', ' ')} {words}"


class Counts(NamedTuple):
    """How much there is to compute from.

    Attributes:
        images: images measured.
        kept: single images whose features are compared, on the side that has fewer.
        dimension: of the features.
    """

    images: int
    kept: int
    dimension: int


@dataclasses.dataclass(frozen=True)
class Metric:
    """A way to say how good a set of images is, as one or more figures.

    Attributes:
        figures: the numbers that it gives.
        compute: ``compute(sums, reference, settings)``, the values of ``figures`` in their order; None for one that
            cannot be had of these images.
        words: what it tells, for a message that it cannot be had.
        accumulators: names of the sums that it needs.
        further_accumulators: names of sums that it uses where they can be had.
        needs_single_images: whether it needs features of single images, of both sides.
        settings: keys of ``eval`` by which it is computed.
        too_few: ``too_few(counts, settings)``, why it cannot be computed from so little; empty if it can.
        caution: ``caution(counts, settings)``, what is to be known of it, computed from so little; or empty.
        rows: what it needs of every image, and not in sums: ``features``, ``pixels``.
        needs_training: whether it needs the training images.
        resampled: ``resampled(sums, reference, drawn)``, the values of ``figures`` of a set in which the images
            ``drawn``, int64 [num] ascending, are as often as they are named; None where ``eval.bootstrap`` has no part.
        resampled_rows: what it needs of every image for that.
    """

    figures: tuple[Figure, ...]
    compute: Callable[[FeatureSums, Reference, EvalConfig], Sequence[float | None]]
    words: tuple[str, ...]
    accumulators: tuple[str, ...] = ()
    further_accumulators: tuple[str, ...] = ()
    needs_single_images: bool = False
    settings: tuple[str, ...] = ()
    too_few: Callable[[Counts, EvalConfig], str] = lambda counts, settings: ""
    caution: Callable[[Counts, EvalConfig], str] = lambda counts, settings: ""
    rows: tuple[str, ...] = ()
    needs_training: bool = False
    resampled: Callable[[FeatureSums, Reference, np.ndarray], Sequence[float | None]] | None = None
    resampled_rows: tuple[str, ...] = ()

    def all_rows(self, settings: EvalConfig) -> tuple[str, ...]:
        """Returns the names of what is to be kept of every image."""
        return self.rows + (self.resampled_rows if settings.bootstrap else ())

    @property
    def deciding(self) -> Figure | None:
        """The figure by which the best checkpoint is found; None where no single one says which is better."""
        return next((figure for figure in self.figures if figure.decides), None)

    @property
    def all_accumulators(self) -> tuple[str, ...]:
        """The names of all sums that it is computed from."""
        return self.accumulators + self.further_accumulators

    def obstacle(
        self,
        extractor: Extractor,
        reference: Reference,
        known: Known = Known(),  # noqa: B008 - immutable
    ) -> str:
        """Returns why the metric cannot be had with this extractor and reference, of such images; empty if it can."""
        for name in self.accumulators:
            reason = input_obstacle(name, extractor, known)
            if reason:
                return reason
        if self.needs_single_images and reference.features is None:
            return "the reference has no features of single images"
        if self.needs_training and reference.training is None:
            return "the training images are not at hand"
        return ""


# --- what each is computed from -----------------------------------------------------------------


def _frechet(sums: FeatureSums, reference: Reference, settings: EvalConfig) -> Sequence[float]:
    del settings
    return [frechet_distance(sums.sums["moments"], reference.gaussian)]


def _frechet_resampled(sums: FeatureSums, reference: Reference, drawn: np.ndarray) -> Sequence[float]:
    known = dataclasses.replace(reference.gaussian, count=None)
    return [frechet_distance(gaussian_of_rows(sums.rows["features"], drawn), known)]


def _frechet_at_infinity(sums: FeatureSums, reference: Reference, settings: EvalConfig) -> Sequence[float]:
    del settings
    return [frechet_at_infinity(sums.rows["features"], dataclasses.replace(reference.gaussian, count=None))]


def _infinity_too_few(counts: Counts, settings: EvalConfig) -> str:
    del settings
    if counts.images >= 2 * SMALLEST_SHARE:
        return ""
    return (
        f"eval.metrics: fid_infinity extrapolates from a tenth of the images to all, for which {counts.images} are too "
        f"few; set eval.num to {2 * SMALLEST_SHARE} or more, or leave it out"
    )


def _infinity_caution(counts: Counts, settings: EvalConfig) -> str:
    del settings
    least = counts.images // SMALLEST_SHARE
    if least > counts.dimension:
        return ""
    return (
        f"Warning: the distance of infinitely many images is extrapolated from {least:,} of them to all, no more than "
        f"the {counts.dimension:,} features, where it is no straight line over 1 / N; raise eval.num."
    )


def _frechet_caution(counts: Counts, settings: EvalConfig) -> str:
    del settings
    if counts.images > counts.dimension:
        return ""
    return (
        f"Warning: {counts.images:,} images are no more than the {counts.dimension:,} features that a Fréchet distance "
        "compares; its bias is so large that it says nothing. Raise eval.num."
    )


def _score(sums: FeatureSums, reference: Reference, settings: EvalConfig) -> Sequence[float]:
    del reference, settings
    return sums.sums["classes"].score()


def _kernel(sums: FeatureSums, reference: Reference, settings: EvalConfig) -> Sequence[float]:
    assert reference.features is not None, "features of single images are needed"
    found = kernel_distance(
        sums.kept_features, reference.features, settings.kid_subsets, max_subset_size=settings.kid_subset_size
    )
    return [found.mean, found.std]


def _gaussian(sums: FeatureSums, reference: Reference, settings: EvalConfig) -> Sequence[float]:
    del settings
    assert reference.features is not None, "features of single images are needed"
    return [gaussian_distance(sums.kept_features, reference.features)]


def _precision_recall(sums: FeatureSums, reference: Reference, settings: EvalConfig) -> Sequence[float]:
    found = _overlap(sums, reference, settings)
    return [found.precision, found.recall]


def _density_coverage(sums: FeatureSums, reference: Reference, settings: EvalConfig) -> Sequence[float]:
    return _overlap(sums, reference, settings).density_coverage


def _overlap(sums: FeatureSums, reference: Reference, settings: EvalConfig) -> Overlap:
    """What both metrics are read from: of fifty thousand images it takes minutes."""
    assert reference.features is not None, "features of single images are needed"
    known = sums.derived.get("overlap")
    if known is None or known[0] is not reference.features:
        found = fast_overlap(sums.kept_features, reference.features, settings.neighbours)
        sums.derived["overlap"] = known = (reference.features, found)
    return known[1]


def _too_few_neighbours(words: str, metric: str) -> Callable[[Counts, EvalConfig], str]:
    def too_few(counts: Counts, settings: EvalConfig) -> str:
        if counts.kept > settings.neighbours:
            return ""
        return (
            f"eval.neighbours={settings.neighbours}: {words} need more than so many images, on both "
            f"sides, but there are {counts.kept}; leave {metric} out of eval.metrics"
        )

    return too_few


def _means_of(*names: str) -> Callable[[FeatureSums, Reference, EvalConfig], Sequence[float | None]]:
    """Means of numbers of single images, by names of their sums."""

    def compute(sums: FeatureSums, reference: Reference, settings: EvalConfig) -> Sequence[float | None]:
        del reference, settings
        return [sums.sums[name].mean() if name in sums.sums else None for name in names]

    return compute


def _resampled_means_of(*names: str) -> Callable[[FeatureSums, Reference, np.ndarray], Sequence[float | None]]:
    def compute(sums: FeatureSums, reference: Reference, drawn: np.ndarray) -> Sequence[float | None]:
        del reference
        return [float(sums.sums[name].values[drawn].mean()) if name in sums.sums else None for name in names]

    return compute


def training_neighbours(sums: FeatureSums, reference: Reference, space: str) -> Neighbours:
    """Returns the training images nearest to each image, found once.

    Args:
        sums: of all images, with their rows.
        reference: with the training images.
        space: ``features`` or ``pixels``.
    """
    assert reference.training is not None, "training images are needed"
    if space not in sums.derived:
        sums.derived[space] = neighbours(sums.rows[space], getattr(reference.training.rows, space))
    return sums.derived[space]


def _memorization(sums: FeatureSums, reference: Reference, settings: EvalConfig) -> Sequence[float | None]:
    del settings
    assert reference.training is not None, "training images are needed"
    by_features, by_pixels = (training_neighbours(sums, reference, space) for space in ("features", "pixels"))
    held_out = reference.training.held_out
    return [
        float(authentic(by_features.first, by_features.own).mean()),
        None if held_out is None else float(authentic(held_out.first, held_out.own).mean()),
        float(near_copy(by_features.first, by_features.second).mean()),
        None if held_out is None else copy_test(by_features.first, held_out.first),
        float(authentic(by_pixels.first, by_pixels.own).mean()),
        float(near_copy(by_pixels.first, by_pixels.second).mean()),
    ]


def _memorization_resampled(sums: FeatureSums, reference: Reference, drawn: np.ndarray) -> Sequence[float | None]:
    by_features, by_pixels = (training_neighbours(sums, reference, space) for space in ("features", "pixels"))
    return [
        float(authentic(by_features.first, by_features.own)[drawn].mean()),
        None,
        float(near_copy(by_features.first, by_features.second)[drawn].mean()),
        # A number of standard deviations already.
        None,
        float(authentic(by_pixels.first, by_pixels.own)[drawn].mean()),
        float(near_copy(by_pixels.first, by_pixels.second)[drawn].mean()),
    ]


def _beside_bicubic(name: str, word: str, *, unit: str = "", higher_is_better: bool) -> Metric:
    """The mean of a number of each image, and of the same of bicubic interpolation, where there is such."""
    plain = f"bicubic_{name}"
    return Metric(
        figures=(
            Figure(name, name, f"{word}{unit}", higher_is_better=higher_is_better, of_features=False),
            Figure(plain, plain, f"{word} of bicubic{unit}", higher_is_better=higher_is_better, of_features=False),
        ),
        compute=_means_of(name, plain),
        words=(word,),
        accumulators=(name,),
        further_accumulators=(plain,),
        resampled=_resampled_means_of(name, plain),
    )


# --- the metrics --------------------------------------------------------------------------------

# In the order of a table's columns.
METRICS: dict[str, Metric] = {
    "fid": Metric(
        figures=(
            Figure(
                name="fid",
                general="frechet",
                heading="FID",
                general_heading="Fréchet distance",
                higher_is_better=False,
                decides=True,
                is_main=True,
                has_published=True,
            ),
        ),
        compute=_frechet,
        words=("Fréchet distance",),
        accumulators=("moments",),
        caution=_frechet_caution,
        resampled=_frechet_resampled,
        resampled_rows=("features",),
    ),
    "fid_infinity": Metric(
        figures=(
            Figure(
                name="fid_infinity",
                general="frechet_infinity",
                heading="FID∞",
                general_heading="Fréchet distance, N → ∞",
                higher_is_better=False,
            ),
        ),
        compute=_frechet_at_infinity,
        words=("Fréchet distance of infinitely many images",),
        rows=("features",),
        too_few=_infinity_too_few,
        caution=_infinity_caution,
    ),
    "is": Metric(
        figures=(
            Figure("is_mean", "score_mean", "IS", higher_is_better=True, decides=True, has_published=True),
            Figure("is_std", "score_std", "IS, std of splits"),
        ),
        compute=_score,
        words=("score",),
        accumulators=("classes",),
        settings=("is_splits",),
    ),
    "kid": Metric(
        figures=(
            Figure("kid_mean", "kernel_distance_mean", "KID", higher_is_better=False, decides=True, has_published=True),
            Figure("kid_std", "kernel_distance_std", "KID, std of subsets"),
        ),
        compute=_kernel,
        words=("kernel distance",),
        needs_single_images=True,
        settings=("kid_subsets", "kid_subset_size"),
    ),
    "cmmd": Metric(
        figures=(Figure("cmmd", "gaussian_distance", "CMMD", higher_is_better=False, decides=True, standard=_CLIP),),
        compute=_gaussian,
        words=("Gaussian kernel distance",),
        needs_single_images=True,
    ),
    "precision_recall": Metric(
        figures=(
            Figure("precision", "precision", "precision", higher_is_better=True),
            Figure("recall", "recall", "recall", higher_is_better=True),
        ),
        compute=_precision_recall,
        words=("precision", "recall"),
        needs_single_images=True,
        settings=("neighbours",),
        too_few=_too_few_neighbours("precision and recall", "precision_recall"),
    ),
    "density_coverage": Metric(
        figures=(
            # Above 1 it says that images crowd, and no more that they are good.
            Figure("density", "density", "density"),
            Figure("coverage", "coverage", "coverage", higher_is_better=True),
        ),
        compute=_density_coverage,
        words=("density", "coverage"),
        needs_single_images=True,
        settings=("neighbours",),
        too_few=_too_few_neighbours("density and coverage", "density_coverage"),
    ),
    "psnr": _beside_bicubic("psnr", "PSNR", unit=", dB", higher_is_better=True),
    "ssim": _beside_bicubic("ssim", "SSIM", higher_is_better=True),
    "lpips": _beside_bicubic("lpips", "LPIPS", higher_is_better=False),
    "accuracy": Metric(
        figures=(Figure("accuracy", "accuracy", "accuracy", higher_is_better=True, of_features=False),),
        compute=_means_of("is_recognised"),
        words=("accuracy",),
        accumulators=("is_recognised",),
        resampled=_resampled_means_of("is_recognised"),
    ),
    "memorization": Metric(
        figures=(
            Figure("authenticity", "authenticity", "authenticity", higher_is_better=True),
            Figure(
                *("authenticity_held_out", "authenticity_held_out", "authenticity of held-out images"),
                general_heading="authenticity of held-out images",
            ),
            Figure(
                *("copies", "copies", "near copies", "near copies"),
                higher_is_better=False,
                is_of_copies=lambda share: share >= _MANY_COPIES,
            ),
            Figure("copy_test", "copy_test", "C_T", "C_T", is_of_copies=lambda z: z < _FAR_FROM_CHANCE),
            Figure(
                *("pixel_authenticity", "pixel_authenticity", "authenticity by pixels"),
                higher_is_better=True,
                of_features=False,
            ),
            Figure(
                *("pixel_copies", "pixel_copies", "near copies by pixels"),
                higher_is_better=False,
                of_features=False,
                is_of_copies=lambda share: share >= _MANY_COPIES,
            ),
        ),
        compute=_memorization,
        words=("memorization",),
        rows=("features", "pixels"),
        needs_training=True,
        resampled=_memorization_resampled,
    ),
}


def chosen_metrics(settings: EvalConfig) -> list[Metric]:
    """Returns the metrics that ``eval.metrics`` names, in the order of a table's columns.

    Raises:
        UserError: a metric that does not exist.
    """
    for name in settings.metrics:
        names.lookup(METRICS, name, "metric")
    return [metric for name, metric in METRICS.items() if name in settings.metrics]


def fields_needed(settings: EvalConfig) -> frozenset[str]:
    """Returns the fields of :class:`~ddim_jax.measuring.wanted.Wanted` that ``eval.metrics`` are computed from."""
    sums = [name for metric in chosen_metrics(settings) for name in metric.all_accumulators]
    return frozenset(field for name in sums if name in COMPARISONS for field in COMPARISONS[name].needs)


def check_known(settings: EvalConfig, extractor: Extractor, known: Known) -> None:
    """Refuses metrics that need more than is known of the images; what lacks weights alone is left out.

    Raises:
        UserError: one of ``eval.metrics`` does.
    """
    for name in settings.metrics:
        for sums in names.lookup(METRICS, name, "metric").accumulators:
            reason = input_obstacle(sums, extractor, known) if sums in COMPARISONS else ""
            if reason not in ("", NO_WEIGHTS):
                raise UserError(f"eval.metrics: no {name}, since {reason}; leave it out")


def computed_by(settings: EvalConfig) -> dict[str, Any]:
    """Returns the settings that figures must share to be compared: those of all metrics, whichever are chosen."""
    keys = [key for metric in METRICS.values() for key in metric.settings]
    found = {key: getattr(settings, key) for key in dict.fromkeys((*keys, "features_kept"))}
    # Without it folders have the names that they had before there was one.
    return found | ({"bootstrap": settings.bootstrap} if settings.bootstrap else {})


# --- figures by name ----------------------------------------------------------------------------


def heading(name: str) -> str:
    """Returns the heading of a figure's column.

    >>> heading("fid"), heading("classifier_frechet"), heading("of_an_older_version")
    ('FID', 'classifier Fréchet distance', 'of an older version')
    """
    known = _known(name)
    return name.replace("_", " ") if known is None else known[0].heading_with(known[1])


def higher_is_better(name: str) -> bool | None:
    """Returns whether more of a figure is better; None where neither is, or the figure is not known.

    >>> higher_is_better("is_mean"), higher_is_better("pixels_frechet"), higher_is_better("is_std")
    (True, False, None)
    """
    known = _known(name)
    return None if known is None else known[0].higher_is_better


def main_figure(figures: Iterable[str]) -> str | None:
    """Returns the figure that a table is read for: a main one, else the first, else None.

    >>> main_figure(["is_mean", "fid"]), main_figure(["pixels_precision", "pixels_frechet"]), main_figure(["recall"])
    ('fid', 'pixels_frechet', 'recall')
    """
    figures = list(figures)
    for name in figures:
        known = _known(name)
        if known is not None and known[0].is_main:
            return name
    return figures[0] if figures else None


def is_main(name: str) -> bool:
    """Returns whether tables that have a figure are read for it.

    >>> is_main("fid"), is_main("pixels_frechet"), is_main("recall")
    (True, True, False)
    """
    known = _known(name)
    return known is not None and known[0].is_main


def tells_of_copies(name: str, value: float) -> bool:
    """Returns whether a figure says that images are copies of training images.

    >>> tells_of_copies("pixel_copies", 0.02), tells_of_copies("classifier_copy_test", -2.0)
    (True, False)
    """
    known = _known(name)
    return known is not None and known[0].is_of_copies(value)


def has_published(name: str) -> bool:
    """Returns whether published figures may stand beside a figure; they are all by Inception.

    >>> has_published("fid"), has_published("pixels_frechet"), has_published("recall")
    (True, False, False)
    """
    known = _known(name)
    return known is not None and known[0].has_published and known[1] == _INCEPTION


def _known(name: str) -> tuple[Figure, str] | None:
    """Returns the figure that has this name with some extractor, and the extractor's prefix."""
    figures = [figure for metric in METRICS.values() for figure in metric.figures]
    for figure in figures:
        if figure.name == name:
            return figure, figure.standard
    for figure in figures:
        if name.endswith(f"_{figure.general}"):
            return figure, name.removesuffix(f"_{figure.general}")
    return None
