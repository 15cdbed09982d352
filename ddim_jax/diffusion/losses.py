"""How the network learns: spoil an image by a known amount of noise, and ask for what was done to it.

A training step draws for each image a noise level t and noise eps, makes x_t (:func:`diffuse`), gives it to the network
and compares the output with the target. For the noise as target and mean squared error this is the "simple" objective
of DDPM (Ho et al. 2020, eq. 14 and algorithm 1), which DDIM shares: its models are DDPM's.
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.diffusion.objectives import OBJECTIVES
from ddim_jax.diffusion.prediction import per_image
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.errors import UserError
from ddim_jax.names import Loss, Objective, Reduction, TimeSampling, lookup
from ddim_jax.random_streams import fold_in_each


def diffuse(x0: jax.Array, eps: jax.Array, alpha_bar: jax.typing.ArrayLike) -> jax.Array:
    """Brings clean images to a noise level: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps (DDPM, eq. 4).

    >>> diffuse(jnp.ones((2, 1, 1, 1)), jnp.zeros((2, 1, 1, 1)), jnp.array([1.0, 0.25])).ravel().tolist()
    [1.0, 0.5]

    Args:
        x0: [n, h, w, c].
        eps: standard normal, like x0.
        alpha_bar: scalar or [n].
    """
    alpha_bar = per_image(alpha_bar, x0)
    return jnp.sqrt(alpha_bar) * x0 + jnp.sqrt(1 - alpha_bar) * eps


def training_target(objective: Objective, x0: jax.Array, eps: jax.Array, alpha_bar: jax.typing.ArrayLike) -> jax.Array:
    """What the network shall answer: eps, x0, v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0, or eps - x0.

    The inverse of :func:`~ddim_jax.diffusion.prediction.to_prediction`. v asks for the noise where there is little of
    it and for the image where there is little of that, so it is never given away by the input.

    Args:
        objective: a row of ``OBJECTIVES``.
        x0: [n, h, w, c].
        eps: like x0.
        alpha_bar: scalar or [n].

    Raises:
        UserError: an unknown objective.
    """
    alpha_bar = per_image(alpha_bar, x0)
    rule = lookup(OBJECTIVES, objective, "objective")
    return rule.target(x0, eps, jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar))


def draw_levels(
    kind: TimeSampling,
    schedule: Schedule,
    key: jax.Array,
    index: jax.Array,
    batch_size: int,
    mean: float = 0.0,
    std: float = 1.0,
) -> jax.Array:
    """Draws the noise levels of a training batch: int32 [n], in 1 ... T; of the last three kinds float32 [n], above 0.

    The first three are uniform on 1 ... T in expectation. They differ in how the examples depend on each other, which
    changes the variance of the gradient but not its mean.

    - ``uniform``: not at all (DDPM).
    - ``antithetic``: examples 2j and 2j + 1 get t and T + 1 - t, so that a batch holds as much high noise as low (as
      in DDIM's code, which pairs the first half of the batch with the second).
    - ``stratified``: example i draws from the i-th of ``batch_size`` equal parts of the range, so that a batch covers
      all of it evenly. Low positions always get low levels, which is harmless since the data come in random order.
    - ``continuous``: not at all, and levels between the levels too (Keras' DDIM example), in (0, T].
    - ``lognormal``: the log of the noise, ln sqrt((1 - alpha_bar) / alpha_bar), is normal (Karras et al. 2022, table 1:
      they mean that of their sigma, larger by ln sigma_data, with mean -1.2 and deviation 1.2). Rarely, levels lie
      above T.
    - ``logitnormal``: the logit of t = level / T is normal (Esser et al. 2024, section 3.1, with 0 and 1).

    A level is a function of the key and the example's position in the global batch, so the split of a batch over
    devices, or into micro-batches, does not change it.

    Args:
        kind: one of these.
        schedule: the levels.
        key: of this training step.
        index: int [n], positions in the global batch.
        batch_size: size of the global batch.
        mean: of the normal distribution of the last two kinds.
        std: its standard deviation.

    Raises:
        UserError: an unknown kind, or real levels of a schedule that has whole ones only.
    """
    return lookup(TIME_SAMPLINGS, kind, "time sampling").draw(schedule, key, index, batch_size, mean, std)


def _uniform(
    schedule: Schedule, key: jax.Array, index: jax.Array, batch_size: int, mean: float, std: float
) -> jax.Array:
    return _uniform_levels(fold_in_each(key, index), schedule.num_levels)


def _antithetic(
    schedule: Schedule, key: jax.Array, index: jax.Array, batch_size: int, mean: float, std: float
) -> jax.Array:
    level = _uniform_levels(fold_in_each(key, index // 2), schedule.num_levels)
    return jnp.where(index % 2 == 0, level, schedule.num_levels + 1 - level)


def _stratified(
    schedule: Schedule, key: jax.Array, index: jax.Array, batch_size: int, mean: float, std: float
) -> jax.Array:
    # floor(T (i + u) / n), u uniform in [0, 1), depends on floor(T u) alone: in integers nothing is rounded.
    within = _uniform_levels(fold_in_each(key, index), schedule.num_levels) - 1
    return 1 + (schedule.num_levels * index + within) // batch_size


def _continuous(
    schedule: Schedule, key: jax.Array, index: jax.Array, batch_size: int, mean: float, std: float
) -> jax.Array:
    # 1 - u, since u may be 0 but not 1.
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(fold_in_each(key, index))
    return schedule.num_levels * (1 - uniform)


def _lognormal(
    schedule: Schedule, key: jax.Array, index: jax.Array, batch_size: int, mean: float, std: float
) -> jax.Array:
    return schedule.level_at(-2 * (mean + std * _normal(key, index)))


def _logitnormal(
    schedule: Schedule, key: jax.Array, index: jax.Array, batch_size: int, mean: float, std: float
) -> jax.Array:
    # Below 1 - 2^-24, where float32 would round to t = 1, and at pure noise the loss of eps has no image.
    return schedule.num_levels * jnp.clip(jax.nn.sigmoid(mean + std * _normal(key, index)), 2**-24, 1 - 2**-23)


def _normal(key: jax.Array, index: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.normal(key, (), jnp.float32))(fold_in_each(key, index))


def _uniform_levels(keys: jax.Array, num_levels: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.randint(key, (), 1, num_levels + 1, jnp.int32))(keys)


def _even(schedule: Schedule, share: np.ndarray, mean: float, std: float) -> np.ndarray:
    return schedule.num_levels * share


def _lognormal_quantile(schedule: Schedule, share: np.ndarray, mean: float, std: float) -> np.ndarray:
    return np.asarray(schedule.level_at(-2 * normal_quantile(share, mean, std)), np.float64)


def _logitnormal_quantile(schedule: Schedule, share: np.ndarray, mean: float, std: float) -> np.ndarray:
    return schedule.num_levels / (1 + np.exp(-normal_quantile(share, mean, std)))


def normal_quantile(share: np.ndarray, mean: float, std: float) -> np.ndarray:
    """What so large a share of normal draws lie below: float64, like ``share``."""
    return np.array([statistics.NormalDist(mean, std).inv_cdf(each) for each in share])


def quartile_levels(kind: TimeSampling, schedule: Schedule, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    """The three levels between the quarters of what :func:`draw_levels` draws: float64 [3], least noise first.

    Noise grows with the level, so that these are also the quartiles of the log SNR.

    >>> from ddim_jax.diffusion import make_schedule
    >>> quartile_levels("uniform", make_schedule("linear", num_levels=1000)).tolist()
    [250.0, 500.0, 750.0]

    Args:
        kind: as there, like the others.
        schedule: the levels.
        mean: of the normal distribution of the last two kinds.
        std: its standard deviation.

    Raises:
        UserError: an unknown kind, or real levels of a schedule that has whole ones only.
    """
    return lookup(TIME_SAMPLINGS, kind, "time sampling").quantile(schedule, np.array([0.25, 0.5, 0.75]), mean, std)


def quartile_of(value: jax.Array, between: np.ndarray) -> jax.Array:
    """The quarter in which each value lies: int32, like ``value``, from 0.

    Args:
        value: [n].
        between: the three values between the quarters, ascending.
    """
    return jnp.sum(value[:, None] > jnp.asarray(between, jnp.float32), axis=1, dtype=jnp.int32)


class TimeSamplingRule(NamedTuple):
    """What makes a way to draw levels: a row of ``TIME_SAMPLINGS``.

    Attributes:
        draw: from the schedule, the step's key, positions in the global batch, its size, and mean and deviation, to
            levels.
        quantile: from the schedule, shares of the draws, and mean and deviation, to the levels that so many of them are
            at or below.
        is_continuous: whether there are levels between the levels among them.
        needs_real_levels: whether it draws noise, and asks the schedule for its level.
    """

    draw: Callable[[Schedule, jax.Array, jax.Array, int, float, float], jax.Array]
    quantile: Callable[[Schedule, np.ndarray, float, float], np.ndarray]
    is_continuous: bool = False
    needs_real_levels: bool = False


TIME_SAMPLINGS: dict[str, TimeSamplingRule] = {
    "antithetic": TimeSamplingRule(_antithetic, _even),
    "uniform": TimeSamplingRule(_uniform, _even),
    "stratified": TimeSamplingRule(_stratified, _even),
    "continuous": TimeSamplingRule(_continuous, _even, is_continuous=True),
    "lognormal": TimeSamplingRule(_lognormal, _lognormal_quantile, is_continuous=True, needs_real_levels=True),
    "logitnormal": TimeSamplingRule(_logitnormal, _logitnormal_quantile, is_continuous=True),
}

# Distance of the values of two images.
LOSSES: dict[str, Callable[[jax.Array], jax.Array]] = {"mse": jnp.square, "mae": jnp.abs}

# Over the values of an image.
REDUCTIONS: dict[str, Callable[..., jax.Array]] = {"mean": jnp.mean, "sum": jnp.sum}


def example_loss(output: jax.Array, target: jax.Array, loss: Loss = "mse", reduction: Reduction = "mean") -> jax.Array:
    """Distance between output and target of each example: float32 [n].

    Args:
        output: [n, h, w, c], any float dtype.
        target: like output.
        loss: ``mse`` (squared) or ``mae`` (absolute difference).
        reduction: over h, w and c: ``mean`` (DDPM's code) or ``sum`` (DDIM's code). With Adam the factor between them
            hardly matters, unless gradients are clipped: to the same norm, sums are cut almost always.

    Raises:
        UserError: an unknown loss or reduction.
    """
    distance, reduce = lookup(LOSSES, loss, "loss"), lookup(REDUCTIONS, reduction, "loss reduction")
    difference = output.astype(jnp.float32) - target.astype(jnp.float32)
    return reduce(distance(difference), tuple(range(1, difference.ndim)))


def min_snr_weight(alpha_bar: jax.typing.ArrayLike, objective: Objective, gamma: float) -> jax.Array:
    """Min-SNR weights (Hang et al. 2023): levels with little noise shall not rule the training.

    On the error of the clean image the weight is min(SNR, gamma), SNR = alpha_bar / (1 - alpha_bar). Errors of the
    other targets are the same error times a known factor, so that their weights follow:

    - ``x0``: min(SNR, gamma).
    - ``eps``: |eps - ε̂|² = SNR |x_0 - x̂0|², hence min(SNR, gamma) / SNR = min(1, gamma / SNR).
    - ``v``: |v - v̂|² = (SNR + 1) |x_0 - x̂0|², hence min(SNR, gamma) / (SNR + 1), which is
      min(alpha_bar, gamma (1 - alpha_bar)).
    - ``flow``: that of v, divided by (sqrt(alpha_bar) + sqrt(1 - alpha_bar))².

    Args:
        alpha_bar: scalar or [n], in (0, 1); 0 is possible too.
        objective: a row of ``OBJECTIVES``.
        gamma: positive; the paper uses 5.

    Returns:
        The factor of each example's squared error, like alpha_bar.

    Raises:
        UserError: an unknown objective, or gamma is not positive.
    """
    if not gamma > 0:
        raise UserError(f"min-SNR gamma={gamma}: must be positive; the paper uses 5")
    return lookup(OBJECTIVES, objective, "objective").min_snr(jnp.asarray(alpha_bar), gamma)
