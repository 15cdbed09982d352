"""Deterministic samplers of higher order: fewer network evaluations for the same error.

With eta = 0 a sampler follows a curve, the probability flow, which a perfect network and infinitely small steps would
draw exactly. Write x = alpha x̂0 + sigma ε̂ with alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar). The flow is then
(DDIM, eq. 14)

    d(x / alpha) = ε̂ d(sigma / alpha),    and just as well    d(x / sigma) = x̂0 d(alpha / sigma).

So a step is an integral of ε̂ over sigma / alpha, or of x̂0 over alpha / sigma, and all that solvers differ in is what
they put for the integrand between the points where the network was asked:

- DDIM: the newest prediction, as a constant. Error of a whole run: proportional to the step size.
- Heun (:func:`heun_table`): the mean of the predictions at both ends, the far one asked at a trial point.
- Adams-Bashforth (:func:`adams_bashforth_table`), and PLMS (:func:`plms_table`) with coefficients for equal steps: the
  polynomial in sigma / alpha through earlier predictions of ε̂.
- iPNDM (:func:`ipndm_table`): PLMS without its trial step. DEIS (:func:`deis_table`): the polynomial in the log of
  sigma / alpha.
- Heun in the coordinates of rectified flow (:func:`flow_heun_table`): the mean of û = ε̂ - x̂0.
- DPM-Solver++ 2M (:func:`dpm_solver_pp_2m_table`), UniPC (:func:`unipc_table`): polynomials through earlier predictions
  of x̂0, in lambda = log(alpha / sigma), in which predictions change evenly.

All of them are linear in the predictions, and so they are tables (``table.py``) like the rest, whose q is the quantity
that the solver interpolates. That is x̂0, or the noise (x - alpha x̂0) / sigma that follows from it: the network's own ε̂
is not used, so that clipping x̂0 always takes effect, and ``keep_eps`` does here what ``rederive_eps`` does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.table import SamplerTable
from ddim_jax.errors import UserError

# --- solvers that interpolate the noise ---------------------------------------------------------


def ddim_solver_table(schedule: Schedule, pairs: np.ndarray) -> SamplerTable:
    """DDIM with eta = 0 (eq. 13), the solver of order 1, for pairs that rise as well as for pairs that fall.

    Args:
        schedule: the noise levels.
        pairs: [S, 2], see :func:`~ddim_jax.diffusion.spacing.level_pairs` and, for encoding,
            :func:`~ddim_jax.diffusion.spacing.rising_pairs`. A pair that begins at level 0 asks the network about the
            level where it ends, since no network knows level 0.
    """
    return adams_bashforth_table(schedule, pairs, order=1)


def implicit_ddim_table(schedule: Schedule, pairs: np.ndarray, iterations: int) -> SamplerTable:
    """DDIM's steps with the noise at their end, x' = keep x + weight ε̂(x', t'): equations that rows solve by iteration.

    The first row of a step puts x for x'. Each further one replaces the noise of the row before by that found at the
    newer guess: x' + weight (ε̂(x', t') - ε̂_{before}).

    Args:
        schedule: the noise levels.
        pairs: [S, 2], rising.
        iterations: rows of each step, 1 or more.
    """
    rows = []
    for step, (level, level_next) in enumerate(check_pairs(schedule, pairs, "ddim")):
        row = noise_row(schedule, step, level, level_next, [1.0])
        at_end = _asking_noise(schedule, step, level_next)
        rows.append(at_end._replace(keep=row.keep, weights=row.weights))
        for _ in range(iterations - 1):
            rows.append(at_end._replace(weights=np.concatenate([row.weights, -row.weights])))
    return stack_rows(rows)


def heun_table(schedule: Schedule, pairs: np.ndarray) -> SamplerTable:
    """Heun's method, order 2: the mean of ε̂ at both ends of the step (Karras et al. 2022, algorithm 1, without noise).

    A step is two rows: a DDIM step as a trial, then a correction by the prediction there. The last step, if it ends at
    the clean image, remains first order, since no network knows level 0. S steps then make 2 S - 1 evaluations.

    Args:
        schedule: the noise levels.
        pairs: [S, 2], falling or rising.
    """
    rows = []
    for step, (level, level_next) in enumerate(check_pairs(schedule, pairs, "heun")):
        rows.append(noise_row(schedule, step, level, level_next, [1.0]))
        if level_next > 0:
            rows.append(trapezoid_row(schedule, step, level, level_next))
    return stack_rows(rows)


def adams_bashforth_table(schedule: Schedule, pairs: np.ndarray, order: int) -> SamplerTable:
    """Adams-Bashforth on ε̂: the polynomial in sigma / alpha through the last ``order`` predictions, integrated exactly.

    Each step has its own coefficients, right for steps of any size; this is Zhang and Chen's (2023) DEIS of the rho-AB
    kind. Order 1 is DDIM. Until enough predictions are known, order 1, 2 ... is used. In theory the first step then
    limits order 3 and 4 to 2, but it lies where x is nearly all noise and ε̂ nearly constant: the error it makes is far
    below that of the rest of any run of practical length.

    >>> from ddim_jax.diffusion import level_pairs, make_schedule
    >>> table = adams_bashforth_table(make_schedule("linear"), level_pairs(np.array([1000, 500, 100])), order=2)
    >>> (table.weights != 0).tolist()  # of the newest noise and the one before
    [[True, False], [True, True], [True, True]]

    Args:
        schedule: the noise levels.
        pairs: [S, 2], falling; for order 1 rising ones too.
        order: 1 to 4.

    Raises:
        UserError: an order outside 1 ... 4, equal levels in a pair, or a level of pure noise (alpha_bar = 0).
    """
    if order not in (1, 2, 3, 4):
        raise UserError(f"Adams-Bashforth of order {order} does not exist here; choose from: 1, 2, 3, 4")
    pairs = check_pairs(schedule, pairs, f"ab{order}")
    with np.errstate(divide="ignore"):
        noise_to_signal = np.sqrt(1 / schedule.alpha_bar_at(pairs) - 1)
    rows = []
    for step, (level, level_next) in enumerate(pairs):
        begin, end = noise_to_signal[step]
        nodes = noise_to_signal[max(0, step + 1 - order) : step + 1, 0][::-1]
        # To pure noise, infinitely far in sigma / alpha, only encoding leads, by order 1.
        weights = _integrated_lagrange(nodes, begin, end) / (end - begin) if np.isfinite(end) else np.ones(1)
        rows.append(noise_row(schedule, step, level, level_next, weights))
    return stack_rows(rows)


# Newest first. Adams and Bashforth's for equal steps, and the weights that make the mean of the interval.
_EQUAL_STEPS = ([1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


def plms_table(schedule: Schedule, pairs: np.ndarray) -> SamplerTable:
    """PLMS as published (Liu et al. 2022, PNDM, in the form of latent diffusion): S + 1 evaluations, order 2.

    It mixes the last four ε̂ by Adams and Bashforth's coefficients for equal steps, (55, -59, 37, -9) / 24, and puts the
    mixture into DDIM's step. "Pseudo", as the authors call it: steps equal in level are not equal in sigma / alpha,
    which leaves an error of order 2 whatever the number of predictions. :func:`adams_bashforth_table` does better.

    The first step is a trial and a correction, as in Heun's method, after which the network is asked anew; the next
    two use two and three predictions. PNDM itself begins with three Runge-Kutta-like steps of four evaluations each;
    leaving them out is diffusers' ``skip_prk_steps``, and what everybody runs.

    Args:
        schedule: the noise levels.
        pairs: [S, 2], falling.
    """
    pairs = check_pairs(schedule, pairs, "plms")
    first, second = pairs[0]
    rows = [noise_row(schedule, 0, first, second, [1.0])]
    if second > 0:
        rows.append(trapezoid_row(schedule, 0, first, second))
    for step, (level, level_next) in enumerate(pairs[1:], start=1):
        weights = _EQUAL_STEPS[min(step, 3)]
        if step < 4:  # The trial's prediction lies between the first and the others, and has no part in them.
            weights = [*weights[:step], 0.0, *weights[step:]]
        rows.append(noise_row(schedule, step, level, level_next, weights))
    return stack_rows(rows)


def ipndm_table(schedule: Schedule, pairs: np.ndarray) -> SamplerTable:
    """iPNDM, Adams and Bashforth's coefficients for equal steps as in PLMS, of order 4 after three steps of 1, 2 and 3.

    The improved form of Liu et al.'s that Zhang and Chen (2023, section 4) compare with: no trial at the beginning, so
    that S steps make S evaluations. What is said of unequal steps in :func:`plms_table` holds here too.

    Args:
        schedule: the noise levels.
        pairs: [S, 2], falling.
    """
    pairs = check_pairs(schedule, pairs, "ipndm")
    return stack_rows(
        [
            noise_row(schedule, step, level, level_next, _EQUAL_STEPS[min(step, 3)])
            for step, (level, level_next) in enumerate(pairs)
        ]
    )


def deis_table(schedule: Schedule, pairs: np.ndarray, order: int) -> SamplerTable:
    """DEIS with polynomials in the log of sigma / alpha (Zhang and Chen 2023, section 3.3, in diffusers' form).

    ε̂ is interpolated through the last ``order`` predictions in log(sigma / alpha), where it changes more evenly than in
    sigma / alpha, whose integral it is (:func:`adams_bashforth_table`). A step to the clean image, whose logarithm is
    infinite, is DDIM's.

    Args:
        schedule: the noise levels.
        pairs: [S, 2], falling.
        order: 2 to 4.

    Raises:
        UserError: another order, equal levels in a pair, or a level of pure noise (alpha_bar = 0).
    """
    if order not in (2, 3, 4):
        raise UserError(f"DEIS of order {order} does not exist here; choose from: 2, 3, 4")
    pairs = check_pairs(schedule, pairs, f"deis{order}")
    log_ratio = -schedule.log_snr_at(pairs) / 2
    rows = []
    for step, (level, level_next) in enumerate(pairs):
        begin, end = log_ratio[step]
        weights = np.ones(1)
        if level_next > 0:
            nodes = log_ratio[max(0, step + 1 - order) : step + 1, 0][::-1]
            integral = _integrated_lagrange(nodes, begin, end, lambda u, begin=begin: np.exp(u - begin))
            weights = integral / np.expm1(end - begin)
        rows.append(noise_row(schedule, step, level, level_next, weights))
    return stack_rows(rows)


def noise_row(
    schedule: Schedule, step: int, level: float, level_next: float, weights: Sequence[float] | np.ndarray
) -> SamplerTable:
    """A row from one level to the next whose ε̂ is an average, with these weights, of known ones."""
    (alpha, sigma), (alpha_next, sigma_next) = rates(schedule, level), rates(schedule, level_next)
    asked = level if level > 0 else level_next
    return _asking_noise(schedule, step, asked)._replace(
        alpha_bar_next=schedule.alpha_bar_at(level_next),
        keep=alpha_next / alpha,
        weights=(sigma_next - alpha_next * sigma / alpha) * np.asarray(weights),
    )


def trapezoid_row(schedule: Schedule, step: int, level: float, level_next: float) -> SamplerTable:
    """After a step with the ε̂ of its beginning: replaces that by the mean with the ε̂ found at its end."""
    half = noise_row(schedule, step, level, level_next, [1.0]).weights / 2
    return _asking_noise(schedule, step, level_next)._replace(correction=np.concatenate([half, -half]))


def _asking_noise(schedule: Schedule, step: int, level: float) -> SamplerTable:
    """A row that asks for the noise at a level and leaves x as it is."""
    alpha, sigma = rates(schedule, level)
    return asking_image(schedule, step, level)._replace(of_x=1 / sigma, of_x0=-alpha / sigma)


# --- a solver that interpolates the velocity of a straight flow ----------------------------------


def flow_heun_table(schedule: Schedule, pairs: np.ndarray) -> SamplerTable:
    """Heun's method in the coordinates of rectified flow, where the flow of one image to one noise is a straight line.

    Any level has a time t = sigma / (alpha + sigma); x / (alpha + sigma) = (1 - t) x_0 + t ε there, whose derivative is
    u = ε - x_0 (Liu et al. 2023). A step is an integral of û over t, by the mean of both ends. Its Euler step is
    DDIM's. Unlike sigma / alpha, t is finite at pure noise, so this may start there.

    Args:
        schedule: the noise levels.
        pairs: [S, 2], falling. Levels of pure noise (alpha_bar = 0) are possible.
    """
    rows = []
    for step, (level, level_next) in enumerate(check_pairs(schedule, pairs, "flow_heun", through_images=True)):
        (alpha, sigma), (alpha_next, sigma_next) = rates(schedule, level), rates(schedule, level_next)
        scale, scale_next = alpha + sigma, alpha_next + sigma_next
        weight = np.array([scale_next * (sigma_next / scale_next - sigma / scale)])
        rows.append(
            _asking_velocity(schedule, step, level)._replace(
                alpha_bar_next=schedule.alpha_bar_at(level_next), keep=scale_next / scale, weights=weight
            )
        )
        if level_next > 0:
            correction = np.concatenate([weight, -weight]) / 2
            rows.append(_asking_velocity(schedule, step, level_next)._replace(correction=correction))
    return stack_rows(rows)


def _asking_velocity(schedule: Schedule, step: int, level: float) -> SamplerTable:
    """A row that asks for u = (x - alpha x̂0) / sigma - x̂0 at a level and leaves x as it is."""
    alpha, sigma = rates(schedule, level)
    return asking_image(schedule, step, level)._replace(of_x=1 / sigma, of_x0=-(alpha + sigma) / sigma)


# --- solvers that interpolate the clean image ---------------------------------------------------


def dpm_solver_pp_2m_table(schedule: Schedule, pairs: np.ndarray) -> SamplerTable:
    """DPM-Solver++ 2M, order 2: x̂0 taken on to the middle of the step in lambda (Lu et al. 2022, algorithm 2).

    With h the length of a step in lambda and r = h_{previous} / h, the step is DDIM's with
    (1 + 1 / 2r) x̂0 - (1 / 2r) x̂0_{previous} for x̂0. The first step, and one to the clean image (where lambda is
    infinite), are DDIM's.

    Args:
        schedule: the noise levels.
        pairs: [S, 2], falling. Levels of pure noise (alpha_bar = 0) are possible.
    """
    return _image_solver(schedule, pairs, 2, corrected=False, name="dpmpp_2m")


def unipc_table(schedule: Schedule, pairs: np.ndarray, order: int = 2) -> SamplerTable:
    """UniPC (Zhao et al. 2023, algorithms 5 to 8, data prediction, B(h) = e^h - 1 or "bh2"): a corrector for free.

    Each step of a multistep predictor is corrected as soon as the network has been asked at its end, for the next step
    anyhow; so the order rises by one at no cost. In exact terms predictor and corrector integrate the polynomial in
    lambda through the last ``order`` predictions of x̂0, for the corrector including the new one. The exceptions are
    the paper's: a predictor of two points is that of DPM-Solver++ 2M, and a corrector of order 1 takes the mean.

    The order grows from 1 over the first steps and, if the table ends at the clean image, falls again to 1 at the last,
    which cannot be corrected (nobody asks about level 0).

    Args:
        schedule: the noise levels.
        pairs: [S, 2], falling. Levels of pure noise (alpha_bar = 0) are possible.
        order: of the predictor: 1, 2 or 3.

    Raises:
        UserError: another order, or equal levels in a pair.
    """
    if order not in (1, 2, 3):
        raise UserError(f"UniPC of order {order} does not exist here; choose from: 1, 2, 3")
    return _image_solver(schedule, pairs, order, corrected=True, name=f"unipc{order}")


def _image_solver(schedule: Schedule, pairs: np.ndarray, order: int, corrected: bool, name: str) -> SamplerTable:
    pairs = check_pairs(schedule, pairs, name, through_images=True)
    rows = []
    correction = np.zeros(0)
    for step, (level, level_next) in enumerate(pairs):
        (alpha, sigma), (alpha_next, sigma_next) = rates(schedule, level), rates(schedule, level_next)
        end = float(schedule.log_snr_at(level_next) / 2)
        # Levels of pure noise are infinitely far: no polynomial goes through what was predicted there.
        nodes = schedule.log_snr_at(pairs[: step + 1, 0])[::-1] / 2
        nodes = nodes[np.isfinite(nodes)]
        points = max(1, min(order, len(nodes), len(pairs) - step if pairs[-1, 1] == 0 else order))
        reach = alpha_next - alpha * sigma_next / sigma
        weights = reach * _image_weights(nodes[:points], end)
        rows.append(
            asking_image(schedule, step, level)._replace(
                alpha_bar_next=schedule.alpha_bar_at(level_next),
                correction=correction,
                keep=sigma_next / sigma,
                weights=weights,
            )
        )
        if corrected and level_next > 0:
            if points == 1:
                better = reach * np.array([0.5, 0.5])
            else:
                all_nodes = np.concatenate([[end], nodes[:points]])
                better = alpha_next * _integrated_lagrange(all_nodes, nodes[0], end, lambda u, end=end: np.exp(u - end))
            correction = better - np.concatenate([[0.0], weights])
    return stack_rows(rows)


def _image_weights(nodes: np.ndarray, end: float) -> np.ndarray:
    """Weights of predictions at ``nodes`` (lambda, newest first) in the average x̂0 of a step from nodes[0] to end."""
    if len(nodes) <= 1:
        return np.ones(1)
    if len(nodes) == 2:
        slope = (end - nodes[0]) / (nodes[0] - nodes[1]) / 2
        return np.array([1 + slope, -slope])

    def density(u: np.ndarray) -> np.ndarray:
        return np.exp(u - end)

    return _integrated_lagrange(nodes, nodes[0], end, density) / -np.expm1(nodes[0] - end)


def asking_image(schedule: Schedule, step: int, level: float) -> SamplerTable:
    """A row that asks for the clean image at a level and leaves x as it is."""
    alpha_bar = schedule.alpha_bar_at(level)
    return SamplerTable(
        step=step,
        time=schedule.time_input(level),
        alpha_bar=alpha_bar,
        alpha_bar_next=alpha_bar,
        of_x=0.0,
        of_x0=1.0,
        of_eps=0.0,
        correction=np.zeros(0),
        keep=1.0,
        weights=np.zeros(0),
        noise=0.0,
    )


# --- common parts -------------------------------------------------------------------------------


def _integrated_lagrange(
    nodes: np.ndarray, begin: float, end: float, density: Callable[[np.ndarray], np.ndarray] = np.ones_like
) -> np.ndarray:
    """Weights w with sum_j w_j f(nodes_j) = integral of f(u) density(u) du, for every polynomial f through the nodes.

    Gauss-Legendre quadrature with 32 points is exact to rounding, also for the exponentials here, and loses no digits
    where steps are short, as the closed forms do.
    """
    points, point_weights = np.polynomial.legendre.leggauss(32)
    half = (end - begin) / 2
    u = begin + half * (points + 1)
    lagrange = [
        np.prod([(u - other) / (node - other) for i, other in enumerate(nodes) if i != j], axis=0)
        for j, node in enumerate(nodes)
    ]
    return np.array([np.sum(half * point_weights * density(u) * polynomial) for polynomial in lagrange])


def rates(schedule: Schedule, level: Any) -> tuple[Any, Any]:
    """Signal and noise rate, alpha and sigma, of a level or of several; float64, like level."""
    return np.sqrt(schedule.alpha_bar_at(level)), np.sqrt(1 - schedule.alpha_bar_at(level))


def check_pairs(schedule: Schedule, pairs: np.ndarray, solver: str, through_images: bool = False) -> np.ndarray:
    """Checks that pairs of levels are a chain that a solver can go along, and returns them.

    Args:
        schedule: the noise levels.
        pairs: [S, 2].
        solver: its name, for messages.
        through_images: whether it interpolates what is finite at pure noise, and cannot go up.

    Raises:
        UserError: levels that occur twice, that rise where they must not, or that are pure noise where they must not.
        ValueError: no chain.
    """
    pairs = np.asarray(pairs)
    if not (np.all(pairs >= 0) and np.all(pairs <= schedule.num_levels) and np.all(pairs[1:, 0] == pairs[:-1, 1])):
        raise ValueError(f"steps must form a chain of levels in 0 ... {schedule.num_levels}")
    rise = np.sign(pairs[:, 1] - pairs[:, 0])
    if np.any(rise == 0):
        raise UserError(
            f"sampler '{solver}' cannot use levels that occur twice, as level {pairs[np.argmin(np.abs(rise)), 0]:g} "
            "does here; choose a spacing without, like 'quad' for 'quad_published'"
        )
    if len(set(rise)) != 1:
        raise ValueError("steps must all lead to less noise, or all to more")
    if through_images and rise[0] > 0:
        raise UserError(f"sampler '{solver}' cannot encode; choose from: ddim, heun")
    if not through_images and np.any(schedule.alpha_bar_at(pairs[:, 0]) == 0):
        raise UserError(
            f"sampler '{solver}' cannot start at level {pairs[0, 0]:g}, which is pure noise in schedule "
            f"'{schedule.name}'; choose from: ddim, flow_heun, dpmpp_2m, dpmpp_2m_sde, unipc2, unipc3"
        )
    return pairs


def stack_rows(rows: Sequence[SamplerTable]) -> SamplerTable:
    """Rows to columns; weights and corrections are filled up with zeros to the longest."""
    width = max(max(len(row.weights), len(row.correction)) for row in rows)
    correction_width = width if any(len(row.correction) for row in rows) else 0

    def fill(values: np.ndarray, to: int) -> np.ndarray:
        return np.pad(values, (0, to - len(values)))

    rows = [
        row._replace(weights=fill(row.weights, width), correction=fill(row.correction, correction_width))
        for row in rows
    ]
    return SamplerTable(*(np.array(column, np.float64) for column in zip(*rows, strict=True)))
