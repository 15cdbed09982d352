"""Noise schedules: how much of the image is left at each noise level.

Diffusion spoils an image x_0 in T small steps,

    x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z_t,    z_t ~ N(0, I),    t = 1 ... T,

which adds up to a single one (Ho et al. 2020, "DDPM", eq. 4; DDIM writes alpha for this alpha_bar):

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,    alpha_bar_t = prod_{s <= t} (1 - beta_s).

This file owns the numbering of levels. **Level 0 is the clean image, alpha_bar[0] = 1; levels 1 ... T are noisy.**
Networks are told the level by the number ``level - 1`` in 0 ... T - 1, since that is how published checkpoints were
trained, unless the schedule's row in ``SCHEDULES`` says otherwise; :meth:`Schedule.time_input` is the only place that
knows. No network is ever asked about level 0.

**Every Gaussian process is one alpha_bar.** Others write x_t = a_t x_0 + b_t eps whose a² and b² do not add up to 1.
Divided by sqrt(a² + b²) that is the form above, with alpha_bar = a² / (a² + b²), so samplers, losses and
likelihoods need not know. What is left to say is in a :class:`Curve` and a :class:`ScheduleRule`: how levels lie on the
scale of noise, what the network is told of them, and by which factor its input differs from x:

| | x_t of the paper | alpha_bar | told | input |
|---|---|---|---|---|
| ``edm`` | x_0 + sigma eps | sigma_data² / (sigma² + sigma_data²) | ln(sigma) / 4 | x |
| ``flow`` | (1 - t) x_0 + t eps | (1 - t)² / ((1 - t)² + t²) | t | x sqrt((1 - t)² + t²) |
| ``vp`` | sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps | exp(-integral of beta) | 999 t | x |
| ``ve`` | x_0 + sigma eps | 1 / (1 + sigma²) | ln(sigma) | x / sqrt(alpha_bar) |

In the first row x_0 has variance 1: it is the paper's image divided by sigma_data, ``data.std`` of the config. The
network of Karras et al. 2022 (eq. 7 and table 1) is then asked for

    D = c_skip (x_0 + sigma eps) + c_out F(c_in (x_0 + sigma eps)),    x = c_in (x_0 + sigma eps),

and with c_skip = sigma_data² / (sigma² + sigma_data²) = alpha_bar and c_out² = sigma² alpha_bar, in units of sigma_data
D = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) F: so F is the objective v, but for its sign, and the loss, which is even in
the error of F, is v's.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.errors import UserError
from ddim_jax.names import ScheduleName, lookup


class Schedule(NamedTuple):
    """The noise levels 0 ... T.

    Attributes:
        name: what :func:`make_schedule` calls it.
        alpha_bar: float64 [T + 1], share of the image's variance that is left at each level: 1 at level 0, falling.
        rule: the rest of what makes this schedule, see :class:`ScheduleRule`.
        curve: the levels between the levels; None where there are none.
    """

    name: str
    alpha_bar: np.ndarray
    rule: "ScheduleRule"
    curve: "Curve | None" = None

    @property
    def num_levels(self) -> int:
        """T, the number of noisy levels."""
        return len(self.alpha_bar) - 1

    @property
    def beta(self) -> np.ndarray:
        """Float64 [T]: variance of the noise added by each small step; ``beta[t - 1]`` leads to level t."""
        return 1 - self.alpha_bar[1:] / self.alpha_bar[:-1]

    @property
    def log_snr(self) -> np.ndarray:
        """Float64 [T + 1]: log of the signal-to-noise ratio alpha_bar / (1 - alpha_bar); +inf at level 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha_bar) - np.log1p(-self.alpha_bar)

    @property
    def times(self) -> np.ndarray:
        """Float64 [T + 1]: what networks are told about each level."""
        levels = np.arange(len(self.alpha_bar), dtype=np.float64)
        if self.has_real_levels:
            levels[0] = 1.0  # no network is told of level 0, which the curves do not reach
        return self._told(levels, self.alpha_bar)

    @property
    def is_continuous(self) -> bool:
        """Whether there are levels between the levels, in training at least."""
        return self.curve is not None

    @property
    def has_real_levels(self) -> bool:
        """Whether samplers visit levels between the levels, so that any level of noise has a number to the last digit.

        ``offset_cosine`` is continuous in training alone, as in Keras' example.
        """
        return self.curve is not None and self.curve.level is not None

    @property
    def tells_variance(self) -> bool:
        """Whether networks are told the variance of the noise, 1 - alpha_bar."""
        return self.rule.told is noise_variance

    @property
    def ends_in_noise(self) -> bool:
        """Whether nothing of the image is left at level T, so that a predicted noise determines no image there."""
        return bool(self.alpha_bar[-1] == 0)

    def at(self, level: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What training needs to know of noise levels: alpha_bar, and what the network is told; both float32 [n].

        Args:
            level: int [n], in 1 ... T; or float [n], above 0, of a continuous schedule.

        Raises:
            UserError: levels between levels, of a schedule that has none.
        """
        if jnp.issubdtype(level.dtype, jnp.integer):
            return jnp.asarray(self.alpha_bar, jnp.float32)[level], self.time_input(level)
        alpha_bar = self._curve().alpha_bar(level)
        return alpha_bar, self._told(level, alpha_bar)

    def alpha_bar_at(self, level: int | float | np.ndarray) -> Any:
        """Float64, like level: alpha_bar of levels in 0 ... T, whole numbers or, with real levels, any.

        >>> schedule = make_schedule("edm")  # sigma_data² / (sigma² + sigma_data²), from sigma = 80 down to 0.002
        >>> bool(np.isclose(schedule.alpha_bar_at(1000), 0.5**2 / (80**2 + 0.5**2), rtol=1e-14))
        True
        """
        level = np.asarray(level)
        if np.issubdtype(level.dtype, np.integer):
            return self.alpha_bar[level]
        clean = level <= 0
        return np.where(clean, 1.0, self._curve().alpha_bar(np.where(clean, 1.0, level)))

    def log_snr_at(self, level: int | float | np.ndarray) -> Any:
        """Float64, like level: log of the signal-to-noise ratio; +inf at level 0."""
        level = np.asarray(level)
        if np.issubdtype(level.dtype, np.integer) or self.curve is None or self.curve.log_snr is None:
            with np.errstate(divide="ignore"):
                alpha_bar = self.alpha_bar_at(level)
                return np.log(alpha_bar) - np.log1p(-alpha_bar)
        clean = level <= 0
        return np.where(clean, np.inf, self.curve.log_snr(np.where(clean, 1.0, level)))

    def level_at(self, log_snr: Any) -> Any:
        """The level of a log SNR, a real number; float64 for NumPy's arrays, else like ``log_snr``.

        Raises:
            UserError: the schedule has whole levels only.
        """
        if not self.has_real_levels:
            real = ", ".join(name for name, rule in SCHEDULES.items() if rule.curve is not None and rule.is_real)
            raise UserError(f"schedule '{self.name}' has whole levels only; choose from: {real}")
        level = self._curve().level
        assert level is not None, "real levels"
        return level(log_snr)

    def time_input(self, level: int | float | np.ndarray | jax.Array) -> Any:
        """The number that tells the network a level in 1 ... T: ``level - 1``, unless the schedule has its own."""
        if isinstance(level, jax.Array):
            return jnp.asarray(self.times, jnp.float32)[level]
        return self._told(level, self.alpha_bar_at(level))

    def network_input(self, x: Any, alpha_bar: Any) -> Any:
        """What the network sees of x: x itself, unless its paper writes the process otherwise, see the module.

        Args:
            x: noisy images.
            alpha_bar: of their level, a number or in a shape that multiplies x.
        """
        scale = self.rule.input_scale
        return x if scale is None else x * scale(jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar))

    def _told(self, level: Any, alpha_bar: Any) -> Any:
        if self.curve is not None and self.curve.told is not None:
            return self.curve.told(level)
        return self.rule.told(level, alpha_bar)

    def _curve(self) -> "Curve":
        if self.curve is None:
            continuous = ", ".join(name for name, rule in SCHEDULES.items() if rule.curve is not None)
            raise UserError(f"schedule '{self.name}' has no levels between its levels; choose from: {continuous}")
        return self.curve


class ScheduleSettings(NamedTuple):
    """What schedules are made of; each looks at some of these.

    Attributes:
        num_levels: T.
        beta_start: see :func:`make_schedule`.
        beta_end: see there.
        sigma_min: see there.
        sigma_max: see there.
        sigma_data: see there.
    """

    num_levels: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5


def make_schedule(
    name: ScheduleName,
    num_levels: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_terminal_snr: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 0.5,
) -> Schedule:
    """Builds a noise schedule in float64.

    DDIM's code multiplies up alpha_bar in float32. At T = 1000 and its betas that differs by less than 1e-6 of its
    value for ``linear``, ``quad`` and ``sigmoid``, by 5e-6 for ``jsd``, and by 2e-5 for ``const``, each of whose betas
    is rounded alike.

    >>> schedule = make_schedule("linear", num_levels=1000)
    >>> schedule.num_levels, float(schedule.alpha_bar[0]), round(float(schedule.alpha_bar[500]), 4)
    (1000, 1.0, 0.0786)

    Args:
        name: a row of ``SCHEDULES``:

            - ``linear``: from ``beta_start`` to ``beta_end`` in equal steps (DDPM; all of DDIM's published models).
            - ``quad``: the same for sqrt(beta); latent-diffusion models call it scaled linear.
            - ``sigmoid``: between the two along a sigmoid from -6 to 6.
            - ``const``: ``beta_end`` everywhere.
            - ``jsd``: 1/T, 1/(T-1) ... 1, so that alpha_bar falls in a straight line to exactly 0 at level T. There x_T
              holds nothing of the image, so a network that predicts the noise cannot be used; predict x0 or v.
            - ``cosine``: alpha_bar_t = f(t/T) / f(0), f(u) = cos²((u + s) / (1 + s) · pi/2), s = 0.008, with betas cut
              at 0.999 (Nichol and Dhariwal 2021, eq. 17).
            - ``offset_cosine``: alpha_bar_t = cos²(angle), the angle growing evenly from acos(0.95) at level 0 to
              acos(0.02) at level T (Keras' DDIM example, where t / T is continuous). Networks are told the variance of
              the noise, 1 - alpha_bar_t. Level 0 is the clean image here too: the example's last step leads to
              0.95² there, but it shows the predicted clean image.
            - ``edm``: noise of standard deviation sigma on images of ``sigma_data``, sigma^(1/7) growing evenly from
              ``sigma_min`` at level 1 to ``sigma_max`` at level T (Karras et al. 2022, eq. 5, whose list of N sigmas is
              the spacing ``linspace`` here), and sigma in proportion to the level below level 1.
            - ``flow``: x_t = (1 - t) x_0 + t eps, t = level / T (Liu et al. 2023, "rectified flow").
              At level T there is nothing but noise.
            - ``vp``: the continuous limit of ``linear``, beta growing evenly with t = level / T from T ``beta_start``
              to T ``beta_end``, 0.1 to 20 (Song et al. 2021, "score SDE", appendix C).
            - ``ve``: sigma growing by equal factors from ``sigma_min`` to ``sigma_max``; 0.01 to 50 there.

            The first five are those of DDPM's and DDIM's code. The last four have real levels: any number in (0, T].
        num_levels: T.
        beta_start: first beta of linear and quad, lower limit of sigmoid.
        beta_end: last beta of linear and quad, upper limit of sigmoid, and every beta of const.
        zero_terminal_snr: move alpha_bar so that it is 0 at level T, see :func:`with_zero_terminal_snr`.
        sigma_min: sigma at level 1 of edm and ve.
        sigma_max: sigma at level T of edm and ve.
        sigma_data: standard deviation of the images in whose units edm's sigma is.

    Raises:
        UserError: an unknown name, no levels, betas outside (0, 1), sigmas that do not rise, or a continuous schedule
            that shall be moved.
    """
    if num_levels < 1:
        raise UserError(f"num_levels={num_levels}: a noise schedule needs at least 1 level")
    if not (0 < beta_start < 1 and 0 < beta_end < 1):
        raise UserError(f"beta_start={beta_start}, beta_end={beta_end}: both must lie strictly between 0 and 1")
    if not (0 < sigma_min < sigma_max and sigma_data > 0):
        raise UserError(
            f"sigma_min={sigma_min}, sigma_max={sigma_max}, sigma_data={sigma_data}: all must be positive, and rise "
            "from the first to the second"
        )
    rule = lookup(SCHEDULES, name, "schedule")
    settings = ScheduleSettings(num_levels, beta_start, beta_end, sigma_min, sigma_max, sigma_data)
    curve = None if rule.curve is None else rule.curve(settings)
    noisy = rule.noisy_levels(settings)
    if zero_terminal_snr:
        if curve is not None and curve.level is not None:
            raise UserError(f"schedule '{name}' cannot be moved to zero terminal SNR; choose one with whole levels")
        noisy = with_zero_terminal_snr(noisy)
    return Schedule(name, np.concatenate([[1.0], noisy]), rule, curve)


def offset_cosine(time: Any) -> Any:
    """Keras' continuous schedule: alpha_bar = cos²(angle), the angle growing evenly from acos(0.95) to acos(0.02).

    Args:
        time: in [0, 1], an array of NumPy or JAX.
    """
    angle = np.arccos(0.95) + time * (np.arccos(0.02) - np.arccos(0.95))
    return (jnp.cos(angle) if isinstance(time, jax.Array) else np.cos(angle)) ** 2


def with_zero_terminal_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(alpha_bar) so that level T is pure noise and level 1 stays (Lin et al. 2024, algorithm 1).

    Sampling starts from pure noise. Where training never shows it, as with most schedules, the network takes what
    little it is used to see at level T, the mean brightness above all, for part of the noise.

    Args:
        alpha_bar: float64 [T], of levels 1 ... T.

    Raises:
        UserError: there is only one level.
    """
    if len(alpha_bar) < 2:
        raise UserError("a schedule of one level cannot be moved to zero terminal SNR; use more levels")
    signal = np.sqrt(alpha_bar)
    return np.square((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1])))


# --- all schedules by name ----------------------------------------------------------------------


def level_number(level: Any, alpha_bar: Any) -> Any:
    """What published networks are told: the level less one, 0 ... T - 1."""
    del alpha_bar
    return level - 1


def noise_variance(level: Any, alpha_bar: Any) -> Any:
    """What Keras' network is told: the variance of the noise, 1 - alpha_bar."""
    del level
    return 1 - alpha_bar


class Curve(NamedTuple):
    """A continuous schedule: functions of level, any number above 0; of arrays of NumPy (float64) or JAX alike.

    Attributes:
        alpha_bar: from level.
        log_snr: from level; exact where alpha_bar is so near to 1 that its digits do not tell the noise.
        level: from log SNR; None where samplers keep to whole levels.
        told: what networks are told, from level; None where the rule's ``told`` says it.
    """

    alpha_bar: Callable[[Any], Any]
    log_snr: Callable[[Any], Any] | None = None
    level: Callable[[Any], Any] | None = None
    told: Callable[[Any], Any] | None = None


class ScheduleRule(NamedTuple):
    """What makes a schedule: a row of ``SCHEDULES``.

    Attributes:
        alpha_bar: from T, ``beta_start`` and ``beta_end`` to alpha_bar of levels 1 ... T, float64 [T], falling; None
            where the curve says it.
        told: what networks are told, from level and alpha_bar.
        curve: the levels between the levels; None for a schedule of T levels alone.
        is_real: whether samplers visit them.
        noise_shows_image: whether an image can be looked at that a predicted noise implies, also at the last levels. It
            is divided by sqrt(alpha_bar) there, and where that almost vanishes, as on most schedules, the few noisiest
            levels drown all others.
        input_scale: by what the network's input differs from x, from sqrt(alpha_bar) and sqrt(1 - alpha_bar); None for
            nothing.
    """

    alpha_bar: Callable[[int, float, float], np.ndarray] | None = None
    told: Callable[[Any, Any], Any] = level_number
    curve: Callable[[ScheduleSettings], Curve] | None = None
    is_real: bool = False
    noise_shows_image: bool = False
    input_scale: Callable[[Any, Any], Any] | None = None

    def noisy_levels(self, settings: ScheduleSettings) -> np.ndarray:
        """alpha_bar of levels 1 ... T: float64 [T]."""
        if self.alpha_bar is not None:
            return self.alpha_bar(settings.num_levels, settings.beta_start, settings.beta_end)
        assert self.curve is not None, "a schedule has levels or a curve"
        return self.curve(settings).alpha_bar(np.arange(1, settings.num_levels + 1, dtype=np.float64))


def _by_betas(betas: Callable[[int, float, float], np.ndarray]) -> ScheduleRule:
    """A schedule that is made of its small steps: alpha_bar_t is the product of 1 - beta_s over s up to t."""
    return ScheduleRule(lambda *settings: np.cumprod(1 - betas(*settings)))


def linear_betas(num_levels: int, beta_start: float, beta_end: float) -> np.ndarray:
    """Betas in equal steps."""
    return np.linspace(beta_start, beta_end, num_levels)


def quad_betas(num_levels: int, beta_start: float, beta_end: float) -> np.ndarray:
    """Betas whose square roots are in equal steps."""
    return np.linspace(beta_start**0.5, beta_end**0.5, num_levels) ** 2


def sigmoid_betas(num_levels: int, beta_start: float, beta_end: float) -> np.ndarray:
    """Betas along a sigmoid."""
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, num_levels)))


def const_betas(num_levels: int, beta_start: float, beta_end: float) -> np.ndarray:
    """Betas that are all ``beta_end``."""
    del beta_start
    return np.full(num_levels, beta_end)


def jsd_betas(num_levels: int, beta_start: float, beta_end: float) -> np.ndarray:
    """Betas 1/T, 1/(T-1) ... 1."""
    del beta_start, beta_end
    return 1 / np.linspace(num_levels, 1, num_levels)


def cosine_betas(num_levels: int, beta_start: float, beta_end: float) -> np.ndarray:
    """Betas of Nichol and Dhariwal's cosine, cut at 0.999."""
    del beta_start, beta_end
    f = np.cos((np.arange(num_levels + 1) / num_levels + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def _offset_cosine_levels(num_levels: int, beta_start: float, beta_end: float) -> np.ndarray:
    del beta_start, beta_end
    return offset_cosine(np.arange(1, num_levels + 1) / num_levels)


def _offset_cosine_curve(settings: ScheduleSettings) -> Curve:
    return Curve(lambda level: offset_cosine(level / settings.num_levels))


# Karras et al. 2022, eq. 5: what they found best.
_EDM_RHO = 7.0


def edm_curve(settings: ScheduleSettings) -> Curve:
    """Karras et al.'s: sigma^(1/7) grows evenly from level 1 to level T; below level 1, sigma does."""
    low, high = settings.sigma_min ** (1 / _EDM_RHO), settings.sigma_max ** (1 / _EDM_RHO)
    slope = (high - low) / max(1, settings.num_levels - 1)
    sigma_data = settings.sigma_data

    def log_sigma(level: Any) -> Any:
        xp = _arrays_of(level)
        above = _EDM_RHO * xp.log(low + xp.maximum(level - 1, 0) * slope)
        return xp.where(level < 1, math.log(settings.sigma_min) + xp.log(xp.minimum(level, 1)), above)

    def log_snr(level: Any) -> Any:
        return 2 * (math.log(sigma_data) - log_sigma(level))

    def level(log_snr: Any) -> Any:
        xp = _arrays_of(log_snr)
        sigma = sigma_data * xp.exp(-log_snr / 2)
        above = 1 + (sigma ** (1 / _EDM_RHO) - low) / slope
        return xp.where(sigma < settings.sigma_min, sigma / settings.sigma_min, above)

    return Curve(_alpha_bar_of(log_snr), log_snr, level, lambda level: log_sigma(level) / 4)


def flow_curve(settings: ScheduleSettings) -> Curve:
    """Rectified flow's: x_t = (1 - t) x_0 + t eps, t = level / T."""

    def log_snr(level: Any) -> Any:
        xp = _arrays_of(level)
        time = level / settings.num_levels
        with np.errstate(divide="ignore"):
            return 2 * (xp.log1p(-time) - xp.log(time))

    def level(log_snr: Any) -> Any:
        return settings.num_levels / (1 + _arrays_of(log_snr).exp(log_snr / 2))

    return Curve(_alpha_bar_of(log_snr), log_snr, level, lambda level: level / settings.num_levels)


def vp_curve(settings: ScheduleSettings) -> Curve:
    """Score SDE's variance-preserving one: alpha_bar = exp(-B), B = integral of beta from 0 to t = level / T."""
    first, last = settings.num_levels * settings.beta_start, settings.num_levels * settings.beta_end

    def integral(level: Any) -> Any:
        time = level / settings.num_levels
        return time * first + time**2 * (last - first) / 2

    def log_snr(level: Any) -> Any:
        return -_arrays_of(level).log(_arrays_of(level).expm1(integral(level)))

    def level(log_snr: Any) -> Any:
        xp = _arrays_of(log_snr)
        b = xp.logaddexp(0.0, -log_snr)
        # The root of t first + t² (last - first) / 2 = b, in the form that holds for last = first too.
        return settings.num_levels * 2 * b / (first + xp.sqrt(first**2 + 2 * (last - first) * b))

    return Curve(_alpha_bar_of(log_snr), log_snr, level, lambda level: 999 * level / settings.num_levels)


def ve_curve(settings: ScheduleSettings) -> Curve:
    """Score SDE's exploding one: log sigma grows evenly from level 1 to level T; below level 1, sigma does."""
    low = math.log(settings.sigma_min)
    slope = (math.log(settings.sigma_max) - low) / max(1, settings.num_levels - 1)

    def log_sigma(level: Any) -> Any:
        xp = _arrays_of(level)
        return low + xp.where(level < 1, xp.log(xp.minimum(level, 1)), (level - 1) * slope)

    def level(log_snr: Any) -> Any:
        xp = _arrays_of(log_snr)
        above = -log_snr / 2 - low
        return xp.where(above < 0, xp.exp(above), 1 + above / slope)

    def log_snr(level: Any) -> Any:
        return -2 * log_sigma(level)

    return Curve(_alpha_bar_of(log_snr), log_snr, level, log_sigma)


def _alpha_bar_of(log_snr: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """SNR / (1 + SNR), from a function of level to one of level."""

    def alpha_bar(level: Any) -> Any:
        xp = _arrays_of(level)
        with np.errstate(over="ignore"):
            return 1 / (1 + xp.exp(-log_snr(level)))

    return alpha_bar


def _arrays_of(value: Any) -> Any:
    """The package that an array is of: ``jax.numpy`` or ``numpy``."""
    return jnp if isinstance(value, jax.Array) else np


SCHEDULES: dict[str, ScheduleRule] = {
    "linear": _by_betas(linear_betas),
    "quad": _by_betas(quad_betas),
    "const": _by_betas(const_betas),
    "jsd": _by_betas(jsd_betas),
    "sigmoid": _by_betas(sigmoid_betas),
    "cosine": _by_betas(cosine_betas),
    "offset_cosine": ScheduleRule(_offset_cosine_levels, noise_variance, _offset_cosine_curve, noise_shows_image=True),
    "edm": ScheduleRule(curve=edm_curve, is_real=True),
    "flow": ScheduleRule(curve=flow_curve, is_real=True, input_scale=lambda signal, noise: 1 / (signal + noise)),
    "vp": ScheduleRule(curve=vp_curve, is_real=True),
    "ve": ScheduleRule(curve=ve_curve, is_real=True, input_scale=lambda signal, noise: 1 / signal),
}
