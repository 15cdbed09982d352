"""The models that come with the package."""

import pathlib

import numpy as np
import pytest

import ddim_jax
from ddim_jax.errors import UserError
from ddim_jax.models import parameter_count
from ddim_jax.weights.shipped import SHIPPED

FOLDER = pathlib.Path(ddim_jax.__file__).parent / "pretrained"


def test_every_shipped_model_is_small_and_has_its_card():
    assert {path.stem for path in FOLDER.iterdir()} == set(SHIPPED)
    for name in SHIPPED:
        assert (FOLDER / f"{name}.safetensors").stat().st_size < 3e6
        card = (FOLDER / f"{name}.md").read_text()
        for word in ("data", "training", "measure", "licence", "python -m ddim_jax.main"):
            assert word in card


def test_the_small_model_of_mnist_draws_white_strokes_on_black():
    pipe = ddim_jax.load("mnist-small")
    assert pipe.step == 2344 and parameter_count(pipe.params) == 1_112_801
    images = pipe.sample(8, steps=10)
    assert images.shape == (8, 28, 28, 1) and images.dtype == np.uint8
    assert 0.6 < (images < 64).mean() < 0.95  # of MNIST's pixels 85 %
    assert 0.05 < (images > 192).mean() < 0.25
    assert (images[:, :2] < 64).mean() > 0.95  # margins are empty


def test_a_shipped_model_has_one_checkpoint():
    with pytest.raises(UserError, match="mnist-small has one checkpoint"):
        ddim_jax.load("mnist-small", step=100)
    with pytest.raises(UserError, match="mnist-small has one checkpoint"):
        ddim_jax.load("mnist-small", ema=False)


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist-small").mkdir()
    with pytest.raises(UserError, match=r"no config.json in workdir mnist-small"):
        ddim_jax.load("mnist-small")
