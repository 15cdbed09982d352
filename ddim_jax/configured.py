"""Where the config meets the mathematics: the schedule, the sampler, the network's predictions of a config.

Training, sampling, likelihood and measuring take these from here, and nobody else builds them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ddim_jax.conditions import Condition, none_of
from ddim_jax.conditions.tasks import Task, make_task
from ddim_jax.config import Config
from ddim_jax.config.schema import DiffusionConfig
from ddim_jax.diffusion.editing import InpaintTable, inpaint_table
from ddim_jax.diffusion.guidance import guided, guided_by
from ddim_jax.diffusion.inversion import make_encoder
from ddim_jax.diffusion.losses import TIME_SAMPLINGS
from ddim_jax.diffusion.prediction import Predict, make_predict
from ddim_jax.diffusion.samplers import SAMPLERS, Sampler, make_sampler
from ddim_jax.diffusion.schedule import (
    SCHEDULES,
    Schedule,
    ScheduleRule,
    ScheduleSettings,
    make_schedule,
    noise_variance,
)
from ddim_jax.diffusion.sde_solvers import Churn
from ddim_jax.diffusion.spacing import explicit_levels, level_pairs, levels_from, levels_of_sigmas, sampling_levels
from ddim_jax.errors import ConfigError, shown
from ddim_jax.models import Model, call
from ddim_jax.names import Clip, lookup
from ddim_jax.pixels import Normalization, to_pictures, whole_range

# Network evaluations that a repeated sampler may make: its table has a row for each of them, made one by one.
_MOST_EVALUATIONS = 200_000

# The largest sample.churn_max, and its default: no limit.
_NO_LIMIT = 1e9


def build_schedule(config: Config) -> Schedule:
    """The noise schedule of ``config.diffusion``.

    Raises:
        ConfigError: the objective, the drawing of noise levels or the network does not go with it.
    """
    diffusion = config.diffusion
    schedule = configured_schedule(diffusion)
    if schedule.ends_in_noise and diffusion.objective == "eps":
        what = "diffusion.zero_terminal_snr" if diffusion.zero_terminal_snr else f"the {schedule.name} schedule"
        raise ConfigError(
            f"diffusion.objective=eps: {what} ends at alpha_bar = 0, where the noise says nothing about the image; "
            "use x0 or v"
        )
    smallest = np.finfo(np.float32).tiny
    if diffusion.objective == "eps" and schedule.alpha_bar[-1] < smallest:
        raise ConfigError(
            f"diffusion.objective=eps: the {schedule.name} schedule falls to alpha_bar = {schedule.alpha_bar[-1]:.2g} "
            f"(below {smallest:.2g}, float32's smallest, from level {np.argmax(schedule.alpha_bar < smallest)} on), "
            "where the noise says nothing about the image; lower diffusion.beta_end or num_levels, or use x0 or v"
        )
    drawing = lookup(TIME_SAMPLINGS, diffusion.time_sampling, "time sampling")
    if drawing.is_continuous and not schedule.is_continuous:
        raise ConfigError(
            f"diffusion.time_sampling={diffusion.time_sampling}: only diffusion.schedule="
            f"{_schedules(lambda rule: rule.curve is not None)} has a continuous time; use antithetic, uniform or "
            "stratified"
        )
    if drawing.needs_real_levels and not schedule.has_real_levels:
        raise ConfigError(
            f"diffusion.time_sampling={diffusion.time_sampling}: only diffusion.schedule="
            f"{_schedules(lambda rule: rule.is_real)} has a level for any noise; use continuous"
        )
    if config.model.name == "residual_unet" and not schedule.tells_variance:
        raise ConfigError(
            f"diffusion.schedule={schedule.name}: model.name=residual_unet is told the variance of the noise, which "
            f"{_schedules(lambda rule: rule.told is noise_variance)} alone tells; use that"
        )
    return schedule


def configured_schedule(diffusion: DiffusionConfig) -> Schedule:
    """The noise schedule of a group of the config, whatever the network and the objective."""
    settings = {name: getattr(diffusion, name) for name in ScheduleSettings._fields}
    return make_schedule(diffusion.schedule, zero_terminal_snr=diffusion.zero_terminal_snr, **settings)


def _schedules(suits: Callable[[ScheduleRule], bool]) -> str:
    """The names of the schedules that suit."""
    return " or ".join(name for name, rule in SCHEDULES.items() if suits(rule))


def build_levels(config: Config) -> np.ndarray:
    """The levels that ``config.sample`` visits, noisiest first.

    Raises:
        UserError: steps or levels that the schedule does not have.
    """
    sample = config.sample
    if sample.sigmas:
        schedule = build_schedule(config)
        return levels_of_sigmas(schedule, sample.sigmas, _sigma_unit(config))
    if sample.levels:
        return explicit_levels(sample.levels, config.diffusion.num_levels)
    return sampling_levels(sample.spacing, config.diffusion.num_levels, sample.steps, build_schedule(config))


def settings_of_levels(config: Config, levels: np.ndarray) -> dict[str, list[Any]]:
    """Levels as keys of ``config.sample``: ``sigmas`` where they are real, else ``levels``."""
    schedule = build_schedule(config)
    if not schedule.has_real_levels:
        return {"levels": levels.tolist()}
    return {"sigmas": (_sigma_unit(config) * np.exp(-schedule.log_snr_at(levels) / 2)).tolist()}


def _sigma_unit(config: Config) -> float:
    """What people's sigmas are multiples of the noise to signal by: EDM's are on images of ``sigma_data``."""
    return config.diffusion.sigma_data if config.diffusion.schedule == "edm" else 1.0


def build_sampler(config: Config, start_level: int | None = None) -> Sampler:
    """The sampler of ``config.sample``.

    Args:
        config: the run.
        start_level: level of the images it is given, instead of the noisiest.

    Raises:
        UserError: an eta too large, ``sample.eta_per_step`` of another length than the steps, or levels that the
            sampler cannot use.
    """
    sample = config.sample
    if sample.sampler == "ddpm_learned":
        check_variance_is_learned(config, "sample.sampler=ddpm_learned", "ddpm_small, ddpm_large or another")
    levels = build_levels(config)
    if start_level is not None and sample.sampler == "tuned":
        raise ConfigError(
            f"sample.sampler=tuned: its coefficients are those of all steps from the noisiest level, and none of a way "
            f"from level {start_level}; choose another sampler, for which sample.spacing may stay tuned"
        )
    if start_level is not None:
        levels = levels_from(levels, start_level)
    eta = np.asarray(sample.eta_per_step) if sample.eta_per_step else sample.eta
    if lookup(SAMPLERS, sample.sampler, "sampler").eta == "zero" and np.any(np.asarray(eta) != 0):
        raise ConfigError(
            f"sample.eta={sample.eta}: sample.sampler={sample.sampler} adds no noise: set it to 0, or choose ddim"
        )
    if sample.churn and not lookup(SAMPLERS, sample.sampler, "sampler").churns:
        churning = ", ".join(name for name, rule in SAMPLERS.items() if rule.churns)
        raise ConfigError(f"sample.churn={sample.churn:g}: sample.sampler={sample.sampler} has none; choose {churning}")
    unit = _sigma_unit(config)
    high = sample.churn_max / unit if sample.churn_max < _NO_LIMIT else np.inf
    churn = Churn(sample.churn, sample.churn_min / unit, high, sample.churn_noise)
    return make_sampler(sample.sampler, build_schedule(config), level_pairs(levels), eta, churn, sample.coefficients)


def build_encoder(config: Config, iterations: int = 0) -> Sampler:
    """The encoder whose noise the sampler of ``config.sample`` decodes; by DDIM, or by Heun for Heun.

    Raises:
        UserError: more evaluations than a table can hold, or see
            :func:`~ddim_jax.diffusion.inversion.make_encoder`.
    """
    _check_evaluations(config, max(1, iterations), "iterations")
    solver = "heun" if config.sample.sampler == "heun" else "ddim"
    return make_encoder(solver, build_schedule(config), build_levels(config), iterations)


def build_inpainting(config: Config, resamplings: int, jump: int) -> InpaintTable:
    """The sampler of ``config.sample``, going back and forth to inpaint.

    Args:
        config: the run.
        resamplings: see :func:`~ddim_jax.diffusion.editing.inpaint_table`.
        jump: see there.

    Raises:
        UserError: a sampler that is not of first order, numbers below 1 or too large, or see :func:`build_sampler`.
    """
    _check_evaluations(config, resamplings, "resamplings")
    sampler = build_sampler(config)
    if not sampler.table.is_first_order:
        raise ConfigError(f"sampler '{sampler.name}' cannot inpaint; choose from: ddim, ddpm_small, ddpm_large")
    return inpaint_table(sampler.table, resamplings, jump)


def _check_evaluations(config: Config, times: int, name: str) -> None:
    """Refuses tables that would take all memory, or all time."""
    steps = len(config.sample.sigmas) or len(config.sample.levels) or config.sample.steps
    if steps * times > _MOST_EVALUATIONS:
        raise ConfigError(
            f"{name}={shown(times)} in {steps:,} steps: {_MOST_EVALUATIONS:,} network evaluations an image are the most"
        )


class Guide(NamedTuple):
    """A network that another one is led away from, see ``diffusion/guidance.py``.

    Attributes:
        model: the network; of the same images, noise levels and conditions.
        variables: its weights.
        step: number of steps that it was trained.
        sha256: of the weights, which another run in the same workdir replaces.
    """

    model: Model
    variables: Any
    step: int = 0
    sha256: str = ""


def build_predict(
    config: Config,
    model: Model,
    variables: Any,
    condition: Condition,
    clip: Clip,
    guide: Guide | None = None,
    times_differ: bool = False,
) -> Predict:
    """The network as samplers call it, guided as ``config.sample`` says.

    Args:
        config: the run.
        model: the network.
        variables: its weights.
        condition: of the images, see :func:`~ddim_jax.sampling.conditions.network_condition`.
        clip: see :func:`~ddim_jax.diffusion.prediction.clipped`.
        guide: the network of ``sample.guide_workdir``, which guidance leads away from in place of the network's own
            prediction without condition.
        times_differ: whether images may have different noise levels; not for ``guide``.
    """
    sample, schedule = config.sample, build_schedule(config)
    levels = sample.guidance_levels
    interval = (float(schedule.time_input(levels[0])), float(schedule.time_input(levels[1]))) if levels else None

    def conditional(x: jax.Array, time: jax.Array, condition: Condition) -> Any:
        return call(model, variables, x, time, condition)

    def plain(x: jax.Array, time: jax.Array) -> Any:
        return call(model, variables, x, time, condition)

    network = plain
    if guide is not None:
        leader = guide

        def worse(x: jax.Array, time: jax.Array) -> Any:
            return call(leader.model, leader.variables, x, time, condition)

        network = guided_by(plain, worse, sample.guidance_scale, interval)
    elif config.droppable:
        none = none_of(condition, config.droppable, config.model.num_classes)
        network = guided(conditional, condition, none, sample.guidance_scale, interval, times_differ)
    return make_predict(
        network, config.diffusion.objective, clip, sample.threshold_percentile, sample.threshold_limit,
        schedule.network_input, build_normalization(config).limits, config.model.learn_variance,
    )  # fmt: skip


def build_task(config: Config) -> Task | None:
    """What picture the network is given of an image (``data.condition``); None where it is given none."""
    data = config.data
    if not data.condition:
        return None
    return make_task(
        data.condition,
        data.image_shape,
        factor=data.condition_factor,
        masks=data.condition_masks,
        blur=data.condition_blur,
        noise=data.condition_noise,
        paired_shape=data.paired_shape,
    )


def check_variance_is_learned(config: Config, setting: str, instead: str) -> None:
    """Checks that the network predicts the variance of its steps.

    Args:
        config: the run.
        setting: what needs it, for the message.
        instead: what to choose for one that does not, likewise.

    Raises:
        ConfigError: it does not.
    """
    if not config.model.learn_variance:
        raise ConfigError(f"{setting}: model.learn_variance=False: this network predicts no variance; choose {instead}")


def build_normalization(config: Config) -> Normalization:
    """How the network's floats are made of the data's values.

    Raises:
        ConfigError: the range of float data is not known: no run has measured it.
    """
    data = config.data
    values = data.range or whole_range(data.dtype)
    if values is None:
        raise ConfigError(f"data.range=(): the range of {data.dtype} data is not known; state it, or train first")
    return Normalization(data.mean, data.std, data.dtype, tuple(values[::2]), tuple(values[1::2]))


def pictures(config: Config, images: np.ndarray) -> np.ndarray:
    """Images as people can see them: [..., h, w, c] of the data's type → uint8 [..., h, w, 1 or 3].

    8-bit images of 1 or 3 channels are returned as they are.
    """
    return to_pictures(images, build_normalization(config), config.data.shown_channels)


def picture_shape(config: Config) -> tuple[int, int, int]:
    """Height, width and channels (1 or 3) of :func:`pictures`."""
    height, width, channels = config.data.image_shape
    shown = len(config.data.shown_channels) or (1 if channels < 3 else 3)
    return height, width, shown


def image_bytes(config: Config) -> int:
    """Memory that one image of the data's type takes."""
    return math.prod(config.data.image_shape) * np.dtype(config.data.dtype).itemsize


def drawing_bytes(config: Config) -> int:
    """Memory that an image between others takes at least: its noise, twice, and copies of itself."""
    return 8 * math.prod(config.data.image_shape) + 4 * image_bytes(config)
