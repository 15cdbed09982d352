"""Noise schedules: how much of the image is left at each noise level.

Diffusion spoils an image x_0 in T small steps,

    x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z_t,    z_t ~ N(0, I),    t = 1 ... T,

which adds up to a single one (Ho et al. 2020, "DDPM", eq. 4; DDIM writes alpha for this alpha_bar):

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,    alpha_bar_t = prod_{s <= t} (1 - beta_s).

This file owns the numbering of levels. **Level 0 is the clean image, alpha_bar[0] = 1; levels 1 ... T are noisy.**
Networks are told the level by the number ``level - 1`` in 0 ... T - 1, since that is how published checkpoints were
trained, unless the schedule's row in ``SCHEDULES`` says otherwise; :meth:`Schedule.time_input` is the only place that
knows. No network is ever asked about level 0.
"""

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
    """

    name: str
    alpha_bar: np.ndarray
    rule: "ScheduleRule"

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
        return self.rule.told(np.arange(len(self.alpha_bar), dtype=np.float64), self.alpha_bar)

    @property
    def is_continuous(self) -> bool:
        """Whether there are levels between the levels."""
        return self.rule.continuous is not None

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
            level: int [n], in 1 ... T; or float [n], in (0, T], of a continuous schedule.

        Raises:
            UserError: levels between levels, of a schedule that has none.
        """
        if jnp.issubdtype(level.dtype, jnp.integer):
            return jnp.asarray(self.alpha_bar, jnp.float32)[level], self.time_input(level)
        if self.rule.continuous is None:
            continuous = ", ".join(name for name, rule in SCHEDULES.items() if rule.continuous is not None)
            raise UserError(f"schedule '{self.name}' has no levels between its levels; choose from: {continuous}")
        alpha_bar = self.rule.continuous(level / self.num_levels)
        return alpha_bar, self.rule.told(level, alpha_bar)

    def time_input(self, level: int | np.ndarray | jax.Array) -> Any:
        """The number that tells the network a level in 1 ... T: ``level - 1``, unless the schedule has its own."""
        if isinstance(level, jax.Array):
            return jnp.asarray(self.times, jnp.float32)[level]
        return self.rule.told(level, self.alpha_bar[level])


def make_schedule(
    name: ScheduleName,
    num_levels: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_terminal_snr: bool = False,
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

            The first five are those of DDPM's and DDIM's code.
        num_levels: T.
        beta_start: first beta of linear and quad, lower limit of sigmoid.
        beta_end: last beta of linear and quad, upper limit of sigmoid, and every beta of const.
        zero_terminal_snr: move alpha_bar so that it is 0 at level T, see :func:`with_zero_terminal_snr`.

    Raises:
        UserError: an unknown name, no levels, or betas outside (0, 1).
    """
    if num_levels < 1:
        raise UserError(f"num_levels={num_levels}: a noise schedule needs at least 1 level")
    if not (0 < beta_start < 1 and 0 < beta_end < 1):
        raise UserError(f"beta_start={beta_start}, beta_end={beta_end}: both must lie strictly between 0 and 1")
    rule = lookup(SCHEDULES, name, "schedule")
    noisy = rule.alpha_bar(num_levels, beta_start, beta_end)
    if zero_terminal_snr:
        noisy = with_zero_terminal_snr(noisy)
    return Schedule(name, np.concatenate([[1.0], noisy]), rule)


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


class ScheduleRule(NamedTuple):
    """What makes a schedule: a row of ``SCHEDULES``.

    Attributes:
        alpha_bar: from T, ``beta_start`` and ``beta_end`` to alpha_bar of levels 1 ... T, float64 [T], falling.
        told: what networks are told, from level and alpha_bar.
        continuous: alpha_bar at any time in (0, 1], an array of JAX; None for a schedule of T levels alone.
        noise_shows_image: whether an image can be looked at that a predicted noise implies, also at the last levels. It
            is divided by sqrt(alpha_bar) there, and where that almost vanishes, as on most schedules, the few noisiest
            levels drown all others.
    """

    alpha_bar: Callable[[int, float, float], np.ndarray]
    told: Callable[[Any, Any], Any] = level_number
    continuous: Callable[[Any], Any] | None = None
    noise_shows_image: bool = False


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


SCHEDULES: dict[str, ScheduleRule] = {
    "linear": _by_betas(linear_betas),
    "quad": _by_betas(quad_betas),
    "const": _by_betas(const_betas),
    "jsd": _by_betas(jsd_betas),
    "sigmoid": _by_betas(sigmoid_betas),
    "cosine": _by_betas(cosine_betas),
    "offset_cosine": ScheduleRule(_offset_cosine_levels, noise_variance, offset_cosine, noise_shows_image=True),
}
