"""A folder of image files."""

import collections
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from ddim_jax.data.sources.protocol import Example, Source
from ddim_jax.data.splits import split_indices
from ddim_jax.data.transforms import FORMATS, DecodingNotes, ImageError, decode_image
from ddim_jax.errors import UserError
from ddim_jax.files import read_file
from ddim_jax.names import PixelType
from ddim_jax.workdir import summary_pictures

# What the decoder reads, by its name.
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)

# An image in a file of its own, as an array.
_ARRAY = ".npy"

# By type of the values, the files that can hold it. For uint8 also arrays, where there is nothing else.
SUFFIXES_OF: dict[PixelType, tuple[str, ...]] = {
    "uint8": SUFFIXES,
    "uint16": (*SUFFIXES, _ARRAY),
    "float32": (*FORMATS["TIFF"], _ARRAY),
}

# So many images beside sub-folders are taken for strays, if more lie in these.
_A_FEW = 10

# Kinds of other files that the log names; the rest is counted.
_KINDS_SHOWN = 5

_log = logging.getLogger(__name__)


class FolderSource(Source):
    """All PNG, JPEG, WebP, BMP, GIF and TIFF files under a folder, at any depth, ordered by path; or ``.npy`` files.

    The sub-folders of the first level are the classes, numbered in sorted order, if every image
    lies in one; if some image lies in the root itself, the images have no labels, and where that
    looks like a mistake a warning names it. Links are followed, but not back to a folder that
    holds them. Names that start with a dot are ignored, as are files with other suffixes, which
    the log counts. In a folder that one of our jobs wrote, pictures that sum up others
    (``grid.png``) are no images.

    A split is a slice of this order. So ``train[:162770]`` of CelebA's unzipped archive
    (``000001.jpg`` ... ``202599.jpg``) is its official training partition,
    ``train[162770:182637]`` the validation partition and ``train[182637:]`` the test partition.
    But a folder *of classes* is ordered class by class: a slice of it holds some classes alone.
    The numbers of the classes are those of the whole folder, whatever the slice.
    """

    def __init__(
        self,
        path: str,
        name: str = "",
        split: str = "train",
        key: str = "data.path",
        dtype: PixelType = "uint8",
        channels: int = 3,
    ) -> None:
        """Lists the images; none is opened.

        Args:
            path: the folder; ``~`` is understood.
            name: what to call it; the folder's own name by default.
            split: ``train`` is the whole folder, ``train[:90%]`` a slice; see ``splits.py``.
            key: the config's key that names the folder, for messages.
            dtype: type of the images' values, which decides the files that can be images.
            channels: how many are wanted: 4 keeps alpha.

        Raises:
            UserError: no such folder, no image in it, or a split that cannot be used.
        """
        self._root = Path(path).expanduser()
        if not self._root.is_dir():
            raise UserError(f"{key}={path!r} is not a folder; name the folder of images")
        # Paths are kept as strings: a Path takes several times the memory, and sets have millions.
        relative: list[str] = []
        arrays: list[str] = []
        others: collections.Counter[str] = collections.Counter()
        for folder, files in _walk(self._root):
            prefix = os.path.relpath(folder, self._root)
            images = [file for file in files if file.lower().endswith(SUFFIXES_OF[dtype])]
            if dtype == "uint8":
                arrays += [os.path.normpath(os.path.join(prefix, file)) for file in files if file.endswith(_ARRAY)]
            others.update(os.path.splitext(file)[1].lower() or "no suffix" for file in set(files) - set(images))
            if "run.json" in files:
                summaries = summary_pictures(folder, images)
                images = [file for file in images if file not in summaries]
            relative += [os.path.normpath(os.path.join(prefix, file)) for file in images]
        if not relative and arrays:
            # Arrays of bytes are images where there are no others; beside pictures they may be anything.
            relative = arrays
            del others[_ARRAY]
        ignored = _count_ignored(others)
        if not relative:
            found = f" ({ignored})" if ignored else ""
            of_type = "" if dtype == "uint8" else f" of data.dtype={dtype}"
            looked_for = ", ".join(SUFFIXES_OF[dtype])
            raise UserError(f"{key}={path!r} has no images{of_type}; looked for {looked_for} at any depth{found}")
        if ignored:
            _log.warning("%s: %s", path, ignored)
        # By parts, so that the images of a class follow each other: "a/b" comes before "a-b/c".
        self._files = sorted(relative, key=lambda file: file.split(os.sep))
        parts = [file.split(os.sep, 1) for file in self._files]
        self.classes: list[str] = []
        strays = [part[0] for part in parts if len(part) == 1]
        if not strays:
            self.classes = sorted({part[0] for part in parts})
        elif len(strays) <= min(_A_FEW, len(parts) - len(strays) - 1):
            more = f" and {len(strays) - 1} more" if len(strays) > 1 else ""
            self.no_labels_because = (
                f"{strays[0]}{more} lies beside the sub-folders that hold the other {len(parts) - len(strays):,} images"
            )
            _log.warning("%s: no labels, because %s; move it away if these are classes", path, self.no_labels_because)
        number = {folder: label for label, folder in enumerate(self.classes)}
        self._labels = np.array([number.get(part[0], 0) for part in parts], np.int32)
        self.num_classes = len(self.classes)
        self.name = name or self._root.resolve().name
        self._dtype: PixelType = dtype
        self._channels = channels
        self._notes = DecodingNotes()
        chosen = split_indices(split, len(self._files), self.name)
        self.numbers, self.num_whole = chosen, len(self._files)
        self._files = [self._files[index] for index in chosen]
        self._labels = self._labels[chosen]

    @property
    def files(self) -> list[str]:
        """The images' paths in the folder."""
        return self._files

    def __len__(self) -> int:
        """The number of image files."""
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        """Decodes file ``index``.

        Raises:
            ImageError: the file is not a sound image.
            UserError: the file cannot be opened (gone, no permission, disk error). This is no
                property of the image, so it ends the run even under ``data.on_error=skip``.
        """
        path = self._root / self._files[index]
        try:
            data = read_file(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened: {error.strerror}; mend it and resume the run") from error
        except UserError as error:
            raise ImageError(str(error).removeprefix(f"{path} ")) from error
        notes: list[str] = []
        image = decode_image(data, self._dtype, self._channels, notes)
        self._notes.add(str(path), notes)
        return Example(image, int(self._labels[index]))

    def where(self, index: int) -> str:
        """The file's path."""
        return str(self._root / self._files[index])

    def identity(self) -> dict[str, str | int]:
        """Hashes path, size, time of change and label of all files, which are not opened.

        Paths are relative, so the folder may be moved.
        """
        digest = hashlib.sha256()
        for file, label in zip(self._files, self._labels, strict=True):
            path = self._root / file
            try:
                found = path.stat()
            except OSError as error:
                raise UserError(f"{path}: cannot be opened: {error.strerror}; mend it and resume the run") from error
            # A name may hold any byte but 0.
            digest.update(os.fsencode(file) + f"\0{found.st_size} {found.st_mtime_ns} {label}\n".encode())
        return {"source": "folder", "files": len(self._files), "sha256": digest.hexdigest()}


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields the folders under a root, itself among them, each with the names of its files.

    Links are followed, but no folder is entered within itself: a link to a folder above would lead there again and
    again. Names that start with a dot are passed over.
    """
    above: dict[str, frozenset[tuple[int, int]]] = {str(root): frozenset()}
    for folder, folders, files in os.walk(str(root), onerror=_raise_unreadable, followlinks=True):
        here = above.pop(folder) | {_identify(folder)}
        folders[:] = [entry for entry in folders if not entry.startswith(".")]
        folders[:] = [entry for entry in folders if _identify(os.path.join(folder, entry)) not in here]
        above |= {os.path.join(folder, entry): here for entry in folders}
        yield folder, [file for file in files if not file.startswith(".")]


def _identify(folder: str) -> tuple[int, int]:
    try:
        found = os.stat(folder)
    except OSError as error:
        _raise_unreadable(error)
    return found.st_dev, found.st_ino


def _count_ignored(others: collections.Counter[str]) -> str:
    """Says how many files have other suffixes, and which, the most frequent first; empty for none."""
    if not others:
        return ""
    kinds = sorted(others, key=lambda kind: (-others[kind], kind))
    named = ", ".join(kinds[:_KINDS_SHOWN]) + (", ..." if len(kinds) > _KINDS_SHOWN else "")
    files = "1 file" if others.total() == 1 else f"{others.total():,} files"
    return f"{files} of other kinds ignored: {named}"


def _raise_unreadable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: the folder cannot be listed: {error.strerror}") from error
