"""Pixels between disk and network: uint8 on one side, floats on the other.

Images are uint8 [n, h, w, c] wherever they are stored, shown or measured, and floats only between the network's input
and its output.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Normalization(NamedTuple):
    """How pixels in [0, 1] become the network's floats: ``(pixel - mean) / std``.

    Attributes:
        mean: one value, or one per channel.
        std: one value, or one per channel; mean = std = 0.5 gives [-1, 1].
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The floats of black and of white, one or one per channel: -1 and 1 for mean = std = 0.5."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (0 - mean) / std, (1 - mean) / std


def to_float(images: Any, normalization: Normalization, dtype: Any = jnp.float32) -> Any:
    """uint8 [..., h, w, c] in 0 ... 255 → floats, (image / 255 - mean) / std."""
    pixels = jnp.asarray(images, dtype) / 255.0
    return (pixels - jnp.asarray(normalization.mean, dtype)) / jnp.asarray(normalization.std, dtype)


def to_uint8(images: Any, normalization: Normalization) -> Any:
    """Floats [..., h, w, c] → uint8, clipped to 0 ... 255 and rounded half up.

    Truncating instead, as several codebases do, darkens images by half a level and moves FID.
    """
    pixels = images * jnp.asarray(normalization.std, images.dtype) + jnp.asarray(normalization.mean, images.dtype)
    return jnp.floor(jnp.clip(pixels, 0.0, 1.0) * 255.0 + 0.5).astype(jnp.uint8)
