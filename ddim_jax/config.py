"""The typed configuration: what every key means, its default, and the checks on its value.

A config file (``configs/NAME.py``) starts from :func:`default_config`, which is an
``ml_collections.ConfigDict`` made from the dataclasses below, changes what it needs and returns
it. :func:`from_config_dict` turns it, once, into the frozen :class:`Config` that all other code
uses. A mistake raises :class:`ConfigError`, whose one line names the key and the remedy.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from typing import Any, Literal

import ml_collections
from ml_collections import config_dict

from ddim_jax.errors import UserError

# An ml_collections.ConfigDict. Its attributes are the keys, which type checkers cannot know.
ConfigTree: typing.TypeAlias = Any


class ConfigError(UserError):
    """A config that cannot be used; the message names the key and what to do."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are prepared.

    Attributes:
        source: ``digits`` (bundled with scikit-learn, no download), ``folder`` (a tree of image
            files) or ``tfds`` (a TensorFlow Datasets name).
        name: TFDS name, e.g. ``cifar10``; for the other sources only a label.
        split: TFDS split, e.g. ``train`` or ``train[:90%]``.
        dir: TFDS data directory; empty means TFDS's own default.
        path: root of the ``folder`` source; its first-level sub-folders are the classes.
        image_size: side of the square images that the network sees, in pixels.
        channels: 1 (grey) or 3 (RGB).
        crop: ``none`` (images must be square already), ``center`` (largest centred square) or
            ``celeba`` (rows 57:185, columns 25:153 of 178x218 pixels: the DDIM paper's crop).
        resize: filter used when the cropped image is not ``image_size`` wide; ``none`` refuses
            such an image.
        flip: mirror each image left to right with probability 1/2.
        mean: what is subtracted from pixels in [0, 1], one value or one per channel.
        std: what they are divided by then; mean = std = 0.5 gives floats in [-1, 1].
        cache: ``host`` keeps all decoded images in memory, ``none`` reads them again each epoch,
            ``auto`` keeps them when they need less than ``cache_limit_gib``.
        cache_limit_gib: memory that ``auto`` may use, in GiB.
        threads: reader threads per process.
        prefetch: batches prepared ahead.
        on_error: ``fail`` stops at the first unreadable image; ``skip`` counts it, and puts the next
            readable one in its place.
    """

    source: Literal["digits", "folder", "tfds"] = "digits"
    name: str = ""
    split: str = "train"
    dir: str = ""
    path: str = ""
    image_size: int = 32
    channels: int = 3
    crop: Literal["none", "center", "celeba"] = "none"
    resize: Literal["none", "bilinear", "bicubic", "lanczos", "box"] = "none"
    flip: bool = False
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    cache: Literal["auto", "host", "none"] = "auto"
    cache_limit_gib: float = 2.0
    threads: int = 4
    prefetch: int = 4
    on_error: Literal["fail", "skip"] = "fail"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        name: ``unet``, the U-Net of DDPM and DDIM.
        channels: width of the first level.
        multipliers: width of each level in units of ``channels``; each level but the last halves
            the resolution.
        num_blocks: residual blocks per level on the way down (one more on the way up).
        attention_resolutions: resolutions, in pixels, at which each block is followed by
            self-attention.
        dropout: dropout rate inside the residual blocks.
        num_classes: 0 for an unconditional network, else the number of labels.
        init: ``ddpm`` (the initialisation of the published CIFAR-10 and LSUN checkpoints) or
            ``torch`` (PyTorch's default, as in DDIM's code).
        dtype: dtype of activations; parameters, norms, softmax and loss stay float32.
        remat: recompute activations of each block in the backward pass to save memory.
    """

    name: Literal["unet"] = "unet"
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    num_classes: int = 0
    init: Literal["ddpm", "torch"] = "ddpm"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The forward process and the training objective.

    Attributes:
        schedule: noise schedule, see ``diffusion/schedule.py``.
        num_levels: number of noise levels T.
        beta_start: first beta of the linear, quad, const and sigmoid schedules.
        beta_end: last beta of those.
        objective: what the network predicts: the noise, the clean image, or v.
        loss: ``mse`` or ``mae``.
        reduction: over the values of an image; ``mean`` as in DDPM, ``sum`` as in DDIM's code.
        time_sampling: how noise levels are drawn; ``antithetic`` pairs level t with T + 1 - t.
        min_snr_gamma: weight losses by min(SNR, gamma) (Hang et al. 2023, who use 5); 0 weights none.
    """

    schedule: Literal["linear", "quad", "const", "jsd", "sigmoid", "cosine"] = "linear"
    num_levels: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    objective: Literal["eps", "x0", "v"] = "eps"
    loss: Literal["mse", "mae"] = "mse"
    reduction: Literal["mean", "sum"] = "mean"
    time_sampling: Literal["antithetic", "uniform", "stratified"] = "antithetic"
    min_snr_gamma: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation, and what a training run writes.

    Attributes:
        batch_size: images per step over all devices of all hosts.
        steps: optimiser steps.
        epochs: passes over the data; replaces ``steps`` when it is not 0.
        accumulate: split the batch into this many parts, one after the other, to save memory; the
            gradient stays that of the whole batch.
        optimizer: ``adam`` or ``adamw``.
        learning_rate: peak learning rate.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        lr_schedule: after the warm-up, ``constant`` or ``cosine`` decay to 0 at the last step.
        adam_b1: Adam's first decay.
        adam_b2: Adam's second decay.
        adam_eps: Adam's epsilon.
        weight_decay: AdamW's decoupled decay.
        grad_clip: largest global norm of the gradient; 0 turns clipping off.
        ema_decay: decay of the moving average of the parameters.
        ema_warmup: use min(ema_decay, (1 + step) / (10 + step)).
        checkpoint_every: steps between checkpoints.
        keep_last: newest checkpoints kept.
        keep_every: also keep every checkpoint whose step is a multiple of this; 0 keeps no others.
        log_every: steps between lines of ``metrics.jsonl``.
        sample_every: steps between sample grids; 0 draws them at the end only.
        sample_num: images in a sample grid.
        final_sample_steps: numbers of DDIM steps of the grids drawn when training ends.
        tensorboard: also write TensorBoard event files.
        deterministic: on GPU, ask XLA for kernels whose results do not vary from run to run.
        overwrite: set another run's files in the workdir aside and start anew.
    """

    batch_size: int = 128
    steps: int = 800_000
    epochs: float = 0.0
    accumulate: int = 1
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 2e-4
    warmup_steps: int = 0
    lr_schedule: Literal["constant", "cosine"] = "constant"
    adam_b1: float = 0.9
    adam_b2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    ema_warmup: bool = False
    checkpoint_every: int = 5000
    keep_last: int = 2
    keep_every: int = 0
    log_every: int = 100
    sample_every: int = 5000
    sample_num: int = 64
    final_sample_steps: tuple[int, ...] = (10, 20, 50)
    tensorboard: bool = True
    deterministic: bool = False
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How images are drawn.

    Attributes:
        num: number of images.
        start: index of the first image; image i depends on ``seed`` and i alone.
        seed: seed of the images.
        sampler: ``ddim``; ``ddpm_small`` (posterior variance, DDIM's eta = 1) or ``ddpm_large``
            (variance beta, the DDIM paper's sigma-hat on a subsequence).
        steps: network evaluations S.
        eta: DDIM's stochasticity; 0 is deterministic, 1 is DDPM's posterior variance.
        eta_per_step: an eta for each step, first (noisiest) step first; replaces ``eta``.
        spacing: the subsequence of levels, see ``diffusion/timesteps.py``.
        clip: what is done to the predicted clean image, see ``diffusion/prediction.py``.
        ema: use the moving average of the parameters (published results all do).
        checkpoint: step of the checkpoint to use; the newest when unset.
        batch_size: images per device at a time.
        format: ``png`` files or one ``npz``.
        label: class to draw with a class-conditional network; all classes in turn when unset.
        precision: of matrix products and convolutions, JAX's names. GPUs and TPUs round float32 operands by default;
            at ``highest`` images do not depend on the batch size and the number of devices there either.
    """

    num: int = 64
    start: int = 0
    seed: int = 0
    sampler: Literal["ddim", "ddpm_small", "ddpm_large"] = "ddim"
    steps: int = 50
    eta: float = 0.0
    eta_per_step: tuple[float, ...] = ()
    spacing: Literal["uniform", "quad", "uniform_published", "quad_published"] = "uniform"
    clip: Literal["none", "keep_eps", "rederive_eps"] = "none"
    ema: bool = True
    checkpoint: int | None = None
    batch_size: int = 64
    format: Literal["png", "npz"] = "png"
    label: int | None = None
    precision: Literal["default", "high", "highest"] = "default"


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation (no keys yet)."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. ``seed`` decides initialisation, order, noise: everything random in training."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    eval: EvalConfig = EvalConfig()
    seed: int = 0


# --- ConfigDict: what users write ---------------------------------------------------------------


def default_config() -> ConfigTree:
    """Returns all keys with their defaults, locked: assigning to a misspelt key is an error."""
    return _to_config_dict(Config())


def _to_config_dict(config: Any) -> ConfigTree:
    result = ml_collections.ConfigDict()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            result[field.name] = _to_config_dict(value)
        elif value is None:
            # A placeholder remembers the type, so that a flag can set the key later.
            result[field.name] = config_dict.placeholder(_without_none(field.type))
        else:
            result[field.name] = value
    return result.lock()


def shrink(config: ConfigTree) -> ConfigTree:
    """Turns any config into a trial run of seconds on a CPU: the ``tiny`` variant.

    The structure stays (levels, attention, objective, schedule, source); widths, images, steps
    and batch shrink.
    """
    halvings = len(config.model.multipliers) - 1
    image_size = min(config.data.image_size, max(8, 2**halvings))
    scale = config.data.image_size // image_size
    with config.unlocked():
        config.data.image_size = image_size
        if config.data.source != "digits" and config.data.resize == "none":
            config.data.resize = "bilinear"
        config.model.channels = 32
        config.model.num_blocks = 1
        config.model.attention_resolutions = tuple(
            sorted({max(1, r // scale) for r in config.model.attention_resolutions}, reverse=True)
        )
        config.train.batch_size = 8
        config.train.steps = 4
        config.train.epochs = 0.0
        config.train.warmup_steps = min(config.train.warmup_steps, 2)
        config.train.checkpoint_every = 2
        config.train.log_every = 1
        config.train.sample_every = 2
        config.train.sample_num = 4
        config.train.final_sample_steps = (2,)
        config.sample.num = 4
        config.sample.steps = 4
        config.sample.batch_size = 4
    return config


def apply_variants(
    config: ConfigTree,
    argument: str | None,
    variants: dict[str, typing.Callable[[ConfigTree], object]] | None = None,
) -> ConfigTree:
    """Applies the comma-separated variants of ``configs/NAME.py:ARG``; ``tiny`` is always one.

    Args:
        config: the base config, changed in place.
        argument: ARG, or None or empty for the base config itself.
        variants: the file's own variants: name to a function that changes the config in place.

    Raises:
        ConfigError: ARG names a variant that does not exist.
    """
    known = {**(variants or {}), "tiny": shrink}
    for name in filter(None, (part.strip() for part in (argument or "").split(","))):
        if name not in known:
            raise ConfigError(f"config variant '{name}' does not exist; choose from: {', '.join(sorted(known))}")
        known[name](config)
    return config


# --- from ConfigDict or JSON to the typed config ------------------------------------------------


def from_config_dict(config: ConfigTree) -> Config:
    """Makes the typed config and checks every value.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or range, or keys that contradict
            each other.
    """
    typed = _build(Config, config.to_dict(), "")
    check(typed)
    return typed


def from_json(text: str) -> Config:
    """Reads what :func:`to_json` wrote; same errors as :func:`from_config_dict`."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not a JSON config: {error}") from error
    typed = _build(Config, values, "")
    check(typed)
    return typed


def to_json(config: Config) -> str:
    """The resolved config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def flatten(config: Config) -> dict[str, Any]:
    """All values by dotted key, e.g. ``{"data.source": "digits", ...}``."""
    flat = {}
    for field in dataclasses.fields(config):
        group = getattr(config, field.name)
        if dataclasses.is_dataclass(group):
            flat.update(
                {f"{field.name}.{inner.name}": getattr(group, inner.name) for inner in dataclasses.fields(group)}
            )
        else:
            flat[field.name] = group
    return flat


def check_key(key: str) -> None:
    """Checks that a dotted key exists.

    Raises:
        ConfigError: it does not; the message names the most similar one.
    """
    known = flatten(Config())
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        siblings = [name for name in known if name.split(".")[0] == key.split(".")[0]] or list(known)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(siblings)}"
        raise ConfigError(f"config key '{key}' does not exist; {hint}")


def differences(old: Config, new: Config, groups: tuple[str, ...] | None = None) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, as ``{key: (old, new)}``; only those of ``groups`` when given."""
    before, after = flatten(old), flatten(new)
    return {
        key: (before[key], after[key])
        for key in before
        if before[key] != after[key] and (groups is None or key.split(".")[0] in groups)
    }


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) is types.UnionType:
        return next(arm for arm in typing.get_args(annotation) if arm is not types.NoneType)
    return annotation


def _build(cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix.rstrip('.') or 'config'}: expected a group of keys, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            check_key(f"{prefix}{name}")
    built = {}
    for name, value in values.items():
        annotation = fields[name].type
        if dataclasses.is_dataclass(annotation):
            built[name] = _build(annotation, value, f"{prefix}{name}.")
        else:
            built[name] = _convert(annotation, value, f"{prefix}{name}")
    return cls(**built)


def _convert(annotation: Any, value: Any, key: str) -> Any:
    if typing.get_origin(annotation) is types.UnionType:
        if value is None:
            return None
        return _convert(_without_none(annotation), value, key)
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        if value not in choices:
            raise ConfigError(f"{key}: {value!r} is not one of {', '.join(map(str, choices))}")
        return value
    if typing.get_origin(annotation) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key}: expected a list, got {value!r}")
        inner = typing.get_args(annotation)[0]
        return tuple(_convert(inner, element, f"{key}[{i}]") for i, element in enumerate(value))
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, annotation) or (annotation is not bool and isinstance(value, bool)):
        raise ConfigError(f"{key}: expected {annotation.__name__}, got {value!r} ({type(value).__name__})")
    if annotation is float and not math.isfinite(value):
        raise ConfigError(f"{key}: {value} is not a finite number")
    return value


# --- checks -------------------------------------------------------------------------------------


def check(config: Config) -> None:
    """Checks ranges and the keys that must fit together.

    Raises:
        ConfigError: at the first value that cannot be used.
    """
    _check_data(config.data)
    _check_model(config.model, config.data)
    _check_diffusion(config.diffusion)
    _check_train(config.train)
    _check_sample(config)
    _require(0 <= config.seed < 2**31, "seed", config.seed, "must lie in 0 ... 2^31 - 1")


def _require(condition: bool, key: str, value: Any, message: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value}: {message}")


def _check_data(data: DataConfig) -> None:
    _require(data.image_size >= 1, "data.image_size", data.image_size, "must be at least 1")
    _require(data.channels in (1, 3), "data.channels", data.channels, "must be 1 (grey) or 3 (RGB)")
    for key in ("mean", "std"):
        values = getattr(data, key)
        _require(len(values) in (1, data.channels), f"data.{key}", values, f"needs 1 or {data.channels} values")
    _require(all(s > 0 for s in data.std), "data.std", data.std, "must be positive")
    _require(data.source != "folder" or bool(data.path), "data.path", repr(data.path), "name the folder of images")
    _require(data.source != "tfds" or bool(data.name), "data.name", repr(data.name), "name the TFDS data set")
    _require(data.threads >= 1, "data.threads", data.threads, "must be at least 1")
    _require(data.prefetch >= 1, "data.prefetch", data.prefetch, "must be at least 1")
    _require(data.cache_limit_gib >= 0, "data.cache_limit_gib", data.cache_limit_gib, "must not be negative")


def _check_model(model: ModelConfig, data: DataConfig) -> None:
    _require(
        model.channels >= 32 and model.channels % 32 == 0,
        "model.channels",
        model.channels,
        "must be a multiple of 32, the number of groups of the group norms",
    )
    _require(
        bool(model.multipliers) and all(m >= 1 for m in model.multipliers),
        "model.multipliers",
        model.multipliers,
        "needs positive integers, one per level",
    )
    _require(model.num_blocks >= 1, "model.num_blocks", model.num_blocks, "must be at least 1")
    _require(0 <= model.dropout < 1, "model.dropout", model.dropout, "must lie in [0, 1)")
    _require(model.num_classes >= 0, "model.num_classes", model.num_classes, "must not be negative")
    factor = 2 ** (len(model.multipliers) - 1)
    _require(
        data.image_size % factor == 0,
        "data.image_size",
        data.image_size,
        f"must be divisible by {factor}, since the {len(model.multipliers)} levels of model.multipliers "
        f"halve the image {len(model.multipliers) - 1} times",
    )
    resolutions = [data.image_size // 2**level for level in range(len(model.multipliers))]
    for resolution in model.attention_resolutions:
        _require(
            resolution in resolutions,
            "model.attention_resolutions",
            model.attention_resolutions,
            f"the network has no resolution {resolution}; it has {resolutions}",
        )


def _check_diffusion(diffusion: DiffusionConfig) -> None:
    _require(diffusion.num_levels >= 1, "diffusion.num_levels", diffusion.num_levels, "must be at least 1")
    for key in ("beta_start", "beta_end"):
        value = getattr(diffusion, key)
        _require(0 < value < 1, f"diffusion.{key}", value, "must lie strictly between 0 and 1")
    _require(
        not (diffusion.schedule == "jsd" and diffusion.objective == "eps"),
        "diffusion.objective",
        diffusion.objective,
        "the jsd schedule ends at alpha_bar = 0, where the noise says nothing about the image; use x0 or v",
    )
    _require(diffusion.min_snr_gamma >= 0, "diffusion.min_snr_gamma", diffusion.min_snr_gamma, "must not be negative")


def _check_train(train: TrainConfig) -> None:
    for key in ("steps", "batch_size", "accumulate", "checkpoint_every", "keep_last", "log_every", "sample_num"):
        _require(getattr(train, key) >= 1, f"train.{key}", getattr(train, key), "must be at least 1")
    _require(
        train.batch_size % train.accumulate == 0,
        "train.accumulate",
        train.accumulate,
        f"must divide train.batch_size={train.batch_size}",
    )
    for key in ("epochs", "warmup_steps", "sample_every", "weight_decay", "grad_clip", "keep_every"):
        _require(getattr(train, key) >= 0, f"train.{key}", getattr(train, key), "must not be negative")
    _require(train.learning_rate > 0, "train.learning_rate", train.learning_rate, "must be positive")
    for key in ("adam_b1", "adam_b2", "ema_decay"):
        _require(0 <= getattr(train, key) < 1, f"train.{key}", getattr(train, key), "must lie in [0, 1)")
    _require(train.adam_eps > 0, "train.adam_eps", train.adam_eps, "must be positive")
    _require(
        train.optimizer == "adamw" or train.weight_decay == 0,
        "train.weight_decay",
        train.weight_decay,
        "only train.optimizer=adamw uses it",
    )


def _check_sample(config: Config) -> None:
    sample, num_levels = config.sample, config.diffusion.num_levels
    for key in ("num", "steps", "batch_size"):
        _require(getattr(sample, key) >= 1, f"sample.{key}", getattr(sample, key), "must be at least 1")
    for key in ("start", "seed"):
        value = getattr(sample, key)
        _require(0 <= value < 2**31, f"sample.{key}", value, "must lie in 0 ... 2^31 - 1")
    _require(sample.start + sample.num <= 2**31, "sample.num", sample.num, "image indices must stay below 2^31")
    for key, steps in (
        ("sample.steps", sample.steps),
        *(("train.final_sample_steps", s) for s in config.train.final_sample_steps),
    ):
        _require(
            1 <= steps <= num_levels, key, steps, f"must lie in 1 ... {num_levels}, the levels of diffusion.num_levels"
        )
    _require(sample.eta >= 0, "sample.eta", sample.eta, "must not be negative")
    _require(
        all(e >= 0 for e in sample.eta_per_step), "sample.eta_per_step", sample.eta_per_step, "must not be negative"
    )
    if sample.label is not None:
        _require(
            0 <= sample.label < config.model.num_classes,
            "sample.label",
            sample.label,
            f"must lie below model.num_classes={config.model.num_classes}",
        )
