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
        assert (FOLDER / f"{name}.safetensors").stat().st_size < 5e6
        card = (FOLDER / f"{name}.md").read_text()
        for word in ("data", "training", "measure", "licence", "python -m ddim_jax.main"):
            assert word in card


@pytest.mark.parametrize(
    ("name", "step", "parameters"), [("mnist-small", 5000, 1_806_529), ("mnist-unconditional", 2344, 1_112_801)]
)
def test_models_of_mnist_draw_white_strokes_on_black(name, step, parameters):
    pipe = ddim_jax.load(name)
    assert (pipe.step, parameter_count(pipe.params)) == (step, parameters)
    images = pipe.sample(8, steps=10)
    assert images.shape == (8, 28, 28, 1) and images.dtype == np.uint8
    assert 0.6 < (images < 64).mean() < 0.95  # of MNIST's pixels 85 %
    assert 0.05 < (images > 192).mean() < 0.25
    assert (images[:, :2] < 64).mean() > 0.95  # margins are empty


def test_classes_of_mnist_are_drawn_in_turn_or_as_asked():
    pipe = ddim_jax.load("mnist-small")
    in_turn = pipe.sample(4, seed=3, steps=10)
    threes = pipe.sample(4, seed=3, steps=10, label=3)
    np.testing.assert_array_equal(in_turn[3], threes[3])  # image 3 of the classes 0 ... 9 is a three
    assert (in_turn[:3] != threes[:3]).any(axis=(1, 2, 3)).all()
    assert pipe.config.sample.guidance_scale == 2


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
