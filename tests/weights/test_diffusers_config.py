"""diffusers' settings in terms of our config and back."""

import re

import pytest
from weight_files import small_config

from ddim_jax.config import flatten
from ddim_jax.errors import UserError
from ddim_jax.weights.diffusers_config import (
    not_in_scheduler,
    scheduler_config,
    stated_by_scheduler,
    stated_by_unet,
    unet_config,
)
from ddim_jax.weights.published_networks import published_networks

# The settings of google/ddpm-cifar10-32 as published in 2022; what is not in them takes diffusers' defaults.
DDPM_CIFAR10 = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}


def test_the_published_settings_are_the_published_network():
    stated = stated_by_unet(DDPM_CIFAR10, "config.json", image_size=99)
    published = flatten(published_networks()[0].config)
    assert stated == {key: published[key] for key in stated}
    assert stated["model.multipliers"] == (1, 2, 2, 2)
    assert stated["model.attention_resolutions"] == (16,)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("downsample_padding", 2),
        ("freq_shift", 2),
        ("attention_head_dim", 48),
        ("act_fn", "gelu"),
        ("center_input_sample", True),
        ("add_attention", False),
        ("time_embedding_type", "fourier"),
        ("time_embedding_dim", 100),
        ("class_embed_type", "timestep"),
        ("resnet_time_scale_shift", "spatial"),
        ("mid_block_type", None),
        ("mid_block_scale_factor", 2),
        ("downsample_type", "fir"),
        ("down_block_types", ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]),
        ("attn_norm_num_groups", 8),
        ("out_channels", 5),
        ("sample_size", [32, 64, 3]),
        ("block_out_channels", [128, 200, 256, 256]),
        ("block_out_channels", [128, 256]),
        ("down_block_types", ["SkipDownBlock2D"] * 4),
        ("up_block_types", ["UpBlock2D"] * 4),
        ("norm_num_groups", 48),
        ("a_setting_of_tomorrow", 1),
    ],
)
def test_a_setting_that_our_network_has_not_is_named_with_its_value(key, value):
    with pytest.raises(UserError) as refused:
        stated_by_unet({**DDPM_CIFAR10, key: value}, "unet/config.json", 32)
    shown = "SkipDownBlock2D" if "SkipDownBlock2D" in str(value) else value
    assert str(refused.value).startswith(f"unet/config.json: {key}={shown!r} ")


@pytest.mark.parametrize(
    ("left_out", "key", "value"),
    [
        ("norm_eps", "model.norm_eps", 1e-5),
        ("downsample_padding", "model.downsample_padding", 1),
        ("flip_sin_to_cos", "model.time_cos_first", True),
        ("freq_shift", "model.time_freq_shift", 0),
        ("attention_head_dim", "model.head_channels", 8),
    ],
)
def test_a_setting_left_out_is_diffusers_default_and_not_ours(left_out, key, value):
    settings = {name: value for name, value in DDPM_CIFAR10.items() if name != left_out}
    stated, published = (stated_by_unet(each, "config.json", 32) for each in (settings, DDPM_CIFAR10))
    assert {name: stated[name] for name in stated if stated[name] != published[name]} == {key: value}


def test_what_openais_networks_have_is_read():
    settings = {
        **DDPM_CIFAR10, "resnet_time_scale_shift": "scale_shift", "out_channels": 6,
        "downsample_type": "resnet", "upsample_type": "resnet", "attn_norm_num_groups": 32,
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"],
        "up_block_types": ["ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    stated, published = (stated_by_unet(each, "", 32) for each in (settings, DDPM_CIFAR10))
    different = {key: value for key, value in stated.items() if value != published[key]}
    names = ("model.scale_shift_norm", "model.resample_blocks", "model.learn_variance")
    assert different == dict.fromkeys(names, True)
    with pytest.raises(
        UserError, match="attn_norm_num_groups=None cannot be had here: attention in the middle has no norm"
    ):
        stated_by_unet({**settings, "attn_norm_num_groups": None}, "", 32)


@pytest.mark.parametrize(
    "changes", [{"model__num_heads": 2}, {"model__learn_variance": True}, {"model__time_scale": 0.25}]
)
def test_what_no_pipeline_of_diffusers_has_is_not_exported(changes):
    ((key, value),) = changes.items()
    with pytest.raises(
        UserError, match=f"{key.replace('__', '.')}={value}: .*choose weights.format=npz or safetensors"
    ):
        unet_config(small_config(**changes))


def test_classes_with_and_without_a_null_label():
    settings = {**DDPM_CIFAR10, "num_class_embeds": 11}
    for null_label, num_classes in ((False, 11), (True, 10)):
        stated = stated_by_unet(settings, "", 32, null_label)
        assert (stated["model.num_classes"], stated["model.null_label"]) == (num_classes, null_label)
    assert "model.null_label" not in stated_by_unet(DDPM_CIFAR10, "", 32)


def test_one_head_may_be_given_by_its_width():
    # The blocks of level 1 attend over 256 channels, as the middle does.
    assert stated_by_unet({**DDPM_CIFAR10, "attention_head_dim": 256}, "", 32) == stated_by_unet(DDPM_CIFAR10, "", 32)


def test_another_class_is_refused():
    with pytest.raises(UserError, match="_class_name='UNet2DConditionModel': only UNet2DModel is read"):
        stated_by_unet({**DDPM_CIFAR10, "_class_name": "UNet2DConditionModel"}, "config.json", 32)


def test_the_size_of_the_images_may_be_the_configs_to_say():
    assert stated_by_unet({**DDPM_CIFAR10, "sample_size": None}, "", 64)["model.attention_resolutions"] == (32,)
    assert stated_by_unet({**DDPM_CIFAR10, "sample_size": [32, 32]}, "", 64)["data.image_size"] == 32


def test_images_may_be_wider_than_high_both_ways():
    stated = stated_by_unet({**DDPM_CIFAR10, "sample_size": [32, 64]}, "", 8)
    assert stated["data.image_size"] == (32, 64)
    assert stated["model.attention_resolutions"] == (16,)
    assert stated_by_unet({**DDPM_CIFAR10, "sample_size": None}, "", (64, 32))["model.attention_resolutions"] == (32,)
    settings = unet_config(small_config(data__image_size=(16, 8), data__channels=2, model__attention_resolutions=(8,)))
    assert settings["sample_size"] == [16, 8] and settings["in_channels"] == 2
    back = stated_by_unet(settings, "config.json", 4)
    assert (back["data.image_size"], back["data.channels"]) == ((16, 8), 2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data__dtype": "float32", "data__range": (-1.0, 4.0)}, r"data.dtype=float32, data.range=\(-1.0, 4.0\)"),
        ({"data__dtype": "uint16"}, "data.dtype=uint16.*"),
        ({"data__range": (0.0, 100.0)}, "data.dtype=uint8, data.range=.0.0, 100.0."),
        ({"data__image_size": (8, 9), "data__pad": True}, "data.pad=True"),
    ],
)
def test_values_that_no_pipeline_of_diffusers_knows_are_not_exported(changes, named):
    with pytest.raises(UserError, match=f"{named}: .*choose weights.format=npz or safetensors"):
        unet_config(small_config(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__num_classes": 5, "data__channels": 1},
        {"model__num_classes": 5, "model__null_label": False},
        {
            "model__time_freq_shift": 0,
            "model__time_cos_first": True,
            "model__downsample_padding": 1,
            "model__norm_eps": 1e-5,
            "model__head_channels": 8,
        },
        {"model__attention_resolutions": (8, 4), "model__dropout": 0.0},
        {"model__scale_shift_norm": True, "model__resample_blocks": True},
        {"model__attention_resolutions": (8,), "model__resample_blocks": True, "model__multipliers": (1, 1, 2)},
        {"diffusion__schedule": "quad", "diffusion__num_levels": 500, "diffusion__objective": "x0"},
        {"diffusion__schedule": "cosine", "diffusion__zero_terminal_snr": True, "diffusion__objective": "v"},
    ],
)
def test_what_is_exported_states_what_it_was_exported_from(changes):
    config = small_config(**changes)
    stated = stated_by_unet(unet_config(config), "", 0, config.model.null_label) | stated_by_scheduler(
        scheduler_config(config), ""
    )
    ours = flatten(config)
    assert stated == {key: ours[key] for key in stated}
    # A cosine has no betas at its ends.
    assert ("diffusion.beta_start" in stated) == (config.diffusion.schedule != "cosine")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, "_class_name='ScoreSdeVeScheduler'"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas is a list"),
        ({"beta_schedule": "laplace"}, "beta_schedule='laplace'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
    ],
)
def test_schedules_that_we_have_not_are_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        stated_by_scheduler({"_class_name": "DDIMScheduler", **changes}, "scheduler_config.json")


def test_a_scheduler_left_to_its_defaults_is_the_published_one():
    published = flatten(published_networks()[0].config)
    stated = stated_by_scheduler({"_class_name": "DDPMScheduler"}, "")
    assert stated == {key: published[key] for key in stated}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data__mean": (0.4,)}, "images in \\[-1, 1\\] only"),
        ({"diffusion__schedule": "sigmoid"}, "diffusion.schedule=sigmoid: diffusers' DDIMScheduler has only linear"),
        (
            {
                "model__name": "residual_unet",
                "model__attention_resolutions": (),
                "model__dropout": 0.0,
                "diffusion__schedule": "offset_cosine",
            },
            "model.name=residual_unet: diffusers has no such network",
        ),
    ],
)
def test_what_diffusers_cannot_express_is_refused(changes, reason):
    config = small_config(**changes)
    with pytest.raises(UserError, match=reason):
        unet_config(config) and scheduler_config(config)


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {"clip_sample": False, "thresholding": False, "timestep_spacing": "leading"}),
        ({"sample__clip": "keep_eps"}, {"clip_sample": True, "thresholding": False}),
        ({"sample__clip": "rederive_eps"}, {"clip_sample": True, "thresholding": False}),
        (
            {
                "sample__clip": "dynamic_threshold",
                "sample__threshold_percentile": 99.9,
                "sample__threshold_limit": 3.0,
            },
            {"clip_sample": False, "thresholding": True, "dynamic_thresholding_ratio": 0.999, "sample_max_value": 3.0},
        ),
        ({"sample__spacing": "trailing"}, {"timestep_spacing": "trailing"}),
        ({"sample__spacing": "linspace"}, {"timestep_spacing": "linspace"}),
        ({"sample__spacing": "quad"}, {"timestep_spacing": "leading"}),
    ],
)
def test_settings_of_the_sampler_that_diffusers_has(changes, settings):
    written = scheduler_config(small_config(**changes))
    assert {key: written[key] for key in settings} == settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"sample__spacing": "trailing", "sample__clip": "keep_eps"}, []),
        ({"sample__steps": 10}, ["sample.steps=10 .* pass num_inference_steps=10"]),
        ({"sample__eta": 1.0}, ["sample.eta=1 .* pass eta=1 to the pipeline"]),
        ({"sample__eta_per_step": (1.0,) * 4}, ["sample.eta_per_step=.* one eta"]),
        ({"sample__sampler": "unipc2"}, ["sample.sampler=unipc2 is none"]),
        ({"sample__sampler": "ddpm_small"}, ["pass eta=1.0"]),
        ({"sample__clip": "rederive_eps"}, ["sample.clip=rederive_eps .* use_clipped_model_output=True"]),
        ({"sample__clip": "dynamic_threshold"}, ["sample.clip=dynamic_threshold .* use_clipped_model_output=True"]),
        ({"sample__spacing": "quad"}, ["sample.spacing=quad is none"]),
        ({"sample__spacing": "logsnr"}, ["sample.spacing=logsnr is none"]),
        ({"sample__spacing": "openai"}, ["sample.spacing=openai is none"]),
        ({"sample__spacing": "linspace"}, ["sample.spacing=linspace .* others, and worse"]),
        ({"sample__levels": (9, 3)}, ["sample.levels=", "pass num_inference_steps=2"]),
        (
            {"sample__steps": 30},
            ["sample.steps=30, sample.spacing=uniform: .* the 1000 levels", "pass num_inference_steps=30"],
        ),
        ({"model__num_classes": 3}, ["model.num_classes=3"]),
        (
            {"model__num_classes": 3, "sample__guidance_scale": 2.0, "sample__eta": 0.5, "sample__spacing": "quad"},
            ["eta=0.5", "spacing=quad", "num_classes", "sample.guidance_scale=2.0"],
        ),
    ],
)
def test_settings_of_the_sampler_that_diffusers_has_not_are_named(changes, said):
    found = not_in_scheduler(small_config(**{"sample__steps": 50, **changes}))
    assert len(found) == len(said)
    for sentence, pattern in zip(found, said, strict=True):
        assert re.search(pattern, sentence)
        assert "\n" not in sentence
