"""The loop that turns noise into images, and every sampler by name.

First-order samplers, DDIM and DDPM, are one function here, since their differences lie in the step table
(``steps.py``); solvers of higher order are another over tables of their own (``solvers.py``). :func:`make_sampler`
builds either.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike

from ddim_jax.diffusion import solvers
from ddim_jax.diffusion.ddim import StepTable, make_table
from ddim_jax.diffusion.prediction import Predict, Prediction
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.trajectory import Trajectory, check_kept_steps, scan_keeping
from ddim_jax.errors import UserError
from ddim_jax.random_streams import normal_each


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """A sampler on chosen levels, ready to run with any network.

    Attributes:
        name: what :func:`make_sampler` calls it.
        table: what it does, one row per network evaluation.
    """

    name: str
    table: StepTable | solvers.SolverTable

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return len(self.table.time)

    @property
    def steps(self) -> int:
        """Steps from level to level; as many as evaluations unless a step asks the network twice."""
        return len(self.table.time) if isinstance(self.table, StepTable) else int(self.table.step[-1]) + 1

    def run(self, predict: Predict, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Takes x, [n, h, w, c], from the first level to the last.

        Args:
            predict: see ``prediction.py``.
            x: at the level of the first row; :func:`initial_noise` if that is the noisiest.
            keys: [n], one per image; needed by samplers that add noise, ignored by the others.
        """
        if isinstance(self.table, StepTable):
            return sample(predict, x, self.table, keys)
        return solvers.solve(predict, x, self.table)

    def run_keeping(
        self, predict: Predict, x: jax.Array, steps: Sequence[int] | np.ndarray, keys: jax.Array | None = None
    ) -> tuple[jax.Array, Trajectory]:
        """:meth:`run`, which also returns x and the predicted x0 at the beginning of K steps, numbered from 0.

        Needs memory for K pairs of images however many steps there are.

        Raises:
            UserError: there is no such step, or one is named twice.
        """
        if isinstance(self.table, StepTable):
            return sample_keeping(predict, x, self.table, steps, keys)
        return solvers.solve_keeping(predict, x, self.table, steps)


def make_sampler(name: str, schedule: Schedule, pairs: np.ndarray, eta: ArrayLike = 0.0) -> Sampler:
    """Builds a sampler by name.

    With S steps, ending at the clean image:

    | name | what it is | evaluations |
    |---|---|---|
    | ``ddim`` | DDIM at any eta (Song et al. 2021) | S |
    | ``ddpm_small``, ``ddpm_large`` | DDPM, posterior variance or beta (Ho et al. 2020) | S |
    | ``heun`` | Heun, order 2 (Karras et al. 2022) | 2 S - 1 |
    | ``ab2``, ``ab3``, ``ab4`` | Adams-Bashforth on the noise (Zhang and Chen 2023) | S |
    | ``plms`` | pseudo linear multistep, as published (Liu et al. 2022) | S + 1 |
    | ``dpmpp_2m`` | DPM-Solver++ 2M, order 2 (Lu et al. 2022) | S |
    | ``unipc2``, ``unipc3`` | UniPC with predictor of order 2 or 3 (Zhao et al. 2023) | S |

    Args:
        name: one of these.
        schedule: the noise levels.
        pairs: [S, 2], see :func:`~ddim_jax.diffusion.spacing.level_pairs`.
        eta: of ``ddim``, a number or one per step. Ignored by DDPM, whose name says it; not 0 is an error for the
            others, which are deterministic.

    Raises:
        UserError: an unknown name, an eta that cannot be used, or levels that the sampler cannot use.
    """
    if name in ("ddim", "ddpm_small", "ddpm_large"):
        return Sampler(name, make_table(name, schedule, pairs, eta))
    if name == "heun":
        table = solvers.heun_table(schedule, pairs)
    elif name in ("ab2", "ab3", "ab4"):
        table = solvers.adams_bashforth_table(schedule, pairs, int(name[-1]))
    elif name == "plms":
        table = solvers.plms_table(schedule, pairs)
    elif name == "dpmpp_2m":
        table = solvers.dpm_solver_pp_2m_table(schedule, pairs)
    elif name in ("unipc2", "unipc3"):
        table = solvers.unipc_table(schedule, pairs, int(name[-1]))
    else:
        raise UserError(
            f"sampler '{name}' does not exist; choose from: ddim, ddpm_small, ddpm_large, heun, ab2, ab3, ab4, plms, "
            "dpmpp_2m, unipc2, unipc3"
        )
    if np.any(np.asarray(eta) != 0):
        raise UserError(f"eta={np.asarray(eta).tolist()}: sampler '{name}' adds no noise; set eta=0, or choose ddim")
    return Sampler(name, table)


def initial_noise(keys: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Draws x_T ~ N(0, I): [n, *shape], draw 0 of each of n keys, and so the same for any number of steps."""
    return normal_each(keys, 0, shape, dtype)


def step(predict: Predict, x: jax.Array, row: StepTable, noise: jax.Array | None = None) -> jax.Array:
    """One step to the next level: x' = a x̂0 + b ε̂ + c z (DDIM, eq. 12).

    Args:
        predict: gives x̂0 and ε̂.
        x: [n, h, w, c], at noise level ``row.alpha_bar``.
        row: scalars in x's dtype.
        noise: z, like x; None for a step with c = 0.

    Returns:
        Images at noise level ``row.alpha_bar_next``, like x.
    """
    return mix(predict(x, row), row, noise)


def mix(prediction: Prediction, row: StepTable, noise: jax.Array | None = None) -> jax.Array:
    """The arithmetic of :func:`step`, after the network has answered."""
    x = row.a * prediction.x0 + row.b * prediction.eps
    return x if noise is None else x + row.c * noise


def sample(predict: Predict, x: jax.Array, table: StepTable, keys: jax.Array | None = None) -> jax.Array:
    """Runs a first-order sampler from pure noise, or any noisy images, down to the level where the table ends.

    Which sampler, and on which levels, the table says (``steps.py``): DDIM (eq. 12) at any eta (eq. 16), or DDPM.
    It computes what this loop does, ::

        for s in range(len(table.time)):
            row = StepTable(*(column[s] for column in table))
            x0, eps = predict(x, row)
            x = row.a * x0 + row.b * eps
            if sampler_is_stochastic:
                z = [normal(fold_in(key, s + 1)) for key in keys]
                x = x + row.c * z
        return x

    as one ``lax.scan``: compiled once for any number of steps, in memory that does not grow with it. All arithmetic is
    in x's dtype. The function may be used inside ``jit``, ``vmap`` and ``pmap``.

    Args:
        predict: see ``prediction.py``.
        x: [n, h, w, c], at the level of the table's first row; :func:`initial_noise` if that is the noisiest.
        table: S rows. If its values are known while tracing, as in a closure, a deterministic sampler compiles to a
            program without random numbers. As an argument of a compiled function it has to have keys.
        keys: [n], one per image, see :func:`~ddim_jax.random_streams.image_keys`: step s takes draw s + 1, so that an
            image does not depend on the others in the batch. Not needed when all c are 0.

    Returns:
        Images like x, not clipped.

    Raises:
        ValueError: the table may add noise, but there are no keys; or not one per image.
    """
    return sample_keeping(predict, x, table, (), keys)[0]


def sample_keeping(
    predict: Predict,
    x: jax.Array,
    table: StepTable,
    steps: Sequence[int] | np.ndarray,
    keys: jax.Array | None = None,
) -> tuple[jax.Array, Trajectory]:
    """:func:`sample`, which also returns x and the predicted x0 at the beginning of some steps, numbered from 0.

    Raises:
        ValueError: see :func:`sample`.
        UserError: there is no such step, or one is named twice.
    """
    stochastic = isinstance(table.c, Tracer) or bool(np.any(np.asarray(table.c)))
    if stochastic and keys is None:
        raise ValueError("this step table may add noise (c is not known to be 0): give keys, one per image")
    if keys is not None and keys.shape != x.shape[:1]:
        raise ValueError(f"keys must be one per image: {keys.shape} for images {x.shape}")

    def advance(x: jax.Array, row_and_draw: tuple[StepTable, jax.Array]) -> tuple[jax.Array, Trajectory]:
        row, draw = row_and_draw
        noise = normal_each(keys, draw, x.shape[1:], x.dtype) if stochastic and keys is not None else None
        prediction = predict(x, row)
        return mix(prediction, row, noise), Trajectory(x, prediction.x0)

    rows = jax.tree.map(lambda column: jnp.asarray(column, x.dtype), table)
    draws = jnp.arange(1, len(table.time) + 1, dtype=jnp.int32)
    return scan_keeping(advance, x, (rows, draws), check_kept_steps(steps, len(table.time)), x)
