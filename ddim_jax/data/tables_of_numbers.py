"""Numbers in ``.csv`` files: a row for each image, or for each image to be drawn."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddim_jax.errors import UserError


class NumberTable(NamedTuple):
    """What a file holds.

    Attributes:
        titles: of the columns, as they stand in the first line; none where that has numbers.
        names: [n], what the first column says where that has no numbers; None where it has.
        values: float32 [n, d], of all other columns.
        lines: [n], the number of each row's line, from 1.
    """

    titles: tuple[str, ...]
    names: list[str] | None
    values: np.ndarray
    lines: list[int]


def read_table(path: Path, key: str) -> NumberTable:
    """Reads a ``.csv`` of numbers, perhaps with a line of titles, and perhaps with names in the first column.

    Args:
        path: the file.
        key: the config's key and value, for messages.

    Raises:
        UserError: it cannot be read, or is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(number, line) for number, line in enumerate(csv.reader(file), 1) if any(map(str.strip, line))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{key} cannot be read: {reason}") from error
    titles: tuple[str, ...] = ()
    if lines and not any(map(_is_number, lines[0][1][1:] or lines[0][1])):
        titles, lines = tuple(map(str.strip, lines[0][1])), lines[1:]
    if not lines:
        raise UserError(f"{key} holds no row of numbers")
    has_names = not all(_is_number(line[0]) for _, line in lines)
    rows = []
    for number, line in lines:
        cells = line[has_names:]
        if len(cells) != len(lines[0][1][has_names:]) or not cells or not all(map(_is_number, cells)):
            raise UserError(f"{key}, line {number}: it needs as many numbers as the first row has")
        rows.append([float(cell) for cell in cells])
    names = [line[0].strip() for _, line in lines] if has_names else None
    return NumberTable(titles, names, np.array(rows, np.float32), [number for number, _ in lines])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
