"""The three sources, the lines that users see when something is wrong, and life without TensorFlow."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import socket
import subprocess
import sys
import time
import types
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddim_jax import names
from ddim_jax.config import DataConfig
from ddim_jax.data.batch_order import BatchOrder
from ddim_jax.data.batches import train_batches
from ddim_jax.data.prepared import open_images, prepare_on_disk
from ddim_jax.data.sources import (
    SOURCES,
    DigitsSource,
    Example,
    FolderSource,
    Source,
    TfdsSource,
    check_labels,
    open_source,
)
from ddim_jax.data.sources import tfds as tfds_source
from ddim_jax.data.transforms import ImageError
from ddim_jax.errors import UserError


def save(path: Path, level: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)


def level(source: Any, index: int) -> int:
    return int(source[index].image[0, 0, 0])


# --- the mapping --------------------------------------------------------------------------------


def test_each_name_has_a_source() -> None:
    assert tuple(SOURCES) == names.choices(names.DataSource)


def test_an_unknown_name_is_refused() -> None:
    misspelt: Any = "tfsd"
    with pytest.raises(UserError, match=r"^data source 'tfsd' does not exist; did you mean 'tfds'\? choose from: "):
        open_source(DataConfig(source=misspelt))


@pytest.mark.parametrize("cache", ["none", "host", "disk"])
def test_a_source_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Any) -> None:
    """A name and a row are all that training needs to find it."""

    class Ramps(Source):
        """Image i is i everywhere, of class i mod 4."""

        name = "ramps"
        num_classes = 4

        def __init__(self, config: DataConfig) -> None:
            self.side = config.image_size

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> Example:
            return Example(np.full((self.side, self.side, 1), index, np.uint8), index % 4)

        def identity(self) -> dict[str, str | int]:
            return {"source": "ramps"}

    monkeypatch.setitem(names._added, names.DataSource, ())
    names.add(names.DataSource, "ramps")
    monkeypatch.setitem(SOURCES, "ramps", Ramps)
    assert tuple(SOURCES) == names.choices(names.DataSource)
    source_name: Any = "ramps"
    config = DataConfig(source=source_name, image_size=5, channels=3, cache=cache, cache_dir=str(tmp_path))
    with contextlib.closing(train_batches(open_images(config), config, BatchOrder(seed=0, batch_size=6))) as batches:
        epoch = list(itertools.islice(batches, 2))
    images = np.concatenate([batch.image for batch in epoch])
    assert images.shape == (12, 5, 5, 3)
    np.testing.assert_array_equal(images, np.broadcast_to(images[:, :1, :1, :1], images.shape))
    levels = images[:, 0, 0, 0]
    assert sorted(levels) == list(range(12))
    np.testing.assert_array_equal(np.concatenate([batch.label for batch in epoch]), levels % 4)


# --- digits -------------------------------------------------------------------------------------


def test_digits() -> None:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    source = open_source(DataConfig(source="digits"))
    assert len(source) == 1797
    assert source.num_classes == 10
    assert source.describe() == "digits: 1,797 images, 10 classes"
    for index in (0, 17, 1796):
        image, label = source[index][:2]
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image[..., 0], np.floor(digits.images[index] * 255 / 16 + 0.5))
        assert label == digits.target[index]
    # 8 / 16 of 255 is 127.5: halves go up.
    values = np.concatenate([source[index].image.ravel() for index in range(100)])
    assert set(np.unique(values)) == {int(v * 255 / 16 + 0.5) for v in range(17)}
    assert 128 in values
    with pytest.raises(IndexError):
        source[1797]


# --- folder -------------------------------------------------------------------------------------


def test_folder_order_classes_and_depth(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "2.png", 20)
    save(tmp_path / "dog" / "deep" / "er" / "1.PNG", 30)
    save(tmp_path / "cat" / "b.bmp", 10)
    save(tmp_path / "cat" / "a.webp", 0)
    save(tmp_path / "cat-like" / "x.png", 15)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    save(tmp_path / "cat" / "._b.png", 99)
    save(tmp_path / ".hidden" / "c.png", 99)
    source = FolderSource(str(tmp_path))
    assert source.classes == ["cat", "cat-like", "dog"]
    files = ["cat/a.webp", "cat/b.bmp", "cat-like/x.png", "dog/2.png", "dog/deep/er/1.PNG"]
    assert [source.where(i) for i in range(len(source))] == [str(tmp_path / file) for file in files]
    assert [example.label for example in source] == [0, 0, 1, 2, 2]
    assert [level(source, i) for i in range(1, 5)] == [10, 15, 20, 30]
    assert source.num_classes == 3
    assert source.describe() == f"{tmp_path.name}: 5 images, 3 classes"


def test_folder_without_classes(tmp_path: Path) -> None:
    save(tmp_path / "b.png", 2)
    save(tmp_path / "a.png", 1)
    save(tmp_path / "sub" / "c.png", 3)
    source = FolderSource(str(tmp_path), name="flat")
    assert [level(source, i) for i in range(3)] == [1, 2, 3]
    assert [source[i].label for i in range(3)] == [0, 0, 0]
    assert source.num_classes == 0
    assert source.describe() == "flat: 3 images, no labels"


def test_folder_follows_links(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a.png", 7)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "class").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert level(FolderSource(str(tmp_path / "root")), 0) == 7


@pytest.mark.parametrize("num_links", [1, 2, 4])
def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path, num_links: int) -> None:
    for number in range(4):
        save(tmp_path / "root" / f"class {number % 2}" / f"{number}.png", number)
    for number in range(num_links):
        above = tmp_path / "root" if number % 2 else tmp_path
        (tmp_path / "root" / f"class {number // 2}" / f"link {number}").symlink_to(above, target_is_directory=True)
    source = FolderSource(str(tmp_path / "root"))
    assert [level(source, i) for i in range(len(source))] == [0, 2, 1, 3]


def test_two_links_to_one_folder_are_both_followed(tmp_path: Path) -> None:
    """Only what lies above is left out: the same images may belong to two classes."""
    save(tmp_path / "elsewhere" / "a.png", 7)
    for name in ("cat", "dog"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [example.label for example in FolderSource(str(tmp_path / "root"))] == [0, 1]


def test_a_folder_holds_all_that_the_decoder_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    suffixes = ["apng", "bmp", "gif", "JFIF", "jpe", "jpeg", "jpg", "png", "tif", "tiff", "webp"]
    for number, suffix in enumerate(suffixes):
        name = "TIFF" if suffix in ("tif", "jpe") else "PNG"  # The content decides, not the suffix.
        Image.new("RGB", (8, 8), (number,) * 3).save(tmp_path / f"{number:02d}.{suffix}", name)
    source = FolderSource(str(tmp_path))
    assert [level(source, i) for i in range(len(source))] == list(range(len(suffixes)))
    assert not caplog.records


def test_other_files_are_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat", "dog"):
        save(tmp_path / name / "a.png", 1)
        for other in ("a.txt", "b.TXT", "c.json", "LICENSE", ".hidden.txt"):
            (tmp_path / name / other).write_text("no image")
    FolderSource(str(tmp_path))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"{tmp_path}: 8 files of other kinds ignored: .txt, .json, no suffix"]


def test_the_hash_of_a_folder_does_not_change(tmp_path: Path) -> None:
    """It names the folder of prepared images, and stands in workdirs and statistics."""
    for number, name in enumerate(["cat/a.png", "cat/b.JPG", "dog/deep/c.jpeg", "dog/d.webp", "dog-like/e.bmp"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(number))
        os.utime(tmp_path / name, ns=(0, 10**18 + number))
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    # By hand, from the files as they lie there: path, size, time and class of each, ordered by the parts of the path.
    lines = [
        "cat/a.png\0000 1000000000000000000 0",
        "cat/b.JPG\0001 1000000000000000001 0",
        "dog/d.webp\0003 1000000000000000003 1",
        "dog/deep/c.jpeg\0002 1000000000000000002 1",
        "dog-like/e.bmp\0004 1000000000000000004 2",
    ]
    expected = hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()
    assert FolderSource(str(tmp_path)).identity() == {"source": "folder", "files": 5, "sha256": expected}


def test_a_stray_image_beside_classes_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        save(tmp_path / f"class {number % 2}" / f"{number}.png", number)
    save(tmp_path / "preview.png", 9)
    source = FolderSource(str(tmp_path), "photos")
    reason = "preview.png lies beside the sub-folders that hold the other 4 images"
    assert source.num_classes == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: no labels, because {reason}; move it away if these are classes"
    ]
    expected = (
        f"model.num_classes=2, but photos has no labels, because {reason}; move it away, or set model.num_classes to 0"
    )
    config = DataConfig(source="folder", image_size=8, cache_dir=str(tmp_path / ".cache"))
    for opened in (source, prepare_on_disk(source, config)):
        with pytest.raises(UserError) as caught:
            check_labels(opened, 2)
        assert str(caught.value) == expected


def test_many_images_beside_sub_folders_are_no_strays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(11):
        save(tmp_path / f"{number}.png", number)
        save(tmp_path / "more" / f"{number}.png", number)
        save(tmp_path / "most" / f"{number}.png", number)
    assert not FolderSource(str(tmp_path)).no_labels_because
    assert not caplog.records


def test_folder_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.path='': name the folder of images"):
        open_source(DataConfig(source="folder"))
    with pytest.raises(UserError, match=r"data.path='.*nowhere' is not a folder; name the folder of images"):
        open_source(DataConfig(source="folder", path=str(tmp_path / "nowhere")))
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"has no images; looked for \.png, .*\.tiff at any .*ignored: \.txt\)"):
        open_source(DataConfig(source="folder", path=str(tmp_path)))


def test_a_vanished_file_is_not_a_bad_image(tmp_path: Path) -> None:
    """Whether a file can be opened may change; skipping it would make runs differ."""
    save(tmp_path / "a.png", 1)
    source = FolderSource(str(tmp_path))
    os.remove(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: cannot be opened: No such file") as caught:
        source[0]
    assert not isinstance(caught.value, ImageError)


# --- labels -------------------------------------------------------------------------------------


def test_check_labels(tmp_path: Path) -> None:
    check_labels(DigitsSource(), 10)
    check_labels(DigitsSource(), 0)
    with pytest.raises(UserError, match=r"model\.num_classes=7, but digits has 10 classes; set it to 10"):
        check_labels(DigitsSource(), 7)
    save(tmp_path / "a.png", 1)
    with pytest.raises(UserError, match=r"model\.num_classes=7, but flat has no labels; set it to 0"):
        check_labels(FolderSource(str(tmp_path), "flat"), 7)


# --- TFDS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def builder_class() -> Any:
    tfds = pytest.importorskip("tensorflow_datasets")

    class DdimTinySquares(tfds.core.GeneratorBasedBuilder):
        """Twelve training and five test squares of constant grey, encoded, so TensorFlow is not needed."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(num_classes=3),
                "caption": tfds.features.Text(),
                "extra": {"score": np.float32},
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples(12), "test": self._generate_examples(5)}

        def _generate_examples(self, num: int) -> Iterator[tuple[int, dict[str, Any]]]:
            for i in range(num):
                buffer = io.BytesIO()
                # One truncated image, the last test one.
                Image.new("P" if i == 1 else "RGB", (8, 8), 0 if i == 1 else (i, i, i)).save(buffer, "PNG")
                data = buffer.getvalue()[: 40 if num == 5 and i == 4 else None]
                yield i, {"image": data, "label": i % 3, "caption": "a square", "extra": {"score": 0.5}}

    return DdimTinySquares


@pytest.fixture(scope="module")
def prepared(builder_class: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = str(tmp_path_factory.mktemp("tfds"))
    builder_class(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory


def test_tfds_reads_a_prepared_data_set(prepared: str) -> None:
    source = open_source(DataConfig(source="tfds", name="ddim_tiny_squares", split="train", dir=prepared))
    assert len(source) == 12
    assert source.num_classes == 3
    assert source.where(3) == "ddim_tiny_squares, split train, example 3"
    levels = [level(source, i) for i in range(12)]
    # The palette image of level 1 is black; TFDS's own order is a fixed shuffle.
    assert sorted(levels) == [0, 0, *range(2, 12)]
    assert all(source[i].image.shape == (8, 8, 3) and source[i].image.dtype == np.uint8 for i in range(12))
    assert all(source[i].label == levels[i] % 3 for i in range(12) if levels[i] > 1)
    assert [level(source, i) for i in range(12)] == levels
    with pytest.raises(IndexError):
        source[12]


def test_tfds_slices(prepared: str) -> None:
    whole = TfdsSource("ddim_tiny_squares", "train", prepared)
    half = TfdsSource("ddim_tiny_squares:1.0.0", "train[50%:]", prepared)
    assert [level(half, i) for i in range(len(half))] == [level(whole, i) for i in range(6, 12)]
    assert len(TfdsSource("ddim_tiny_squares", "train+test", prepared)) == 17


def test_tfds_truncated_image(prepared: str) -> None:
    source = TfdsSource("ddim_tiny_squares", "test", prepared)
    outcomes = []
    for index in range(5):
        try:
            outcomes.append(level(source, index))
        except ImageError:
            outcomes.append(-1)
    assert sorted(outcomes) == [-1, 0, 0, 2, 3]


@pytest.mark.parametrize("split", ["nosuch", "train[:90", "train[:0]", "train[:999]"])
def test_tfds_unknown_split(prepared: str, split: str) -> None:
    with pytest.raises(UserError, match=r"is no split of .*; it has: train, test \(and slices") as caught:
        TfdsSource("ddim_tiny_squares", split, prepared)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cifar11", "TFDS does not know this name.*; did you mean .*cifar10"),
        ("zzzzzzzz", "TFDS does not know this name.*; see tensorflow.org/datasets/catalog"),
        ("bad name", "data.name='bad name': TFDS cannot open it"),
        ("ddim_tiny_squares:7.0.0", "data.name='ddim_tiny_squares:7.0.0': TFDS "),
    ],
)
def test_tfds_unknown_name(prepared: str, name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        TfdsSource(name, "train", prepared)
    assert "\n" not in str(caught.value)


def test_tfds_without_images(tmp_path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")

    class DdimTinyTexts(tfds.core.GeneratorBasedBuilder):
        """No image at all."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()})
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, str]]]:
            yield 0, {"text": "hello"}

    DdimTinyTexts(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    with pytest.raises(UserError, match="has no single image per example; its features are text"):
        TfdsSource("ddim_tiny_texts", "train", str(tmp_path))


def test_tfds_float_images_and_attributes(tmp_path: Path) -> None:
    """A float feature is the image, and attributes are -1 and +1, in the order of their names."""
    tfds = pytest.importorskip("tensorflow_datasets")
    fields = np.random.default_rng(0).normal(size=(5, 6, 4, 2)).astype(np.float32)
    attributes = [{"Young": i % 2 == 0, "Bald": i == 1, "Smiling": i > 2} for i in range(5)]

    class DdimTinyFields(tfds.core.GeneratorBasedBuilder):
        """Fields with attributes and vectors, which TFDS stores without TensorFlow."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "field": tfds.features.Tensor(shape=(6, 4, 2), dtype=np.float32),
                "attributes": dict.fromkeys(attributes[0], np.bool_),
                "place": tfds.features.Tensor(shape=(3,), dtype=np.float64),
                "age": np.int64,
                "name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for i in range(5):
                values = {"field": fields[i], "attributes": attributes[i], "age": i, "place": [i, i / 2, -i]}
                yield i, {**values, "name": str(i)}

    DdimTinyFields(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    config = DataConfig(
        source="tfds", name="ddim_tiny_fields", dir=str(tmp_path), dtype="float32", channels=2, image_size=(6, 4)
    )
    of_attributes, of_ages, of_places = (
        open_source(dataclasses.replace(config, vector=name)) for name in ("attributes", "age", "place")
    )
    assert (of_attributes.vector_size, of_ages.vector_size, of_places.vector_size) == (3, 1, 3)
    seen = []
    for i in range(5):
        (number,) = (vector := of_ages[i].vector) is not None and vector.astype(int)
        seen.append(number)
        example = of_attributes[i]
        np.testing.assert_array_equal(example.image, fields[number])
        assert example.vector is not None and example.vector.dtype == np.float32
        assert example.vector.tolist() == [2 * attributes[number][key] - 1 for key in ("Bald", "Smiling", "Young")]
        assert (place := of_places[i].vector) is not None and place.tolist() == [number, number / 2, -number]
    assert sorted(seen) == list(range(5))
    assert len({str(source.identity()) for source in (of_attributes, of_ages, of_places)}) == 3
    for vector, message in (("nose", "has no such feature; its features are age, attr"), ("name", "is no vector of a")):
        with pytest.raises(UserError, match=message):
            open_source(dataclasses.replace(config, vector=vector))
    with pytest.raises(UserError, match="has no single image per example"):
        open_source(dataclasses.replace(config, dtype="uint8", channels=3))


def test_tfds_format_without_random_access(builder_class: Any, tmp_path: Path) -> None:
    """A folder that another program prepared as TFRecord, TFDS's usual format."""
    folder = Path(builder_class(data_dir=str(tmp_path), file_format="array_record").data_dir)
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(
        '{"fileFormat": "tfrecord", "name": "ddim_tiny_squares", "version": "1.0.0", "splits": [{"name": "train", '
        '"numBytes": "9", "shardLengths": ["1"], "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}]}'
    )
    with pytest.raises(UserError, match=r"in a format without random access; set data\.dir to another folder"):
        TfdsSource("ddim_tiny_squares", "train", str(tmp_path))


def test_tfds_prepares_on_first_use(builder_class: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    assert len(TfdsSource("ddim_tiny_squares", "train", str(tmp_path))) == 12
    files = list((tmp_path / "ddim_tiny_squares" / "1.0.0").glob("*.array_record*"))
    assert len(files) == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'scipy.io'", name="scipy.io"), "preparing it needs the package scipy; "),
        (AssertionError("Manual download required.\nGo to ..."), "in .*: AssertionError: Manual download required.$"),
        (ConnectionError(), "could not be prepared in .*: ConnectionError; .*data.source=folder$"),
    ],
)
def test_tfds_failed_preparation_is_one_line(
    builder_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    pytest.importorskip("tensorflow")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(builder_class, "download_and_prepare", fail)
    with pytest.raises(UserError, match=reason):
        TfdsSource("ddim_tiny_squares", "train", str(tmp_path))


def builder_in(folder: Path, *urls: str) -> Any:
    """What of a TFDS builder says where a data set comes from and goes to."""
    info = types.SimpleNamespace(full_name="squares/1.0.0")
    return types.SimpleNamespace(url_infos=dict.fromkeys(urls), data_dir=str(folder / "squares" / "1.0.0"), info=info)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The hosts that were tried; none answers but good.example, and slow.example not in time."""
    tried = []

    def connect(host: tuple[str, int], timeout: float) -> Any:
        tried.append(host)
        if host[0] == "slow.example":
            time.sleep(1)
        if host[0] != "good.example":
            raise socket.gaierror(-2, "Name or service not known")
        return io.BytesIO()

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(tfds_source, "_TIMEOUT", 0.2)
    return tried


def test_tfds_without_network_is_one_line(tmp_path: Path, connections: list[tuple[str, int]]) -> None:
    builder = builder_in(tmp_path, "https://bad.example/a.gz", "http://bad.example:81/b.gz", "https://slow.example/c")
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"cannot be downloaded: no answer from .*bad\.example.*data\.source=folder$"):
        tfds_source._check_reachable(builder, "squares")
    assert time.perf_counter() - start < 0.9
    expected = [("bad.example", 81), ("bad.example", 443), ("slow.example", 443), ("storage.googleapis.com", 443)]
    assert sorted(connections) == expected


def test_tfds_prepares_where_one_host_answers(tmp_path: Path, connections: list[tuple[str, int]]) -> None:
    tfds_source._check_reachable(builder_in(tmp_path, "https://bad.example/a", "ftp://good.example/b"), "squares")
    assert ("good.example", 21) in connections


@pytest.mark.parametrize("case", ["no addresses", "downloaded before", "a proxy"])
def test_tfds_asks_no_host_where_it_may_do_without(
    tmp_path: Path, connections: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    urls = () if case == "no addresses" else ("https://bad.example/a.gz",)
    if case == "downloaded before":
        (tmp_path / "downloads" / "manual").mkdir(parents=True)
        (tmp_path / "downloads" / "manual" / "a.gz").touch()
    if case == "a proxy":
        monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy.example"})
    tfds_source._check_reachable(builder_in(tmp_path, *urls), "squares")
    assert not connections


# Runs in a fresh interpreter in which TensorFlow cannot be found, installed or not. The data set's
# code is unknown there: it is read from the prepared folder alone.
_WITHOUT_TENSORFLOW = """
import sys

class Hide:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] == "tensorflow" else self.finder.find_spec(name, path, target)
    def __getattr__(self, name): return getattr(self.finder, name)

sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
from ddim_jax.config import DataConfig
from ddim_jax.data.sources import open_source
from ddim_jax.errors import UserError
tfds_dir, folder, empty = sys.argv[1:]
print(open_source(DataConfig(source="digits"))[0].image.shape)
print(open_source(DataConfig(source="folder", path=folder))[0].image.shape)
print(open_source(DataConfig(source="tfds", name="ddim_tiny_squares", dir=tfds_dir))[0].image.shape)
try:
    open_source(DataConfig(source="tfds", name="mnist", dir=empty))
except UserError as error:
    print(error)
print("tensorflow" in sys.modules)
"""


def test_nothing_needs_tensorflow(prepared: str, tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", 1, (5, 5))
    arguments = [prepared, str(tmp_path / "images"), str(tmp_path / "empty")]
    result = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TENSORFLOW, *arguments], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    digits, folder, tiny, refusal, imported = result.stdout.strip().splitlines()
    assert (digits, folder, tiny) == ("(8, 8, 1)", "(5, 5, 3)", "(8, 8, 3)")
    assert refusal.startswith("data.name='mnist' is not prepared in ")
    assert "pip install 'ddim_jax[tfds]'" in refusal
    assert imported == "False"
