import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianMixture

from ddim_jax import diffusion
from ddim_jax.diffusion.adaptive import adaptive_levels
from ddim_jax.errors import UserError

DATA = GaussianMixture(
    np.array([0.3, 0.7]), np.array([[0.8, -0.5, 0.1, 0.9], [-0.6, 0.4, -0.9, 0.0]]).reshape(2, 2, 2, 1), 0.05
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def noise():
    return diffusion.initial_noise(diffusion.image_keys(0, jnp.arange(32)), (2, 2, 1), jnp.float64)


def error(schedule, levels):
    """Of DDIM down to level 1, against very many steps."""

    def run(levels):
        pairs = np.stack([levels[:-1], levels[1:]], axis=1)
        return diffusion.make_sampler("ddim", schedule, pairs).run(DATA.predict, noise())

    exact = schedule.level_at(np.linspace(*schedule.log_snr_at(levels[[0, -1]]), 2000))
    return float(jnp.sqrt(jnp.mean((run(levels) - run(exact)) ** 2)))


@pytest.mark.parametrize("name", ["vp", "edm", "flow", "linear", "cosine"])
def test_levels_are_a_chain_down_to_level_1_and_more_where_the_tolerance_is_less(name):
    schedule = diffusion.make_schedule(name)
    coarse, fine = (adaptive_levels(DATA.predict, noise(), schedule, tolerance) for tolerance in (0.2, 0.002))
    for levels in (coarse, fine):
        assert np.issubdtype(levels.dtype, np.floating if schedule.has_real_levels else np.integer)
        assert levels[0] == 1000 - schedule.ends_in_noise
        assert levels[-1] == 1
        assert np.all(np.diff(levels) < 0)
    assert 1.5 * len(coarse) < len(fine)


def test_they_serve_better_than_as_many_in_equal_steps():
    schedule = diffusion.make_schedule("vp")
    levels = adaptive_levels(DATA.predict, noise(), schedule, 0.02)
    equal = diffusion.sampling_levels("linspace", 1000, len(levels), schedule)
    by_noise = diffusion.sampling_levels("logsnr", 1000, len(levels), schedule)
    assert error(schedule, levels) < min(error(schedule, equal), error(schedule, by_noise))


@pytest.mark.parametrize("tolerance", [0.0, -1.0, np.nan, np.inf])
def test_tolerances_that_mean_nothing(tolerance):
    with pytest.raises(UserError, match="must be a positive number"):
        adaptive_levels(DATA.predict, noise(), diffusion.make_schedule("vp"), tolerance)


def test_a_tolerance_too_small_to_end(monkeypatch):
    monkeypatch.setattr("ddim_jax.diffusion.adaptive._MOST_STEPS", 20)
    with pytest.raises(UserError, match="more than 20 steps; choose a larger one"):
        adaptive_levels(DATA.predict, noise(), diffusion.make_schedule("vp"), 1e-6)
