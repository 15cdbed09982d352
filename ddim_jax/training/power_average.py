"""Power-function averages of a trajectory, and averages of any width made of snapshots of them after training.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2), section 3 and appendix
C. Weights theta(tau), tau in (0, t], are averaged with the profile

    p_gamma,t(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),

whose shape does not depend on t: what it forgets, it forgets in proportion to the length of the run. Its standard
deviation, in units of t, is its **width**,

    sigma_rel = sqrt((gamma + 1) / ((gamma + 2)² (gamma + 3))),

so that gamma is the largest root of gamma³ + 7 gamma² + (16 - s) gamma + 12 - s, s = sigma_rel^-2 (:func:`gamma_of`).
The profile of width 0.10 has its mean at 0.89 t; gamma = 0 is the mean of the whole run, of width 0.289.

**Tracked** (:func:`newest_share`). In training theta is a step function: theta(tau) = theta_s for tau in (s - 1, s].
The profile's mass there is (s^(gamma + 1) - (s - 1)^(gamma + 1)) / t^(gamma + 1). Hence, exactly,

    average_t = beta average_(t-1) + (1 - beta) theta_t,    beta = (1 - 1 / t)^(gamma + 1).

At t = 1 beta is 0: the initial weights are no part of it.

**Reconstructed** (:func:`combine`). Averages are linear in their profiles. Of snapshots (t_i, gamma_i), taken at some
moments t_i of the averages that were tracked, sum_i x_i average_i is the average whose profile is sum_i x_i p_i. The
weights x that bring this nearest to the wanted profile p, in the sense of

    |sum_i x_i p_i - p|² = x'Ax - 2 x'b + (p, p),    A_ij = (p_i, p_j),    b_i = (p_i, p),

solve Ax = b. The inner products have a closed form: for t_a <= t_b

    (p_a, p_b) = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) · (t_a / t_b)^gamma_b / t_b,

the integral of tau^(gamma_a + gamma_b) over (0, t_a], where both are positive.

One thing is not as in the paper: the x sum to 1 here (by a Lagrange multiplier), so that a weight which never moved
comes out as it is. The paper's sum falls short of 1 by a few percent where snapshots are few.

**How far off.** For any constant c, the Cauchy-Schwarz inequality gives

    |reconstructed - tracked| <= |sum_i x_i p_i - p| · sqrt(sum_s (theta_s - c)²),

where the first factor is known before there are weights: :attr:`Combination.error` is its ratio to |p|. If what is left
in the weights were noise of independent steps, that would be the ratio of the error's size to that of the noise in the
average.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# The width of a mean of all steps: gamma = 0.
LARGEST_WIDTH = 1 / math.sqrt(12)

# Singular values below this share of the largest are rounding: snapshots of nearly the same profile.
_SMALLEST = 1e-13


class Profile(NamedTuple):
    """How an average weighs the steps.

    Attributes:
        step: t, steps done.
        gamma: exponent.
    """

    step: int
    gamma: float


class Combination(NamedTuple):
    """What an average is made of.

    Attributes:
        weights: float64, one for each snapshot; they sum to 1.
        error: |profile made - profile wanted| / |profile wanted|; 0 where a snapshot is what is wanted.
    """

    weights: np.ndarray
    error: float


def gamma_of(width: float) -> float:
    """The exponent of a width sigma_rel.

    >>> round(gamma_of(0.05), 4), round(gamma_of(0.10), 4)
    (16.9722, 6.9372)

    Args:
        width: above 0, below 0.2886.

    Raises:
        ValueError: it is not.
    """
    if not 0 < width < LARGEST_WIDTH:
        raise ValueError(f"width {width}: must lie between 0 and {LARGEST_WIDTH:.4f}")
    s = np.float64(width) ** -2
    return float(np.roots([1, 7, 16 - s, 12 - s]).real.max())


def width_of(gamma: float) -> float:
    """The width of an exponent.

    >>> round(width_of(gamma_of(0.08)), 12)
    0.08
    """
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def newest_share(gamma: float, step: Any) -> Any:
    """1 - beta, the share of the newest weights in the average: 1 - (1 - 1 / t)^(gamma + 1).

    As it stands that would lose its digits in float32, where 1 - 1 / t is 1 before long.

    >>> [round(float(newest_share(6.94, np.float64(step))), 6) for step in (1, 100)]
    [1.0, 0.076699]

    Args:
        gamma: the exponent.
        step: t, steps done with the newest one, at least 1: a float of NumPy or JAX.
    """
    module = jnp if isinstance(step, jax.Array) else np
    with np.errstate(divide="ignore"):
        return -module.expm1((gamma + 1) * module.log1p(-1 / step))


def inner_products(one: Sequence[Profile], other: Sequence[Profile]) -> np.ndarray:
    """(p_i, p_j) of all profiles of two lists: float64 [n, m]."""
    t_a, gamma_a = (column[:, None] for column in np.asarray(one, np.float64).reshape(-1, 2).T)
    t_b, gamma_b = np.asarray(other, np.float64).reshape(-1, 2).T
    first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    of_last = np.where(t_a < t_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (first / last) ** of_last / last


def combine(snapshots: Sequence[Profile], wanted: Profile) -> Combination:
    """The weights of snapshots whose sum is nearest to a profile.

    >>> tracked = [Profile(step, gamma_of(width)) for step in (100, 200, 300, 400) for width in (0.05, 0.10)]
    >>> combine(tracked, Profile(400, gamma_of(0.05))).weights.tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    >>> round(combine(tracked, Profile(400, gamma_of(0.07))).error, 3)
    0.035

    Args:
        snapshots: their profiles, at least one.
        wanted: the profile to come near to.
    """
    if wanted in snapshots:
        return Combination((np.arange(len(snapshots)) == list(snapshots).index(wanted)).astype(np.float64), 0.0)
    # Of profiles that are divided by their norms, for the sake of the condition: x_i = scale_i y_i.
    products = inner_products(snapshots, snapshots)
    norms = np.sqrt(np.diagonal(products))
    norm = math.sqrt(inner_products([wanted], [wanted])[0, 0])
    scale = norm / norms
    a = products / norms / norms[:, None]
    b = inner_products(snapshots, [wanted])[:, 0] / norms / norm
    bordered = np.block([[a, scale[:, None]], [scale[None], np.zeros((1, 1))]])
    y = np.linalg.lstsq(bordered, np.append(b, 1), rcond=_SMALLEST)[0][:-1]
    return Combination(scale * y, math.sqrt(max(0.0, float(1 - 2 * y @ b + y @ a @ y))))
