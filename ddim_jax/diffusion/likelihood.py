"""How probable a model finds an image, in bits per dimension.

An image of D values (h times w times c) with probability P costs -log2(P) / D bits per value to store with a perfect
code for the model; 8 bits are what it costs without one. There are two ways to such a number, since a diffusion model
is two models in one:

- DDPM's chain of T small noisy steps. Its probability of an image cannot be computed, but bounded, by
  :func:`variational_bound`: never too optimistic on average.
- The probability flow, the curves that DDIM follows with eta = 0. It maps noise to images one to one, so a density
  follows from that of the noise and from how much the flow stretches space: :func:`ode_log_density`. That is exact
  for infinitely small steps, but a density of floats; :func:`ode_bits_per_dim` makes images of 256 levels into floats
  by uniform noise, which turns it into a bound on the probability of the image, too.

The two are different models of the same network, and their bits differ (Song et al. 2021, "score SDE", table 2).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from ddim_jax.diffusion.losses import diffuse
from ddim_jax.diffusion.prediction import Predict, Prediction, Question, per_image
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.table import Column
from ddim_jax.errors import UserError
from ddim_jax.names import Variance, check
from ddim_jax.pixels import Normalization, scaled, to_float
from ddim_jax.random_streams import fold_in_each, normal_each

# --- the variational bound ----------------------------------------------------------------------


class BoundTable(NamedTuple):
    """What the bound needs to know of each level, the first row being level 1.

    The step down from level t draws from a Gaussian whose mean is off by a multiple of x_0 - x̂0. With these numbers
    its divergence from the true posterior is ``constant + factor (x_0 - x̂0)²`` for each value of an image.

    Attributes:
        time: what the network is told.
        alpha_bar: of the level.
        deviation: of the noise that the step from there adds; at level 1 that of the decoder.
        constant: in nats; 0 at level 1, where the decoder takes over.
        factor: in nats; likewise.
        chance: of being drawn where not all levels are asked; likewise, and 1 in all. Half of it is spread evenly over
            the levels and half over the log of their noise, log(1 - alpha_bar): most bits lie where noise is low.
        log_range: by how much the network may raise the variance, as the logarithm of a factor, which changes the
            other numbers (:func:`step_kl`); None where the variance is not the network's to say.
    """

    time: Column
    alpha_bar: Column
    deviation: Column
    constant: Column
    factor: Column
    chance: Column
    log_range: Column | None = None


class Bound(NamedTuple):
    """The variational bound's terms, in bits per dimension (Ho et al. 2020, eq. 5).

    Attributes:
        prior: [n], L_T: what x_T still tells about the image. Independent of the network; should be nearly 0.
        kl: [n, K], L_{t-1} for the levels asked, noisiest first. With all levels column k belongs to level T - k;
            otherwise each is weighted so that their sum is an unbiased estimate of the sum over all levels.
        decoder: [n], L_0: the cost of the exact pixels once x_1 is known.
    """

    prior: jax.Array
    kl: jax.Array
    decoder: jax.Array

    @property
    def total(self) -> jax.Array:
        """[n], the bound."""
        return self.prior + jnp.sum(self.kl, axis=1) + self.decoder


def bound_table(schedule: Schedule, variance: Variance = "small") -> BoundTable:
    """The bound of DDPM's reverse process on all T levels.

    The forward process, run backwards with x_0 known, is Gaussian (Ho et al. 2020, eq. 6 and 7):

        q(x_{t-1} | x_t, x_0) = N(f x_0 + g x_t, v),
        f = sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t),    v = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t.

    The model puts x̂0 for x_0, and may choose a variance s. Its divergence, eq. 8 with the constant written out, is

        KL = (log(s / v) - 1 + v / s) / 2 + f² (x_0 - x̂0)² / (2 s).

    Args:
        schedule: the noise levels.
        variance: of the model: ``small``, s = v, or ``large``, s = beta_t, DDPM's choice for CIFAR-10. (The best s
            would be v + f² E[(x_0 - x̂0)²], which tells how they compare for a network.) At level 1, where v = 0, both
            take the v of level 2, as DDPM's code does. ``learned`` leaves the choice between the two to the network,
            for each value of an image (Nichol and Dhariwal 2021, eq. 15), at level 1 between the v of level 2 and
            beta_1: the other columns are those of ``small`` then.

    Returns:
        float64 columns [T].

    Raises:
        UserError: an unknown variance.
    """
    check(Variance, variance, "variance")
    alpha_bar, cleaner = schedule.alpha_bar[1:], schedule.alpha_bar[:-1]
    beta = schedule.beta
    posterior = beta * (1 - cleaner) / (1 - alpha_bar)
    chosen = (beta if variance == "large" else posterior).copy()
    chosen[0] = posterior[1] if len(beta) > 1 else beta[0]
    ratio = np.divide(posterior, chosen)
    ratio[0] = 1  # no divergence is asked for at level 1
    factor = cleaner * (beta / (1 - alpha_bar)) ** 2 / (2 * chosen)
    factor[0] = 0
    rise = np.diff(np.log(1 - alpha_bar))
    chance = np.append(0, (rise / np.sum(rise) + np.full_like(rise, 1 / max(1, len(rise)))) / 2)
    return BoundTable(
        time=schedule.time_input(np.arange(1, schedule.num_levels + 1)).astype(np.float64),
        alpha_bar=alpha_bar,
        deviation=np.sqrt(chosen),
        constant=(ratio - 1 - np.log(ratio)) / 2,
        factor=factor,
        chance=chance,
        log_range=np.log(beta / chosen) if variance == "learned" else None,
    )


def step_kl(x0: jax.Array, guess: jax.Array, row: BoundTable, fraction: jax.Array | None = None) -> jax.Array:
    """What a step costs: its divergence from the true posterior, in nats per value, averaged over each image: [n].

    A learned variance is s = v e^g, g = fraction log_range, for each value. With the ``constant`` 0 and the ``factor``
    of s = v, which are in the row,

        KL = (g - 1 + e^-g) / 2 + factor e^-g (x_0 - x̂0)².

    Args:
        x0: [n, h, w, c].
        guess: x̂0, like x0.
        row: of :func:`bound_table`, columns [n].
        fraction: like x0; needed where the row has a ``log_range``.
    """
    squared = jnp.square(x0 - guess)
    if row.log_range is None:
        return row.constant + row.factor * _image_mean(squared)
    growth = _log_growth(fraction, row)
    factor = per_image(row.factor, x0)
    return _image_mean((growth + jnp.expm1(-growth)) / 2 + factor * jnp.exp(-growth) * squared)


def _log_growth(fraction: jax.Array | None, row: BoundTable) -> jax.Array:
    """The logarithm of s / v, like fraction."""
    if fraction is None or row.log_range is None:
        raise UserError("variance=learned: the network has learned none; choose small or large")
    return fraction * per_image(row.log_range, fraction)


def level_bits(
    images: jax.Array,
    x0: jax.Array,
    prediction: Prediction,
    level: jax.Array,
    table: BoundTable,
    normalization: Normalization = Normalization(),  # noqa: B008 - immutable
) -> jax.Array:
    """The part of the variational bound that belongs to one level of each image, in bits per dimension: [n].

    It is what the variance is learned from, a level at a time: T times its mean over levels is the bound, but for the
    prior, which does not depend on the network (Nichol and Dhariwal 2021, section 3.1).

    Args:
        images: [n, h, w, c], of the data's type.
        x0: the same as floats.
        prediction: at the level, of the noisy images.
        level: int [n], in 1 ... T.
        table: :func:`bound_table`.
        normalization: how floats are made of pixels.
    """
    columns = jax.tree.map(lambda column: jnp.asarray(column, x0.dtype), table)
    row = jax.tree.map(lambda column: column[level - 1], columns)
    kl = step_kl(x0, prediction.x0, row, prediction.fraction)
    # The decoder is asked about the images of other levels too, and has to be harmless there.
    is_first = per_image(level == 1, x0)
    mean, deviation = jnp.where(is_first, prediction.x0, x0), columns.deviation[0]
    if table.log_range is not None:
        fraction = None if prediction.fraction is None else jnp.where(is_first, prediction.fraction, 0)
        deviation = deviation * jnp.exp(_log_growth(fraction, row) / 2)
    decoder = -_image_mean(log_bin_probability(images, mean, deviation, normalization))
    return _bits(jnp.where(level == 1, decoder, kl))


def variational_bound(
    predict: Predict,
    images: jax.Array,
    table: BoundTable,
    keys: jax.Array,
    normalization: Normalization = Normalization(),  # noqa: B008 - immutable
    *,
    levels_per_image: int = 0,
    clip: bool = True,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Bound:
    """The variational bound on images' negative log likelihood (Ho et al. 2020, eq. 5), one noise draw for each level.

    -log P(x_0) is on average at most

        KL(q(x_T | x_0), N(0, I)) + sum_{t=2}^T KL(q(x_{t-1} | x_t, x_0), p(x_{t-1} | x_t)) - log p(x_0 | x_1).

    The last term is a probability and no density: that of the levels of grey, 256 of 8 bits, under a Gaussian cut into
    bins (:func:`log_bin_probability`). So the result can be compared with that of any lossless code. The loop is one
    ``lax.scan``; T network evaluations for each image, unless ``levels_per_image`` says less.

    Args:
        predict: as in ``prediction.py``; its rows' time and alpha_bar are [n] here, a level for each image.
        images: [n, h, w, c], of the data's type.
        table: :func:`bound_table`.
        keys: [n], one per image: the noise of level t depends on the image's key and t alone.
        normalization: how the network's floats are made of pixels.
        levels_per_image: K levels of 2 ... T for each image, one drawn from each of K parts of equal chance (see
            :class:`BoundTable`); 0 takes all. Level 1 is always asked too.
        clip: keep x̂0 within the range of pixels, as DDPM's code does for its published numbers. No divergence can grow
            by it; ``predict`` need not clip.
        dtype: of the computation.

    Returns:
        The terms, in ``dtype``.

    Raises:
        UserError: ``levels_per_image`` is negative or more than T - 1.
    """
    x0 = to_float(images, normalization, dtype)
    black, white = (
        to_float(np.asarray(value), normalization, dtype) for value in (normalization.low, normalization.high)
    )
    columns = jax.tree.map(lambda column: jnp.asarray(column, dtype), table)
    levels, weight = _levels_to_ask(table, levels_per_image, keys, dtype)

    is_learned = table.log_range is not None

    def ask(_: Any, level: jax.Array) -> tuple[tuple[jax.Array, jax.Array | None], jax.Array]:
        row = jax.tree.map(lambda column: column[level - 1], columns)
        noise = normal_each(fold_in_each(keys, level), 0, x0.shape[1:], dtype)
        prediction = predict(diffuse(x0, noise, row.alpha_bar), row)
        guess = jnp.clip(prediction.x0, black, white) if clip else prediction.x0
        fraction = prediction.fraction if is_learned else None
        return (guess, fraction), step_kl(x0, guess, row, fraction)

    # What the last row leaves is the image that the network sees in x_1: the decoder's mean.
    (decoded, fraction), kl = jax.lax.scan(ask, (x0, jnp.zeros_like(x0) if is_learned else None), levels)
    first = jax.tree.map(lambda column: column[:1], columns)
    deviation = columns.deviation[0]
    if is_learned:
        deviation = deviation * jnp.exp(_log_growth(fraction, first) / 2)
    return Bound(
        prior=_bits(_prior_kl(x0, columns.alpha_bar[-1])),
        kl=_bits((weight * kl[:-1]).T),
        decoder=-_bits(_image_mean(log_bin_probability(images, decoded, deviation, normalization))),
    )


def _levels_to_ask(
    table: BoundTable, levels_per_image: int, keys: jax.Array, dtype: jax.typing.DTypeLike
) -> tuple[jax.Array, Any]:
    """Levels [K + 1, n], noisiest first and level 1 last, and the weights of the first K of each image."""
    num_levels = len(table.time)
    if not 0 <= levels_per_image < num_levels:
        raise UserError(f"levels_per_image={levels_per_image}: choose from 1 to {num_levels - 1}, or 0 for all")
    if levels_per_image in (0, num_levels - 1):
        every = jnp.arange(num_levels, 0, -1, dtype=jnp.int32)
        return jnp.broadcast_to(every[:, None], (num_levels, len(keys))), 1.0
    part = np.arange(levels_per_image)[::-1, None]
    # The noises are keyed by levels from 1 up, which leaves 0.
    within = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), part.shape[:1], dtype))(keys)
    # Level t is drawn where the sum of the chances first exceeds the number, which begins at 0 with level 2.
    chances = jnp.asarray(np.cumsum(table.chance), dtype)
    levels = 1 + jnp.searchsorted(chances, (part + within.T) / levels_per_image, side="right").astype(jnp.int32)
    levels = jnp.minimum(levels, num_levels)  # where the number was rounded up to 1
    weight = 1 / (levels_per_image * jnp.asarray(table.chance, dtype)[levels - 1])
    return jnp.concatenate([levels, jnp.ones((1, len(keys)), jnp.int32)]), weight


def _prior_kl(x0: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """KL(q(x_T | x_0), N(0, I)) per value, in nats: [n]."""
    return (_image_mean(alpha_bar * jnp.square(x0)) - alpha_bar - jnp.log1p(-alpha_bar)) / 2


def log_bin_probability(
    images: jax.Array,
    mean: jax.Array,
    deviation: jax.typing.ArrayLike,
    normalization: Normalization = Normalization(),  # noqa: B008 - immutable
) -> jax.Array:
    """Log probability of each pixel value under a Gaussian cut into bins, one a level (Ho et al. 2020, eq. 13).

    >>> every_value = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    >>> probabilities = jnp.exp(log_bin_probability(every_value, jnp.full((1, 16, 16, 1), 0.3), 0.1))
    >>> round(float(probabilities.sum()), 4)
    1.0

    Each bin reaches half a level of grey to both sides, those of 0 and 255 to infinity, so that the probabilities of
    the 256 values add up to 1. In DDPM's [-1, 1] bins are 2 / 255 wide; in general 1 / (255 std). Of uint16 data, or of
    another range, there are as many bins as the range has values, up to 65,536. The Gaussian integral is computed in
    logarithms, so that a pixel far from the mean costs what it should (DDPM's code approximates it by a tanh, and lets
    no pixel cost more than 27.6 nats).

    Args:
        images: [n, h, w, c], of the data's type.
        mean: of the Gaussian, floats like images, normalised.
        deviation: of the Gaussian.
        normalization: how floats are made of pixels.

    Returns:
        In nats, like mean.
    """
    if normalization.dtype == "float32":
        raise UserError("float data have no levels whose probability a bound could tell: use the probability flow")
    half = 0.5 / (jnp.asarray(normalization.span, mean.dtype) * jnp.asarray(normalization.std, mean.dtype))
    offset = to_float(images, normalization, mean.dtype) - mean
    lowest, highest = (jnp.asarray(values, mean.dtype) for values in (normalization.low, normalization.high))
    lower = jnp.where(images <= lowest, -jnp.inf, (offset - half) / deviation)
    upper = jnp.where(images >= highest, jnp.inf, (offset + half) / deviation)
    # Of a bin right of the mean the mirror image, since probabilities near 1 have no digits left.
    mirrored = lower > 0
    lower, upper = jnp.where(mirrored, -upper, lower), jnp.where(mirrored, -lower, upper)
    below = log_ndtr(upper)
    return below + jnp.log(-jnp.expm1(log_ndtr(lower) - below))


# --- the probability flow -----------------------------------------------------------------------


class FlowTable(NamedTuple):
    """Heun's method up the probability flow, two rows a step. Inside a scan the same tuple is one row.

    A row asks the network for ε̂ and notes it; ε̂' is that of the row before. It moves x, and adds to the integral of the
    divergence::

        integral = integral + weight * divergence
        x = keep * x + new * eps + old * eps_before

    Attributes:
        time: what the network is told.
        alpha_bar: of the level that the network is asked about.
        alpha_bar_next: of the level where the row ends.
        keep: factor of x.
        new: factor of ε̂.
        old: factor of ε̂'.
        weight: of the divergence of ε̂ by x.
    """

    time: Column
    alpha_bar: Column
    alpha_bar_next: Column
    keep: Column
    new: Column
    old: Column
    weight: Column


def flow_table(schedule: Schedule, levels: np.ndarray) -> FlowTable:
    """The way from the cleanest of some levels up to the noisiest.

    With y = x / sqrt(alpha_bar) and sigma = sqrt(1 / alpha_bar - 1) the flow is dy = ε̂ dsigma (Song et al. 2021,
    "DDIM", eq. 14). x follows it as in ``solvers.heun_table``: a step with the ε̂ of its beginning, then a correction to
    the mean of both ends. The divergence is integrated by the trapezoidal rule as well, but over log sigma: there it is
    a smooth step, while over sigma it falls like 1 / sigma. Both are of second order.

    Args:
        schedule: the noise levels.
        levels: S + 1 of them, noisiest first and all different, as ``sampling_levels`` makes them; ``logsnr`` puts
            them evenly in log sigma. Best from T to 1.

    Returns:
        float64 columns [2 S].

    Raises:
        UserError: a single level, or one of pure noise (alpha_bar = 0).
    """
    if len(levels) < 2:
        raise UserError("the probability flow needs at least 2 levels to go from one to the other")
    rising = np.asarray(levels)[::-1]
    alpha_bar, time = schedule.alpha_bar_at(rising), schedule.time_input(rising).astype(np.float64)
    if alpha_bar[-1] == 0:
        raise UserError(
            f"level {rising[-1]} is pure noise in schedule '{schedule.name}', infinitely far along the probability "
            f"flow; end at level {rising[-1] - 1}"
        )
    begin, end = alpha_bar[:-1], alpha_bar[1:]
    keep = np.sqrt(end / begin)
    gain = np.sqrt(1 - end) - keep * np.sqrt(1 - begin)
    half = np.diff(np.log(1 / alpha_bar - 1)) / 4  # of the step in log sigma
    trial = FlowTable(time[:-1], begin, end, keep, gain, np.zeros_like(gain), half * np.sqrt(1 - begin))
    correction = FlowTable(time[1:], end, end, np.ones_like(gain), gain / 2, -gain / 2, half * np.sqrt(1 - end))
    return jax.tree.map(lambda *rows: np.stack(rows, axis=1).reshape(-1), trial, correction)


def ode_log_density(
    predict: Predict, x: jax.Array, table: FlowTable, keys: jax.Array | None = None, probes: int = 1
) -> jax.Array:
    """Log density of noisy images under the probability flow, started from N(0, I) at its far end.

    Along the flow the log of a density changes by minus the divergence of the velocity (Song et al. 2021, "score SDE",
    eq. 39). In DDIM's variables, over all D values of an image,

        log p(x) = log N(x_T; 0, I) + D / 2 log(alpha_bar_T / alpha_bar)
                   + integral of sqrt(1 - alpha_bar) div_x ε̂ over log sigma, from the level of x to level T.

    The second term is the change of scale between x and x / sqrt(alpha_bar). At the last level images are taken for
    pure noise, which they are but for alpha_bar_T.

    The divergence, the trace of the derivative of ε̂ by x, is estimated by Hutchinson's method (score SDE, eq. 40):
    E[v · (dε̂/dx) v] for v of random signs. Every evaluation of the network draws new v, so that errors average out
    over the way.

    Args:
        predict: should not clip, which would make ε̂ bend and its divergence vanish.
        x: [n, h, w, c], at the level where the table begins.
        table: :func:`flow_table`.
        keys: [n], one per image, for the probes: draw r + 1 for row r. Not needed without probes.
        probes: random vectors for each evaluation; each costs about as much as the evaluation itself. 0 computes the
            divergence exactly, which costs D of them.

    Returns:
        [n], in nats, in x's dtype.

    Raises:
        ValueError: probes, but no keys.
        UserError: a negative number of probes.
    """
    if probes < 0:
        raise UserError(f"probes={probes}: must be 1 or more, or 0 for the exact divergence")
    if probes and keys is None:
        raise ValueError("random probes need keys, one per image")

    def advance(
        state: tuple[jax.Array, jax.Array, jax.Array], row_and_draw: tuple[FlowTable, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        (x, eps_before, integral), (row, draw) = state, row_and_draw
        if probes and keys is not None:
            eps, divergence = _hutchinson(predict, x, row, _random_signs(keys, draw, probes, x))
        else:
            eps, divergence = _exact_divergence(predict, x, row)
        x = row.keep * x + row.new * eps + row.old * eps_before
        return (x, eps, integral + row.weight * divergence), None

    rows = jax.tree.map(lambda column: jnp.asarray(column, x.dtype), table)
    draws = jnp.arange(1, len(table.time) + 1, dtype=jnp.int32)
    start = (x, jnp.zeros_like(x), jnp.zeros(len(x), x.dtype))
    (noise, _, integral), _ = jax.lax.scan(advance, start, (rows, draws))
    change_of_scale = math.log(table.alpha_bar_next[-1] / table.alpha_bar[0]) - math.log(2 * math.pi)
    return integral + _image_mean(change_of_scale - jnp.square(noise)) * (x[0].size / 2)


def ode_bits_per_dim(
    predict: Predict,
    images: jax.Array,
    table: FlowTable,
    keys: jax.Array,
    normalization: Normalization = Normalization(),  # noqa: B008 - immutable
    *,
    probes: int = 1,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """Bits per dimension of images by the probability flow (Song et al. 2021, "score SDE", section 4.3).

    A density of floats gives a probability of levels of grey by spreading each of them evenly over its bin, x = (v + u)
    / 256 with u uniform in [0, 1): on average over u, -log p(v + u) is at least -log P(v). The published numbers are
    such averages. The result does not depend on how the network's floats are normalised. Of uint16 data, or a range
    that is narrower than what integers hold, the levels are as many as the range has, and bits are those of a lossless
    code of such values.

    Float data have no levels, and are not spread: then this is the density itself, of pixels scaled from the data's
    range to [0, 1]. Its bits compare with each other for data of one range alone, may be negative (0 is what a uniform
    density over the range costs), and with b added are those of a code that tells 2^b levels of the range apart, for
    large b.

    The flow of the network begins at level 1, since no network knows level 0. So this is the density of images that are
    sampled down to level 1 and divided by sqrt(alpha_bar_1), without the last step that only removes noise. Detail
    finer than the noise of level 1 earns nothing, and the network is asked about images without the noise that it
    expects. The larger that noise is, the more bits this costs: of T = 1000 levels ``linear`` begins with 1.3 levels
    of grey, ``offset_cosine`` with 40.

    Args:
        predict: should not clip.
        images: [n, h, w, c], of the data's type.
        table: :func:`flow_table`, from level 1.
        keys: [n], one per image: draw 0 for u, the others for probes.
        normalization: how the network's floats are made of pixels.
        probes: see :func:`ode_log_density`.
        dtype: of the computation.

    Returns:
        [n], in ``dtype``.

    Raises:
        UserError: a negative number of probes.
    """
    mean, std = (jnp.asarray(values, dtype) for values in (normalization.mean, normalization.std))
    if normalization.dtype == "float32":
        levels = jnp.asarray(1, dtype)
        unit = scaled(jnp.asarray(images, dtype), normalization)
    else:
        low = jnp.asarray(normalization.low, dtype)
        # Of each channel, 256 of 8-bit pixels.
        levels = jnp.asarray(normalization.span + 1, dtype)
        spread = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), images.shape[1:], dtype))(keys)
        unit = (images - low + spread) / levels
    x0 = (unit - mean) / std
    log_density = ode_log_density(predict, math.sqrt(table.alpha_bar[0]) * x0, table, keys, probes)
    # From the density of x_1 to that of v + u.
    log_scale = jnp.mean(jnp.broadcast_to(math.log(table.alpha_bar[0]) / 2 - jnp.log(levels * std), x0.shape[1:]))
    return -_bits(log_density / x0[0].size + log_scale)


def _random_signs(keys: jax.Array, draw: jax.Array, probes: int, like: jax.Array) -> jax.Array:
    """+1 or -1, with equal chances: [probes, n, h, w, c]."""
    drawn = jax.vmap(lambda key: jax.random.rademacher(key, (probes, *like.shape[1:]), like.dtype))(
        jax.vmap(lambda key: jax.random.fold_in(key, draw))(keys)
    )
    return jnp.moveaxis(drawn, 1, 0)


def _hutchinson(predict: Predict, x: jax.Array, row: Question, signs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """ε̂ and an estimate of its divergence [n]."""

    def along(direction: jax.Array) -> tuple[jax.Array, jax.Array]:
        eps, change = jax.jvp(lambda x: predict(x, row).eps, (x,), (direction,))
        return eps, _image_sum(direction * change)

    eps, estimates = jax.vmap(along, out_axes=(None, 0))(signs)
    return eps, jnp.mean(estimates, axis=0)


def _exact_divergence(predict: Predict, x: jax.Array, row: Question) -> tuple[jax.Array, jax.Array]:
    """ε̂ and its divergence [n]."""
    eps, change = jax.linearize(lambda x: predict(x, row).eps, x)

    def along(place: jax.Array) -> jax.Array:
        direction = jax.nn.one_hot(place, x[0].size, dtype=x.dtype).reshape(x.shape[1:])
        return _image_sum(direction * change(jnp.broadcast_to(direction, x.shape)))

    return eps, jnp.sum(jax.lax.map(along, jnp.arange(x[0].size)), axis=0)


def _image_sum(values: jax.Array) -> jax.Array:
    return jnp.sum(values, tuple(range(1, values.ndim)))


def _image_mean(values: jax.Array) -> jax.Array:
    return jnp.mean(values, tuple(range(1, values.ndim)))


def _bits(nats: Any) -> Any:
    return nats / math.log(2)
