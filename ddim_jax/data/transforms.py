"""From an image as it is stored to the array that the network is trained on.

:func:`prepare_image` crops, resizes and sets the number of channels. It works on one image, is deterministic, and
checks on the way that the image's values are such as ``data.dtype`` and ``data.range`` say.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from ddim_jax.config import DataConfig
from ddim_jax.data.decoding import FORMATS, ImageError, decode_image
from ddim_jax.images import from_pillow, to_pillow
from ddim_jax.names import PixelType, lookup

__all__ = ["CROPS", "FORMATS", "ImageError", "crop_image", "decode_image", "prepare_image", "set_channels"]

# The published aligned CelebA images; the crop below is meaningless at any other size.
_CELEBA_HEIGHT, _CELEBA_WIDTH = 218, 178

# Weights of red, green and blue in the luma of ITU-R BT.601.
_LUMA = (0.299, 0.587, 0.114)


def prepare_image(image: np.ndarray, config: DataConfig) -> np.ndarray:
    """Crops an image, resizes it (Pillow's antialiased filters) and sets its channels, in this order.

    LSUN and others are published as "shorter side resized to s, then the centre cropped". With
    ``crop=center`` that is the same square of the original, cut out first and resized then: the
    same pixels up to rounding, but for a border as wide as the filter, which here sees nothing
    beyond the square.

    Values of other types than uint8, and images of other than 1 or 3 channels, are resized channel by channel in
    float32, by the same filters; what these overshoot the channel's own values by is cut off.

    Args:
        image: [h, w, c], of a type that ``data.dtype`` can hold.
        config: the keys crop, resize, image_size, channels, dtype and range.

    Returns:
        [height, width, channels] of the type ``data.dtype``.

    Raises:
        ImageError: the crop does not fit the image; the result has another size than ``data.image_size`` and
            ``data.resize`` is none; or a value or the number of channels is none that the config says.
    """
    wanted = config.image_shape[:2]
    image = _as_type(crop_image(image, config.crop, wanted), config.dtype)
    height, width = image.shape[:2]
    # Of a square nothing but a square; of other shapes one to the pixel.
    if abs(height * wanted[1] - width * wanted[0]) >= max(wanted):
        raise ImageError(
            f"the image is {width}x{height} pixels, not "
            + ("square" if wanted[0] == wanted[1] else f"of the shape {wanted[1]}x{wanted[0]}")
            + "; set data.crop=center"
        )
    if (height, width) != wanted:
        if config.resize == "none":
            raise ImageError(
                f"the image is {width}x{height} pixels after data.crop={config.crop}, data.image_size is "
                f"{config.image_size}; "
                "set data.resize=bilinear or another filter"
            )
        image = _resize(image, wanted, Image.Resampling[config.resize.upper()])
    image = set_channels(image, config.channels)
    _check_range(image, config)
    return image


def _as_type(image: np.ndarray, dtype: PixelType) -> np.ndarray:
    """Turns an image's values into those of a type that holds them as they are.

    Raises:
        ImageError: the type does not, or a value is NaN or infinite.
    """
    if dtype != "float32":
        if image.dtype != dtype:
            hint = f"set data.dtype={image.dtype}" if image.dtype in (np.uint8, np.uint16) else "set data.dtype=float32"
            raise ImageError(f"its values are {image.dtype}, but data.dtype={dtype}; {hint}, or leave the image out")
        return image
    with np.errstate(over="ignore"):
        image = image.astype(np.float32, copy=False)
    if not np.isfinite(image.sum(dtype=np.float64)):
        wrong = np.argwhere(~np.isfinite(image))
        row, column, channel = wrong[0].tolist()
        values = "1 value is" if len(wrong) == 1 else f"{len(wrong):,} values are"
        raise ImageError(
            f"{values} NaN or infinite, the first in row {row}, column {column}, channel {channel}; mend the data, or "
            "leave such images out by data.on_error=skip"
        )
    return image


def _check_range(image: np.ndarray, config: DataConfig) -> None:
    """Checks that no value of an image lies beyond ``data.range``, where that is given.

    Raises:
        ImageError: one does.
    """
    if not config.range:
        return
    # Compared in the image's type, in which 0.9 is another number than in float64.
    low, high = (np.asarray(config.range[first::2], image.dtype) for first in (0, 1))
    wrong = (image < low) | (image > high)
    if wrong.any():
        row, column, channel = np.argwhere(wrong)[0].tolist()
        low, high = (float(np.broadcast_to(bound, image.shape[-1])[channel]) for bound in (low, high))
        raise ImageError(
            f"the value {image[row, column, channel]:g} in row {row}, column {column}, channel {channel} lies beyond "
            f"data.range, {low:g} ... {high:g}; widen that"
        )


def _resize(image: np.ndarray, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    """Resizes an image [h, w, c] to (height, width)."""
    shape = (size[1], size[0])
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        return from_pillow(to_pillow(image).resize(shape, resampling))
    channels = []
    for channel in np.moveaxis(image, -1, 0):
        values = np.asarray(Image.fromarray(channel.astype(np.float32)).resize(shape, resampling))
        channels.append(np.clip(values, channel.min(), channel.max()))
    return _rounded(np.stack(channels, -1), image.dtype)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values as those of a type: integers are rounded half up."""
    return (values if dtype == np.float32 else np.floor(values + 0.5)).astype(dtype)


def crop_image(image: np.ndarray, crop: str, shape: tuple[int, int] = (1, 1)) -> np.ndarray:
    """Cuts out the part of an image [h, w, c] that ``data.crop`` names, one of :data:`CROPS`.

    Args:
        image: the whole.
        crop: which part.
        shape: height and width that the part will have in the end, of which only the ratio counts.

    Raises:
        ImageError: the crop does not fit the image.
    """
    part = lookup(CROPS, crop, "crop")
    return center_crop(image, shape) if part is center_crop else part(image)


def no_crop(image: np.ndarray) -> np.ndarray:
    """Keeps the whole image."""
    return image


def center_crop(image: np.ndarray, shape: tuple[int, int] = (1, 1)) -> np.ndarray:
    """Cuts out the largest centred square, or part of another ratio; an odd pixel is lost at the bottom or right."""
    height, width = image.shape[:2]
    # Rounded half up; at least a pixel.
    tall = max(1, (2 * width * shape[0] + shape[1]) // (2 * shape[1]))
    wide = max(1, (2 * height * shape[1] + shape[0]) // (2 * shape[0]))
    tall, wide = min(height, tall), min(width, wide)
    top, left = (height - tall) // 2, (width - wide) // 2
    return image[top : top + tall, left : left + wide]


def celeba_crop(image: np.ndarray) -> np.ndarray:
    """Cuts rows 57:185, columns 25:153 out of the aligned 178x218 images, 128 pixels square.

    That is the crop of DDIM's code; other papers' crops give other FIDs.

    Raises:
        ImageError: the image is not 178x218.
    """
    height, width = image.shape[:2]
    if (height, width) != (_CELEBA_HEIGHT, _CELEBA_WIDTH):
        raise ImageError(
            f"the image is {width}x{height} pixels, data.crop=celeba is for aligned CelebA images of "
            f"{_CELEBA_WIDTH}x{_CELEBA_HEIGHT}; set data.crop=center"
        )
    return image[57:185, 25:153]


# By ``names.Crop``: from an image [h, w, c] to the part of it that is kept.
CROPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": no_crop,
    "center": center_crop,
    "celeba": celeba_crop,
}


def set_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Makes an image [h, w, 1 or 3] grey or RGB: [h, w, channels], of the same type.

    Grey becomes RGB by repeating; RGB becomes grey by the luma of ITU-R BT.601,
    0.299 R + 0.587 G + 0.114 B. Images of other numbers of channels are left as they are.

    Raises:
        ImageError: the image has another number of channels, and none that these two cases make of it.
    """
    found = image.shape[2]
    if found == channels:
        return image
    if (found, channels) == (3, 1):
        if image.dtype == np.uint8:
            return from_pillow(to_pillow(image).convert("L"))
        red, green, blue = (image[..., [channel]].astype(np.float64) for channel in range(3))
        return _rounded(_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue, image.dtype)
    if (found, channels) == (1, 3):
        return np.repeat(image, channels, axis=2)
    has = "1 channel" if found == 1 else f"{found} channels"
    raise ImageError(f"the image has {has}, data.channels is {channels}; set data.channels={found}")
