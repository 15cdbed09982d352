"""Which noise levels a fast sampler visits: the subsequence tau of the DDIM paper (section 4.2).

A network trained on T levels may be sampled on any S of them. The paper takes them ``uniform``, or ``quad`` (closer
together at low noise), which it uses for CIFAR-10; its tables name S, but its code does not always make S levels. So
each of these spacings exists twice: as it was meant, and as it was published. Others came later.

Schedules with real levels (:attr:`~ddim_jax.diffusion.schedule.Schedule.has_real_levels`) need none of the rounding: a
row of ``SPACINGS`` says what the spacing is on whole levels, and on real ones.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.errors import UserError
from ddim_jax.names import Spacing, lookup

# From T, S and the schedule of the levels (None where it is not known) to the levels to visit, noisiest first.
SpacingFunction = Callable[[int, int, Schedule | None], np.ndarray]


class SpacingRule(NamedTuple):
    """What makes a spacing: a row of ``SPACINGS``.

    Attributes:
        whole: int64 [S], each in 1 ... T.
        real: float64 [S], each in (0, T], for schedules with real levels; None where the spacing is about rounding.
    """

    whole: SpacingFunction
    real: Callable[[Schedule, int], np.ndarray] | None = None


def sampling_levels(spacing: Spacing, num_levels: int, steps: int, schedule: Schedule | None = None) -> np.ndarray:
    """Returns the levels to visit, noisiest first: int64, each in 1 ... T; or float64, in (0, T], where they are real.

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

    These two name noise levels between those of the schedule, and the nearest ones in log SNR are taken; where these
    coincide, they are moved to the next free one. A last level of pure noise (as in ``jsd``) lies infinitely far, and
    they begin at the one before it.

    - ``tuned``: those that ``--mode=tune`` has found for a network (``tuning.py``). Its workdir knows them, not this
      function.

    On real levels, with k = S, S - 1 ... 1: ``uniform`` and ``trailing`` are k T / S, rectified flow's list of times;
    ``quad`` is T (k / S)²; ``linspace`` and ``openai`` are S levels in equal steps from T to 1, which for ``edm`` is
    Karras et al.'s list of sigmas to the last digit; ``logsnr`` and ``karras`` are what they say, from level T (or, if
    that is pure noise, level T - 1) to level 1.

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
        UserError: an unknown spacing, one about rounding for real levels, or steps outside 1 ... T.
    """
    if not 1 <= steps <= num_levels:
        raise UserError(f"steps={steps}: choose from 1 to {num_levels}, the number of noise levels")
    rule = lookup(SPACINGS, spacing, "spacing")
    if schedule is None or not schedule.has_real_levels:
        return rule.whole(num_levels, steps, schedule)
    if rule.real is None:
        real = ", ".join(name for name, each in SPACINGS.items() if each.real is not None)
        raise UserError(
            f"spacing '{spacing}' is about whole levels, those of schedule '{schedule.name}' are real; choose from: "
            f"{real}"
        )
    return rule.real(_known(schedule, num_levels), steps)


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


def tuned(num_levels: int, steps: int, schedule: Schedule | None = None) -> np.ndarray:
    """Refuses: these levels belong to a network."""
    raise UserError(
        f"spacing 'tuned': which {steps} levels these are was found for one network, and is kept in its workdir; name "
        "a workdir where --mode=tune has run, or another spacing"
    )


def _equal_parts(schedule: Schedule, steps: int) -> np.ndarray:
    return schedule.num_levels * np.arange(steps, 0, -1) / steps


def _equal_steps(schedule: Schedule, steps: int) -> np.ndarray:
    return np.linspace(schedule.num_levels, 1, steps)


def _equal_log_snr(schedule: Schedule, steps: int) -> np.ndarray:
    return _levels_of(schedule, np.linspace(*_ends(schedule), steps))


def _karras_sigmas(schedule: Schedule, steps: int) -> np.ndarray:
    first, last = (np.exp(-log_snr / 14) for log_snr in _ends(schedule))
    return _levels_of(schedule, -14 * np.log(np.linspace(first, last, steps)))


def _levels_of(schedule: Schedule, log_snr: np.ndarray) -> np.ndarray:
    """Real levels of log SNRs; level T, found by way of logarithms, may come out above itself."""
    return np.minimum(schedule.level_at(log_snr), schedule.num_levels)


def _ends(schedule: Schedule) -> tuple[float, float]:
    """The log SNR of the noisiest level that is not all noise, and of level 1."""
    noisiest = schedule.num_levels - schedule.ends_in_noise
    return float(schedule.log_snr_at(float(noisiest))), float(schedule.log_snr_at(1.0))


SPACINGS: dict[str, SpacingRule] = {
    "uniform": SpacingRule(uniform, _equal_parts),
    "quad": SpacingRule(quad, lambda schedule, steps: schedule.num_levels * (np.arange(steps, 0, -1) / steps) ** 2),
    "uniform_published": SpacingRule(uniform_published),
    "quad_published": SpacingRule(quad_published),
    "trailing": SpacingRule(trailing, _equal_parts),
    "linspace": SpacingRule(linspace, _equal_steps),
    "openai": SpacingRule(openai, _equal_steps),
    "logsnr": SpacingRule(logsnr, _equal_log_snr),
    "karras": SpacingRule(karras, _karras_sigmas),
    "tuned": SpacingRule(tuned, lambda schedule, steps: tuned(schedule.num_levels, steps)),
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


def levels_of_sigmas(schedule: Schedule, sigmas: Sequence[float] | np.ndarray, sigma_data: float = 1.0) -> np.ndarray:
    """The levels with these amounts of noise, noisiest first: float64 [S]. For lists that others publish.

    >>> from ddim_jax.diffusion import make_schedule
    >>> schedule = make_schedule("flow")
    >>> levels_of_sigmas(schedule, [9.0, 1.0]).round(6).tolist()  # of t / (1 - t)
    [900.0, 500.0]

    Args:
        schedule: with real levels.
        sigmas: noise to signal, sqrt((1 - alpha_bar) / alpha_bar) times ``sigma_data``; positive and falling.
        sigma_data: standard deviation of the images in whose units they are.

    Raises:
        UserError: they are not positive and falling, more than level T holds, or the schedule has whole levels only.
    """
    sigmas = np.asarray(sigmas, np.float64)
    if sigmas.ndim != 1 or not sigmas.size or not np.all(sigmas > 0) or not np.all(np.diff(sigmas) < 0):
        raise UserError(f"sigmas={sigmas.tolist()}: give a list of one or more positive numbers, the largest first")
    levels = schedule.level_at(2 * np.log(sigma_data / sigmas))
    if levels[0] > schedule.num_levels * (1 + 1e-12):
        highest = sigma_data * np.exp(-schedule.log_snr[-1] / 2)
        raise UserError(f"sigma={sigmas[0]:g} is above that of level {schedule.num_levels}, {highest:g}; leave it out")
    return np.minimum(levels, schedule.num_levels)


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
    """Pairs each level with the one that the step from it leads to: [S, 2] like levels, the last one to level 0.

    Steps are explicit pairs, so that no sampler computes "the previous timestep" by itself, a common source of
    errors when S does not divide T.

    >>> level_pairs(np.array([801, 401, 1])).tolist()
    [[801, 401], [401, 1], [1, 0]]
    """
    return np.stack([levels, np.append(levels[1:], 0)], axis=1)


def rising_pairs(levels: np.ndarray) -> np.ndarray:
    """The pairs for encoding, from the clean image to the noisiest level: [S, 2], the first one from level 0.

    Args:
        levels: noisiest first, without repeats.
    """
    return level_pairs(levels)[::-1, ::-1]
