"""From an encoded image of any kind to the array that the network is trained on, of the type ``data.dtype``.

Two steps: :func:`decode_image` turns a file's bytes into pixels, :func:`prepare_image` crops,
resizes and sets the number of channels. Both work on one image and are deterministic, and all
sources go through the same decoders (Pillow; for 16-bit colours and unusual TIFF files OpenCV), so
that the same file gives the same pixels wherever it comes from.
"""

import importlib
import io
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from ddim_jax.config import DataConfig
from ddim_jax.errors import UserError
from ddim_jax.images import from_pillow, to_pillow
from ddim_jax.names import PixelType, lookup

_log = logging.getLogger(__name__)

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

# EXIF has no names for these: how samples of a TIFF are counted (3: floats), and how many a pixel has.
_SAMPLE_FORMAT, _FLOATS = 339, 3
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
_NPY_SIGNATURE = b"\x93NUMPY"

# The published aligned CelebA images; the crop below is meaningless at any other size.
_CELEBA_HEIGHT, _CELEBA_WIDTH = 218, 178


# ITU-R BT.601: what red, green and blue add to the brightness.
_LUMA = np.array([0.299, 0.587, 0.114])


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


class DecodingNotes:
    """What files hold that is passed over, each kind of it told in the log once for a source, with the first file."""

    def __init__(self) -> None:
        """Has told nothing yet."""
        self._told: set[str] = set()
        self._telling = threading.Lock()

    def add(self, where: str, notes: list[str]) -> None:
        """Tells those that were not told yet.

        Args:
            where: the file.
            notes: as :func:`decode_image` makes them.
        """
        for note in notes:
            with self._telling:
                is_new = note not in self._told
                self._told.add(note)
            if is_new:
                _log.warning("%s: %s", where, note)


def decode_image(
    data: bytes, dtype: PixelType = "uint8", channels: int = 3, notes: list[str] | None = None
) -> np.ndarray:
    """Decodes a PNG, JPEG, WebP, BMP, GIF or TIFF file (the first frame, if it has several), or an array (``.npy``).

    The EXIF orientation is applied. For ``uint8``, palettes, CMYK and other colour spaces become RGB, 16-bit grey is
    scaled by 255 / 65535 and rounded, and of 16-bit colours, and of 16-bit grey with alpha, Pillow keeps the higher 8
    bits. For other types values are kept as they are stored. Transparent pixels are composited over white, unless
    there is a channel for alpha.

    Args:
        data: the file's bytes.
        dtype: type of the values that are wanted.
        channels: how many are wanted: 4 keeps alpha beside colours, 2 beside grey. Else the number of channels is what
            the file has.
        notes: where to put what the file holds that is passed over.

    Returns:
        [h, w, c] of the type; 1 channel for grey images, else 3 (RGB), 4 (RGB with alpha), or what the file has.

    Raises:
        ImageError: the bytes are empty, cut off, no image of these formats, or one whose values are of another type.
        UserError: a package is missing that reads such files.
    """
    if not data:
        raise ImageError("the file is empty")
    if data.startswith(_NPY_SIGNATURE):
        return _decode_npy(data, dtype)
    notes = [] if notes is None else notes
    try:
        if dtype != "uint8":
            return _decode_values(data, dtype, channels, notes)
        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
            image.load()
            _note(image, data, notes)
            pixels = _to_grey_or_rgb(image, data, channels)
            method = _turn_upright(image)
            return from_pillow(pixels if method is None else pixels.transpose(method))
    except (UserError, MemoryError):
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


def _note(image: Image.Image, data: bytes, notes: list[str]) -> None:
    """Notes what is passed over of a file that is decoded."""
    if getattr(image, "n_frames", 1) > 1:
        notes.append("it has several frames, of which the first is taken; so of others")
    profile = image.info.get("icc_profile") or b""
    if profile and b"sRGB" not in profile and b"s\0R\0G\0B" not in profile:
        notes.append("its colour profile is left alone: values are taken as they are stored; so of others")
    deep = image.mode.startswith("I") or (image.format == "PNG" and data[24] == 16)
    if deep and image.format in ("PNG", "TIFF"):
        notes.append("its 16-bit values are scaled to 8 bits, and so are others'; set data.dtype=uint16 to keep them")


def _decode_npy(data: bytes, dtype: PixelType) -> np.ndarray:
    """Reads an image from the bytes of a ``.npy`` file: [h, w, c], or [h, w] without the last axis."""
    try:
        values = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:
        # What a wrong byte leads NumPy's reader to: no list of exceptions is complete.
        raise ImageError(f"the array cannot be read: {' '.join(str(error).split())}") from error
    if values.ndim not in (2, 3) or not values.size:
        raise ImageError(f"the array has the shape {values.shape}; store one image, (height, width, channels)")
    return as_values(values if values.ndim == 3 else values[..., None], dtype)


def check_type(found: np.dtype, dtype: PixelType) -> None:
    """Checks that an array's values can be those of images of a type: the same, or without loss.

    Raises:
        ImageError: they cannot.
    """
    if found == np.dtype(dtype) or (dtype == "float32" and found.kind in "biuf"):
        return
    if found.kind in "iu" and found != np.uint8:
        return  # each image's values say whether they fit
    better = found.name if found in (np.uint8, np.uint16) else "float32"
    remedy = f"set data.dtype={better}" if found.kind in "biuf" else "store real numbers"
    raise ImageError(f"its values are {found.name}, data.dtype is {dtype}; {remedy}")


def as_values(values: np.ndarray, dtype: PixelType) -> np.ndarray:
    """An image's values in a type that can hold them.

    Raises:
        ImageError: it cannot.
    """
    if values.dtype == np.dtype(dtype):
        return values.astype(dtype, copy=False)  # in this machine's order of bytes
    check_type(values.dtype, dtype)
    if dtype != "float32" and values.size:
        highest = np.iinfo(dtype).max
        for value in (int(values.min()), int(values.max())):
            if not 0 <= value <= highest:
                raise ImageError(f"it holds the value {value}, data.dtype={dtype} holds 0 ... {highest}")
    with np.errstate(over="ignore"):  # what becomes infinite is told of where finite values are looked for
        return values.astype(dtype)


def _decode_values(data: bytes, dtype: PixelType, channels: int, notes: list[str]) -> np.ndarray:
    """Decodes an image of more than 8 bits: [h, w, c] of the type, as stored."""
    method = None
    try:
        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
            method = _turn_upright(image)
            values = _values_by_pillow(image, data, dtype)
            _note_other_than_depth(image, data, notes)
    except Image.UnidentifiedImageError:
        # Of TIFF Pillow knows the usual kinds of pixels alone.
        if not data.startswith(_TIFF_SIGNATURES):
            raise
        values = None
    if values is None:
        values = _values_by_opencv(data, channels)
    if values.dtype == np.float64 and dtype == "float32":
        values = values.astype(np.float32)
    if values.dtype != np.dtype(dtype):
        raise _other_type(values.dtype, dtype)
    return _turned(values, method)


def _note_other_than_depth(image: Image.Image, data: bytes, notes: list[str]) -> None:
    found: list[str] = []
    _note(image, data, found)
    notes += [note for note in found if "16-bit" not in note]


def _other_type(found: np.dtype, dtype: PixelType) -> ImageError:
    bits = {np.dtype(np.uint8): "8 bits", np.dtype(np.uint16): "16 bits"}
    remedy = f"set data.dtype={found.name}" if found in (np.uint8, np.uint16, np.float32) else "store another type"
    return ImageError(
        f"its values are of {bits.get(found, found.name)}, data.dtype is {dtype}; store all images alike, or {remedy}"
    )


def _values_by_pillow(image: Image.Image, data: bytes, dtype: PixelType) -> np.ndarray | None:
    """The values [h, w, 1] of grey images of 16 bits and of floats; None for others that may have as many.

    Raises:
        ImageError: the values have 8 bits, or another scale.
    """
    if image.format == "PNG":
        depth, colour = data[24], data[25]
        if depth < 16:
            raise _other_type(np.dtype(np.uint8), dtype)
        if colour != _GREY_PNG[0]:
            return None
        image.load()
        values = np.asarray(image).astype(np.uint16)
        if image.info.get("transparency") is not None:
            values[values == image.info["transparency"]] = 65535
        return values[..., None]
    if image.format != "TIFF":
        raise _other_type(np.dtype(np.uint8), dtype)
    mode, bits, scale = _tiff_kind(image)
    tags: Any = image.getexif()
    is_float = tags.get(_SAMPLE_FORMAT) in (_FLOATS, (_FLOATS,))
    if (mode, bits, scale) == _PLAIN_GREY_TIFF:
        return np.asarray(image).astype(np.uint16)[..., None]
    if image.mode.startswith("F") and bits == 32 and is_float:
        return np.asarray(image).astype(np.float32)[..., None]
    if set(bits if isinstance(bits, tuple) else (bits,)) <= {1, 2, 4, 8}:
        raise _other_type(np.dtype(np.uint8), dtype)
    if scale == 0:
        raise ImageError("it is a TIFF image whose lowest value is white; store it with black as the lowest")
    return None


def _values_by_opencv(data: bytes, channels: int) -> np.ndarray:
    """The values [h, w, c] as they are stored; colours in the order red, green, blue.

    Raises:
        ImageError: the file cannot be decoded.
        UserError: OpenCV is not installed.
    """
    try:
        opencv: Any = importlib.import_module("cv2")
    except ImportError as error:
        raise UserError(
            "16-bit colours, and TIFF files other than grey, need OpenCV: pip install 'ddim_jax[deep]'"
        ) from error
    values = opencv.imdecode(np.frombuffer(data, np.uint8), opencv.IMREAD_UNCHANGED)
    if values is None:
        raise ImageError("it is an image of an unusual kind that cannot be decoded; store it as .npy")
    if values.ndim == 2:
        return values[..., None]
    if values.shape[2] in (3, 4):
        values = values[..., [2, 1, 0, 3][: values.shape[2]]]
    if data.startswith(b"\x89PNG") and data[25] == _GREY_PNG[1]:
        values = values[..., [0, 3]]  # grey with alpha arrives as RGBA
    if values.shape[2] in (2, 4) and channels != values.shape[2] and values.dtype == np.uint16:
        # Over white, as images of 8 bits are.
        alpha = values[..., -1:] / 65535.0
        values = np.floor(alpha * values[..., :-1] + (1 - alpha) * 65535 + 0.5).astype(np.uint16)
    return np.ascontiguousarray(values)


# By transposition of Pillow, the same for arrays [h, w, c].
_TURNS: dict[Any, Callable[[np.ndarray], np.ndarray]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda image: image[:, ::-1],
    Image.Transpose.ROTATE_180: lambda image: image[::-1, ::-1],
    Image.Transpose.FLIP_TOP_BOTTOM: lambda image: image[::-1],
    Image.Transpose.TRANSPOSE: lambda image: image.swapaxes(0, 1),
    Image.Transpose.ROTATE_270: lambda image: image.swapaxes(0, 1)[:, ::-1],
    Image.Transpose.TRANSVERSE: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    Image.Transpose.ROTATE_90: lambda image: image.swapaxes(0, 1)[::-1],
}


def _turned(image: np.ndarray, method: Image.Transpose | None) -> np.ndarray:
    """An image [h, w, c] as Pillow would transpose it."""
    return image if method is None else np.ascontiguousarray(_TURNS[method](image))


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


def _to_grey_or_rgb(image: Image.Image, data: bytes, channels: int) -> Image.Image:
    """Converts a decoded file, whose bytes are ``data``, to mode L or RGB, over white; or with alpha, if wanted."""
    # Of a PNG, the bits of a sample and the kind of colour stand at fixed places: its header comes first.
    depth, colour = (data[24], data[25]) if image.format == "PNG" else (8, None)
    transparent = _transparent_value(image, depth)
    if channels == 4 and not image.mode.startswith(("I", "F")):
        if transparent is not None:
            image.info["transparency"] = transparent
        return image.convert("RGBA")
    if channels == 2 and image.mode == "LA":
        return image
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

    ``crop=center`` keeps the largest centred part of the shape of ``image_size``, of a square the largest square.
    LSUN and others are published as "shorter side resized to s, then the centre cropped". With
    ``crop=center`` that is the same square of the original, cut out first and resized then: the
    same pixels up to rounding, but for a border as wide as the filter, which here sees nothing
    beyond the square.

    Args:
        image: [h, w, c] of the type ``data.dtype``, or one that it can hold.
        config: the keys crop, resize, image_size, channels and dtype.

    Returns:
        [height, width, channels] of the type ``data.dtype``.

    Raises:
        ImageError: the crop does not fit the image, the result has another size than
            ``data.image_size`` and ``data.resize`` is none, the image has other channels, or a value is not finite.
    """
    wanted_height, wanted_width, _ = config.image_shape
    _check_channels_last(image.shape, config.channels)
    image = as_values(crop_image(image, config.crop, (wanted_height, wanted_width)), config.dtype)
    if config.dtype == "float32":
        _check_finite(image)
    height, width = image.shape[:2]
    # The centre crop is as near to the shape as whole pixels are.
    if config.crop != "center" and height * wanted_width != width * wanted_height:
        raise ImageError(
            f"the image is {width}x{height} pixels, not "
            + ("square" if wanted_height == wanted_width else f"of the shape {wanted_width}x{wanted_height}")
            + "; set data.crop=center"
            + ("" if wanted_height == wanted_width else ", or data.image_size to (height, width)")
        )
    if (height, width) != (wanted_height, wanted_width):
        if config.resize == "none":
            raise ImageError(
                f"the image is {width}x{height} pixels after data.crop={config.crop}, data.image_size is "
                f"{config.image_size}; "
                "set data.resize=bilinear or another filter"
            )
        image = resize_image(image, (wanted_height, wanted_width), Image.Resampling[config.resize.upper()])
    return set_channels(image, config.channels)


def _check_channels_last(shape: tuple[int, ...], channels: int) -> None:
    """Checks that an image does not hold channels before height and width, where it has too many as the last axis.

    Raises:
        ImageError: it does.
    """
    if shape[0] == channels < shape[2] and (channels, shape[2]) != (1, 3):
        raise ImageError(
            f"the image has the shape {shape}, channels first; store channels last: np.moveaxis(image, 0, -1), or "
            "np.moveaxis(images, 1, -1) for an array of all"
        )


def resize_image(image: np.ndarray, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    """Resizes an image [h, w, c] of any type and number of channels by one of Pillow's antialiased filters.

    Those that overshoot are clipped to what the type holds for uint8, as Pillow does, and to each channel's own range
    for others, whose own limits may be none.

    Each channel is resized by itself, whatever it means. So is alpha: colours of transparent pixels count as those of
    opaque ones do, where Pillow's RGBA weighs colours by alpha and forgets those that nobody sees.

    Args:
        image: the image.
        size: height and width wanted.
        resampling: the filter.
    """
    height, width = size
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        return from_pillow(to_pillow(image).resize((width, height), resampling))
    resized = []
    for channel in np.moveaxis(image, 2, 0):
        values = np.ascontiguousarray(channel if image.dtype == np.uint8 else channel.astype(np.float32))
        new = np.asarray(Image.fromarray(values).resize((width, height), resampling))
        if image.dtype != np.uint8:
            new = np.clip(new, values.min(), values.max())
        if image.dtype == np.uint16:
            new = np.floor(new + 0.5).astype(np.uint16)
        resized.append(new)
    return np.stack(resized, axis=2)


def _check_finite(image: np.ndarray) -> None:
    """Checks floats for NaN and infinity, which both show in the extremes."""
    if not image.size or (np.isfinite(image.min()) and np.isfinite(image.max())):
        return
    bad = ~np.isfinite(image)
    nan = int(np.isnan(image).sum())
    infinite = int(bad.sum()) - nan
    found = " and ".join(f"{count:,} {what}" for count, what in ((nan, "NaN"), (infinite, "infinite")) if count)
    row, column, channel = np.argwhere(bad)[0]
    raise ImageError(
        f"it holds {found} of {image.size:,} values, the first in row {row}, column {column}, channel {channel}; "
        "replace them, or leave such images out by data.on_error=skip"
    )


def crop_image(image: np.ndarray, crop: str, shape: tuple[int, int] = (1, 1)) -> np.ndarray:
    """Cuts out the part of an image [h, w, c] that ``data.crop`` names, one of :data:`CROPS`.

    Args:
        image: the whole.
        crop: which part.
        shape: height and width that the part will be resized to, of which only the ratio counts.

    Raises:
        ImageError: the crop does not fit the image.
    """
    return lookup(CROPS, crop, "crop")(image, shape)


def no_crop(image: np.ndarray, _shape: tuple[int, int]) -> np.ndarray:
    """Keeps the whole image."""
    return image


def center_crop(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Cuts out the largest centred part of a shape, such as a square; an odd pixel is lost at the bottom or right."""
    height, width = image.shape[:2]
    # As high as the whole width allows and as wide as the whole height does, rounded half up.
    tall = min(height, max(1, (2 * width * shape[0] + shape[1]) // (2 * shape[1])))
    wide = min(width, max(1, (2 * height * shape[1] + shape[0]) // (2 * shape[0])))
    top, left = (height - tall) // 2, (width - wide) // 2
    return image[top : top + tall, left : left + wide]


def celeba_crop(image: np.ndarray, _shape: tuple[int, int]) -> np.ndarray:
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


# By ``names.Crop``: from an image [h, w, c], and the height and width that are wanted, to the part that is kept.
CROPS: dict[str, Callable[[np.ndarray, tuple[int, int]], np.ndarray]] = {
    "none": no_crop,
    "center": center_crop,
    "celeba": celeba_crop,
}


def set_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Makes an image grey or RGB, where it is the other: [h, w, channels].

    Grey becomes RGB by repeating; RGB becomes grey by the luma of ITU-R BT.601,
    0.299 R + 0.587 G + 0.114 B.

    Raises:
        ImageError: the image has another number of channels that cannot be made the one wanted.
    """
    found = image.shape[2]
    if found == channels:
        return image
    if {found, channels} != {1, 3}:
        raise ImageError(
            f"the image has {found} channel{'s'[: found != 1]}, data.channels is {channels}; set it to {found}"
        )
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    if image.dtype == np.uint8:
        return from_pillow(to_pillow(image).convert("L"))
    grey = image.astype(np.float64) @ _LUMA
    grey = np.floor(grey + 0.5) if image.dtype == np.uint16 else grey
    return grey.astype(image.dtype)[..., None]
