"""DDIM at any eta, DDPM with its variances, and consistency models' sampler, as tables of coefficients in float64.

A step from noise level t to a cleaner level t' (alpha_bar and alpha_bar' for short) first asks the network which clean
image x̂0 and which noise ε̂ the current image is made of, and then mixes a new one (Song et al. 2021, "DDIM", eq. 12):

    x' = a x̂0 + b ε̂ + c z,    z ~ N(0, I)
    a = sqrt(alpha_bar'),    b = sqrt(1 - alpha_bar' - sigma²),    c = sigma.

If x̂0 and ε̂ were right, x' would be distributed exactly as images of level t' are, for any sigma (the paper's lemma 1):
its noise has variance b² + c² = 1 - alpha_bar', and it is free to choose which part is kept and which is drawn anew.
That choice is all that tells DDIM (c = 0), DDPM and multistep consistency sampling (b = 0) apart. The exception is σ̂
(:func:`ddpm_large_table`), whose c is larger than its b leaves room for: images keep some noise too much, the more the
fewer the steps.

In the form of ``table.py`` a and b are the factors of x̂0 and ε̂ in q, which is the next image but for its noise; c is
the factor of z.
"""

import numpy as np
from numpy.typing import ArrayLike

from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.table import SamplerTable
from ddim_jax.errors import UserError


def ddim_table(schedule: Schedule, pairs: np.ndarray, eta: ArrayLike = 0.0) -> SamplerTable:
    """DDIM at any eta: eq. 12 with the noise of eq. 16.

        sigma = eta sqrt((1 - alpha_bar') / (1 - alpha_bar)) sqrt(1 - alpha_bar / alpha_bar').

    eta = 0 is the deterministic DDIM, eta = 1 DDPM with its smaller variance. Values above 1 are possible as long as
    sigma² stays below 1 - alpha_bar', all the noise that level t' has.

    A pair (level, level), as the published lists contain, gives the identity: sigma = 0, x' = x.

    >>> from ddim_jax.diffusion import level_pairs, make_schedule
    >>> schedule = make_schedule("linear")
    >>> table = ddim_table(schedule, level_pairs(np.array([1000, 500])), eta=[1.0, 0.0])
    >>> bool(np.allclose(table.of_eps**2 + table.noise**2, 1 - table.alpha_bar_next))
    True

    Args:
        schedule: the noise levels.
        pairs: [S, 2]: each step's level (1 ... T) and the one it leads to, which is not noisier.
        eta: a number, or [S] numbers, first step first; not negative.

    Returns:
        The table, with S rows.

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
    zeros, steps = np.zeros(len(pairs)), np.arange(len(pairs), dtype=np.float64)
    return SamplerTable(
        step=steps,
        time=time,
        alpha_bar=alpha_bar,
        alpha_bar_next=alpha_bar_next,
        of_x=zeros,
        of_x0=np.sqrt(alpha_bar_next),
        of_eps=np.sqrt(np.maximum(kept, 0)),
        correction=np.zeros((len(pairs), 0)),
        keep=zeros,
        weights=np.ones((len(pairs), 1)),
        noise=np.sqrt(variance),
        log_range=np.zeros((len(pairs), 0)),
    )


def ddpm_small_table(schedule: Schedule, pairs: np.ndarray) -> SamplerTable:
    """DDPM with the variance of the posterior q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7): DDIM with eta = 1.

    On all T levels this is ancestral sampling with "fixed small" variance; on a subsequence it is what the DDIM
    paper calls DDPM.
    """
    return ddim_table(schedule, pairs, eta=1.0)


def ddpm_large_table(schedule: Schedule, pairs: np.ndarray) -> SamplerTable:
    """DDPM with the variance of the forward step, beta_t: "fixed large", and the DDIM paper's σ̂ on a subsequence.

    The mean is that of eta = 1, the noise sqrt(1 - alpha_bar / alpha_bar') (DDIM, section 5 and appendix D.3). The
    step that ends at the clean image adds none, as in DDPM's and DDIM's code.

    DDIM's code clips x̂0 for this sampler alone: that is ``rederive_eps`` in ``prediction.py``.
    """
    table = ddpm_small_table(schedule, pairs)
    forward_deviation = np.sqrt(_forward_variance(table.alpha_bar, table.alpha_bar_next))
    return table._replace(noise=np.where(pairs[:, 1] == 0, 0.0, forward_deviation))


def ddpm_learned_table(schedule: Schedule, pairs: np.ndarray) -> SamplerTable:
    """DDPM with the variance that the network predicts, between the small and the large one (Nichol and Dhariwal 2021).

    For each value of an image the network gives a fraction, and the variance is (their eq. 15)

        exp(fraction log(beta) + (1 - fraction) log(beta~)),

    beta being that of :func:`ddpm_large_table` and beta~ that of :func:`ddpm_small_table`. On a subsequence both are
    those of its steps, as in OpenAI's code ("SpacedDiffusion"). Their ratio is (1 - alpha_bar) / (1 - alpha_bar'). The
    step that ends at the clean image adds no noise.

    Networks that have learned no variance cannot use it.
    """
    table = ddpm_small_table(schedule, pairs)
    ends = pairs[:, 1] == 0
    ratio = np.where(ends, 1, (1 - table.alpha_bar) / np.where(ends, 1, 1 - table.alpha_bar_next))
    return table._replace(log_range=np.log(ratio)[:, None])


def consistency_table(schedule: Schedule, pairs: np.ndarray) -> SamplerTable:
    """Multistep consistency sampling (Song et al. 2023, "Consistency Models", algorithm 1): eq. 12 with all noise anew.

    The largest sigma that eq. 12 leaves room for is that of b = 0, sigma² = 1 - alpha_bar'. No part of ε̂ is kept:

        x' = sqrt(alpha_bar') x̂0 + sqrt(1 - alpha_bar') z.

    It is a sampler for networks whose x̂0 is an image already, the end of the flow from x, as consistency models' is
    (``consistency.py``): x' is then distributed as images of level t' are, however few steps there are. Errors of
    earlier steps survive in x̂0 alone. An ordinary denoiser's x̂0 is the mean of all images that x may come from, and
    this sampler makes blurred ones of it. The step that ends at the clean image returns x̂0.

    >>> from ddim_jax.diffusion import level_pairs, make_schedule
    >>> table = consistency_table(make_schedule("jsd"), level_pairs(np.array([1000, 640])))  # alpha_bar 0 and 0.36
    >>> table.of_x0.round(6).tolist(), table.of_eps.tolist(), table.noise.round(6).tolist()
    ([0.6, 1.0], [0.0, 0.0], [0.8, 0.0])
    """
    table = ddim_table(schedule, pairs)
    return table._replace(of_eps=np.zeros(len(pairs)), noise=np.sqrt(1 - table.alpha_bar_next))


def _levels(schedule: Schedule, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    level, level_next = pairs[:, 0], pairs[:, 1]
    if not np.all((level > 0) & (level <= schedule.num_levels) & (level_next >= 0) & (level_next <= level)):
        raise ValueError(f"steps must lead from a level in 1 ... {schedule.num_levels} to one that is not noisier")
    return (
        schedule.time_input(level).astype(np.float64),
        schedule.alpha_bar_at(level),
        schedule.alpha_bar_at(level_next),
    )


def _forward_variance(alpha_bar: np.ndarray, alpha_bar_next: np.ndarray) -> np.ndarray:
    """Variance of the noise that diffusion adds from the cleaner to the noisier level; beta_t if one apart."""
    # Where alpha_bar' = 0 both are 0, levels of pure noise between which nothing is added.
    ratio = np.divide(alpha_bar, alpha_bar_next, out=np.ones_like(alpha_bar), where=alpha_bar_next > 0)
    return 1 - ratio
