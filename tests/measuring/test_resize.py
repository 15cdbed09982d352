"""Resizing for the Inception network against plain loops written from each protocol's definition."""

import jax
import numpy as np
import pytest
from PIL import Image

from ddim_jax import names
from ddim_jax.errors import UserError
from ddim_jax.measuring.resize import PROTOCOLS, resize, resize_as_pillow, resize_matrix

LENGTHS = (1, 2, 8, 28, 32, 64, 256, 299, 300, 512)


def random_images(n, height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def bilinear_line(line, positions):
    """Interpolates between neighbours; outside the line its ends go on."""
    return np.interp(positions, np.arange(len(line)), line)


def keys_cubic(x):
    """Keys' kernel with a = -1/2."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def cubic_line(line, size):
    scale = len(line) / size
    stretch = max(scale, 1)
    result = []
    for i in range(size):
        weights = [keys_cubic((j + 0.5 - (i + 0.5) * scale) / stretch) for j in range(len(line))]
        result.append(np.dot(weights, line) / sum(weights))
    return np.array(result)


@pytest.mark.parametrize("length", LENGTHS)
def test_matrices_do_what_the_protocols_say(length):
    line = np.random.default_rng(length).uniform(0, 255, length)
    i = np.arange(299)
    expected = {
        "tf1": bilinear_line(line, i * length / 299),
        "pytorch": bilinear_line(line, (i + 0.5) * length / 299 - 0.5),
        "clean": cubic_line(line, 299),
    }
    for protocol, values in expected.items():
        # Positions are float32 in the originals: 299 of them, a few 1e-5 pixels off.
        atol = 1e-10 if protocol == "clean" else 255 * length * 2.0**-23
        np.testing.assert_allclose(resize_matrix(length, 299, protocol) @ line, values, rtol=0, atol=atol)


@pytest.mark.parametrize("protocol", ["tf1", "pytorch", "clean"])
@pytest.mark.parametrize("length", LENGTHS)
def test_rows_sum_to_one_and_equal_size_changes_nothing(length, protocol):
    np.testing.assert_allclose(resize_matrix(length, 299, protocol).sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(resize_matrix(length, length, protocol), np.eye(length))


@pytest.mark.parametrize(
    ("protocol", "low", "high"), [("tf1", -1, 127 / 128), ("pytorch", -1, 1), ("clean", -1, 127 / 128)]
)
def test_normalization_and_clipping(protocol, low, high):
    """Black and white stay black and white, also beside an edge, where a cubic overshoots."""
    image = np.zeros((1, 16, 8, 3), np.uint8)
    image[:, :, 4:] = 255
    result = np.asarray(resize(image, protocol))
    assert result.shape == (1, 299, 299, 3) and result.dtype == np.float32
    np.testing.assert_allclose([result.min(), result.max()], [low, high], atol=1e-6)
    np.testing.assert_allclose(result[0, :, 0], low, atol=1e-6)
    np.testing.assert_allclose(result[0, :, -1], high, atol=1e-6)


@pytest.mark.parametrize("protocol", ["tf1", "pytorch", "clean"])
def test_height_and_width_colours_and_images_do_not_mix(protocol):
    images = random_images(2, 20, 31, 3)
    whole = np.asarray(resize(images, protocol))
    turned = np.asarray(resize(images.transpose(0, 2, 1, 3), protocol))
    np.testing.assert_allclose(turned.transpose(0, 2, 1, 3), whole, atol=1e-5)
    grey = np.asarray(resize(images[..., 1:2], protocol))
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    np.testing.assert_allclose(grey[..., 0], whole[..., 1], atol=1e-5)
    np.testing.assert_allclose(resize(images[1:], protocol)[0], whole[1], atol=1e-5)


def test_the_published_shift_of_tf1():
    """TensorFlow 1 does not keep a symmetric image symmetric; the others do."""
    half = random_images(1, 32, 16, 3)
    image = np.concatenate([half, half[:, :, ::-1]], axis=2)
    for protocol, symmetric in (("tf1", False), ("pytorch", True), ("clean", True)):
        result = np.asarray(resize(image, protocol))
        assert (np.abs(result - result[:, :, ::-1]).max() < 1e-3) == symmetric
    noise = random_images(4, 32, 32, 3)
    difference = np.abs(resize_levels(noise, "tf1") - resize_levels(noise, "pytorch")).mean()
    assert 34 < difference < 39


def resize_levels(images, protocol):
    """The result on the scale of pixels, 0 ... 255."""
    result = np.asarray(resize(images, protocol))
    return (result + 1) * 127.5 if protocol == "pytorch" else result * 128 + 128


def test_compiled_and_another_size():
    images = random_images(2, 10, 10, 1)
    compiled = jax.jit(lambda x: resize(x, "clean", size=64))
    np.testing.assert_allclose(compiled(images), resize(images, "clean", size=64), atol=1e-5)
    assert compiled(images).shape == (2, 64, 64, 3)


@pytest.mark.parametrize(
    ("images", "protocol"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "tf1"),
        (np.zeros((8, 8, 3), np.uint8), "tf1"),
        (np.zeros((2, 8, 8, 4), np.uint8), "tf1"),
    ],
)
def test_what_cannot_be_resized(images, protocol):
    with pytest.raises(ValueError):
        resize(images, protocol)


def test_protocols_are_those_that_a_config_may_name():
    assert tuple(PROTOCOLS) == names.choices(names.ResizeProtocol)
    with pytest.raises(UserError, match="resize protocol 'tf2' does not exist"):
        resize(np.zeros((2, 8, 8, 3), np.uint8), "tf2")


@pytest.mark.parametrize(
    "shape", [(3, 5), (28, 28), (32, 32), (224, 224), (256, 256), (512, 512), (48, 80), (400, 180)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_8_bit_pictures_are_resized_to_the_bit_as_pillow_does(shape, channels):
    images = random_images(2, *shape, channels)
    images[1] = 255 * (images[1] > 127)  # overshoots most
    expected = []
    for image in np.broadcast_to(images, (2, *shape, 3)):
        # In two steps: from version 13 on, Pillow takes columns first where the height shrinks much.
        rows = Image.fromarray(image).resize((224, shape[0]), Image.Resampling.BICUBIC)
        expected.append(np.asarray(rows.resize((224, 224), Image.Resampling.BICUBIC)))
    found = np.asarray(resize_as_pillow(images, 224))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_only_8_bit_pictures_are_resized_as_pillow_does():
    for images in (np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 8, 2), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="images must be uint8"):
            resize_as_pillow(images, 224)
