"""The loop that turns noise into images.

First-order samplers are one function, since their differences lie in the step table. A solver that looks back at
earlier predictions is another such function over the same rows, with its history in the scan's carry.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ddim_jax.diffusion.prediction import Predict
from ddim_jax.diffusion.steps import StepTable
from ddim_jax.random_streams import normal_each


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
    x0, eps = predict(x, row)
    x = row.a * x0 + row.b * eps
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
    stochastic = isinstance(table.c, Tracer) or bool(np.any(np.asarray(table.c)))
    if stochastic and keys is None:
        raise ValueError("this step table may add noise (c is not known to be 0): give keys, one per image")
    if keys is not None and keys.shape != x.shape[:1]:
        raise ValueError(f"keys must be one per image: {keys.shape} for images {x.shape}")

    def body(x: jax.Array, row_and_draw: tuple[StepTable, jax.Array]) -> tuple[jax.Array, None]:
        row, draw = row_and_draw
        noise = normal_each(keys, draw, x.shape[1:], x.dtype) if stochastic and keys is not None else None
        return step(predict, x, row, noise), None

    rows = jax.tree.map(lambda column: jnp.asarray(column, x.dtype), table)
    draws = jnp.arange(1, len(table.time) + 1, dtype=jnp.int32)
    x, _ = jax.lax.scan(body, x, (rows, draws))
    return x
