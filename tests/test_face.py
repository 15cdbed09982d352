"""What ``import ddim_jax`` offers, each time in a process of its own, and what it costs."""

import os
import pathlib
import subprocess
import sys

import pytest

import ddim_jax
from ddim_jax import version

ROOT = pathlib.Path(__file__).parent.parent
OFFERED = ["Pipeline", "__version__", "diffusion", "load", "load_weights", "metrics", "show", "train"]


def printed(program):
    """What a program prints in a new process."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_imports_nothing_large():
    program = "import sys, ddim_jax; print(sorted({'jax', 'numpy', 'absl', 'ml_collections'} & set(sys.modules)))"
    assert printed(program) == "[]"


def test_the_package_lists_what_it_offers_and_nothing_else():
    assert printed("import ddim_jax; print(dir(ddim_jax))") == str(OFFERED)
    assert sorted(ddim_jax.__all__) == OFFERED


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("Pipeline", "ddim_jax.pipeline"),
        ("load", "ddim_jax.pipeline"),
        ("load_weights", "ddim_jax.pipeline"),
        ("show", "ddim_jax.pipeline"),
        ("diffusion", "ddim_jax.diffusion"),
        ("metrics", "ddim_jax.metrics"),
    ],
)
def test_each_is_there_without_another_import(name, module):
    # A function says where it was written, a module what it is called.
    program = f"import ddim_jax; it = ddim_jax.{name}; print(getattr(it, '__module__', None) or it.__name__)"
    assert printed(program) == module


def test_the_version_is_stated_once():
    assert ddim_jax.__version__ == version.__version__


def test_another_attribute_does_not_exist():
    with pytest.raises(AttributeError, match="module 'ddim_jax' has no attribute 'smaple'"):
        _ = ddim_jax.smaple
