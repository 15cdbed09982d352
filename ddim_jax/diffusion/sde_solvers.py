"""Samplers of higher order that add noise: solvers of the stochastic equation whose marginals the flow shares.

Noise that is added on the way corrects errors of earlier steps and costs steps of its own (Karras et al. 2022, section
4). Written for x = alpha x_0 + sigma eps as in ``solvers.py``, with rho = sigma / alpha, the noise to signal that
others call sigma, and lambda = -log(rho).

- :func:`edm_table`: Euler's or Heun's step along the flow, each begun by some noise ("churn").
- :func:`dpm_solver_pp_2m_sde_table`, :func:`dpm_solver_pp_3m_sde_table`: polynomials in lambda through earlier
  predictions of x̂0, in the exact solution of the stochastic equation that is as noisy as DDPM.

The ancestral Euler sampler of k-diffusion is DDIM with its eta, ``ddim_table``: its noise eta rho' sqrt(1 - rho'² /
rho²), times alpha', is eq. 16 of the DDIM paper.
"""

from typing import NamedTuple

import numpy as np

from ddim_jax.diffusion import solvers
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.solvers import check_pairs, rates, stack_rows
from ddim_jax.diffusion.table import SamplerTable
from ddim_jax.errors import UserError

# The most that a step's noise may grow by churn: the factor sqrt(2), so that at most as much is added as there is.
_MOST_CHURN = np.sqrt(2) - 1


class Churn(NamedTuple):
    """How much noise each step begins with (Karras et al. 2022, algorithm 2).

    Attributes:
        amount: S_churn, spread evenly over the steps; 0 adds none.
        low: S_tmin, the least rho at which noise is added.
        high: S_tmax, the largest.
        noise: S_noise, the deviation of what is added, beside what its name says; a little above 1 makes up for detail
            that networks take away.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = np.inf
    noise: float = 1.0


def edm_table(schedule: Schedule, pairs: np.ndarray, churn: Churn = Churn(), order: int = 2) -> SamplerTable:  # noqa: B008 - immutable
    """Karras et al.'s stochastic sampler (2022, algorithm 2).

    Before each of N steps from rho to rho', noise is added up to rho^ = rho (1 + gamma), gamma =
    min(amount / N, sqrt(2) - 1) where low <= rho <= high, else 0; then a step of Heun (order 2) or Euler (order 1)
    leads along the flow from rho^ to rho'. Without churn this is ``heun_table`` or DDIM.

    Rows end with the noise that the next step begins with. That of the first step is part of the initial noise, which
    so has rho^ as its level; it differs from the paper where ``noise`` is not 1 and the first step churns.

    With whole levels rho^ is the nearest one of the schedule, and all else as exact.

    >>> from ddim_jax.diffusion import level_pairs, make_schedule, sampling_levels
    >>> schedule = make_schedule("edm")
    >>> pairs = level_pairs(sampling_levels("linspace", 1000, 4, schedule))
    >>> table = edm_table(schedule, pairs, Churn(amount=2, low=0.1, high=100))
    >>> (table.noise > 0).tolist()  # two rows a step but the last, which is at rho = 0.004
    [False, True, False, True, False, False, False]

    Args:
        schedule: the noise levels.
        pairs: [S, 2], falling.
        churn: how much noise.
        order: 1 or 2.

    Raises:
        UserError: an order or a churn that does not exist, or churn at a level of pure noise.
    """
    name = "edm" if order == 2 else "edm_euler"
    if order not in (1, 2):
        raise UserError(f"the stochastic sampler has order 1 or 2, not {order}")
    if not (churn.amount >= 0 and 0 <= churn.low <= churn.high and churn.noise >= 0):
        raise UserError(f"{churn}: amount, low and noise must not be negative, and low not above high")
    pairs = check_pairs(schedule, pairs, name, through_images=churn.amount > 0)
    gamma = min(churn.amount / len(pairs), _MOST_CHURN)
    begins = [_churned(schedule, level, gamma, churn) for level in pairs[:, 0]]
    check_pairs(schedule, pairs, name)
    rows = []
    for step, (begin, (_, level_next)) in enumerate(zip(begins, pairs, strict=True)):
        rows.append(solvers.noise_row(schedule, step, begin, level_next, [1.0]))
        if order == 2 and level_next > 0:
            rows.append(solvers.trapezoid_row(schedule, step, begin, level_next))
        if step + 1 < len(pairs):
            rows[-1] = _with_noise(rows[-1], schedule.alpha_bar_at(begins[step + 1]), churn.noise)
    return stack_rows(rows)


def _churned(schedule: Schedule, level: float, gamma: float, churn: Churn) -> float:
    """The level that the noise added at a level leads to."""
    log_snr = float(schedule.log_snr_at(level))
    rho = np.exp(-log_snr / 2)
    if gamma == 0 or not churn.low <= rho <= churn.high:
        return level
    if not np.isfinite(rho):
        raise UserError(
            f"churn at level {level:g}, which is pure noise in schedule '{schedule.name}': there is no level above it; "
            "set the upper end (sample.churn_max) to a finite number"
        )
    wanted = log_snr - 2 * np.log1p(gamma)
    if schedule.has_real_levels:
        return float(schedule.level_at(wanted))
    above = schedule.log_snr[int(level) :]
    return int(level) + int(np.argmin(np.abs(above - wanted)))


def _with_noise(row: SamplerTable, alpha_bar: float, noise: float) -> SamplerTable:
    """The row with noise added at its end, up to a level."""
    factor = np.sqrt(alpha_bar / row.alpha_bar_next)
    added = np.sqrt(max(0.0, 1 - factor**2))  # 1 - alpha_bar - factor² (1 - alpha_bar_next), the variance that lacks
    return row._replace(
        alpha_bar_next=alpha_bar, keep=factor * row.keep, weights=factor * row.weights, noise=noise * added
    )


def dpm_solver_pp_2m_sde_table(schedule: Schedule, pairs: np.ndarray, eta: float = 1.0) -> SamplerTable:
    """SDE-DPM-Solver++ 2M (Lu et al. 2022, appendix B.5; the form of k-diffusion with the midpoint).

    With h the length of a step in lambda, its noise is sigma' sqrt(1 - exp(-2 eta h)), and

        x' = (sigma' / sigma) exp(-eta h) x + alpha' (1 - exp(-(1 + eta) h)) D + noise z,

    D being x̂0 taken on to the middle of the step: (1 + 1 / 2r) x̂0 - (1 / 2r) x̂0_{previous}, r = h_{previous} / h.

    Args:
        schedule: the noise levels.
        pairs: [S, 2], falling. Levels of pure noise are possible.
        eta: 1 is the paper's, 0 DPM-Solver++ 2M.
    """
    return _sde_table(schedule, pairs, eta, order=2)


def dpm_solver_pp_3m_sde_table(schedule: Schedule, pairs: np.ndarray, eta: float = 1.0) -> SamplerTable:
    """The same through three predictions (k-diffusion's ``sample_dpmpp_3m_sde``), from the third step on.

    With k = (1 + eta) h, phi_2 = 1 + expm1(-k) / k and phi_3 = phi_2 / k - 1 / 2, D has the terms phi_2 d_1 - phi_3 d_2
    of the first and second divided differences in lambda beside (1 - exp(-k)) x̂0.
    """
    return _sde_table(schedule, pairs, eta, order=3)


def _sde_table(schedule: Schedule, pairs: np.ndarray, eta: float, order: int) -> SamplerTable:
    if not (np.isfinite(eta) and eta >= 0):
        raise UserError(f"eta={eta}: must be finite and not negative")
    pairs = check_pairs(schedule, pairs, f"dpmpp_{order}m_sde", through_images=True)
    rows, lengths = [], []
    for step, (level, level_next) in enumerate(pairs):
        sigma, (alpha_next, sigma_next) = rates(schedule, level)[1], rates(schedule, level_next)
        h = float(schedule.log_snr_at(level_next) - schedule.log_snr_at(level)) / 2
        # Where a step begins in pure noise or ends in none it is infinitely long, and nothing remains of a polynomial.
        before = lengths[::-1] if np.isfinite(h) else []
        lengths = [*lengths, h] if np.isfinite(h) else []
        faded = np.exp(-eta * h) if eta > 0 or np.isfinite(h) else 1.0
        rows.append(
            solvers.asking_image(schedule, step, level)._replace(
                alpha_bar_next=schedule.alpha_bar_at(level_next),
                keep=sigma_next / sigma * faded,
                weights=alpha_next * _sde_weights((1 + eta) * h, [b / h for b in before][: order - 1], order),
                noise=sigma_next * np.sqrt(1 - faded**2),
            )
        )
    return stack_rows(rows)


def _sde_weights(k: float, ratios: list[float], order: int) -> np.ndarray:
    """Weights of the last predictions of x̂0, newest first.

    Args:
        k: (1 + eta) h.
        ratios: lengths of the steps before in units of h, newest first; as many as there are predictions before.
        order: 2 for the midpoint, 3 for the exact integral of the polynomial.
    """
    if not ratios:
        return np.array([-np.expm1(-k)])
    r0 = ratios[0]
    first = np.array([1, -1, 0]) / r0
    if order == 2:
        return -np.expm1(-k) * np.array([1 + 1 / (2 * r0), -1 / (2 * r0)])
    phi_2 = 1 + np.expm1(-k) / k
    newest = np.array([-np.expm1(-k), 0, 0])
    if len(ratios) == 1:
        return (newest + phi_2 * first)[:2]
    r1 = ratios[1]
    second = (first - np.array([0, 1, -1]) / r1) / (r0 + r1)
    return newest + phi_2 * (first + r0 * second) - (phi_2 / k - 1 / 2) * second
