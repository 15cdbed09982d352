"""What drawn images should be, where that is known, and how near each of them comes to it.

Numbers of single images, by name in :data:`COMPARISONS`; the sums of ``accumulators.py`` keep them by image, beside
what they keep of an extractor's features.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from ddim_jax.measuring.extractor import Extractor, Features
from ddim_jax.measuring.perceptual import PerceptualDistance
from ddim_jax.metrics.image_distance import psnr, ssim
from ddim_jax.pixels import Normalization, scaled

# Of an image that is its truth, whose ratio is infinite: one of them would make every mean infinite.
_LARGEST_PSNR = 100.0

# The extractor whose logits are of the classes of the data.
_CLASSIFIER = "classifier"


class Wanted(NamedTuple):
    """What n images should be; what is not known is None.

    Attributes:
        truth: [n, h, w, c] of the data's type, the images that those they are drawn from were made of.
        baseline: likewise, what plain interpolation makes of the pictures that they are drawn from.
        label: int [n], the classes asked for.
    """

    truth: Any = None
    baseline: Any = None
    label: Any = None


class Known(NamedTuple):
    """What is known of all images of a set.

    Attributes:
        fields: those of :class:`Wanted` that come with each batch.
        normalization: says which values of the data are pixels 0 and 1.
        perceptual: computes LPIPS; None where there are no weights for it.
        shape: of an image, [h, w, c], where pixels are kept.
    """

    fields: frozenset[str] = frozenset()
    normalization: Normalization = Normalization()
    perceptual: PerceptualDistance | None = None
    shape: tuple[int, int, int] = (1, 1, 1)


class Drawn(NamedTuple):
    """Images, and what they should be.

    Attributes:
        image: float64 [n, h, w, c], pixels in [0, 1].
        features: of them.
        wanted: what they should be, as pixels in [0, 1] too.
        perceptual: computes LPIPS, where there are weights for it.
    """

    image: np.ndarray
    features: Features
    wanted: Wanted
    perceptual: PerceptualDistance | None


class Comparison(NamedTuple):
    """A number for each image.

    Attributes:
        compute: float64 [n] of n images.
        needs: fields of :class:`Wanted`.
        without: why it cannot be had where these are not known.
        by_classifier: whether it needs the classifier's logits.
        is_perceptual: whether it needs the weights of LPIPS.
    """

    compute: Callable[[Drawn], np.ndarray]
    needs: tuple[str, ...]
    without: str
    by_classifier: bool = False
    is_perceptual: bool = False


def _lpips(drawn: Drawn, images: np.ndarray) -> np.ndarray:
    assert drawn.perceptual is not None, "LPIPS needs weights"
    return drawn.perceptual(images, drawn.wanted.truth)


NO_WEIGHTS = "there are no weights for it (eval.lpips_path)"
_NO_TRUTH = "what these images should be is not known"

# Names of arrays in files, ``psnr.values`` for example: they must stay.
COMPARISONS: dict[str, Comparison] = {
    "psnr": Comparison(
        lambda drawn: np.minimum(psnr(drawn.image, drawn.wanted.truth, 1), _LARGEST_PSNR), ("truth",), _NO_TRUTH
    ),
    "bicubic_psnr": Comparison(
        lambda drawn: np.minimum(psnr(drawn.wanted.baseline, drawn.wanted.truth, 1), _LARGEST_PSNR),
        ("truth", "baseline"),
        _NO_TRUTH,
    ),
    "ssim": Comparison(lambda drawn: ssim(drawn.image, drawn.wanted.truth, 1), ("truth",), _NO_TRUTH),
    "bicubic_ssim": Comparison(
        lambda drawn: ssim(drawn.wanted.baseline, drawn.wanted.truth, 1), ("truth", "baseline"), _NO_TRUTH
    ),
    "lpips": Comparison(lambda drawn: _lpips(drawn, drawn.image), ("truth",), _NO_TRUTH, is_perceptual=True),
    "bicubic_lpips": Comparison(
        lambda drawn: _lpips(drawn, drawn.wanted.baseline), ("truth", "baseline"), _NO_TRUTH, is_perceptual=True
    ),
    "is_recognised": Comparison(
        lambda drawn: (np.argmax(drawn.features.logits, axis=1) == drawn.wanted.label).astype(np.float64),
        ("label",),
        "no classes were asked for",
        by_classifier=True,
    ),
}


def obstacle(name: str, extractor: Extractor, known: Known) -> str:
    """Returns why a comparison cannot be had; empty if it can."""
    comparison = COMPARISONS[name]
    if not known.fields.issuperset(comparison.needs):
        return comparison.without
    if comparison.by_classifier and extractor.prefix != _CLASSIFIER:
        return f"eval.extractor={extractor.prefix} does not tell the classes of the data apart, as {_CLASSIFIER} does"
    return NO_WEIGHTS if comparison.is_perceptual and known.perceptual is None else ""


def compared(
    names: Collection[str], images: np.ndarray, features: Features, wanted: Wanted, known: Known
) -> dict[str, np.ndarray]:
    """Computes comparisons.

    Args:
        names: of :data:`COMPARISONS`, those wanted.
        images: [n, h, w, c] of the data's type.
        features: of them.
        wanted: what they should be.
        known: of the images.

    Returns:
        By name, float64 [n, 1].
    """
    if not names:
        return {}

    def pixels(values: Any) -> Any:
        return None if values is None else scaled(np.asarray(values, np.float64), known.normalization)

    wanted = wanted._replace(truth=pixels(wanted.truth), baseline=pixels(wanted.baseline))
    drawn = Drawn(pixels(images), features, wanted, known.perceptual)
    return {name: COMPARISONS[name].compute(drawn)[:, None] for name in names}
