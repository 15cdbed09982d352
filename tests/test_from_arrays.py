"""Training from Python on arrays in memory."""

import gc
import pathlib
import threading

import numpy as np
import pytest
from runs import digest, final_state
from small import SMALL

import ddim_jax
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
}
NUM, SHAPE = 24, (16, 8, 2)


def fields(seed=0, num=NUM, shape=SHAPE):
    return np.random.default_rng(seed).normal(3, 5, (num, *shape)).astype(np.float32)


@pytest.mark.slow
def test_three_lines_on_an_own_array():
    images = fields(num=8, shape=(128, 64, 2))
    pipe = ddim_jax.train(None, images, **TINY)
    assert pipe.step == 2
    assert pipe.config.data.image_shape == (128, 64, 2)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "needs images, or a config"),
        (("digit", None), "config='digit' is not a file; name a config file, or one of"),
        ((None, np.zeros((4, 3))), r"the shape \(4, 3\)"),
        ((None, np.array(["a", "b"])), "give numbers"),
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
