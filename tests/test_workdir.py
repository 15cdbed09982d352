"""Which runs may share a workdir, and which folder a job writes."""

import dataclasses
import json

import pytest

from ddim_jax.config import Config
from ddim_jax.errors import UserError
from ddim_jax.workdir import (
    binding_values,
    config_for_job,
    job_dir,
    measured_statistics,
    prepare_for_training,
    read_config,
    write_run_record,
)


def with_changes(config=None, **changes):
    config = config or Config()
    for dotted, value in changes.items():
        group, _, key = dotted.partition("__")
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{key: value})})
    return config


def test_a_new_workdir_gets_the_config(tmp_path):
    prepare_for_training(tmp_path / "run", Config())
    assert read_config(tmp_path / "run") == Config()


def test_a_resumed_run_may_change_its_length_and_intervals(tmp_path):
    prepare_for_training(tmp_path, Config())
    longer = with_changes(train__steps=10, train__checkpoint_every=7, data__threads=1, sample__steps=3)
    prepare_for_training(tmp_path, longer)
    assert read_config(tmp_path) == longer


def test_another_config_is_refused_and_named(tmp_path):
    prepare_for_training(tmp_path, Config())
    other = with_changes(model__channels=64, train__learning_rate=1.0)
    with pytest.raises(
        UserError, match=r"model.channels \(there 128, now 64\), train.learning_rate .*train.overwrite=true"
    ):
        prepare_for_training(tmp_path, other)
    assert read_config(tmp_path) == Config()


def test_overwrite_sets_the_old_run_aside_and_only_once(tmp_path):
    prepare_for_training(tmp_path, Config())
    (tmp_path / "metrics.jsonl").write_text("old")
    other = with_changes(model__channels=64, train__overwrite=True)
    prepare_for_training(tmp_path, other)
    prepare_for_training(tmp_path, other)  # a resume with the same command keeps the new run
    assert read_config(tmp_path).model.channels == 64
    replaced = [path for path in tmp_path.iterdir() if path.name.startswith("replaced-")]
    assert len(replaced) == 1
    assert (replaced[0] / "metrics.jsonl").read_text() == "old"
    assert not (tmp_path / "metrics.jsonl").exists()


def test_what_is_set_aside_says_nothing_of_other_images(tmp_path):
    """Of the same split of another folder, which the config's binding keys do not tell from the first."""
    prepare_for_training(tmp_path, with_changes(data__mean=(0.1,), data__std=(0.2,), data__path="first"))
    left_open = {"data__mean": (), "data__std": (), "data__path": "second"}
    moved = measured_statistics(tmp_path, with_changes(**left_open))
    assert moved is not None and moved.mean == (0.1,)
    assert measured_statistics(tmp_path, with_changes(**left_open, train__overwrite=True)) == moved
    other = with_changes(**left_open, train__overwrite=True, model__channels=64)
    assert measured_statistics(tmp_path, other) is None


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"workdir .*file/run cannot be written"):
        prepare_for_training(tmp_path / "file" / "run", Config())


def test_a_job_takes_the_model_from_the_workdir_and_sampling_from_the_command_line(tmp_path):
    trained = with_changes(train__batch_size=4, data__path="there")
    prepare_for_training(tmp_path, trained)
    config = config_for_job(tmp_path, with_changes(sample__steps=7))
    assert (config.sample.steps, config.train.batch_size, config.data.path) == (7, 4, "there")
    assert config_for_job(tmp_path, with_changes(diffusion__objective="v")).diffusion.objective == "eps"
    assert binding_values(tmp_path, {"diffusion.objective": "eps", "data.path": "here"})["data.split"] == "train"
    with pytest.raises(UserError, match=r"diffusion.objective \(trained 'eps', command line 'v'\)"):
        binding_values(tmp_path, {"diffusion.objective": "v"})
    with pytest.raises(UserError, match=r"sample.steps=2000"):
        config_for_job(tmp_path, with_changes(sample__steps=2000))


def test_a_job_without_a_trained_workdir(tmp_path):
    with pytest.raises(UserError, match=r"no config.json in workdir"):
        config_for_job(tmp_path, Config())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be used: no JSON"):
        config_for_job(tmp_path, Config())


def test_all_that_decides_the_pixels_decides_the_folder(tmp_path):
    folders = {job_dir(tmp_path, "sample", "s", decides) for decides in ({"S": 20}, {"S": 50}, {"S": 20})}
    assert len(folders) == 2
    assert all(folder.is_dir() for folder in folders)


def test_run_record(tmp_path):
    write_run_record(job_dir(tmp_path, "sample", "s", {}), Config(), seconds=1.5)
    (record,) = [json.loads(path.read_text()) for path in tmp_path.rglob("run.json")]
    assert record["seconds"] == 1.5
    assert record["config"]["sample.steps"] == 50
    assert set(record["versions"]) >= {"ddim_jax", "jax", "flax"}
