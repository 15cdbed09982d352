"""Images by index, over batches and devices."""

import dataclasses

import jax
import numpy as np
import pytest

from ddim_jax.config import Config, DataConfig, DiffusionConfig, ModelConfig, SampleConfig
from ddim_jax.configured import build_sampler
from ddim_jax.diffusion.samplers import SAMPLERS
from ddim_jax.diffusion.table import as_data
from ddim_jax.errors import UserError
from ddim_jax.models import build_model
from ddim_jax.names import SamplerName, choices
from ddim_jax.sampling.image_sampler import ImageSampler, image_indices, image_items, sampler_for
from ddim_jax.sampling.programs import Given, image_program
from ddim_jax.sharded_map import ShardedMap
from ddim_jax.training.checkpoint import select_weights
from ddim_jax.training.state import init_state, make_optimizer

CONFIG = Config(
    data=DataConfig(image_size=8, channels=1),
    # PyTorch's initialisation, under which a fresh network's output is not zero.
    model=ModelConfig(
        channels=32, num_groups=8, multipliers=(1, 1), num_blocks=1, attention_resolutions=(4,), init="torch"
    ),
    diffusion=DiffusionConfig(num_levels=50),
    sample=SampleConfig(steps=4, eta=0.5),
)


@pytest.fixture(scope="module")
def model_and_variables():
    model = build_model(CONFIG)
    state = init_state(CONFIG, model, make_optimizer(CONFIG.train, 1))
    return model, select_weights(state, ema=True)


def with_sample(**settings):
    return dataclasses.replace(CONFIG, sample=dataclasses.replace(CONFIG.sample, **settings))


def differing(one, other):
    assert one.shape == other.shape
    return np.mean(one != other)


def test_sharded_map_pads_cuts_and_keeps_the_order():
    seen = []

    def scale(factor, items):
        seen.append(items["x"].shape)
        return {"y": factor * items["x"]}

    x = np.arange(21.0).reshape(21, 1)
    result = ShardedMap(scale, batch_size=2)(np.float32(3), {"x": x})
    np.testing.assert_array_equal(result["y"], 3 * x)
    assert set(seen) == {(2, 1)}


def test_an_image_depends_on_its_index_alone(model_and_variables):
    model, variables = model_and_variables
    indices = np.arange(20)
    reference = ImageSampler(CONFIG, model, batch_size=3).draw(variables, indices)
    assert reference.dtype == np.uint8
    assert len(np.unique(reference.reshape(20, -1), axis=0)) == 20
    shuffled = np.random.default_rng(0).permutation(indices)
    same_shape = ImageSampler(CONFIG, model, batch_size=3).draw(variables, shuffled)
    np.testing.assert_array_equal(same_shape, reference[shuffled])
    for batch_size in (1, 7):
        assert differing(ImageSampler(CONFIG, model, batch_size=batch_size).draw(variables, indices), reference) < 1e-3


def test_the_seed_matters_and_the_noise_does_not_depend_on_the_steps(model_and_variables):
    model, variables = model_and_variables
    other_seed = sampler_for(with_sample(seed=1), model, 4).draw(variables, range(4))
    first = sampler_for(CONFIG, model, 4).draw(variables, range(4))
    assert differing(other_seed, first) > 0.5
    # One deterministic step from the same x_T and one from twice as many levels start from the same noise: the images
    # of an almost linear network agree closely.
    coarse, fine = (
        sampler_for(with_sample(eta=0.0, steps=steps), model, 4).draw(variables, range(4)).astype(float)
        for steps in (25, 50)
    )
    assert np.corrcoef(coarse.ravel(), fine.ravel())[0, 1] > 0.9


@pytest.fixture(scope="module")
def any_sampler(model_and_variables):
    """One program serves the samplers that remember as much."""
    return sampler_for(with_sample(eta=0.0), model_and_variables[0], 2)


@pytest.mark.parametrize("sampler", [name for name in choices(SamplerName) if name != "ddpm_learned"])
def test_image_i_is_image_i_of_every_sampler(model_and_variables, any_sampler, sampler):
    """Also where noise is added at each step."""
    _, variables = model_and_variables
    churn = 2.0 if SAMPLERS[sampler].churns else 0.0
    # Coefficients that were fitted to some network: keep and two weights of each step.
    fitted = (0.5, 0.4, 0.1) * CONFIG.sample.steps if sampler == "tuned" else ()
    draw = any_sampler.with_settings(with_sample(sampler=sampler, eta=0.0, churn=churn, coefficients=fitted).sample)
    images = draw.draw(variables, [0, 1])
    assert images.shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(draw.draw(variables, [1, 5])[0], images[1])


def test_an_eta_for_each_step():
    np.testing.assert_allclose(build_sampler(with_sample(eta_per_step=(0.0, 1.0, 1.0, 0.0))).table.noise[[0, 3]], 0)
    with pytest.raises(UserError, match=r"eta has 2 values for 4 steps"):
        build_sampler(with_sample(eta_per_step=(0.0, 1.0)))


def test_labels_take_turns_or_are_all_the_same():
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, num_classes=3))
    np.testing.assert_array_equal(image_items(config, np.arange(2, 7)).label, [2, 0, 1, 2, 0])
    one = dataclasses.replace(config, sample=dataclasses.replace(config.sample, label=1))
    np.testing.assert_array_equal(image_items(one, np.arange(4)).label, 1)


def test_which_images_are_asked_for():
    np.testing.assert_array_equal(image_indices(with_sample(num=3, start=5)), [5, 6, 7])
    np.testing.assert_array_equal(image_indices(with_sample(indices=(9, 2))), [9, 2])
    classes = dataclasses.replace(with_sample(per_class=4), model=dataclasses.replace(CONFIG.model, num_classes=3))
    labels = image_items(classes, image_indices(classes)).label
    np.testing.assert_array_equal(np.bincount(labels), [4, 4, 4])


def test_memory_does_not_grow_with_the_steps(model_and_variables):
    model, variables = model_and_variables
    items = image_items(CONFIG, np.arange(2))

    def temporary_bytes(steps):
        config = with_sample(steps=steps, eta=0.0)
        given = Given(variables, as_data(build_sampler(config).table))
        program = jax.jit(image_program(config, model))
        return program.lower(given, items).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(5), temporary_bytes(50)
    assert many == few
