"""Simple figures of the pixels of samples, beside those of the data: what a glance at the pictures would tell."""

from typing import NamedTuple

import numpy as np

from ddim_jax.config import Config
from ddim_jax.configured import build_normalization
from ddim_jax.data.reading import load_images
from ddim_jax.data.sources import Source
from ddim_jax.pixels import scaled

# Training images that stand for all, evenly spread.
_MOST_IMAGES = 500


class PixelFigures(NamedTuple):
    """Figures of all pixels and channels of images, 0 being the lowest value of the data's range and 1 the highest.

    Attributes:
        mean: of the pixels.
        std: their standard deviation.
        clipped: share of them that are 0 or 1, as those are that had to be clipped.
    """

    mean: float
    std: float
    clipped: float

    def named(self, prefix: str) -> dict[str, float]:
        """The figures as scalars, ``PREFIX_mean`` and so on."""
        return {f"{prefix}_{name}": value for name, value in self._asdict().items()}


def pixel_figures(config: Config, images: np.ndarray) -> PixelFigures:
    """The figures of images [n, h, w, c] of the data's type."""
    pixels = scaled(images.astype(np.float64), build_normalization(config))
    clipped = np.mean((pixels <= 0) | (pixels >= 1))
    return PixelFigures(float(np.mean(pixels)), float(np.std(pixels)), float(clipped))


def figures_of_data(config: Config, source: Source) -> PixelFigures:
    """The figures of the training images, or of some hundred of them.

    Raises:
        UserError: one cannot be read.
    """
    count = min(len(source), _MOST_IMAGES)
    chosen = np.arange(count) * len(source) // count
    return pixel_figures(config, load_images(source, config.data, chosen).image)
