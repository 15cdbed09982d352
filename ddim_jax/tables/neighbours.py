"""A picture of samples beside the training images that are nearest to them, so that copies can be seen."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddim_jax.images import as_rgb, enlarge
from ddim_jax.metrics.memorization import Neighbours, near_copy

# Samples shown, those nearest to the training images.
SHOWN = 8

_MIN_SIDE = 64
_MAX_SIDE = 128
_PADDING = 6
_TEXT = 16
_FONT_SIZE = 12


class Strip(NamedTuple):
    """Samples and their nearest training images.

    Attributes:
        title: what they are near by.
        samples: int64 [n], which samples they are, nearest first.
        images: uint8 [n, 4, h, w, 1 or 3], each sample and the three training images.
        distances: float64 [n, 3].
        is_copy: bool [n], which are near copies.
    """

    title: str
    samples: np.ndarray
    images: np.ndarray
    distances: np.ndarray
    is_copy: np.ndarray


def nearest_samples(found: Neighbours) -> np.ndarray:
    """Returns the samples nearest to the training images: int64 [at most 8], nearest first.

    Distances are compared with that of the training image to its own nearest other one: in dense regions, as of plain
    pictures, all images are near one another.

    >>> index, far = np.zeros((3, 3), int), np.ones((3, 2))
    >>> distance = np.concatenate([[[0.5], [0.4], [0.0]], far], axis=1)
    >>> nearest_samples(Neighbours(index, distance, np.array([1.0, 0.5, 0.0]))).tolist()
    [2, 0, 1]
    """
    ratio = np.zeros(len(found.own))
    np.divide(found.first, found.own, out=ratio, where=found.first > 0)
    return np.argsort(ratio, kind="stable")[:SHOWN]


def make_strip(title: str, found: Neighbours, samples: np.ndarray, images: np.ndarray, training: np.ndarray) -> Strip:
    """Puts together what is shown.

    Args:
        title: what they are near by.
        found: of all samples.
        samples: int64 [n], those shown.
        images: pictures of these, uint8 [n, h, w, 1 or 3].
        training: pictures of their nearest training images, uint8 [n, 3, h, w, 1 or 3].
    """
    return Strip(
        title,
        samples,
        np.concatenate([images[:, None], training], axis=1),
        found.distance[samples],
        near_copy(found.first, found.second)[samples],
    )


def neighbours_picture(strips: Sequence[Strip]) -> np.ndarray:
    """Draws strips under one another, a line for each sample: uint8 [h, w, 3].

    Over each training image stands its distance; a near copy says so.
    """
    return np.concatenate([_drawn(strip) for strip in strips], axis=0)


def _drawn(strip: Strip) -> np.ndarray:
    cells = [[_cell(image) for image in row] for row in strip.images]
    height, width = cells[0][0].shape[:2]
    font = ImageFont.load_default(size=_FONT_SIZE)
    headings = ["sample", "nearest", "second", "third"]
    texts = [
        [f"{sample}{', a near copy' if is_copy else ''}", *(f"{distance:.3g}" for distance in row)]
        for sample, row, is_copy in zip(strip.samples.tolist(), strip.distances.tolist(), strip.is_copy, strict=True)
    ]
    # Lines of samples in two columns, so that the picture is about square.
    widths = [max(width, *(round(font.getlength(row[place])) for row in [headings, *texts])) for place in range(4)]
    lefts = np.concatenate([[0], np.cumsum([size + _PADDING for size in widths])])
    block = int(lefts[-1]) + 3 * _PADDING
    columns = 2 if len(cells) > 1 else 1
    rows = -(-len(cells) // columns)
    step = height + _TEXT + _PADDING
    canvas = Image.new("RGB", (block * 2, 2 * _TEXT + _PADDING + rows * step), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_PADDING, 2), strip.title, fill="black", font=font)
    for column in range(columns):
        for place, heading in enumerate(headings):
            left = column * block + _PADDING + int(lefts[place])
            draw.text((left, _TEXT + 2), heading, fill="black", font=font)
    for number, (row, words) in enumerate(zip(cells, texts, strict=True)):
        column, line = divmod(number, rows)
        top = 2 * _TEXT + line * step
        for place, (cell, text) in enumerate(zip(row, words, strict=True)):
            left = column * block + _PADDING + int(lefts[place])
            is_alarm = place == 0 and bool(strip.is_copy[number])
            draw.text((left, top), text, fill="#b00020" if is_alarm else "black", font=font)
            canvas.paste(Image.fromarray(cell), (left, top + _TEXT))
    return np.asarray(canvas)


def _cell(image: np.ndarray) -> np.ndarray:
    """Enlarges a small image, and shrinks a large one."""
    picture = as_rgb(enlarge(image[None], _MIN_SIDE)[0])
    if max(picture.shape[:2]) <= _MAX_SIDE:
        return picture
    shrunk = Image.fromarray(picture)
    shrunk.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return np.asarray(shrunk)
