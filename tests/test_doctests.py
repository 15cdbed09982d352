"""The examples in the docstrings of the Python API, run on a small trained model."""

import doctest
import importlib.util
import pathlib

import pytest

import ddim_jax
from ddim_jax import pipeline
from ddim_jax.config import from_config_dict
from ddim_jax.data.sources import DigitsSource
from ddim_jax.jobs.train import train


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    path = pathlib.Path(__file__).parent.parent / "configs" / "digits.py"
    spec = importlib.util.spec_from_file_location("digits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("tiny")
    with config.unlocked():
        config.model.multipliers = (1,)
        config.model.attention_resolutions = ()
        config.train.steps = 1
        config.train.final_sample_steps = ()
    workdir = tmp_path_factory.mktemp("doctests") / "run"
    train(from_config_dict(config), workdir)
    return ddim_jax.load(workdir)


def test_examples_of_the_python_api(pipe):
    import numpy as np

    names = {"pipe": pipe, "digits": np.stack([DigitsSource()[i].image for i in range(4)]), "np": np}
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(verbose=False)
    for test in finder.find(pipeline.Pipeline, "Pipeline", globs=names):
        runner.run(test)
    assert runner.tries >= 9
    assert runner.failures == 0
