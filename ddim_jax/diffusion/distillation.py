"""Progressive distillation: a student that makes two of its teacher's steps in one, and becomes the next teacher.

Salimans and Ho (2022), algorithm 2. DDIM with eta = 0 goes from level t by way of t' to t'' (alpha = sqrt(alpha_bar),
sigma = sqrt(1 - alpha_bar) of each). Divided by sigma, its step is a sum,

    x' / sigma' = x / sigma + (h' - h) x̂0(x, t),    h = alpha / sigma,

since along the probability flow d(x / sigma) = x̂0 dh. Two steps of the teacher, with its predictions x̂0 at t and x̂0'
at t', therefore end where one step would, with the prediction

    x̃0 = (h' - h) / (h'' - h) x̂0 + (h'' - h') / (h'' - h) x̂0'.

That mean of the teacher's two images is what the student is to predict at t. The paper solves
x'' = alpha'' x̃0 + sigma'' (x - alpha x̃0) / sigma for it, which is the same number, but a quotient of small differences
where steps are short; the weights here are known before anything is drawn, in float64. Where the step ends at the clean
image h'' is infinite, and the target is x̂0'.

The student is asked at every other level of its teacher, with the loss (their section 4, "truncated SNR")

    max(SNR, 1) |x̃0 - x̂0|²,    SNR = alpha² / sigma²,

or "SNR + 1", which is the squared error of v. At high noise, where few steps begin, |x̂0|² counts in full; the loss of
eps would be nearly blind there, and an image that is implied by a predicted eps, (x - sigma eps) / alpha, is divided by
almost nothing. So students predict v, x0 or flow.

Of Gaussian data the ideal student is known: x̂0 is linear in x, so two steps are a linear map, and so is a student's one
step, whatever the round; after R rounds it is the composition of the 2^R DDIM steps that it stands for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.diffusion.objectives import Prediction
from ddim_jax.diffusion.prediction import Asked, Predict, per_image
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.solvers import rates
from ddim_jax.errors import UserError
from ddim_jax.names import DistillWeight, lookup
from ddim_jax.random_streams import fold_in_each

# Float64 [rows] of NumPy; in a compiled program, float32 of JAX.
Column = Any


class TwoSteps(NamedTuple):
    """The teacher's steps that a student makes in one: a row for each of its S steps, then padding.

    Attributes:
        time: what networks are told where the step begins.
        alpha_bar: of that level.
        middle_time: what the teacher is told where its second step begins.
        middle_alpha_bar: of that level.
        keep: factor of x in what the teacher's first step makes of it.
        weight: factor of its first predicted image there.
        share: of that image in the target; the second one's is 1 less this.
    """

    time: Column
    alpha_bar: Column
    middle_time: Column
    middle_alpha_bar: Column
    keep: Column
    weight: Column
    share: Column


def two_steps(schedule: Schedule, pairs: np.ndarray) -> TwoSteps:
    """Puts every two of a teacher's steps together.

    >>> from ddim_jax.diffusion import level_pairs, make_schedule
    >>> steps = two_steps(make_schedule("cosine"), level_pairs(np.array([1000, 750, 500, 250])))
    >>> steps.middle_time.tolist(), round(float(steps.share[0]), 3), float(steps.share[1])  # the last one ends at 0
    ([749.0, 249.0], 0.416, 0.0)

    Args:
        schedule: the noise levels.
        pairs: [2 S, 2], the teacher's, a falling chain; see :func:`~ddim_jax.diffusion.spacing.level_pairs`.

    Raises:
        UserError: an odd number of steps.
    """
    if len(pairs) % 2:
        raise UserError(f"{len(pairs)} steps cannot be halved: start from a multiple of 2 for each round")
    begin, middle, end = pairs[::2, 0], pairs[::2, 1], pairs[1::2, 1]
    (alpha, sigma), (middle_alpha, middle_sigma) = rates(schedule, begin), rates(schedule, middle)
    h, middle_h, end_h = (np.exp(schedule.log_snr_at(level) / 2) for level in (begin, middle, end))
    return TwoSteps(
        time=np.asarray(schedule.time_input(begin), np.float64),
        alpha_bar=alpha**2,
        middle_time=np.asarray(schedule.time_input(middle), np.float64),
        middle_alpha_bar=middle_alpha**2,
        keep=middle_sigma / sigma,
        weight=middle_alpha - alpha * middle_sigma / sigma,
        share=(middle_h - h) / (end_h - h),
    )


def single_steps(schedule: Schedule, pairs: np.ndarray) -> TwoSteps:
    """A teacher's steps as they are, for a student that predicts something else first: the target is x̂0."""
    alpha, _ = rates(schedule, pairs[:, 0])
    time, alpha_bar = np.asarray(schedule.time_input(pairs[:, 0]), np.float64), alpha**2
    ones = np.ones(len(pairs))
    return TwoSteps(time, alpha_bar, time, alpha_bar, keep=ones, weight=0 * ones, share=ones)


def padded_to(steps: TwoSteps, rows: int) -> TwoSteps:
    """The same steps in tables of more rows, so that rounds with fewer of them are the same program."""
    return TwoSteps(*(np.pad(column, (0, rows - len(column)), mode="edge") for column in steps))


def draw_steps(key: jax.Array, index: jax.Array, batch_size: int, count: jax.Array) -> jax.Array:
    """Draws which of S steps each example of a batch learns: int32 [n], in 0 ... S - 1.

    Example i draws from the i-th of ``batch_size`` equal parts of the range, as ``stratified`` levels do.

    Args:
        key: of this training step.
        index: int [n], positions in the global batch.
        batch_size: size of the global batch.
        count: S, which may be traced.
    """
    within = jax.vmap(lambda key: jax.random.randint(key, (), 0, count, jnp.int32))(fold_in_each(key, index))
    return (count * index + within) // batch_size


def target_image(teacher: Predict, x: jax.Array, steps: TwoSteps, is_single: bool = False) -> jax.Array:
    """x̃0, the image by which one step gets to where two of the teacher's do.

    Args:
        teacher: its predictions.
        x: [n, h, w, c].
        steps: of each image, [n]; see :func:`rows_of`.
        is_single: whether the steps are of :func:`single_steps`, so that the teacher is asked once.

    Returns:
        Like x, without gradient.
    """
    first = teacher(x, Asked(steps.time, steps.alpha_bar)).x0
    if is_single:
        return jax.lax.stop_gradient(first)
    keep, weight, share = (per_image(value, x) for value in (steps.keep, steps.weight, steps.share))
    second = teacher(keep * x + weight * first, Asked(steps.middle_time, steps.middle_alpha_bar)).x0
    return jax.lax.stop_gradient(share * first + (1 - share) * second)


def rows_of(steps: TwoSteps, which: jax.Array) -> TwoSteps:
    """The rows of a table, [n], that examples have drawn."""
    return TwoSteps(*(jnp.asarray(column, jnp.float32)[which] for column in steps))


def distillation_loss(
    prediction: Prediction, target: jax.Array, alpha_bar: jax.Array, weight: DistillWeight = "truncated_snr"
) -> jax.Array:
    """The weighted squared error of the student's image: float32 [n], a mean over the values of each.

    Args:
        prediction: the student's, of [n, h, w, c].
        target: from :func:`target_image`.
        alpha_bar: [n], of the level that the student was asked about.
        weight: a row of ``DISTILL_WEIGHTS``.

    Raises:
        UserError: an unknown weight.
    """
    weigh = lookup(DISTILL_WEIGHTS, weight, "distill.weight")
    error = jnp.square(prediction.x0.astype(jnp.float32) - target.astype(jnp.float32))
    return weigh(alpha_bar) * jnp.mean(error, tuple(range(1, error.ndim)))


# From alpha_bar to the weight of the squared error of the image.
DISTILL_WEIGHTS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "truncated_snr": lambda alpha_bar: jnp.maximum(alpha_bar / (1 - alpha_bar), 1),
    "snr_plus_one": lambda alpha_bar: 1 / (1 - alpha_bar),
}
