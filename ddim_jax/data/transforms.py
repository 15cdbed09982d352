"""From an encoded image of any kind to the uint8 array that the network is trained on.

Two steps: :func:`decode_image` turns a file's bytes into pixels, :func:`prepare_image` crops,
resizes and sets the number of channels. Both work on one image and are deterministic, and all
sources go through the same decoder (Pillow), so that the same file gives the same pixels
wherever it comes from.
"""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from ddim_jax.config import DataConfig
from ddim_jax.errors import UserError
from ddim_jax.images import from_pillow, to_pillow
from ddim_jax.names import lookup

# Formats that Pillow may try. Naming them keeps its rarer decoders away from untrusted files.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")

# What Pillow's decoders raise on bytes that are not a whole, sound image.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# The published aligned CelebA images; the crop below is meaningless at any other size.
_CELEBA_HEIGHT, _CELEBA_WIDTH = 218, 178


class ImageError(UserError):
    """One image cannot be used.

    The reason depends on the image's content and the config alone, never on time or order: that is what makes leaving
    such images out (``data.on_error=skip``) reproducible.

    Attributes:
        reason: why, without saying which image it is.
    """

    def __init__(self, reason: str, where: str = "") -> None:
        """Composes the line to show.

        Args:
            reason: why the image cannot be used.
            where: the file or record that holds it, where that is known: a decoder sees bytes alone, and who reads the
                image adds where they come from.
        """
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason


def decode_image(data: bytes) -> np.ndarray:
    """Decodes a PNG, JPEG, WebP, BMP or GIF file (the first frame, if it has several).

    The EXIF orientation is applied. Transparent pixels are composited over white. 16-bit grey is
    scaled by 255 / 65535 and rounded; palettes, CMYK and other colour spaces become RGB.

    Args:
        data: the file's bytes.

    Returns:
        uint8 [h, w, 1] for grey images, else [h, w, 3] (RGB).

    Raises:
        ImageError: the bytes are empty, cut off, or no image of these formats.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return from_pillow(_to_grey_or_rgb(image))
    except Image.UnidentifiedImageError as error:
        raise ImageError("not a PNG, JPEG, WebP, BMP or GIF image") from error
    except _DECODER_ERRORS as error:
        raise ImageError(f"the image cannot be decoded: {' '.join(str(error).split())}") from error


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255 instead of scaling. 65535 / 257 = 255, and adding
        # 128 rounds to nearest (257 is odd: there are no ties).
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def prepare_image(image: np.ndarray, config: DataConfig) -> np.ndarray:
    """Crops an image, resizes it (Pillow's antialiased filters) and sets its channels, in this order.

    LSUN and others are published as "shorter side resized to s, then the centre cropped". With
    ``crop=center`` that is the same square of the original, cut out first and resized then: the
    same pixels up to rounding, but for a border as wide as the filter, which here sees nothing
    beyond the square.

    Args:
        image: uint8 [h, w, c] with c = 1 or 3.
        config: the keys crop, resize, image_size and channels.

    Returns:
        uint8 [image_size, image_size, channels].

    Raises:
        ImageError: the crop does not fit the image, or the result has another size than
            ``data.image_size`` and ``data.resize`` is none.
    """
    image = crop_image(image, config.crop)
    height, width = image.shape[:2]
    size = config.image_size
    if height != width:
        raise ImageError(f"the image is {width}x{height} pixels, not square; set data.crop=center")
    if width != size:
        if config.resize == "none":
            raise ImageError(
                f"the image is {width}x{height} pixels after data.crop={config.crop}, data.image_size is {size}; "
                "set data.resize=bilinear or another filter"
            )
        resampling = Image.Resampling[config.resize.upper()]
        image = from_pillow(to_pillow(image).resize((size, size), resampling))
    return set_channels(image, config.channels)


def crop_image(image: np.ndarray, crop: str) -> np.ndarray:
    """Cuts out the part of an image [h, w, c] that ``data.crop`` names, one of :data:`CROPS`.

    Raises:
        ImageError: the crop does not fit the image.
    """
    return lookup(CROPS, crop, "crop")(image)


def no_crop(image: np.ndarray) -> np.ndarray:
    """Keeps the whole image."""
    return image


def center_crop(image: np.ndarray) -> np.ndarray:
    """Cuts out the largest centred square; an odd pixel is lost at the bottom or right."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


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
    """Makes an image [h, w, 1 or 3] grey or RGB: uint8 [h, w, channels].

    Grey becomes RGB by repeating; RGB becomes grey by the luma of ITU-R BT.601,
    0.299 R + 0.587 G + 0.114 B.
    """
    if image.shape[2] == channels:
        return image
    if channels == 1:
        return from_pillow(to_pillow(image).convert("L"))
    return np.repeat(image, channels, axis=2)
