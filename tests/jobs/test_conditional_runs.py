"""Runs on pictures made from the images: trained, resumed, guided by another run, begun from one without conditions."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from runs import linked_run
from small import metrics, small_digits

import ddim_jax
from ddim_jax.config import Config, EvalConfig, WeightsConfig, with_sample
from ddim_jax.errors import UserError
from ddim_jax.jobs.evaluate import evaluate
from ddim_jax.jobs.export import export
from ddim_jax.jobs.sample import sample
from ddim_jax.jobs.train import train
from ddim_jax.jobs.tune import tune
from ddim_jax.models import build_model
from ddim_jax.training.initial_weights import read_initial_weights
from ddim_jax.training.state import init_state, make_optimizer
from ddim_jax.weights.diffusers_config import unet_config
from ddim_jax.weights.forms import read_weights

pytestmark = pytest.mark.slow


def changed(config, **changes) -> Config:
    for dotted, value in changes.items():
        group, _, key = dotted.partition("__")
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{key: value})})
    return config


def superres(**changes):
    told = {"data__condition": "downsample", "data__condition_factor": 2, "model__condition": ("image",)}
    return changed(small_digits(), **told, train__condition_dropout=(0.1,), **changes)


def small_images(count=4):
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1), np.uint8)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("superres") / "run"
    shown = {"train__validate_every": 1, "train__final_sample_steps": (2,), "train__sample_num": 4}
    train(superres(data__validation="train[90%:]", data__split="train[:90%]", **shown), folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(small_digits(), folder)
    return folder


def test_a_run_draws_its_pictures_validates_and_upscales(workdir):
    assert list((workdir / "samples").glob("*.png"))
    assert all(np.isfinite(line["validation_loss"]) for line in metrics(workdir) if "validation_loss" in line)
    pipe = ddim_jax.load(workdir)
    images = pipe.upscale(small_images(), steps=3)
    assert images.shape == (4, 8, 8, 1)
    assert not np.array_equal(images, pipe.upscale(small_images()[::-1], steps=3))


def test_a_stopped_run_ends_as_an_uninterrupted_one(tmp_path, workdir):
    config = ddim_jax.load(workdir).config
    train(changed(config, train__steps=1), tmp_path / "run")
    train(config, tmp_path / "run")
    whole, resumed = ddim_jax.load(workdir), ddim_jax.load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, whole.variables, resumed.variables)


def test_an_earlier_checkpoint_guides_a_later_one(workdir):
    pipe = ddim_jax.load(workdir)
    small, settings = small_images(), {"steps": 3, "guidance_scale": 2.0}
    by_older = pipe.upscale(small, guide_workdir=str(workdir), guide_checkpoint=1, **settings)
    unguided = pipe.upscale(small, steps=3)
    assert not np.array_equal(by_older, unguided)
    # Led away from itself, a network stays where it is, but for rounding.
    by_itself = pipe.upscale(small, guide_workdir=str(workdir), **settings)
    assert np.abs(by_itself.astype(int) - unguided).max() <= 1
    # At scale 1 the guide is not asked.
    at_one = pipe.upscale(small, steps=3, guide_workdir="/nowhere")
    np.testing.assert_array_equal(at_one, unguided)


def test_rows_are_of_the_guides_newest_checkpoint(tmp_path, plain):
    guide, workdir = tmp_path / "guide", linked_run(plain, tmp_path / "run")
    settings = EvalConfig(num=4, steps=(2,), extractor="pixels", metrics=("fid",), batch_size=4)
    config = dataclasses.replace(small_digits(), eval=settings)
    config = with_sample(config, guide_workdir=str(guide), guidance_scale=2.0)
    found = []
    for steps in (1, 1, 2):
        train(changed(small_digits(), train__steps=steps, train__learning_rate=0.1), guide)
        folder = evaluate(config, workdir)
        rows = [json.loads(path.read_text()) for path in (folder / "rows").glob("*.json")]
        found.append({row["figures"]["pixels_frechet"] for row in rows})
    assert [len(figures) for figures in found] == [1, 1, 2]


def test_another_guide_in_the_same_workdir_draws_other_images(tmp_path, plain):
    """After as many steps, set aside by ``train.overwrite``."""
    guide, workdir = tmp_path / "guide", linked_run(plain, tmp_path / "run")
    settings = EvalConfig(num=4, steps=(2,), extractor="pixels", metrics=("fid",), batch_size=4)
    config = dataclasses.replace(small_digits(), eval=settings)
    config = with_sample(config, guide_workdir=str(guide), guidance_scale=2.0, num=2, steps=2)
    tuning = changed(config, tune__steps=(2,), tune__num=4, tune__fine_steps=6, tune__order=1)
    images, rows = [], []
    for seed in (0, 1):
        other = changed(small_digits(), train__steps=1, train__overwrite=True)
        train(dataclasses.replace(other, seed=seed), guide)
        images.append((sample(config, workdir) / "000000.png").read_bytes())
        rows.append(len(list((evaluate(config, workdir) / "rows").glob("*.json"))))
        with pytest.raises(UserError, match="nothing is tuned for"):
            sample(with_sample(config, spacing="tuned"), workdir)
        tune(tuning, workdir)
        sample(with_sample(config, spacing="tuned"), workdir)
    assert images[0] != images[1] and rows == [1, 2]


def test_a_guide_must_be_of_the_same_images_and_conditions(workdir, plain):
    pipe = ddim_jax.load(plain)
    pipe.sample(2, steps=2, guide_workdir=str(plain), guidance_scale=2.0)
    with pytest.raises(UserError, match=r"guide_workdir=.*: (data|model).condition=.*there.*here; a guide differs in"):
        pipe.sample(2, steps=2, guide_workdir=str(workdir), guidance_scale=2.0)
    with pytest.raises(UserError, match=r"guide_workdir=/nowhere: "):
        pipe.sample(2, steps=2, guide_workdir="/nowhere", guidance_scale=2.0)


def test_a_conditional_run_begins_as_the_unconditional_network(tmp_path, plain):
    config = changed(
        superres(train__init_from=str(plain)),
        model__condition=("vector", "image"), model__vector_size=3, data__condition_augmentation=0.3,
        train__condition_dropout=(0.1, 0.1), data__vector="a",
    )  # fmt: skip
    config, initial = read_initial_weights(config, tmp_path / "run")
    optimizer, model = make_optimizer(config.train, 2), build_model(config)
    state = initial.begin(init_state(config, model, optimizer), optimizer)
    x, time = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32), np.float32([3, 500])
    told = {"vector": np.ones((2, 5), np.float32), "image": np.ones((2, 8, 8, 1), np.float32)}
    before = ddim_jax.load(plain)
    expected = before.model.apply(before.variables, x, time)
    result = model.apply({"params": state.ema_params}, x, time, **told)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    # The vector is heard as soon as the second layer has left zero.
    assert np.any(state.params["vector_dense_0"]["kernel"])


def test_a_network_of_pictures_goes_to_diffusers_form_and_back(tmp_path, workdir):
    pipe = ddim_jax.load(workdir)
    settings = unet_config(pipe.config)
    assert (settings["in_channels"], settings["out_channels"]) == (2, 1)
    config = dataclasses.replace(pipe.config, weights=WeightsConfig(out=str(tmp_path / "folder")))
    folder = export(config, workdir)
    for given in (None, pipe.config):
        back = read_weights(str(folder), given)
        assert back.config.model.condition == ("image",) and back.config.data.condition == "downsample"
        jax.tree.map(np.testing.assert_array_equal, back.variables["params"], pipe.params)
    told = changed(pipe.config, model__condition=("image", "vector"), model__vector_size=2)
    with pytest.raises(UserError, match=r"model\.condition=vector: diffusers' UNet2DModel is told no vector"):
        unet_config(told)
