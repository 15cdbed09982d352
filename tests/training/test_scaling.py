"""Each device's work, and what it sends, stay the same however many devices there are: as compiled programs tell."""

import dataclasses
import importlib
import pathlib
import sys

import jax
import pytest
from small import small_digits

from ddim_jax.models import build_model, parameter_count
from ddim_jax.training.state import abstract_state, make_optimizer

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
IMAGES_PER_DEVICE = 2
FEW, MANY = 1, 8
# Averaged together with the gradients.
METRICS = ("loss", "image_loss")
# Operations on each parameter that averaging adds: a sum and a factor, as XLA counts them.
AVERAGING = 5


@pytest.fixture(scope="module")
def inspect_program():
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("inspect_program")
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def config():
    config = small_digits()
    return dataclasses.replace(config, data=dataclasses.replace(config.data, mean=(0.5,), std=(0.5,)))


@pytest.fixture(scope="module")
def params(config):
    return abstract_state(config, build_model(config), make_optimizer(config.train, 1)).params


def compile_for(inspect_program, config, program, count):
    train = dataclasses.replace(config.train, batch_size=count * IMAGES_PER_DEVICE)
    return inspect_program.compile_program(
        dataclasses.replace(config, train=train), program, jax.devices()[:count], IMAGES_PER_DEVICE
    )


@pytest.fixture(scope="module")
def training(inspect_program, config):
    """The training step by number of devices."""
    return {count: compile_for(inspect_program, config, "train", count) for count in (FEW, MANY)}


@pytest.fixture(scope="module")
def sampling(inspect_program, config):
    """The sampler by number of devices."""
    return {count: compile_for(inspect_program, config, "sample", count) for count in (FEW, MANY)}


def flop(compiled):
    return compiled.cost_analysis()["flops"]


def memory(compiled):
    plan = compiled.memory_analysis()
    return plan.argument_size_in_bytes, plan.temp_size_in_bytes


def test_each_device_trains_on_its_share_alone(training, params):
    assert flop(training[MANY]) >= flop(training[FEW])
    assert flop(training[MANY]) - flop(training[FEW]) <= AVERAGING * parameter_count(params)


def test_each_device_keeps_the_state_and_its_share_of_the_batch(training):
    (few_arguments, few_temporary), (many_arguments, many_temporary) = memory(training[FEW]), memory(training[MANY])
    assert many_arguments == few_arguments
    assert many_temporary == pytest.approx(few_temporary, rel=0.05)


def test_training_sends_the_gradients_once_and_nothing_else(training, params, inspect_program):
    found = inspect_program.collectives(training[MANY].as_text())
    assert list(found) == ["all-reduce"]
    assert found["all-reduce"].number == 1
    values = parameter_count(params) + len(METRICS)
    # Biases that are added to the same pixels have the same gradient, which XLA sends once.
    twins = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if jax.tree_util.keystr(path).endswith(("['time_dense']['bias']", "['shortcut']['bias']"))
    )
    assert 4 * (values - twins) <= found["all-reduce"].bytes <= 4 * values


def test_each_device_draws_its_images_alone(sampling, inspect_program):
    assert flop(sampling[MANY]) == flop(sampling[FEW])
    assert memory(sampling[MANY]) == memory(sampling[FEW])
    assert inspect_program.collectives(sampling[MANY].as_text()) == {}
