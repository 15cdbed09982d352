"""Where images come from: scikit-learn's digits, a folder of image files, or a TFDS data set.

A source is a random-access sequence: ``source[i]`` is example i, always the same one. Training
needs no more than that to be repeatable, since the order of the examples is made elsewhere, from
the seed (``pipeline.py``). Pixels are as stored, uint8 of any size; ``transforms.py`` makes them
equal. ``data.split`` takes a part of any source (``splits.py``).
"""

import difflib
import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ddim_jax.config import DataConfig
from ddim_jax.data.splits import split_indices
from ddim_jax.data.transforms import decode_image
from ddim_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Example(NamedTuple):
    """An image as stored, uint8 [h, w, 1 or 3], and its class (0 where the source has none)."""

    image: np.ndarray
    label: int


class Source(Protocol):
    """A random-access sequence of examples; subclass it, or write a class with these members.

    Attributes:
        name: what to call the data set in logs and records.
        num_classes: number of classes; labels lie in 0 ... num_classes - 1. 0 means no labels.
        prepared: images are cropped and resized already, and have their final number of channels.
    """

    name: str
    num_classes: int
    prepared: bool = False

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Example ``index``; must be safe to call from several threads.

        Raises:
            ImageError: this image cannot be read, whoever asks and whenever.
            IndexError: there is no such example.
        """
        ...

    def where(self, index: int) -> str:
        """The file or record that holds example ``index``, for messages."""
        return f"{self.name}, example {index}"

    def identity(self) -> dict[str, str | int]:
        """Says which examples these are: images kept on disk are used for no others (``prepared.py``).

        Two sources whose identities are equal have the same examples in the same order.
        """
        raise NotImplementedError(f"{type(self).__name__} has no identity(), so its images cannot be kept on disk")

    def describe(self) -> str:
        """One line for the log: name, number of images, number of classes."""
        classes = f"{self.num_classes} classes" if self.num_classes else "no labels"
        return f"{self.name}: {len(self):,} images, {classes}"


def open_source(config: DataConfig) -> Source:
    """Opens the part ``data.split`` of the source that ``data.source`` names.

    Raises:
        UserError: it does not exist, is empty, or needs a package that is not installed.
    """
    if config.source == "digits":
        return DigitsSource(config.split)
    if config.source == "folder":
        if not config.path:
            # Not when configs are checked: jobs that open no data need no path.
            raise UserError("data.path='': name the folder of images")
        return FolderSource(config.path, config.name, config.split)
    return TfdsSource(config.name, config.split, config.dir)


def check_labels(source: Source, num_classes: int) -> None:
    """Checks that a class-conditional network fits the source's labels.

    Args:
        source: where the labels come from.
        num_classes: ``model.num_classes``; 0 (an unconditional network) fits every source.

    Raises:
        UserError: the source has another number of classes, or none.
    """
    if num_classes in (0, source.num_classes):
        return
    has = f"{source.num_classes} classes" if source.num_classes else "no labels"
    raise UserError(f"model.num_classes={num_classes}, but {source.name} has {has}; set it to {source.num_classes}")


class DigitsSource(Source):
    """The 1,797 handwritten digits bundled with scikit-learn: 8x8, grey, ten classes, no download.

    The stored grey levels 0 ... 16 become round(v * 255 / 16), halves rounded up.
    """

    def __init__(self, split: str = "train") -> None:
        """Loads the digits (115 kB).

        Args:
            split: ``train`` is all of them, ``train[:90%]`` a slice; see ``splits.py``.

        Raises:
            UserError: scikit-learn is missing, or the split cannot be used.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise UserError("data.source=digits needs scikit-learn: pip install scikit-learn") from error
        digits: Any = load_digits()
        self.name = "digits"
        self.num_classes = 10
        self._split = split
        chosen = split_indices(split, len(digits.images), self.name)
        self._images = np.floor(digits.images[chosen] * (255 / 16) + 0.5).astype(np.uint8)[..., None]
        self._labels = digits.target[chosen]

    def __len__(self) -> int:
        """1,797, or as many as are in the slice."""
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        """Digit ``index``: uint8 [8, 8, 1]."""
        return Example(self._images[index], int(self._labels[index]))

    def identity(self) -> dict[str, str | int]:
        """The split: the digits themselves never change."""
        return {"source": "digits", "split": self._split}


class FolderSource(Source):
    """All PNG, JPEG, WebP and BMP files under a folder, at any depth, ordered by path.

    The sub-folders of the first level are the classes, numbered in sorted order, if every image
    lies in one; if some image lies in the root itself, the images have no labels. Links are
    followed; names that start with a dot are ignored, as are files with other suffixes.

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
            relative += [
                os.path.normpath(os.path.join(prefix, file))
                for file in files
                if file.lower().endswith(SUFFIXES) and not file.startswith(".")
            ]
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
        """Number of image files."""
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
        """A hash over path, size, time of change and label of all files, which are not opened.

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


class TfdsSource(Source):
    """One split of a TensorFlow Datasets (TFDS) data set, stored as ArrayRecord files.

    On first use TFDS downloads and prepares the data set into ``data.dir``; that alone needs
    TensorFlow. A prepared one is read without it. Of each record only the image and the label are
    decoded, the image by the same decoder as files are.
    """

    def __init__(self, name: str, split: str, directory: str = "") -> None:
        """Opens a split, after preparing the data set if need be.

        Args:
            name: TFDS name, e.g. ``cifar10`` or ``oxford_flowers102:2.1.1``.
            split: e.g. ``train``, ``train[:90%]`` or ``train+test``.
            directory: TFDS data directory; empty means TFDS's own default.

        Raises:
            UserError: unknown name or split, a data set that cannot be prepared or has no
                images.
        """
        import tensorflow_datasets as tfds

        builder = _open_builder(name, directory)
        if not builder.is_prepared():
            _prepare(builder, name)
        features = builder.info.features
        image = _feature_name(features, "image", tfds.features.Image, (tfds.features.LabeledImage,))
        label = _feature_name(features, "label", tfds.features.ClassLabel)
        if image is None:
            raise UserError(
                f"data.name={name!r}: this TFDS data set has no single image per example; "
                f"its features are {', '.join(sorted(features))}"
            )
        if np.dtype(features[image].np_dtype) == np.float32:
            raise UserError(f"data.name={name!r}: its images hold float32 values, not pixels; choose another data set")
        self._records = _open_split(builder, name, split)
        self.name = name
        self.split = split
        self.num_classes = features[label].num_classes if label else 0
        self._image, self._label = image, label
        self._features = tfds.features.FeaturesDict({key: features[key] for key in (image, label) if key})
        self._keep_encoded = {image: tfds.decode.SkipDecoding()}
        # The name stands for the records: TFDS gives changed ones another version.
        self._identity = {"source": "tfds", "name": builder.info.full_name, "bytes": int(builder.info.dataset_size)}

    def __len__(self) -> int:
        """Number of examples in the split."""
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes record ``index`` of the split."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}, split {self.split} has {len(self)} examples; there is no number {index}")
        values: Any = self._features.deserialize_example_np(self._records[index], decoders=self._keep_encoded)
        return Example(decode_image(values[self._image]), int(values[self._label]) if self._label else 0)

    def where(self, index: int) -> str:
        """The split and the record's number in it."""
        return f"{self.name}, split {self.split}, example {index}"

    def identity(self) -> dict[str, str | int]:
        """Full name with version, size and split."""
        return {**self._identity, "split": self.split}


def _open_builder(name: str, directory: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=os.path.expanduser(directory) or None)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see tensorflow.org/datasets/catalog"
        place = f" and {directory} has no such data set" if directory else ""
        raise UserError(f"data.name={name!r}: TFDS does not know this name{place}; {hint}") from error
    except (ValueError, AssertionError, RuntimeError, ImportError) as error:
        raise UserError(f"data.name={name!r}: TFDS cannot open it: {_first_line(error)}") from error


def _prepare(builder: Any, name: str) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"data.name={name!r} is not prepared in {builder.data_dir}, and preparing it needs TensorFlow: "
            "pip install 'ddim_jax[tfds]', or set data.dir to where it is prepared"
        )
    import tensorflow as tf

    # TensorFlow would otherwise take all memory of the GPUs that JAX is going to use.
    tf.config.set_visible_devices([], "GPU")
    try:
        builder.download_and_prepare(file_format="array_record")
    except ImportError as error:
        # Some data sets need packages of their own to be prepared.
        package = (error.name or "").split(".")[0] or _first_line(error)
        raise UserError(f"data.name={name!r}: preparing it needs the package {package}; install that") from error
    except Exception as error:
        # It runs the data set's own code and downloads: anything may be raised here.
        raise UserError(
            f"data.name={name!r} could not be prepared in {builder.data_dir}: {_first_line(error)}"
        ) from error


def _open_split(builder: Any, name: str, split: str) -> Any:
    import tensorflow_datasets as tfds

    splits = ", ".join(builder.info.splits)
    try:
        return builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except NotImplementedError as error:
        raise UserError(
            f"data.name={name!r} is prepared in {builder.data_dir} in a format without random access; "
            "set data.dir to another folder, to prepare it there as array_record"
        ) from error
    except (ValueError, AssertionError, KeyError) as error:
        raise UserError(
            f"split {split!r} is no split of {name}, or an empty one; it has: {splits} (and slices such as train[:90%])"
        ) from error


def _feature_name(features: Any, preferred: str, kind: type, but_not: tuple[type, ...] = ()) -> str | None:
    """The key of the one feature of a type; ``preferred`` if it is one of several, else None."""
    names = [key for key in features if isinstance(features[key], kind) and not isinstance(features[key], but_not)]
    if preferred in names:
        return preferred
    return names[0] if len(names) == 1 else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
