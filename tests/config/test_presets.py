"""Each preset against the named project's loop, written here in NumPy from its formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.config.presets import PRESETS, preset
from ddim_jax.diffusion.prediction import make_predict
from ddim_jax.diffusion.samplers import make_sampler
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels
from ddim_jax.errors import UserError
from ddim_jax.random_streams import image_keys, normal_each

T = 1000
BETAS = np.linspace(1e-4, 0.02, T)
# As those projects index: 0 is the first noisy level.
ABAR = np.cumprod(1 - BETAS)
SHAPE = (3, 3, 2)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def network(x, time):
    """Unlike a good network it often predicts x0 outside [-1, 1], so that clipping matters."""
    return 0.8 * x - 0.3 * x**3 / (1 + x**2) + 0.2 * time.reshape(-1, 1, 1, 1) / (1 + time.reshape(-1, 1, 1, 1))


def run(name, steps, schedule="linear"):
    settings, schedule = preset(name), make_schedule(schedule, T)
    pairs = level_pairs(sampling_levels(settings.spacing, T, steps, schedule))
    sampler = make_sampler(settings.sampler, schedule, pairs, settings.eta)
    predict = make_predict(network, "eps", settings.clip)
    return np.asarray(jax.jit(lambda x, keys: sampler.run(predict, x, keys))(start(), keys()))


def keys():
    return image_keys(0, jnp.arange(2))


def start():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, *SHAPE)))


def noise(step):
    return np.asarray(normal_each(keys(), step + 1, SHAPE, jnp.float64))


def ddim_paper(sequence):
    """DDIM's ``generalized_steps`` with eta = 0."""
    x = np.asarray(start())
    for t, t_next in zip(sequence[::-1], [-1, *sequence[:-1]][::-1], strict=True):
        at, at_next = ABAR[t], (ABAR[t_next] if t_next >= 0 else 1.0)
        eps = network(x, np.full(2, float(t)))
        x0 = (x - eps * np.sqrt(1 - at)) / np.sqrt(at)
        c1 = 0.0 * np.sqrt((1 - at / at_next) * (1 - at_next) / (1 - at))
        x = np.sqrt(at_next) * x0 + c1 * 0.0 + np.sqrt(1 - at_next - c1**2) * eps
    return x


@pytest.mark.parametrize("steps", [10, 100])
def test_ddim_paper_cifar10(steps):
    sequence = [int(s) for s in np.linspace(0, np.sqrt(T * 0.8), steps) ** 2]
    np.testing.assert_allclose(run("ddim-paper-cifar10", steps), ddim_paper(sequence), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [10, 15])
def test_ddim_paper_celeba(steps):
    sequence = list(range(0, T, T // steps))
    np.testing.assert_allclose(run("ddim-paper-celeba", steps), ddim_paper(sequence), rtol=1e-9, atol=1e-9)


def posterior_steps(times, betas, alphas_cumprod):
    """DDPM's ``p_sample_loop`` with "fixed large" variance and clipping, over given betas; times are the network's."""
    x = np.asarray(start())
    previous = np.append(1.0, alphas_cumprod[:-1])
    for step, i in enumerate(range(len(times))[::-1]):
        eps = network(x, np.full(2, float(times[i])))
        x0 = np.sqrt(1 / alphas_cumprod[i]) * x - np.sqrt(1 / alphas_cumprod[i] - 1) * eps
        x0 = np.clip(x0, -1, 1)
        mean = (
            betas[i] * np.sqrt(previous[i]) / (1 - alphas_cumprod[i]) * x0
            + (1 - previous[i]) * np.sqrt(1 - betas[i]) / (1 - alphas_cumprod[i]) * x
        )
        x = mean + (i > 0) * np.sqrt(betas[i]) * noise(step)
    return x


def test_ddpm():
    """On 200 of its levels, as if the model had no more: a thousand draws would only take longer."""
    settings = preset("ddpm")
    schedule = make_schedule("linear", 200)
    pairs = level_pairs(sampling_levels(settings.spacing, 200, 200))
    sampler = make_sampler(settings.sampler, schedule, pairs)
    result = sampler.run(make_predict(network, "eps", settings.clip), start(), keys())
    betas = np.linspace(1e-4, 0.02, 200)
    np.testing.assert_allclose(result, posterior_steps(range(200), betas, np.cumprod(1 - betas)), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("steps", [2, 10, 21, 33])
def test_openai(steps):
    """Respacing to one section: equal fractional strides from 0 to T - 1, rounded; betas made anew from alpha_bar."""
    position, times = 0.0, []
    for _ in range(steps):
        times.append(round(position))
        position += (T - 1) / (steps - 1)
    alphas_cumprod = ABAR[times]
    betas = 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
    np.testing.assert_allclose(
        run("openai", steps), posterior_steps(times, betas, alphas_cumprod), rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("steps", [10, 50])
def test_diffusers(steps):
    """``DDIMScheduler``: "leading" times, the level after t is t - T // S, x0 clipped, eps as predicted."""
    x, ratio = np.asarray(start()), T // steps
    for t in (np.arange(steps) * ratio)[::-1]:
        at, at_next = ABAR[t], (ABAR[t - ratio] if t - ratio >= 0 else 1.0)
        eps = network(x, np.full(2, float(t)))
        x0 = np.clip((x - np.sqrt(1 - at) * eps) / np.sqrt(at), -1, 1)
        x = np.sqrt(at_next) * x0 + np.sqrt(1 - at_next) * eps
    np.testing.assert_allclose(run("diffusers", steps), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_keras(steps):
    """The example's ``reverse_diffusion``, which returns the last predicted images."""

    def rates(time):
        angle = np.arccos(0.95) + time * (np.arccos(0.02) - np.arccos(0.95))
        return np.cos(angle), np.sin(angle)

    x = np.asarray(start())
    pictures = None
    for step in range(steps):
        time = 1 - step / steps
        signal, deviation = rates(time)
        eps = network(x, np.full(2, deviation**2))
        pictures = (x - deviation * eps) / signal
        signal, deviation = rates(time - 1 / steps)
        x = signal * pictures + deviation * eps
    np.testing.assert_allclose(run("keras", steps, "offset_cosine"), pictures, rtol=1e-9, atol=1e-9)


def test_presets_are_settings_that_exist():
    for name in PRESETS:
        settings = preset(name)
        schedule = make_schedule("linear", 100)
        pairs = level_pairs(sampling_levels(settings.spacing, 100, 10, schedule))
        make_sampler(settings.sampler, schedule, pairs, settings.eta)
        make_predict(network, "eps", settings.clip)


def test_unknown_presets():
    with pytest.raises(UserError, match="choose from: ddim-paper-cifar10") as caught:
        preset("ddim")
    assert "\n" not in str(caught.value)
