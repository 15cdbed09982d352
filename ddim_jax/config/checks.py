"""Which values can be used, alone and together."""

from typing import Any

from ddim_jax.config.schema import (
    METRICS,
    SAMPLERS,
    SPACINGS,
    Config,
    DataConfig,
    DiffusionConfig,
    EvalConfig,
    ModelConfig,
    TrainConfig,
)
from ddim_jax.errors import ConfigError


def check(config: Config) -> None:
    """Checks ranges and the keys that must fit together.

    Raises:
        ConfigError: at the first value that cannot be used.
    """
    _check_data(config.data)
    _check_model(config.model, config.data)
    _check_diffusion(config.diffusion)
    _check_train(config.train)
    _check_together(config)
    _check_sample(config)
    _check_jobs(config)
    _check_eval(config.eval)
    _require(0 <= config.seed < 2**31, "seed", config.seed, "must lie in 0 ... 2^31 - 1")


def _require(condition: bool, key: str, value: Any, message: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value}: {message}")


def _check_data(data: DataConfig) -> None:
    _require(data.image_size >= 1, "data.image_size", data.image_size, "must be at least 1")
    _require(data.channels in (1, 3), "data.channels", data.channels, "must be 1 (grey) or 3 (RGB)")
    for key in ("mean", "std"):
        values = getattr(data, key)
        _require(
            len(values) in (0, 1, data.channels),
            f"data.{key}",
            values,
            f"needs 1 or {data.channels} values, or none to have them measured",
        )
    _require(bool(data.mean) == bool(data.std), "data.std", data.std, "give both data.mean and data.std, or neither")
    _require(all(s > 0 for s in data.std), "data.std", data.std, "must be positive")
    _require(data.source != "tfds" or bool(data.name), "data.name", repr(data.name), "name the TFDS data set")
    _require(data.threads >= 1, "data.threads", data.threads, "must be at least 1")
    _require(data.prefetch >= 1, "data.prefetch", data.prefetch, "must be at least 1")
    _require(data.cache_limit_gib >= 0, "data.cache_limit_gib", data.cache_limit_gib, "must not be negative")


def _check_model(model: ModelConfig, data: DataConfig) -> None:
    _require(model.num_groups >= 1, "model.num_groups", model.num_groups, "must be at least 1")
    if model.name == "unet":
        _require(
            model.channels % model.num_groups == 0 and model.channels >= 2 * model.num_groups,
            "model.channels",
            model.channels,
            f"must be a multiple of model.num_groups={model.num_groups}, twice that or more: with one channel a group "
            "the norms would take away what the blocks are told of the noise level",
        )
    else:
        _check_residual_unet(model)
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


def _check_together(config: Config) -> None:
    """Keys of several groups that must fit together."""
    model, diffusion, train = config.model, config.diffusion, config.train
    continuous = diffusion.schedule == "offset_cosine"
    _require(
        model.name != "residual_unet" or continuous,
        "diffusion.schedule",
        diffusion.schedule,
        "model.name=residual_unet is told the variance of the noise, which offset_cosine alone tells; use that",
    )
    _require(
        model.name != "residual_unet" or model.norm != "batch" or train.accumulate == 1,
        "train.accumulate",
        train.accumulate,
        "batch norms need the whole batch at once; use 1, or model.norm=group",
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


def _check_diffusion(diffusion: DiffusionConfig) -> None:
    _require(diffusion.num_levels >= 1, "diffusion.num_levels", diffusion.num_levels, "must be at least 1")
    for key in ("beta_start", "beta_end"):
        value = getattr(diffusion, key)
        _require(0 < value < 1, f"diffusion.{key}", value, "must lie strictly between 0 and 1")
    ends_in_noise = diffusion.schedule == "jsd" or diffusion.zero_terminal_snr
    _require(
        not (ends_in_noise and diffusion.objective == "eps"),
        "diffusion.objective",
        diffusion.objective,
        f"{'diffusion.zero_terminal_snr' if diffusion.zero_terminal_snr else 'the jsd schedule'} ends at "
        "alpha_bar = 0, where the noise says nothing about the image; use x0 or v",
    )
    _require(
        diffusion.time_sampling != "continuous" or diffusion.schedule == "offset_cosine",
        "diffusion.time_sampling",
        diffusion.time_sampling,
        "only diffusion.schedule=offset_cosine has a continuous time; use antithetic, uniform or stratified",
    )
    _require(diffusion.min_snr_gamma >= 0, "diffusion.min_snr_gamma", diffusion.min_snr_gamma, "must not be negative")


def _check_train(train: TrainConfig) -> None:
    for key in (
        *("steps", "batch_size", "steps_per_call", "accumulate", "checkpoint_every", "keep_last", "log_every"),
        "sample_num",
    ):
        _require(getattr(train, key) >= 1, f"train.{key}", getattr(train, key), "must be at least 1")
    _require(
        train.batch_size % train.accumulate == 0,
        "train.accumulate",
        train.accumulate,
        f"must divide train.batch_size={train.batch_size}",
    )
    for key in (
        *("epochs", "warmup_steps", "sample_every", "sample_every_epochs", "validate_every", "measure_every"),
        *("weight_decay", "grad_clip", "keep_every", "cpu_devices"),
    ):
        _require(getattr(train, key) >= 0, f"train.{key}", getattr(train, key), "must not be negative")
    _require(train.learning_rate > 0, "train.learning_rate", train.learning_rate, "must be positive")
    for key in ("adam_b1", "adam_b2", "ema_decay", "label_dropout"):
        _require(0 <= getattr(train, key) < 1, f"train.{key}", getattr(train, key), "must lie in [0, 1)")
    _require(
        train.steps_per_call == 1 or not train.ema_on_host,
        "train.steps_per_call",
        train.steps_per_call,
        "train.ema_on_host needs the parameters of every step; use 1",
    )
    _require(train.adam_eps > 0, "train.adam_eps", train.adam_eps, "must be positive")
    _require(train.measure_num >= 2, "train.measure_num", train.measure_num, "must be at least 2")
    _require(
        train.optimizer == "adamw" or train.weight_decay == 0,
        "train.weight_decay",
        train.weight_decay,
        "only train.optimizer=adamw uses it",
    )


def _check_sample(config: Config) -> None:
    sample, num_levels = config.sample, config.diffusion.num_levels
    _require(sample.batch_size >= 0, "sample.batch_size", sample.batch_size, "must not be negative")
    for key in ("num", "steps"):
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
    deterministic = sample.sampler not in ("ddim", "ddpm_small", "ddpm_large")
    _require(
        not deterministic or (sample.eta == 0 and not any(sample.eta_per_step)),
        "sample.eta",
        sample.eta,
        f"sample.sampler={sample.sampler} adds no noise: set it to 0, or choose ddim",
    )
    _require(
        sample.clip == "none" or (set(config.data.mean), set(config.data.std)) == ({0.5}, {0.5}),
        "sample.clip",
        sample.clip,
        "clips to [-1, 1], but data.mean and data.std are not 0.5; use none",
    )
    _check_indices("sample.indices", sample.indices)
    _require(sample.per_class >= 0, "sample.per_class", sample.per_class, "must not be negative")
    guided = sample.guidance_scale != 1 or sample.guidance_levels or sample.per_class
    _require(
        not guided or config.model.num_classes > 0,
        "model.num_classes",
        config.model.num_classes,
        "sample.per_class and guidance need a class-conditional network",
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
            0 <= sample.label < config.model.num_classes,
            "sample.label",
            sample.label,
            f"must lie below model.num_classes={config.model.num_classes}",
        )


def _check_indices(key: str, indices: tuple[int, ...]) -> None:
    _require(all(0 <= i < 2**31 for i in indices), key, indices, "image indices must lie in 0 ... 2^31 - 1")
    repeated = {i for i in indices if indices.count(i) > 1}
    _require(not repeated, key, indices, f"image {min(repeated, default=0)} occurs more than once; name each once")


def _check_jobs(config: Config) -> None:
    """What can be checked without regard to the schedule; jobs check the rest when they run."""
    for group, keys in {
        "trajectory": ("num", "moments", "frame_ms"),
        "interpolate": ("points", "side"),
        "reconstruct": ("num", "shown"),
        "edit": ("level", "num", "resamplings", "jump"),
        "sweep": ("num",),
    }.items():
        for key in keys:
            value = getattr(getattr(config, group), key)
            _require(value >= 1, f"{group}.{key}", value, "must be at least 1")
    interpolate = config.interpolate
    _require(interpolate.points >= 2, "interpolate.points", interpolate.points, "must be at least 2")
    _require(interpolate.side >= 2, "interpolate.side", interpolate.side, "must be at least 2")
    _require(
        len(interpolate.first) == len(interpolate.second) >= 1,
        "interpolate.second",
        interpolate.second,
        f"needs as many indices as interpolate.first={interpolate.first}, at least one",
    )
    _require(len(interpolate.corners) in (0, 4), "interpolate.corners", interpolate.corners, "needs four indices")
    for key in ("first", "second", "corners"):
        values = getattr(interpolate, key)
        _require(all(0 <= i < 2**31 for i in values), f"interpolate.{key}", values, "must lie in 0 ... 2^31 - 1")
    for key, values in (("reconstruct.steps", config.reconstruct.steps), ("sweep.steps", config.sweep.steps)):
        _require(bool(values) and all(v >= 1 for v in values), key, values, "needs numbers of steps, of at least 1")
    iterations = config.reconstruct.iterations
    _require(iterations >= 0, "reconstruct.iterations", iterations, "must not be negative")
    likelihood = config.likelihood
    for key in ("num", "levels_per_image"):
        _require(getattr(likelihood, key) >= 0, f"likelihood.{key}", getattr(likelihood, key), "must not be negative")
    for key in ("steps", "probes"):
        _require(getattr(likelihood, key) >= 1, f"likelihood.{key}", getattr(likelihood, key), "must be at least 1")
    for name in config.sweep.samplers:
        _require(name in SAMPLERS, "sweep.samplers", config.sweep.samplers, f"choose from: {', '.join(SAMPLERS)}")
    etas = config.sweep.etas
    _require(bool(etas) and all(eta >= 0 for eta in etas), "sweep.etas", etas, "needs etas that are not negative")


def _check_eval(evaluation: EvalConfig) -> None:
    """What can be checked without the model; the job checks the rest when it runs."""
    for key, least in (
        *(("num", 2), ("reference_num", 0), ("is_splits", 1), ("kid_subsets", 1), ("kid_subset_size", 2)),
        *(("neighbours", 1), ("features_kept", 2), ("components", 1), ("batch_size", 1)),
    ):
        value = getattr(evaluation, key)
        _require(value >= least, f"eval.{key}", value, f"must be at least {least}")
    for key, known in (("samplers", SAMPLERS), ("spacings", SPACINGS), ("metrics", METRICS)):
        values = getattr(evaluation, key)
        _require(all(value in known for value in values), f"eval.{key}", values, f"choose from: {', '.join(known)}")
    for key in ("checkpoints", "samplers", "etas", "steps", "seeds", "metrics"):
        _require(bool(getattr(evaluation, key)), f"eval.{key}", getattr(evaluation, key), "name at least one")
    for name in evaluation.checkpoints:
        _require(
            name in ("latest", "best", "all") or name.isdecimal(),
            "eval.checkpoints",
            evaluation.checkpoints,
            "choose from: latest, best, all, or steps",
        )
    _require(all(eta >= 0 for eta in evaluation.etas), "eval.etas", evaluation.etas, "must not be negative")
    _require(all(steps >= 1 for steps in evaluation.steps), "eval.steps", evaluation.steps, "must be at least 1")
    _require(all(0 <= seed < 2**31 for seed in evaluation.seeds), "eval.seeds", evaluation.seeds, "must lie below 2^31")
