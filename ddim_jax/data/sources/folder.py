"""A folder of image files."""

import hashlib
import os
from pathlib import Path

import numpy as np

from ddim_jax.data.sources.protocol import Example, Source
from ddim_jax.data.splits import split_indices
from ddim_jax.data.transforms import decode_image
from ddim_jax.errors import UserError
from ddim_jax.workdir import summary_pictures

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class FolderSource(Source):
    """All PNG, JPEG, WebP and BMP files under a folder, at any depth, ordered by path.

    The sub-folders of the first level are the classes, numbered in sorted order, if every image
    lies in one; if some image lies in the root itself, the images have no labels. Links are
    followed; names that start with a dot are ignored, as are files with other suffixes. In a folder that
    one of our jobs wrote, pictures that sum up others (``grid.png``) are no images.

    A split is a slice of this order. So ``train[:162770]`` of CelebA's unzipped archive
    (``000001.jpg`` ... ``202599.jpg``) is its official training partition,
    ``train[162770:182637]`` the validation partition and ``train[182637:]`` the test partition.
    But a folder *of classes* is ordered class by class: a slice of it holds some classes alone.
    The numbers of the classes are those of the whole folder, whatever the slice.
    """

    def __init__(self, path: str, name: str = "", split: str = "train") -> None:
        """Lists the images; none is opened.

        Args:
            path: the folder; ``~`` is understood.
            name: what to call it; the folder's own name by default.
            split: ``train`` is the whole folder, ``train[:90%]`` a slice; see ``splits.py``.

        Raises:
            UserError: no such folder, no image in it, or a split that cannot be used.
        """
        self._root = Path(path).expanduser()
        if not self._root.is_dir():
            raise UserError(f"data.path={path!r} is not a folder; name the folder of images")
        # Paths are kept as strings: a Path takes several times the memory, and sets have millions.
        relative = []
        for folder, folders, files in os.walk(self._root, onerror=_raise_unreadable, followlinks=True):
            folders[:] = [entry for entry in folders if not entry.startswith(".")]
            prefix = os.path.relpath(folder, self._root)
            images = [file for file in files if file.lower().endswith(SUFFIXES) and not file.startswith(".")]
            if "run.json" in files:
                summaries = summary_pictures(folder, images)
                images = [file for file in images if file not in summaries]
            relative += [os.path.normpath(os.path.join(prefix, file)) for file in images]
        if not relative:
            raise UserError(f"data.path={path!r} has no images; looked for {', '.join(SUFFIXES)} at any depth")
        # By parts, so that the images of a class follow each other: "a/b" comes before "a-b/c".
        self._files = sorted(relative, key=lambda file: file.split(os.sep))
        parts = [file.split(os.sep, 1) for file in self._files]
        self.classes: list[str] = []
        if all(len(part) == 2 for part in parts):
            self.classes = sorted({part[0] for part in parts})
        number = {folder: label for label, folder in enumerate(self.classes)}
        self._labels = np.array([number.get(part[0], 0) for part in parts], np.int32)
        self.num_classes = len(self.classes)
        self.name = name or self._root.resolve().name
        chosen = split_indices(split, len(self._files), self.name)
        self._files = [self._files[index] for index in chosen]
        self._labels = self._labels[chosen]

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
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be opened: {error.strerror}; mend it and resume the run") from error
        return Example(decode_image(data), int(self._labels[index]))

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


def _raise_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: the folder cannot be listed: {error.strerror}") from error
