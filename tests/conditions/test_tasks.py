"""Pictures made of images, by name."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from ddim_jax.conditions.masks import MASKS, known_pixels
from ddim_jax.conditions.tasks import TASKS, augment, make_task, masked, to_network
from ddim_jax.errors import ConfigError
from ddim_jax.names import ConditionTask, MaskKind, choices

SHAPE = (16, 12, 3)
KINDS = typing.get_args(MaskKind)


def task(name, shape=SHAPE, **changes):
    settings = {"factor": 4, "masks": KINDS, "blur": 1.5, "noise": 0.1, "paired_shape": (8, 6, 2)}
    return make_task(name, shape, **{**settings, **changes})


def keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def images(num=5, shape=SHAPE, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random((num, *shape), np.float32))


def test_each_list_of_names_has_its_functions():
    assert tuple(TASKS) == choices(ConditionTask)
    assert tuple(MASKS) == choices(MaskKind)


@pytest.mark.parametrize("name", ["downsample", "grey", "mask", "blur", "noise"])
def test_pictures_have_the_shape_that_the_task_says_and_do_not_depend_on_the_batch(name):
    made = task(name)
    together = jax.jit(made.make)(images(), keys(5))
    assert together.shape == (5, *made.shape)
    assert together.dtype == jnp.float32
    alone = jnp.concatenate([jax.jit(made.make)(images()[i : i + 1], keys(5)[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_smaller_images_keep_constants_and_slopes():
    make = task("downsample").make
    np.testing.assert_allclose(make(jnp.full((1, *SHAPE), 0.3), keys(1)), 0.3, atol=1e-6)
    slope = jnp.broadcast_to((jnp.arange(16) + 0.5)[:, None, None] / 16, SHAPE)[None]
    # But at the border, beyond which there is nothing.
    np.testing.assert_allclose(make(slope, keys(1))[0, 1:-1, 0, 0], [0.375, 0.625], atol=0.01)
    assert make(images(), keys(5)).min() >= 0


def test_a_factor_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"data\.condition_factor=5: must divide height and width of the images, 16"):
        task("downsample", factor=5)


def test_grey_is_luma_of_colours_and_the_mean_of_others():
    found = task("grey").make(images(), keys(5))
    np.testing.assert_allclose(found[..., 0], images() @ jnp.array([0.299, 0.587, 0.114]), atol=1e-6)
    other = images(shape=(16, 12, 5))
    np.testing.assert_allclose(task("grey", (16, 12, 5)).make(other, keys(5))[..., 0], other.mean(-1), atol=1e-6)
    with pytest.raises(ConfigError, match="grey already"):
        task("grey", (16, 12, 1))


@pytest.mark.parametrize("sigma", [0.3, 1.5, 9.0])
def test_blur_is_scipys_gaussian_filter(sigma):
    found = task("blur", blur=sigma).make(images(), keys(5))
    for image, expected in zip(found, np.asarray(images(), np.float64), strict=True):
        filtered = scipy.ndimage.gaussian_filter(expected, (sigma, sigma, 0), mode="reflect")
        np.testing.assert_allclose(image, filtered, atol=1e-6)


def test_noise_has_its_deviation_and_is_not_cut_off():
    added = task("noise", noise=0.3).make(jnp.zeros((200, *SHAPE)), keys(200))
    assert abs(float(added.std()) - 0.3) < 0.003
    assert abs(float(added.mean())) < 0.003


def test_known_pixels_pass_unchanged_and_missing_ones_are_grey():
    made = task("mask").make(images(), keys(5))
    known = made[..., 3:]
    assert set(np.unique(known)) == {0, 1}
    np.testing.assert_array_equal(made[..., :3], jnp.where(known == 1, images(), 0.5))
    np.testing.assert_array_equal(masked(images(), known), made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(2, 2), (3, 5), (28, 28), (16, 40)])
def test_a_part_is_known_and_a_part_is_missing(kind, size):
    known = np.asarray(known_pixels(keys(300), size, (kind,)))[..., 0]
    share = known.mean(axis=(1, 2))
    assert share.min() > 0
    assert share.max() < 1
    # Other keys, other masks.
    assert len({each.tobytes() for each in known}) >= (4 if kind == "half" or min(size) < 4 else 100)
    if kind == "box" and min(size) > 8:
        assert 0.05 < 1 - share.mean() < 0.4


def test_each_kind_is_drawn_as_often():
    known = np.asarray(known_pixels(keys(3000), (10, 10), KINDS))[..., 0]
    halves = np.isclose(known.mean(axis=(1, 2)), 0.5) & np.array(
        [len(np.unique(each, axis=0)) == 1 or len(np.unique(each, axis=1).T) == 1 for each in known]
    )
    assert abs(halves.mean() - 1 / 3) < 0.04


def test_a_paired_picture_must_not_be_larger_than_the_image():
    assert task("paired") == ((8, 6, 2), None)
    with pytest.raises(ConfigError, match="pictures of 6x20 are larger than the images, 12x16"):
        task("paired", paired_shape=(20, 6, 2))


def test_the_network_is_given_pictures_at_its_own_size():
    small = task("downsample").make(images(), keys(5))
    found = to_network(small, SHAPE)
    np.testing.assert_allclose(found, 2 * jax.image.resize(small, (5, *SHAPE), "bicubic") - 1, atol=1e-6)
    np.testing.assert_array_equal(to_network(images(), SHAPE), 2 * images() - 1)


def test_augmented_pictures_keep_their_variance():
    picture = jax.random.normal(jax.random.key(3), (400, 8, 8, 1))
    level = jnp.linspace(0, 1, 400)
    found = augment(picture, level, keys(400))
    np.testing.assert_array_equal(found[0], picture[0])
    assert abs(float(found.std()) - 1) < 0.02
    alone = augment(picture[7:8], level[7:8], keys(400)[7:8])
    np.testing.assert_allclose(found[7], alone[0], atol=1e-6)
