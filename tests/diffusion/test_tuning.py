"""Levels and coefficients fitted to networks that are known in closed form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, GaussianMixture

from ddim_jax import diffusion
from ddim_jax.diffusion import tuning
from ddim_jax.errors import UserError

GAUSSIAN = Gaussian(mean=0.3, deviation=0.6)
MIXTURE = GaussianMixture(
    np.array([0.3, 0.7]), np.array([[0.8, -0.5, 0.1, 0.9], [-0.6, 0.4, -0.9, 0.0]]).reshape(2, 2, 2, 1), 0.1
)
SCHEDULES = ("linear", "cosine", "jsd", "edm", "flow")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def noise(count, seed=0, shape=(2, 2, 1)):
    keys = diffusion.image_keys(seed, jnp.arange(count))
    return np.asarray(diffusion.initial_noise(keys, shape, jnp.float64))


def asked(data):
    """The callable that tuning asks."""
    predict = jax.jit(lambda x, alpha_bar: data.predict(x, Asked(alpha_bar)).x0)
    # In pure noise the oracle's division has no value: there the image is the mean of all.
    mean = data.mean if isinstance(data, Gaussian) else np.tensordot(data.weights, data.means, 1)

    def denoise(x, row):
        if row.alpha_bar == 0:
            return np.broadcast_to(mean, x.shape)
        return np.asarray(predict(jnp.asarray(x), jnp.float64(row.alpha_bar)))

    return denoise


class Asked:
    def __init__(self, alpha_bar):
        self.alpha_bar = alpha_bar


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_linear_flow_of_a_gaussian_is_fitted_exactly(name, steps):
    """Each step of it is an affine function of x, and so is one of x and the predicted image."""
    schedule, denoise, x = diffusion.make_schedule(name), asked(GAUSSIAN), noise(16)
    levels = tuning.fine_levels(schedule, 20)
    first, last = schedule.alpha_bar_at(levels[0]), 1.0
    exact = [GAUSSIAN.flow(x, first, schedule.alpha_bar_at(level)) for level in levels]
    states = np.stack([*exact, GAUSSIAN.flow(x, first, last)])
    fine = tuning.FineTrajectory(levels, states, np.zeros((len(levels),) * 2), np.zeros(len(levels)))
    chosen = levels[np.linspace(0, len(levels) - 1, steps).astype(int)]
    plan = tuning.fit_coefficients(denoise, fine, schedule, chosen, order=1, fitted=8)
    assert plan.distance < 1e-6
    new = noise(32, seed=1)
    table = diffusion.make_sampler(
        "tuned", schedule, diffusion.level_pairs(chosen), coefficients=plan.coefficients
    ).table
    np.testing.assert_allclose(tuning.run(denoise, new, table), GAUSSIAN.flow(new, first, last), atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "flow"])
def test_tuned_steps_end_nearer_to_the_flow_than_any_solver_on_new_noise(name):
    schedule, denoise = diffusion.make_schedule(name), asked(MIXTURE)
    levels = tuning.fine_levels(schedule, 60)
    fine = tuning.fine_trajectory(denoise, noise(64), schedule, levels)
    new = noise(128, seed=1)
    truth = tuning.run(denoise, new, diffusion.make_sampler("unipc3", schedule, diffusion.level_pairs(levels)).table)
    spacings = [spacing for spacing, rule in diffusion.SPACINGS.items() if spacing != "tuned" and rule.real]
    for steps in (5, 8, 10):
        plan = tuning.tuned_steps(denoise, fine, schedule, steps, order=4, fitted=32)
        assert len(plan.levels) == steps
        assert np.all(np.diff(plan.levels) < 0)
        table = tuning.tuned_table(schedule, diffusion.level_pairs(plan.levels), plan.coefficients)
        tuned = tuning.distance(tuning.run(denoise, new, table), truth)
        others = {
            (sampler, spacing): tuning.distance(
                tuning.run(
                    denoise, new, diffusion.make_sampler(sampler, schedule, diffusion.level_pairs(chosen)).table
                ),
                truth,
            )
            for sampler, spacing in itertools.product(("ddim", "dpmpp_2m", "unipc3"), spacings)
            for chosen in [diffusion.sampling_levels(spacing, 1000, steps, schedule)]
        }
        assert tuned < min(others.values()), (steps, tuned, min(others, key=others.get), min(others.values()))
        # What was said of the images that nothing was fitted to holds for others, of which a few decide.
        assert tuned / 3 < plan.distance < 3 * tuned


def test_the_loop_on_the_host_is_that_of_the_samplers():
    schedule, x = diffusion.make_schedule("linear"), noise(4)
    denoise = asked(MIXTURE)
    pairs = diffusion.level_pairs(np.array([1000, 700, 400, 200, 50]))
    coefficients = tuning.base_coefficients(schedule, pairs[:, 0], 3) * 1.01
    for name in ("ddim", "ab3", "dpmpp_2m", "unipc3", "tuned"):
        sampler = diffusion.make_sampler(name, schedule, pairs, coefficients=coefficients)
        np.testing.assert_allclose(
            tuning.run(denoise, x, sampler.table),
            sampler.run(MIXTURE.predict, jnp.asarray(x)),
            atol=1e-12,
            err_msg=name,
        )


@pytest.mark.parametrize("name", SCHEDULES)
def test_costs_are_those_of_steps_of_ddim(name):
    schedule, denoise = diffusion.make_schedule(name), asked(MIXTURE)
    levels = tuning.fine_levels(schedule, 12)
    table = diffusion.make_sampler("dpmpp_2m", schedule, diffusion.level_pairs(levels)).table
    states, images, ends = map(np.stack, zip(*tuning.walk(denoise, noise(3), table), strict=True))
    states = np.concatenate([states, ends[-1:]])
    costs, starts = tuning.step_costs(states, images, schedule, levels)
    every = np.append(levels, 0)
    for i, j in itertools.combinations(range(len(every)), 2):
        step = diffusion.make_sampler("ddim", schedule, every[None, [i, j]]).table
        error = tuning.run(denoise, states[i], step) - states[j]
        expected = np.mean(np.sqrt(np.mean(error**2, axis=(1, 2, 3)))) / np.sqrt(np.mean(states[j] ** 2))
        np.testing.assert_allclose(costs[i, j], expected, rtol=1e-3, atol=1e-6)
    assert starts[0] == 0
    assert np.isinf(costs[3, 3])


def test_levels_are_the_cheapest_of_all_lists():
    generator = np.random.default_rng(0)
    count = 7
    costs = np.where(np.triu(np.ones((count, count + 1)), 1) > 0, generator.random((count, count + 1)), np.inf)
    starts = generator.random(count)
    fine = tuning.FineTrajectory(np.arange(count, 0, -1), np.zeros(0), costs, starts)
    for steps, gamma in itertools.product((1, 3, 7), (0.8, 1.0, 1.2)):

        def cost(places, gamma=gamma):
            ways = itertools.pairwise([*places, count])
            return starts[places[0]] + sum(gamma ** (k + 1) * costs[way] for k, way in enumerate(ways))

        best = min(itertools.combinations(range(count), steps), key=cost)
        np.testing.assert_array_equal(tuning.best_levels(fine, steps, gamma), fine.levels[list(best)])


def test_what_cannot_be_fitted_stays_with_the_solver():
    """Images to fit to that have nothing to do with those that decide."""
    generator = np.random.default_rng(0)
    parts = generator.normal(size=(3, 8, 2, 2, 1))
    usual = np.array([0.5, 0.7, -0.2])
    wanted = np.tensordot(usual, parts, 1)
    wanted[:4] = generator.normal(size=(4, 2, 2, 1))
    np.testing.assert_allclose(tuning._fit(parts, wanted, usual, fitted=4), usual)


@pytest.mark.parametrize("name", SCHEDULES)
def test_fine_levels_go_from_the_noisiest_to_level_1(name):
    schedule = diffusion.make_schedule(name)
    levels = tuning.fine_levels(schedule, 50)
    assert levels[0] == (999 if name == "flow" else 1000)
    np.testing.assert_allclose(levels[-1], 1)
    assert np.all(np.diff(levels) < 0)
    assert 40 <= len(levels) <= 51
    assert np.issubdtype(levels.dtype, np.floating if schedule.has_real_levels else np.integer)


@pytest.mark.parametrize(("name", "num_levels"), [("linear", 1), ("jsd", 1), ("jsd", 2), ("edm", 2), ("linear", 3)])
def test_fine_levels_of_hardly_any(name, num_levels):
    levels = tuning.fine_levels(diffusion.make_schedule(name, num_levels), 5)
    assert 1 <= len(levels) <= 5
    assert levels[0] == num_levels
    assert levels[-1] == 1
    assert np.all(np.diff(levels) < 0)


def test_more_steps_than_levels():
    fine = tuning.FineTrajectory(np.arange(3, 0, -1), np.zeros(0), np.zeros((3, 4)), np.zeros(3))
    with pytest.raises(UserError, match="4 steps cannot be chosen of 3 levels"):
        tuning.best_levels(fine, 4)


@pytest.mark.parametrize("coefficients", [(), (1.0, 2.0), (1.0,) * 5])
def test_coefficients_that_are_not_those_of_the_steps(coefficients):
    with pytest.raises(UserError, match=f"has {len(coefficients)} coefficients for 2 steps"):
        diffusion.make_sampler(
            "tuned", diffusion.make_schedule("linear"), np.array([[10, 5], [5, 0]]), coefficients=coefficients
        )


def test_the_spacing_alone_knows_no_levels():
    for name in ("linear", "edm"):
        with pytest.raises(UserError, match="kept in its workdir; name a workdir where --mode=tune has run"):
            diffusion.sampling_levels("tuned", 1000, 5, diffusion.make_schedule(name))
