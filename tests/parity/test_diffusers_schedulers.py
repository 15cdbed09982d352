"""Step for step against diffusers' schedulers, on random network outputs.

The definitions coincide where S divides T: there diffusers' "leading" spacing with offset 0 is the paper's uniform
list. Elsewhere they do not: its ``DDIMScheduler.step`` takes t - T // S as the next level whatever the list,
and there is no quadratic list. alpha_bar is float32 there; to compare formulas rather than rounding the schedulers are
given ours, and the schedules are compared by themselves.

The solvers coincide on "trailing" levels (S need not divide T there), with the sigmas given in float64, and with the
options named in each test. Where they do not coincide otherwise:

- ``DPMSolverMultistepScheduler`` and ``UniPCMultistepScheduler`` end at level 1 with ``final_sigmas_type="sigma_min"``.
  Their "linspace" and "leading" levels are made of S + 1 numbers, of which the last is left out.
- ``PNDMScheduler`` ends at alpha_bar of level 1 instead of the clean image, so that its last step does nothing, unless
  ``set_alpha_to_one``; and without ``skip_prk_steps`` begins with three Runge-Kutta-like steps that we do not have.
- ``HeunDiscreteScheduler`` has x / alpha where we have x.
- ``DDIMInverseScheduler`` asks the network about the level where a step ends, always; that is one iteration of the
  implicit encoding. The explicit one does so in the first step alone.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.diffusion.inversion import make_encoder
from ddim_jax.diffusion.prediction import clipped, make_predict, to_prediction
from ddim_jax.diffusion.samplers import make_sampler
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels
from ddim_jax.diffusion.table import SamplerTable, step

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what diffusers imports may be deprecated
    diffusers = pytest.importorskip("diffusers")
    from diffusers import (
        DDIMInverseScheduler,
        DDIMScheduler,
        DDPMScheduler,
        DEISMultistepScheduler,
        DPMSolverMultistepScheduler,
        HeunDiscreteScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    )

# Of torch tensors in NumPy functions inside diffusers.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

LINEAR = make_schedule("linear")
OBJECTIVES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def with_our_alpha_bar(scheduler, steps):
    scheduler.alphas_cumprod = torch.tensor(LINEAR.alpha_bar[1:])
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    return scheduler


def rows(sampler, steps, eta=0.0):
    table = make_sampler(sampler, LINEAR, level_pairs(sampling_levels("uniform", 1000, steps)), eta).table
    return [SamplerTable(*(jnp.asarray(value) for value in row)) for row in zip(*table, strict=True)]


def normal(seed):
    return np.random.default_rng(seed).normal(size=(2, 4, 4, 3))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("linear", "linear"), ("quad", "scaled_linear"), ("cosine", "squaredcos_cap_v2"), ("sigmoid", "sigmoid")],
)
def test_schedules(ours, theirs):
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs, beta_start=1e-4, beta_end=0.02)
    # float32 there: a relative 1e-6, but for cosine's last level, where 1 - beta = 0.001 is left of 1 - 0.999.
    relative = scheduler.alphas_cumprod.numpy() / make_schedule(ours).alpha_bar[1:] - 1
    assert np.abs(relative[:-1]).max() < 1e-6
    assert abs(relative[-1]) < 2e-5


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("clip", ["none", "keep_eps", "rederive_eps"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddim(steps, eta, clip, objective):
    scheduler = with_our_alpha_bar(
        DDIMScheduler(clip_sample=clip != "none", prediction_type=OBJECTIVES[objective]), steps
    )
    table = rows("ddim", steps, eta)
    assert [float(row.time) for row in table] == scheduler.timesteps.tolist()
    for s in (0, 1, steps // 2, steps - 1):
        x, output, z = normal(3 * s), normal(3 * s + 1), normal(3 * s + 2)
        predict = make_predict(lambda x, time, output=output: jnp.asarray(output), objective, clip)
        ours = step(predict, jnp.asarray(x), table[s], jnp.asarray(z))
        theirs = scheduler.step(
            torch.tensor(output),
            int(table[s].time),
            torch.tensor(x),
            eta=eta,
            use_clipped_model_output=clip == "rederive_eps",
            variance_noise=torch.tensor(z),
        )
        np.testing.assert_allclose(ours, theirs.prev_sample.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clip", ["none", "rederive_eps"])
@pytest.mark.parametrize(("sampler", "variance"), [("ddpm_small", "fixed_small"), ("ddpm_large", "fixed_large")])
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddpm(steps, sampler, variance, clip):
    """Its mean is the posterior's of the clipped image, our ``rederive_eps``; there is no ``keep_eps`` in it."""
    scheduler = with_our_alpha_bar(DDPMScheduler(variance_type=variance, clip_sample=clip != "none"), steps)
    table = rows(sampler, steps)
    assert [float(row.time) for row in table] == scheduler.timesteps.tolist()
    for s in (0, 1, steps // 2, steps - 1):
        x, output = normal(2 * s), normal(2 * s + 1)
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(s), dtype=torch.float64)

        def predict(x, row, output=output):
            return to_prediction(jnp.asarray(output), x, row.alpha_bar, "eps")

        ours = step(clipped(predict, clip), jnp.asarray(x), table[s], jnp.asarray(z.numpy()))
        theirs = scheduler.step(
            torch.tensor(output),
            int(table[s].time),
            torch.tensor(x),
            generator=torch.Generator().manual_seed(s),
        )
        np.testing.assert_allclose(ours, theirs.prev_sample.numpy(), rtol=1e-9, atol=1e-9)


# --- solvers: whole runs ------------------------------------------------------------------------


def toy_network(x, time):
    """Nonlinear in x and dependent on time, for NumPy and JAX arrays alike."""
    return 0.8 * x - 0.3 * x**3 / (1 + x**2) + time.reshape(-1, 1, 1, 1) / 4000


def run_theirs(scheduler, x):
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, time)
        output = toy_network(scaled.numpy(), np.full(len(x), float(time)))
        x = scheduler.step(torch.tensor(output), time, x).prev_sample
    return x.numpy()


def run_ours(name, spacing, steps, clip="none"):
    pairs = level_pairs(sampling_levels(spacing, 1000, steps))
    sampler = make_sampler(name, LINEAR, pairs)
    return sampler, np.asarray(sampler.run(make_predict(toy_network, "eps", clip), jnp.asarray(normal(100))))


def with_our_sigmas(scheduler, times):
    """Replaces the float32 sigmas, which would hide differences below 1e-6."""
    sigmas = np.append(np.sqrt(1 / LINEAR.alpha_bar[1:] - 1)[np.asarray(times)], 0.0)
    np.testing.assert_allclose(scheduler.sigmas, sigmas, rtol=1e-5)
    scheduler.sigmas = torch.tensor(sigmas)
    return scheduler


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
def test_dpm_solver_pp_2m(steps):
    scheduler = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing", algorithm_type="dpmsolver++", solver_order=2
    )
    scheduler.set_timesteps(steps)
    sampler, ours = run_ours("dpmpp_2m", "trailing", steps)
    assert scheduler.timesteps.tolist() == sampler.table.time.tolist()
    with_our_sigmas(scheduler, scheduler.timesteps)
    # It keeps x in float32.
    np.testing.assert_allclose(ours, run_theirs(scheduler, torch.tensor(normal(100))), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
def test_unipc(steps, order):
    scheduler = UniPCMultistepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        timestep_spacing="trailing",
        solver_order=order,
        solver_type="bh2",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    sampler, ours = run_ours(f"unipc{order}", "trailing", steps)
    assert scheduler.timesteps.tolist() == sampler.table.time.tolist()
    with_our_sigmas(scheduler, scheduler.timesteps)
    theirs = run_theirs(scheduler, torch.tensor(normal(100)))
    # It solves for the weights in float32.
    np.testing.assert_allclose(ours, theirs, rtol=1e-4 if order == 3 else 1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("steps", [3, 7, 20])
def test_deis(steps, order):
    """Its "logrho", the only one it has; to the last level, since its step from there is NaN unless of first order."""
    scheduler = DEISMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing", solver_order=order, lower_order_final=False
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas[-1] = 0
    with_our_sigmas(scheduler, scheduler.timesteps)
    scheduler.timesteps = scheduler.timesteps[:-1]
    pairs = level_pairs(sampling_levels("trailing", 1000, steps))[:-1]
    sampler = make_sampler(f"deis{order}", LINEAR, pairs)
    ours = np.asarray(sampler.run(make_predict(toy_network, "eps"), jnp.asarray(normal(100))))
    np.testing.assert_allclose(ours, run_theirs(scheduler, torch.tensor(normal(100))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 5, 10, 50])
def test_plms(steps):
    scheduler = with_our_alpha_bar(PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True), steps)
    sampler, ours = run_ours("plms", "uniform", steps)
    assert scheduler.timesteps.tolist() == sampler.table.time.tolist()
    np.testing.assert_allclose(ours, run_theirs(scheduler, torch.tensor(normal(100))), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_heun(steps):
    scheduler = HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    sampler, ours = run_ours("heun", "trailing", steps)
    assert scheduler.timesteps.tolist() == sampler.table.time.tolist()
    with_our_sigmas(scheduler, scheduler.timesteps.int())
    start = torch.tensor(normal(100) / np.sqrt(LINEAR.alpha_bar[1000]))
    np.testing.assert_allclose(ours, run_theirs(scheduler, start), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("steps", [10, 100])
def test_inversion(steps):
    scheduler = with_our_alpha_bar(DDIMInverseScheduler(clip_sample=False), steps)
    scheduler.initial_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    theirs = run_theirs(scheduler, torch.tensor(normal(100)))
    encoder = make_encoder("ddim", LINEAR, sampling_levels("uniform", 1000, steps), iterations=1)
    assert scheduler.timesteps.tolist() == encoder.table.time.tolist()
    ours = encoder.run(make_predict(toy_network, "eps"), jnp.asarray(normal(100)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_zero_terminal_snr_is_theirs(name):
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    plain = make_schedule(name)
    betas = rescale_zero_terminal_snr(torch.tensor(plain.beta))
    moved = make_schedule(name, zero_terminal_snr=True)
    np.testing.assert_allclose(np.cumprod(1 - betas.numpy()), moved.alpha_bar[1:], atol=1e-12)
