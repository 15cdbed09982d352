"""Encoding: from an image to the noise that DDIM would have made it from (DDIM, section 4.3 and 5.4).

With eta = 0 a sampler follows a curve from noise to image; the same curve can be followed from the image to noise.
Encoding and then decoding gives the image back, but for the solver's error in both directions. For DDIM that error
falls as 1 / S (the paper's table 2).

A step down, from level t' to t, uses the noise predicted from x' at level t'. The exact way back would need that
prediction before x' is known:

    x' = (alpha' / alpha) x + (sigma' - sigma alpha' / alpha) ε̂(x', t').

The usual (explicit) encoding puts ε̂(x, t) for it, whence the error; and since no network knows level 0, the first step
asks about the level where it ends, ε̂(x, t'). The implicit encoding solves the equation by iteration, and then decoding
takes exactly the same way back.
"""

from collections.abc import Callable

import numpy as np

from ddim_jax.diffusion import solvers
from ddim_jax.diffusion.samplers import Sampler
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.spacing import rising_pairs
from ddim_jax.diffusion.table import SamplerTable
from ddim_jax.errors import UserError
from ddim_jax.names import EncoderName

# From the schedule and the rising pairs of levels to the table of explicit encoding.
ENCODERS: dict[str, Callable[[Schedule, np.ndarray], SamplerTable]] = {
    "ddim": solvers.ddim_solver_table,
    "heun": solvers.heun_table,
}


def make_encoder(solver: EncoderName, schedule: Schedule, levels: np.ndarray, iterations: int = 0) -> Sampler:
    """Builds an encoder by name: a sampler that takes clean images, [n, h, w, c], to the noisiest of the levels.

    The ``predict`` that it is run with should not clip: clipping loses what decoding would need.

    >>> import jax.numpy as jnp
    >>> from ddim_jax.diffusion import level_pairs, make_predict, make_sampler, make_schedule, sampling_levels
    >>> schedule, levels = make_schedule("linear"), sampling_levels("uniform", 1000, 20)
    >>> predict = make_predict(lambda x, time: 0.5 * x, "eps")
    >>> encoder = make_encoder("ddim", schedule, levels, iterations=10)
    >>> decoder = make_sampler("ddim", schedule, level_pairs(levels))
    >>> image = jnp.full((1, 2, 2, 1), 0.7)
    >>> bool(jnp.allclose(decoder.run(predict, encoder.run(predict, image)), image, atol=1e-4))
    True

    Args:
        solver: ``ddim``, or ``heun`` with two evaluations a step. Images that Heun encodes and decodes come back with
            an error of third order, since those of the two ways cancel in part.
        schedule: the noise levels.
        levels: noisiest first, those of the sampler that will decode.
        iterations: with ``ddim``: 0 encodes explicitly; k > 0 solves the equation of each step by k iterations, each a
            network evaluation, beginning with x for x'. One iteration is what diffusers' ``DDIMInverseScheduler`` does.
            The error falls by the same factor with each, the smaller the shorter the steps; for DDIM decoding without
            clipping 5 to 10 make the way back exact to float32 if there are some 50 steps.

    Raises:
        UserError: an unknown solver, negative iterations, iterations with another solver, or levels with repeats.
    """
    if iterations < 0:
        raise UserError(f"iterations={iterations}: must be 0 (explicit encoding) or more")
    if iterations and solver != "ddim":
        raise UserError(f"iterations={iterations}: solver '{solver}' has no implicit encoding; set 0, or choose ddim")
    if solver not in ENCODERS:
        raise UserError(f"solver '{solver}' cannot encode; choose from: {', '.join(ENCODERS)}")
    pairs = rising_pairs(levels)
    if iterations:
        return Sampler(solver, solvers.implicit_ddim_table(schedule, pairs, iterations))
    return Sampler(solver, ENCODERS[solver](schedule, pairs))
