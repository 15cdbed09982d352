"""From an encoded image of any kind to the uint8 array that the network is trained on.

Two steps: :func:`decode_image` turns a file's bytes into pixels, :func:`prepare_image` crops,
resizes and sets the number of channels. Both work on one image and are deterministic, and all
sources go through the same decoder (Pillow), so that the same file gives the same pixels
wherever it comes from.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from ddim_jax.config import DataConfig
from ddim_jax.errors import UserError
from ddim_jax.images import from_pillow, to_pillow
from ddim_jax.names import lookup

# Formats that Pillow may try, with the suffixes of their files. Naming them keeps its rarer decoders away from files
# that nobody vouches for.
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
_FORMATS_IN_WORDS = "PNG, JPEG, WebP, BMP, GIF or TIFF"

# Sound PNG files hold colour profiles and descriptions of several MB, which Pillow refuses from 1 MiB on. It knows no
# limit for one image alone. These are still small beside the pixels that it accepts.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, 2**26)
PngImagePlugin.MAX_TEXT_MEMORY = max(PngImagePlugin.MAX_TEXT_MEMORY, 2**28)

# By EXIF orientation, what turns the stored pixels upright; at 1, or any other value, they are.
_UPRIGHT: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Kinds of colour in a PNG's header: grey, and grey with alpha.
_GREY_PNG = (0, 4)

# Mode, bits and scale (0 is black) of the TIFF images of more than 8 bits whose range is known.
_PLAIN_GREY_TIFF = ("I;16", 16, 1)

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
    """Decodes a PNG, JPEG, WebP, BMP, GIF or TIFF file (the first frame, if it has several).

    The EXIF orientation is applied. Transparent pixels are composited over white. 16-bit grey is
    scaled by 255 / 65535 and rounded; palettes, CMYK and other colour spaces become RGB. Of 16-bit
    colours, and of 16-bit grey with alpha, Pillow keeps the higher 8 bits.

    Args:
        data: the file's bytes.

    Returns:
        uint8 [h, w, 1] for grey images, else [h, w, 3] (RGB).

    Raises:
        ImageError: the bytes are empty, cut off, no image of these formats, or one of a kind that has no 8-bit pixels.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
            image.load()
            pixels = _to_grey_or_rgb(image, data)
            method = _turn_upright(image)
            return from_pillow(pixels if method is None else pixels.transpose(method))
    except (ImageError, MemoryError):
        # How much memory there is, is no property of the image.
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"not a {_FORMATS_IN_WORDS} image") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"the image has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, too many to decode; "
            "store it smaller, or leave it out by data.on_error=skip"
        ) from error
    except Exception as error:
        # Decoders raise whatever a wrong byte leads them to: no list of exceptions is complete.
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "; store it without its text or colour profile" if "MAX_TEXT" in reason else ""
        raise ImageError(f"the image cannot be decoded: {reason}{remedy}") from error


def _turn_upright(image: Image.Image) -> Image.Transpose | None:
    """Finds what turns an image as its EXIF orientation says, if it need be turned.

    Pillow's own function also writes the EXIF data anew, without the orientation, and fails at tags of unusual types,
    of which sound photos have many.
    """
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        # The pixels are sound: other programs show them as they are stored, too.
        return None


def _to_grey_or_rgb(image: Image.Image, data: bytes) -> Image.Image:
    """Converts a decoded file, whose bytes are ``data``, to mode L or RGB, over white."""
    # Of a PNG, the bits of a sample and the kind of colour stand at fixed places: its header comes first.
    depth, colour = (data[24], data[25]) if image.format == "PNG" else (8, None)
    transparent = _transparent_value(image, depth)
    if image.mode in ("L", "RGB") and transparent is None:
        return image
    if image.mode.startswith(("I", "F")):
        return _scale_to_8_bits(image, transparent)
    # Grey with alpha of 16 bits arrives as RGBA.
    grey = colour in _GREY_PNG or image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        if transparent is not None:
            image.info["transparency"] = transparent
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def _transparent_value(image: Image.Image, depth: int) -> Any:
    """Reads which value or palette entry is transparent, on the scale of the pixels that Pillow gives; None if none is.

    Pillow scales grey PNGs of 2 and 4 bits up to 8, and cuts colours of 16 bits down, but leaves this value as it is.
    """
    value = image.info.get("transparency")
    if image.mode == "L" and depth < 8 and value is not None:
        return value * 255 // (2**depth - 1)
    if image.mode == "RGB" and depth == 16 and value is not None:
        return tuple(channel >> 8 for channel in value)
    return value


def _scale_to_8_bits(image: Image.Image, transparent: int | None) -> Image.Image:
    """Scales grey of 16 bits to 8; Pillow's own conversion clips at 255 instead."""
    if image.format == "TIFF" and _tiff_kind(image) != _PLAIN_GREY_TIFF:
        raise ImageError("it is a TIFF image of an unusual number type or scale; store 8 or 16 bits per channel")
    values = np.asarray(image).astype(np.int64)
    # 65535 / 257 = 255, and adding 128 rounds to nearest (257 is odd: there are no ties).
    levels = ((values + 128) // 257).astype(np.uint8)
    if transparent is not None:
        levels[values == transparent] = 255
    return Image.fromarray(levels)


def _tiff_kind(image: Image.Image) -> tuple[str, Any, Any]:
    """Returns the mode of an opened TIFF without its byte order, the bits of a sample, and which value is black."""
    tags: Any = image.getexif()
    return image.mode[:4], tags.get(ExifTags.Base.BitsPerSample), tags.get(ExifTags.Base.PhotometricInterpretation)


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
    wanted_height, wanted_width, _ = config.image_shape
    if height * wanted_width != width * wanted_height:
        raise ImageError(
            f"the image is {width}x{height} pixels, not "
            + ("square" if wanted_height == wanted_width else f"of the shape {wanted_width}x{wanted_height}")
            + "; set data.crop=center"
        )
    if width != wanted_width:
        if config.resize == "none":
            raise ImageError(
                f"the image is {width}x{height} pixels after data.crop={config.crop}, data.image_size is "
                f"{config.image_size}; "
                "set data.resize=bilinear or another filter"
            )
        resampling = Image.Resampling[config.resize.upper()]
        image = from_pillow(to_pillow(image).resize((wanted_width, wanted_height), resampling))
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
