import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.diffusion.prediction import make_predict
from ddim_jax.diffusion.samplers import make_sampler
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels
from ddim_jax.errors import UserError
from ddim_jax.random_streams import image_keys

LINEAR = make_schedule("linear")
LEVELS = sampling_levels("uniform", 1000, 12)
PREDICT = make_predict(lambda x, time: 0.8 * x - 0.3 * x**3 / (1 + x**2), "eps")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def start():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, 1))), image_keys(0, jnp.arange(2))


@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.0), ("ddim", 0.5), ("heun", 0.0), ("plms", 0.0), ("unipc2", 0.0)])
def test_what_is_kept_is_what_was_passed(name, eta):
    x, keys = start()
    sampler = make_sampler(name, LINEAR, level_pairs(LEVELS), eta)
    result, kept = sampler.run_keeping(PREDICT, x, [11, 0, 4], keys)
    np.testing.assert_allclose(result, sampler.run(PREDICT, x, keys), rtol=1e-12)
    assert kept.x.shape == kept.x0.shape == (3, *x.shape)
    np.testing.assert_array_equal(kept.x[1], x)
    if name != "plms":  # whose last step mixes earlier predictions in
        np.testing.assert_allclose(kept.x0[0], result, rtol=1e-9)
    # A sampler on the first four steps ends where the fifth begins.
    if name in ("ddim", "heun", "plms"):
        part = make_sampler(name, LINEAR, level_pairs(LEVELS)[:4], eta).run(PREDICT, x, keys)
        np.testing.assert_allclose(kept.x[2], part, rtol=1e-9)


def test_what_is_kept_at_all_steps_lies_on_the_way():
    """Each x is made of the x0 and the eps before it: in a deterministic DDIM run these give the next x."""
    x, _ = start()
    sampler = make_sampler("ddim", LINEAR, level_pairs(LEVELS))
    _, kept = sampler.run_keeping(PREDICT, x, range(12))
    alpha_bar = LINEAR.alpha_bar[LEVELS].reshape(-1, 1, 1, 1, 1)
    eps = (kept.x - np.sqrt(alpha_bar) * kept.x0) / np.sqrt(1 - alpha_bar)
    following = np.sqrt(alpha_bar[1:]) * kept.x0[:-1] + np.sqrt(1 - alpha_bar[1:]) * eps[:-1]
    np.testing.assert_allclose(kept.x[1:], following, rtol=1e-9)


@pytest.mark.parametrize("name", ["ddim", "unipc2"])
def test_memory_grows_with_what_is_kept_and_not_with_the_steps(name):
    x = jnp.zeros((4, 32, 32, 3))

    def memory(steps, keep):
        run = make_sampler(name, LINEAR, level_pairs(sampling_levels("uniform", 1000, steps))).run_keeping
        analysis = jax.jit(lambda x: run(PREDICT, x, keep)).lower(x).compile().memory_analysis()
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    images = x.size * 8
    assert memory(500, [0, 9]) - memory(10, [0, 9]) < images  # the rows alone
    assert memory(10, range(8)) - memory(10, range(2)) <= 2.5 * 12 * images


@pytest.mark.parametrize(("steps", "word"), [([12], "0 to 11"), ([-1], "0 to 11"), ([3, 3], "once")])
@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_mistakes_are_explained(name, steps, word):
    sampler = make_sampler(name, LINEAR, level_pairs(LEVELS))
    with pytest.raises(UserError, match=word):
        sampler.run_keeping(PREDICT, start()[0], steps)
