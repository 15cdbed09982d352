"""Data sets of TensorFlow Datasets (TFDS), whose packages are imported only when one is opened."""

import contextlib
import difflib
import importlib.util
import logging
import os
import queue
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax.data.sources.protocol import Example, Source
from ddim_jax.data.transforms import DecodingNotes, as_values, decode_image
from ddim_jax.errors import UserError
from ddim_jax.names import PixelType

# From here TFDS copies data sets that are prepared already.
_TFDS_HOST = ("storage.googleapis.com", 443)

# Seconds in which a host must answer.
_TIMEOUT = 10

# Hosts that are tried, so that many hosts take no longer than one.
_MAX_HOSTS = 8

_PORTS = {"http": 80, "https": 443, "ftp": 21}


class TfdsSource(Source):
    """One split of a TensorFlow Datasets (TFDS) data set, stored as ArrayRecord files.

    On first use TFDS downloads and prepares the data set into ``data.dir``; that alone needs
    TensorFlow. A prepared one is read without it. Of each record only the image and the label are
    decoded, the image by the same decoder as files are.
    """

    def __init__(
        self,
        name: str,
        split: str,
        directory: str = "",
        dtype: PixelType = "uint8",
        channels: int = 3,
        vector: str = "",
    ) -> None:
        """Opens a split, after preparing the data set if need be.

        Args:
            name: TFDS name, e.g. ``cifar10`` or ``oxford_flowers102:2.1.1``.
            split: e.g. ``train``, ``train[:90%]`` or ``train+test``.
            directory: TFDS data directory; empty means TFDS's own default.
            dtype: type of the images' values.
            channels: how many are wanted: 4 keeps alpha.
            vector: the feature that is the examples' vector: numbers, or a dictionary of attributes, which are put in
                the order of their names, and become -1 and +1 where they are yes or no. Empty for none.

        Raises:
            UserError: unknown name or split, a data set that cannot be prepared or has no
                images of this type, or no such vector.
        """
        import tensorflow_datasets as tfds

        builder = _open_builder(name, directory)
        # TFDS warns of a folder that holds nothing yet.
        with _without_warnings("absl"):
            is_prepared = builder.is_prepared()
        if not is_prepared:
            _prepare(builder, name)
        features = builder.info.features
        image = _feature_name(features, "image", tfds.features.Image, (tfds.features.LabeledImage,))
        label = _feature_name(features, "label", tfds.features.ClassLabel)
        if image is None and dtype != "uint8":
            image = _name_of_array(features)
        if image is None:
            raise UserError(
                f"data.name={name!r}: this TFDS data set has no single image per example; "
                f"its features are {', '.join(sorted(features))}"
            )
        self._is_encoded = isinstance(features[image], tfds.features.Image)
        found = np.dtype(features[image].np_dtype)
        if found == np.float32 and dtype != "float32":
            raise UserError(
                f"data.name={name!r}: its images hold float32 values, not pixels; set data.dtype=float32, or choose "
                "another data set"
            )
        if self._is_encoded and found != np.dtype(dtype):
            raise UserError(f"data.name={name!r}: its images are {found}, data.dtype is {dtype}; set it to {found}")
        # TFDS has a form of its own for floats in PNG files.
        self._is_encoded &= found != np.float32
        self._dtype: PixelType = dtype
        self._channels = channels
        self._notes = DecodingNotes()
        self._vector = vector
        self.vector_size = _size_of_vector(features, vector, name) if vector else 0
        self._records = _open_split(builder, name, split)
        self.name = name
        self.split = split
        self.num_classes = features[label].num_classes if label else 0
        self._image, self._label = image, label
        self._features = tfds.features.FeaturesDict({key: features[key] for key in (image, label, vector) if key})
        self._keep_encoded = {image: tfds.decode.SkipDecoding()} if self._is_encoded else {}
        # The name stands for the records: TFDS gives changed ones another version.
        self._identity = {"source": "tfds", "name": builder.info.full_name, "bytes": int(builder.info.dataset_size)}

    def __len__(self) -> int:
        """The number of examples in the split."""
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes record ``index`` of the split."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}, split {self.split} has {len(self)} examples; there is no number {index}")
        values: Any = self._features.deserialize_example_np(self._records[index], decoders=self._keep_encoded)
        stored = values[self._image]
        if self._is_encoded:
            notes: list[str] = []
            image = decode_image(stored, self._dtype, self._channels, notes)
            if notes:
                self._notes.add(self.where(index), notes)
        else:
            image = as_values(stored if stored.ndim == 3 else stored[..., None], self._dtype)
        label = int(values[self._label]) if self._label else 0
        return Example(image, label, _vector(values[self._vector]) if self._vector else None)

    def where(self, index: int) -> str:
        """The split and the record's number in it."""
        return f"{self.name}, split {self.split}, example {index}"

    def identity(self) -> dict[str, str | int]:
        """The full name with version, the size and the split."""
        vector = {"vector": self._vector} if self._vector else {}
        return {**self._identity, "split": self.split, **vector}


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
            "pip install 'ddim_jax[tfds]', set data.dir to where it is prepared, or read images by data.source=folder"
        )
    _check_reachable(builder, name)
    import tensorflow as tf

    # TensorFlow would otherwise take all memory of the GPUs that JAX is going to use.
    tf.config.set_visible_devices([], "GPU")
    try:
        # One for each attempt to download a file.
        with _without_warnings("urllib3.connectionpool"):
            builder.download_and_prepare(file_format="array_record")
    except ImportError as error:
        # Some data sets need packages of their own to be prepared.
        package = (error.name or "").split(".")[0] or _first_line(error)
        raise UserError(f"data.name={name!r}: preparing it needs the package {package}; install that") from error
    except Exception as error:
        # It runs the data set's own code and downloads: anything may be raised here.
        no_network = isinstance(error, ConnectionError) or type(error).__name__ == "ConnectionError"
        hint = "; mend the network, or read images by data.source=folder" if no_network else ""
        raise UserError(
            f"data.name={name!r} could not be prepared in {builder.data_dir}: {_first_line(error)}{hint}"
        ) from error


def _check_reachable(builder: Any, name: str) -> None:
    """Checks that some host is there from which a data set can come.

    TFDS itself tries each file eleven times in some minutes. Nothing is checked where it may do without network: it
    knows no addresses, a proxy finds the hosts, or files were downloaded before.

    Raises:
        UserError: no host answers.
    """
    hosts = set()
    for url in builder.url_infos or {}:
        parts = urllib.parse.urlsplit(url)
        if parts.hostname and parts.scheme in _PORTS:
            hosts.add((parts.hostname, parts.port or _PORTS[parts.scheme]))
    # Folders of other kinds, such as gs://, are not looked into: a file that does not exist holds nothing.
    root = Path(builder.data_dir).parents[builder.info.full_name.count("/")]
    downloaded = any(path.is_file() for path in (root / "downloads").rglob("*"))
    if not hosts or downloaded or urllib.request.getproxies().keys() & {*_PORTS, "all"}:
        return
    tried = [_TFDS_HOST, *sorted(hosts - {_TFDS_HOST})][:_MAX_HOSTS]
    if _any_answers(tried):
        return
    named = ", ".join(host for host, _ in tried)
    raise UserError(
        f"data.name={name!r} is not prepared in {builder.data_dir}, and it cannot be downloaded: no answer from "
        f"{named}; connect to the network, set data.dir to where it is prepared, or read images by data.source=folder"
    )


def _any_answers(hosts: list[tuple[str, int]]) -> bool:
    """Whether one of some hosts (name, port) can be connected to within the time that all have together."""
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def connect(host: tuple[str, int]) -> None:
        try:
            socket.create_connection(host, _TIMEOUT).close()
        except OSError:
            answers.put(False)
        else:
            answers.put(True)

    for host in hosts:
        # Looking up a name knows no limit of time, so nobody waits for these threads, not even the program's end.
        threading.Thread(target=connect, args=(host,), daemon=True).start()
    end = time.monotonic() + _TIMEOUT
    try:
        return any(answers.get(timeout=max(0, end - time.monotonic())) for _ in hosts)
    except queue.Empty:
        return False


@contextlib.contextmanager
def _without_warnings(logger: str) -> Iterator[None]:
    """Hides the warnings of a logger meanwhile: what fails in the end is told in one line."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


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
    """Finds the key of the one feature of a type; ``preferred`` if it is one of several, else None."""
    names = [key for key in features if isinstance(features[key], kind) and not isinstance(features[key], but_not)]
    if preferred in names:
        return preferred
    return names[0] if len(names) == 1 else None


def _name_of_array(features: Any) -> str | None:
    """Finds the one feature that is an array [h, w] or [h, w, c] of numbers; ``image`` if it is one of several."""
    import tensorflow_datasets as tfds

    names = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Tensor) and len(feature.shape) in (2, 3)  # pyright: ignore[reportArgumentType]
    ]
    return "image" if "image" in names else names[0] if len(names) == 1 else None


def _size_of_vector(features: Any, name: str, data_set: str) -> int:
    """The length of a feature as a vector.

    Raises:
        UserError: there is none of this name, or it is no vector.
    """
    if name not in features:
        raise UserError(
            f"data.vector={name!r}: the TFDS data set {data_set} has no such feature; its features are "
            f"{', '.join(sorted(features))}"
        )
    feature = features[name]
    parts: list[Any] = list(feature.values()) if hasattr(feature, "values") else [feature]
    for part in parts:
        shape: Any = getattr(part, "shape", None)
        kind = np.dtype(getattr(part, "np_dtype", object)).kind
        if shape is None or len(shape) > 1 or None in shape or kind not in "biuf":
            raise UserError(f"data.vector={name!r}: this feature of {data_set} is no vector of a fixed length")
    return sum(part.shape[0] if part.shape else 1 for part in parts)


def _vector(value: Any) -> np.ndarray:
    """A feature as a vector: numbers as they are, yes and no as +1 and -1, those of a dictionary by name."""
    parts = [value[key] for key in sorted(value)] if isinstance(value, dict) else [value]
    arrays = [np.atleast_1d(np.asarray(part)) for part in parts]
    return np.concatenate([2.0 * part - 1 if part.dtype == bool else part for part in arrays]).astype(np.float32)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
