"""Pixels between disk and network: values of the data's type on one side, floats on the other.

Images are arrays [n, h, w, c] of ``data.dtype`` (uint8, uint16 or float32) wherever they are stored or measured, and
the network's floats only between its input and its output: there is no step of 8 bits on the way of any other type.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ddim_jax.names import PixelType

# Side of the squares of a checkerboard, in pixels, and its two greys: what is seen through transparent pixels.
_SQUARE = 4
_GREYS = (255, 204)


class Normalization(NamedTuple):
    """How values become the network's floats: ``(pixel - mean) / std``, pixels being values scaled to [0, 1].

    Attributes:
        mean: one value, or one per channel.
        std: one value, or one per channel; mean = std = 0.5 gives [-1, 1].
        dtype: of the values.
        low: the value of pixel 0, one or one per channel.
        high: the value of pixel 1, likewise.
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: PixelType = "uint8"
    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] = (255.0,)

    @property
    def is_plain(self) -> bool:
        """Whether values are 8-bit pixels, 0 black and 255 white in each channel: pictures as files have them."""
        return self.dtype == "uint8" and set(self.low) == {0.0} and set(self.high) == {255.0}

    @property
    def facts(self) -> dict[str, Any]:
        """What tells values apart from 8-bit pixels, as JSON's types; nothing where that is what they are."""
        return {} if self.is_plain else {"dtype": self.dtype, "low": list(self.low), "high": list(self.high)}

    @property
    def span(self) -> np.ndarray:
        """Difference of the values of pixels 1 and 0, one or one per channel: float64."""
        return np.asarray(self.high, np.float64) - np.asarray(self.low, np.float64)

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The floats of pixels 0 and 1, one or one per channel: -1 and 1 for mean = std = 0.5."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (0 - mean) / std, (1 - mean) / std


def whole_range(dtype: PixelType) -> tuple[float, float] | None:
    """The lowest and highest value that a type can hold; None for floats, whose data say it.

    >>> whole_range("uint16")
    (0.0, 65535.0)
    """
    if dtype == "float32":
        return None
    return 0.0, float(np.iinfo(dtype).max)


def to_float(images: Any, normalization: Normalization, dtype: Any = jnp.float32) -> Any:
    """Values [..., h, w, c] of the data's type → floats, ((value - low) / (high - low) - mean) / std."""
    pixels = scaled(jnp.asarray(images, dtype), normalization)
    return (pixels - jnp.asarray(normalization.mean, dtype)) / jnp.asarray(normalization.std, dtype)


def to_pixels(images: Any, normalization: Normalization) -> Any:
    """Floats [..., h, w, c] → values of the data's type, clipped to its range; integers are rounded half up.

    Truncating instead, as several codebases do, darkens images by half a level and moves FID.
    """
    pixels = images * jnp.asarray(normalization.std, images.dtype) + jnp.asarray(normalization.mean, images.dtype)
    pixels = jnp.clip(pixels, 0.0, 1.0)
    low, high = (jnp.asarray(value, images.dtype) for value in (normalization.low, normalization.high))
    values = pixels * (high - low)
    if any(normalization.low):
        values = values + low
    if normalization.dtype == "float32":
        # low + (high - low) may miss high by rounding.
        return jnp.clip(values, low, high).astype(jnp.float32)
    return jnp.floor(values + 0.5).astype(normalization.dtype)


def to_pictures(
    images: np.ndarray,
    normalization: Normalization = Normalization(),  # noqa: B008 - immutable
    channels: tuple[int, ...] = (),
) -> np.ndarray:
    """Images as people can see them: uint8 [..., h, w, 1 or 3].

    >>> to_pictures(np.float32([[[[-1.0, 5.0]]]]), Normalization(dtype="float32", low=(-1,), high=(3,)), (1,))
    array([[[[255]]]], dtype=uint8)

    Args:
        images: [..., h, w, c] of the data's type.
        normalization: says which value is black and which is white.
        channels: the ones to show, one as grey or three as colours. Empty for all of 1, 3 or 4, the last of which is
            alpha, over a checkerboard; of other numbers the first, or the first three.
    """
    images = np.asarray(images)
    count = images.shape[-1]
    if not channels:
        channels = tuple(range(count if count in (1, 3, 4) else 1 if count < 3 else 3))
    if not (normalization.is_plain and images.dtype == np.uint8):
        pixels = np.clip(scaled(images.astype(np.float64), normalization), 0, 1)
        images = np.floor(pixels * 255 + 0.5).astype(np.uint8)
    images = images[..., list(channels)] if channels != tuple(range(count)) else images
    return _over_checkerboard(images) if len(channels) == 4 else images


def scaled(values: Any, normalization: Normalization) -> Any:
    """Values of the data, as floats [..., h, w, c], as pixels in [0, 1]."""
    array = jnp.asarray if not isinstance(values, np.ndarray) else np.asarray
    low, high = (array(value, values.dtype) for value in (normalization.low, normalization.high))
    # The usual range of integers begins at 0, and is then no more than one division.
    return (values - low) / (high - low) if any(normalization.low) else values / high


def _over_checkerboard(images: np.ndarray) -> np.ndarray:
    """RGB with alpha, uint8 [..., h, w, 4] → uint8 [..., h, w, 3], as seen before a checkerboard."""
    rows, columns = (np.arange(side) // _SQUARE for side in images.shape[-3:-1])
    board = np.where((rows[:, None] + columns) % 2, *reversed(_GREYS))[..., None].astype(np.float64)
    alpha = images[..., 3:] / 255.0
    return np.floor(alpha * images[..., :3] + (1 - alpha) * board + 0.5).astype(np.uint8)
