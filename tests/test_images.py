"""uint8 ↔ float, grids and PNG files."""

import struct
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddim_jax import images
from ddim_jax.images import grid, labelled_rows, load_png, png_holds, png_shape, save_gif, save_png
from ddim_jax.pixels import Normalization, to_float, to_pixels


@pytest.mark.parametrize("normalization", [Normalization(), Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))])
def test_all_256_values_come_back(normalization):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    floats = to_float(pixels, normalization)
    np.testing.assert_array_equal(to_pixels(floats, normalization), pixels)


def test_the_default_range_is_minus_one_to_one():
    np.testing.assert_array_equal(to_float(np.uint8([0, 255]), Normalization()), [-1.0, 1.0])


def test_rounding_is_half_up_and_clipped():
    # 100.5 / 255 in [0, 1] lies half way between two levels; floor(x + 0.5) takes the upper one.
    pixels = jnp.asarray([-0.1, 0.0, 100.49 / 255, 100.51 / 255, 1.0, 1.7])
    np.testing.assert_array_equal(to_pixels(2 * pixels - 1, Normalization()), [0, 0, 100, 101, 255, 255])


def test_grid_places_images_row_by_row():
    tiles = np.stack([np.full((64, 64, 1), 10 * i, np.uint8) for i in range(3)])
    picture = grid(tiles, columns=2, padding=1)
    assert picture.shape == (1 + 2 * 65, 1 + 2 * 65, 1)
    assert (picture[1, 1, 0], picture[1, 66, 0], picture[66, 1, 0]) == (0, 10, 20)
    assert picture[66, 66, 0] == 255


def test_grid_enlarges_small_images_smoothly_by_a_whole_factor():
    small = np.zeros((1, 8, 8, 1), np.uint8)
    small[0, :, 4:] = 200
    picture = grid(small, padding=0, min_side=50)
    assert picture.shape == (56, 56, 1)
    assert (picture[28, 7, 0], picture[28, 48, 0]) == (0, 200)
    assert 50 < picture[28, 28, 0] < 150


def test_large_images_stay_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 80, 3), np.uint8)
    np.testing.assert_array_equal(grid(image, padding=0), image[0])


def test_labelled_rows_stack_all_grids():
    tiles = np.zeros((4, 64, 64, 1), np.uint8)
    one = labelled_rows([("one", tiles)], columns=4)
    two = labelled_rows([("one", tiles), ("two", tiles)], columns=4)
    assert two.shape == (2 * one.shape[0], one.shape[1], 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip_leaves_no_partial_file(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    save_png(tmp_path / "image.png", image)
    np.testing.assert_array_equal(load_png(tmp_path / "image.png"), image)
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


def test_grey_becomes_rgb_by_repetition():
    grey = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    np.testing.assert_array_equal(images.as_rgb(grey), np.repeat(grey, 3, -1))


def chunk(name, data):
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_the_shape_of_a_png_and_of_none(tmp_path):
    path = tmp_path / "image.png"
    for channels in (1, 3):
        save_png(path, np.zeros((5, 7, channels), np.uint8))
        assert png_shape(path) == (5, 7, channels)
    whole = path.read_bytes()
    assert png_shape(tmp_path / "missing.png") is None
    for damaged in (b"", whole[:10], whole[:-1], whole[:-12], whole[:50] + b"\0" + whole[51:], b"\0" * len(whole)):
        path.write_bytes(damaged)
        assert png_shape(path) is None
    # Parts that are whole each, but not together an image.
    pixels = zlib.compress(bytes(5 * (1 + 7 * 3)))
    header = whole[8:33]
    others = {
        "no pixels": [],
        "half the pixels": [zlib.compress(bytes(50))],
        "a line too many": [zlib.compress(bytes(6 * (1 + 7 * 3)))],
        "pixels cut off": [pixels[:-4]],
        "pixels overwritten": [bytes(len(pixels))],
    }
    for name, packed in {"whole": [pixels], "in two": [pixels[:5], pixels[5:]], **others}.items():
        path.write_bytes(whole[:8] + header + b"".join(chunk(b"IDAT", part) for part in packed) + chunk(b"IEND", b""))
        assert png_shape(path) == (None if name in others else (5, 7, 3)), name
    Image.new("RGBA", (7, 5)).save(path)
    assert png_shape(path) == (5, 7, 4)
    for mode in ("LA", "P"):
        Image.new(mode, (7, 5)).save(path)
        assert png_shape(path) is None


@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 1), ("uint8", 3), ("uint8", 4), ("uint16", 1)])
def test_a_png_holds_these_without_loss(tmp_path, dtype, channels):
    path = tmp_path / "image.png"
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (5, 7, channels)).astype(dtype)
    assert png_holds(dtype, channels)
    save_png(path, image)
    back = load_png(path)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, image)
    assert png_shape(path, dtype) == (5, 7, channels)
    assert png_shape(path, "uint8" if dtype == "uint16" else "uint16") is None
    path.write_bytes(path.read_bytes()[:-1])
    assert png_shape(path, dtype) is None


def test_what_a_png_does_not_hold():
    assert not any(png_holds(*kind) for kind in (("uint8", 2), ("uint8", 5), ("uint16", 3), ("float32", 1)))


def test_an_animation_rests_on_its_last_frame(tmp_path):
    frames = [np.full((8, 8, 1), 80 * i, np.uint8) for i in range(3)]
    save_gif(tmp_path / "way.gif", frames, 120)
    durations = []
    with Image.open(tmp_path / "way.gif") as gif:
        for frame in range(gif.n_frames):
            gif.seek(frame)
            durations.append(gif.info["duration"])
        assert gif.info["loop"] == 0
    assert durations == [120, 120, 1500]
