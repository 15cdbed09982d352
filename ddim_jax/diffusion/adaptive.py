"""Levels chosen by a tolerance: short steps where the network's answers change, long ones where they do not.

A solver that adapts its steps to each image asks the network a number of times that nobody knows beforehand, and in a
batch all wait for the slowest. But what decides the steps is the distribution more than the image. So they are chosen
once, on some images, and then kept: the sampler that visits them is a table like any other, of any order, with a fixed
number of evaluations, and image i stays image i.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.diffusion.prediction import Predict
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.solvers import asking_image, rates
from ddim_jax.diffusion.table import SamplerTable
from ddim_jax.errors import UserError

# Of Söderlind's and others' controllers of step sizes: a little less than the estimate, and no wild changes.
_SAFETY, _LEAST_FACTOR, _LARGEST_FACTOR = 0.9, 0.2, 5.0
# In lambda, half the log of the signal-to-noise ratio. Over longer steps both ends may agree and the middle may not:
# what is nearly all noise and what was denoised in one go look the same to the network.
_FIRST_STEP, _LONGEST_STEP = 0.5, 1.5
_MOST_STEPS = 10_000


def adaptive_levels(predict: Predict, x: jax.Array, schedule: Schedule, tolerance: float) -> np.ndarray:
    """Chooses levels from the noisiest to level 1, such that each step of DDIM between them is off by the tolerance.

    From each level, DDIM's step (the Euler step of x̂0 in alpha / sigma) and Heun's, with the mean of x̂0 at both ends,
    are tried; their difference, a root mean square over all pixels of all images, estimates the error of the first.
    Where it is above the tolerance the step is tried again, shorter; else Heun's is taken, and its end noted. The
    length of the next one follows from the error being proportional to its square.

    >>> from ddim_jax.diffusion import Prediction, make_schedule
    >>> schedule = make_schedule("vp")
    >>> def predict(x, row):  # of images that are one of two points
    ...     s, n = jnp.sqrt(row.alpha_bar), jnp.sqrt(1 - row.alpha_bar)
    ...     x0 = jnp.tanh(x * s / n**2)
    ...     return Prediction(x0, (x - s * x0) / n)
    >>> x = jax.random.normal(jax.random.key(0), (8, 2, 2, 1))
    >>> coarse, fine = (adaptive_levels(predict, x, schedule, tolerance) for tolerance in (0.1, 0.01))
    >>> len(coarse) < len(fine)
    True

    Args:
        predict: see ``prediction.py``.
        x: [n, h, w, c], at the noisiest level, see :func:`~ddim_jax.diffusion.samplers.initial_noise`.
        schedule: the noise levels. Whole levels are chosen where it has no others.
        tolerance: of a step, in units of x, whose pixels have variance 1.

    Returns:
        Levels, noisiest first, float64 or, where they are whole, int64.

    Raises:
        UserError: the tolerance is not positive, or so small that steps would be without number.
    """
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise UserError(f"tolerance={tolerance}: must be a positive number, such as 0.05")

    @jax.jit
    def attempt(x: jax.Array, begin: SamplerTable, end: SamplerTable, keep: jax.Array, weight: jax.Array):  # noqa: ANN202
        image = predict(x, begin).x0
        euler = keep * x + weight * image
        heun = keep * x + weight * (image + predict(euler, end).x0) / 2
        return heun, jnp.sqrt(jnp.mean(jnp.square(heun - euler)))

    levels = [_noisiest(schedule)]
    length = _FIRST_STEP
    while levels[-1] > 1:
        if len(levels) > _MOST_STEPS:
            raise UserError(f"tolerance={tolerance:g} asks for more than {_MOST_STEPS:,} steps; choose a larger one")
        level_next = _level_after(schedule, levels[-1], length)
        (alpha, sigma), (alpha_next, sigma_next) = rates(schedule, levels[-1]), rates(schedule, level_next)
        keep = sigma_next / sigma
        rows = [
            asking_image(schedule, 0, level)._replace(correction=0.0, weights=0.0) for level in (levels[-1], level_next)
        ]
        following, error = attempt(x, *rows, keep, alpha_next - keep * alpha)
        factor = _SAFETY * np.sqrt(tolerance / max(float(error), 1e-30))
        is_shortest = not schedule.has_real_levels and level_next == levels[-1] - 1
        if error <= tolerance or is_shortest:
            x = following
            levels.append(level_next)
        length = min(_LONGEST_STEP, length * float(np.clip(factor, _LEAST_FACTOR, _LARGEST_FACTOR)))
    return np.array(levels)


def _noisiest(schedule: Schedule) -> float:
    """Level T or, where that is infinitely far, the one before it, of the schedule's kind."""
    level = schedule.num_levels - schedule.ends_in_noise
    return float(level) if schedule.has_real_levels else int(level)


def _level_after(schedule: Schedule, level: float, length: float) -> float:
    """The level that lies further on by a length in lambda, level 1 at the least."""
    wanted = float(schedule.log_snr_at(level)) + 2 * length
    if schedule.has_real_levels:
        return max(1.0, float(schedule.level_at(wanted)))
    below = schedule.log_snr[1 : int(level)]
    return 1 + int(np.argmin(np.abs(below - wanted)))
