"""The folder of a table: results of its rows, and the table written anew from all of them.

::

    rows/NAME.json          result of a row
    rows/NAME.png           its first images
    rows/NAME.nearest.png   those nearest to training images, beside these, where that was asked for
    rows/NAME.claim-K       while a job works on it, see ``ddim_jax/claims.py``
    rows/NAME.partial-*     what a killed job had measured
    table.md, table.csv, table.json, quality.png, report.html
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from ddim_jax.claims import Claims
from ddim_jax.errors import UserError
from ddim_jax.files import make_folder, remove_left_over, write_whole
from ddim_jax.images import grid, png_shape, save_png
from ddim_jax.tables.lines import (
    Comparison,
    clipping_note,
    copying_note,
    lines,
    spread_notes,
    to_csv,
    to_json,
    to_markdown,
)
from ddim_jax.tables.neighbours import Strip, neighbours_picture
from ddim_jax.tables.report import quality_picture, to_html
from ddim_jax.tables.rows import Result, Row
from ddim_jax.writers import say


class TableFolder:
    """A table that several jobs may fill at once.

    Attributes:
        folder: the table's.
        claims: this job's claims on rows.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        title: str,
        settings: Mapping[str, Any],
        compared: Comparison,
    ) -> None:
        """Opens the folder, which must exist.

        Args:
            folder: the table's.
            title: of the table.
            settings: what all rows share, as JSON's types; ``num`` is the number of images.
            compared: whether published figures may be shown.
        """
        self.folder = epath.Path(folder)
        self._rows = self.folder / "rows"
        make_folder(self._rows)
        remove_left_over(self._rows)
        self._title = title
        self._settings = settings
        self._compared = compared
        self.claims = Claims(self._rows)
        self._left_out: set[epath.Path] = set()

    def has(self, row: Row) -> bool:
        """Returns whether the row is measured."""
        return self._result_path(row.name).exists()

    def remove_damaged(self, rows: Iterable[Row]) -> None:
        """Removes results that cannot be read, so that these rows are measured again, and says so.

        A result has its name once it is whole: what is cut off or empty is a disk's doing, and no job's at work.
        """
        for row in rows:
            path = self._result_path(row.name)
            if not path.exists():
                continue
            try:
                Result.read(path)
            except UserError:
                say(f"{path} is damaged; the row is measured again")
                path.unlink(missing_ok=True)

    def results(self) -> list[Result]:
        """Reads all results there are, of this job and others.

        A file that is no result, or a copy of one, is left out with a warning.

        Raises:
            UserError: one is of another number of images.
        """
        found = []
        for path in sorted(self._rows.glob("*.json")):
            try:
                result = Result.read(path)
            except UserError as error:
                if path not in self._left_out:
                    self._left_out.add(path)
                    say(f"warning: {error}; the table is written without it")
                continue
            if result.num != self._settings["num"]:
                raise UserError(
                    f"{path} is of {result.num:,} images, this table of {self._settings['num']:,}: figures of "
                    "different numbers of images never compare; move it away"
                )
            found.append(result)
        return found

    def add(self, result: Result, images: np.ndarray, strips: Sequence[Strip] = ()) -> None:
        """Keeps a result.

        Args:
            result: of a row.
            images: pictures of the row's first, uint8 [n, h, w, 1 or 3].
            strips: samples beside their nearest training images.
        """
        save_png(self._rows / f"{result.name}.png", grid(images, min_side=1))
        if strips:
            save_png(self._rows / f"{result.name}.nearest.png", neighbours_picture(strips))
        write_whole(self._result_path(result.name), result.to_json())

    def partial_path(self, row: Row, process: int, process_count: int) -> epath.Path:
        """Returns where a process keeps what it has measured of a row."""
        return self._rows / f"{row.name}.partial-{process}-of-{process_count}.npz"

    def remove_partials(self, row: Row) -> None:
        """Removes what was kept of a row that is done."""
        for path in self._rows.glob(f"{row.name}.partial-*"):
            path.unlink(missing_ok=True)

    def write(self, notes: Sequence[str]) -> list[Result]:
        """Writes the table from all results; returns them.

        Where another job adds a result meanwhile, one of the two would write a table without the other's last. So it is
        written again until nothing was added.

        Args:
            notes: what is to be known of the figures.
        """
        results = self.results()
        while True:
            self._write(results, notes)
            now = self.results()
            if {result.name for result in now} == {result.name for result in results}:
                return now
            results = now

    def _write(self, results: Sequence[Result], notes: Sequence[str]) -> None:
        table = lines(results, self._compared)
        notes = [*copying_note(table), *notes, *spread_notes(table), *clipping_note(table)]
        quality = quality_picture(table)
        names = [result.name for result in results]
        grids, nearest = self._pictures(names, ".png"), self._pictures(names, ".nearest.png")
        files = {
            "table.md": to_markdown(self._title, table, notes),
            "table.csv": to_csv(table),
            "table.json": to_json(self._settings, table, notes),
            "quality.png": quality,
            "report.html": to_html(self._title, self._settings, table, notes, quality, grids, nearest),
        }
        for name, content in files.items():
            write_whole(self.folder / name, content)

    def _pictures(self, names: Iterable[str], ending: str) -> dict[str, bytes]:
        paths = {name: self._rows / f"{name}{ending}" for name in names}
        return {name: path.read_bytes() for name, path in paths.items() if png_shape(path) is not None}

    def _result_path(self, name: str) -> epath.Path:
        return self._rows / f"{name}.json"
