"""Whole trajectories against diffusers' schedulers of EDM and of rectified flow.

Theirs hold x as each paper writes it and compute in float32; ours is variance-preserving throughout. Both ask the same
function of what each paper's network sees.

- ``EDMEulerScheduler``, ``EDMDPMSolverMultistepScheduler``: the network of Karras et al. is asked as v, its sign
  turned, and images are in units of sigma_data. Theirs draw one noise for the whole batch; the
  stochastic ones are compared in ``tests/diffusion/test_continuous_schedules.py`` with the formulae.
- ``FlowMatchEulerDiscreteScheduler``: Euler's step on a straight line is DDIM's. Its network is told 1,000 t.
- ``FlowMatchHeunDiscreteScheduler``: as ours but for its last step, which ends at sigma = 0 in a plain Euler step, too.
- ``SASolverScheduler`` coincides with none of ours: its noise has a variance of its own choice per step.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.diffusion.prediction import make_predict
from ddim_jax.diffusion.samplers import make_sampler
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what diffusers imports may be deprecated
    diffusers = pytest.importorskip("diffusers")
    from diffusers import (
        EDMDPMSolverMultistepScheduler,
        EDMEulerScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
    )

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

NOISE = np.random.default_rng(0).normal(size=(2, 4, 4, 3))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def toy(x, time):
    """What the paper's network answers: not linear, and not the same at all levels."""
    return np.tanh(1.3 * x) * np.cos(time) - 0.2 * x


def toy_network(x, time):
    time = time.reshape(-1, 1, 1, 1)
    return jnp.tanh(1.3 * x) * jnp.cos(time) - 0.2 * x


def ours(name, schedule, levels, network, objective):
    predict = make_predict(network, objective, network_input=schedule.network_input)
    return np.asarray(make_sampler(name, schedule, level_pairs(levels)).run(predict, jnp.asarray(NOISE)))


def theirs(scheduler, x, told=lambda timestep: timestep):
    x = torch.as_tensor(x)
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        output = torch.as_tensor(toy(seen.double().numpy(), told(float(timestep))))
        x = scheduler.step(output, timestep, x).prev_sample
    return x.double().numpy()


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_edm_euler(steps):
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    scheduler.set_timesteps(steps)
    schedule = make_schedule("edm")
    levels = sampling_levels("linspace", 1000, steps, schedule)
    np.testing.assert_allclose(np.asarray(scheduler.timesteps), schedule.time_input(levels), rtol=1e-5, atol=1e-6)
    first = NOISE * np.sqrt(80.0**2 + 0.5**2)
    for name in ("ddim", "edm_euler"):
        images = ours(name, schedule, levels, lambda x, time: -toy_network(x, time), "v")
        np.testing.assert_allclose(0.5 * images, theirs(scheduler, first), rtol=1e-4, atol=2e-5)
        scheduler.set_timesteps(steps)


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_edm_dpm_solver(steps):
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, solver_order=2, euler_at_final=True, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    schedule = make_schedule("edm")
    levels = sampling_levels("linspace", 1000, steps, schedule)
    images = ours("dpmpp_2m", schedule, levels, lambda x, time: -toy_network(x, time), "v")
    expected = theirs(scheduler, NOISE * np.sqrt(80.0**2 + 0.5**2))
    np.testing.assert_allclose(0.5 * images, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("steps", [2, 5, 18])
@pytest.mark.parametrize("name", ["ddim", "flow_heun"])
def test_flow_matching(name, steps):
    scheduler = (FlowMatchEulerDiscreteScheduler if name == "ddim" else FlowMatchHeunDiscreteScheduler)()
    scheduler.set_timesteps(steps)
    schedule = make_schedule("flow")
    levels = sampling_levels("linspace", 1000, steps, schedule)
    times = np.asarray(scheduler.timesteps, np.float64)
    asked = times if name == "ddim" else np.concatenate([times[:1], times[1::2]])
    np.testing.assert_allclose(asked, levels, rtol=1e-5)
    images = ours(name, schedule, levels, toy_network, "flow")
    expected = theirs(scheduler, NOISE, told=lambda timestep: timestep / 1000)
    np.testing.assert_allclose(images, expected, rtol=1e-4, atol=2e-5)
