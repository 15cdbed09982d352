"""Data of any type and size, from every source, as they are stored."""

import dataclasses
import io
import itertools
import logging
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddim_jax.config import DataConfig
from ddim_jax.data.batch_order import BatchOrder
from ddim_jax.data.batches import train_batches
from ddim_jax.data.on_device import gather, read_device_images, train_selections
from ddim_jax.data.prepared import open_images
from ddim_jax.data.reading import load_images, read_in_range
from ddim_jax.data.sources import open_source
from ddim_jax.data.statistics import pixel_statistics, value_range
from ddim_jax.data.transforms import ImageError, crop_image, decode_image, prepare_image, resize_image
from ddim_jax.errors import UserError

NUM, HEIGHT, WIDTH = 12, 6, 4
SHAPE = (NUM, HEIGHT, WIDTH, 2)
TYPES = ("uint8", "uint16", "float32")
FLOATS = DataConfig(source="array", dtype="float32", channels=2, image_size=(HEIGHT, WIDTH), cache="none", threads=2)


def values_of(dtype, shape=SHAPE, seed=0):
    generator = np.random.default_rng(seed)
    if dtype == "float32":
        return generator.normal(3, 10, shape).astype(np.float32)
    return generator.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def config_for(path, dtype, **changes):
    return dataclasses.replace(FLOATS, path=str(path), dtype=dtype, **changes)


def all_of(config):
    source = open_images(config)
    return load_images(source, config, np.arange(len(source)))


def png_16(pixels):
    """A PNG of 16-bit colours, without a library: uint16 [h, w, 3 or 4]."""

    def part(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = pixels.shape
    header = struct.pack(">2I5B", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def encoded(pixels, form, **settings):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **settings)
    return file.getvalue()


# --- sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("form", ["npy", "npz", "packed", "folder", "parquet"])
def test_values_of_every_source_come_out_as_they_are(tmp_path, form, dtype):
    values = values_of(dtype)
    path, source = tmp_path / f"x.{form}", "array"
    if form == "npy":
        np.save(path, values)
    elif form == "npz":
        np.savez(path, images=values, other=np.zeros(3))
    elif form == "packed":
        path = tmp_path / "x.npz"
        np.savez_compressed(path, images=values)
    elif form == "folder":
        source = "folder"
        path.mkdir()
        for i, image in enumerate(values):
            np.save(path / f"{i:03}.npy", image)
    else:
        source = "parquet"
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path.mkdir()
        for i in range(2):
            table = pa.table({"image": values[6 * i : 6 * i + 6].tolist(), "label": list(range(6))})
            pq.write_table(table, path / f"{i}.parquet", row_group_size=4)
    images = all_of(config_for(path, dtype, source=source))
    assert images.image.dtype == dtype
    assert images.image.tobytes() == values.tobytes()
    part = all_of(config_for(path, dtype, source=source, split="train[3:7]"))
    assert part.image.tobytes() == values[3:7].tobytes()
    if form == "parquet":
        assert part.label.tolist() == [3, 4, 5, 0]
        assert "row" in open_source(config_for(path, dtype, source=source)).where(7)


def test_stored_arrays_are_not_read(tmp_path):
    np.savez(tmp_path / "x.npz", images=values_of("float32"), labels=np.arange(NUM))
    source = open_source(config_for(tmp_path / "x.npz", "float32"))
    assert isinstance(source._images.base, np.memmap) or isinstance(source._images, np.memmap)
    assert source.num_classes == NUM
    assert source[5].label == 5


def test_arrays_without_channels_and_of_other_types(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(NUM * 6 * 4).reshape(NUM, 6, 4))
    config = config_for(tmp_path / "x.npy", "uint16", channels=1)
    np.testing.assert_array_equal(all_of(config).image[..., 0], np.arange(NUM * 24).reshape(NUM, 6, 4))
    with pytest.raises(UserError, match=r"value 256|value 263|value 279|holds 0 ... 255"):
        all_of(dataclasses.replace(config, dtype="uint8"))


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (values_of("float32"), {"dtype": "uint8"}, r"float32, data\.dtype is uint8; set data\.dtype=float32"),
        (values_of("uint8"), {"dtype": "uint16"}, r"uint8, data\.dtype is uint16; set data\.dtype=uint8"),
        (values_of("float32"), {"channels": 3}, r"2 channels, data\.channels is 3; set it to 2"),
        (values_of("float32"), {"labels": "classes.npy"}, "does not exist"),
        (np.zeros(4, np.float32), {}, r"the shape \(4,\)"),
        (values_of("float32"), {"condition": "paired"}, "needs the folder or array"),
        (values_of("float32"), {"vector": "nothing"}, r"name a \.npy or \.csv"),
    ],
)
def test_bad_arrays_are_one_line(tmp_path, values, changes, message):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(UserError, match=message) as error:
        all_of(config_for(tmp_path / "x.npy", **{"dtype": "float32", **changes}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "uint8", "bool"])
def test_other_numbers_become_float32(tmp_path, dtype):
    values = values_of("float32").clip(0, 200).astype(dtype)
    np.save(tmp_path / "x.npy", values)
    found = all_of(config_for(tmp_path / "x.npy", "float32")).image
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize("form", ["npy", "npz", "packed"])
def test_arrays_stored_column_by_column(tmp_path, form):
    values = np.asfortranarray(values_of("uint16"))
    path = tmp_path / f"x.{'npy' if form == 'npy' else 'npz'}"
    save = {"npy": np.save, "npz": np.savez, "packed": np.savez_compressed}[form]
    save(path, values)
    np.testing.assert_array_equal(all_of(config_for(path, "uint16")).image, values)


def test_values_that_float32_cannot_hold_are_counted(tmp_path):
    np.save(tmp_path / "x.npy", np.full(SHAPE, 1e300))
    with pytest.raises(ImageError, match="it holds 48 infinite of 48 values"):
        all_of(config_for(tmp_path / "x.npy", "float32"))


@pytest.mark.parametrize("left", [0, 8, -1])
def test_a_damaged_file_is_one_line(tmp_path, left):
    np.save(tmp_path / "x.npy", values_of("float32"))
    data = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(data[:left])
    with pytest.raises(UserError, match=r"data\.path=.* cannot be read: .") as error:
        open_source(config_for(tmp_path / "x.npy", "float32"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [("", r"data\.path='': name the"), ("no.npy", "does not exist; name a file"), ("no.mat", "name a file of arrays")],
)
def test_paths_that_cannot_be_opened(path, message):
    with pytest.raises(UserError, match=message):
        open_source(config_for(path, "float32"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(5), "there are 5 labels for 12 images"),
        (np.arange(NUM) - 1, "label -1 of image 0 is negative"),
        (np.arange(NUM) / 2, "labels are one whole number for each image"),
        (np.array(["cat"] * NUM), "labels are one whole number for each image"),
        (np.zeros((NUM, 2), int), "labels are one whole number for each image"),
    ],
)
def test_bad_labels_are_one_line(tmp_path, labels, message):
    np.savez(tmp_path / "x.npz", images=values_of("float32"), labels=labels)
    with pytest.raises(UserError, match=rf"data\.labels='labels': {message}"):
        open_source(config_for(tmp_path / "x.npz", "float32"))


def test_only_what_is_asked_for_is_read(tmp_path):
    """A file of 20 GiB, all of it a hole but for the last image."""
    num = 20 * 2**30 // (64 * 64 * 4)
    values = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (num, 64, 64, 1))
    values[-1] = 1
    del values
    config = config_for(tmp_path / "x.npy", "float32", image_size=64, channels=1, range=(0.0, 1.0), cache="auto")
    source = open_images(config)
    assert len(source) == num
    assert source[num - 1].image.min() == 1
    batches = train_batches(source, config, BatchOrder(0, 4))
    assert next(batches).image.max() == 0
    batches.close()


def test_channels_first_is_told(tmp_path):
    values = values_of("float32", (NUM, 2, 6, 4))
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(UserError, match=r"image 0: .* shape \(2, 6, 4\), channels first; .*moveaxis\(images, 1, -1\)"):
        all_of(config_for(tmp_path / "x.npy", "float32"))
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "0.npy", values[0])
    with pytest.raises(UserError, match=r"0\.npy: .* shape \(2, 6, 4\), channels first; .*moveaxis\(image, 0, -1\)"):
        all_of(config_for(tmp_path / "folder", "float32", source="folder"))
    np.savez(tmp_path / "x.npz", images=np.moveaxis(values, 1, -1), paired=values)
    with pytest.raises(UserError, match=r"image 0: the picture of .*=paired: .* \(2, 6, 4\), channels first"):
        all_of(config_for(tmp_path / "x.npz", "float32", condition="paired"))


def test_not_finite_values_are_counted(tmp_path):
    values = values_of("float32")
    values[7, 2, 1, 0] = np.nan
    values[7, 3, 1, 1] = np.inf
    np.save(tmp_path / "x.npy", values)
    config = config_for(tmp_path / "x.npy", "float32")
    with pytest.raises(ImageError, match=r"image 7: it holds 1 NaN and 1 infinite of 48 values, .* row 2, column 1"):
        all_of(config)
    assert len(all_of(dataclasses.replace(config, on_error="skip")).image) == NUM - 1


def test_values_outside_the_range_are_named(tmp_path):
    values = np.clip(values_of("float32"), -20, 20)
    values[4, 0, 0, 1] = 77
    np.save(tmp_path / "x.npy", values)
    config = config_for(tmp_path / "x.npy", "float32", range=(-20.0, 20.0))
    with pytest.raises(ImageError, match=r"image 4: channel 1 holds the value 77, outside of data\.range=\(-20, 20\)"):
        read_device_images(open_images(config), config)


def test_values_outside_the_range_are_left_out_however_images_are_kept(tmp_path):
    values, paired = (np.clip(values_of("float32", seed=seed), -20, 20) for seed in (0, 1))
    values[4, 0, 0, 1], values[5, 1, 1, 0], values[9, 0, 0, 0] = 77, np.nan, -20.5
    paired[11, 2, 2, 1], paired[0, 0, 0, 0] = 20.5, np.inf
    np.savez(tmp_path / "x.npz", images=values, paired=paired)
    config = config_for(
        tmp_path / "x.npz", "float32", range=(-20.0, 20.0), condition="paired", on_error="skip",
        cache_dir=str(tmp_path / "cache"), mean=(), std=(),
    )  # fmt: skip
    order = BatchOrder(0, 6)
    used = [1, 2, 3, 6, 7, 8, 10]
    instead = [next((each for each in used if each >= i), used[0]) for i in range(NUM)]
    for cache in ("none", "host", "disk", "disk"):
        keys = dataclasses.replace(config, cache=cache)
        source = open_images(keys)
        batches = itertools.islice(train_batches(source, keys, order), 4)
        for step, batch in enumerate(batches):
            taken = [instead[i] for i in order.examples(step, NUM)]
            np.testing.assert_array_equal(batch.image, values[taken], cache)
            np.testing.assert_array_equal(batch.paired, paired[taken], cache)
        mean, std = pixel_statistics(source, keys, progress=False)
        scaled = (values[used].reshape(-1, 2).astype(np.float64) + 20) / 40
        np.testing.assert_allclose([mean, std], [scaled.mean(0), scaled.std(0)], rtol=1e-12)
    keys = dataclasses.replace(config, cache="device")
    images, row_of = read_device_images(open_images(keys), keys)
    np.testing.assert_array_equal(np.asarray(images.image)[row_of][[0, 4, 9, 11]], values[[1, 6, 10, 1]])


def test_paired_pictures_are_checked_as_images_are(tmp_path):
    values, paired = (np.clip(values_of("float32", seed=seed), -20, 20) for seed in (0, 1))
    paired[3, 0, 0, 1] = 30
    np.savez(tmp_path / "x.npz", images=values, paired=paired)
    config = config_for(tmp_path / "x.npz", "float32", range=(-20.0, 20.0), condition="paired")
    with pytest.raises(ImageError, match=r"image 3: the picture of .*=paired: channel 1 holds the value 30, outside"):
        load_images(open_images(config), config, range(NUM), read=read_in_range)
    paired[3, 0, 0, 1] = np.nan
    np.savez(tmp_path / "x.npz", images=values, paired=paired)
    with pytest.raises(ImageError, match=r"image 3: the picture of .*=paired: it holds 1 NaN of 48 values"):
        all_of(config)


def test_the_measured_range_holds_paired_pictures_too(tmp_path):
    values, wide, single = values_of("float32"), values_of("float32", seed=1) * 3, values_of("float32", (NUM, 6, 4, 1))
    for paired, expected in (
        (wide, np.stack([np.minimum(values, wide).min((0, 1, 2)), np.maximum(values, wide).max((0, 1, 2))], 1)),
        (single - 50, [values.min(initial=(single - 50).min()), values.max()]),
    ):
        np.savez(tmp_path / "x.npz", images=values, paired=paired)
        config = config_for(
            tmp_path / "x.npz", "float32", condition="paired", condition_channels=paired.shape[3], range=()
        )
        found = value_range(open_source(config), config, progress=False)
        np.testing.assert_array_equal(found, np.reshape(expected, -1))
        load_images(open_source(config), dataclasses.replace(config, range=found), range(NUM), read=read_in_range)


def test_a_value_on_the_bound_is_within_it(tmp_path):
    """0.1 and 0.9 are other numbers in float32, in which they are compared."""
    values = np.full((2, 6, 4, 2), np.float32(0.9))
    values[..., 0] = 0.1
    np.save(tmp_path / "x.npy", values)
    config = config_for(tmp_path / "x.npy", "float32", range=(0.1, 0.9))
    load_images(open_images(config), config, range(2), read=read_in_range)


# --- vectors and pairs --------------------------------------------------------------------------


def test_vectors_and_pairs_of_an_array(tmp_path):
    vectors, pairs = values_of("float32", (NUM, 5), 1), values_of("float32", (NUM, 3, 2, 1), 2)
    np.savez(tmp_path / "x.npz", images=values_of("float32"), paired=pairs, v=vectors)
    config = config_for(
        tmp_path / "x.npz", "float32", condition="paired", condition_size=(3, 2), condition_channels=1, vector="v"
    )
    images = all_of(dataclasses.replace(config, split="train[2:9]"))
    np.testing.assert_array_equal(images.vector, vectors[2:9])
    np.testing.assert_array_equal(images.paired, pairs[2:9])
    np.save(tmp_path / "short.npy", vectors[1:])
    with pytest.raises(UserError, match=r"has 11 rows for the 12 images"):
        open_source(dataclasses.replace(config, vector=str(tmp_path / "short.npy")))


def save_folder(folder, names, value=0):
    folder.mkdir()
    for i, name in enumerate(names):
        Image.fromarray(np.full((4, 4), value + i, np.uint8)).save(folder / name)


def test_vectors_and_pairs_of_a_folder(tmp_path):
    save_folder(tmp_path / "a", ["x.png", "y.png", "z.png"])
    save_folder(tmp_path / "b", ["x.bmp", "y.bmp", "z.bmp"], 100)
    (tmp_path / "v.csv").write_text("name,age,height\nz.png,3,30\nx.png,1,10\ny.png,2,20\n")
    config = DataConfig(
        source="folder", path=str(tmp_path / "a"), channels=1, image_size=4, condition="paired",
        condition_path=str(tmp_path / "b"), vector=str(tmp_path / "v.csv"), cache="none", split="train[1:]",
    )  # fmt: skip
    images = all_of(config)
    assert images.vector is not None and images.paired is not None
    assert images.vector.tolist() == [[2, 20], [3, 30]]
    assert images.paired[:, 0, 0, 0].tolist() == [101, 102]
    (tmp_path / "b" / "y.bmp").unlink()
    with pytest.raises(UserError, match=r"has no picture for y\.png of a; names must be the same"):
        open_source(config)
    (tmp_path / "v.csv").write_text("x.png,1\ny.png,NaNa\n")
    with pytest.raises(UserError, match=r", line 2: it needs as many numbers"):
        open_source(dataclasses.replace(config, condition=""))
    (tmp_path / "v.csv").write_text("x.png,1\ny.png,2\n")
    with pytest.raises(UserError, match=r"has no row for z\.png of 2 images"):
        open_source(dataclasses.replace(config, condition=""))


# --- caches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_batches_are_equal_however_images_are_kept(tmp_path, dtype):
    np.savez(
        tmp_path / "x.npz", images=values_of(dtype), paired=values_of(dtype, seed=3), labels=np.arange(NUM),
        v=values_of("float32", (NUM, 2)),
    )  # fmt: skip
    config = config_for(
        tmp_path / "x.npz", dtype, condition="paired", vector="v", flip=True, cache_dir=str(tmp_path / "cache")
    )
    order = BatchOrder(0, 5)
    found = []
    for cache in ("none", "host", "disk", "disk"):
        keys = dataclasses.replace(config, cache=cache)
        found.append(list(itertools.islice(train_batches(open_images(keys), keys, order), 4)))
    images, row_of = read_device_images(open_images(config), config)
    selections = itertools.islice(train_selections(row_of, config, order), 4)
    found.append([gather(images, selection) for selection in selections])
    for batches in found[1:]:
        for one, other in zip(found[0], batches, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
                assert np.asarray(a).dtype == np.asarray(b).dtype
    assert found[0][0].image.dtype == dtype


def test_damage_of_vectors_and_pairs_is_mended(tmp_path):
    values = values_of("float32")
    np.savez(tmp_path / "x.npz", images=values, paired=values + 1, v=values[:, 0, 0])
    config = config_for(
        tmp_path / "x.npz", "float32", condition="paired", vector="v", cache="disk", cache_dir=str(tmp_path / "cache")
    )
    all_of(config)
    for name in ("paired", "vectors"):
        (path,) = (tmp_path / "cache").glob(f"*/{name}.npy")
        data = bytearray(path.read_bytes())
        data[-3] ^= 4
        path.write_bytes(data)
        images = all_of(config)
        np.testing.assert_array_equal(images.paired, values + 1)
        np.testing.assert_array_equal(images.vector, values[:, 0, 0])


def touch_later(path):
    """Changes the time of a file's last change, as writing it again does."""
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))


@pytest.mark.parametrize("source", ["array", "folder"])
def test_whatever_of_the_data_has_changed_is_prepared_again(tmp_path, source):
    """Labels, vectors and paired pictures are as much part of the prepared data as the images are."""
    keys = {}
    if source == "array":
        np.save(tmp_path / "x.npy", values_of("uint8", (3, 4, 4, 1)))
        np.save(tmp_path / "labels.npy", np.array([0, 1, 2]))
        np.save(tmp_path / "paired.npy", values_of("uint8", (3, 4, 4, 1), 1))
        np.save(tmp_path / "vectors.npy", np.eye(3))
        keys = {"path": "x.npy", "labels": "labels.npy", "vector": "vectors.npy", "condition_path": "paired.npy"}
        files = keys.values()
    else:
        save_folder(tmp_path / "a", ["x.png", "y.png", "z.png"])
        save_folder(tmp_path / "b", ["x.png", "y.png", "z.png"], 100)
        (tmp_path / "v.csv").write_text("x,1\ny,2\nz,3\n")
        keys = {"path": "a", "vector": "v.csv", "condition_path": "b"}
        files = ["a/y.png", "b/z.png", "v.csv"]
    config = DataConfig(
        source=source, channels=1, image_size=4, condition="paired", cache="disk", cache_dir=str(tmp_path / "cache"),
        **{key: str(tmp_path / name) for key, name in keys.items()},
    )  # fmt: skip
    found = [open_source(config).identity()]
    for file in files:
        touch_later(tmp_path / file)
        found.append(open_source(config).identity())
        assert found[-1] not in found[:-1], file
    if source == "folder":
        return
    assert all_of(config).label.tolist() == [0, 1, 2]
    np.save(tmp_path / "labels.npy", np.array([2, 0, 1]))
    touch_later(tmp_path / "labels.npy")
    assert all_of(config).label.tolist() == [2, 0, 1]


# --- files --------------------------------------------------------------------------------------


def test_16_bits_of_files_are_kept():
    grey = values_of("uint16", (5, 7))
    for form in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode_image(encoded(grey, form), "uint16", 1)[..., 0], grey)
    floats = values_of("float32", (5, 7))
    np.testing.assert_array_equal(decode_image(encoded(floats, "TIFF"), "float32", 1)[..., 0], floats)


def test_16_bit_colours_of_files_are_kept():
    opencv = pytest.importorskip("cv2", reason="16-bit colours need OpenCV, of the extra 'deep'")
    for channels in (3, 4):
        pixels = values_of("uint16", (5, 7, channels))
        np.testing.assert_array_equal(decode_image(png_16(pixels), "uint16", channels), pixels)
    floats = values_of("float32", (5, 7, 3))
    tiff = opencv.imencode(".tiff", floats[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_image(tiff, "float32"), floats)


def test_without_opencv_16_bit_colours_are_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match=r"need OpenCV: pip install 'ddim_jax\[deep\]'"):
        decode_image(png_16(values_of("uint16", (5, 7, 3))), "uint16")


def test_a_folder_of_16_bit_files(tmp_path):
    """PNG and TIFF, one of them lying on its side, as its EXIF data say."""
    values = values_of("uint16", (3, 6, 4, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    (tmp_path / "0.png").write_bytes(encoded(values[0, ..., 0], "PNG"))
    (tmp_path / "1.tif").write_bytes(encoded(values[1, ..., 0], "TIFF"))
    (tmp_path / "2.png").write_bytes(encoded(np.rot90(values[2, ..., 0]).copy(), "PNG", exif=exif))
    config = config_for(tmp_path, "uint16", source="folder", channels=1)
    np.testing.assert_array_equal(all_of(config).image, values)
    bytes_of_them = all_of(dataclasses.replace(config, dtype="uint8")).image
    np.testing.assert_array_equal(bytes_of_them, (values.astype(int) + 128) // 257)


def test_a_folder_of_float_tiff_files(tmp_path):
    values = values_of("float32", (2, 6, 4, 1))
    for i, image in enumerate(values):
        (tmp_path / f"{i}.tiff").write_bytes(encoded(image[..., 0], "TIFF"))
    np.testing.assert_array_equal(all_of(config_for(tmp_path, "float32", source="folder", channels=1)).image, values)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_folder_of_files_with_alpha(tmp_path, dtype):
    if dtype == "uint16":
        pytest.importorskip("cv2", reason="16-bit colours need OpenCV, of the extra 'deep'")
    values = values_of(dtype, (2, 6, 4, 4))
    for i, image in enumerate(values):
        (tmp_path / f"{i}.png").write_bytes(png_16(image) if dtype == "uint16" else encoded(image, "PNG"))
    np.testing.assert_array_equal(all_of(config_for(tmp_path, dtype, source="folder", channels=4)).image, values)


def test_8_bits_are_no_16_bits():
    with pytest.raises(ImageError, match=r"of 8 bits, data\.dtype is uint16; .* set data\.dtype=uint8"):
        decode_image(encoded(values_of("uint8", (5, 7)), "PNG"), "uint16")


def test_what_is_passed_over_is_told_once(tmp_path, caplog):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encoded(values_of("uint16", (4, 4), i), "PNG"))
        frames = [Image.fromarray(values_of("uint8", (4, 4), seed)) for seed in range(2)]
        frames[0].save(tmp_path / f"{i}.gif", save_all=True, append_images=frames[1:])
    config = DataConfig(source="folder", path=str(tmp_path), channels=1, image_size=4, cache="none", threads=1)
    with caplog.at_level(logging.WARNING):
        all_of(config)
    assert sum("set data.dtype=uint16 to keep them" in line for line in caplog.messages) == 1
    assert sum("several frames" in line for line in caplog.messages) == 1


def test_alpha_is_kept_where_it_has_a_channel():
    pixels = values_of("uint8", (4, 4, 4))
    np.testing.assert_array_equal(decode_image(encoded(pixels, "PNG"), channels=4), pixels)
    assert decode_image(encoded(pixels, "PNG")).shape == (4, 4, 3)
    with pytest.raises(ImageError, match=r"the image has 3 channels, data\.channels is 4"):
        prepare_image(pixels[..., :3], DataConfig(image_size=4, channels=4))


@pytest.mark.parametrize("dtype", TYPES)
def test_resizing_is_per_channel_and_keeps_the_range(dtype):
    image = values_of(dtype, (8, 8, 5))
    small = resize_image(image, (4, 2), Image.Resampling.LANCZOS)
    assert (small.dtype, small.shape) == (np.dtype(dtype), (4, 2, 5))
    for channel in range(5):
        plane = image[..., channel]
        expected = np.asarray(
            Image.fromarray(plane if dtype == "uint8" else plane.astype(np.float32)).resize((2, 4), 1)
        )
        if dtype != "uint8":
            expected = np.clip(expected, plane.min(), plane.max())
        if dtype == "uint16":
            expected = np.floor(expected + 0.5)
        np.testing.assert_array_equal(small[..., channel], expected.astype(dtype))


def test_alpha_is_resized_as_colours_are():
    """A red of no opacity beside an opaque blue: Pillow's own RGBA would forget the red."""
    image = np.array([[[255, 0, 0, 0], [0, 0, 255, 255]]], np.uint8)
    small = resize_image(image, (1, 1), Image.Resampling.BOX)
    assert small[0, 0].tolist() == [128, 0, 128, 128]


@pytest.mark.parametrize(
    ("height", "width", "size", "rows", "columns"),
    [
        (10, 9, (4, 2), slice(0, 10), slice(2, 7)),  # 10x5
        (9, 10, (4, 2), slice(0, 9), slice(2, 7)),  # 4.5 is rounded up
        (10, 3, (4, 2), slice(2, 8), slice(0, 3)),
        (7, 4, (2, 4), slice(2, 4), slice(0, 4)),  # an odd pixel is lost at the bottom
        (4, 2, (4, 2), slice(0, 4), slice(0, 2)),
        (7, 4, (3, 3), slice(1, 5), slice(0, 4)),
    ],
)
def test_the_centre_crop_has_the_shape_that_is_wanted(height, width, size, rows, columns):
    image = values_of("uint8", (height, width, 3))
    np.testing.assert_array_equal(crop_image(image, "center", size), image[rows, columns])
    config = DataConfig(image_size=size, crop="center", resize="box", channels=3)
    wanted = resize_image(image[rows, columns], size, Image.Resampling.BOX)
    np.testing.assert_array_equal(prepare_image(image, config), wanted)


# --- statistics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_statistics_of_each_type(tmp_path, dtype):
    values = values_of(dtype)
    np.save(tmp_path / "x.npy", values)
    config = config_for(tmp_path / "x.npy", dtype)
    source = open_source(config)
    limits = value_range(source, config, progress=False)
    flat = values.reshape(-1, 2).astype(np.float64)
    np.testing.assert_array_equal(limits, np.stack([flat.min(0), flat.max(0)], 1).reshape(-1))
    low, high = (flat.min(0), flat.max(0)) if dtype == "float32" else (0, np.iinfo(dtype).max)
    config = dataclasses.replace(config, range=limits if dtype == "float32" else ())
    mean, std = pixel_statistics(source, config, progress=False)
    np.testing.assert_allclose(mean, ((flat - low) / (high - low)).mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, ((flat - low) / (high - low)).std(0), rtol=1e-10)


def test_a_constant_channel_is_named(tmp_path):
    values = values_of("float32")
    values[..., 1] = 2.5
    np.save(tmp_path / "x.npy", values)
    config = config_for(tmp_path / "x.npy", "float32")
    with pytest.raises(UserError, match=r"channel 1 of x\.npy is 2\.5 in all pixels"):
        value_range(open_source(config), config, progress=False)


def test_a_constant_channel_of_a_stated_range_is_named(tmp_path):
    """Squares of 0.1, which no sum holds exactly, would make it vary by rounding."""
    values = values_of("float32", (600, 6, 4, 2))
    values[..., 1] = 1000.1
    np.save(tmp_path / "x.npy", values)
    config = config_for(tmp_path / "x.npy", "float32", range=(-1e4, 1.1e4))
    with pytest.raises(UserError, match=r"channel 1 of x\.npy is the same in all pixels"):
        pixel_statistics(open_source(config), config, progress=False)


def test_a_channel_far_from_0_keeps_its_deviation(tmp_path):
    values = values_of("float32", (600, 6, 4, 2))
    values[..., 1] = 1e6 + np.round(values[..., 1])
    np.save(tmp_path / "x.npy", values)
    config = config_for(tmp_path / "x.npy", "float32", range=(-1e7, 1e7))
    found = {
        pixel_statistics(open_source(config), dataclasses.replace(config, threads=threads), progress=False)
        for threads in (1, 2, 7)
    }
    ((mean, std),) = found
    flat = (values.reshape(-1, 2).astype(np.float64) + 1e7) / 2e7
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-14)
    np.testing.assert_allclose(std, values.reshape(-1, 2).astype(np.float64).std(0) / 2e7, rtol=1e-12)
