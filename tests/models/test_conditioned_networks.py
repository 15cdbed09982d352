"""Networks that are told vectors and pictures, and enlarge images that they cannot halve."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.conditions import Condition, told_vector
from ddim_jax.config import Config, DataConfig, ModelConfig
from ddim_jax.models import build_model, call, image_inputs, vector_inputs

SMALL = {"channels": 16, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": (), "dropout": 0.0}
NETWORKS = {
    "unet": ModelConfig(name="unet", num_groups=8, init="torch", **SMALL),
    "song_unet": ModelConfig(name="song_unet", num_groups=8, init="torch", **SMALL),
    "residual_unet": ModelConfig(name="residual_unet", num_groups=8, structure="ddim", norm="group", **SMALL),
}


def config(name, size=8, pad=False, **model):
    kinds = model.get("condition", ())
    data = DataConfig(
        image_size=size,
        channels=3,
        pad=pad,
        condition="mask" if "image" in kinds else "",
        condition_augmentation=0.5 if "image" in kinds and name != "residual_unet" else 0.0,
        vector="a" if "vector" in kinds else "",
    )
    return Config(data=data, model=dataclasses.replace(NETWORKS[name], **model))


def noise(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_variables(config):
    """All parameters random: a fresh network ends in zeros."""
    shape = jax.eval_shape(build_model(config).init, jax.random.key(0), noise((1, *config.data.image_shape)), noise(1))
    return jax.tree.map(lambda leaf: 0.2 * noise(leaf.shape, leaf.size), shape)


def names_and_shapes(config):
    shapes = jax.eval_shape(build_model(config).init, jax.random.key(0), noise((1, *config.data.image_shape)), noise(1))
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}


@pytest.mark.parametrize("name", ["unet", "song_unet"])
def test_conditions_add_two_layers_and_channels_of_the_input_alone(name):
    plain = names_and_shapes(config(name))
    told = names_and_shapes(config(name, condition=("vector", "image"), vector_size=5))
    assert {key for key in told if key not in plain} == {
        f"['params']['vector_dense_{i}']['{part}']" for i in (0, 1) for part in ("kernel", "bias")
    }
    assert {key for key in plain if plain[key] != told[key]} == {"['params']['conv_in']['kernel']"}
    # Three channels and those of the picture with its mask; five numbers, the flag and the level.
    assert told["['params']['conv_in']['kernel']"] == (3, 3, 3 + 4, 16)
    assert told["['params']['vector_dense_0']['kernel']"][0] == 7


@pytest.mark.parametrize("name", ["unet", "song_unet"])
def test_each_kind_is_heard_and_none_is_what_it_says(name):
    setting = config(name, condition=("vector", "image"), vector_size=2)
    assert (vector_inputs(setting), image_inputs(setting)) == (4, 4)
    model, variables = build_model(setting), random_variables(setting)
    x, time = noise((2, 8, 8, 3)), jnp.array([3.0, 40.0])
    full = Condition(vector=told_vector(noise((2, 2), 1)), image=noise((2, 8, 8, 4), 2), level=jnp.array([0.1, 0.4]))

    def output(**changes):
        return np.asarray(call(model, variables, x, time, full._replace(**changes)))

    for field in ("vector", "image", "level"):
        assert np.abs(output(**{field: getattr(full, field) + 1}) - output()).max() > 1e-3
    zeros = jax.tree.map(jnp.zeros_like, full)
    np.testing.assert_array_equal(call(model, variables, x, time, zeros), call(model, variables, x, time))


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_is_that_of_an_image_with_zeros_around_it(name):
    """The network of a padded image is the same one, and its output is cut back."""
    setting = config(name, size=(7, 10), pad=True, condition=("image",))
    model, variables = build_model(setting), random_variables(setting)
    x, picture, time = noise((2, 7, 10, 3)), noise((2, 7, 10, 4), 1), jnp.array([0.2, 0.7])
    small = call(model, variables, x, time, Condition(image=picture))
    assert small.shape == (2, 7, 10, 3)

    def enlarge(images):
        return jnp.pad(images, ((0, 0), (0, 1), (0, 0), (0, 0)))

    large = call(model, variables, enlarge(x), time, Condition(image=enlarge(picture)))
    np.testing.assert_array_equal(small, large[:, :7])
    with pytest.raises(ValueError, match="divisible by 2"):
        call(dataclasses.replace(model, pad=False), variables, x, time, Condition(image=picture))


def test_what_a_network_does_not_take_is_refused():
    plain = config("unet")
    model, variables = build_model(plain), random_variables(plain)
    x, time = noise((1, 8, 8, 3)), noise(1)
    with pytest.raises(ValueError, match="image_inputs=0"):
        call(model, variables, x, time, Condition(image=x))
    with pytest.raises(ValueError, match="vector_inputs=0"):
        call(model, variables, x, time, Condition(vector=jnp.ones((1, 3))))
