"""The best checkpoint: samples measured while a run trains, and the state that drew the best ones kept."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import checkpoint_steps, digest, final_state
from small import small_digits

import ddim_jax
from ddim_jax.config import EvalConfig, with_sample
from ddim_jax.errors import UserError
from ddim_jax.jobs.train import train
from ddim_jax.measuring.extractor import Extractor, FeatureProgram, Features
from ddim_jax.measuring.extractors import make_extractor
from ddim_jax.measuring.measurement import Measurement
from ddim_jax.measuring.reference import reference_for
from ddim_jax.measuring.reference_file import Reference, write_reference
from ddim_jax.training import best as module

NUM = 8
FIGURE = "pixels_frechet"


def with_train(config, **settings):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))


CONFIG = with_train(
    dataclasses.replace(small_digits(), eval=EvalConfig(extractor="pixels", metrics=("fid",), batch_size=8)),
    **{"steps": 4, "checkpoint_every": 2, "measure_every": 2, "measure_num": NUM},
    **{"batch_size": 8, "sample_every": 0, "tensorboard": False},
)


@pytest.fixture(scope="module", autouse=True)
def references(cache):
    """References of these tests, computed once."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train(CONFIG, workdir)
    return workdir


def record(workdir):
    return json.loads((workdir / "best.json").read_text())


def logged(workdir, name):
    """By step, as a string, since that is what JSON has for keys."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {str(line["step"]): line[name] for line in lines if name in line}


def assert_same_leaves(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- what is kept -------------------------------------------------------------------------------


def test_every_measurement_is_recorded_and_the_smallest_is_the_best(finished):
    found = record(finished)
    measured = found["measured"]
    assert found["figure"] == FIGURE and found["images"] == NUM
    assert list(measured) == ["2", "4"] and measured["2"] != measured["4"]
    assert found["best_step"] == int(min(measured, key=measured.get))
    assert logged(finished, f"sample_{FIGURE}") == measured
    assert found["extractor"] == make_extractor(CONFIG).provenance
    assert found["reference"] == reference_for(CONFIG, make_extractor(CONFIG)).provenance


def test_the_best_state_is_that_of_its_step(finished):
    step = record(finished)["best_step"]
    assert [path.name for path in (finished / "best").iterdir()] == [str(step)]
    pipe = ddim_jax.load(finished, "best")
    assert pipe.step == step
    assert_same_leaves(pipe.variables, ddim_jax.load(finished, step).variables)
    assert_same_leaves(
        ddim_jax.load(finished, "best", ema=False).variables, ddim_jax.load(finished, step, ema=False).variables
    )
    other = ddim_jax.load(finished, 6 - step)
    pairs = zip(jax.tree.leaves(pipe.params), jax.tree.leaves(other.params), strict=True)
    assert any(not np.array_equal(ours, others) for ours, others in pairs)


@pytest.mark.parametrize("step", [2, 4])
def test_figures_are_those_of_the_images_that_the_checkpoint_draws(finished, step):
    extractor = make_extractor(CONFIG)
    measurement = Measurement(extractor, CONFIG.eval, NUM)
    measurement.update(np.arange(NUM), ddim_jax.load(finished, step).sample(NUM))
    assert record(finished)["measured"][str(step)] == measurement.figures(reference_for(CONFIG, extractor))[FIGURE]


def test_training_does_not_notice(finished, tmp_path):
    train(with_train(CONFIG, measure_every=0), tmp_path / "run")
    assert not (tmp_path / "run" / "best.json").exists() and not (tmp_path / "run" / "best").exists()
    assert digest(final_state(tmp_path / "run")) == digest(final_state(finished))


# --- kills --------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [False, True])
def test_a_run_killed_while_it_measured_measures_again(finished, tmp_path, saved):
    """Killed after the checkpoint of step 2, before (or after) the state was kept as the best, before the record."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("best", "best.json"))
    shutil.rmtree(workdir / "checkpoints" / "4")
    if saved:
        shutil.copytree(workdir / "checkpoints" / "2", workdir / "best" / "2")
    train(CONFIG, workdir)
    assert record(workdir) == record(finished)
    assert checkpoint_steps(workdir) == [2, 4]
    assert_same_leaves(ddim_jax.load(workdir, "best").variables, ddim_jax.load(finished, "best").variables)
    assert logged(workdir, f"sample_{FIGURE}") == record(finished)["measured"]


def test_a_resumed_run_remembers(finished, tmp_path, monkeypatch):
    """Step 2 is not measured again, and it stays the best if nothing is better."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("best"))
    shutil.rmtree(workdir / "checkpoints" / "4")
    shutil.copytree(workdir / "checkpoints" / "2", workdir / "best" / "2")
    (workdir / "best.json").write_text(json.dumps({**record(finished), "best_step": 2, "measured": {"2": 0.0}}))
    measured = []
    measure = module.BestCheckpoint.measure

    def noted(self, step, *args):
        measured.append(step)
        measure(self, step, *args)

    monkeypatch.setattr(module.BestCheckpoint, "measure", noted)
    train(CONFIG, workdir)
    assert measured == [4]
    found = record(workdir)
    assert found["best_step"] == 2 and found["measured"] == {"2": 0.0, "4": record(finished)["measured"]["4"]}
    assert ddim_jax.load(workdir, "best").step == 2


# --- what decides -------------------------------------------------------------------------------


def linear_classifier(config):
    """Features and logits of pixels, by a random matrix."""
    matrix = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)

    def function(matrix, images):
        logits = jnp.matmul(images.reshape(len(images), -1) / 255, matrix, precision="highest")
        return Features(logits, logits)

    return Extractor("classifier", {"name": "linear"}, FeatureProgram(function, matrix, 8), 10, 10)


def test_the_highest_score_is_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "make_extractor", linear_classifier)
    settings = dataclasses.replace(CONFIG.eval, extractor="classifier", metrics=("is", "fid"), is_splits=2)
    config = with_train(dataclasses.replace(CONFIG, eval=settings), measure_metric="is")
    train(config, tmp_path / "run")
    found = record(tmp_path / "run")
    measured = found["measured"]
    assert found["figure"] == "classifier_score_mean"
    assert list(measured) == ["2", "4"] and measured["2"] != measured["4"]
    assert found["best_step"] == int(max(measured, key=measured.get)) == ddim_jax.load(tmp_path / "run", "best").step


def test_a_score_without_classes_is_refused(tmp_path):
    settings = dataclasses.replace(CONFIG.eval, metrics=("is",))
    config = with_train(dataclasses.replace(CONFIG, eval=settings), measure_metric="is")
    with pytest.raises(UserError, match=r"^train\.measure_metric=is: eval\.extractor=pixels has no classes; use fid$"):
        train(config, tmp_path / "run")


def test_without_measurements_there_is_no_best(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("best", "best.json"))
    with pytest.raises(UserError, match=r"no checkpoint that was measured \(train\.measure_every\)"):
        ddim_jax.load(tmp_path / "run", "best")


def test_a_run_killed_at_its_very_end_measures_its_last_step(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("best", "best.json"))
    train(CONFIG, workdir)
    assert record(workdir)["measured"] == {"4": record(finished)["measured"]["4"]}
    assert ddim_jax.load(workdir, "best").step == 4


def test_figures_of_other_settings_are_not_compared_with(finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("best"))
    shutil.rmtree(workdir / "checkpoints" / "4")
    (workdir / "best.json").write_text(json.dumps({**record(finished), "images": 2 * NUM, "measured": {"2": 0.0}}))
    train(CONFIG, workdir)
    assert "figures of other settings" in capsys.readouterr().err
    assert record(workdir) == record(finished)


@pytest.mark.slow
def test_figures_of_images_that_were_drawn_otherwise_are_not_compared_with(finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    config = with_sample(with_train(CONFIG, steps=6), steps=3)
    train(config, workdir)
    assert "figures of other settings" in capsys.readouterr().err
    measured = record(workdir)["measured"]
    assert list(measured) == ["4", "6"] and measured["4"] != record(finished)["measured"]["4"]
    best = record(workdir)["best_step"]
    assert best == int(min(measured, key=measured.get)) == ddim_jax.load(workdir, "best").step
    train(with_train(config, steps=8), workdir)
    assert list(record(workdir)["measured"]) == ["4", "6", "8"]


@pytest.mark.slow
def test_statistics_that_were_replaced_are_another_reference(tmp_path, monkeypatch, capsys):
    """By a file that does not say what it is, either."""

    def pixels(config):
        program = FeatureProgram(lambda _, images: Features(images.reshape(len(images), -1) / 255), (), 8)
        return Extractor("inception", {"name": "inception-pixels"}, program, 64)

    monkeypatch.setattr(module, "make_extractor", pixels)
    settings = dataclasses.replace(CONFIG.eval, extractor="inception", reference=str(tmp_path / "statistics.npz"))
    for steps, mean in ((2, 0.1), (4, 0.9)):
        write_reference(tmp_path / "statistics.npz", Reference(np.full(64, mean), np.eye(64), None, None, {}))
        train(dataclasses.replace(with_train(CONFIG, steps=steps), eval=settings), tmp_path / "run")
    assert "figures of other settings" in capsys.readouterr().err


def test_a_record_of_an_earlier_version_is_gone_on_with(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    found = {key: value for key, value in record(finished).items() if key not in module._LATER}
    (workdir / "best.json").write_text(json.dumps(found))
    train(with_train(CONFIG, steps=6), workdir)
    assert list(record(workdir)["measured"]) == ["2", "4", "6"]


@pytest.mark.parametrize("damaged", ["", "[]", '{"best_step": 4'])
def test_a_damaged_record_is_made_anew(finished, tmp_path, capsys, damaged):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("best"))
    (workdir / "best.json").write_text(damaged)
    train(CONFIG, workdir)
    assert "best.json is damaged" in capsys.readouterr().err
    assert record(workdir)["best_step"] == 4
