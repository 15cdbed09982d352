"""What keys are for: every key says it, and the lists made of it are those that workdirs were written with."""

import dataclasses
import json

import pytest

from ddim_jax.config import TRAINED_GROUPS, Config, ConfigError, Role, SampleConfig, from_json, keys_of, keys_with
from ddim_jax.config.keys import Range
from ddim_jax.digests import digest_of_facts
from ddim_jax.model_job import ModelJob
from ddim_jax.tables.rows import model_rows


def test_no_key_is_without_a_role():
    def groups(config):
        for field in dataclasses.fields(config):
            if dataclasses.is_dataclass(field.type):
                yield from groups(field.type)
            else:
                yield field

    assert all(isinstance(field.metadata["key"].role, Role) for field in groups(Config))
    assert len(list(keys_of(Config))) == len(list(groups(Config))) > 150


def test_a_resumed_run_may_change_these_and_nothing_else():
    free = set(keys_with(Config, Role.MACHINE, Role.PROGRESS))
    trained = {key for key, _ in keys_of(Config) if key.split(".")[0] in TRAINED_GROUPS}
    data = "dir path cache cache_limit_gib cache_dir threads prefetch validation condition_path shown_channels"
    train = (
        "steps epochs checkpoint_every keep_last keep_every log_every sample_every sample_every_epochs validate_every "
        "sample_num final_sample_steps tensorboard overwrite measure_every measure_num measure_metric ema_on_host "
        "ema_snapshot_every ema_snapshot_dtype "
        "cpu_devices compilation_cache"
    )
    expected = {f"data.{name}" for name in data.split()} | {f"train.{name}" for name in train.split()}
    expected |= {"distill.rounds", "distill.measure_num"}
    assert free & trained == expected
    assert trained - free == set(keys_with(Config, Role.NETWORK, Role.TRAINING))


def test_imported_weights_agree_on_these_keys():
    assert keys_with(Config, Role.NETWORK) == (
        *("data.image_size", "data.channels", "data.dtype", "data.range", "data.pad"),
        *("data.condition", "data.condition_factor", "data.condition_blur", "data.condition_noise"),
        *("data.condition_augmentation", "data.condition_size", "data.condition_channels", "data.mean", "data.std"),
        *("model.name", "model.structure", "model.norm", "model.channels", "model.multipliers", "model.num_blocks"),
        *("model.attention_resolutions", "model.num_groups", "model.num_classes"),
        *("model.condition", "model.vector_size"),
        *("model.null_label", "model.time_freq_shift", "model.time_cos_first", "model.downsample_padding"),
        *("model.norm_eps", "model.head_channels"),
        *("model.embedding", "model.encoder", "model.resample_filter", "model.augmentation_inputs"),
        *("model.num_heads", "model.scale_shift_norm"),
        *("model.resample_blocks", "model.learn_variance", "model.time_channels", "model.time_scale"),
        *("diffusion.schedule", "diffusion.num_levels", "diffusion.beta_start", "diffusion.beta_end"),
        *("diffusion.zero_terminal_snr", "diffusion.sigma_min", "diffusion.sigma_max", "diffusion.sigma_data"),
        "diffusion.objective",
    )


def test_the_images_of_a_job_are_decided_by_these_keys():
    """The hash in a folder's name is made of them: with one more or one fewer no job would find its folder again."""
    others = {"batch_size", "format", "checkpoint"}
    fields = {field.name for field in dataclasses.fields(SampleConfig)}
    assert set(keys_with(SampleConfig, Role.PIXELS, Role.SELECTION)) == fields - others


def test_folders_have_the_names_that_they_always_had(tmp_path):
    """The hashes of version 0.1.0."""
    pipe = dataclasses.make_dataclass("Pipe", ["step", "average", "guide"])(7, None, None)
    config = Config()
    job = ModelJob(tmp_path, config, pipe, 0.0)
    assert job.folder("sample", "ddim-S50-eta0-n64").name == "step7-ddim-S50-eta0-n64-f10d2d31"
    assert job.folder("sweep", "ddim", config.sweep).name == "step7-ddim-e0afe95a"
    row = model_rows(config, [7])[0]
    assert row.name == "step7-ddim-S10-eta0-uniform-seed0-67f8946f"


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        (Range(at_least=1), (1, 7), (0, -1), "must be at least 1"),
        (Range(at_least=0), (0, 7.5), (-0.1,), "must not be negative"),
        (Range(above=0), (1e-9,), (0, -1), "must be positive"),
        (Range(above=0, at_most=1000), (1e-9, 1000), (0, 1001, 1e25), "must be positive, and at most 1000"),
        (Range(at_least=1, at_most=2**20), (1, 2**20), (0, 2**20 + 1, 10**25), "must lie in 1 ... 1,048,576"),
        (Range(at_least=0, at_most=1e12), (0, 1e12), (-1, 1e25), "must lie in 0 ... 1e+12"),
        (Range(above=0, below=1), (0.5,), (0, 1), "must lie strictly between 0 and 1"),
        (Range(at_least=0, below=1), (0, 0.9), (1, -0.1), "must lie in [0, 1)"),
        (Range(at_least=0, at_most=2**31 - 1), (0, 2**31 - 1), (-1, 2**31), "must lie in 0 ... 2^31 - 1"),
        (Range(at_least=2, at_most=9), (2, 9), (1, 10), "must lie in 2 ... 9"),
    ],
)
def test_ranges(bounds, inside, outside, words):
    assert all(map(bounds.holds, inside))
    assert not any(map(bounds.holds, outside))
    assert str(bounds) == words


def test_a_list_is_in_its_range_when_all_of_it_is():
    with pytest.raises(ConfigError, match=r"sample.indices=\(3, -1\): must lie in 0 \.\.\. 2\^31 - 1"):
        from_json(json.dumps({"sample": {"indices": [3, -1]}}))
    with pytest.raises(ConfigError, match=r"sweep.steps=\(\): name at least one"):
        from_json(json.dumps({"sweep": {"steps": []}}))


def test_facts_are_hashed_whatever_their_order():
    assert digest_of_facts({"a": 1, "b": (2, 3)}) == digest_of_facts({"b": [2, 3], "a": 1})
