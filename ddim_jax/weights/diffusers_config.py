"""Translation of diffusers' ``config.json`` of a ``UNet2DModel`` and ``scheduler_config.json`` to our config and back.

``UNet2DModel`` can be many networks, one of which is ours. A setting that ours has not is an error that names it:
with half of them ignored the weights would load, and every image would be a little wrong.
"""

from collections.abc import Mapping
from typing import Any

from ddim_jax.config import Config
from ddim_jax.errors import UserError
from ddim_jax.names import Objective, ScheduleName

# Written into what is exported; the oldest version that reads it.
_DIFFUSERS_VERSION = "0.35.0"

# What diffusers takes for a setting that the file leaves out.
_UNET_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
# What our network does, where it has no choice.
_UNET_FIXED: dict[str, Any] = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "add_attention": True,
    "class_embed_type": None,
}
# Types of levels without attention, resampled by convolutions or by residual blocks, and of those with attention.
_LEVELS = {
    "down": ("DownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up": ("UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D"),
}
# Values of ``resnet_time_scale_shift``, and whether that is our ``scale_shift_norm``.
_TIME_SCALE_SHIFT = {"default": False, "scale_shift": True}
# Values of ``downsample_type`` and ``upsample_type``, which levels with attention obey: our ``resample_blocks``.
_SAMPLE_TYPES = {"conv": False, "resnet": True}
# What diffusers' EMAModel writes beside them.
_EMA_SETTINGS = (
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"),
)

_SCHEDULERS = (
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"),
)
_SCHEDULES: dict[str, ScheduleName] = {
    "linear": "linear",
    "scaled_linear": "quad",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
_OBJECTIVES: dict[str, Objective] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# How many its pipeline makes unless told otherwise.
_PIPELINE_STEPS = 50
# Those that DDIMScheduler knows.
_EXPORTED_SCHEDULES: dict[ScheduleName, str] = {
    "linear": "linear",
    "quad": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
}


def stated_by_unet(
    values: Mapping[str, Any],
    source: str,
    image_size: int | tuple[int, ...],
    null_label: bool = False,
    picture_channels: int = 0,
) -> dict[str, Any]:
    """Translates the ``config.json`` of a ``UNet2DModel`` to values by keys of our config.

    Args:
        values: settings in the file.
        source: name of the file in messages.
        image_size: height and width of the images, or one number for both, where the file leaves ``sample_size`` open.
        null_label: whether the last of its classes means "no label", which the file cannot say.
        picture_channels: channels of the picture that the network may be told, which it has behind those of the image.

    Raises:
        UserError: a setting that our network does not have.
    """
    given = {key: value for key, value in values.items() if not key.startswith("_") and key not in _EMA_SETTINGS}
    name = values.get("_class_name")
    if name != "UNet2DModel":
        raise UserError(f"{source}: _class_name={name!r}: only UNet2DModel is read")
    unknown = given.keys() - _UNET_DEFAULTS.keys()
    if unknown:
        key = min(unknown)
        raise _refused(source, key, given[key], "a setting that is not known here")
    unet = _UNET_DEFAULTS | given
    for key, value in _UNET_FIXED.items():
        if unet[key] != value:
            raise _refused(source, key, unet[key], f"our network has {value!r}")
    if unet["act_fn"] not in ("silu", "swish"):
        raise _refused(source, "act_fn", unet["act_fn"], "our network has 'silu'")
    channels = unet["in_channels"]
    told: dict[str, Any] = {}
    if picture_channels:
        is_told = unet["out_channels"] in (channels - picture_channels, 2 * (channels - picture_channels))
        channels -= picture_channels if is_told else 0
        told = {"model.condition": ("image",)} if is_told else {"model.condition": (), "data.condition": ""}
    if unet["out_channels"] not in (channels, 2 * channels):
        reason = f"ours are in_channels={channels}, or twice as many with a learned variance"
        if unet["out_channels"] < channels:
            reason += "; where the others are a picture that it is told, give a config with data.condition"
        raise _refused(source, "out_channels", unet["out_channels"], reason)
    for key, known in (
        *(("downsample_type", _SAMPLE_TYPES), ("upsample_type", _SAMPLE_TYPES)),
        ("resnet_time_scale_shift", _TIME_SCALE_SHIFT),
    ):
        if unet[key] not in known:
            raise _refused(source, key, unet[key], f"our network has {' and '.join(map(repr, known))}")
    size = image_size if unet["sample_size"] is None else unet["sample_size"]
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) != 2:
        raise _refused(source, "sample_size", size, "our images have a height and a width")
    widths = unet["block_out_channels"]
    attends = _attention_of_levels(unet, source)
    _check_widths(unet, attends, source)
    rows, head = unet["num_class_embeds"], unet["attention_head_dim"]
    one_head = head is None or _attending_widths(widths, attends) == {head}
    classes = {} if rows is None else {"model.null_label": null_label}
    return {
        "data.image_size": sides[0] if sides[0] == sides[1] else sides,
        "data.channels": channels,
        # diffusers' pipelines show x / 2 + 1/2.
        "data.mean": (0.5,),
        "data.std": (0.5,),
        "model.name": "unet",
        "model.channels": widths[0],
        "model.multipliers": tuple(width // widths[0] for width in widths),
        "model.num_blocks": unet["layers_per_block"],
        "model.attention_resolutions": tuple(
            sides[0] // 2**level for level, attention in enumerate(attends) if attention
        ),
        "model.num_groups": unet["norm_num_groups"],
        "model.num_classes": 0 if rows is None else rows - null_label,
        **classes,
        **told,
        "model.time_freq_shift": unet["freq_shift"],
        "model.time_cos_first": unet["flip_sin_to_cos"],
        "model.downsample_padding": unet["downsample_padding"],
        "model.norm_eps": unet["norm_eps"],
        "model.head_channels": 0 if one_head else head,
        "model.num_heads": 0,
        "model.scale_shift_norm": _TIME_SCALE_SHIFT[unet["resnet_time_scale_shift"]],
        "model.resample_blocks": _resamples_by_blocks(unet, attends, source),
        "model.learn_variance": unet["out_channels"] == 2 * channels,
        "model.time_channels": 0,
        "model.time_scale": 1.0,
    }


def _attention_of_levels(unet: Mapping[str, Any], source: str) -> list[bool]:
    """Tells whether the blocks of each level are followed by attention."""
    attends = {}
    for side, known in _LEVELS.items():
        key = f"{side}_block_types"
        for name in unet[key]:
            if name not in known:
                raise _refused(source, key, name, f"our network has {', '.join(known)}")
        attends[side] = [name == known[-1] for name in unet[key]]
    if attends["down"] != attends["up"][::-1]:
        raise _refused(source, "up_block_types", unet["up_block_types"], "our levels attend both ways or not at all")
    return attends["down"]


def _resamples_by_blocks(unet: Mapping[str, Any], attends: list[bool], source: str) -> bool:
    """Tells whether residual blocks change the resolution. The last level each way changes none."""
    found = set()
    for side, (_, by_block, _) in _LEVELS.items():
        of_side = attends if side == "down" else attends[::-1]
        for name, attention in list(zip(unet[f"{side}_block_types"], of_side, strict=True))[:-1]:
            found.add(_SAMPLE_TYPES[unet[f"{side}sample_type"]] if attention else name == by_block)
    if len(found) > 1:
        types = unet["down_block_types"]
        reason = (
            "our levels are all resampled by convolutions or all by residual blocks (downsample_type, upsample_type)"
        )
        raise _refused(source, "down_block_types", types, reason)
    return found == {True}


def _attending_widths(widths: list[int], attends: list[bool]) -> set[int]:
    """Widths of the levels with attention, and of the middle."""
    return {widths[-1], *(width for width, attention in zip(widths, attends, strict=True) if attention)}


def _check_widths(unet: Mapping[str, Any], attends: list[bool], source: str) -> None:
    widths, groups = unet["block_out_channels"], unet["norm_num_groups"]
    if len(widths) != len(attends) or any(width % widths[0] for width in widths):
        raise _refused(source, "block_out_channels", widths, "ours are multiples of the first, one a level")
    attending, head = _attending_widths(widths, attends), unet["attention_head_dim"]
    if head is not None and any(width % head for width in attending):
        raise _refused(
            source, "attention_head_dim", head, f"it must divide the widths that attend, {sorted(attending)}"
        )
    for key, known in (("freq_shift", (0, 1)), ("downsample_padding", (0, 1)), ("flip_sin_to_cos", (False, True))):
        if unet[key] not in known:
            raise _refused(source, key, unet[key], f"our network has {known[0]} and {known[1]}")
    for key, alike in (("attn_norm_num_groups", groups), ("time_embedding_dim", 4 * widths[0])):
        if unet[key] not in (None, alike):
            raise _refused(source, key, unet[key], f"ours is {alike}")
    if unet["resnet_time_scale_shift"] == "scale_shift" and unet["attn_norm_num_groups"] is None:
        reason = f"attention in the middle has no norm then; ours has one of norm_num_groups={groups}"
        raise _refused(source, "attn_norm_num_groups", None, reason)
    if groups is None or any(width % groups for width in widths):
        raise _refused(source, "norm_num_groups", groups, "it must divide all widths")


def stated_by_scheduler(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Translates what a ``scheduler_config.json`` states of the training to values by keys of our config.

    How to sample (clipping, spacing ...) is ``config.sample``'s to say.

    Raises:
        UserError: a schedule or an objective that we do not have.
    """
    name = values.get("_class_name")
    if name not in _SCHEDULERS:
        raise UserError(f"{source}: _class_name={name!r}: the schedules read are those of {', '.join(_SCHEDULERS)}")
    if values.get("trained_betas") is not None:
        raise UserError(f"{source}: trained_betas is a list of betas, where we have schedules by name")
    schedule, objective = values.get("beta_schedule", "linear"), values.get("prediction_type", "epsilon")
    if schedule not in _SCHEDULES:
        raise _refused(source, "beta_schedule", schedule, f"ours are {', '.join(_SCHEDULES)}")
    if objective not in _OBJECTIVES:
        raise _refused(source, "prediction_type", objective, f"ours are {', '.join(_OBJECTIVES)}")
    stated = {
        "diffusion.schedule": _SCHEDULES[schedule],
        "diffusion.num_levels": values.get("num_train_timesteps", 1000),
        "diffusion.zero_terminal_snr": values.get("rescale_betas_zero_snr", False),
        "diffusion.objective": _OBJECTIVES[objective],
    }
    if schedule != "squaredcos_cap_v2":
        stated["diffusion.beta_start"] = float(values.get("beta_start", 1e-4))
        stated["diffusion.beta_end"] = float(values.get("beta_end", 0.02))
    return stated


def is_average(values: Mapping[str, Any]) -> bool:
    """Tells whether a ``config.json`` is of the kind that diffusers' ``EMAModel`` writes."""
    return "optimization_step" in values


def _refused(source: str, key: str, value: Any, reason: str) -> UserError:
    return UserError(f"{source}: {key}={value!r} cannot be had here: {reason}")


# --- export -------------------------------------------------------------------------------------


def unet_config(config: Config) -> dict[str, Any]:
    """Writes the ``config.json`` of the ``UNet2DModel`` that is the network of ``config.model``.

    Raises:
        UserError: diffusers has no such network.
    """
    data, model = config.data, config.model
    if model.name != "unet":
        raise UserError(
            f"model.name={model.name}: diffusers has no such network (no continuous embedding of the noise's variance, "
            "no batch norms); choose weights.format=npz or safetensors"
        )
    if data.dtype != "uint8" or {*data.range[::2]} - {0.0} or {*data.range[1::2]} - {255.0}:
        raise UserError(
            f"data.dtype={data.dtype}, data.range={data.range}: diffusers' pipelines know images of 8 bits, 0 ... 255, "
            "only; choose weights.format=npz or safetensors"
        )
    if data.pad and config.network_sides != data.image_shape[:2]:
        raise UserError(
            f"data.pad=True: diffusers' network does not enlarge images of {data.image_size} to what it can halve; "
            "choose weights.format=npz or safetensors"
        )
    if {*data.mean, *data.std} != {0.5}:
        raise UserError(
            f"data.mean={data.mean}, data.std={data.std}: diffusers' pipelines know images in [-1, 1] only, mean and "
            "std 0.5; choose weights.format=npz or safetensors"
        )
    if "vector" in model.condition or data.condition_augmentation:
        what = "model.condition=vector" if "vector" in model.condition else "data.condition_augmentation"
        raise UserError(
            f"{what}: diffusers' UNet2DModel is told no vector of numbers; choose weights.format=npz or safetensors"
        )
    factor = 2 ** (len(model.multipliers) - 1)
    if any(side % factor for side in data.image_shape[:2]):
        raise UserError(
            f"data.pad: diffusers' UNet2DModel enlarges no images, and {factor} does not divide "
            f"data.image_size={data.image_size}; choose weights.format=npz or safetensors"
        )
    for key, value, off in (
        *(("num_heads", max(1, model.num_heads), 1), ("learn_variance", model.learn_variance, False)),
        *(("time_channels", model.time_channels, 0), ("time_scale", model.time_scale, 1.0)),
    ):
        if value != off:
            raise UserError(
                f"model.{key}={value}: what is exported is a pipeline of diffusers that draws by DDIM, which has only "
                f"{off}; choose weights.format=npz or safetensors"
            )
    down, up = ((_LEVELS[side][model.resample_blocks], _LEVELS[side][-1]) for side in ("down", "up"))
    sample_type = "resnet" if model.resample_blocks else "conv"
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": _DIFFUSERS_VERSION,
        **_UNET_DEFAULTS,
        **_UNET_FIXED,
        "sample_size": data.image_size if isinstance(data.image_size, int) else list(data.image_size),
        "in_channels": data.channels + (data.picture_channels if "image" in model.condition else 0),
        "out_channels": data.channels,
        "block_out_channels": [model.channels * multiplier for multiplier in model.multipliers],
        "layers_per_block": model.num_blocks,
        "down_block_types": [down[attention] for attention in config.attends],
        "up_block_types": [up[attention] for attention in reversed(config.attends)],
        "downsample_type": sample_type,
        "upsample_type": sample_type,
        "resnet_time_scale_shift": "scale_shift" if model.scale_shift_norm else "default",
        # Left out, it would be the same by default, and none with scale_shift.
        "attn_norm_num_groups": model.num_groups if model.scale_shift_norm else None,
        "dropout": model.dropout,
        "freq_shift": model.time_freq_shift,
        "flip_sin_to_cos": model.time_cos_first,
        "downsample_padding": model.downsample_padding,
        "norm_eps": model.norm_eps,
        "attention_head_dim": model.head_channels or None,
        "norm_num_groups": model.num_groups,
        "num_class_embeds": model.num_classes + model.null_label if model.num_classes else None,
    }


def scheduler_config(config: Config) -> dict[str, Any]:
    """Writes the ``scheduler_config.json`` of the ``DDIMScheduler`` with our schedule and sampler.

    :func:`not_in_scheduler` says what of the sampler is not in it.

    Raises:
        UserError: diffusers has no such schedule.
    """
    diffusion, sample = config.diffusion, config.sample
    if diffusion.schedule not in _EXPORTED_SCHEDULES:
        raise UserError(
            f"diffusion.schedule={diffusion.schedule}: diffusers' DDIMScheduler has only "
            f"{', '.join(_EXPORTED_SCHEDULES)}; choose weights.format=npz or safetensors"
        )
    objectives = {ours: theirs for theirs, ours in _OBJECTIVES.items()}
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "num_train_timesteps": diffusion.num_levels,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "beta_schedule": _EXPORTED_SCHEDULES[diffusion.schedule],
        "trained_betas": None,
        "prediction_type": objectives[diffusion.objective],
        "rescale_betas_zero_snr": diffusion.zero_terminal_snr,
        "clip_sample": sample.clip in ("keep_eps", "rederive_eps"),
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "thresholding": sample.clip == "dynamic_threshold",
        "dynamic_thresholding_ratio": round(sample.threshold_percentile / 100, 12),
        "sample_max_value": sample.threshold_limit,
        # Their "leading" is our uniform.
        "timestep_spacing": sample.spacing if sample.spacing in ("trailing", "linspace") else "leading",
    }


def not_in_scheduler(config: Config) -> list[str]:
    """Tells how the exported ``DDIMPipeline`` draws otherwise than ``config.sample`` says: a sentence for each setting.

    What its caller can give it back is said with the argument to pass.
    """
    sample, num_levels = config.sample, config.diffusion.num_levels
    found = []
    if sample.sampler == "ddpm_small":
        found.append("sample.sampler=ddpm_small is their DDIM at eta 1: pass eta=1.0 to the pipeline")
    elif sample.sampler != "ddim":
        found.append(f"sample.sampler={sample.sampler} is none of DDIMScheduler's: it draws by ddim")
    elif sample.eta_per_step:
        found.append(f"sample.eta_per_step={sample.eta_per_step}: diffusers has one eta for all steps, 0 unless given")
    elif sample.eta:
        found.append(f"sample.eta={sample.eta:g} is no setting of theirs: pass eta={sample.eta:g} to the pipeline")
    if sample.clip in ("rederive_eps", "dynamic_threshold"):
        found.append(
            f"sample.clip={sample.clip} is theirs only if you pass use_clipped_model_output=True to the pipeline"
        )
    steps = len(sample.levels) or sample.steps
    if sample.levels:
        found.append(f"sample.levels={sample.levels}: DDIMScheduler takes no list of levels: it draws with 'leading'")
    elif sample.spacing == "linspace":
        found.append(
            "sample.spacing=linspace has their name, but DDIMScheduler steps from level t to t - T // S, not to the "
            "next of its levels: its images are others, and worse"
        )
    elif sample.spacing not in ("uniform", "uniform_published", "trailing"):
        found.append(f"sample.spacing={sample.spacing} is none of DDIMScheduler's: it draws with 'leading'")
    elif num_levels % steps or (steps == 1 and sample.spacing == "uniform"):
        found.append(
            f"sample.steps={steps}, sample.spacing={sample.spacing}: DDIMScheduler takes the same steps only "
            f"where their number divides the {num_levels} levels, and is not 1 unless it is 'trailing'"
        )
    if steps != _PIPELINE_STEPS:
        found.append(f"sample.steps={steps} is no setting of theirs: pass num_inference_steps={steps} to the pipeline")
    if config.model.num_classes:
        found.append(
            f"model.num_classes={config.model.num_classes}: DDIMPipeline gives the network no labels: call UNet2DModel "
            "with class_labels"
        )
    if "image" in config.model.condition:
        found.append(
            f"data.condition={config.data.condition}: DDIMPipeline gives the network no pictures: call UNet2DModel "
            "with them behind the image's channels"
        )
    for key in ("guidance_scale", "guidance_levels"):
        value = getattr(sample, key)
        if value not in (1.0, ()):
            found.append(f"sample.{key}={value}: DDIMPipeline does not guide")
    return found


def pipeline_index() -> dict[str, Any]:
    """Writes the ``model_index.json`` of a ``DDIMPipeline``."""
    return {
        "_class_name": "DDIMPipeline",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
