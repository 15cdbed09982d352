"""The typed config: what it accepts, what it refuses, and with which words."""

import dataclasses
import importlib.util
import inspect
import pathlib

import pytest

from ddim_jax import config as config_module
from ddim_jax.config import (
    Config,
    ConfigError,
    beside_preset,
    default_config,
    flatten,
    from_config_dict,
    from_json,
    keys_of,
    to_json,
    with_sample,
    with_values,
)
from ddim_jax.tables.published_figures import PUBLISHED

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


def load_config_file(path, argument=None):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def test_defaults_survive_the_way_through_configdict_and_json():
    assert from_config_dict(default_config()) == Config()
    assert from_json(to_json(Config())) == Config()


@pytest.mark.parametrize("argument", [None, "tiny"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_valid_and_says_how_to_run_it(path, argument):
    config = from_config_dict(load_config_file(path, argument))
    assert config.train.steps >= 1
    assert f"--config=configs/{path.name}" in path.read_text()


def test_tiny_keeps_the_structure_and_shrinks_the_size():
    path = next(path for path in CONFIGS if path.stem == "cifar10")
    full, tiny = (from_config_dict(load_config_file(path, argument)) for argument in (None, "tiny"))
    assert len(tiny.model.multipliers) == len(full.model.multipliers)
    assert len(tiny.model.attention_resolutions) == len(full.model.attention_resolutions)
    assert tiny.diffusion == full.diffusion
    assert tiny.data.image_size < full.data.image_size
    assert tiny.train.steps <= 10


def test_variants_combine_and_an_unknown_one_is_named():
    path = next(path for path in CONFIGS if path.stem == "cifar10")
    config = from_config_dict(load_config_file(path, "ddim_code,bf16,tiny"))
    assert (config.diffusion.reduction, config.model.dtype, config.train.batch_size) == ("sum", "bfloat16", 8)
    with pytest.raises(ConfigError, match=r"variant 'tinny' does not exist; choose from: bf16, cond, .*tiny"):
        load_config_file(path, "tinny")


def replaced(**changes):
    config = Config()
    for dotted, value in changes.items():
        group, _, key = dotted.partition("__")
        if key:
            config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{key: value})})
        else:
            config = dataclasses.replace(config, **{group: value})
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__image_size": 20}, r"data.image_size=20: must be divisible by 8"),
        ({"data__source": "tfds"}, r"data.name='': name the TFDS data set"),
        (
            {"data__image_size": (20, 36)},
            r"must be divisible by 8.* the next that is: \(24, 40\); or set data.pad=true",
        ),
        ({"data__image_size": (8, 8, 8)}, r"data.image_size holds 3 values"),
        ({"data__range": (0.0, 1.0, 2.0)}, r"data.range=\(0.0, 1.0, 2.0\): needs a lowest and a highest value"),
        ({"data__range": (5.0, 1.0)}, r"the lowest value 5 must lie below the highest, 1"),
        ({"data__range": (0.0, 256.0)}, r"data.dtype=uint8 holds 0 ... 255"),
        ({"data__shown_channels": (3,)}, r"data.shown_channels=\(3,\): name one channel, or three, of 0 ... 2"),
        ({"data__mean": (0.5, 0.5)}, r"data.mean=\(0.5, 0.5\): needs 1 or 3 values"),
        ({"data__std": (0.0,)}, r"data.std"),
        ({"model__channels": 48}, r"model.channels=48: must be a multiple of model.num_groups=32"),
        ({"model__multipliers": ()}, r"model.multipliers"),
        ({"model__attention_resolutions": (5,)}, r"no resolution 5; it has \[32, 16, 8, 4\]"),
        ({"model__dropout": 1.0}, r"model.dropout"),
        ({"model__head_channels": 48}, r"model.head_channels=48: must divide the widths that attend, \[256\]"),
        ({"model__downsample_padding": 2}, r"model.downsample_padding=2: must lie in 0 \.\.\. 1"),
        ({"model__num_heads": 3}, r"model.num_heads=3: must divide the widths that attend, \[256\]"),
        (
            {"model__num_heads": 2, "model__head_channels": 64},
            r"model.num_heads=2: model.head_channels=64 says the number",
        ),
        (
            {"model__learn_variance": True, "diffusion__time_sampling": "continuous"},
            r"diffusion.time_sampling=continuous: model.learn_variance=True: a variance is that of a step",
        ),
        ({"model__time_channels": 7}, r"model.time_channels=7: must be even and at least 4"),
        ({"model__null_label": False, "train__label_dropout": 0.1}, r"train.label_dropout=0.1: .*model.null_label"),
        ({"diffusion__beta_end": 1.0}, r"diffusion.beta_end"),
        ({"train__batch_size": 0}, r"train.batch_size=0: must lie in 1 "),
        ({"train__accumulate": 3}, r"train.accumulate=3: must divide train.batch_size=128"),
        ({"train__weight_decay": 0.1}, r"only train.optimizer=adamw"),
        ({"train__ema_decay": 1.0}, r"train.ema_decay"),
        ({"train__final_sample_steps": (10, 1001)}, r"train.final_sample_steps=1001: must lie in 1 \.\.\. 1000"),
        ({"sample__steps": 1001}, r"sample.steps=1001: must lie in 1 \.\.\. 1000, the levels of diffusion.num_levels"),
        ({"sample__eta": -0.5}, r"sample.eta"),
        ({"sample__label": 3}, r"sample.label=3: the model has no classes"),
        ({"sample__num": 0}, r"sample.num"),
        ({"seed": -1}, r"seed=-1"),
    ],
)
def test_values_that_cannot_be_used(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_module.check(replaced(**changes))


def test_one_channel_a_group_is_for_networks_that_others_trained():
    config = replaced(model__channels=32)
    config_module.check(config)
    with pytest.raises(ConfigError, match=r"model.channels=32: must be twice model.num_groups=32 or more"):
        config_module.check_new_network(config)
    config_module.check_new_network(replaced(model__channels=32, model__num_groups=16))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train": {"stepz": 3}}', r"'train.stepz' does not exist; did you mean 'train.steps'\?"),
        ('{"trian": {}}', r"'trian' does not exist"),
        ('{"train": 3}', r"train: expected a group of keys"),
        ('{"train": {"steps": "many"}}', r"train.steps: expected int, got 'many'"),
        ('{"train": {"steps": 1.5}}', r"train.steps: expected int"),
        ('{"data": {"flip": 1}}', r"data.flip: expected bool"),
        ('{"train": {"learning_rate": NaN}}', r"train.learning_rate: nan is not a finite number"),
        ('{"model": {"multipliers": [1, "2"]}}', r"model.multipliers\[1\]: expected int"),
        ('{"sample": {"sampler": "dimm"}}', r"sample.sampler: 'dimm' is not one of ddim, "),
        ("{", r"not a JSON config"),
    ],
)
def test_texts_that_are_not_a_config(text, message):
    with pytest.raises(ConfigError, match=message):
        from_json(text)


def test_an_integer_serves_as_a_float():
    assert from_json('{"sample": {"eta": 1}}').sample.eta == 1.0


def with_preset(**sample):
    config = default_config()
    config.sample.update({"preset": "openai", **sample})
    return config


def test_a_preset_replaces_what_the_config_file_leaves_at_its_default():
    sample = from_config_dict(with_preset()).sample
    assert (sample.sampler, sample.spacing, sample.clip) == ("ddpm_large", "openai", "rederive_eps")
    assert from_config_dict(with_preset(clip="rederive_eps")).sample == sample


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"eta": 0.5}, r"sample.eta=0.5 stands beside sample.preset=openai, which says 0.0; leave one .*command line"),
        ({"sampler": "heun"}, r"sample.sampler='heun' .* 'ddpm_large'"),
        ({"spacing": "quad"}, r"sample.spacing='quad' .* 'openai'"),
        ({"clip": "keep_eps"}, r"sample.clip='keep_eps' .* 'rederive_eps'"),
        ({"levels": (9, 3)}, r"sample.levels=\(9, 3\) .* \(\)"),
        ({"eta_per_step": (0.5,)}, r"sample.eta_per_step=\(0.5,\) .* \(\)"),
    ],
)
def test_a_config_file_must_not_contradict_its_preset(sample, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(with_preset(**sample))
    # A preset given on the command line is the newer word; what is given there beside it counts, too.
    ours, plain = from_config_dict(with_preset(**sample), ["sample.preset"]), from_config_dict(with_preset())
    assert ours == plain
    key, value = next(iter(sample.items()))
    given = [f"sample.{key}"]
    ours = from_config_dict(with_preset(**sample), given)
    assert ours.sample == dataclasses.replace(plain.sample, **sample)
    assert beside_preset(ours, given) == {given[0]: (getattr(plain.sample, key), value)}
    assert beside_preset(ours, []) == {}
    # A workdir and a pipeline keep it.
    assert from_json(to_json(ours)) == ours
    assert with_sample(ours, steps=20).sample == dataclasses.replace(ours.sample, steps=20)
    assert with_sample(plain, **sample).sample == ours.sample
    assert with_sample(Config(), preset="openai", **sample).sample == ours.sample


def test_a_value_of_the_command_line_that_is_the_default_beside_a_preset_wins():
    ours = from_config_dict(with_preset(), ["sample.clip"])
    assert ours.sample.clip == "none"
    assert beside_preset(ours, ["sample.clip"]) == {"sample.clip": ("rederive_eps", "none")}


def test_a_workdir_keeps_the_settings_that_its_preset_once_had():
    text = to_json(from_config_dict(with_preset())).replace('"spacing": "openai"', '"spacing": "linspace"')
    assert from_json(text).sample.spacing == "linspace"


def test_differences_name_the_keys():
    old, new = Config(), replaced(model__channels=64, seed=3)
    assert config_module.differences(old, new) == {"model.channels": (128, 64), "seed": (0, 3)}
    assert config_module.differences(old, new, ("model",)) == {"model.channels": (128, 64)}


def test_every_key_is_documented():
    for group in dataclasses.fields(Config):
        if dataclasses.is_dataclass(group.type):
            for field in dataclasses.fields(group.type):
                # Indented as much as in the file only before Python 3.13.
                assert f"\n    {field.name}: " in inspect.cleandoc(group.type.__doc__), f"{group.name}.{field.name}"
    assert len(flatten(Config())) > 50


@pytest.mark.parametrize(
    ("asked", "data_name", "found"),
    [
        ("ddim-table1", "cifar10", "ddim-table1-cifar10"),
        ("ddim-table1", "celeb_a", "ddim-table1-celeba"),
        ("ddim-table1", "", "ddim-table1-cifar10"),
        ("ddim-table3", "lsun/church_outdoor", "ddim-table3-church"),
        ("ddim-table1-celeba", "cifar10", "ddim-table1-celeba"),
        ("step-times", "cifar10", "step-times"),
    ],
)
def test_a_published_table_is_the_part_about_the_data(asked, data_name, found):
    config = default_config()
    config.eval.preset, config.data.name = asked, data_name
    assert from_config_dict(config).eval.preset == found
    assert found in PUBLISHED


def test_what_is_given_beside_a_published_table_is_refused_with_both_values():
    config = default_config()
    config.eval.preset, config.eval.steps, config.sample.clip = "step-times", (2,), "keep_eps"
    message = r"eval.steps=\(2,\) is given beside eval.preset=step-times, whose rows say that themselves; leave it out"
    with pytest.raises(ConfigError, match=message):
        from_config_dict(config, ["eval.steps"])
    with pytest.raises(ConfigError, match=r"sample.clip='keep_eps' is given beside eval.preset=step-times"):
        from_config_dict(config, ["eval.preset", "sample.clip"])
    # What the config file has for other jobs, and what rows have in common, may stand beside a table.
    for given in (["eval.preset"], ["sample.clip"], ["eval.preset", "eval.seeds", "eval.num", "sample.guidance_scale"]):
        assert from_config_dict(config, given).eval.preset == "step-times"
    config.eval.preset = ""
    assert from_config_dict(config, ["eval.preset", "eval.steps"]).eval.steps == (2,)


def test_every_path_is_expanded_and_only_at_its_beginning(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    paths = [key for key, known in keys_of(Config) if known.is_path]
    assert {"data.path", "edit.path", "edit.mask", "eval.images", "weights.out"} <= set(paths)
    flat = flatten(with_values(Config(), {key: "~/x~" for key in paths}))
    assert {key: flat[key] for key in paths} == dict.fromkeys(paths, "/home/ada/x~")
    assert flatten(with_values(Config(), {key: "a/~/x" for key in paths}))["data.path"] == "a/~/x"


@pytest.mark.parametrize(
    ("given", "meant"),
    [(600, ("600",)), ("600", ("600",)), ((300, 600), ("300", "600")), (["latest", 600], ("latest", "600"))],
)
def test_checkpoints_may_be_given_as_numbers(given, meant):
    assert with_values(Config(), {"eval.checkpoints": given}).eval.checkpoints == meant


def test_a_checkpoint_that_is_no_name_is_refused():
    with pytest.raises(ConfigError, match=r"eval.checkpoints\[0\]: expected str, got True"):
        with_values(Config(), {"eval.checkpoints": [True]})


TOLD = {"model.condition": ("image",), "data.condition": "downsample"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.condition": ("class",)}, "model.num_classes=0: model.condition has classes"),
        ({"model.condition": ("vector",)}, "model.vector_size=0: model.condition has vectors"),
        ({"model.vector_size": 3}, "model.vector_size=3: the network is told no vectors"),
        ({"data.vector": "a"}, "data.vector='a': the network is told no vectors"),
        ({"model.condition": ("image",)}, "data.condition='': model.condition has pictures: say which"),
        ({"data.condition": "blur"}, "data.condition='blur': the network is told no pictures"),
        ({**TOLD, "model.condition": ("image", "image")}, "model.condition=.*: name each kind once"),
        ({**TOLD, "data.condition_factor": 3}, "data.condition_factor=3: a factor that does not divide data"),
        ({**TOLD, "data.condition": "grey", "data.channels": 1}, "data.channels=1 are grey already"),
        ({"data.condition_augmentation": 0.5}, "data.condition_augmentation=0.5: needs a network that is told"),
        ({**TOLD, "sample.condition_augmentation": 0.1}, "sample.condition_augmentation=0.1: the network is"),
        ({**TOLD, "train.condition_dropout": (0.1, 0.2)}, "train.condition_dropout=.*: give one rate for each"),
        ({**TOLD, "sample.guidance_scale": 2.0}, "sample.guidance_scale=2.0: .*train.condition_dropout"),
        ({**TOLD, "train.augment_probability": 0.1}, "train.augment_probability=0.1"),
        (
            {"model.condition": ("class",), "model.num_classes": 3, "train.condition_dropout": (0.1,),
             "train.label_dropout": 0.1},
            "train.label_dropout=0.1: train.condition_dropout=.* set one of them",
        ),
    ],
)  # fmt: skip
def test_conditions_must_fit_together(values, message):
    with pytest.raises(ConfigError, match=message):
        with_values(Config(), values)


def test_what_can_be_told_and_left_out():
    config = with_values(
        Config(),
        {**TOLD, "model.condition": ("class", "image"), "model.num_classes": 3, "train.condition_dropout": (0.0, 0.2)},
    )
    assert config.model.kinds == ("class", "image")
    assert config.condition_dropout == {"class": 0.0, "image": 0.2}
    assert config.droppable == ("image",)
    # Labels alone: as ever, whatever training did.
    labels = with_values(Config(), {"model.num_classes": 3, "train.label_dropout": 0.1})
    assert (labels.model.kinds, labels.condition_dropout, labels.droppable) == (("class",), {"class": 0.1}, ("class",))
    assert Config().droppable == ()
    # A guide needs nothing that is left out.
    with_values(Config(), {"sample.guidance_scale": 2.0, "sample.guide_workdir": "runs/small"})


def test_a_residual_network_is_told_pictures_alone():
    residual = next(path for path in CONFIGS if "residual_unet" in path.read_text())
    config = from_config_dict(load_config_file(residual))
    values = {"model.condition": ("vector",), "model.vector_size": 2}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, name="residual_unet"))
    with pytest.raises(ConfigError, match="cannot be told vectors, only: image"):
        with_values(config, values)
