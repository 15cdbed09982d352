"""Which noise levels a fast sampler visits: the subsequence tau of the DDIM paper (section 4.2).

A network trained on T levels may be sampled on any S of them. The paper takes them ``uniform``, or ``quad`` (closer
together at low noise), which it uses for CIFAR-10; its tables name S, but its code does not always make S levels. So
each of these spacings exists twice: as it was meant, and as it was published. Others came later.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.errors import UserError
from ddim_jax.names import Spacing, lookup

# From T, S and the schedule of the levels (None where it is not known) to the levels to visit, noisiest first.
SpacingFunction = Callable[[int, int, Schedule | None], np.ndarray]


def sampling_levels(spacing: Spacing, num_levels: int, steps: int, schedule: Schedule | None = None) -> np.ndarray:
    """Returns the levels to visit, noisiest first: int64, each in 1 ... T.

    With i = 0 ... S - 1 and levels less one, as the DDIM paper's code counts them:

    - ``uniform``: floor(i T / S).
    - ``quad``: floor(0.8 T (i / (S - 1))²); where low ones coincide, each is moved up to the next free one.
    - ``uniform_published``: 0, T // S, 2 (T // S) ... below T, to the letter. These are more than S unless S divides T:
      of T = 1000, 600 "steps" make 1000 network evaluations.
    - ``quad_published``: as ``quad``, but equal ones stay. Each costs an evaluation that moves nothing; of T = 1000,
      100 steps hold 4 of them.
    - ``trailing``: round((i + 1) T / S) - 1, diffusers' name and definition. It begins at the noisiest level, as
      ``uniform`` (diffusers' "leading") does not.
    - ``linspace``: round(i (T - 1) / (S - 1)), diffusers' name and definition. It has both ends.
    - ``openai``: the same, but i (T - 1) / (S - 1) is the stride added i times in float64, as in improved-diffusion's
      and guided-diffusion's respacing to one section ("timestep_respacing S"). Of T = 1000, one level of 278 S from 2
      to 1000 is another for it: at S = 21, 499.5 comes out a little lower and is rounded down.
    - ``logsnr``: at equal steps in the log of the signal-to-noise ratio, from level T to level 1 (Lu et al. 2022).
    - ``karras``: at equal steps in sigma^(1/7), sigma = sqrt((1 - alpha_bar) / alpha_bar), from level T to level 1
      (Karras et al. 2022, eq. 5).

    The last two name noise levels between those of the schedule, and the nearest ones in log SNR are taken; where these
    coincide, they are moved to the next free one. A last level of pure noise (as in ``jsd``) lies infinitely far, and
    they begin at the one before it.

    All give exactly S distinct levels, but for the published ones; the first two, wherever the published lists are S
    distinct levels, give those. The one exception is S = 1. There the published list is level 1 alone, which would take
    pure noise for an almost clean image. One step has to start at the top: at 0.8 T for ``quad``, where all its other
    lists start, and at level T for all others.

    >>> sampling_levels("uniform", 1000, 5).tolist(), sampling_levels("trailing", 1000, 5).tolist()
    ([801, 601, 401, 201, 1], [1000, 800, 600, 400, 200])

    Args:
        spacing: a row of ``SPACINGS``.
        num_levels: T.
        steps: S, from 1 to T.
        schedule: with these T levels; ``logsnr`` and ``karras`` need it.

    Raises:
        UserError: an unknown spacing, or steps outside 1 ... T.
    """
    if not 1 <= steps <= num_levels:
        raise UserError(f"steps={steps}: choose from 1 to {num_levels}, the number of noise levels")
    return lookup(SPACINGS, spacing, "spacing")(num_levels, steps, schedule)


def uniform(num_levels: int, steps: int, schedule: Schedule | None = None) -> np.ndarray:
    """See :func:`sampling_levels`."""
    if steps == 1:
        return np.array([num_levels])
    return _noisiest_first(np.arange(steps) * num_levels // steps)


def quad(num_levels: int, steps: int, schedule: Schedule | None = None) -> np.ndarray:
    """See :func:`sampling_levels`."""
    if steps == 1:
        return _noisiest_first(_quadratic(num_levels, 2)[-1:])
    # The largest t with t_i >= t_{i-1} + 1 for all i, as a running maximum of t_i - i.
    order = np.arange(steps)
    return _noisiest_first(np.maximum.accumulate(_quadratic(num_levels, steps) - order) + order)


def uniform_published(num_levels: int, steps: int, schedule: Schedule | None = None) -> np.ndarray:
    """See :func:`sampling_levels`."""
    return _noisiest_first(np.arange(0, num_levels, num_levels // steps))


def quad_published(num_levels: int, steps: int, schedule: Schedule | None = None) -> np.ndarray:
    """See :func:`sampling_levels`."""
    return _noisiest_first(_quadratic(num_levels, steps))


def trailing(num_levels: int, steps: int, schedule: Schedule | None = None) -> np.ndarray:
    """See :func:`sampling_levels`."""
    return _noisiest_first(np.round(np.arange(1, steps + 1) * num_levels / steps).astype(np.int64) - 1)


def linspace(num_levels: int, steps: int, schedule: Schedule | None = None) -> np.ndarray:
    """See :func:`sampling_levels`."""
    if steps == 1:
        return np.array([num_levels])
    return _noisiest_first(np.round(np.linspace(0, num_levels - 1, steps)).astype(np.int64))


def openai(num_levels: int, steps: int, schedule: Schedule | None = None) -> np.ndarray:
    """See :func:`sampling_levels`."""
    if steps == 1:
        return np.array([num_levels])
    # NumPy's cumsum adds one after the other, too.
    sums = np.cumsum(np.full(steps - 1, (num_levels - 1) / (steps - 1)))
    return _noisiest_first(np.round(np.append(0.0, sums)).astype(np.int64))


def logsnr(num_levels: int, steps: int, schedule: Schedule | None = None) -> np.ndarray:
    """See :func:`sampling_levels`."""
    schedule = _known(schedule, num_levels)
    log_snr = _finite_log_snr(schedule)
    return _nearest_levels(schedule, np.linspace(log_snr[-1], log_snr[0], steps))


def karras(num_levels: int, steps: int, schedule: Schedule | None = None) -> np.ndarray:
    """See :func:`sampling_levels`."""
    if steps == 1:
        return logsnr(num_levels, steps, schedule)
    schedule = _known(schedule, num_levels)
    log_snr = _finite_log_snr(schedule)
    # log SNR = -2 log sigma
    wanted = -14 * np.log(np.linspace(np.exp(-log_snr[-1] / 14), np.exp(-log_snr[0] / 14), steps))
    return _nearest_levels(schedule, wanted)


SPACINGS: dict[str, SpacingFunction] = {
    "uniform": uniform,
    "quad": quad,
    "uniform_published": uniform_published,
    "quad_published": quad_published,
    "trailing": trailing,
    "linspace": linspace,
    "openai": openai,
    "logsnr": logsnr,
    "karras": karras,
}


def _noisiest_first(times: np.ndarray) -> np.ndarray:
    """Levels, from ascending times: levels less one, as the DDIM paper's code counts them."""
    return times[::-1] + 1


def _quadratic(num_levels: int, steps: int) -> np.ndarray:
    return (np.linspace(0, np.sqrt(num_levels * 0.8), steps) ** 2).astype(np.int64)


def _known(schedule: Schedule | None, num_levels: int) -> Schedule:
    if schedule is None or schedule.num_levels != num_levels:
        raise ValueError(f"this spacing needs the schedule of the {num_levels} levels")
    return schedule


def _finite_log_snr(schedule: Schedule) -> np.ndarray:
    """The log SNRs of levels 1, 2 ..., which fall, without those of pure noise."""
    return schedule.log_snr[np.isfinite(schedule.log_snr)]


def _nearest_levels(schedule: Schedule, wanted: np.ndarray) -> np.ndarray:
    """The levels nearest to rising log SNRs, each once; noisiest first."""
    log_snr = _finite_log_snr(schedule)
    midpoints = (log_snr[1:] + log_snr[:-1]) / 2
    nearest = 1 + np.searchsorted(-midpoints, -wanted[::-1])
    # Up to the next free one, as in "quad"; and down again where the top is crowded.
    order = np.arange(len(wanted))
    free = np.maximum.accumulate(nearest - order) + order
    return np.minimum(free, schedule.num_levels - len(wanted) + 1 + order)[::-1]


def explicit_levels(levels: Sequence[int] | np.ndarray, num_levels: int) -> np.ndarray:
    """Checks a list of levels that the user gives, noisiest first: int64 [S].

    Args:
        levels: in 1 ... T, each lower than the one before.
        num_levels: T.

    Raises:
        UserError: they are not such a list.
    """
    levels = np.asarray(levels)
    if levels.ndim != 1 or levels.size == 0 or not np.all(levels == np.floor(levels)):
        raise UserError(f"levels={levels.tolist()}: give a list of one or more whole numbers, noisiest level first")
    levels = levels.astype(np.int64)
    outside = levels[(levels < 1) | (levels > num_levels)]
    if outside.size:
        raise UserError(f"level {outside[0]} in the list of levels does not exist; choose from 1 to {num_levels}")
    wrong = np.flatnonzero(np.diff(levels) >= 0)
    if wrong.size:
        before, after = levels[wrong[0] : wrong[0] + 2]
        what = "occurs twice in a row" if before == after else f"comes after {before}"
        raise UserError(f"level {after} {what} in the list of levels; write each once, noisiest first")
    return levels


def levels_from(levels: np.ndarray, start: int) -> np.ndarray:
    """The part of a subsequence for images that begin at a given level: ``start``, and the levels below it.

    Args:
        levels: noisiest first.
        start: from 1 to the schedule's T.
    """
    if start < 1:
        raise UserError(f"level {start}: sampling starts from a noisy level, 1 or higher")
    return np.concatenate([[start], levels[levels < start]])


def level_pairs(levels: np.ndarray) -> np.ndarray:
    """Pairs each level with the one that the step from it leads to: int64 [S, 2], the last one to level 0.

    Steps are explicit pairs, so that no sampler computes "the previous timestep" by itself, a common source of
    errors when S does not divide T.

    >>> level_pairs(np.array([801, 401, 1])).tolist()
    [[801, 401], [401, 1], [1, 0]]
    """
    return np.stack([levels, np.append(levels[1:], 0)], axis=1)


def rising_pairs(levels: np.ndarray) -> np.ndarray:
    """The pairs for encoding, from the clean image to the noisiest level: int64 [S, 2], the first one from level 0.

    Args:
        levels: noisiest first, without repeats.
    """
    return level_pairs(levels)[::-1, ::-1]
