import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.diffusion.guidance import guided
from ddim_jax.diffusion.losses import training_target
from ddim_jax.diffusion.prediction import make_predict, to_prediction
from ddim_jax.diffusion.samplers import make_sampler
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels
from ddim_jax.errors import UserError

LINEAR = make_schedule("linear")
LABEL = jnp.array([0, 2, 1])
NULL = 3


def network(x, time, label):
    offset = jnp.array([-0.5, 0.2, 0.9, 0.0], x.dtype)[label]
    return 0.7 * x + offset.reshape(-1, 1, 1, 1) * (1 + time.reshape(-1, 1, 1, 1) / 1000)


def images(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(3, 2, 2, 1)), jnp.float32)


def times(value):
    return jnp.full(3, value, jnp.float32)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_the_two_predictions_are_extrapolated(scale):
    x, time = images(), times(400)
    conditional = network(x, time, LABEL)
    unconditional = network(x, time, jnp.full(3, NULL))
    result = guided(network, LABEL, NULL, scale)(x, time)
    np.testing.assert_allclose(result, unconditional + scale * (conditional - unconditional), rtol=1e-6)


def batch_sizes(scale, interval=None):
    """Of each time that the network is called in a program."""
    sizes = []

    def counting(x, time, label):
        sizes.append(len(x))
        return network(x, time, label)

    jax.make_jaxpr(guided(counting, LABEL, NULL, scale, interval))(images(), times(400))
    return sizes


def test_both_passes_are_one_batch_and_without_guidance_there_is_one_pass():
    assert batch_sizes(2.0) == [6]
    assert batch_sizes(1.0) == [3]
    assert batch_sizes(1.0, (100, 500)) == [3]


@pytest.mark.parametrize(("time", "inside"), [(99, False), (100, True), (300, True), (500, True), (501, False)])
def test_guidance_acts_inside_its_interval_alone(time, inside):
    x, time = images(), times(time)
    result = guided(network, LABEL, NULL, 2.5, (100, 500))(x, time)
    expected = guided(network, LABEL, NULL, 2.5)(x, time) if inside else network(x, time, LABEL)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_outside_the_interval_the_second_pass_is_not_run():
    ran = []

    def counting(x, time, label):
        jax.debug.callback(lambda: ran.append(len(x)))
        return network(x, time, label)

    sampler = make_sampler("ddim", LINEAR, level_pairs(sampling_levels("uniform", 1000, 10)))
    predict = make_predict(guided(counting, LABEL, NULL, 2.0, (200, 500)), "eps")
    jax.block_until_ready(jax.jit(lambda x: sampler.run(predict, x))(images()))
    jax.effects_barrier()
    assert sorted(ran) == [3] * 6 + [6] * 4  # times 200, 300, 400 and 500


@pytest.mark.parametrize("objective", ["x0", "v"])
def test_guiding_any_objective_guides_the_noise(objective):
    with jax.enable_x64(True):
        x, time, alpha_bar = images().astype(jnp.float64), times(300).astype(jnp.float64), 0.3

        def restated(x, time, label):
            x0, eps = to_prediction(network(x, time, label), x, alpha_bar, "eps")
            return training_target(objective, x0, eps, alpha_bar)

        by_eps = to_prediction(guided(network, LABEL, NULL, 4.0)(x, time), x, alpha_bar, "eps")
        by_other = to_prediction(guided(restated, LABEL, NULL, 4.0)(x, time), x, alpha_bar, objective)
        np.testing.assert_allclose(by_other.x0, by_eps.x0, rtol=1e-10)
        np.testing.assert_allclose(by_other.eps, by_eps.eps, rtol=1e-10)


def test_what_is_said_of_the_variance_is_that_of_the_class():
    def two_halves(x, time, label):
        return jnp.concatenate([network(x, time, label), 2 * network(x, time, label)], axis=-1)

    x, time = images(), times(300)
    output = guided(two_halves, LABEL, NULL, 4.0)(x, time)
    channels = x.shape[-1]
    np.testing.assert_array_equal(output[..., :channels], guided(network, LABEL, NULL, 4.0)(x, time))
    np.testing.assert_allclose(output[..., channels:], 2 * network(x, time, LABEL), rtol=1e-6)


def test_guided_classes_of_gaussians_have_the_known_mean():
    """A class N(m, 1) beside N(0, 1) without a class: guidance moves the mean of the samples to w m."""
    mean = 0.4

    def exact(x, time, label):
        alpha_bar = jnp.asarray(LINEAR.alpha_bar, x.dtype)[time.astype(int) + 1].reshape(-1, 1, 1, 1)
        expected = jnp.where(label == 0, mean, 0.0).reshape(-1, 1, 1, 1)
        return jnp.sqrt(1 - alpha_bar) * (x - jnp.sqrt(alpha_bar) * expected)

    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 20, 20, 1)))
        sampler = make_sampler("dpmpp_2m", LINEAR, level_pairs(sampling_levels("trailing", 1000, 200)))
        network = guided(exact, jnp.array([0]), 1, 2.5)
        result = sampler.run(make_predict(network, "eps"), x)
        np.testing.assert_allclose(result, x + 2.5 * mean, atol=0.02)


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="finite"):
        guided(network, LABEL, NULL, float("nan"))
    with pytest.raises(UserError, match="lower end"):
        guided(network, LABEL, NULL, 2.0, (500, 100))
