"""Sets of images to measure or to compare with: a data set, a folder of files or arrays, an ``.npz`` of images."""

import concurrent.futures
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL

from ddim_jax.config import DataConfig
from ddim_jax.data.prepared import open_images
from ddim_jax.data.reading import load_images
from ddim_jax.data.sources import FolderSource
from ddim_jax.data.transforms import ImageError, set_channels
from ddim_jax.digests import digest_of_facts
from ddim_jax.errors import UserError
from ddim_jax.images import png_holds
from ddim_jax.npy import array_form, load_array
from ddim_jax.npz import load_arrays
from ddim_jax.workdir import is_name_of_image

# Names under which programs save images: NumPy's own for unnamed arrays, and some others'.
_IMAGE_ARRAYS = ("arr_0", "images")


class Loaded(NamedTuple):
    """Images of a set.

    Attributes:
        index: int64 [n], their numbers in the set.
        image: [n, h, w, c], of the type ``data.dtype``.
    """

    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]
    image: np.ndarray


class ImageSet(Protocol):
    """Images by number, all of one shape; subclass it.

    Attributes:
        name: what to call the set in names of files and rows.
        identity: says which pixels these are, as JSON's types: sets with equal ones hold equal images.
    """

    name: str
    identity: dict[str, Any]

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def load(self, indices: np.ndarray) -> Loaded:
        """Reads images; those that ``data.on_error=skip`` leaves out are missing from the result.

        Raises:
            UserError: one cannot be used.
        """
        ...

    def batches(self, indices: np.ndarray, size: int) -> Iterator[Loaded]:
        """Reads images ``size`` at a time, the next ones while the caller handles these; none of them empty."""
        parts = [indices[start : start + size] for start in range(0, len(indices), size)]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            ahead = None
            for part in [*parts, None]:
                reading = None if part is None else pool.submit(self.load, part)
                # Where all of a part are left out there is nothing to handle.
                if ahead is not None and len((loaded := ahead.result()).index):
                    yield loaded
                ahead = reading


def open_image_set(path: str, data: DataConfig, split: str = "", key: str = "eval.images") -> ImageSet:
    """Opens a folder, an ``.npz`` of images, or the data set.

    Args:
        path: folder or ``.npz``, whose images are taken as they are, without crop or resize; empty for the data set.
        data: the data set and how its images are prepared; of a folder, the number of channels and threads.
        split: of the data set; ``data.split`` when empty.
        key: the config's key that ``path`` is the value of, for messages.

    Raises:
        UserError: it does not exist, or has no images.
    """
    if not path:
        return DataImages(data, split)
    found = pathlib.Path(path).expanduser()
    if found.is_dir():
        arrays = sorted(found.rglob("*.npy"))
        are_images = any(is_name_of_image(file.name) for file in arrays) or not png_holds(data.dtype, data.channels)
        return ArrayFolder(path, arrays, data, key) if arrays and are_images else FolderImages(path, data, key)
    if not found.exists():
        raise UserError(f"{key}={path!r} does not exist; name a folder of images, or an .npz")
    try:
        return ArrayImages(path, data)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


class DataImages(ImageSet):
    """The images that a config trains on, prepared as the network sees them, without flips."""

    def __init__(self, data: DataConfig, split: str = "") -> None:
        """Opens the data set.

        Args:
            data: where the images are and how they are prepared.
            split: instead of ``data.split``, unless empty.

        Raises:
            UserError: see :func:`~ddim_jax.data.sources.open_source`.
        """
        self._data = data
        self._source = open_images(data, split or None)
        self.name = f"{self._source.name}-{split or data.split}"
        self.identity = {
            "data": self._source.identity(),
            "split": split or data.split,
            "crop": data.crop,
            "resize": data.resize,
            "image_size": data.image_size,
            "channels": data.channels,
            **({} if data.dtype == "uint8" else {"dtype": data.dtype}),
            "decoder": _decoder(),
        }

    def __len__(self) -> int:
        """Returns the number of examples, unusable ones among them."""
        return len(self._source)

    def load(self, indices: np.ndarray) -> Loaded:
        """Reads and prepares examples."""
        images = load_images(self._source, self._data, indices)
        return Loaded(images.index, images.image)


class FolderImages(ImageSet):
    """All images under a folder, ordered by path, as they are."""

    def __init__(self, path: str, data: DataConfig, key: str) -> None:
        """Lists the files and opens the first.

        Args:
            path: the folder.
            data: its ``channels`` say how many the images shall have; ``threads`` read them.
            key: the config's key that names the folder.

        Raises:
            UserError: no such folder, no image in it, or the first cannot be used.
        """
        self._source = FolderSource(path, key=key)
        self._data = data
        self._threads = data.threads
        self.name = self._source.name
        self._shape = self._read(0).shape
        self.identity = {"data": self._source.identity(), "channels": data.channels, "decoder": _decoder()}

    def __len__(self) -> int:
        """Returns the number of image files."""
        return len(self._source)

    def load(self, indices: np.ndarray) -> Loaded:
        """Reads files."""
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            images = list(pool.map(self._read, indices.tolist()))
        for index, image in zip(indices.tolist(), images, strict=True):
            if image.shape != self._shape:
                raise UserError(
                    f"{self._source.where(index)} is {image.shape[1]}x{image.shape[0]} pixels, the first image of the "
                    f"folder {self._shape[1]}x{self._shape[0]}: make them equal, or open it by data.source=folder"
                )
        return Loaded(np.asarray(indices, np.int64), np.stack(images))

    def _read(self, index: int) -> np.ndarray:
        try:
            image = self._source[index].image
        except ImageError as error:
            raise ImageError(error.reason, self._source.where(index)) from error
        where = self._source.where(index)
        if image.dtype != np.dtype(self._data.dtype):
            raise UserError(
                f"{where} holds {image.dtype}, but data.dtype={self._data.dtype}; set that to {image.dtype}"
            )
        if image.shape[-1] == self._data.channels:
            return image
        if image.shape[-1] > self._data.channels and self._data.channels != 1:
            raise UserError(
                f"{where} has {image.shape[-1]} channels, but data.channels={self._data.channels}; set it to those"
            )
        if image.shape[-1] > self._data.channels:
            raise UserError(f"{where} is in colour, but data.channels=1; set it to 3")
        return set_channels(image, self._data.channels)


class ArrayFolder(ImageSet):
    """All ``.npy`` files under a folder, ordered by path: an image [h, w, c] each, or [h, w] of grey ones."""

    def __init__(self, path: str, files: Sequence[pathlib.Path], data: DataConfig, key: str) -> None:
        """Opens all files to see their headers.

        Args:
            path: the folder.
            files: the ``.npy`` files in it.
            data: says which type and how many channels they shall have; ``threads`` read them.
            key: the config's key that names the folder.

        Raises:
            UserError: one of them is no whole array, of another type, or of another shape than the first.
        """
        self._files = list(files)
        self._threads = data.threads
        self.name = pathlib.Path(path).expanduser().absolute().name
        with concurrent.futures.ThreadPoolExecutor(data.threads) as pool:
            forms = list(pool.map(array_form, self._files))
        expected = None
        for file, form in zip(self._files, forms, strict=True):
            if form is None:
                raise UserError(f"{key}: {file} is no whole .npy of numbers: copy it again, or move it away")
            shape = form.shape if len(form.shape) == 3 else (*form.shape, 1)
            if len(shape) != 3 or shape[-1] != data.channels or form.dtype != np.dtype(data.dtype):
                raise UserError(
                    f"{key}: {file} holds {form.dtype} {list(form.shape)}, but images [h, w, {data.channels}] of "
                    f"{data.dtype} are meant (data.channels, data.dtype)"
                )
            expected = expected or shape
            if shape != expected:
                raise UserError(
                    f"{key}: {file} is {shape[1]}x{shape[0]}, the first image of the folder "
                    f"{expected[1]}x{expected[0]}: make them equal"
                )
        self.identity = {
            "arrays": digest_of_facts(
                {file.relative_to(pathlib.Path(path).expanduser()).as_posix(): _digest(file) for file in files}
            ),
        }

    def __len__(self) -> int:
        """Returns the number of files."""
        return len(self._files)

    def load(self, indices: np.ndarray) -> Loaded:
        """Reads files."""
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            images = list(pool.map(lambda index: load_array(self._files[index]), indices.tolist()))
        images = [image if image.ndim == 3 else image[..., None] for image in images]
        return Loaded(np.asarray(indices, np.int64), np.stack(images))


class ArrayImages(ImageSet):
    """The array ``arr_0`` or ``images`` of an ``.npz``: [n, h, w, c] of the data's type, or [n, h, w] if grey."""

    def __init__(self, path: str, data: DataConfig | None = None) -> None:
        """Reads the file.

        Args:
            path: the file.
            data: says which type the images have, and how many channels if neither 1 nor 3; None for uint8.

        Raises:
            UserError: no such file, or no such array in it.
        """
        data = data or DataConfig()
        file = pathlib.Path(path).expanduser()
        arrays = load_arrays(file)
        names = [name for name in _IMAGE_ARRAYS if name in arrays]
        if not names:
            raise UserError(f"{file} has no images: expected an array arr_0 or images, found {', '.join(arrays)}")
        images = arrays[names[0]]
        images = images[..., None] if images.ndim == 3 else images
        mistake = _what_is_wrong(images, data)
        if mistake:
            found = f"{file} holds {images.dtype} {list(images.shape)}"
            channels = "1 or 3" if data.channels in (1, 3) else data.channels
            raise UserError(f"{found}; images must be {data.dtype} [n, h, w, {channels}]: {mistake}")
        self._images = images
        self.name = file.stem
        with file.open("rb") as opened:
            self.identity = {"npz": hashlib.file_digest(opened, "sha256").hexdigest()}
        if data.dtype != "uint8":
            self.identity["dtype"] = data.dtype

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._images)

    def load(self, indices: np.ndarray) -> Loaded:
        """Copies images."""
        return Loaded(np.asarray(indices, np.int64), self._images[indices])


def _what_is_wrong(images: np.ndarray, data: DataConfig) -> str:
    """What keeps an array from being images [n, h, w, c] of the data's type, and what to do; empty if nothing."""
    if images.ndim != 4:
        return "there must be four axes"
    allowed = (1, 3) if data.channels in (1, 3) else (data.channels,)
    if images.shape[-1] not in allowed:
        if images.shape[1] in allowed:
            return "channels come last: np.moveaxis(images, 1, -1)"
        return "one channel, or three" if len(allowed) > 1 else "or set data.channels"
    if not len(images):
        return "there are none"
    if images.dtype == np.dtype(data.dtype):
        return ""
    if images.dtype in (np.uint8, np.uint16, np.float32):
        return f"set data.dtype={images.dtype}, or convert them"
    return "scale them to 0 ... 255 and round them, as one who saves them would" if data.dtype == "uint8" else "convert"


def _digest(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def spread_indices(num: int, count: int) -> np.ndarray:
    """Picks ``count`` of the numbers 0 ... num - 1, ascending and evenly spread: int64 [min(count, num)].

    Folders are often ordered by class, so that the first images are no fair sample of all.
    """
    count = min(count, num)
    return np.arange(count, dtype=np.int64) * num // max(1, count)


def _decoder() -> str:
    """Names what decodes and resizes images: other programs' pixels may differ by a grey level."""
    return f"pillow {PIL.__version__}"
