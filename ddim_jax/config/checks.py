"""Which values can be used together. Ranges of single values stand beside the keys, in ``schema.py``.

What depends on the schedule or the sampler is checked where these are made, in ``configured.py``.
"""

import collections
import math
from typing import Any

from ddim_jax.config.keys import LARGEST_INDEX, check_values
from ddim_jax.config.schema import (
    AUGMENTATION_INPUTS,
    NARROWEST_AVERAGE,
    WIDEST_AVERAGE,
    Config,
    DataConfig,
    DiffusionConfig,
    DistillConfig,
    EvalConfig,
    ModelConfig,
)
from ddim_jax.errors import ConfigError, shown

# Schedules whose betas go from diffusion.beta_start to diffusion.beta_end.
_FROM_START_TO_END = ("linear", "quad", "sigmoid")

# Rows of a table of eval; each is at least seconds of work.
_MOST_ROWS = 10_000


def check(config: Config) -> None:
    """Checks ranges and the keys that must fit together.

    Raises:
        ConfigError: at the first value that cannot be used.
    """
    check_values(config)
    _check_data(config.data)
    _check_model(config)
    _check_condition(config)
    _check_diffusion(config.diffusion)
    _check_train(config)
    _check_distill(config)
    _check_sample(config)
    _check_interpolate(config)
    _check_eval(config.eval)


def check_new_network(config: Config) -> None:
    """Checks what is asked of a network that is to be trained from the start; others' networks need not be so.

    Raises:
        ConfigError: it is one that cannot learn well.
    """
    model = config.model
    _require(
        model.name != "unet" or model.channels >= 2 * model.num_groups,
        "model.channels",
        model.channels,
        f"must be twice model.num_groups={model.num_groups} or more: with one channel a group the norms would take "
        "away what the blocks are told of the noise level",
    )


def _require(condition: bool, key: str, value: Any, message: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={shown(value) if isinstance(value, tuple) else value}: {message}")


def _check_data(data: DataConfig) -> None:
    for key in ("image_size", "condition_size"):
        value = getattr(data, key)
        _require(
            isinstance(value, int) or len(value) == 2, f"data.{key}", value, "give one number, or height and width"
        )
    _require(
        len(data.range) in (0, 2, 2 * data.channels),
        "data.range",
        data.range,
        f"needs a lowest and a highest value, or such a pair for each of {data.channels} channels",
    )
    whole = (0, 2**16 - 1 if data.dtype == "uint16" else 255)
    for low, high in zip(data.range[::2], data.range[1::2], strict=False):
        _require(low < high, "data.range", data.range, f"the lowest value {low:g} must lie below the highest, {high:g}")
        _require(
            data.dtype == "float32" or whole[0] <= low < high <= whole[1],
            "data.range",
            data.range,
            f"data.dtype={data.dtype} holds {whole[0]} ... {whole[1]}",
        )
    _require(
        all(channel < data.channels for channel in data.shown_channels) and len(data.shown_channels) != 2,
        "data.shown_channels",
        data.shown_channels,
        f"name one channel, or three, of 0 ... {data.channels - 1}",
    )
    for key in ("mean", "std"):
        values = getattr(data, key)
        _require(
            len(values) in (0, 1, data.channels),
            f"data.{key}",
            values,
            f"needs 1 or {data.channels} values, or none to have them measured",
        )
    _require(bool(data.mean) == bool(data.std), "data.std", data.std, "give both data.mean and data.std, or neither")
    _require(data.source != "tfds" or bool(data.name), "data.name", repr(data.name), "name the TFDS data set")


def _check_model(config: Config) -> None:
    model, data = config.model, config.data
    if model.name == "unet":
        _require(
            model.channels % model.num_groups == 0,
            "model.channels",
            model.channels,
            f"must be a multiple of model.num_groups={model.num_groups}",
        )
    elif model.name == "song_unet":
        _check_song_unet(model)
    else:
        _check_residual_unet(model)
    if model.name != "song_unet":
        _check_untouched(model, ("embedding", "encoder", "resample_filter", "augmentation_inputs"))
    factor = 2 ** (len(model.multipliers) - 1)
    sides = data.image_shape[:2]
    padded = config.network_sides
    _require(
        data.pad or padded == sides,
        "data.image_size",
        data.image_size,
        f"must be divisible by {factor}, since the {len(model.multipliers)} levels of model.multipliers "
        f"halve the image {len(model.multipliers) - 1} times; the next that is: "
        f"{padded[0] if padded[0] == padded[1] else padded}; or set data.pad=true",
    )
    resolutions = list(config.resolutions)
    for resolution in model.attention_resolutions:
        _require(
            resolution in resolutions,
            "model.attention_resolutions",
            model.attention_resolutions,
            f"the network has no resolution {resolution}; it has {resolutions}",
        )
    attending = {model.channels * model.multipliers[-1]}
    attending |= {
        model.channels * multiplier
        for multiplier, resolution in zip(model.multipliers, resolutions, strict=True)
        if resolution in model.attention_resolutions
    }
    for key, value in (("head_channels", model.head_channels), ("num_heads", model.num_heads)):
        _require(
            value == 0 or all(width % value == 0 for width in attending),
            f"model.{key}",
            value,
            f"must divide the widths that attend, {sorted(attending)}",
        )
    _require(
        not (model.head_channels and model.num_heads),
        "model.num_heads",
        model.num_heads,
        f"model.head_channels={model.head_channels} says the number of heads already; set one of them to 0",
    )
    _require(
        model.time_channels == 0 or (model.time_channels % 2 == 0 and model.time_channels >= 4),
        "model.time_channels",
        model.time_channels,
        "must be even and at least 4: half of it are sines of the noise level, half cosines",
    )


# What networks can be told, but for "class", which has a key of its own.
_CAN_BE_TOLD = {"unet": ("vector", "image"), "song_unet": ("vector", "image"), "residual_unet": ("image",)}


def _check_condition(config: Config) -> None:
    model, data, train = config.model, config.data, config.train
    kinds = model.condition
    _require(len(set(kinds)) == len(kinds), "model.condition", kinds, "name each kind once")
    for kind in kinds:
        _require(
            kind == "class" or kind in _CAN_BE_TOLD[model.name],
            "model.condition",
            kinds,
            f"model.name={model.name} cannot be told {kind}s, only: {', '.join(_CAN_BE_TOLD[model.name])}",
        )
    _require(
        "class" not in kinds or model.num_classes > 0,
        "model.num_classes",
        model.num_classes,
        "model.condition has classes: say how many",
    )
    _require(
        ("vector" in kinds) == (model.vector_size > 0),
        "model.vector_size",
        model.vector_size,
        "model.condition has vectors: say how long they are"
        if "vector" in kinds
        else "the network is told no vectors; add vector to model.condition, or use 0",
    )
    _require(
        "vector" in kinds or not data.vector,
        "data.vector",
        shown(data.vector),
        "the network is told no vectors; add vector to model.condition, or leave it out",
    )
    _require(
        ("image" in kinds) == bool(data.condition),
        "data.condition",
        repr(data.condition),
        "model.condition has pictures: say which, such as downsample or mask"
        if "image" in kinds
        else "the network is told no pictures; add image to model.condition, or leave it out",
    )
    sides = data.image_shape[:2]
    _require(
        data.condition != "downsample" or not any(side % data.condition_factor for side in sides),
        "data.condition_factor",
        data.condition_factor,
        f"a factor that does not divide data.image_size={data.image_size}",
    )
    _require(
        data.condition != "grey" or data.channels > 1,
        "data.condition",
        data.condition,
        f"images of data.channels={data.channels} are grey already",
    )
    _require(
        data.condition not in ("grey", "paired") or len(data.range) <= 2 or data.picture_channels == data.channels,
        "data.range",
        data.range,
        f"pictures of data.condition={data.condition} have other channels than the images: give one pair for all",
    )
    _require(
        data.condition_augmentation == 0 or ("image" in kinds and model.name != "residual_unet"),
        "data.condition_augmentation",
        data.condition_augmentation,
        "needs a network that is told pictures and their noise: unet or song_unet, and model.condition=image",
    )
    _require(
        config.sample.condition_augmentation <= data.condition_augmentation,
        "sample.condition_augmentation",
        config.sample.condition_augmentation,
        f"the network is trained with data.condition_augmentation={data.condition_augmentation} at most",
    )
    _require(
        len(train.condition_dropout) in (0, len(kinds)),
        "train.condition_dropout",
        train.condition_dropout,
        f"give one rate for each of model.condition={kinds}, or none",
    )
    _require(
        not (train.label_dropout and "class" in kinds and train.condition_dropout),
        "train.label_dropout",
        train.label_dropout,
        f"train.condition_dropout={train.condition_dropout} says how many labels are left out; set one of them",
    )
    _require(
        model.null_label or config.condition_dropout.get("class", 0) == 0,
        "train.condition_dropout",
        train.condition_dropout,
        "replaces labels by 'no label', which the network has only with model.null_label=True",
    )
    _require(
        train.augment_probability == 0 or "image" not in kinds,
        "train.augment_probability",
        train.augment_probability,
        "pictures that images are drawn from are not turned with them; use 0",
    )


def _check_diffusion(diffusion: DiffusionConfig) -> None:
    _require(
        diffusion.schedule not in _FROM_START_TO_END or diffusion.beta_start <= diffusion.beta_end,
        "diffusion.beta_end",
        diffusion.beta_end,
        f"must be at least diffusion.beta_start={diffusion.beta_start}: the noise added by the {diffusion.schedule} "
        "schedule grows from step to step",
    )


def _check_residual_unet(model: ModelConfig) -> None:
    _require(
        model.channels % 2 == 0 and (model.norm == "batch" or model.channels % model.num_groups == 0),
        "model.channels",
        model.channels,
        f"must be even, and with model.norm=group a multiple of model.num_groups={model.num_groups}",
    )
    for key, off in (("attention_resolutions", ()), ("dropout", 0.0), ("num_classes", 0), ("dtype", "float32")):
        value = getattr(model, key)
        _require(value == off, f"model.{key}", value, f"model.name=residual_unet knows only {off!r}")
    _check_untouched(
        model,
        (
            *("null_label", "time_freq_shift", "time_cos_first", "downsample_padding", "norm_eps", "head_channels"),
            *_OF_OPENAI,
        ),
    )


# What unet alone knows, for OpenAI's networks.
_OF_OPENAI = ("num_heads", "scale_shift_norm", "resample_blocks", "learn_variance", "time_channels", "time_scale")


def _check_song_unet(model: ModelConfig) -> None:
    _require(model.channels % 4 == 0, "model.channels", model.channels, "model.name=song_unet needs a multiple of 4")
    widths = [model.channels * multiplier for multiplier in (1, *model.multipliers)]
    # A block on the way up normalises two widths at once.
    for width in {*widths, *(one + other for one in widths for other in widths)}:
        groups = min(model.num_groups, width // 4)
        _require(
            width % groups == 0,
            "model.num_groups",
            model.num_groups,
            f"a norm of {width} channels would have {groups} groups, which do not divide them",
        )
    _require(
        len(model.resample_filter) % 2 == 0,
        "model.resample_filter",
        model.resample_filter,
        "needs an even number of weights, such as (1, 1) or (1, 3, 3, 1)",
    )
    _check_untouched(model, ("time_freq_shift", "time_cos_first", "downsample_padding", *_OF_OPENAI))


def _check_untouched(model: ModelConfig, keys: tuple[str, ...]) -> None:
    """Refuses values of keys that the network does not look at."""
    plain = ModelConfig()
    for key in keys:
        value, off = getattr(model, key), getattr(plain, key)
        _require(value == off, f"model.{key}", value, f"model.name={model.name} knows only {off!r}")


def _check_train(config: Config) -> None:
    model, train = config.model, config.train
    _require(
        train.batch_size % train.accumulate == 0,
        "train.accumulate",
        train.accumulate,
        f"must divide train.batch_size={train.batch_size}",
    )
    _require(
        train.steps_per_call == 1 or not train.ema_on_host,
        "train.steps_per_call",
        train.steps_per_call,
        "train.ema_on_host needs the parameters of every step; use 1",
    )
    _require(
        len(set(train.ema_widths)) == len(train.ema_widths),
        "train.ema_widths",
        train.ema_widths,
        "a width occurs more than once; name each once",
    )
    _require(
        train.sample_every_epochs == 0 or train.sample_every_epochs >= 1e-9,
        "train.sample_every_epochs",
        train.sample_every_epochs,
        "must be 0, or at least 1e-09: there is no picture more often than each step",
    )
    _require(
        train.optimizer == "adamw" or train.weight_decay == 0,
        "train.weight_decay",
        train.weight_decay,
        "only train.optimizer=adamw uses it",
    )
    _require(
        model.name != "residual_unet" or model.norm != "batch" or train.accumulate == 1,
        "train.accumulate",
        train.accumulate,
        "batch norms need the whole batch at once; use 1, or model.norm=group",
    )
    _require(
        not model.learn_variance or config.diffusion.time_sampling in ("antithetic", "uniform", "stratified"),
        "diffusion.time_sampling",
        config.diffusion.time_sampling,
        "model.learn_variance=True: a variance is that of a step between levels; use antithetic, uniform, stratified",
    )
    _require(
        not model.learn_variance or config.data.dtype != "float32",
        "model.learn_variance",
        model.learn_variance,
        "it is learned from the probability of levels of grey, which data.dtype=float32 has not; use False",
    )
    _require(
        train.label_dropout == 0 or model.null_label,
        "train.label_dropout",
        train.label_dropout,
        "replaces labels by 'no label', which the network has only with model.null_label=True",
    )
    _require(
        train.augment_probability == 0
        or (model.name == "song_unet" and model.augmentation_inputs == AUGMENTATION_INPUTS),
        "train.augment_probability",
        train.augment_probability,
        "the network has to be told what was done to its images: use model.name=song_unet and "
        f"model.augmentation_inputs={AUGMENTATION_INPUTS}, or 0",
    )
    _require(
        train.validate_every == 0 or bool(config.data.validation),
        "data.validation",
        repr(config.data.validation),
        "train.validate_every needs a split to validate on, e.g. train[90%:]",
    )
    _require(
        train.measure_every == 0 or train.measure_metric in config.eval.metrics,
        "eval.metrics",
        config.eval.metrics,
        f"train.measure_metric={train.measure_metric} has to be one of them",
    )


# What a student can predict progressively: of eps the image is had by dividing by almost nothing where steps begin.
_PROGRESSIVE = ("v", "x0", "flow")
# What is the image itself where there is no noise.
_CONSISTENT = ("v", "flow", "eps")


def _check_distill(config: Config) -> None:
    distill = config.distill
    if not distill.teacher:
        return
    halved = 2**distill.rounds
    _require(
        not distill.is_progressive or distill.first_steps % halved == 0,
        "distill.first_steps",
        distill.first_steps,
        f"cannot be halved distill.rounds={distill.rounds} times; use a multiple of {halved}, or fewer rounds",
    )
    _require(
        not distill.is_progressive or distill.first_steps <= config.diffusion.num_levels,
        "distill.first_steps",
        distill.first_steps,
        f"the teacher has diffusion.num_levels={config.diffusion.num_levels}",
    )
    _require(
        not distill.is_progressive or distill.first_steps * config.train.batch_size <= LARGEST_INDEX,
        "distill.first_steps",
        distill.first_steps,
        f"times train.batch_size={config.train.batch_size} must stay below 2^31",
    )
    _require(
        distill.measure_num != 1,
        "distill.measure_num",
        distill.measure_num,
        "one image has no distribution; use at least 2, or 0 for none",
    )
    plain = DistillConfig()
    for key in ("noise_mean", "noise_std", "huber") if distill.is_progressive else ("weight",):
        value = getattr(distill, key)
        _require(
            value == getattr(plain, key), f"distill.{key}", value, f"says nothing to distill.method={distill.method}"
        )
    can_be = _PROGRESSIVE if distill.is_progressive else _CONSISTENT
    _require(
        distill.objective in ("", *can_be),
        "distill.objective",
        distill.objective,
        f"distill.method={distill.method} needs a student that predicts one of {', '.join(can_be)}",
    )
    _require(
        distill.method != "easy_consistency" or distill.guidance_scale in (None, 1),
        "distill.guidance_scale",
        distill.guidance_scale,
        "distill.method=easy_consistency never asks the teacher, so that its guidance cannot be learned; use "
        "consistency, or 1",
    )
    _require(
        distill.guidance_scale in (None, 1) or bool(config.model.kinds),
        "distill.guidance_scale",
        distill.guidance_scale,
        "guidance needs a teacher that draws from conditions; leave it out",
    )
    _require(
        not distill.teacher_sha256 or distill.guidance_scale == 1 or config.sample.guidance_scale == 1,
        "sample.guidance_scale",
        config.sample.guidance_scale,
        f"the student has learned a guidance of {distill.guidance_scale}, and cannot be guided beside that; use 1",
    )


def _check_sample(config: Config) -> None:
    sample, num_levels = config.sample, config.diffusion.num_levels
    of_classes = sample.per_class * config.model.num_classes
    for key, value, num in (("num", sample.num, sample.num), ("per_class", sample.per_class, of_classes)):
        _require(sample.start + num <= LARGEST_INDEX + 1, f"sample.{key}", value, "image indices must stay below 2^31")
    for key, steps in (
        ("sample.steps", sample.steps),
        *(("train.final_sample_steps", s) for s in config.train.final_sample_steps),
    ):
        _require(
            1 <= steps <= num_levels, key, steps, f"must lie in 1 ... {num_levels}, the levels of diffusion.num_levels"
        )
    repeated = [i for i, count in collections.Counter(sample.indices).items() if count > 1]
    _require(
        not repeated,
        "sample.indices",
        sample.indices,
        f"image {min(repeated, default=0)} occurs more than once; name each once",
    )
    _require(
        sample.sampler != "tuned" or sample.spacing == "tuned",
        "sample.spacing",
        sample.spacing,
        "sample.sampler=tuned has coefficients for the levels that were tuned with them; set sample.spacing=tuned",
    )
    _require(
        not sample.coefficients or sample.sampler == "tuned",
        "sample.coefficients",
        sample.coefficients,
        f"sample.sampler={sample.sampler} has its own; leave them out, or use tuned",
    )
    asked = [("sample.ema_width", sample.ema_width), *(("eval.ema_widths", width) for width in config.eval.ema_widths)]
    for key, width in asked:
        _require(
            width == 0 or width >= NARROWEST_AVERAGE,
            key,
            width,
            f"must be 0, for the average of train.ema_decay, or lie in {NARROWEST_AVERAGE} ... {WIDEST_AVERAGE}",
        )
        _require(
            width == 0 or sample.ema,
            key,
            width,
            "sample.ema=False asks for the raw parameters, which have no width; use one of the two",
        )
    guided = sample.guidance_scale != 1 or sample.guidance_levels
    _require(
        (not sample.per_class and (not guided or bool(config.model.kinds or sample.guide_workdir)))
        or config.model.num_classes > 0,
        "model.num_classes",
        config.model.num_classes,
        "sample.per_class and guidance need a class-conditional network",
    )
    _require(
        not guided or bool(config.droppable or sample.guide_workdir),
        "sample.guidance_scale",
        sample.guidance_scale,
        "model.null_label=False: guidance needs a network that knows 'no label'"
        if config.model.kinds == ("class",)
        else "guidance leads away from a prediction without condition, and training left out none "
        "(train.condition_dropout); name another network by sample.guide_workdir",
    )
    if sample.guidance_levels:
        levels = sample.guidance_levels
        _require(
            len(levels) == 2 and 1 <= levels[0] <= levels[1] <= num_levels,
            "sample.guidance_levels",
            levels,
            f"give the lowest and the highest level, in 1 ... {num_levels}",
        )
    if sample.label is not None:
        _require(
            config.model.num_classes > 0,
            "sample.label",
            sample.label,
            "the model has no classes (model.num_classes=0); leave it out",
        )
        _require(
            0 <= sample.label < config.model.num_classes,
            "sample.label",
            sample.label,
            f"must lie below model.num_classes={config.model.num_classes}",
        )


def _check_interpolate(config: Config) -> None:
    interpolate = config.interpolate
    _require(
        len(interpolate.first) == len(interpolate.second),
        "interpolate.second",
        interpolate.second,
        f"needs as many indices as interpolate.first={interpolate.first}, at least one",
    )
    _require(len(interpolate.corners) in (0, 4), "interpolate.corners", interpolate.corners, "needs four indices")


def _check_eval(evaluation: EvalConfig) -> None:
    for name in evaluation.checkpoints:
        _require(
            name in ("latest", "best", "all") or name.isdecimal(),
            "eval.checkpoints",
            evaluation.checkpoints,
            "choose from: latest, best, all, or steps",
        )
    _require(
        evaluation.bootstrap != 1, "eval.bootstrap", evaluation.bootstrap, "a spread needs 2 or more; 0 computes none"
    )
    rows = {name: len(getattr(evaluation, name)) for name in ("checkpoints", "samplers", "etas", "steps", "seeds")}
    rows["spacings"] = max(1, len(evaluation.spacings))
    _require(
        math.prod(rows.values()) <= _MOST_ROWS,
        f"eval.{max(rows, key=lambda name: rows[name])}",
        f"({max(rows.values()):,} values)",
        f"the lists of eval make {math.prod(rows.values()):,} rows; {_MOST_ROWS:,} are the most",
    )
