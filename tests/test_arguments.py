"""Arguments of the Python API: what is taken, in which form, and what is said of the rest."""

import doctest
import re

import numpy as np
import pytest

from ddim_jax import arguments
from ddim_jax.errors import UserError
from ddim_jax.pixels import Normalization

SHAPE = (8, 8, 1)
IMAGES = np.full((3, *SHAPE), 7, np.uint8)
LATENTS = np.full((3, *SHAPE), 0.5)


def one_at(value, images, index=1):
    """A copy with one other value in the image of this index."""
    changed = np.array(images, float)
    changed[index, 2, 3] = value
    return changed


def refused(message, function, *given):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        function(*given)
    assert "\n" not in str(caught.value)


def test_examples():
    results = doctest.testmod(arguments)
    assert results.attempted and not results.failed


def test_whole_numbers_are_pixels_whatever_their_type():
    for given in (IMAGES, IMAGES.astype(np.int64), IMAGES.tolist()):
        taken = arguments.pixels(given, SHAPE)
        assert taken.dtype == np.uint8
        np.testing.assert_array_equal(taken, IMAGES)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.full((3, *SHAPE), 0.5),
            "images are float64 in 0.5 ... 0.5, but whole numbers in 0 ... 255 (uint8) are meant",
        ),
        (np.full((3, *SHAPE), 0.5), "in [0, 1] that is np.round(255 * images).astype(np.uint8)"),
        (np.full((3, *SHAPE), -0.5, np.float32), "in [-1, 1] that is np.round(127.5 * (images + 1)).astype(np.uint8)"),
        (np.full((3, *SHAPE), 7.0), "in [0, 255] that is np.round(images).astype(np.uint8)"),
        (np.ones((3, *SHAPE), bool), "images are bool"),
        (np.full((3, *SHAPE), 256), "images are int64 in 256 ... 256"),
        (np.full((3, *SHAPE), -1), "images are int64 in -1 ... -1"),
        (one_at(np.nan, IMAGES), "images[1] holds NaN or infinity"),
        (IMAGES[:0], "images are empty"),
        (IMAGES[0], "images have shape (8, 8, 1), but the model's are [n, 8, 8, 1]; that is one image: images[None]"),
        (IMAGES[..., 0], "the axis of channels is missing: images[..., None]"),
        (np.moveaxis(IMAGES, -1, 1), "channels come last: np.moveaxis(images, 1, -1)"),
        (np.moveaxis(IMAGES[0], -1, 0), "that is one image, channels first"),
        (IMAGES[:, :4], "images have shape (3, 4, 8, 1)"),
        ([[1, 2], [3]], "images: an array or a list of numbers is meant"),
        ("digits.png", "images: an array or a list of numbers is meant, of equal length throughout; got 'digits.png'"),
        (None, "got None"),
    ],
)
def test_what_is_not_pixels(images, message):
    refused(message, arguments.pixels, images, SHAPE)


def test_the_remedies_that_are_named_make_pixels():
    floats = np.linspace(0, 1, IMAGES.size).reshape(IMAGES.shape)
    expected = np.round(255 * floats)
    for images in (floats, 2 * floats - 1, 255 * floats):
        with pytest.raises(UserError) as caught:
            arguments.pixels(images, SHAPE)
        remedy = str(caught.value).split(" that is ")[1]
        np.testing.assert_array_equal(arguments.pixels(eval(remedy), SHAPE), expected)


def test_latents():
    taken = arguments.latents(LATENTS, SHAPE)
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, LATENTS)
    refused("latents[2] holds NaN or infinity", arguments.latents, one_at(np.nan, LATENTS, 2), SHAPE)
    refused("latents[0] holds NaN or infinity", arguments.latents, one_at(np.inf, LATENTS, 0), SHAPE)
    refused("latents[1] holds NaN or infinity", arguments.latents, one_at(1e300, LATENTS), SHAPE)
    refused("latents are uint8, but floats", arguments.latents, IMAGES, SHAPE)
    refused("latents have shape (3, 8, 8)", arguments.latents, LATENTS[..., 0], SHAPE)


def test_masks():
    left = np.broadcast_to(np.arange(8) < 4, (8, 8))
    expected = np.broadcast_to(left[None, :, :, None], (3, 8, 8, 1))
    for given in (left, left.tolist(), left.astype(int), 255 * left.astype(np.uint8), np.stack([left] * 3)):
        taken = arguments.mask(given, IMAGES.shape)
        assert taken.dtype == bool
        np.testing.assert_array_equal(taken, expected)
    refused("the mask is float64 in 0.5 ... 0.5", arguments.mask, np.full((8, 8), 0.5), IMAGES.shape)
    refused("the mask has shape (9, 8)", arguments.mask, np.ones((9, 8), bool), IMAGES.shape)


def test_labels():
    assert arguments.labels(None, 3, 10) is None
    taken = arguments.labels([0, 9, 3], 3, 10)
    assert taken is not None and taken.dtype == np.int32
    np.testing.assert_array_equal(taken, [0, 9, 3])
    refused("labels[1]=99: the model has classes 0 ... 9", arguments.labels, [1, 99, 2], 3, 10)
    refused("labels[0]=-1: the model has classes 0 ... 9", arguments.labels, [-1, 9, 2], 3, 10)
    refused("labels are float64, but classes are meant", arguments.labels, [1.7, 1, 1], 3, 10)
    refused("labels have shape (1,), but one for each of 3 images is meant", arguments.labels, [1], 3, 10)
    refused("np.full(3, 4)", arguments.labels, 4, 3, 10)
    refused("the model has no classes", arguments.labels, [1, 2, 3], 3, 0)


def test_indices():
    for given in ([7, 3], (7, 3), np.array([7, 3], np.int32), range(7, 2, -4)):
        np.testing.assert_array_equal(arguments.indices(given, "first"), [7, 3])
    refused("indices=2: a list of image indices is meant, e.g. [2]", arguments.indices, 2, "indices")
    refused("first is empty", arguments.indices, [], "first")
    refused("first[1]=-1: image indices lie in 0 ... 2^31 - 1", arguments.indices, [1, -1], "first")
    refused(f"first[0]={2**31}", arguments.indices, [2**31], "first")
    refused("first are float64 of shape (1,)", arguments.indices, [1.5], "first")
    refused("first are bool", arguments.indices, [True], "first")
    refused("first are int64 of shape (1, 2)", arguments.indices, [[1, 2]], "first")
    refused("second: found 1 image indices, but 2 are meant", arguments.indices, [2], "second", 2)


def test_whole_numbers():
    for given in (3, np.int64(3), np.uint8(3)):
        assert arguments.whole_number(given, "jump", 1) == 3
    for given in (3.0, "3", True, None, 0):
        refused(f"jump={given!r}: a whole number of 1 or more is meant", arguments.whole_number, given, "jump", 1)
    refused("level=1001: a whole number in 1 ... 1000", arguments.whole_number, 1001, "level", 1, 1000)


def test_switches():
    for given in (True, np.True_, 1):
        assert arguments.switch(given, "ema") is True
    assert arguments.switch(False, "ema") is False
    for given in ("false", None, 2, 1.0, np.ones(3)):
        refused("True or False is meant", arguments.switch, given, "ema")


def test_arrays_of_other_libraries_raise_what_they_like():
    class Tensor:
        def __array__(self, *unused, **also_unused):
            raise RuntimeError("Can't call numpy() on a Tensor\nthat requires grad")

    for function, given in (
        (arguments.pixels, (SHAPE,)),
        (arguments.latents, (SHAPE,)),
        (arguments.mask, (IMAGES.shape,)),
        (arguments.labels, (3, 10)),
        (arguments.indices, ("indices",)),
        (arguments.pictures, ()),
    ):
        refused("(Can't call numpy() on a Tensor that requires grad)", function, Tensor(), *given)


def test_a_message_shows_the_beginning_of_a_long_value():
    for function, given in ((arguments.whole_number, ("jump", 1)), (arguments.switch, ("progress",))):
        with pytest.raises(UserError) as caught:
            function(np.arange(10_000).reshape(100, 100), *given)
        assert len(str(caught.value)) < 150 and "\n" not in str(caught.value)


def test_pictures():
    for given in (IMAGES, IMAGES[0], IMAGES[None], np.repeat(IMAGES, 3, -1)):
        np.testing.assert_array_equal(arguments.pictures(given), given)
    refused("images are float64", arguments.pictures, LATENTS)
    refused("images have shape (8, 8)", arguments.pictures, IMAGES[0, ..., 0])
    refused("images have shape (0, 8, 8, 1)", arguments.pictures, IMAGES[:0])


def test_images_of_other_types_are_converted_safely():
    field = Normalization(dtype="float32", low=(-1.0,), high=(3.0,))
    given = np.array([-1, 0.1, 2, 3]).reshape(1, 2, 2, 1)
    assert arguments.pixels(given, (2, 2, 1), field).dtype == np.float32
    np.testing.assert_allclose(arguments.pixels(given, (2, 2, 1), field), given, rtol=1e-7)
    assert arguments.pixels(given.round().astype(int), (2, 2, 1), field).dtype == np.float32
    sixteen = Normalization(dtype="uint16", high=(65535.0,))
    whole = np.array([0, 255, 256, 65535]).reshape(1, 2, 2, 1)
    assert arguments.pixels(whole, (2, 2, 1), sixteen).tolist() == whole.tolist()
    refused = {
        "2 of 4 values lie outside, the first in images\\[0\\]": (given * 1.1, field),
        "^images\\[0\\] holds NaN or infinity": (given * np.nan, field),
        "whole numbers in 0 ... 65535 \\(uint16\\) are meant; for whole numbers among floats": (given, sixteen),
        "^images are int64 in -65535 ... 0, but whole numbers in 0 ... 65535": (-whole, sixteen),
    }
    for message, (images, normalization) in refused.items():
        with np.errstate(invalid="ignore"), pytest.raises(UserError, match=message):
            arguments.pixels(images, (2, 2, 1), normalization)
