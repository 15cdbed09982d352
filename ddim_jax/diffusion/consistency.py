"""Consistency models: a network that leads from any noisy image to the end of its flow, in one step.

The flow (the differential equation that DDIM solves, ``solvers.py``) leads each noisy image x_t to one clean image. The
**consistency function** (Song et al. 2023, "Consistency Models") names it,

    f(x_t, t) = where the flow from x_t ends,

and two things make it that: f(x, 0) = x, the boundary condition, and f(x_t, t) = f(x_r, r) for all x_t and x_r on the
same way. Here f is x̂0 as the objective reads it from the network's output (``objectives.py``), so that a consistency
model is a network like any other, asked by the same samplers. At alpha_bar = 1 that is x itself for v, eps and flow,
whatever the network says: x̂0 = sqrt(alpha_bar) x - sqrt(1 - alpha_bar) v̂ for v, which is EDM's network but for the
sign of its output. A network that predicts x0 knows of no boundary (:func:`check_objective`).

Training draws a level t and a cleaner one r (:func:`draw_pairs`), and pulls f(x_t, t) to f(x_r, r), which is taken as
given; where r is the clean image that is x_r, by the boundary condition. So truth enters at the cleanest levels, and
wanders up to the noisiest. There are two ways to x_r, and both are ``diffuse`` of a clean image and a noise to level r:

- **easy consistency tuning** (Geng et al. 2024, "Consistency Models Made Easy", ECT; no teacher): of the image and the
  noise that x_t was made of. With r = 0 this is the training of a denoiser, so one begins with a trained one, far
  pairs, and brings t and r together in stages.
- **consistency distillation** (Song et al. 2023, algorithm 2): of those that a teacher sees in x_t, which is a step of
  DDIM from t to r.

What is learned if levels and r of t are fixed: by distillation the teacher's own DDIM along t, r(t), r(r(t)) ... 0, in
one step; by tuning, with squared distances, f(x_t) = E[f(x_r) | x_t], which is the same where f is linear in x and the
teacher is ideal, for E[x_r | x_t] is then its step. Both tend to the flow as gaps shrink.

>>> from ddim_jax.diffusion import Prediction, make_schedule
>>> schedule = make_schedule("linear")
>>> pairs = draw_pairs(schedule, jax.random.key(0), jnp.arange(3), stage=3, sigma_data=1.0)
>>> def student(x, row):  # data that are 0 everywhere: the flow from anywhere ends there
...     return Prediction(x0=0 * x, eps=x)
>>> x0, eps = jnp.zeros((3, 2, 2, 1)), jnp.ones((3, 2, 2, 1))
>>> consistency_loss(student, x0, eps, *ask(schedule, pairs), pairs.gap, huber_constant(4)).tolist()
[0.0, 0.0, 0.0]
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.diffusion.losses import diffuse
from ddim_jax.diffusion.objectives import OBJECTIVES
from ddim_jax.diffusion.prediction import Asked, Predict, Question, per_image
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.errors import UserError
from ddim_jax.names import Objective, lookup
from ddim_jax.random_streams import fold_in_each

# EDM's largest sigma, where its sampling and that of ECT begin, on images in [-1, 1]: what level T counts as where it
# has more, or is pure noise.
_PURE_NOISE = 80.0
# How often an example is at level T then, where all sampling begins.
_SHARE_OF_PURE_NOISE = 1 / 32
# The smallest gap as a share of t: in any later stage float32 could not tell t and r apart.
_SMALLEST_SHARE = 2.0**-20


class LevelPairs(NamedTuple):
    """Two levels of each image's way, [n] each.

    Attributes:
        level: t, int32, or float32 in schedules with real levels; above 0.
        level_next: r, likewise, below it; 0 is the clean image.
        gap: float32, by how much the noise to signal sqrt((1 - alpha_bar) / alpha_bar) of the first is larger, above 0.
            Where the first is pure noise, which has no end of it, that of the second; if this is clean, sigma = 80.
    """

    level: jax.Array
    level_next: jax.Array
    gap: jax.Array


def check_objective(objective: Objective) -> None:
    """Refuses networks whose x̂0 at the clean image is not the image itself.

    >>> check_objective("v")

    Raises:
        UserError: such an objective, or an unknown one.
    """
    lookup(OBJECTIVES, objective, "objective")
    if not _keeps_clean_images(objective):
        fitting = ", ".join(name for name in OBJECTIVES if _keeps_clean_images(name))
        raise UserError(
            f"objective '{objective}' cannot be a consistency model: at level 0 its answer is not the image itself, "
            f"where all of consistency begins; choose a network with {fitting}"
        )


def _keeps_clean_images(objective: str) -> bool:
    """Whether the objective reads an image without noise as itself, whatever the network's output."""
    image, output = jnp.array(0.25), jnp.array(3.0)
    return bool(OBJECTIVES[objective].read(output, image, 1.0, jnp.array(0.0)).x0 == image)


def draw_pairs(
    schedule: Schedule,
    key: jax.Array,
    index: jax.Array,
    stage: int | jax.Array = 0,
    sigma_data: float = 0.5,
    mean: float = -1.1,
    std: float = 2.0,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
) -> LevelPairs:
    """Draws for each example a level t and the cleaner r that its answer shall agree with.

    As in ECT (Geng et al. 2024), whose numbers for CIFAR-10 are the defaults; t and r are sigmas there, the noise to
    signal of images in [-1, 1]:

        ln t ~ N(mean, std²),    r = t max(0, 1 - n(t) / q^(stage + 1)),    n(t) = 1 + k / (1 + exp(b t)).

    In stage 0 of the defaults r = 0 up to t = ln 7, and t / 2 for large t; each further stage halves the gap. ECT's
    code goes on to the next stage after every so many images; its run of one hour has one stage of q = 256.

    With real levels t and r are what was drawn. With whole ones both are rounded to the nearest in log SNR, t first,
    and r at least one below it, so that r is a function of t and the stage. Where level T is pure noise, or
    noisier than EDM's sigma of 80, as in ``cosine`` and ``linear``, hardly any sigma leads there; since sampling begins
    there, one example in 32 is given it, with r as for sigma = 80.

    A pair is a function of the key and the example's position in the global batch.

    >>> from ddim_jax.diffusion import make_schedule
    >>> pairs = draw_pairs(make_schedule("edm"), jax.random.key(0), jnp.arange(1000), stage=7)
    >>> bool(jnp.all((pairs.level_next < pairs.level) & (pairs.level_next > 0)))
    True

    Args:
        schedule: the levels.
        key: of this training step.
        index: int [n], positions in the global batch.
        stage: from 0; may be traced.
        sigma_data: by what images in [-1, 1] were divided: that of schedule ``edm``, whose images have variance 1; 1
            where images are in [-1, 1].
        mean: of ln t.
        std: of ln t.
        q: by how much each stage brings t and r together.
        k: n is 1 + k / 2 at t = 0, and falls to 1.
        b: how fast it falls, by about t = 1 / b.
    """
    keys = fold_in_each(key, index)
    normal = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (), jnp.float32))(keys)
    log_noise = mean + std * normal - math.log(sigma_data)
    is_pure = jnp.zeros(index.shape, bool)
    pure = _PURE_NOISE / sigma_data
    ends_in_noise = _ends_in_noise(schedule, pure)
    if ends_in_noise:
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (), jnp.float32))(keys)
        is_pure = uniform < _SHARE_OF_PURE_NOISE

    def share_of_gap(noise: jax.Array) -> jax.Array:
        """(t - r) / t."""
        distance = 1 + k * jax.nn.sigmoid(-b * sigma_data * noise)
        share = distance * jnp.power(jnp.float32(q), -(jnp.asarray(stage, jnp.float32) + 1))
        return jnp.clip(share, _SMALLEST_SHARE, 1)

    if schedule.has_real_levels:
        noise = jnp.where(is_pure, pure, jnp.exp(log_noise))
        share = share_of_gap(noise)
        noise_next = noise * (1 - share)
        level = jnp.where(is_pure, schedule.num_levels, schedule.level_at(-2 * log_noise))
        # Strictly below also where float32 rounds both to one number.
        level_next = jnp.minimum(_level_of_noise(schedule, noise_next), jnp.nextafter(level, 0))
        gap = noise * share
    else:
        noises = _noises(schedule, pure)
        level = jnp.where(is_pure, schedule.num_levels, _nearest_level(schedule, log_noise))
        noise = jnp.asarray(noises, jnp.float32)[level]
        wanted = noise * (1 - share_of_gap(noise))
        nearest = jnp.minimum(_nearest_level(schedule, jnp.log(jnp.where(wanted > 0, wanted, 1))), level - 1)
        level_next = jnp.where(wanted > 0, nearest, 0)
        noise_next = jnp.asarray(noises, jnp.float32)[level_next]
        gap = noise - noise_next
        is_pure = (level == schedule.num_levels) & ends_in_noise
    return LevelPairs(level, level_next, jnp.where(is_pure, jnp.where(noise_next > 0, noise_next, noise), gap))


def _level_of_noise(schedule: Schedule, noise: jax.Array) -> jax.Array:
    """The real level of a noise to signal; 0 for none."""
    level = schedule.level_at(-2 * jnp.log(jnp.where(noise > 0, noise, 1)))
    return jnp.where(noise > 0, level, 0)


def _noises(schedule: Schedule, pure: float) -> np.ndarray:
    """Noise to signal of the whole levels, float64 [T + 1]; of level T no more than that of pure noise."""
    log_snr = schedule.log_snr.copy()
    log_snr[-1] = max(log_snr[-1], -2 * math.log(pure))
    return np.exp(-log_snr / 2)


def _ends_in_noise(schedule: Schedule, pure: float) -> bool:
    """Whether level T is pure noise, or has more than any sigma that is drawn; EDM's own largest is not among these."""
    return bool(schedule.log_snr[-1] < -2 * math.log(1.001 * pure))


def _nearest_level(schedule: Schedule, log_noise: jax.Array) -> jax.Array:
    """The nearest whole level in log SNR: int32, in 1 ... T, not pure noise if there are others."""
    log_snr = schedule.log_snr[1:]
    log_noises = -log_snr[np.isfinite(log_snr)] / 2
    middles = jnp.asarray((log_noises[:-1] + log_noises[1:]) / 2, jnp.float32)
    return 1 + jnp.searchsorted(middles, log_noise).astype(jnp.int32)


def ask(schedule: Schedule, pairs: LevelPairs) -> tuple[Asked, Asked]:
    """What networks need to know of both levels of pairs; of level 0, where nobody listens, the time is some number."""
    return _levels(schedule, pairs.level), _levels(schedule, pairs.level_next)


def _levels(schedule: Schedule, level: jax.Array) -> Asked:
    noisy = level > 0
    alpha_bar, time = schedule.at(jnp.where(noisy, level, 1))
    return Asked(time, jnp.where(noisy, alpha_bar, 1))


def huber_constant(num_values: int, sigma_data: float = 1.0) -> float:
    """The c of :func:`distance`, in proportion to what an error of each value adds up to.

    0.00054 sqrt(number of values) on images in [-1, 1] (Song and Dhariwal 2024, "Improved Techniques for Training
    Consistency Models", section 3.3): 0.03 for CIFAR-10, 0.06 for ImageNet at 64 x 64.

    >>> round(huber_constant(32 * 32 * 3), 4), round(huber_constant(64 * 64 * 3), 4)
    (0.0299, 0.0599)

    Args:
        num_values: h w c.
        sigma_data: see :func:`draw_pairs`.
    """
    return 0.00054 * math.sqrt(num_values) / sigma_data


def distance(difference: jax.Array, gap: jax.Array, c: float) -> jax.Array:
    """How far two answers about one way are apart, as training sees it: float32 [n] (or float64).

        (sqrt(|difference|² + c²) - c) / gap,

    the pseudo-Huber distance (Song and Dhariwal 2024): the length where it is far above c, so that single large errors
    of the noisiest levels do not rule the rest, and a square below, whose gradient is finite at 0. Answers differ in
    proportion to the gap, which the weight 1 / (t - r) takes out, so that the loss of one stage compares with that of
    another (there, and in the first code of ECT). The later code weighs by 1 / t² + 1 / sigma_data², whatever r is,
    and its losses shrink from stage to stage; not done here.

    ECT's code has c = 0 unless told otherwise: the length, whose gradient has no limit where two answers agree.

    >>> distance(jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([2.0, 0.5]), c=1e-6).round(3).tolist()
    [2.5, 0.0]

    Args:
        difference: [n, ...].
        gap: [n], see :class:`LevelPairs`.
        c: above 0, see :func:`huber_constant`.

    Raises:
        UserError: c is not above 0.
    """
    if not (c > 0 and math.isfinite(c)):
        raise UserError(
            f"consistency's pseudo-Huber constant c={c}: must be above 0; huber_constant says the usual one"
        )
    difference = difference.astype(jnp.promote_types(difference.dtype, jnp.float32))
    squares = jnp.sum(jnp.square(difference), tuple(range(1, difference.ndim)))
    # sqrt(s + c²) - c, without the digits that the difference would lose where s is small.
    return squares / (jnp.sqrt(squares + c**2) + c) / gap


def consistency_target(student: Predict, x_next: jax.Array, levels_next: Question) -> jax.Array:
    """What f(x_t, t) shall be: f(x_r, r), which is x_r itself where that is clean. No gradient passes through.

    Args:
        student: what learns, without a limit on x̂0 (``clip`` of ``make_predict``).
        x_next: x_r, [n, h, w, c].
        levels_next: r, one for each image.
    """
    clean = per_image(levels_next.alpha_bar, x_next) == 1
    return jax.lax.stop_gradient(jnp.where(clean, x_next, student(x_next, levels_next).x0))


def consistency_loss(
    student: Predict,
    x0: jax.Array,
    eps: jax.Array,
    levels: Question,
    levels_next: Question,
    gap: jax.Array,
    c: float,
    teacher: Predict | None = None,
) -> jax.Array:
    """The loss of each example: float32 [n] (float64 if images are).

    The student is asked twice, about x_t and x_r; both answers should come with the same dropout mask (Song and
    Dhariwal 2024, section 3.1), as they do if the function has its random key within.

    Args:
        student: what learns, without a limit on x̂0.
        x0: clean images, [n, h, w, c].
        eps: standard normal, like x0.
        levels: t, one for each image, see :func:`ask`.
        levels_next: r, below it.
        gap: [n], see :class:`LevelPairs`.
        c: see :func:`distance`.
        teacher: for consistency distillation; None for easy consistency tuning.
    """
    x = diffuse(x0, eps, levels.alpha_bar)
    known = (x0, eps) if teacher is None else teacher(x, levels)
    target = consistency_target(student, diffuse(known[0], known[1], levels_next.alpha_bar), levels_next)
    return distance(student(x, levels).x0 - target, gap, c)
