"""Few steps tuned for a given network, without training it: which levels to visit, and with which coefficients.

A sampler with S steps is a list of levels and a table of coefficients. Those of ``spacing.py`` and ``solvers.py`` are
right for any network as S grows; at five steps there is something to be won by looking at the network at hand. Some
images are drawn by a fine solver, the *fine trajectory*, and levels and coefficients are chosen to come near it:

1. **Levels** (:func:`best_levels`; Chen et al. 2024, "On the Trajectory Regularity of ODE-based Diffusion Sampling",
   GITS). Between any two levels of the fine trajectory, one step of DDIM from the one state ends beside the other, and
   by how much is known without asking the network again (:func:`step_costs`). Dynamic programming finds the cheapest
   way through S of them.
2. **Coefficients** (:func:`fit_coefficients`; in the spirit of S4S, Frankel et al. 2025, and AMED, Zhou et al. 2024,
   but by linear least squares). A step is x' = keep x + sum_j weights[j] x̂0_j, with the newest K predictions. On the
   way through the levels, along the sampler's own states, each step in turn is fitted to end at the fine trajectory.

Both are measured on images that nothing was fitted to, and these decide (:func:`tuned_steps`): how much the fit is held
back towards DPM-Solver++, and which of several lists of levels is taken. The result is a :class:`Plan`, whose table
(:func:`tuned_table`) is one like any other.

Everything here is NumPy in float64 on the host; the network is a callable.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ddim_jax.diffusion.prediction import Question
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.solvers import (
    asking_image,
    check_pairs,
    dpm_solver_pp_2m_table,
    rates,
    stack_rows,
    unipc_table,
)
from ddim_jax.diffusion.spacing import level_pairs
from ddim_jax.diffusion.table import SamplerTable
from ddim_jax.errors import UserError

# From noisy images [n, h, w, c] and what is asked about them to the clean images that the network sees in them.
Denoise = Callable[[np.ndarray, Question], np.ndarray]

# How much later steps count in the choice of levels, per step: several are tried.
_GAMMAS = (0.8, 0.9, 1.0, 1.05, 1.1, 1.15, 1.25)

# How much a fit is held back, relative to the mean square of what it is made of: several are tried.
_RIDGES = (1e-13, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2)


class FineTrajectory(NamedTuple):
    """Images on their way from noise, by a solver with many steps.

    Attributes:
        levels: [M], where states are known, noisiest first.
        x: [M + 1, n, h, w, c], the states there; the last one is the clean end.
        costs: [M, M + 1], see :func:`step_costs`.
        start_costs: [M], likewise of taking pure noise for the state at a level.
    """

    levels: np.ndarray
    x: np.ndarray
    costs: np.ndarray
    start_costs: np.ndarray


class Plan(NamedTuple):
    """Steps for a network.

    Attributes:
        levels: [S], noisiest first.
        coefficients: [S, 1 + K], for each step ``keep`` and the K weights.
        distance: between the ends of new images and those of the fine trajectory, see :func:`distance`.
    """

    levels: np.ndarray
    coefficients: np.ndarray
    distance: float


def tuned_table(schedule: Schedule, pairs: np.ndarray, coefficients: Sequence[float] | np.ndarray) -> SamplerTable:
    """The sampler with fitted coefficients.

    >>> from ddim_jax.diffusion import make_schedule
    >>> schedule, levels = make_schedule("linear"), np.array([1000, 500, 100])
    >>> fitted = base_coefficients(schedule, levels, order=3)  # where nothing is to be won
    >>> table = tuned_table(schedule, level_pairs(levels), fitted.ravel())
    >>> bool(np.all(table.weights[:, :2] == dpm_solver_pp_2m_table(schedule, level_pairs(levels)).weights))
    True

    Args:
        schedule: the noise levels.
        pairs: [S, 2], falling, those that the coefficients were fitted for.
        coefficients: [S, 1 + K], or one row after the other: ``keep`` and the K weights of each step.

    Raises:
        UserError: there are none, or they are not as many for each step.
    """
    pairs = check_pairs(schedule, pairs, "tuned", through_images=True)
    numbers = np.asarray(coefficients, np.float64).reshape(-1)
    if numbers.size < 2 * len(pairs) or numbers.size % len(pairs):
        raise UserError(
            f"sampler 'tuned' has {numbers.size} coefficients for {len(pairs)} steps; it needs as many for each, two "
            "or more, which --mode=tune finds"
        )
    rows = [
        asking_image(schedule, step, level)._replace(
            alpha_bar_next=schedule.alpha_bar_at(level_next), keep=of_step[0], weights=of_step[1:]
        )
        for step, ((level, level_next), of_step) in enumerate(zip(pairs, numbers.reshape(len(pairs), -1), strict=True))
    ]
    return stack_rows(rows)


def tuned_steps(
    denoise: Denoise, fine: FineTrajectory, schedule: Schedule, steps: int, order: int, fitted: int
) -> Plan:
    """The best S steps for a network: levels of several choices, each with coefficients of its own, compared.

    Args:
        denoise: the network.
        fine: the fine trajectory, of n images.
        schedule: the noise levels.
        steps: S.
        order: see :func:`fit_coefficients`.
        fitted: see there.
    """
    lists = level_lists(fine, steps)
    plans = [fit_coefficients(denoise, fine, schedule, levels, order, fitted) for levels in lists]
    return min(plans, key=lambda plan: plan.distance)


# --- the fine trajectory ------------------------------------------------------------------------


def fine_levels(schedule: Schedule, steps: int) -> np.ndarray:
    """Levels for a fine solver, noisiest first: equal steps in the mean of the level and its log SNR, both normalised.

    Neither alone serves all schedules: in log SNR some have hardly any steps where most of the image appears, in
    levels others have few near the clean image.

    Args:
        schedule: the noise levels.
        steps: how many; fewer come out where whole levels coincide.

    Returns:
        Float64 where the schedule has real levels, else int64, from T to 1. Real levels that end in pure noise begin at
        T - 1, as other spacings do, since no sigma names level T.
    """
    noisiest = schedule.num_levels - schedule.ends_in_noise
    if noisiest < 2:
        return np.arange(schedule.num_levels, 0, -1.0 if schedule.has_real_levels else -1)
    grid = np.linspace(1.0, noisiest, 20_001) if schedule.has_real_levels else np.arange(1, noisiest + 1)
    log_snr = schedule.log_snr_at(grid)
    position = grid / noisiest + (log_snr[0] - log_snr) / max(log_snr[0] - log_snr[-1], 1e-12)
    levels = np.interp(np.linspace(position[-1], position[0], steps), position, grid)
    if schedule.has_real_levels:
        return levels
    return np.unique(np.append(np.rint(levels), schedule.num_levels).astype(np.int64))[::-1]


def fine_trajectory(denoise: Denoise, x: np.ndarray, schedule: Schedule, levels: np.ndarray) -> FineTrajectory:
    """Follows the flow from noise to the clean image.

    Args:
        denoise: the network.
        x: [n, h, w, c], pure noise.
        schedule: the noise levels.
        levels: [M], see :func:`fine_levels`.
    """
    table = unipc_table(schedule, level_pairs(levels), order=3)
    states = np.empty((len(levels) + 1, *x.shape), np.float32)
    images = np.empty((len(levels), *x.shape), np.float32)
    for place, (state, image, end) in enumerate(walk(denoise, x, table)):
        # The next row may correct its end.
        states[place], images[place], states[place + 1] = state, image, end
    return FineTrajectory(levels, states, *step_costs(states, images, schedule, levels))


def walk(denoise: Denoise, x: np.ndarray, table: SamplerTable) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Runs a deterministic table, row by row, as ``table.py`` says, in float64.

    Yields:
        x where the row begins, corrected; the clean image that was predicted; and x where it ends.
    """
    memory: list[np.ndarray] = []
    x = x.astype(np.float64)
    for row in rows_of(table):
        alpha, sigma = row.alpha_bar**0.5, (1 - row.alpha_bar) ** 0.5
        image = denoise(x, row).astype(np.float64)
        noted = row.of_x * x + row.of_x0 * image
        if row.of_eps:
            noted = noted + row.of_eps * (x - alpha * image) / sigma
        memory = [noted, *memory][: max(len(row.weights), len(row.correction))]
        x = x + sum(factor * q for factor, q in zip(row.correction, memory, strict=False) if factor)
        end = row.keep * x + sum(factor * q for factor, q in zip(row.weights, memory, strict=False) if factor)
        yield x, image, end
        x = end


def run(denoise: Denoise, x: np.ndarray, table: SamplerTable) -> np.ndarray:
    """Where :func:`walk` ends."""
    end = x
    for _, _, end in walk(denoise, x, table):  # noqa: B007 - the last one is returned
        pass
    return end


def asking(time: float, alpha_bar: float) -> SamplerTable:
    """A table of one row that asks about a level, for programs that take what they ask about as data."""
    none = np.zeros((1, 0))
    zero, one = np.zeros(1), np.ones(1)
    at = np.full(1, alpha_bar)
    return SamplerTable(zero, np.full(1, time), at, at, zero, one, zero, none, one, none, zero, none)


def rows_of(table: SamplerTable) -> Iterator[SamplerTable]:
    """Yields the rows of a table."""
    return (
        SamplerTable(*(column[place] if np.ndim(column) and len(column) else column for column in table))
        for place in range(len(table.time))
    )


# --- levels -------------------------------------------------------------------------------------


def step_costs(
    states: np.ndarray, images: np.ndarray, schedule: Schedule, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How far from the fine trajectory one step of DDIM between two of its states ends.

    The flow of a Gaussian keeps each pixel's distance from the mean in units of the deviation, so that an error counts
    at the end by what part it is of the deviation where it is made. Costs are such parts: root mean squares over the
    pixels of an image, by the root mean square of all states there, and then means over images.

    Args:
        states: [M + 1, n, h, w, c].
        images: [M, n, h, w, c], the clean images predicted there.
        schedule: the noise levels.
        levels: [M].

    Returns:
        [M, M + 1], of the step from state i to state j > i, infinite elsewhere; and [M], of taking the noise at the
        beginning for state i.
    """
    alpha, sigma = (np.append(rate, end) for rate, end in zip(rates(schedule, levels), (1.0, 0.0), strict=True))
    keep = sigma[None, :] / sigma[:-1, None]
    gain = alpha[None, :] - keep * alpha[:-1, None]
    count, number = len(levels), states.shape[1]
    squares = np.zeros((count, count + 1))
    starts = np.zeros(count)
    power = np.zeros(count + 1)
    for index in range(number):
        x = states[:, index].reshape(count + 1, -1).astype(np.float64)
        x0 = images[:, index].reshape(count, -1).astype(np.float64)
        of_x, across, of_x0 = x @ x.T, x0 @ x.T, np.sum(x0**2, axis=1)
        own, mixed = np.diag(of_x), np.sum(x[:-1] * x0, axis=1)
        error = (
            own[None, :]
            + keep**2 * own[:-1, None]
            + gain**2 * of_x0[:, None]
            - 2 * keep * of_x[:-1]
            - 2 * gain * across
            + 2 * keep * gain * mixed[:, None]
        )
        squares += np.sqrt(np.maximum(error, 0) / x.shape[1])
        starts += np.sqrt(np.maximum(own[:-1] + own[0] - 2 * of_x[0, :-1], 0) / x.shape[1])
        power += own / x.shape[1]
    deviation = np.sqrt(power / number)
    costs = np.where(np.arange(count + 1)[None, :] > np.arange(count)[:, None], squares / number / deviation, np.inf)
    return costs, starts / number / deviation[:-1]


def best_levels(fine: FineTrajectory, steps: int, gamma: float = 1.0) -> np.ndarray:
    """Chooses S of the fine trajectory's levels: those of the least sum of costs, found by dynamic programming.

    The first of them need not be the noisiest: samplers take noise for the state at whatever level they begin.

    Args:
        fine: the fine trajectory.
        steps: S.
        gamma: by how much more each step counts than the one before it.

    Returns:
        [S], noisiest first.

    Raises:
        UserError: the fine trajectory has not so many.
    """
    count = len(fine.levels)
    if steps > count:
        raise UserError(f"{steps} steps cannot be chosen of {count} levels; choose fewer, or make the trajectory finer")
    inner = fine.costs[:, :-1]
    least = fine.costs[:, -1]  # of the rest of the way, from each of the levels
    following = []
    for _ in range(steps - 1):
        through = inner + gamma * least[None, :]
        following.append(np.argmin(through, axis=1))
        least = np.min(through, axis=1)
    places = [int(np.argmin(fine.start_costs + gamma * least))]
    for choice in reversed(following):
        places.append(int(choice[places[-1]]))
    return fine.levels[places]


def level_lists(fine: FineTrajectory, steps: int) -> list[np.ndarray]:
    """The different lists of S levels that :func:`tuned_steps` compares."""
    lists = {tuple(best_levels(fine, steps, gamma).tolist()) for gamma in _GAMMAS}
    return [np.array(levels) for levels in sorted(lists)]


# --- coefficients -------------------------------------------------------------------------------


def fit_coefficients(
    denoise: Denoise, fine: FineTrajectory, schedule: Schedule, levels: np.ndarray, order: int, fitted: int
) -> Plan:
    """Fits the steps between levels one after the other, along the states that they themselves lead to.

    Args:
        denoise: the network.
        fine: the fine trajectory, of n images; levels must be among its own.
        schedule: the noise levels.
        levels: [S], noisiest first.
        order: K, predictions that a step is made of.
        fitted: how many of the images, the first ones, are fitted to; the others decide how much the fit is held back,
            and say how good it is.
    """
    places = np.append(np.searchsorted(-fine.levels, -levels), len(fine.levels))
    usual = base_coefficients(schedule, levels, order)
    x = fine.x[0].astype(np.float64)
    memory: list[np.ndarray] = []
    coefficients = np.zeros_like(usual)
    for step, level in enumerate(levels):
        image = denoise(x, asking_image(schedule, step, level)).astype(np.float64)
        memory = [image, *memory][:order]
        parts = np.stack([x, *memory])
        wanted = fine.x[places[step + 1]].astype(np.float64)
        coefficients[step, : len(parts)] = _fit(parts, wanted, usual[step, : len(parts)], fitted)
        x = np.tensordot(coefficients[step, : len(parts)], parts, 1)
    return Plan(levels, coefficients, distance(x[fitted:], fine.x[-1, fitted:]))


def _fit(parts: np.ndarray, wanted: np.ndarray, usual: np.ndarray, fitted: int) -> np.ndarray:
    """The factors of parts [P, n, ...] that sum up to what is wanted [n, ...], held back towards the usual ones."""
    matrix = parts[:, :fitted].reshape(len(parts), -1)
    # Predictions are alike: their differences are what the factors can be told apart by.
    basis = np.eye(len(parts))
    for place in range(2, len(parts)):
        basis[place:] = basis[place:] - basis[place - 1 : -1]
    matrix = basis @ matrix
    missing = (wanted[:fitted] - np.tensordot(usual, parts[:, :fitted], 1)).reshape(-1)
    gram, moment = matrix @ matrix.T, matrix @ missing
    scale = np.diag(np.diag(gram)) + 1e-30 * np.eye(len(parts))
    tried = [usual, *(usual + basis.T @ np.linalg.solve(gram + ridge * scale, moment) for ridge in _RIDGES)]
    errors = [distance(np.tensordot(factors, parts[:, fitted:], 1), wanted[fitted:]) for factors in tried]
    return tried[int(np.argmin(errors))]


def base_coefficients(schedule: Schedule, levels: np.ndarray, order: int) -> np.ndarray:
    """DPM-Solver++ 2M's coefficients, [S, 1 + K] as those of :class:`Plan`; of order 1 DDIM's."""
    pairs = level_pairs(levels)
    table = dpm_solver_pp_2m_table(schedule, pairs) if order > 1 else unipc_table(schedule, pairs, order=1)
    weights = np.zeros((len(levels), order))
    weights[:, : min(order, table.weights.shape[1])] = table.weights[:, :order]
    return np.concatenate([table.keep[:, None], weights], axis=1)


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """How far images [n, h, w, c] are from others: root mean square over the pixels of each, and then the mean.

    A few images that end up elsewhere altogether then count as much as any; in a mean of squares they would decide.
    """
    squares = np.square(x.astype(np.float64) - y)
    return float(np.mean(np.sqrt(np.mean(squares, axis=tuple(range(1, squares.ndim))))))
