from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, GaussianMixture

from ddim_jax.diffusion.losses import diffuse, training_target
from ddim_jax.diffusion.prediction import Prediction, clipped, make_predict, per_image, to_prediction
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.errors import UserError

OBJECTIVES = ("eps", "x0", "v")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def row(alpha_bar, time=0.0, dtype=jnp.float64):
    return SimpleNamespace(time=dtype(time), alpha_bar=dtype(alpha_bar))


def images(seed, n=5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, 4, 3, 2)))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("alpha_bar", [0.9999, 0.5, 4e-5, [0.9, 0.7, 0.5, 0.3, 0.01]])
def test_a_right_answer_gives_back_image_and_noise(objective, alpha_bar):
    x0, eps = images(0), images(1)
    alpha_bar = jnp.asarray(alpha_bar)
    target = training_target(objective, x0, eps, alpha_bar)
    prediction = to_prediction(target, diffuse(x0, eps, alpha_bar), alpha_bar, objective)
    np.testing.assert_allclose(prediction.x0, x0, atol=1e-10)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-10)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("other", OBJECTIVES)
def test_objectives_convert_into_one_another(objective, other):
    """Any output, right or wrong, means the same when stated as another objective."""
    output, x, alpha_bar = images(2), images(3), 0.4
    once = to_prediction(output, x, alpha_bar, objective)
    again = to_prediction(training_target(other, once.x0, once.eps, alpha_bar), x, alpha_bar, other)
    np.testing.assert_allclose(again.x0, once.x0, atol=1e-13)
    np.testing.assert_allclose(again.eps, once.eps, atol=1e-13)
    np.testing.assert_allclose(diffuse(once.x0, once.eps, alpha_bar), x, atol=1e-13)


@pytest.mark.parametrize("objective", ["x0", "v"])
def test_pure_noise_is_no_problem_for_x0_and_v(objective):
    x, output = images(4), images(5)
    prediction = to_prediction(output, x, make_schedule("jsd").alpha_bar[-1], objective)
    np.testing.assert_array_equal(prediction.eps, x)
    np.testing.assert_array_equal(prediction.x0, output if objective == "x0" else -output)


@pytest.mark.parametrize(
    ("clip", "x0", "eps"),
    [
        # x = 2, alpha_bar = 0.64, eps = -1 give x0 = (2 + 0.6) / 0.8 = 3.25; what is left of x at x0 = 1 is 1.2 / 0.6.
        ("none", 3.25, -1.0),
        ("keep_eps", 1.0, -1.0),
        ("rederive_eps", 1.0, 2.0),
    ],
)
def test_clip_conventions_by_hand(clip, x0, eps):
    predict = make_predict(lambda x, time: -jnp.ones_like(x), "eps", clip)
    prediction = predict(jnp.full((1, 1, 1, 1), 2.0), row(0.64))
    np.testing.assert_allclose(np.ravel(prediction), [x0, eps], rtol=1e-14)


@pytest.mark.parametrize("clip", ["keep_eps", "rederive_eps"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_clipping_changes_nothing_inside_the_range_and_bounds_what_is_outside(clip, objective):
    x = images(6)
    plain = make_predict(lambda x, time: 2 * jnp.sin(3 * x), objective)(x, row(0.3))
    cut = make_predict(lambda x, time: 2 * jnp.sin(3 * x), objective, clip)(x, row(0.3))
    inside = np.abs(plain.x0) <= 1
    assert 0 < inside.sum() < inside.size
    np.testing.assert_allclose(cut.eps[inside], plain.eps[inside], atol=1e-13)
    np.testing.assert_array_equal(cut.x0, np.clip(plain.x0, -1, 1))
    adds_up = diffuse(cut.x0, cut.eps, 0.3)
    np.testing.assert_allclose(adds_up[inside], x[inside], atol=1e-13)
    assert np.allclose(adds_up[~inside], x[~inside], atol=1e-13) == (clip == "rederive_eps")


@pytest.mark.parametrize("percentile", [50.0, 90.0, 100.0])
def test_dynamic_threshold_by_hand(percentile):
    """Imagen, section 2.3: per image, cut at the percentile s of |x0|, never below 1, and divide by s."""
    x = images(11)
    plain = make_predict(lambda x, time: 2 * jnp.sin(3 * x), "eps")(x, row(0.3))
    result = make_predict(lambda x, time: 2 * jnp.sin(3 * x), "eps", "dynamic_threshold", percentile)(x, row(0.3))
    for x0, before in zip(np.asarray(result.x0), np.asarray(plain.x0), strict=True):
        s = max(1.0, np.percentile(np.abs(before), percentile))
        np.testing.assert_allclose(x0, np.clip(before, -s, s) / s, rtol=1e-12)
    assert np.abs(result.x0).max() <= 1
    np.testing.assert_allclose(diffuse(*result, 0.3), x, atol=1e-13)  # the noise is derived anew


def test_dynamic_threshold_is_clipping_for_small_pixels_or_at_a_limit_of_1():
    x = images(12)
    for factor, largest in ((0.1, np.inf), (2.0, 1.0)):

        def network(x, time, factor=factor):
            return factor * jnp.sin(3 * x)

        dynamic = make_predict(network, "x0", "dynamic_threshold", 99.5, largest)(x, row(0.3))
        clip = make_predict(network, "x0", "rederive_eps")(x, row(0.3))
        np.testing.assert_allclose(dynamic.x0, clip.x0, rtol=1e-14)
        np.testing.assert_allclose(dynamic.eps, clip.eps, rtol=1e-13)


@pytest.mark.parametrize(("percentile", "largest"), [(0.0, 2.0), (101.0, 2.0), (float("nan"), 2.0), (99.0, 0.9)])
def test_unusable_thresholds_are_refused(percentile, largest):
    with pytest.raises(UserError, match="dynamic threshold"):
        make_predict(lambda x, time: x, "eps", "dynamic_threshold", percentile, largest)


def test_the_network_is_told_the_same_time_for_every_image_in_the_dtype_of_x():
    told = []

    def network(x, time):
        told.append(time)
        return x.astype(jnp.bfloat16)

    x = images(7, n=3).astype(jnp.float32)
    prediction = make_predict(network, "eps")(x, row(0.5, time=999.0, dtype=jnp.float32))
    assert told[0].dtype == jnp.float32
    np.testing.assert_array_equal(told[0], [999.0] * 3)
    assert prediction.x0.dtype == prediction.eps.dtype == jnp.float32


def test_values_per_image_line_up_with_images():
    x = images(8)
    assert per_image(0.5, x).shape == ()
    assert per_image(jnp.arange(5.0), x).shape == (5, 1, 1, 1)


def test_wrong_names_are_explained():
    with pytest.raises(UserError, match="choose from: eps, x0, v"):
        make_predict(lambda x, time: x, "epsilon")
    with pytest.raises(UserError, match="choose from: eps, x0, v"):
        to_prediction(images(0), images(0), 0.5, "score")
    with pytest.raises(UserError, match="choose from: none"):
        clipped(lambda x, row: Prediction(x, x), "clamp")


@pytest.mark.parametrize("alpha_bar", [0.99, 0.3, 0.001])
def test_the_oracles_themselves_are_right(alpha_bar):
    """E[eps | x] = -sqrt(1 - alpha_bar) grad log p(x), by automatic differentiation."""
    means = np.random.default_rng(9).normal(size=(3, 4, 3, 2))
    mixture = GaussianMixture(weights=[0.2, 0.3, 0.5], means=means, deviation=0.4)
    x = images(10)
    score = jax.grad(lambda x: mixture.log_density(x, alpha_bar).sum())(x)
    prediction = mixture.predict(x, row(alpha_bar))
    np.testing.assert_allclose(prediction.eps, -((1 - alpha_bar) ** 0.5) * score, atol=1e-11)
    np.testing.assert_allclose(diffuse(*prediction, alpha_bar), x, atol=1e-11)

    gaussian = Gaussian(mean=0.3, deviation=0.4)
    single = GaussianMixture(weights=[1.0], means=np.full((1, 4, 3, 2), 0.3), deviation=0.4)
    np.testing.assert_allclose(
        gaussian.predict(x, row(alpha_bar)).eps, single.predict(x, row(alpha_bar)).eps, atol=1e-12
    )
