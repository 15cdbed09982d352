"""The examples in docstrings; those of the Python API run on a small trained model."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
from small import small_digits

import ddim_jax
from ddim_jax import diffusion, metrics, pipeline
from ddim_jax.data.sources import DigitsSource
from ddim_jax.jobs.train import train


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("doctests") / "run"
    train(small_digits(), workdir)
    return ddim_jax.load(workdir)


def test_examples_of_the_python_api(pipe):
    names = {"pipe": pipe, "digits": np.stack([DigitsSource()[i].image for i in range(4)]), "np": np}
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(verbose=False)
    for test in finder.find(pipeline.Pipeline, "Pipeline", globs=names):
        runner.run(test)
    assert runner.tries >= 9
    assert runner.failures == 0


def modules_of(package):
    return [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]


OTHERS = ["measuring.figures", "measuring.reference", "weights.unet_names", "names", "digests", "config.keys"]


@pytest.mark.parametrize(
    "module",
    [
        *("ddim_jax.diffusion", *modules_of(diffusion), *modules_of(metrics)),
        *(f"ddim_jax.{name}" for name in OTHERS),
    ],
)
def test_every_module_of_the_mathematics_has_examples_that_run(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted and not results.failed
