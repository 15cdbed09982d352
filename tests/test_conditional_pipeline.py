"""The Python API of networks that draw images from classes, vectors and pictures."""

import dataclasses

import jax
import numpy as np
import pytest

from ddim_jax.config import Config, DataConfig, DiffusionConfig, ModelConfig, SampleConfig, TrainConfig
from ddim_jax.errors import UserError
from ddim_jax.models import build_model
from ddim_jax.pipeline import Pipeline

SMALL = ModelConfig(channels=16, num_groups=8, multipliers=(1,), num_blocks=1, attention_resolutions=(), init="torch")
N = 4


def make_pipe(condition="downsample", kinds=("class", "vector", "image"), dropout=(0.1, 0.1, 0.1), **sample):
    config = Config(
        data=DataConfig(
            image_size=8, channels=1 if condition != "grey" else 3, vector="a" if "vector" in kinds else "",
            condition=condition if "image" in kinds else "", condition_factor=2,
            condition_augmentation=0.5 if "image" in kinds else 0.0,
        ),
        model=dataclasses.replace(
            SMALL, condition=kinds, num_classes=3 if "class" in kinds else 0,
            vector_size=2 if "vector" in kinds else 0,
        ),
        diffusion=DiffusionConfig(num_levels=100),
        train=TrainConfig(condition_dropout=dropout),
        sample=SampleConfig(steps=3, **sample),
    )  # fmt: skip
    model = build_model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *config.data.image_shape)), np.zeros(1))
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: (0.2 * random.normal(size=leaf.shape)).astype(np.float32), shapes)
    return Pipeline(config, model, {"params": variables["params"], "batch_stats": {}}, 0)


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


def condition(count=N, **changes):
    random = np.random.default_rng(1)
    return {
        "label": np.arange(count) % 3,
        "vector": random.normal(size=(count, 2)),
        "image": random.integers(0, 256, (count, 4, 4, 1), np.uint8),
    } | changes


def rows(which, **changes):
    return {name: value[which] for name, value in condition(**changes).items()}


def test_image_i_is_image_i_of_its_condition(pipe):
    images = pipe.sample(condition=condition())
    assert images.shape == (N, 8, 8, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(pipe.sample(start=2, condition=rows(slice(2, 4))), images[2:])
    np.testing.assert_array_equal(pipe.sample(indices=[3, 0], condition=rows([3, 0])), images[[3, 0]])
    for changes in ({"label": np.full(N, 2)}, {"vector": np.ones((N, 2))}, {"image": np.zeros((N, 4, 4, 1), np.uint8)}):
        changed = pipe.sample(condition=condition(**changes))
        assert any(not np.array_equal(one, other) for one, other in zip(changed, images, strict=True))


def test_several_images_of_each_condition(pipe):
    images = pipe.sample(condition=condition(2), per_condition=2)
    repeated = {name: np.repeat(value, 2, axis=0) for name, value in condition(2).items()}
    np.testing.assert_array_equal(images, pipe.sample(condition=repeated))
    with pytest.raises(UserError, match="per_condition=3: 4 images are no multiple"):
        pipe.sample(4, condition=condition(2), per_condition=3)


def test_the_noise_of_a_condition_is_that_of_its_image(pipe):
    images = pipe.sample(condition=condition(), condition_augmentation=0.4)
    assert not np.array_equal(images, pipe.sample(condition=condition()))
    alone = pipe.sample(start=1, condition=rows([1]), condition_augmentation=0.4)
    np.testing.assert_array_equal(alone, images[1:2])
    with pytest.raises(UserError, match=r"sample.condition_augmentation=0.6: .*=0.5 at most"):
        pipe.sample(condition=condition(), condition_augmentation=0.6)


def test_all_methods_take_conditions(pipe):
    told = condition()
    noise = pipe.noise(range(N))
    np.testing.assert_array_equal(pipe.decode(noise, condition=told), pipe.sample(condition=told))
    images = pipe.sample(condition=told)
    latents = pipe.encode(images, condition=told)
    assert latents.shape == images.shape
    assert not np.array_equal(latents, pipe.encode(images, condition=condition(vector=np.zeros((N, 2)))))
    assert pipe.recover(images, 50, condition=told).recovered.shape == images.shape
    np.testing.assert_array_equal(pipe.trajectory(range(N), condition=told).final, images)
    path = pipe.interpolate([0, 1], [2, 3], points=3, condition=rows([0, 1]))
    np.testing.assert_array_equal(path[0, 0], pipe.sample(1, condition=rows([0]))[0])
    assert pipe.interpolate_grid([0, 1, 2, 3], side=2, condition=rows([0])).shape == (2, 2, 8, 8, 1)
    mask = np.arange(8) < 4
    kept = pipe.inpaint(images, np.broadcast_to(mask, (8, 8)), resamplings=1, jump=1, condition=told)
    np.testing.assert_array_equal(kept[:, :, :4], images[:, :, :4])


def test_none_is_a_condition_where_training_left_it_out(pipe):
    assert pipe.sample(condition=condition(vector=None)).shape == (N, 8, 8, 1)
    never = make_pipe(dropout=(0.1, 0.0, 0.1))
    with pytest.raises(UserError, match="vector=None: this network was never trained without"):
        never.sample(condition=condition(vector=None))


def test_guidance_of_any_kind(pipe):
    guided = pipe.sample(condition=condition(), guidance_scale=3.0)
    assert not np.array_equal(guided, pipe.sample(condition=condition()))
    # What is not told cannot be guided towards.
    pictures = make_pipe(kinds=("image",), dropout=(0.1,))
    untold = pictures.sample(2, condition={"image": None}, guidance_scale=3.0)
    np.testing.assert_array_equal(untold, pictures.sample(2, condition={"image": None}))
    with pytest.raises(UserError, match=r"guidance_scale=3.0: .*train.condition_dropout.*guide_workdir"):
        make_pipe(kinds=("image",), dropout=(0.0,)).sample(2, condition={"image": None}, guidance_scale=3.0)


def test_small_images_are_upscaled_and_spoilt_ones_restored():
    pipe = make_pipe(kinds=("image",), dropout=())
    small = condition()["image"]
    np.testing.assert_array_equal(pipe.upscale(small), pipe.sample(condition=small))
    assert pipe.upscale(small, per_condition=2).shape == (2 * N, 8, 8, 1)
    with pytest.raises(
        UserError, match=r"restore\(\) is for networks with data.condition=grey or .*condition=downsample"
    ):
        pipe.restore(small)
    with pytest.raises(UserError, match=r"images have shape"):
        pipe.upscale(np.zeros((1, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match="images are float64"):
        pipe.upscale(small / 255)
    masked = make_pipe("mask", kinds=("image",), dropout=())
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    mask = np.broadcast_to(np.arange(8) < 4, (8, 8))
    restored = masked.restore(images, mask)
    # What is hidden has no part in it.
    np.testing.assert_array_equal(restored, masked.restore(np.where(mask[..., None], images, 7), mask))
    with pytest.raises(UserError, match="give mask"):
        masked.restore(images)
    grey = make_pipe("grey", kinds=("image",), dropout=())
    assert grey.restore(images).shape == (2, 8, 8, 3)


def test_the_picture_of_an_image(pipe):
    images = np.full((2, 8, 8, 1), 51, np.uint8)
    made = pipe.condition_of(images, vectors=np.ones((2, 2)))
    assert made["picture"].shape == (2, 4, 4, 1)
    np.testing.assert_allclose(made["picture"], 0.2, atol=1e-6)
    given = condition(2, image=np.full((2, 4, 4, 1), 51, np.uint8), vector=np.ones((2, 2)))
    np.testing.assert_array_equal(
        pipe.sample(condition={**made, "label": given["label"]}), pipe.sample(condition=given)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.array([0, 1, 2, 3])}, "the model has classes 0 ... 2"),
        ({"label": np.zeros(3, int)}, "labels have shape"),
        ({"vector": np.zeros((4, 3))}, r"vectors have shape \(4, 3\), but \(4, 2\) is meant: model.vector_size=2"),
        ({"vector": np.full((4, 2), np.nan)}, "vectors"),
        ({"image": np.zeros((3, 4, 4, 1), np.uint8)}, "found 3 pictures, but 4 are meant"),
        ({"image": np.zeros((4, 4, 4, 1))}, "whole numbers in 0 ... 255"),
        ({"mask": np.ones((4, 4))}, "data.condition=downsample has none"),
        ({"colour": 3}, "nothing of 'colour'; choose from: label, vector, image, mask, picture"),
    ],
)
def test_mistakes_are_one_line(pipe, changes, message):
    with pytest.raises(UserError, match=message):
        pipe.sample(N, condition=condition(**changes))


def test_missing_conditions_are_one_line(pipe):
    with pytest.raises(UserError, match=r"model.condition=vector,image: this network draws images from what it is"):
        pipe.sample(2)
    with pytest.raises(UserError, match="'image' is missing; the network is told class, vector, image"):
        pipe.sample(condition={"vector": np.zeros((1, 2))})
    with pytest.raises(UserError, match="give a dictionary of 'label', 'vector', 'image'"):
        pipe.sample(condition=np.zeros((1, 2)))
    with pytest.raises(UserError, match="drawn from noise alone"):
        make_pipe(kinds=(), dropout=()).sample(condition=[0])
