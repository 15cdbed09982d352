"""What the tests of scripts share."""

import pathlib
import sys

import pytest


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path():
    """Makes modules of ``scripts/`` importable."""
    folder = str(pathlib.Path(__file__).parents[2] / "scripts")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
