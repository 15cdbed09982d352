"""Images in one array: a ``.npy`` or ``.npz`` file, through a memory map, or what a Python program has in memory."""

from typing import NamedTuple

import numpy as np

from ddim_jax.config import DataConfig
from ddim_jax.data.sources.array_files import ArrayFile, image_array
from ddim_jax.data.sources.protocol import Example, Source
from ddim_jax.data.splits import split_indices
from ddim_jax.data.transforms import ImageError, as_values, check_type
from ddim_jax.errors import UserError, shown
from ddim_jax.names import PixelType

# What the images are called in an .npz that holds more than one array: by us, by NumPy where nobody says, by Keras.
_IMAGES = ("images", "image", "arr_0", "x_train", "x")
_LABELS = ("labels", "label")

# By number of dimensions, images.
_DIMENSIONS = (3, 4)


class InMemory(NamedTuple):
    """Arrays of a Python program, which a config means by ``data.name``.

    Attributes:
        images: [n, h, w, c] or [n, h, w].
        labels: [n], or None.
        vectors: [n, d], or None.
        paired: [n, h', w', c'], or None.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    vectors: np.ndarray | None = None
    paired: np.ndarray | None = None


# By ``data.name``, which has a digest of their contents; of the source ``array`` without ``data.path``.
IN_MEMORY: dict[str, InMemory] = {}


class ArraySource(Source):
    """Images that are the rows of an array, of any size; none is read before it is asked for."""

    def __init__(self, config: DataConfig) -> None:
        """Opens the array that ``data.path`` names, or one in memory.

        Raises:
            UserError: there is none, it holds no images of ``data.dtype``, or the labels do not fit. (Sizes and numbers
                of channels are looked at where images are prepared, as of every source.)
        """
        memory = None if config.path else IN_MEMORY.get(config.name)
        if memory is not None:
            self._where = config.name
            self._identity: dict[str, str | int] = {"source": "array", "content": config.name}
            images, labels = memory.images, memory.labels
        elif not config.path:
            raise UserError(
                f"data.path='': name the .npy or .npz file of the images (data.name={config.name!r} is in no memory)"
            )
        else:
            file = ArrayFile(config.path, "data.path")
            self._where = str(file.path)
            name = _name_of_images(file, config.path)
            images = file.open(name)
            self._identity = {"source": "array", "file": file.identity(), "images": name}
            labels, identity = _open_labels(file, config.labels)
            if identity:
                self._identity["labels"] = identity
        what = f"data.path={shown(config.path)}" if config.path else "the array of images"
        self._images = image_array(images, what)
        self._dtype: PixelType = config.dtype
        try:
            check_type(self._images.dtype, config.dtype)
        except ImageError as error:
            raise UserError(f"{what}: {error.reason}") from error
        num = len(self._images)
        self.num_whole = num
        self.name = config.name or (self._where.rsplit("/", 1)[-1] if config.path else "array")
        self._identity["shape"] = str(tuple(images.shape))
        self._labels, self.num_classes = check_label_array(labels, num, config.labels)
        self.split = config.split
        self._numbers = self.numbers = split_indices(config.split, num, self.name)

    def __len__(self) -> int:
        """The number of images."""
        return len(self._numbers)

    def __getitem__(self, index: int) -> Example:
        """Copies image ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} examples; there is no number {index}")
        number = self._numbers[index]
        label = 0 if self._labels is None else int(self._labels[number])
        return Example(as_values(np.array(self._images[number]), self._dtype), label)

    def where(self, index: int) -> str:
        """The file and the row in it."""
        return f"{self._where}, image {self._numbers[index]}"

    def identity(self) -> dict[str, str | int]:
        """Name, size and time of change of the files, which are not read; of arrays in memory their digest."""
        return {**self._identity, "split": self.split}


def _name_of_images(file: ArrayFile, path: str) -> str:
    """The array of an ``.npz`` that holds the images; empty for a ``.npy``."""
    if not file.names:
        return ""
    named = [name for name in _IMAGES if name in file.names]
    found = named or [name for name in file.names if file.open(name).ndim in _DIMENSIONS]
    if len(found) != 1 and not named:
        raise UserError(
            f"data.path={shown(path)} has the arrays {', '.join(file.names)}; call the one of the images 'images'"
        )
    return found[0]


def _open_labels(file: ArrayFile, labels: str) -> tuple[np.ndarray | None, str]:
    """The labels that ``data.labels`` names, else those of the images' file, if any; and what stands for them."""
    if labels.endswith(".npy"):
        own = ArrayFile(labels, "data.labels")
        return own.open(), own.identity()
    if labels:
        if not file.names:
            raise UserError(f"data.labels={shown(labels)}: the images are in a .npy file; name another .npy for labels")
        return file.open(labels), labels
    return next((file.open(name) for name in _LABELS if name in file.names), None), ""


def check_label_array(labels: np.ndarray | None, num: int, named: str) -> tuple[np.ndarray | None, int]:
    """Labels as int32 [n], and the number of classes: one more than the largest.

    Args:
        labels: as stored; None where there are none.
        num: number of images.
        named: by ``data.labels``, for messages.

    Raises:
        UserError: they are no classes, or not as many as images.
    """
    if labels is None:
        return None, 0
    what = f"data.labels={shown(named or 'labels')}"
    labels = np.array(labels).reshape(len(labels), -1) if labels.ndim else labels
    if labels.ndim != 2 or labels.shape[1] != 1 or labels.dtype.kind not in "iub":
        raise UserError(f"{what}: labels are one whole number for each image, from 0")
    if len(labels) != num:
        raise UserError(f"{what}: there are {len(labels):,} labels for {num:,} images")
    if labels.min() < 0:
        raise UserError(f"{what}: label {int(labels.min())} of image {int(labels[:, 0].argmin())} is negative")
    return labels[:, 0].astype(np.int32), int(labels.max()) + 1
