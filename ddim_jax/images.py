"""Pictures for people: grids, tables with headings, PNG files, animations. All of these are uint8 [n, h, w, 1 or 3].

Images as they are, of some more types, fit in PNG files too; see :func:`png_holds`.
"""

import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ddim_jax.files import whole_file

_TITLE_HEIGHT = 22
_FONT_SIZE = 14

# By this name a PNG holds its note.
_NOTE = "ddim_jax"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Grey, RGB and RGB with alpha, by PNG's number of the type of colour.
_PNG_CHANNELS = {0: 1, 2: 3, 6: 4}
# What Pillow writes without loss: channels by the type of values.
_PNG_HOLDS = {"uint8": (1, 3, 4), "uint16": (1,)}


def grid(images: np.ndarray, columns: int | None = None, padding: int = 2, min_side: int = 64) -> np.ndarray:
    """Lays images out row by row on white.

    Args:
        images: uint8 [n, h, w, c].
        columns: images per row; the grid is about square when None.
        padding: white pixels between images.
        min_side: images smaller than this are enlarged, see :func:`enlarge`.

    Returns:
        uint8 [rows * (h' + padding) + padding, columns * (w' + padding) + padding, c].
    """
    images = enlarge(images, min_side)
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.full(
        (rows * (height + padding) + padding, columns * (width + padding) + padding, channels), 255, np.uint8
    )
    for i, image in enumerate(images):
        top = padding + (i // columns) * (height + padding)
        left = padding + (i % columns) * (width + padding)
        canvas[top : top + height, left : left + width] = image
    return canvas


def grid_bytes(count: int, shape: tuple[int, int, int], min_side: int = 64) -> int:
    """Memory that :func:`grid` takes at least for images [h, w, c], in bytes.

    >>> grid_bytes(10, (8, 8, 1))
    82560

    Args:
        count: number of images.
        shape: of each.
        min_side: of :func:`grid`.
    """
    height, width, channels = shape
    factor = max(1, math.ceil(min_side / min(height, width)))
    pixels = count * height * width * channels
    # The images, the same enlarged, and the grid.
    return pixels * (1 + 2 * factor**2 if factor > 1 else 2)


def labelled_rows(rows: Sequence[tuple[str, np.ndarray]], columns: int | None = None) -> np.ndarray:
    """Stacks grids under a line of text each; uint8 [h, w, 3].

    Args:
        rows: pairs of a title and images uint8 [n, h, w, c].
        columns: images per row of each grid.
    """
    blocks = []
    for title, images in rows:
        picture = as_rgb(grid(images, columns))
        blocks.append((title, picture))
    width = max(picture.shape[1] for _, picture in blocks)
    height = sum(picture.shape[0] + _TITLE_HEIGHT for _, picture in blocks)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for title, picture in blocks:
        draw.text((4, top + 3), title, fill="black", font_size=_FONT_SIZE)
        canvas.paste(Image.fromarray(picture), (0, top + _TITLE_HEIGHT))
        top += picture.shape[0] + _TITLE_HEIGHT
    return np.asarray(canvas)


def table(cells: Sequence[Sequence[np.ndarray]], rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """A table of pictures with a heading for each row and column; uint8 [h, w, 3].

    Args:
        cells: by row and column, images uint8 [n, h, w, c]; several are laid out as a grid. All cells hold as many.
        rows: titles at the left; empty ones take no room.
        columns: titles above.
    """
    pictures = [[as_rgb(grid(images)) for images in row] for row in cells]
    height, width = pictures[0][0].shape[:2]
    font = ImageFont.load_default(size=_FONT_SIZE)
    left = max((round(font.getlength(title)) + 8 for title in rows if title), default=0)
    width = max(width, *(round(font.getlength(title)) + 8 for title in columns))
    canvas = Image.new("RGB", (left + width * len(columns), _TITLE_HEIGHT + height * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for j, title in enumerate(columns):
        draw.text((left + j * width + 4, 3), title, fill="black", font=font)
    for i, title in enumerate(rows):
        top = _TITLE_HEIGHT + i * height
        draw.text((4, top + height // 2 - _FONT_SIZE), title, fill="black", font=font)
        for j, picture in enumerate(pictures[i]):
            canvas.paste(Image.fromarray(picture), (left + j * width, top))
    return np.asarray(canvas)


def enlarge(images: np.ndarray, min_side: int) -> np.ndarray:
    """Enlarges uint8 [n, h, w, c] by a whole factor until the shorter side has at least ``min_side`` pixels.

    Bicubic, since an 8x8 digit drawn as 64 grey squares is hard to read. For looking at, not for measuring.
    """
    height, width = images.shape[1:3]
    factor = math.ceil(min_side / min(height, width))
    if factor <= 1:
        return images
    size = (width * factor, height * factor)
    return np.stack([from_pillow(to_pillow(image).resize(size, Image.Resampling.BICUBIC)) for image in images])


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Grey [..., 1] → RGB [..., 3] by repetition; RGB unchanged."""
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def png_holds(dtype: str, channels: int) -> bool:
    """Whether a PNG file holds images of so many channels without loss.

    >>> png_holds("uint8", 4), png_holds("uint16", 1), png_holds("uint16", 3), png_holds("float32", 1)
    (True, True, False, False)
    """
    return channels in _PNG_HOLDS.get(dtype, ())


def save_png(path: epath.PathLike, image: np.ndarray, note: str = "") -> None:
    """Writes an image [h, w, c] that :func:`png_holds` as PNG; the file appears whole or not at all.

    A run can be killed at any moment and resumes by the files that exist, so a half-written one must never carry the
    final name.

    Args:
        path: the file.
        image: the image.
        note: text in the file that nobody sees, for :func:`png_note`.
    """
    picture, info = to_pillow(image), PngInfo()
    if note:
        info.add_text(_NOTE, note)
    with whole_file(path) as partial, partial.open("wb") as file:
        picture.save(file, format="PNG", pnginfo=info)


def png_note(path: epath.PathLike) -> str:
    """The note in a PNG that :func:`png_shape` finds whole; empty where there is none."""
    with epath.Path(path).open("rb") as file, Image.open(file) as picture:
        return str(picture.info.get(_NOTE, ""))


def save_gif(path: epath.PathLike, frames: Sequence[np.ndarray], frame_ms: int) -> None:
    """Writes uint8 [h, w, 1 or 3] pictures as an endless animation, the last one shown for a second and a half."""
    pictures = [to_pillow(frame) for frame in frames]
    durations = [frame_ms] * (len(pictures) - 1) + [1500]
    with whole_file(path) as partial, partial.open("wb") as file:
        pictures[0].save(
            file, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True
        )


def load_png(path: epath.PathLike) -> np.ndarray:
    """Reads what :func:`save_png` wrote: [h, w, c], of the type that it had."""
    with epath.Path(path).open("rb") as file, Image.open(file) as picture:
        return from_pillow(picture)


def png_shape(path: epath.PathLike, dtype: str = "uint8") -> tuple[int, int, int] | None:
    """The shape [h, w, c] of the image in a file, if that is a whole PNG as :func:`save_png` writes it; else None.

    Of another type than ``dtype`` it is none.

    An emptied, cut-off or overwritten file is found out by the checksums of its parts, and by how many bytes its pixels
    are; this takes less time than decoding it.
    """
    try:
        data = epath.Path(path).read_bytes()
    except OSError:
        return None
    if not data.startswith(_PNG_SIGNATURE):
        return None
    item_size = np.dtype(dtype).itemsize
    at, name, shape, packed = len(_PNG_SIGNATURE), b"", None, []
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data) or zlib.crc32(data[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return None
        if name == b"IHDR":
            if length != 13:
                return None
            width, height, depth, colour, *_, interlaced = struct.unpack_from(">IIBBBBB", data, at + 8)
            is_ours = depth == 8 * item_size and colour in _PNG_CHANNELS and not interlaced
            shape = (height, width, _PNG_CHANNELS[colour]) if is_ours else None
        elif name == b"IDAT":
            packed.append(data[at + 8 : end])
        at = end + 4
    return shape if name == b"IEND" and shape and _has_pixels(b"".join(packed), shape, item_size) else None


def _has_pixels(packed: bytes, shape: tuple[int, int, int], item_size: int) -> bool:
    """Whether the pixels of a PNG, packed, are as many as its shape says: a byte for its filter before each line."""
    height, width, channels = shape
    size = height * (1 + width * channels * item_size)
    unpacking = zlib.decompressobj()
    try:
        # Never more than a byte too many: a small file may claim to hold gigabytes.
        return len(unpacking.decompress(packed, size + 1)) == size and unpacking.eof
    except (zlib.error, OverflowError):
        return False


def to_pillow(image: np.ndarray) -> Image.Image:
    """Makes an image [h, w, c] that :func:`png_holds` one of Pillow's: grey, RGB, or RGB with alpha."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pillow(picture: Image.Image) -> np.ndarray:
    """Makes an image of Pillow's, as :func:`to_pillow` returns it, an array [h, w, c]."""
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def labelled_lines(rows: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Lays rows of images under each other, each with its title at the left; uint8 [h, w, 3].

    Args:
        rows: pairs of a title and images uint8 [n, h, w, c], as many in each row.
    """
    cells = [[image[None] for image in images] for _, images in rows]
    # Columns have no titles, and need no room for them.
    return table(cells, [title for title, _ in rows], [""] * len(cells[0]))[_TITLE_HEIGHT:]
