"""From what the network says to what samplers need: the clean image and the noise in the current one.

At noise level t an image is x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps. Knowing x, either of x_0 and eps gives
the other, so a network may be trained to predict either of them, or a mixture (Salimans and Ho 2022, appendix D):

    v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0.

A network may say more, how much noise the step from there should add (Nichol and Dhariwal 2021, section 3.1): its
output has twice as many channels then, and the second half is :attr:`Prediction.fraction`.

Samplers see none of this: they call ``predict(x, row)`` and get both. Clipping is a wrapper around such a function; a
closed-form denoiser of a toy distribution is another such function, which is how samplers are tested.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ddim_jax.diffusion.objectives import OBJECTIVES, Prediction
from ddim_jax.errors import UserError
from ddim_jax.names import Clip, Objective, lookup


class Question(Protocol):
    """The part of a table's row that a prediction depends on: which noise level is asked about."""

    @property
    def time(self) -> Any:
        """What the network is told, a scalar in x's dtype; or [n], a level for each image, in training."""

    @property
    def alpha_bar(self) -> Any:
        """The level's alpha_bar, likewise."""


class Asked(NamedTuple):
    """A question about a noise level for each image.

    Attributes:
        time: what the network is told, [n].
        alpha_bar: of the level, [n].
    """

    time: jax.Array
    alpha_bar: jax.Array


# network(x [n, h, w, c], time [n]) -> output like x, or with channels 2 c; time is in x's dtype.
Network = Callable[[jax.Array, jax.Array], jax.Array]
# The smallest and the largest normalised pixel: numbers, or arrays [c].
Limits = tuple[Any, Any]
# network_input(x, alpha_bar) -> like x; alpha_bar in a shape that multiplies x.
NetworkInput = Callable[[jax.Array, jax.Array], jax.Array]
# predict(x [n, h, w, c], row) -> Prediction; rows of all tables are questions.
Predict = Callable[[jax.Array, Question], Prediction]


def make_predict(
    network: Network,
    objective: Objective,
    clip: Clip = "none",
    percentile: float = 99.5,
    largest: float = math.inf,
    network_input: NetworkInput = lambda x, alpha_bar: x,
    limits: Limits = (-1.0, 1.0),
    learn_variance: bool = False,
) -> Predict:
    """Turns a network into what samplers call.

    Args:
        network: of x [n, h, w, c] and time [n], the same number for all images where the question has one.
        objective: what it was trained to predict, a row of ``OBJECTIVES``.
        clip: see :func:`clipped`.
        percentile: of ``dynamic_threshold``.
        largest: of ``dynamic_threshold``.
        network_input: what the network sees of x, see :meth:`~ddim_jax.diffusion.schedule.Schedule.network_input`.
        limits: see :func:`clipped`.
        learn_variance: whether its output has 2 c channels, the last c being v in [-1, 1], which means the fraction
            (v + 1) / 2. Beyond that range v is not cut, as in OpenAI's code.

    Raises:
        UserError: an unknown objective or clip, or thresholds that cannot be used.
    """
    lookup(OBJECTIVES, objective, "objective")

    def predict(x: jax.Array, row: Question) -> Prediction:
        time = jnp.full(x.shape[0], row.time, x.dtype)
        output = network(network_input(x, per_image(row.alpha_bar, x)), time).astype(x.dtype)
        if not learn_variance:
            return to_prediction(output, x, row.alpha_bar, objective)
        output, v = jnp.split(output, 2, axis=-1)
        return dataclasses.replace(to_prediction(output, x, row.alpha_bar, objective), fraction=(v + 1) / 2)

    return clipped(predict, clip, percentile, largest, limits)


def to_prediction(output: jax.Array, x: jax.Array, alpha_bar: jax.typing.ArrayLike, objective: Objective) -> Prediction:
    """Solves for the clean image and the noise, given the network's output.

    - ``eps``: x̂0 = (x - sqrt(1 - alpha_bar) ε̂) / sqrt(alpha_bar). Not defined at alpha_bar = 0, where x is all noise
      and the noise says nothing about the image (the last level of ``jsd``); the other two are.
    - ``x0``: ε̂ = (x - sqrt(alpha_bar) x̂0) / sqrt(1 - alpha_bar).
    - ``v``: x̂0 = sqrt(alpha_bar) x - sqrt(1 - alpha_bar) v̂ and ε̂ = sqrt(1 - alpha_bar) x + sqrt(alpha_bar) v̂.
    - ``flow``: with s = sqrt(alpha_bar) + sqrt(1 - alpha_bar), x̂0 = (x - sqrt(1 - alpha_bar) û) / s and
      ε̂ = (x + sqrt(alpha_bar) û) / s.

    >>> x = 0.8 * 1.0 + 0.6 * 0.5  # alpha_bar = 0.64, x_0 = 1, eps = 0.5
    >>> x0, eps = to_prediction(jnp.full((1, 1, 1, 1), 0.5), jnp.full((1, 1, 1, 1), x), 0.64, "eps")
    >>> round(float(x0[0, 0, 0, 0]), 4), float(eps[0, 0, 0, 0])
    (1.0, 0.5)

    Args:
        output: [n, ...].
        x: the noisy images, [n, ...].
        alpha_bar: their level's, below 1; a scalar or [n].
        objective: a row of ``OBJECTIVES``.

    Raises:
        UserError: an unknown objective.
    """
    alpha_bar = per_image(alpha_bar, x)
    return lookup(OBJECTIVES, objective, "objective").read(output, x, jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar))


def clipped(
    predict: Predict,
    clip: Clip,
    percentile: float = 99.5,
    largest: float = math.inf,
    limits: Limits = (-1.0, 1.0),
) -> Predict:
    """Keeps predicted clean images inside the range of normalised pixels, [-1, 1] in all published work.

    Projects differ in what becomes of the noise, and results with them:

    - ``none``: no clipping. DDIM's code for its own sampler, and so its published tables.
    - ``keep_eps``: clips x̂0 and leaves ε̂ as it was, so that the two no longer add up to x. The default of diffusers'
      ``DDIMScheduler``.
    - ``rederive_eps``: clips x̂0 and takes as noise what is then left of x, ε̂ = (x - sqrt(alpha_bar) x̂0) /
      sqrt(1 - alpha_bar). DDPM, DDIM's code for σ̂ (``ddpm_noisy``) and OpenAI's improved- and guided-diffusion, which
      write it as the posterior mean of the clipped x̂0; diffusers with ``use_clipped_model_output``.
    - ``dynamic_threshold``: see :func:`dynamically_thresholded`.

    Args:
        predict: the function to wrap.
        clip: one of the four.
        percentile: of ``dynamic_threshold``.
        largest: of ``dynamic_threshold``.
        limits: the smallest and the largest normalised pixel, numbers or one per channel.

    Raises:
        UserError: an unknown clip, or thresholds that cannot be used.
    """
    return lookup(CLIPS, clip, "clip")(predict, percentile, largest, limits)


def _kept_eps(predict: Predict, limits: Limits) -> Predict:
    def keep_eps(x: jax.Array, row: Question) -> Prediction:
        prediction = predict(x, row)
        return dataclasses.replace(prediction, x0=jnp.clip(prediction.x0, *limits))

    return keep_eps


def _rederived_eps(predict: Predict, limits: Limits) -> Predict:
    def rederive_eps(x: jax.Array, row: Question) -> Prediction:
        prediction = predict(x, row)
        return _rederived(prediction, jnp.clip(prediction.x0, *limits), x, row)

    return rederive_eps


def _rederived(prediction: Prediction, x0: jax.Array, x: jax.Array, row: Question) -> Prediction:
    """The prediction with another clean image, and as noise what that leaves of x."""
    return dataclasses.replace(to_prediction(x0, x, row.alpha_bar, "x0"), fraction=prediction.fraction)


def dynamically_thresholded(
    predict: Predict, percentile: float = 99.5, largest: float = math.inf, limits: Limits = (-1.0, 1.0)
) -> Predict:
    """Imagen's dynamic thresholding (Saharia et al. 2022, section 2.3), for strongly guided models.

    Guidance drives pixels out of [-1, 1], and cutting them there leaves flat, saturated pictures. Instead each image is
    cut at s, the percentile of its own absolute pixel values, and divided by s; where s is below 1 this is ordinary
    clipping. ε̂ is derived anew, as in ``rederive_eps``.

    Args:
        predict: the function to wrap.
        percentile: of |x̂0| over an image, above 0 and at most 100. Imagen's text gives no number; 99.5 is usual.
        largest: upper limit of s, 1 or more; diffusers' ``sample_max_value``, whose default of 1 makes all this
            ordinary clipping.
        limits: see :func:`clipped`; s counts from their middle, in units of half their distance.

    Raises:
        UserError: a percentile or limit that cannot be used.
    """
    if not 0 < percentile <= 100:
        raise UserError(f"dynamic threshold at percentile {percentile}: choose a number above 0 and at most 100")
    if not largest >= 1:
        raise UserError(f"dynamic threshold of at most {largest}: the limit must be 1 or more")

    def thresholded(x: jax.Array, row: Question) -> Prediction:
        prediction = predict(x, row)
        x0 = prediction.x0
        low, high = (jnp.asarray(limit, x0.dtype) for limit in limits)
        middle, reach = (low + high) / 2, (high - low) / 2
        size = jnp.percentile(jnp.abs((x0 - middle) / reach).reshape(len(x0), -1), percentile, axis=1)
        size = per_image(jnp.clip(size, 1, largest), x0)
        within = jnp.clip((x0 - middle) / reach, -size, size) / size
        return _rederived(prediction, middle + reach * within, x, row)

    return thresholded


def per_image(values: jax.typing.ArrayLike, images: jax.Array) -> jax.Array:
    """Shapes a scalar or one value per image, [n], so that it multiplies images [n, h, w, c]."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (images.ndim - 1) * values.ndim)


# From predict, the percentile and the largest threshold of dynamic thresholding, and the limits of pixels, to a predict
# that clips.
CLIPS: dict[str, Callable[[Predict, float, float, Limits], Predict]] = {
    "none": lambda predict, percentile, largest, limits: predict,
    "keep_eps": lambda predict, percentile, largest, limits: _kept_eps(predict, limits),
    "rederive_eps": lambda predict, percentile, largest, limits: _rederived_eps(predict, limits),
    "dynamic_threshold": dynamically_thresholded,
}
