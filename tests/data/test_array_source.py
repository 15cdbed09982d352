"""Arrays of images in files: any type, shape and number of channels, with what belongs to them."""

import contextlib
import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ddim_jax.config import DataConfig
from ddim_jax.data import on_device
from ddim_jax.data.batch_order import BatchOrder
from ddim_jax.data.batches import Batch, train_batches
from ddim_jax.data.prepared import open_images
from ddim_jax.data.reading import load_images, read_example
from ddim_jax.data.sources import ArraySource
from ddim_jax.data.transforms import ImageError
from ddim_jax.errors import UserError

NUM = 12
DTYPES = ("uint8", "uint16", "float32")


def pixels(dtype: str = "float32", shape: tuple[int, ...] = (NUM, 8, 4, 2), seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    if dtype == "float32":
        return random.normal(3, 100, shape).astype(np.float32)
    return random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def config_of(path: Path, dtype: str = "float32", **keys: Any) -> DataConfig:
    keys = {"image_size": (8, 4), "channels": 2, **keys}
    cache_dir = str(path.parent / "cache")
    return DataConfig(source="array", path=str(path), dtype=dtype, cache_dir=cache_dir, **keys)  # pyright: ignore


def saved(folder: Path, array: np.ndarray, kind: str = "npy") -> Path:
    path = folder / f"field.{'npy' if kind == 'npy' else 'npz'}"
    {
        "npy": lambda: np.save(path, array),
        "stored": lambda: np.savez(path, images=array),
        "compressed": lambda: np.savez_compressed(path, images=array),
    }[kind]()
    return path


@pytest.mark.parametrize("kind", ["npy", "stored", "compressed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_images_come_out_as_they_are(tmp_path: Path, dtype: str, kind: str, order: Any) -> None:
    array = np.asarray(pixels(dtype), order=order)
    config = config_of(saved(tmp_path, array, kind), dtype)
    source = open_images(config)
    images = load_images(source, config, range(NUM))
    assert images.image.dtype == dtype
    np.testing.assert_array_equal(images.image, array)
    assert source.describe() == "field: 12 images, no labels"


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "uint8", "bool"])
def test_other_numbers_become_float32(tmp_path: Path, dtype: str) -> None:
    array = pixels("float32").clip(0, 200).astype(dtype)
    config = config_of(saved(tmp_path, array))
    images = load_images(open_images(config), config, range(NUM)).image
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, array.astype(np.float32))


def test_one_channel_needs_no_axis(tmp_path: Path) -> None:
    array = pixels(shape=(NUM, 8, 4))
    config = config_of(saved(tmp_path, array), channels=1)
    np.testing.assert_array_equal(load_images(open_images(config), config, range(NUM)).image, array[..., None])


def test_labels_vectors_and_pairs_are_beside_the_images(tmp_path: Path) -> None:
    array, paired = pixels("uint16"), pixels("uint16", (NUM, 4, 2, 3))
    labels, vectors = np.arange(NUM) % 3, pixels(shape=(NUM, 5))
    path = tmp_path / "all.npz"
    np.savez(path, images=array, labels=labels, age=vectors, paired=paired)
    config = config_of(
        path, "uint16", vector="age", condition="paired", condition_size=(4, 2), condition_channels=3, split="train[4:]"
    )
    source = open_images(config)
    assert (source.num_classes, source.vector_size, len(source)) == (3, 5, 8)
    images = load_images(source, config, [1, 0])
    assert images.vector is not None and images.paired is not None
    np.testing.assert_array_equal(images.image, array[[5, 4]])
    np.testing.assert_array_equal(images.label, labels[[5, 4]])
    np.testing.assert_array_equal(images.vector, vectors[[5, 4]])
    np.testing.assert_array_equal(images.paired, paired[[5, 4]])
    assert source.where(1) == "all, image 5"


def test_labels_vectors_and_pairs_are_files(tmp_path: Path) -> None:
    array = pixels()
    np.save(tmp_path / "labels.npy", np.arange(NUM)[::-1])
    np.save(tmp_path / "paired.npy", array[::-1])
    (tmp_path / "vectors.csv").write_text("height,age\n" + "".join(f"{i},{-i / 2}\n" for i in range(NUM)))
    config = config_of(
        saved(tmp_path, array),
        labels=str(tmp_path / "labels.npy"),
        vector=str(tmp_path / "vectors.csv"),
        condition="paired",
        condition_path=str(tmp_path / "paired.npy"),
    )
    source = open_images(config)
    example = read_example(source, 3, config)
    assert example.vector is not None and example.paired is not None
    assert (source.num_classes, source.vector_size, example.label) == (12, 2, 8)
    assert example.vector.tolist() == [3, -1.5]
    np.testing.assert_array_equal(example.paired, array[8])
    before = source.identity()
    assert open_images(config).identity() == before
    for name in ("labels.npy", "paired.npy", "vectors.csv", "field.npy"):
        os.utime(tmp_path / name, ns=(1, 1))
        after = open_images(config).identity()
        assert after != before, name
        before = after


# --- caches -------------------------------------------------------------------------------------


def batches_of(config: DataConfig, num: int = 5) -> list[Batch]:
    source, order = open_images(config), BatchOrder(seed=3, batch_size=4)
    if config.cache == "device":
        images, row_of = on_device.read_device_images(source, config)
        selections = on_device.train_selections(row_of, config, order)
        return [jax.device_get(on_device.gather(images, each)) for each in itertools.islice(selections, num)]
    with contextlib.closing(train_batches(source, config, order)) as batches:
        return list(itertools.islice(batches, num))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("resize", ["none", "box"])
def test_batches_are_equal_for_all_caches(tmp_path: Path, dtype: str, resize: Any) -> None:
    array = pixels(dtype)
    path = tmp_path / "all.npz"
    np.savez(path, images=array, labels=np.arange(NUM) % 2, vectors=pixels(shape=(NUM, 3)), paired=array[:, :, ::-1])
    size = {"none": (8, 4), "box": (4, 2)}[resize]
    config = config_of(
        path, dtype, vector="vectors", condition="paired", condition_channels=2, flip=True, image_size=size,
        resize=resize,
    )  # fmt: skip
    wanted = batches_of(dataclasses.replace(config, cache="none"))
    assert wanted[0].image.dtype == dtype
    assert wanted[0].vector is not None and wanted[0].paired is not None
    for cache in ("host", "disk", "device", "disk"):
        found = batches_of(dataclasses.replace(config, cache=cache))
        for one, other in zip(found, wanted, strict=True):
            for left, right in zip(one, other, strict=True):
                assert left.dtype == right.dtype
                np.testing.assert_array_equal(left, right, cache)


@pytest.mark.parametrize("name", ["vectors", "paired", "images"])
def test_a_damaged_row_on_the_disk_is_prepared_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / "all.npz"
    array = pixels()
    np.savez(path, images=array, vectors=pixels(shape=(NUM, 3)), paired=array[:, :, ::-1])
    config = config_of(path, vector="vectors", condition="paired", cache="disk")
    wanted = batches_of(config)
    (file,) = (tmp_path / "cache").glob(f"*/{name}.npy")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for one, other in zip(batches_of(config), wanted, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert file.read_bytes() == content


def test_other_data_on_the_disk_have_folders_of_their_own(tmp_path: Path) -> None:
    path = saved(tmp_path, pixels("uint8"))
    config = config_of(path, "uint8", cache="disk")
    open_images(config)
    open_images(dataclasses.replace(config, dtype="float32"))
    open_images(dataclasses.replace(config, range=(0.0, 255.0)))
    assert len(list((tmp_path / "cache").glob("*/info.json"))) == 3


# --- bad input ----------------------------------------------------------------------------------


def first_error(config: DataConfig, index: int = 0) -> str:
    with pytest.raises(UserError) as error:
        read_example(open_images(config), index, config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nan_and_infinite_values_are_told(tmp_path: Path) -> None:
    array = pixels()
    array[2, 3, 1, 1], array[2, 5, 0, 0] = np.nan, np.inf
    config = config_of(saved(tmp_path, array))
    assert "field, image 2: 2 values are NaN or infinite, the first in row 3, column 1, channel 1" in first_error(
        config, 2
    )
    kept = load_images(open_images(config), dataclasses.replace(config, on_error="skip"), range(NUM))
    assert kept.index.tolist() == [0, 1, *range(3, NUM)]
    huge = config_of(saved(tmp_path, np.full((1, 8, 4, 2), 1e300)))
    assert "64 values are NaN or infinite" in first_error(huge)


@pytest.mark.parametrize(
    ("dtype", "value", "limits", "told"),
    [
        ("float32", 1.5, (0.0, 1.0), "the value 1.5 in row 7, column 0, channel 1 lies beyond data.range, 0 ... 1"),
        (
            "float32",
            0.5,
            (0.0, 1.0, 0.0, 0.25),
            "the value 0.5 in row 7, column 0, channel 1 lies beyond data.range, 0",
        ),
        ("uint16", 5000, (0.0, 4095.0), "the value 5000 in row 7"),
        ("uint8", 7, (0.0, 5.0), "the value 7 in row 7"),
    ],
)
def test_values_beyond_the_range_are_told(
    tmp_path: Path, dtype: str, value: float, limits: tuple[float, ...], told: str
) -> None:
    array = np.zeros((3, 8, 4, 2), dtype)
    array[1, 7, 0, 1] = value
    config = config_of(saved(tmp_path, array), dtype, range=limits)
    read_example(open_images(config), 0, config)
    assert f"field, image 1: {told}" in first_error(config, 1)


def test_a_value_on_the_bound_is_within_it(tmp_path: Path) -> None:
    """0.9 in float32 is more than 0.9 in float64 is less than: they are compared as float32."""
    array = np.full((1, 8, 4, 2), np.float32(0.9))
    array[..., 0] = 0.1
    config = config_of(saved(tmp_path, array), range=(0.1, 0.9))
    read_example(open_images(config), 0, config)


@pytest.mark.parametrize(
    ("arrays", "keys", "told"),
    [
        ({}, {"dtype": "uint8"}, "its values are float32, but data.dtype=uint8; set data.dtype=float32"),
        ({"images": pixels("uint8")}, {"dtype": "uint16"}, "its values are uint8, but data.dtype=uint16; set"),
        ({}, {"channels": 3}, "the image has 2 channels, data.channels is 3; set data.channels=2"),
        ({}, {"image_size": 8}, "the image is 4x8 pixels, not square; set data.crop=center"),
        ({}, {"image_size": (16, 8)}, "the image is 4x8 pixels after data.crop=none, data.image_size is (16, 8)"),
        ({}, {"image_size": (4, 8)}, "the image is 4x8 pixels, not of the shape 8x4; set data.crop=center"),
        ({"images": pixels(shape=(NUM, 2, 8, 4))}, {}, "[12, 2, 8, 4], channels first; store it channels last"),
        ({"images": pixels(shape=(NUM, 8))}, {}, "float32 [12, 8]; images are numbers [n, height, width, channels]"),
        ({"images": np.zeros((0, 8, 4, 2))}, {}, "has no images: its length is 0"),
        ({"images": np.array(["a"])}, {}, "<U1 [1]; images are numbers"),
        ({"images": np.array([{}])}, {}, "it holds Python objects"),
        ({"labels": np.arange(5)}, {}, "data.labels='labels' has 5 rows, but all has 12 images; give one for each"),
        ({"labels": np.arange(NUM) - 1}, {}, "data.labels='labels': the label of image 0 is -1; number the classes 0"),
        ({"labels": np.arange(NUM) / 2}, {}, "the label of image 1 is 0.5; number the classes 0"),
        ({"labels": np.array(["cat"] * NUM)}, {}, "holds values like np.str_('cat'); number the classes 0"),
        ({"labels": np.zeros((NUM, 2))}, {}, "give one number for each image, not an array [12, 2]"),
        ({}, {"labels": "kind"}, "data.labels='kind': no such array beside the images, and no .npy file; there"),
        ({}, {"vector": "age"}, "data.vector='age': no such array beside the images"),
        ({"age": np.zeros((5, 2))}, {"vector": "age"}, "data.vector='age' has 5 rows, but all has 12 images"),
        ({"age": np.full((NUM, 2), np.nan)}, {"vector": "age"}, "12 vectors hold NaN or infinite values, the first is"),
        ({"age": np.zeros((NUM, 2, 2))}, {"vector": "age"}, "give an array of numbers [images, numbers of each], not"),
        ({}, {"vector": "no.csv"}, "data.vector='no.csv' cannot be read: No such file"),
        ({}, {"condition": "paired"}, "name the second pictures by data.condition_path, or store them as 'paired'"),
        ({"paired": pixels(shape=(3, 8, 4, 2))}, {"condition": "paired"}, "all.npz: paired has 3 rows, but all has 12"),
        ({"paired": pixels("uint8")}, {"condition": "paired", "dtype": "uint16", "images": 1}, "its paired picture: "),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, arrays: dict[str, np.ndarray], keys: dict[str, Any], told: str
) -> None:
    arrays = {"images": pixels("uint16" if keys.pop("images", 0) else "float32"), **arrays}
    np.savez(tmp_path / "all.npz", allow_pickle=True, **arrays)
    assert told in first_error(config_of(tmp_path / "all.npz", **keys))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read: "),
        (b"\x93NUMPY\x01\x00", "cannot be read: "),
        (None, "cannot be read: the file is shorter than its header says"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = saved(tmp_path, pixels())
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    assert told in first_error(config_of(path))


def test_paths_that_cannot_be_opened(tmp_path: Path) -> None:
    assert "data.path='': name the .npy" in first_error(DataConfig(source="array"))
    assert "does not exist; name a .npy" in first_error(config_of(tmp_path / "no.npy"))
    assert "name a .npy or .npz file" in first_error(config_of(tmp_path / "no.mat"))
    assert "were in the memory of a Python program" in first_error(DataConfig(source="array", path="memory:abc"))
    with pytest.raises(ImageError):
        read_example(open_images(config := config_of(saved(tmp_path, pixels()), channels=3)), 0, config)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """A sparse file of 20 GB opens at once, and its last image is read."""
    path = tmp_path / "large.npy"
    shape = (20 * 2**30 // (64 * 64 * 4), 64, 64, 1)
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    array[-1] = 1
    del array
    config = config_of(path, image_size=64, channels=1, range=(0.0, 1.0))
    source = ArraySource(config)
    assert len(source) == shape[0]
    assert read_example(source, shape[0] - 1, config).image.min() == 1
    with contextlib.closing(train_batches(source, config, BatchOrder(0, 4))) as batches:
        assert next(batches).image.max() == 0
