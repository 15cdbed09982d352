"""Consistency models: what is drawn, what is asked, and that a student which can be ideal becomes so."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import Gaussian, Mixture1D
from scipy.special import expit
from scipy.stats import norm

from ddim_jax.diffusion.consistency import (
    LevelPairs,
    ask,
    check_objective,
    consistency_loss,
    consistency_target,
    distance,
    draw_pairs,
    huber_constant,
)
from ddim_jax.diffusion.ddim import ddim_table
from ddim_jax.diffusion.losses import diffuse
from ddim_jax.diffusion.objectives import OBJECTIVES, Prediction
from ddim_jax.diffusion.prediction import Asked, make_predict, to_prediction
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels
from ddim_jax.diffusion.table import sample
from ddim_jax.errors import UserError

REAL = ("edm", "flow", "vp", "ve")
WHOLE = ("linear", "cosine", "offset_cosine", "jsd")
DATA = Gaussian(mean=0.3, deviation=0.5)
LINEAR = make_schedule("linear")
KEY = jax.random.key(7)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def schedule_of(name):
    return make_schedule("linear", zero_terminal_snr=True) if name == "zero_terminal" else make_schedule(name)


def sigma_of(schedule, level, sigma_data):
    """EDM's sigma of levels in float64."""
    level = np.asarray(level, np.int64 if np.issubdtype(level.dtype, np.integer) else np.float64)
    return sigma_data * np.exp(-schedule.log_snr_at(level) / 2)


def published_r(t, stage, q=2.0, k=8.0, b=1.0):
    """The mapping of ECT, section 3 of the paper and its code."""
    n = 1 + k * expit(-b * t)
    return np.maximum(0, t * (1 - n / q ** (stage + 1)))


# --- the function -------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_which_networks_have_the_boundary_condition(objective):
    """At alpha_bar = 1 the answer is the image itself."""
    if objective == "x0":
        with pytest.raises(UserError, match=r"objective 'x0' cannot be a consistency model.* choose .* eps, v, flow"):
            check_objective(objective)
        return
    check_objective(objective)
    x = jax.random.normal(KEY, (4, 3, 3, 2))
    predict = make_predict(lambda x, time: jnp.cos(7 * x), objective)
    np.testing.assert_array_equal(predict(x, Asked(jnp.zeros(4), jnp.ones(4))).x0, x)


@pytest.mark.parametrize("clip", ["none", "rederive_eps"])
def test_a_prediction_may_be_asked_about_a_level_for_each_image(clip):
    def network(x, time):
        return jnp.sin(x) + time.reshape(-1, 1, 1, 1) / 100

    x = jax.random.normal(KEY, (3, 4, 4, 2))
    schedule = make_schedule("flow")
    predict = make_predict(network, "v", clip, network_input=schedule.network_input)
    times, alpha_bars = jnp.array([3.0, 40.0, 1000.0]), jnp.array([0.99, 0.5, 0.0])
    together = predict(x, Asked(times, alpha_bars))
    for i in range(3):
        alone = predict(x[i : i + 1], SimpleNamespace(time=times[i], alpha_bar=alpha_bars[i]))
        np.testing.assert_allclose(together.x0[i], alone.x0[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(together.eps[i], alone.eps[0], rtol=1e-6, atol=1e-6)


# --- pairs --------------------------------------------------------------------------------------


def draws_of(schedule, stage, sigma_data, num=40_000):
    """Pairs as NumPy's, but for those that begin in pure noise."""
    pairs = draw_pairs(schedule, KEY, jnp.arange(num), stage, sigma_data)
    assert np.all((pairs.level_next >= 0) & (pairs.level_next < pairs.level) & (pairs.gap > 0))
    assert all(np.all(np.isfinite(column)) for levels in ask(schedule, pairs) for column in levels)
    ends_in_noise = schedule.log_snr[-1] < -2 * np.log(80 / sigma_data) - 1e-2
    pure = np.asarray((pairs.level == schedule.num_levels) & ends_in_noise)
    assert abs(pure.mean() - ends_in_noise / 32) < 0.01  # the few that sigma leads to among them
    return [np.asarray(column)[~pure] for column in pairs]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("stage", [0, 3, 9])
def test_pairs_of_real_levels_are_ects(name, stage):
    """The paper's distribution of t, and the paper's r of it."""
    schedule, sigma_data = make_schedule(name), 0.5 if name == "edm" else 1.0
    level, level_next, gap = draws_of(schedule, stage, sigma_data)
    assert level.dtype == level_next.dtype == np.float32
    t = sigma_of(schedule, level, sigma_data)
    shares = np.linspace(0.01, 0.99, 25)
    below = (np.log(t)[:, None] < norm.ppf(shares, -1.1, 2.0)).mean(0)
    np.testing.assert_allclose(below, shares, atol=4 * 0.5 / np.sqrt(len(t)))
    expected = published_r(t, stage)
    noisy = expected > 0.01 * t
    np.testing.assert_allclose(sigma_of(schedule, level_next[noisy], sigma_data), expected[noisy], rtol=1e-3)
    np.testing.assert_array_equal(level_next[expected == 0], 0)
    np.testing.assert_allclose(gap * sigma_data, t - expected, rtol=2e-3)
    if stage == 0:
        np.testing.assert_array_equal(expected == 0, t <= np.log(7))


@pytest.mark.parametrize("name", [*WHOLE, "zero_terminal"])
@pytest.mark.parametrize("stage", [0, 3, 9])
def test_pairs_of_whole_levels_are_those_nearest_to_ects(name, stage):
    schedule = schedule_of(name)
    level, level_next, gap = draws_of(schedule, stage, 1.0)
    assert level.dtype == level_next.dtype == np.int32
    noisy = np.flatnonzero(np.isfinite(schedule.log_snr))
    log_sigma = -schedule.log_snr[noisy] / 2
    middles = (log_sigma[1:] + log_sigma[:-1]) / 2
    below = np.searchsorted(np.sort(level), noisy[:-1], "right") / len(level)
    np.testing.assert_allclose(below, norm.cdf(middles, -1.1, 2.0), atol=4 * 0.5 / np.sqrt(len(level)))
    r = published_r(sigma_of(schedule, level, 1.0), stage)
    nearest = noisy[np.searchsorted(middles, np.log(np.maximum(r, 1e-30)))]
    expected = np.where(r > 0, np.minimum(nearest, level - 1), 0)
    assert (level_next != expected).mean() < 1e-3  # where float32 decides
    noises = np.concatenate([[0], np.exp(log_sigma)])
    np.testing.assert_allclose(gap, noises[level] - noises[level_next], rtol=1e-4)
    assert np.any(level_next == 0)  # of level 1 at least
    assert np.any(level_next > 0)


@pytest.mark.parametrize("name", ["jsd", "flow", "zero_terminal"])
def test_pairs_that_begin_in_pure_noise(name):
    """The level r is as for sigma = 80, and the gap counts as r's noise."""
    schedule = schedule_of(name)
    pairs = draw_pairs(schedule, KEY, jnp.arange(3000), stage=2, sigma_data=1.0)
    pure = np.asarray(pairs.level) == schedule.num_levels
    assert 50 < pure.sum() < 150
    assert len(np.unique(pairs.level_next[pure])) == 1
    r = sigma_of(schedule, pairs.level_next[pure][0], 1.0)
    expected = 31.6 if name == "jsd" else published_r(80.0, 2)  # jsd's noisiest level but the last
    np.testing.assert_allclose(r, expected, rtol=0.03)
    np.testing.assert_allclose(pairs.gap[pure], r, rtol=1e-4)
    levels, _ = ask(schedule, pairs)
    np.testing.assert_array_equal(np.asarray(levels.alpha_bar)[pure], 0)
    assert np.all(np.asarray(levels.alpha_bar)[~pure] > 0)


@pytest.mark.parametrize("name", ["edm", "flow", "linear", "jsd"])
def test_a_pair_depends_on_its_position_alone(name):
    schedule = make_schedule(name)
    draw = partial(draw_pairs, schedule, KEY)
    whole = draw(jnp.arange(64), 4)
    for part in (jnp.arange(10, 20), jnp.array([63, 5])):
        jax.tree.map(lambda a, b, part=part: np.testing.assert_array_equal(a, b[part]), draw(part, 4), whole)
    traced = jax.jit(draw)(jnp.arange(64), jnp.int32(4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), traced, whole)
    other = draw_pairs(schedule, jax.random.fold_in(KEY, 1), jnp.arange(64), 4)
    assert np.mean(np.asarray(other.level) == np.asarray(whole.level)) < 0.2


@pytest.mark.parametrize("name", [*REAL, "linear", "jsd"])
@pytest.mark.parametrize("mean", [np.log(1e-3), np.log(1e3)])
def test_pairs_are_finite_at_the_ends_of_the_noise(name, mean):
    schedule = make_schedule(name)
    pairs = draw_pairs(schedule, KEY, jnp.arange(2000), 8, 1.0, mean=mean, std=0.5)
    levels, levels_next = ask(schedule, pairs)
    for values in (*pairs, *levels, *levels_next):
        assert np.all(np.isfinite(values))
    assert np.all(np.asarray(pairs.level_next) < np.asarray(pairs.level))
    assert np.all(np.asarray(pairs.gap) > 0)
    assert np.all((np.asarray(levels.alpha_bar) >= 0) & (np.asarray(levels_next.alpha_bar) >= levels.alpha_bar))


@pytest.mark.parametrize("name", [*REAL, "linear", "jsd"])
def test_pairs_of_the_last_stages_are_still_two_levels(name):
    pairs = draw_pairs(make_schedule(name), KEY, jnp.arange(500), stage=200)
    assert np.all((pairs.level_next < pairs.level) & (pairs.gap > 0) & jnp.isfinite(1 / pairs.gap))


def test_ends_of_pairs_are_asked_about_as_the_schedule_says():
    for name, level in (("linear", jnp.array([1, 1000, 40])), ("edm", jnp.array([0.5, 1000.0, 30.25]))):
        schedule = make_schedule(name)
        alpha_bar, time = schedule.at(level)
        first, second = ask(schedule, LevelPairs(level, 0 * level, jnp.ones(3)))
        np.testing.assert_array_equal(first.alpha_bar, alpha_bar)
        np.testing.assert_array_equal(first.time, time)
        np.testing.assert_array_equal(second.alpha_bar, 1)
        assert np.all(np.isfinite(second.time))


# --- the loss -----------------------------------------------------------------------------------


def test_the_distance_is_pseudo_hubers():
    difference = np.random.default_rng(0).normal(size=(5, 4, 4, 3)) * 10.0 ** np.arange(-4, 1).reshape(-1, 1, 1, 1)
    gap = np.array([0.01, 0.1, 1.0, 10.0, 100.0])
    expected = (np.sqrt((difference**2).sum((1, 2, 3)) + 0.03**2) - 0.03) / gap
    result = distance(jnp.asarray(difference, jnp.float32), jnp.asarray(gap, jnp.float32), 0.03)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=2e-6)
    assert distance(jnp.ones((1, 2), jnp.bfloat16), jnp.ones(1), 0.03).dtype == jnp.float32


def test_gradients_are_finite_also_where_answers_agree():
    def gradient(scale):
        return jax.grad(lambda scale: distance(scale * jnp.ones((2, 3)), jnp.ones(2), 0.03).sum())(scale)

    assert gradient(0.0) == 0
    np.testing.assert_allclose(gradient(1e-6), 2 * 3 * 1e-6 / 0.03, rtol=1e-5)
    np.testing.assert_allclose(gradient(1e6), 2 * np.sqrt(3), rtol=1e-5)


@pytest.mark.parametrize("c", [0.0, -1.0, float("nan"), float("inf")])
def test_a_constant_that_is_none_is_refused(c):
    with pytest.raises(UserError, match="must be above 0"):
        distance(jnp.ones((1, 2)), jnp.ones(1), c)


def test_the_usual_constants():
    """iCT, section 3.3; on images of another scale the loss is the same number."""
    assert round(huber_constant(32 * 32 * 3), 2) == 0.03
    assert round(huber_constant(64 * 64 * 3), 2) == 0.06
    difference, gap = jnp.ones((1, 12)), jnp.ones(1)
    np.testing.assert_allclose(
        distance(2 * difference, 2 * gap, huber_constant(12, 0.5)), distance(difference, gap, huber_constant(12)), 1e-6
    )


def test_the_target_is_given_and_clean_images_are_their_own():
    x = jax.random.normal(KEY, (3, 2, 2, 1))
    levels = Asked(jnp.zeros(3), jnp.array([1.0, 0.9, 0.5]))

    def target(scale):
        return consistency_target(lambda x, row: Prediction(x0=scale * x / (row.alpha_bar[0] - 1), eps=x), x, levels)

    assert np.all(np.isfinite(target(2.0)[0]))  # although the network's answer there is not
    np.testing.assert_array_equal(target(2.0)[0], x[0])

    def half(x, row):
        return Prediction(x0=x / 2, eps=x)

    np.testing.assert_array_equal(consistency_target(half, x, levels), x / jnp.array([1, 2, 2]).reshape(3, 1, 1, 1))
    gradient = jax.grad(lambda scale: consistency_target(lambda x, _: Prediction(scale * x, x), x, levels).sum())
    assert gradient(2.0) == 0


def test_a_teachers_step_is_ddims(float64):
    """And with one, nothing is known of the image and noise that x_t was made of."""
    schedule = LINEAR
    rng = np.random.default_rng(1)
    x0, eps = jnp.asarray(rng.normal(size=(2, 3, 4, 4, 1)))
    teacher = make_predict(lambda x, time: jnp.sin(2 * x) + time.reshape(-1, 1, 1, 1) / 1000, "v")
    student = make_predict(lambda x, time: jnp.cos(x), "v")
    steps = np.array([[900, 700], [40, 3], [2, 0]])
    levels, levels_next = (
        Asked(jnp.asarray(steps[:, i] - 1.0), jnp.asarray(schedule.alpha_bar[steps[:, i]])) for i in (0, 1)
    )
    gap = jnp.array([1.0, 2.0, 3.0])
    losses = consistency_loss(student, x0, eps, levels, levels_next, gap, 0.1, teacher)
    easy = consistency_loss(student, x0, eps, levels, levels_next, gap, 0.1)
    for i, step in enumerate(steps):
        one, now, then = slice(i, i + 1), schedule.alpha_bar[step[0]], schedule.alpha_bar[step[1]]
        x = diffuse(x0[one], eps[one], now)
        answer = student(x, SimpleNamespace(time=0.0, alpha_bar=now)).x0

        def error(x_next, one=one, then=then, answer=answer):
            target = x_next if then == 1 else student(x_next, SimpleNamespace(time=0.0, alpha_bar=then)).x0
            return (np.sqrt(np.sum((answer - target) ** 2) + 0.1**2) - 0.1) / gap[one][0]

        np.testing.assert_allclose(losses[i], error(sample(teacher, x, ddim_table(schedule, step[None]))), rtol=1e-9)
        np.testing.assert_allclose(easy[i], error(diffuse(x0[one], eps[one], then)), rtol=1e-9)


# --- oracles ------------------------------------------------------------------------------------


def exact_student(x, row):
    """The flow map of Gaussian data."""
    alpha_bar = row.alpha_bar.reshape(-1, 1, 1, 1)
    return Prediction(x0=DATA.flow(x, alpha_bar, 1.0), eps=x)


def exact_teacher(x, row):
    """E[x_0 | x] and E[eps | x] in the form that holds for pure noise too."""
    signal, noise = (jnp.sqrt(each).reshape(-1, 1, 1, 1) for each in (row.alpha_bar, 1 - row.alpha_bar))
    off = (x - signal * DATA.mean) / ((signal * DATA.deviation) ** 2 + noise**2)
    return Prediction(x0=DATA.mean + signal * DATA.deviation**2 * off, eps=noise * off)


def test_residual_of_the_exact_flow_map_falls_as_the_square_of_the_gap(float64):
    """A step of DDIM errs by that; the mean residual of tuning does, too, and its variance falls as the gap's does."""
    shares = np.array([0.1, 0.05, 0.02, 0.01, 0.005])
    x0, eps = (jnp.full((5, 1, 1, 1), value) for value in (1.1, -0.6))
    for noise in (0.1, 1.0, 10.0):
        noises, noises_next = np.full(5, noise), noise * (1 - shares)
        levels, levels_next = (Asked(jnp.zeros(5), jnp.asarray(1 / (1 + s**2))) for s in (noises, noises_next))

        def length(teacher, levels=levels, levels_next=levels_next):
            return consistency_loss(exact_student, x0, eps, levels, levels_next, jnp.ones(5), 1e-12, teacher)

        slopes = [np.polyfit(np.log(shares), np.log(length(teacher)), 1)[0] for teacher in (exact_teacher, None)]
        np.testing.assert_allclose(slopes, [2, 1], atol=0.08)


STEPS = 16


def nodes(schedule, levels):
    """Images and noises [n] and weights [n] of each level, over which sums of squares are what expectations are.

    u tells x_t, and w what x_t does not tell of the image and the noise; two nodes of each suffice for squares, and
    are symmetric, as a Gaussian is, so that other even distances lead to the same mean.
    """
    signal, noise = np.sqrt(schedule.alpha_bar[levels]), np.sqrt(1 - schedule.alpha_bar[levels])
    deviation = np.hypot(signal * DATA.deviation, noise)
    cos, sin = signal * DATA.deviation / deviation, noise / deviation
    u, w = (values.reshape(-1, 1) for values in np.meshgrid([-1.0, 1.0], [-1.0, 1.0]))
    return DATA.mean + DATA.deviation * (cos * u + sin * w), sin * u - cos * w


def train_linear_student(schedule, levels, levels_next, use_teacher):
    """v̂ = a x + b of each level, by Adam on exact expectations; returns f of every level as slope and offset."""
    num = len(levels)
    x0, eps = (jnp.asarray(values.reshape(-1, 1, 1, 1)) for values in nodes(schedule, levels))
    ask_levels, ask_next = (
        Asked(jnp.asarray(np.tile(each, 4), jnp.float64), jnp.asarray(np.tile(schedule.alpha_bar[each], 4)))
        for each in (levels, levels_next)
    )
    noises = np.sqrt(1 / np.maximum(schedule.alpha_bar, 1e-6) - 1)
    gap = jnp.asarray(np.tile(noises[levels] - noises[levels_next], 4))

    def student(parameters, x, row):
        a, b = (column[row.time.astype(int) - 1].reshape(-1, 1, 1, 1) for column in parameters)
        return to_prediction(a * x + b, x, row.alpha_bar, "v")

    def loss(parameters):
        predict = partial(student, parameters)
        teacher = exact_teacher if use_teacher else None
        return consistency_loss(predict, x0, eps, ask_levels, ask_next, gap, 0.1, teacher).sum()

    count = 6000
    optimiser = optax.adam(optax.exponential_decay(0.05, count, 1e-7))

    def step(state, _):
        parameters, memory = state
        updates, memory = optimiser.update(jax.grad(loss)(parameters), memory)
        return (optax.apply_updates(parameters, updates), memory), None

    @jax.jit
    def train():
        parameters = (jnp.zeros(num), jnp.zeros(num))
        return jax.lax.scan(step, (parameters, optimiser.init(parameters)), None, count)[0][0]

    row = Asked(jnp.asarray(levels, jnp.float64), jnp.asarray(schedule.alpha_bar[levels]))
    at_0, at_1 = (student(train(), jnp.full((num, 1, 1, 1), x), row).x0.ravel() for x in (0.0, 1.0))
    return np.asarray(at_1 - at_0), np.asarray(at_0)


def composed_steps(schedule, levels_next):
    """Slope and offset [T + 1] of the teacher's DDIM along each level's way to the clean image, in closed form."""
    slopes, offsets = np.ones(STEPS + 1), np.zeros(STEPS + 1)
    for level, then in enumerate(levels_next, start=1):
        now_ab, then_ab = schedule.alpha_bar[level], schedule.alpha_bar[then]
        (mean, variance), (mean_next, _) = DATA.marginal(now_ab), DATA.marginal(then_ab)
        slope = (np.sqrt(now_ab * then_ab) * DATA.deviation**2 + np.sqrt((1 - now_ab) * (1 - then_ab))) / variance
        slopes[level] = slopes[then] * slope
        offsets[level] = slopes[then] * (mean_next - slope * mean) + offsets[then]
    return slopes[1:], offsets[1:]


@pytest.mark.parametrize("way", ["distillation", "easy"])
@pytest.mark.parametrize("name", ["cosine", "jsd"])
@pytest.mark.parametrize("chain", ["each to the next", "as drawn"])
def test_a_linear_student_becomes_the_ideal_one(float64, way, name, chain):
    """Along fixed ways: the teacher's DDIM steps in one.

    Tuning leads there too. It regresses f(x_r), which is linear, on x_t, and E[x_r | x_t] is the ideal teacher's step,
    whose slope is sqrt(alpha_bar alpha_bar') s² + sqrt((1 - alpha_bar) (1 - alpha_bar')), the covariance, over the
    variance.
    """
    schedule = make_schedule(name, STEPS)
    levels = np.arange(1, STEPS + 1)
    levels_next = levels - 1
    if chain == "as drawn":
        pairs = draw_pairs(schedule, KEY, jnp.arange(20_000), 2, 1.0, mean=0.0, std=3.0)
        drawn = np.unique(np.stack([pairs.level, pairs.level_next]), axis=1)
        np.testing.assert_array_equal(drawn[0], levels)  # each has one way, and all are drawn
        levels_next = drawn[1]
        assert np.any(levels_next < levels - 1)
    slopes, offsets = composed_steps(schedule, levels_next)
    result = train_linear_student(schedule, levels, levels_next, way == "distillation")
    np.testing.assert_allclose(result[0], slopes, atol=1e-6)
    np.testing.assert_allclose(result[1], offsets, atol=1e-6)
    if chain == "each to the next":
        end = sample(exact_teacher, jnp.full((1, 1, 1, 1), 0.7), ddim_table(schedule, level_pairs(levels[::-1])))
        np.testing.assert_allclose(slopes[-1] * 0.7 + offsets[-1], end.ravel()[0], rtol=1e-9)
    # That differs from the flow's own end, which is what the steps' number is about.
    exact = DATA.deviation / np.sqrt(DATA.marginal(schedule.alpha_bar[-1])[1])
    assert slopes[-1] < exact - 0.02


@pytest.mark.slow
@pytest.mark.parametrize("way", ["distillation", "easy"])
def test_one_step_of_a_trained_network_is_worth_several_of_ddims(way):
    """Two modes, a network of two layers that begins with nothing, and stages as ECT has them."""
    mixture, schedule = Mixture1D(weights=np.array([0.3, 0.7]), means=np.array([-1.0, 1.0]), deviation=0.3), LINEAR
    batch, count, stages = 256, 2500, 7
    frequencies = 2.0 ** jnp.arange(4)

    def network(layers, x, time):
        time = time.reshape(-1, 1) / 500
        told = [time, jnp.sin(time * frequencies), jnp.cos(time * frequencies)]
        hidden = jnp.concatenate([x.reshape(-1, 1), *told], axis=1)
        for matrix, offset in layers[:-1]:
            hidden = jax.nn.silu(hidden @ matrix + offset)
        return (hidden @ layers[-1][0] + layers[-1][1]).reshape(x.shape)

    def teacher(x, row):
        return jax.vmap(lambda x, alpha_bar: mixture.predict(x, SimpleNamespace(alpha_bar=alpha_bar)))(x, row.alpha_bar)

    def loss(layers, step):
        mode, pixel, noise, level = jax.random.split(jax.random.fold_in(KEY, step), 4)
        is_left = jax.random.uniform(mode, (batch, 1, 1, 1)) < 0.3
        x0 = jnp.where(is_left, -1, 1) + 0.3 * jax.random.normal(pixel, (batch, 1, 1, 1))
        pairs = draw_pairs(schedule, level, jnp.arange(batch), step * stages // count, 1.0)
        return consistency_loss(
            make_predict(partial(network, layers), "v"),
            x0,
            jax.random.normal(noise, x0.shape),
            *ask(schedule, pairs),
            pairs.gap,
            0.05,
            teacher if way == "distillation" else None,
        ).mean()

    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, count, 0.01))

    def train_step(state, step):
        layers, memory = state
        updates, memory = optimiser.update(jax.grad(loss)(layers, step), memory)
        return (optax.apply_updates(layers, updates), memory), None

    @jax.jit
    def train():
        sizes = [10, 64, 64, 1]
        layers = [
            (jax.random.normal(key, (a, b)) / np.sqrt(a), jnp.zeros(b))
            for key, a, b in zip(jax.random.split(KEY, 3), sizes[:-1], sizes[1:], strict=True)
        ]
        return jax.lax.scan(train_step, (layers, optimiser.init(layers)), jnp.arange(count))[0][0]

    x = np.linspace(-2, 2, 41).reshape(-1, 1, 1, 1)
    end = mixture.flow(x, schedule.alpha_bar[-1], 1 - 1e-9)

    def error(name, steps, predict):
        table = ddim_table(schedule, level_pairs(sampling_levels(name, 1000, steps, schedule)))
        return np.sqrt(np.mean((np.asarray(sample(predict, jnp.asarray(x, jnp.float32), table)) - end) ** 2))

    one, four = (error("logsnr", steps, mixture.predict) for steps in (1, 4))
    student = error("uniform", 1, make_predict(partial(network, train()), "v"))
    assert student < 0.75 * four < one / 2, (student, four, one)
