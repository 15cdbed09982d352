"""A Hugging Face data set folder in Parquet files, read by pyarrow alone."""

import collections
import importlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax.config import DataConfig
from ddim_jax.data.sources.array import check_label_array
from ddim_jax.data.sources.protocol import Example, Source
from ddim_jax.data.splits import split_indices
from ddim_jax.data.transforms import DecodingNotes, ImageError, as_values, decode_image
from ddim_jax.errors import UserError, shown
from ddim_jax.names import PixelType

# What the hub's data sets call their images and classes, the first that is there.
_IMAGES = ("image", "img", "images", "pixel_values")
_LABELS = ("label", "labels", "fine_label")

# Row groups that are kept decoded: those that threads read at a time, of some tens of MB each.
_GROUPS_KEPT = 8


class ParquetSource(Source):
    """The rows of all ``.parquet`` files of a folder, in the order of the files' paths, or of one such file.

    Images are encoded files (columns of bytes, or of bytes and path, as the hub has them), or lists of numbers of the
    shape [h, w] or [h, w, c]. Files are read by row group, a few of which are kept.
    """

    def __init__(self, config: DataConfig) -> None:
        """Looks at the files' footers, and reads the column of labels.

        Raises:
            UserError: pyarrow is missing, there are no such files, or they have no images.
        """
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise UserError("data.source=parquet needs pyarrow: pip install 'ddim_jax[parquet]'") from error
        if not config.path:
            raise UserError("data.path='': name the folder of .parquet files")
        root = Path(config.path).expanduser()
        self._paths = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
        key = f"data.path={shown(config.path)}"
        if not self._paths:
            raise UserError(f"{key} has no .parquet files; name the folder of them")
        self._root = root
        self._parquet = parquet
        self._groups: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._reading = threading.Lock()
        places, starts, schema = [], [0], None
        for number, path in enumerate(self._paths):
            try:
                file = parquet.ParquetFile(path)
            except Exception as error:
                # pyarrow's errors of damaged files have no common type.
                raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
            schema = schema or file.schema_arrow
            if file.schema_arrow.names != schema.names:
                raise UserError(f"{path} has other columns than {self._paths[0]}: {', '.join(file.schema_arrow.names)}")
            for group in range(file.num_row_groups):
                places.append((number, group))
                starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        assert schema is not None, "there are files"
        self._places, self._starts = places, np.array(starts)
        self._image = _column(schema.names, _IMAGES, "", key, "images")
        self._label = _column(schema.names, _LABELS, config.labels, key, "labels", must=bool(config.labels))
        self._vector = config.vector if config.vector in schema.names else ""
        self._dtype: PixelType = config.dtype
        self._channels = config.channels
        self._notes = DecodingNotes()
        self.name = config.name or root.resolve().stem
        self.split = config.split
        self.num_whole = int(self._starts[-1])
        if not self.num_whole:
            raise UserError(f"{key} has no rows")
        labels = self._read_column(self._label) if self._label else None
        self._labels, classes = check_label_array(labels, self.num_whole, self._label)
        # A split may lack the last class: the data set's own list has them all.
        self.num_classes = max(classes, _classes_told(schema, self._label)) if self._label else 0
        self._numbers = self.numbers = split_indices(config.split, self.num_whole, self.name)
        if self._vector:
            self.vector_size = len(_as_vector(self._row(0)[self._vector], self._vector))

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._numbers)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes row ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} examples; there is no number {index}")
        number = int(self._numbers[index])
        row = self._row(number)
        stored = row[self._image]
        if isinstance(stored, dict):
            stored = stored.get("bytes")
        if stored is None:
            raise ImageError("the row holds no bytes of an image")
        if isinstance(stored, bytes):
            notes: list[str] = []
            image = decode_image(stored, self._dtype, self._channels, notes)
            if notes:
                self._notes.add(self.where(index), notes)
        else:
            image = _as_image(stored, self._dtype)
        label = 0 if self._labels is None else int(self._labels[number])
        vector = _as_vector(row[self._vector], self._vector) if self._vector else None
        if vector is not None and len(vector) != self.vector_size:
            raise ImageError(f"its vector has {len(vector)} numbers, the first row's has {self.vector_size}")
        return Example(image, label, vector)

    def where(self, index: int) -> str:
        """The file and the row in it."""
        number = int(self._numbers[index])
        group = self._group_of(number)
        file = self._places[group][0]
        first = next(place for place, (of, _) in enumerate(self._places) if of == file)
        return f"{self._paths[file]}, row {number - int(self._starts[first])}"

    def identity(self) -> dict[str, str | int]:
        """Names, sizes and times of change of the files, which are not read."""
        stats = [(path, path.stat()) for path in self._paths]
        base = self._root if self._root.is_dir() else self._root.parent
        files = "; ".join(f"{path.relative_to(base)} {found.st_size} {found.st_mtime_ns}" for path, found in stats)
        columns = f"{self._image} {self._label} {self._vector}"
        return {"source": "parquet", "files": files, "columns": columns, "split": self.split}

    def _group_of(self, number: int) -> int:
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    def _row(self, number: int) -> dict[str, Any]:
        """The columns of a row that are wanted."""
        group = self._group_of(number)
        with self._reading:
            table = self._groups.get(group)
            if table is None:
                table = self._read_group(group)
                self._groups[group] = table
                while len(self._groups) > _GROUPS_KEPT:
                    self._groups.popitem(last=False)
            else:
                self._groups.move_to_end(group)
        place = number - int(self._starts[group])
        return {name: table.column(name)[place].as_py() for name in table.column_names}

    def _read_group(self, group: int) -> Any:
        number, within = self._places[group]
        columns = [name for name in (self._image, self._vector) if name]
        try:
            return self._parquet.ParquetFile(self._paths[number]).read_row_group(within, columns=columns)
        except Exception as error:
            raise UserError(f"{self._paths[number]} cannot be read: {' '.join(str(error).split())}") from error

    def _read_column(self, name: str) -> np.ndarray:
        parts = [
            np.array(self._parquet.ParquetFile(path).read(columns=[name]).column(0).to_pylist()) for path in self._paths
        ]
        return np.concatenate([part for part in parts if len(part)])


def _column(names: list[str], usual: tuple[str, ...], wanted: str, key: str, what: str, must: bool = True) -> str:
    """The column to read; empty where there need not be one."""
    found = [wanted] if wanted in names else [] if wanted else [name for name in usual if name in names]
    if not found and must:
        raise UserError(f"{key} has no column of {what}{f' {shown(wanted)}' * bool(wanted)}; it has {', '.join(names)}")
    return found[0] if found else ""


def _classes_told(schema: Any, label: str) -> int:
    """How many classes the description that the hub adds has; 0 where there is none."""
    try:
        told = json.loads(schema.metadata[b"huggingface"])
        return len(told["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):
        return 0


def _as_image(stored: Any, dtype: Any) -> np.ndarray:
    try:
        values = np.array(stored)
    except ValueError as error:
        raise ImageError("its rows are not equally long") from error
    if values.ndim not in (2, 3) or values.dtype.kind not in "biuf":
        raise ImageError(f"it is a list of the shape {values.shape}; images are [height, width, channels]")
    values = values if values.ndim == 3 else values[..., None]
    if dtype == "uint8" and values.dtype.kind == "f":
        raise ImageError("its values are floats, data.dtype is uint8; set data.dtype=float32")
    return as_values(values, dtype)


def _as_vector(stored: Any, column: str) -> np.ndarray:
    values = np.atleast_1d(np.array(stored))
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        raise UserError(f"data.vector={column!r}: this column holds no vectors of numbers")
    return (2.0 * values - 1 if values.dtype == bool else values).astype(np.float32)
