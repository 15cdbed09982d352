"""First-order samplers as tables of coefficients, computed once in float64.

A step from noise level t to a cleaner level t' (alpha_bar and alpha_bar' for short) first asks the network which clean
image x̂0 and which noise ε̂ the current image is made of, and then mixes a new one (Song et al. 2021, "DDIM", eq. 12):

    x' = a x̂0 + b ε̂ + c z,    z ~ N(0, I)
    a = sqrt(alpha_bar'),    b = sqrt(1 - alpha_bar' - sigma²),    c = sigma.

If x̂0 and ε̂ were right, x' would be distributed exactly as images of level t' are, for any sigma (the paper's lemma 1):
its noise has variance b² + c² = 1 - alpha_bar', and it is free to choose which part is kept and which is drawn anew.
That choice is all that tells DDIM and DDPM apart. The exception is σ̂ (:func:`ddpm_large_table`), whose c is larger than
its b leaves room for: images keep some noise too much, the more the fewer the steps.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.errors import UserError

# In a table a NumPy array, float64 [S]; in the row that a scan hands to each step a jax scalar.
Column = Any


class StepTable(NamedTuple):
    """A sampler: one row per step, noisiest first. Inside a ``lax.scan`` the same tuple, of scalars, is one row.

    Attributes:
        time: what the network is told, ``Schedule.time_input`` of the level where the step starts.
        alpha_bar: there.
        alpha_bar_next: where the step ends; 1 at the clean image.
        a: factor of the predicted clean image.
        b: factor of the predicted noise.
        c: factor of fresh noise; 0 in deterministic steps.
    """

    time: Column
    alpha_bar: Column
    alpha_bar_next: Column
    a: Column
    b: Column
    c: Column


def make_table(sampler: str, schedule: Schedule, pairs: np.ndarray, eta: ArrayLike = 0.0) -> StepTable:
    """Builds the table of a sampler by name.

    Args:
        sampler: ``ddim``, ``ddpm_small`` or ``ddpm_large``.
        schedule: the noise levels.
        pairs: [S, 2], see :func:`~ddim_jax.diffusion.spacing.level_pairs`.
        eta: of ``ddim``, a number or one per step; the DDPM samplers have none.

    Raises:
        UserError: an unknown sampler, or an eta that cannot be used.
    """
    if sampler == "ddim":
        return ddim_table(schedule, pairs, eta)
    if sampler == "ddpm_small":
        return ddpm_small_table(schedule, pairs)
    if sampler == "ddpm_large":
        return ddpm_large_table(schedule, pairs)
    raise UserError(f"sampler '{sampler}' does not exist; choose from: ddim, ddpm_small, ddpm_large")


def ddim_table(schedule: Schedule, pairs: np.ndarray, eta: ArrayLike = 0.0) -> StepTable:
    """DDIM at any eta: eq. 12 with the noise of eq. 16.

        sigma = eta sqrt((1 - alpha_bar') / (1 - alpha_bar)) sqrt(1 - alpha_bar / alpha_bar').

    eta = 0 is the deterministic DDIM, eta = 1 DDPM with its smaller variance. Values above 1 are possible as long as
    sigma² stays below 1 - alpha_bar', all the noise that level t' has.

    A pair (level, level), as the published lists contain, gives the identity: sigma = 0, x' = x.

    Args:
        schedule: the noise levels.
        pairs: int [S, 2]: each step's level (1 ... T) and the one it leads to, which is not noisier.
        eta: a number, or [S] numbers, first step first; not negative.

    Returns:
        float64 columns [S].

    Raises:
        UserError: eta is negative, too large for a step, or not one per step.
    """
    time, alpha_bar, alpha_bar_next = _levels(schedule, pairs)
    eta = np.asarray(eta, np.float64)
    if eta.shape not in ((), (len(pairs),)):
        raise UserError(f"eta has {eta.size} values for {len(pairs)} steps: give one number, or one for each step")
    if not np.all((eta >= 0) & np.isfinite(eta)):
        raise UserError(f"eta={eta.tolist()}: must be finite and not negative")
    posterior_variance = (1 - alpha_bar_next) / (1 - alpha_bar) * _forward_variance(alpha_bar, alpha_bar_next)
    variance = eta**2 * posterior_variance
    kept = 1 - alpha_bar_next - variance
    too_large = np.flatnonzero(kept < -1e-12)  # below that it is rounding, as at eta = 1 and alpha_bar = 0
    if too_large.size:
        step = too_large[0]
        largest = np.sqrt((1 - alpha_bar_next[step]) / posterior_variance[step])
        raise UserError(
            f"eta={np.broadcast_to(eta, len(pairs))[step]:g} is too large for step {step + 1} of {len(pairs)} "
            f"(level {pairs[step, 0]} to {pairs[step, 1]}): use at most {largest:.4g} there"
        )
    return StepTable(
        time=time,
        alpha_bar=alpha_bar,
        alpha_bar_next=alpha_bar_next,
        a=np.sqrt(alpha_bar_next),
        b=np.sqrt(np.maximum(kept, 0)),
        c=np.sqrt(variance),
    )


def ddpm_small_table(schedule: Schedule, pairs: np.ndarray) -> StepTable:
    """DDPM with the variance of the posterior q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7): DDIM with eta = 1.

    On all T levels this is ancestral sampling with "fixed small" variance; on a subsequence it is what the DDIM
    paper calls DDPM.
    """
    return ddim_table(schedule, pairs, eta=1.0)


def ddpm_large_table(schedule: Schedule, pairs: np.ndarray) -> StepTable:
    """DDPM with the variance of the forward step, beta_t: "fixed large", and the DDIM paper's σ̂ on a subsequence.

    The mean is that of eta = 1, the noise sqrt(1 - alpha_bar / alpha_bar') (DDIM, section 5 and appendix D.3). The
    step that ends at the clean image adds none, as in DDPM's and DDIM's code.

    DDIM's code clips x̂0 for this sampler alone: that is ``rederive_eps`` in ``prediction.py``.
    """
    table = ddpm_small_table(schedule, pairs)
    forward_deviation = np.sqrt(_forward_variance(table.alpha_bar, table.alpha_bar_next))
    return table._replace(c=np.where(pairs[:, 1] == 0, 0.0, forward_deviation))


def _levels(schedule: Schedule, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    level, level_next = pairs[:, 0], pairs[:, 1]
    if not np.all((level >= 1) & (level <= schedule.num_levels) & (level_next >= 0) & (level_next <= level)):
        raise ValueError(f"steps must lead from a level in 1 ... {schedule.num_levels} to one that is not noisier")
    return schedule.time_input(level).astype(np.float64), schedule.alpha_bar[level], schedule.alpha_bar[level_next]


def _forward_variance(alpha_bar: np.ndarray, alpha_bar_next: np.ndarray) -> np.ndarray:
    """Variance of the noise that diffusion adds from the cleaner to the noisier level; beta_t if one apart."""
    # Where alpha_bar' = 0 both are 0, levels of pure noise between which nothing is added.
    ratio = np.divide(alpha_bar, alpha_bar_next, out=np.ones_like(alpha_bar), where=alpha_bar_next > 0)
    return 1 - ratio
