"""Values of any type on their way to the network's floats and back, and the pictures made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.pixels import Normalization, to_float, to_pictures, to_pixels

RANGES = {
    "one": ((-3.0,), (7.5,)),
    "far from 0": ((250.0,), (350.0,)),
    "tiny": ((0.0,), (1e-12,)),
    "large": ((-1e20,), (3e20,)),
    "by channel": ((0.0, -5.0), (1.0, 1000.0)),
}
SCALES = {"usual": ((0.5,), (0.5,)), "measured": ((0.31, 0.72), (0.08, 0.21))}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("values", RANGES)
def test_floats_come_back_to_a_millionth_of_their_range(values, scale):
    (low, high), (mean, std) = RANGES[values], SCALES[scale]
    normalization = Normalization(mean, std, "float32", low, high)
    spread = np.random.default_rng(0).random((2, 32, 16, 2))
    ends = np.stack([np.zeros((32, 16, 2)), np.ones((32, 16, 2))])
    span = np.asarray(high) - np.asarray(low)
    field = (np.asarray(low) + np.concatenate([spread, ends]) * span).astype(np.float32)
    way = jax.jit(lambda images: to_pixels(to_float(images, normalization), normalization))
    back = np.asarray(way(field))
    assert back.dtype == np.float32
    # Beside the way's own error there is that of float32 where values are far from 0.
    own = np.spacing(np.abs(field).max((0, 1, 2)))
    assert (np.abs(back.astype(np.float64) - field).max((0, 1, 2)) <= 1e-6 * span + own).all()
    assert (back >= np.float32(low)).all() and (back <= np.float32(high)).all()


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (100, 60000)])
@pytest.mark.parametrize("scale", SCALES)
def test_16_bits_come_back_exactly(scale, low, high):
    mean, std = SCALES[scale]
    normalization = Normalization(mean, std, "uint16", (float(low),), (float(high),))
    every = np.arange(low, high + 1).astype(np.uint16)
    images = np.stack([every, every], axis=-1)[None, None]
    back = np.asarray(jax.jit(lambda x: to_pixels(to_float(x, normalization), normalization))(images))
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, images)


def test_values_beyond_the_range_are_clipped_to_it():
    normalization = Normalization(dtype="float32", low=(-2.0,), high=(6.0,))
    assert to_pixels(jnp.float32([-9.0, -1.0, 0.0, 1.0, 9.0]), normalization).tolist() == [-2, -2, 2, 6, 6]


def test_pictures_show_black_at_the_lowest_value_and_white_at_the_highest():
    field = np.float32([-2.0, 0.0, 2.0, 6.0]).reshape(1, 2, 2, 1)
    shown = to_pictures(field, Normalization(dtype="float32", low=(-2.0,), high=(6.0,)))
    assert shown.dtype == np.uint8 and shown.reshape(-1).tolist() == [0, 64, 128, 255]
    sixteen = np.uint16([0, 257, 65535, 32768]).reshape(1, 2, 2, 1)
    assert to_pictures(sixteen, Normalization(dtype="uint16", high=(65535.0,))).reshape(-1).tolist() == [0, 1, 255, 128]


def test_pictures_of_other_channels():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 5), np.uint8)
    np.testing.assert_array_equal(to_pictures(images), images[..., :3])
    np.testing.assert_array_equal(to_pictures(images[..., :2]), images[..., :1])
    np.testing.assert_array_equal(to_pictures(images, channels=(4, 0, 2)), images[..., [4, 0, 2]])
    for channels in (1, 3):
        assert to_pictures(images[..., :channels]).tobytes() == images[..., :channels].tobytes()


def test_transparent_pixels_show_a_checkerboard():
    images = np.zeros((1, 8, 12, 4), np.uint8)
    images[0, :, :, 0] = 200
    clear = to_pictures(images)[0]
    assert {*clear.reshape(-1)} == {204, 255}
    assert clear[0, 0, 0] != clear[0, 4, 0] == clear[4, 0, 0] != clear[4, 4, 0]
    images[..., 3] = 255
    np.testing.assert_array_equal(to_pictures(images), images[..., :3])
