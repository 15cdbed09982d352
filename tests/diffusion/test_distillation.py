"""Progressive distillation against what is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import Gaussian, GaussianMixture

from ddim_jax.diffusion import distillation
from ddim_jax.diffusion.ddim import ddim_table
from ddim_jax.diffusion.distillation import (
    distillation_loss,
    draw_steps,
    padded_to,
    rows_of,
    single_steps,
    target_image,
    two_steps,
)
from ddim_jax.diffusion.objectives import Prediction
from ddim_jax.diffusion.prediction import Asked, make_predict, per_image, to_prediction
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels
from ddim_jax.diffusion.table import sample
from ddim_jax.errors import UserError

DATA = Gaussian(0.3, 0.5)
MIXTURE = GaussianMixture(np.array([0.3, 0.7]), np.array([[[[-1.0]]], [[[0.8]]]]), 0.2)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64():
        yield


def pairs_of(schedule, steps):
    return level_pairs(sampling_levels("trailing", schedule.num_levels, steps, schedule))


def rows(steps, which):
    """The rows of a table, in float64."""
    return distillation.TwoSteps(*(jnp.asarray(column)[which] for column in steps))


@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "flow", "jsd"])
def test_every_other_level_of_a_teacher_is_a_students(name):
    """Also where steps do not divide the levels."""
    schedule = make_schedule(name)
    for steps in (64, 48, 6, 2):
        teacher, student = pairs_of(schedule, steps), pairs_of(schedule, steps // 2)
        np.testing.assert_allclose(student[:, 0], teacher[::2, 0], rtol=1e-15)
        np.testing.assert_allclose(student[:, 1], teacher[1::2, 1], rtol=1e-15)


@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "flow", "jsd", "zero-terminal"])
@pytest.mark.parametrize("data", [DATA, MIXTURE], ids=["gaussian", "mixture"])
def test_a_step_with_the_target_ends_where_two_of_the_teachers_do(name, data):
    """Each image at a step of its own; the last one to the clean image, the first one from pure noise or nearly."""
    schedule = make_schedule("cosine", zero_terminal_snr=True) if name == "zero-terminal" else make_schedule(name)
    teacher_pairs, student_pairs = pairs_of(schedule, 8), pairs_of(schedule, 4)
    x = jax.random.normal(jax.random.key(0), (4, 1, 1, 1), jnp.float64)
    steps = rows(two_steps(schedule, teacher_pairs), jnp.arange(4))

    def image(x, alpha_bar):
        """Of one; that of pure noise is the mean of the data, which the oracle divides 0 by 0 for."""
        return data.predict(x[None], Asked(0.0, jnp.maximum(alpha_bar, 1e-30))).x0[0]

    def safe(x, row):
        alpha_bar = jnp.broadcast_to(row.alpha_bar, len(x))
        return to_prediction(jax.vmap(image)(x, alpha_bar), x, alpha_bar, "x0")

    target = target_image(safe, x, steps)
    for i in range(4):
        expected = sample(safe, x[i : i + 1], ddim_table(schedule, teacher_pairs[2 * i : 2 * i + 2]))
        given = lambda x, row, i=i: to_prediction(target[i : i + 1], x, row.alpha_bar, "x0")  # noqa: E731
        reached = sample(given, x[i : i + 1], ddim_table(schedule, student_pairs[i : i + 1]))
        np.testing.assert_allclose(reached, expected, rtol=1e-9, atol=1e-12)


def test_the_target_is_that_of_the_paper():
    """Salimans and Ho's algorithm 2, by its quotient."""
    schedule = make_schedule("cosine")
    pairs = pairs_of(schedule, 16)
    x = jax.random.normal(jax.random.key(1), (8, 1, 1, 1), jnp.float64)
    steps = rows(two_steps(schedule, pairs), jnp.arange(8))
    target = np.asarray(target_image(DATA.predict, x, steps._replace(**{
        name: per_image(getattr(steps, name), x) for name in ("alpha_bar", "middle_alpha_bar")
    })))  # fmt: skip
    for i in range(8):
        (t, middle), (_, end) = pairs[2 * i], pairs[2 * i + 1]
        alpha, sigma = {}, {}
        for level in (t, middle, end):
            alpha[level], sigma[level] = np.sqrt(schedule.alpha_bar[level]), np.sqrt(1 - schedule.alpha_bar[level])
        z = np.asarray(x[i])
        for here, there in ((t, middle), (middle, end)):
            image = DATA.predict(z, Asked(here - 1, schedule.alpha_bar[here])).x0
            z = alpha[there] * image + sigma[there] / sigma[here] * (z - alpha[here] * image)
        ratio = sigma[end] / sigma[t]
        np.testing.assert_allclose(
            target[i], (z - ratio * np.asarray(x[i])) / (alpha[end] - ratio * alpha[t]), rtol=1e-9
        )


def learned(loss, size):
    """Parameters, two for each level, that minimise a mean loss: descended with Adam, as students are."""
    params = jnp.zeros((size, 2))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 3000))

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, 3000)
    return params


def test_linear_students_reach_the_ideal_one_in_every_round():
    """Of Gaussian data a network that is linear at each level can be perfect: the composition of 2^R DDIM steps."""
    schedule = make_schedule("cosine", zero_terminal_snr=True)
    first_steps, rounds = 16, 4
    x0 = DATA.mean + DATA.deviation * jax.random.normal(jax.random.key(0), (512, 1, 1, 1), jnp.float64)
    eps = jax.random.normal(jax.random.key(1), x0.shape, jnp.float64)
    noise = jax.random.normal(jax.random.key(2), x0.shape, jnp.float64)

    def exact(x, row):
        """The oracle's prediction in a form that holds for pure noise."""
        alpha_bar = per_image(row.alpha_bar, x)
        mean, variance = DATA.marginal(alpha_bar)
        x0 = DATA.mean + jnp.sqrt(alpha_bar) * DATA.deviation**2 / variance * (x - mean)
        return to_prediction(x0, x, row.alpha_bar, "x0")

    ideal = sample(exact, noise, ddim_table(schedule, pairs_of(schedule, first_steps)))
    teacher = exact
    for number in range(1, rounds + 1):
        pairs = pairs_of(schedule, first_steps >> (number - 1))
        steps = two_steps(schedule, pairs)
        which = jnp.arange(len(x0)) % len(steps.time)
        row = rows(steps, which)
        alpha_bar = per_image(row.alpha_bar, x0)
        x = jnp.sqrt(alpha_bar) * x0 + jnp.sqrt(1 - alpha_bar) * eps
        target = target_image(teacher, x, row)
        levels = jnp.asarray(steps.time)

        def network(params, levels=levels):
            """v, a line at each level."""

            def predict(images, time):
                slope, constant = params[jnp.argmin(jnp.abs(time[:, None] - levels), axis=1)].T
                return per_image(slope, images) * images + per_image(constant, images)

            return make_predict(predict, "v")

        def loss(params, network=network, row=row, x=x, target=target):
            prediction = network(params)(x, Asked(row.time, row.alpha_bar))
            return jnp.mean(distillation_loss(prediction, target, row.alpha_bar))

        teacher = network(learned(loss, len(levels)))
        drawn = sample(teacher, noise, ddim_table(schedule, pairs_of(schedule, first_steps >> number)))
        np.testing.assert_allclose(drawn, ideal, atol=1e-4)


def test_a_student_of_one_step_learns_another_objective():
    schedule = make_schedule("cosine")
    pairs = pairs_of(schedule, 4)
    steps = rows(single_steps(schedule, pairs), jnp.arange(4))
    x = jnp.ones((4, 1, 1, 1))
    row = steps._replace(alpha_bar=per_image(steps.alpha_bar, x))
    np.testing.assert_allclose(target_image(DATA.predict, x, row, is_single=True), DATA.predict(x, row).x0, rtol=1e-12)


def test_an_odd_number_of_steps_is_refused():
    with pytest.raises(UserError, match="3 steps cannot be halved"):
        two_steps(make_schedule("cosine"), pairs_of(make_schedule("cosine"), 3))


def test_drawn_steps_cover_all_evenly_and_belong_to_the_example():
    key, index = jax.random.key(0), jnp.arange(64)
    for count in (1, 4, 64, 1000):
        drawn = np.asarray(draw_steps(key, index, 64, jnp.int32(count)))
        assert drawn.min() >= 0
        assert drawn.max() < count
        if count <= 64:
            np.testing.assert_array_equal(np.bincount(drawn, minlength=count), 64 // count)
        halves = [draw_steps(key, part, 64, jnp.int32(count)) for part in (index[:32], index[32:])]
        np.testing.assert_array_equal(np.concatenate(halves), drawn)
    many = [draw_steps(jax.random.key(k), index, 64, jnp.int32(100)) for k in range(300)]
    assert np.bincount(np.concatenate(many), minlength=100).min() > 100


def test_rows_of_a_padded_table_are_those_of_the_table():
    steps = two_steps(make_schedule("cosine"), pairs_of(make_schedule("cosine"), 8))
    longer = padded_to(steps, 32)
    assert all(len(column) == 32 for column in longer)
    which = jnp.array([0, 3, 2])
    for one, other in zip(rows_of(longer, which), rows_of(steps, which), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("weight", "expected"), [("truncated_snr", [3.0, 1.0]), ("snr_plus_one", [4.0, 1.25])])
def test_weights_of_the_squared_error(weight, expected):
    x0, target = jnp.ones((2, 2, 2, 1)), jnp.zeros((2, 2, 2, 1))
    loss = distillation_loss(Prediction(x0, x0), target, jnp.array([0.75, 0.2]), weight)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    # SNR + 1 is the squared error of v.
    alpha_bar = jnp.array([0.75, 0.2])
    v = jax.random.normal(jax.random.key(0), x0.shape)
    read = to_prediction(v, x0, alpha_bar, "v")
    loss = distillation_loss(read, to_prediction(0 * v, x0, alpha_bar, "v").x0, alpha_bar, "snr_plus_one")
    np.testing.assert_allclose(loss, jnp.mean(v**2, (1, 2, 3)), rtol=1e-6)
