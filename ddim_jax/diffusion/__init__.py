"""The mathematics of diffusion: pure functions of arrays, which know no network, config or device.

To learn diffusion from the code, read in this order:

1. ``schedule.py``: how much noise each level has, and how levels are numbered.
2. ``objectives.py``: what a network predicts, the noise, the image or v; ``losses.py``: how it learns to.
3. ``prediction.py``: from the network's output to a clean image and the noise in it.
4. ``spacing.py``: which of the levels a fast sampler visits.
5. ``table.py``: a sampler's arithmetic as a table with one row per network evaluation; ``loop.py``: the loop over them.
6. ``ddim.py``: DDIM, DDPM and multistep consistency sampling as such tables.
7. ``solvers.py``: deterministic samplers of higher order, as tables too: Heun, PLMS, DPM-Solver++, UniPC.
   ``sde_solvers.py``: those that add noise.
8. ``samplers.py``: all samplers by name.

And what is built on them:

- ``guidance.py``: classifier-free guidance.
- ``distillation.py``: how a network learns to make two steps of another in one.
- ``consistency.py``: how a network learns to lead to the end of the flow in one step.
- ``adaptive.py``: levels chosen by a tolerance. ``tuning.py``: levels and coefficients fitted to a network.
- ``inversion.py``: from an image back to its noise.
- ``interpolation.py``: between noises, and so between images.
- ``editing.py``: starting from a picture, or from parts of one.
- ``likelihood.py``: how probable an image is, in bits per dimension.

DDIM in ten lines, with a network that knows its data: all images are grey, x_0 = 0.25, so that the noise in x_t is
(x_t - sqrt(alpha_bar) 0.25) / sqrt(1 - alpha_bar).

>>> import jax.numpy as jnp
>>> from ddim_jax import diffusion
>>> schedule = diffusion.make_schedule("linear")
>>> def network(x, time):
...     alpha_bar = jnp.asarray(schedule.alpha_bar)[time.astype(int) + 1].reshape(-1, 1, 1, 1)
...     return (x - jnp.sqrt(alpha_bar) * 0.25) / jnp.sqrt(1 - alpha_bar)
>>> levels = diffusion.sampling_levels("uniform", schedule.num_levels, steps=10)
>>> sampler = diffusion.make_sampler("ddim", schedule, diffusion.level_pairs(levels), eta=0.0)
>>> x_T = diffusion.initial_noise(diffusion.image_keys(seed=0, index=jnp.arange(2)), (8, 8, 1))
>>> images = sampler.run(diffusion.make_predict(network, objective="eps"), x_T)
>>> images.shape, bool(jnp.allclose(images, 0.25, atol=1e-4))
((2, 8, 8, 1), True)
"""

from ddim_jax.diffusion.adaptive import adaptive_levels
from ddim_jax.diffusion.consistency import consistency_loss
from ddim_jax.diffusion.ddim import (
    consistency_table,
    ddim_table,
    ddpm_large_table,
    ddpm_learned_table,
    ddpm_small_table,
)
from ddim_jax.diffusion.distillation import distillation_loss, target_image, two_steps
from ddim_jax.diffusion.editing import inpaint, inpaint_table, noise_to_level
from ddim_jax.diffusion.guidance import guided
from ddim_jax.diffusion.interpolation import slerp, slerp_grid, slerp_path
from ddim_jax.diffusion.inversion import make_encoder
from ddim_jax.diffusion.likelihood import bound_table, flow_table, ode_bits_per_dim, ode_log_density, variational_bound
from ddim_jax.diffusion.losses import diffuse, draw_levels, example_loss, min_snr_weight, training_target
from ddim_jax.diffusion.objectives import OBJECTIVES, Prediction
from ddim_jax.diffusion.prediction import CLIPS, clipped, make_predict, to_prediction
from ddim_jax.diffusion.samplers import SAMPLERS, Sampler, initial_noise, make_sampler
from ddim_jax.diffusion.schedule import SCHEDULES, Schedule, make_schedule
from ddim_jax.diffusion.sde_solvers import Churn
from ddim_jax.diffusion.spacing import (
    SPACINGS,
    explicit_levels,
    level_pairs,
    levels_from,
    levels_of_sigmas,
    rising_pairs,
    sampling_levels,
)
from ddim_jax.diffusion.table import SamplerTable, sample, sample_keeping
from ddim_jax.diffusion.tuning import fine_levels, fine_trajectory, tuned_steps, tuned_table
from ddim_jax.random_streams import image_keys

__all__ = [
    "CLIPS",
    "OBJECTIVES",
    "SAMPLERS",
    "SCHEDULES",
    "SPACINGS",
    "Churn",
    "Prediction",
    "Sampler",
    "SamplerTable",
    "Schedule",
    "adaptive_levels",
    "bound_table",
    "clipped",
    "consistency_loss",
    "consistency_table",
    "ddim_table",
    "ddpm_large_table",
    "ddpm_learned_table",
    "ddpm_small_table",
    "diffuse",
    "distillation_loss",
    "draw_levels",
    "example_loss",
    "explicit_levels",
    "fine_levels",
    "fine_trajectory",
    "flow_table",
    "guided",
    "image_keys",
    "initial_noise",
    "inpaint",
    "inpaint_table",
    "level_pairs",
    "levels_from",
    "levels_of_sigmas",
    "make_encoder",
    "make_predict",
    "make_sampler",
    "make_schedule",
    "min_snr_weight",
    "noise_to_level",
    "ode_bits_per_dim",
    "ode_log_density",
    "rising_pairs",
    "sample",
    "sample_keeping",
    "sampling_levels",
    "slerp",
    "slerp_grid",
    "slerp_path",
    "target_image",
    "to_prediction",
    "training_target",
    "tuned_steps",
    "tuned_table",
    "two_steps",
    "variational_bound",
]
