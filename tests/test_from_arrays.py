"""Training from Python on arrays in memory."""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from runs import digest, final_state
from small import ROOT, SMALL

import ddim_jax
from ddim_jax import from_arrays
from ddim_jax.data.sources.array import IN_MEMORY
from ddim_jax.errors import UserError
from ddim_jax.training import loop
from ddim_jax.workdir import read_config

TINY = {
    **SMALL,
    "model__attention_resolutions": (),
    "model__channels": 16,
    "train__batch_size": 8,
    "train__checkpoint_every": 2,
    "train__final_sample_steps": (),
}
NUM, SHAPE = 24, (16, 8, 2)


def fields(seed=0, num=NUM, shape=SHAPE):
    return np.random.default_rng(seed).normal(3, 5, (num, *shape)).astype(np.float32)


@pytest.mark.slow
def test_three_lines_on_an_own_array():
    images = fields(num=8, shape=(32, 16, 2))
    pipe = ddim_jax.train(None, images, **TINY)
    assert pipe.step == 2
    assert pipe.config.data.image_shape == (32, 16, 2)
    flat = images.reshape(-1, 2)
    assert pipe.config.data.range == tuple(np.stack([flat.min(0), flat.max(0)], 1).reshape(-1).tolist())
    assert not IN_MEMORY


@pytest.mark.slow
def test_a_run_of_floats_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch):
    images = fields()
    labels = np.arange(NUM) % 3
    keys = {**TINY, "train__steps": 5, "progress": False}
    ddim_jax.train(None, images, labels, workdir=tmp_path / "whole", **keys)
    done = loop.TrainingLoop._do_what_is_due

    def interrupt(self, steps, state, stopping):
        done(self, steps, state, stopping)
        if steps[-1] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.TrainingLoop, "_do_what_is_due", interrupt)
        ddim_jax.train(None, images, labels, workdir=tmp_path / "part", **keys)
    measured = read_config(tmp_path / "part").data.range
    monkeypatch.setattr("ddim_jax.training.data.value_range", None)  # a resumed run does not measure again
    pipe = ddim_jax.train(None, images, labels, workdir=tmp_path / "part", **keys)
    assert pipe.config.data.range == measured
    assert pipe.config.model.num_classes == 3
    assert digest(final_state(tmp_path / "part")) == digest(final_state(tmp_path / "whole"))
    with pytest.raises(UserError, match=r"holds a run on other images, labels"):
        ddim_jax.train(None, images + 1, labels, workdir=tmp_path / "part", **keys)


@pytest.mark.slow
def test_a_folder_of_its_own_goes_with_the_pipeline(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pipe = ddim_jax.train("digits:tiny", progress=False, **SMALL)
    assert list(tmp_path.glob("ddim_jax-*/checkpoints"))
    del pipe
    gc.collect()
    assert not list(tmp_path.glob("ddim_jax-*"))


@pytest.mark.slow
def test_it_trains_in_another_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(ddim_jax.train(None, fields(), **TINY)))
    thread.start()
    thread.join()
    assert found[0].step == 2


INTERRUPTED = """
import sys, numpy as np, ddim_jax
images = np.random.default_rng(0).normal(3, 5, (24, 16, 8, 2)).astype(np.float32)
pipe = ddim_jax.train(None, images, np.arange(24) % 3, workdir=sys.argv[1], steps=int(sys.argv[2]), batch_size=8,
    **{"model.multipliers": (1,), "model.channels": 16, "model.attention_resolutions": (), "train.log_every": 1,
       "train.checkpoint_every": 1000, "train.sample_every": 0, "train.final_sample_steps": (),
       "train.lr_schedule": "constant"}, progress=True)
print("drawn by the model of step", pipe.step)
"""


@pytest.mark.slow
def test_ctrl_c_in_a_script_saves_the_step_and_the_next_call_goes_on(tmp_path):
    """The script itself goes on with what ``train`` returns; called again it ends as one that nobody stopped."""
    (tmp_path / "script.py").write_text(INTERRUPTED)
    steps = 2000
    command = [sys.executable, str(tmp_path / "script.py")]
    # This package, where another is installed.
    settings = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}
    with subprocess.Popen(
        [*command, str(tmp_path / "part"), str(steps)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings
    ) as script:
        metrics = tmp_path / "part" / "metrics.jsonl"
        end = time.monotonic() + 200
        while not (metrics.exists() and metrics.read_text().count("\n") > 2) and script.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.05)
        script.send_signal(signal.SIGINT)
        out, err = script.communicate(timeout=200)
    assert script.returncode == 0, err
    stopped_at = int(out.removeprefix("drawn by the model of step"))
    assert 2 < stopped_at < steps
    assert f"the model is that of step {stopped_at:,}; to go on, call it again with workdir=" in err
    assert "Traceback" not in err
    assert [int(path.name) for path in (tmp_path / "part" / "checkpoints").glob("[0-9]*")] == [stopped_at]
    for name in ("part", "whole"):
        steps_of_it = [str(tmp_path / name), str(stopped_at + 5)]
        subprocess.run([*command, *steps_of_it], check=True, timeout=200, capture_output=True, **settings)
    assert digest(final_state(tmp_path / "part")) == digest(final_state(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"step": 5}, r"train\(\) has no argument 'step'; did you mean steps"),
        ({"learning_rate": 5}, "did you mean distill__learning_rate or train__learning_rate"),
        ({"train__step": 5}, "did you mean train__steps"),
        ({"vector": 5}, "did you mean .*vectors"),
        ({"changes": {"train.step": 5}}, r"did you mean train__steps"),
        ({"quux": 5}, "name a key of the config, such as train__steps"),
        ({"steps": 5, "epochs": 1}, "steps and epochs both say how long to train"),
    ],
)
def test_unknown_keywords_name_close_ones(keywords, message):
    with pytest.raises(UserError, match=message) as error:
        ddim_jax.train("digits", **keywords)
    assert "\n" not in str(error.value)


def configs_of_calls(monkeypatch):
    """The configs that ``train`` would run."""
    found = []

    class Fake:
        pass

    monkeypatch.setattr(from_arrays, "_run", lambda config, *_: found.append(config) or Fake())
    return found


def test_short_names_are_those_of_training(monkeypatch):
    found = configs_of_calls(monkeypatch)
    ddim_jax.train("digits", steps=7, batch_size=3)
    ddim_jax.train("digits", epochs=2)
    ddim_jax.train("flowers", steps=7)
    assert [(each.train.steps, each.train.epochs) for each in found[:2]] == [(7, 0), (600, 2)]
    assert found[0].train.batch_size == 3
    assert (found[2].train.steps, found[2].train.epochs) == (7, 0)


def test_parts_of_a_memory_map_are_told_apart(monkeypatch, tmp_path):
    found = configs_of_calls(monkeypatch)
    np.save(tmp_path / "x.npy", fields())
    whole = np.load(tmp_path / "x.npy", mmap_mode="r")
    for part in (whole[:6], whole[6:12], whole[:12:2], whole[:6], whole[:6].copy()):
        ddim_jax.train(None, part)
    names = [each.data.name for each in found]
    assert len(set(names[:3])) == 3
    assert names[3] == names[0]


def test_pictures_are_written_where_they_are_kept(monkeypatch, tmp_path):
    found = configs_of_calls(monkeypatch)
    ddim_jax.train("digits")
    ddim_jax.train("digits", workdir=tmp_path / "a")
    ddim_jax.train(None, fields())
    ddim_jax.train(None, fields(), workdir=tmp_path / "b")
    ddim_jax.train(None, fields(), train__sample_every=9)
    assert [each.train.sample_every for each in found] == [0, 200, 0, 200, 9]
    assert [bool(each.train.final_sample_steps) for each in found] == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("shape", "dtype", "levels", "attention", "batch", "mean"),
    [
        ((28, 28, 1), "uint8", 3, (7,), 64, (0.5,)),
        ((32, 32, 3), "uint8", 4, (4,), 64, (0.5,)),
        ((128, 64, 2), "float32", 4, (16,), 32, ()),
        ((256, 256, 3), "uint8", 4, (), 8, (0.5,)),
        ((10, 13), "uint16", 2, (5,), 64, ()),
    ],
)
def test_the_network_for_an_array_suits_its_size(monkeypatch, shape, dtype, levels, attention, batch, mean):
    found = configs_of_calls(monkeypatch)
    ddim_jax.train(None, np.zeros((2, *shape), dtype))
    (config,) = found
    assert (len(config.model.multipliers), config.model.attention_resolutions) == (levels, attention)
    assert (config.train.batch_size, config.data.mean, config.data.dtype) == (batch, mean, dtype)
    assert (config.diffusion.schedule, config.diffusion.objective) == ("cosine", "v")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "needs images, or a config"),
        (("digit", None), "config='digit' is not a file; name a config file, or one of"),
        ((None, np.zeros((4, 3))), r"the shape \(4, 3\)"),
        ((None, np.array(["a", "b"])), "give numbers"),
        ((None, fields(shape=(3, 32, 32))), r"looks like channels first; .*np\.moveaxis\(images, 1, -1\), or say"),
        ((None, fields(), np.arange(5)), "labels has 5 rows for 24 images"),
        ((None, fields(), np.ones(NUM)), "labels are float64"),
        ((None, np.where(fields() > 10, np.nan, fields())), "NaN"),
        ((None, np.ones((NUM, *SHAPE), np.float32)), "channel 0 of array-.* is 1 in all pixels"),
    ],
)
def test_bad_arrays_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        ddim_jax.train(*arguments, **TINY)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_file_of_arrays_is_no_copy(tmp_path):
    np.save(tmp_path / "x.npy", fields())
    pipe = ddim_jax.train(None, np.load(tmp_path / "x.npy", mmap_mode="r"), **TINY)
    assert pipe.step == 2
    assert pathlib.Path(tmp_path / "x.npy").exists()
