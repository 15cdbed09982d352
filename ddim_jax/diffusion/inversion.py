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

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.diffusion import solvers
from ddim_jax.diffusion.prediction import Predict
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.spacing import rising_pairs
from ddim_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """From images to noise.

    Attributes:
        table: rows from the clean image up.
        iterations: of the equation of each step; 0 for an explicit encoder.
    """

    table: solvers.SolverTable
    iterations: int

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return len(self.table.time) * max(1, self.iterations)

    def run(self, predict: Predict, x: jax.Array) -> jax.Array:
        """Encodes clean images, [n, h, w, c], to images like x at the noisiest of the levels.

        ``predict`` should not clip: clipping loses what decoding would need.
        """
        if self.iterations == 0:
            return solvers.solve(predict, x, self.table)
        return _solve_implicitly(predict, x, self.table, self.iterations)


def make_encoder(solver: str, schedule: Schedule, levels: np.ndarray, iterations: int = 0) -> Encoder:
    """Builds an encoder by name.

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
    pairs = rising_pairs(levels)
    if iterations:
        return Encoder(solvers.implicit_ddim_table(schedule, pairs), iterations)
    if solver == "ddim":
        return Encoder(solvers.ddim_solver_table(schedule, pairs), 0)
    if solver == "heun":
        return Encoder(solvers.heun_table(schedule, pairs), 0)
    raise UserError(f"solver '{solver}' cannot encode; choose from: ddim, heun")


def _solve_implicitly(predict: Predict, x: jax.Array, table: solvers.SolverTable, iterations: int) -> jax.Array:
    def body(x: jax.Array, row: solvers.SolverTable) -> tuple[jax.Array, None]:
        def improve(_: int, guess: jax.Array) -> jax.Array:
            eps = row.of_x * guess + row.of_x0 * predict(guess, row).x0
            return row.keep * x + row.weights[0] * eps

        return jax.lax.fori_loop(0, iterations, improve, x), None

    rows = jax.tree.map(lambda column: jnp.asarray(column, x.dtype), table)
    x, _ = jax.lax.scan(body, x, rows)
    return x
