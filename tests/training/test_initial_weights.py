"""Runs that begin with weights there are already: ``train.init_from``."""

import dataclasses
import signal

import jax
import numpy as np
import pytest
from runs import checkpoint_steps, completed, digest, final_state, half_written, losses, reached, started
from small import CONFIGS, changed, metrics, plain_digits, tiny_config
from weight_files import random_params, small_config, state_dict, write_diffusers, write_torch

import ddim_jax
from ddim_jax.config import Config, TrainConfig
from ddim_jax.errors import UserError
from ddim_jax.jobs.export import export
from ddim_jax.jobs.train import train
from ddim_jax.models import build_model
from ddim_jax.training.initial_weights import read_initial_weights
from ddim_jax.training.state import fresh_optimizer_state, init_state, make_optimizer
from ddim_jax.weights.agreement import agreed_config
from ddim_jax.weights.forms import read_weights

QUIET = {"train__final_sample_steps": (), "train__tensorboard": False, "train__log_every": 1}


def digits(**changes) -> Config:
    return changed(plain_digits(model__init="torch"), **{**QUIET, **changes})


def tuned(source, **changes) -> Config:
    """A run of other batches, another split, another seed and another learning rate."""
    other = {"train__batch_size": 8, "data__split": "train[:50%]", "train__learning_rate": 5e-4}
    config = digits(**{**other, "train__warmup_steps": 0, "train__init_from": str(source), **changes})
    return dataclasses.replace(config, seed=7)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of twelve steps with two checkpoints, whose averages differ from its raw weights."""
    folder = tmp_path_factory.mktemp("source") / "run"
    train(digits(train__steps=12, train__checkpoint_every=6), folder)
    return folder


@pytest.fixture(scope="module")
def with_classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes") / "run"
    train(digits(train__steps=2, model__num_classes=10), folder)
    return folder


def first_state(config, workdir):
    """The state that a run begins with, and the weights' own."""
    config, initial = read_initial_weights(config, workdir)
    assert initial is not None
    optimizer = make_optimizer(config.train, 2)
    fresh = init_state(config, build_model(config), optimizer)
    return initial.begin(fresh, optimizer), initial, fresh


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_equal_but_for_classes(one, other):
    without = [{name: value for name, value in tree.items() if name != "label_embed"} for tree in (one, other)]
    assert_equal(*without)


# --- what the run begins with -------------------------------------------------------------------


def test_a_misspelt_model_of_the_package_is_named(tmp_path):
    with pytest.raises(UserError, match=r"train.init_from=mnist-smal: .*did you mean 'mnist-small'"):
        read_initial_weights(digits(train__init_from="mnist-smal"), tmp_path)


def test_step_0_draws_the_images_of_the_source(tmp_path, source, capsys):
    config = tuned(source, train__keep_last=5)
    train(config, tmp_path / "run")
    assert checkpoint_steps(tmp_path / "run") == [0, 2]
    before, start, end = ddim_jax.load(source), ddim_jax.load(tmp_path / "run", step=0), ddim_jax.load(tmp_path / "run")
    np.testing.assert_array_equal(start.sample(8), before.sample(8))
    assert not np.array_equal(end.sample(8), before.sample(8))
    raw = ddim_jax.load(source, ema=False)
    assert_equal(ddim_jax.load(tmp_path / "run", step=0, ema=False).params, raw.params)
    assert any(
        not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (raw.params, before.params)), strict=True)
    )
    count = len(jax.tree.leaves(raw.params))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("begins with")]
    assert lines == [
        f"begins with the weights of {source}, step 12: took {count} of {count} arrays and their moving averages; "
        "optimiser, learning rate and steps start anew"
    ]


def test_the_learning_rate_and_the_optimiser_are_its_own(tmp_path, source):
    train(tuned(source, train__lr_schedule="cosine", train__steps=3), tmp_path / "run")
    rates = [line["learning_rate"] for line in metrics(tmp_path / "run") if "loss" in line]
    np.testing.assert_allclose(rates, 5e-4 * (1 + np.cos(np.pi * np.arange(3) / 3)) / 2, rtol=1e-5)
    state, _, fresh = first_state(tuned(source), tmp_path / "other")
    assert_equal(state.opt_state, fresh.opt_state)
    assert state.step == 0


@pytest.mark.slow
def test_a_checkpoint_of_a_workdir_can_be_named(tmp_path, source):
    for name, step in ((".", 12), ("checkpoints/12", 12), ("checkpoints/6", 6)):
        state, initial, _ = first_state(tuned(source / name), tmp_path)
        assert initial.step == step
        assert_equal(state.ema_params, ddim_jax.load(source, step=step).params)
    (source / "best").mkdir()
    try:
        (source / "checkpoints" / "6").rename(source / "best" / "6")
        assert first_state(tuned(source / "best"), tmp_path)[1].step == 6
        assert first_state(tuned(source), tmp_path)[1].step == 12
    finally:
        (source / "best" / "6").rename(source / "checkpoints" / "6")
        (source / "best").rmdir()


@pytest.mark.parametrize("form", ["npz", "safetensors", "diffusers"])
def test_exported_weights(tmp_path, source, form):
    out = tmp_path / f"exported{'' if form == 'diffusers' else '.' + form}"
    settings = dataclasses.replace(digits().weights, format=form, out=str(out))
    export(dataclasses.replace(digits(), weights=settings), source)
    state, initial, _ = first_state(tuned(out), tmp_path / "run")
    assert initial.step == 12
    averages = ddim_jax.load(source).params
    assert_equal(state.params, averages)
    assert_equal(state.ema_params, averages)


def test_a_shipped_model(tmp_path):
    name = "mnist-unconditional"
    config = changed(tiny_config(CONFIGS / "mnist.py"), train__init_from=name, model__init="torch", **QUIET)
    network = ddim_jax.load(name).config
    config = dataclasses.replace(
        config,
        model=network.model,
        diffusion=network.diffusion,
        data=dataclasses.replace(network.data, mean=(), std=()),
    )
    agreed, _ = read_initial_weights(config, tmp_path)
    assert agreed.data.mean == agreed.data.std == (0.5,)
    state, initial, _ = first_state(config, tmp_path)
    assert initial.step == 2344
    assert_equal(state.ema_params, ddim_jax.load(name).params)


@pytest.mark.slow
def test_batch_norms_keep_their_statistics(tmp_path):
    config = changed(tiny_config(CONFIGS / "flowers.py"), data__source="digits", data__resize="bilinear", **QUIET)
    config = changed(
        config,
        data__split="train",
        data__channels=1,
        data__mean=(),
        data__std=(),
        data__validation="",
        train__validate_every=0,
    )
    config = changed(config, train__measure_every=0, sample__clip="none")
    train(config, tmp_path / "source")
    config = changed(config, train__init_from=str(tmp_path / "source"), data__split="train[:10%]")
    agreed, initial = read_initial_weights(config, tmp_path / "run")
    pipe = ddim_jax.load(tmp_path / "source")
    assert agreed.data.mean == pipe.config.data.mean
    assert initial is not None and jax.tree.leaves(initial.averages["batch_stats"])
    assert_equal(first_state(agreed, tmp_path / "run")[0].ema_batch_stats, pipe.variables["batch_stats"])


# --- classes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_classes_are_left_out_or_start_anew(tmp_path, source, with_classes, capsys):
    """Guidance in the new run's config asks nothing of the source's network."""
    state, _, fresh = first_state(tuned(source, model__num_classes=10, sample__guidance_scale=2.0), tmp_path)
    assert_equal_but_for_classes(state.ema_params, ddim_jax.load(source).params)
    assert_equal(state.params["label_embed"], fresh.params["label_embed"])
    assert "; params/label_embed/embedding, optimiser, learning rate and steps start anew" in capsys.readouterr().err

    state, _, _ = first_state(tuned(with_classes), tmp_path)
    assert "label_embed" not in state.params
    assert_equal_but_for_classes(state.params, ddim_jax.load(with_classes, ema=False).params)
    assert "start anew; params/label_embed/embedding is left out" in capsys.readouterr().err

    for num_classes, taken in ((10, True), (4, False)):
        state, _, _ = first_state(tuned(with_classes, model__num_classes=num_classes), tmp_path)
        assert_equal_but_for_classes(state.params, ddim_jax.load(with_classes, ema=False).params)
        table = ddim_jax.load(with_classes, ema=False).params["label_embed"]["embedding"]
        assert state.params["label_embed"]["embedding"].shape == (num_classes + 1, table.shape[1])
        assert np.array_equal(state.params["label_embed"]["embedding"], table) == taken


@pytest.mark.slow
def test_other_projects_weights_may_have_other_classes(tmp_path):
    plain, classes = small_config(), small_config(model__num_classes=3)
    torch = write_torch(tmp_path / "model.ckpt", state_dict(plain, "ddim"))
    folder = write_diffusers(tmp_path / "folder", classes)
    for path, there, here in ((torch, plain, classes), (folder, classes, plain)):
        with pytest.raises(UserError):
            read_weights(path, here)
        weights = read_weights(path, here, any_classes=True)
        assert weights.config.model.num_classes == there.model.num_classes
        assert_equal(weights.variables["params"], random_params(there))
        config = changed(here, train__init_from=str(path))
        assert_equal_but_for_classes(first_state(config, tmp_path / "run")[0].params, random_params(there))


# --- what cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__channels": 32}, "model.channels (there 16, here 32)"),
        ({"diffusion__objective": "eps"}, "diffusion.objective (there 'v', here 'eps')"),
        ({"data__mean": (0.4,)}, "data.mean (there (0.5,), here (0.4,))"),
        ({"train__init_from": "nowhere.npz"}, "train.init_from=nowhere.npz: nowhere.npz cannot be read: No such file"),
    ],
)
def test_a_contradiction_is_one_line_and_writes_nothing(tmp_path, source, changes, message):
    with pytest.raises(UserError) as caught:
        train(tuned(source, **changes), tmp_path / "run")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("train.init_from=")
    assert not (tmp_path / "run").exists()


def test_a_workdir_without_checkpoint(tmp_path, source):
    (tmp_path / "begun" / "samples").mkdir(parents=True)
    (tmp_path / "begun" / "config.json").write_bytes((source / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"train.init_from=.*: no checkpoint in workdir .*begun"):
        train(tuned(tmp_path / "begun"), tmp_path / "run")
    with pytest.raises(UserError, match=r"train.init_from=.*: no checkpoint of step 7 in .*; there are: 6, 12"):
        train(tuned(source / "checkpoints" / "7"), tmp_path / "run")


def test_keys_that_the_network_does_not_look_at_contradict_nothing():
    config = small_config(diffusion__schedule="cosine")
    stated = {"model.structure": "ddim", "model.norm": "group", "diffusion.beta_end": 0.01}
    assert agreed_config(config, stated, "file") == config
    with pytest.raises(UserError, match=r"diffusion.beta_end \(there 0.01, here 0.02\)"):
        agreed_config(small_config(diffusion__schedule="const"), stated, "file")
    with pytest.raises(UserError, match=r"model.structure \(there 'ddim', here 'keras'\)"):
        agreed_config(changed(config, model__name="residual_unet"), {"model.structure": "ddim"}, "file")


# --- going on -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_does_not_need_the_source_and_cannot_have_another(tmp_path, source, monkeypatch):
    # A cosine learning rate depends on how many steps the run is to have.
    steady = {"train__lr_schedule": "constant"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tuned(source, train__steps=4, **steady), whole)
    train(tuned(source, train__steps=2, **steady), parts)
    with pytest.raises(UserError, match=r"holds a run of another config: train.init_from \(there '.*', now 'other'\)"):
        train(tuned("other", train__steps=4, **steady), parts)
    # As killed right after step 0 was saved.
    hidden = source.with_name("hidden")
    source.rename(hidden)
    try:
        train(tuned(source, train__steps=4, **steady), parts)
    finally:
        hidden.rename(source)
    assert digest(final_state(parts)) == digest(final_state(whole))
    assert losses(parts) == losses(whole)


@pytest.mark.slow
def test_overwrite_begins_anew_with_the_source(tmp_path, source):
    train(digits(), tmp_path / "run")
    train(tuned(source, train__overwrite=True, train__keep_last=5), tmp_path / "run")
    assert_equal(ddim_jax.load(tmp_path / "run", step=0).params, ddim_jax.load(source).params)
    # From itself: what is set aside has been read before.
    train(tuned(tmp_path / "run", train__overwrite=True, train__keep_last=5), tmp_path / "run")
    assert checkpoint_steps(tmp_path / "run") == [0, 2]


@pytest.mark.slow
def test_killed_runs_end_as_an_uninterrupted_one(tmp_path, source):
    changes = ("--config.model.dropout=0.0", "--config.diffusion.schedule=cosine", "--config.diffusion.objective=v")
    steps = ("--config.train.steps=9", "--config.train.checkpoint_every=3")
    settings = (*changes, f"--config.train.init_from={source}", *steps)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    completed(whole, *settings)
    moments = [lambda: bool(half_written(killed)), lambda: reached(killed, 4), lambda: reached(killed, 7)]
    for moment in moments:
        with started(killed, *settings) as (run,):
            run.wait_for(moment)
            run.process.kill()
            assert run.wait() == -signal.SIGKILL, run.output
    completed(killed, *settings)
    assert digest(final_state(killed)) == digest(final_state(whole))
    assert losses(killed) == losses(whole)


@pytest.mark.parametrize("step", [0, 150, 600])
def test_the_learning_rate_of_a_fresh_optimiser_is_that_of_the_step(step):
    """Adam's first update of a constant gradient is the learning rate itself."""
    settings = TrainConfig(learning_rate=1e-3, lr_schedule="cosine", grad_clip=0.0)
    optimizer, params = make_optimizer(settings, 600), {"kernel": np.zeros(3, np.float32)}
    fresh = fresh_optimizer_state(optimizer, params, step)
    assert jax.tree.structure(fresh) == jax.tree.structure(optimizer.init(params))
    update, _ = optimizer.update({"kernel": np.ones(3, np.float32)}, fresh, params)
    np.testing.assert_allclose(update["kernel"], -1e-3 * (1 + np.cos(np.pi * step / 600)) / 2, rtol=1e-4, atol=1e-10)
