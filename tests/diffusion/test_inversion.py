import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from ddim_jax.diffusion.inversion import make_encoder
from ddim_jax.diffusion.prediction import make_predict
from ddim_jax.diffusion.samplers import make_sampler
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import level_pairs, rising_pairs, sampling_levels
from ddim_jax.errors import UserError

LINEAR = make_schedule("linear")
FINE = make_schedule("linear", 4000, 1e-4 / 4, 0.02 / 4)
DATA = Gaussian(mean=0.3, deviation=0.5)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def images():
    return jnp.linspace(-1.5, 2, 36).reshape(2, 3, 3, 2)


def toy_network(x, time):
    return 0.8 * x - 0.3 * x**3 / (1 + x**2) + time.reshape(-1, 1, 1, 1) / 4000


def test_pairs_rise_from_the_clean_image():
    np.testing.assert_array_equal(rising_pairs(np.array([901, 500, 1])), [[0, 1], [1, 500], [500, 901]])


def test_explicit_encoding_is_the_papers_step_upwards():
    levels = sampling_levels("uniform", 1000, 8)
    x = np.asarray(images())
    result = make_encoder("ddim", LINEAR, levels).run(make_predict(toy_network, "eps"), images())
    for level, level_next in rising_pairs(levels):
        now, then = LINEAR.alpha_bar[level], LINEAR.alpha_bar[level_next]
        asked = max(level, 1) if level else level_next  # the first step asks about its end
        eps = toy_network(x, np.full(2, asked - 1.0))
        x = np.sqrt(then / now) * x + (np.sqrt(1 - then) - np.sqrt(then / now * (1 - now))) * eps
    np.testing.assert_allclose(result, x, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("spacing", ["uniform", "quad", "logsnr"])
@pytest.mark.parametrize(("solver", "low", "high"), [("ddim", -1.03, -0.93), ("heun", -3.1, -2.8)])
def test_the_way_there_and_back_converges_with_the_solvers_order(solver, low, high, spacing):
    """Heun is of order 2, but what it errs in upwards and downwards cancels at that order."""
    counts = [50, 100, 200]
    errors = []
    for steps in counts:
        levels = sampling_levels(spacing, 4000, steps, FINE)
        noise = make_encoder(solver, FINE, levels).run(DATA.predict, images())
        back = make_sampler(solver, FINE, level_pairs(levels)).run(DATA.predict, noise)
        errors.append(np.abs(back - images()).max())
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert low < slope < high, (slope, errors)


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_the_code_of_gaussian_data_is_the_exact_flows(solver):
    levels = sampling_levels("uniform", 4000, 400)
    noise = make_encoder(solver, FINE, levels).run(DATA.predict, images())
    exact = DATA.flow(images(), 1.0, FINE.alpha_bar[levels[0]])
    np.testing.assert_allclose(noise, exact, atol=0.03 if solver == "ddim" else 2e-4)


@pytest.mark.parametrize("steps", [10, 50])
def test_implicit_encoding_is_undone_by_decoding(steps):
    levels = sampling_levels("uniform", 1000, steps)
    decode = make_sampler("ddim", LINEAR, level_pairs(levels)).run
    errors = []
    for iterations in (1, 2, 5, 60):
        noise = make_encoder("ddim", LINEAR, levels, iterations).run(DATA.predict, images())
        errors.append(np.abs(decode(DATA.predict, noise) - images()).max())
    assert np.all(np.diff(errors) < 0)
    assert errors[-1] < 1e-12


def test_implicit_encoding_is_exact_for_a_network_too():
    levels = sampling_levels("quad", 1000, 20)
    predict = make_predict(toy_network, "eps")
    encoder = make_encoder("ddim", LINEAR, levels, iterations=100)
    back = make_sampler("ddim", LINEAR, level_pairs(levels)).run(predict, encoder.run(predict, images()))
    np.testing.assert_allclose(back, images(), atol=1e-10)


@pytest.mark.parametrize(("solver", "iterations", "each"), [("ddim", 0, 1), ("ddim", 3, 3), ("heun", 0, 2)])
def test_evaluations_and_no_question_about_level_0(solver, iterations, each):
    asked = []

    def network(x, time):
        jax.debug.callback(lambda time: asked.append(float(time)), time[0])
        return toy_network(x, time)

    encoder = make_encoder(solver, LINEAR, sampling_levels("uniform", 1000, 6), iterations)
    jax.block_until_ready(encoder.run(make_predict(network, "eps"), images()))
    jax.effects_barrier()
    assert encoder.evaluations == len(asked) == 6 * each
    assert min(asked) == 0  # level 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("unipc2", 0), "choose from: ddim, heun"),
        (("ddim", -1), "must be 0"),
        (("heun", 3), "no implicit encoding"),
    ],
)
def test_mistakes_are_explained_in_one_line(arguments, word):
    solver, iterations = arguments
    with pytest.raises(UserError, match=word) as caught:
        make_encoder(solver, LINEAR, sampling_levels("uniform", 1000, 10), iterations)
    assert "\n" not in str(caught.value)


def test_published_lists_with_repeats_are_refused():
    with pytest.raises(UserError, match="occur twice"):
        make_encoder("ddim", LINEAR, sampling_levels("quad_published", 1000, 100))
