"""Sampling that starts from, or keeps, parts of a given picture.

- Recover, and SDEdit (Meng et al. 2022): :func:`noise_to_level` spoils a picture up to some level, and a sampler on
  :func:`~ddim_jax.diffusion.spacing.levels_from` that level removes the noise. The higher the level, the less of the
  picture survives: real ones come back changed in detail, sketches turn into likely images.
- Inpainting (RePaint, Lugmayr et al. 2022): :func:`inpaint` draws the unknown part of a picture so that it goes with
  the known part.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.diffusion.loop import loop_over_rows
from ddim_jax.diffusion.losses import diffuse
from ddim_jax.diffusion.prediction import Predict
from ddim_jax.diffusion.samplers import initial_noise
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.table import Column, Mover, SamplerTable, as_rows, complete, step
from ddim_jax.errors import UserError
from ddim_jax.random_streams import normal_each


def noise_to_level(x0: jax.Array, schedule: Schedule, level: float, keys: jax.Array) -> jax.Array:
    """Adds noise to pictures: x_t of DDPM's eq. 4, with the noise that the same keys would have as x_T.

    >>> from ddim_jax.diffusion import image_keys, make_schedule
    >>> pictures, keys = jnp.ones((2, 4, 4, 1)), image_keys(0, jnp.arange(2))
    >>> bool((noise_to_level(pictures, make_schedule("linear"), 0, keys) == pictures).all())
    True

    Args:
        x0: [n, h, w, c].
        schedule: the noise levels.
        level: t, in 0 ... T; 0 returns x0.
        keys: [n], one per image, see :func:`~ddim_jax.random_streams.image_keys`.

    Raises:
        UserError: there is no such level.
    """
    if not 0 <= level <= schedule.num_levels:
        raise UserError(f"level {level} does not exist; choose from 0 (no noise) to {schedule.num_levels}")
    return diffuse(x0, initial_noise(keys, x0.shape[1:], x0.dtype), schedule.alpha_bar_at(level).astype(x0.dtype))


class InpaintTable(NamedTuple):
    """A sampler that goes back and forth, one row per network evaluation.

    Attributes:
        step: the sampler's row.
        again_keep: after the step, x is multiplied by this and ...
        again_noise: ... fresh noise times this is added, to be at a noisier level again; (1, 0) to stay.
    """

    step: SamplerTable
    again_keep: Column
    again_noise: Column


def inpaint_table(table: SamplerTable, resamplings: int = 10, jump: int = 1) -> InpaintTable:
    """Repeats parts of a sampler, with noise added in between (RePaint, algorithm 1).

    A step knows of the known part only what x shows of it, so the unknown part does not go with it at first. Going up
    to the noisier level again, with fresh noise, and down once more lets them agree. The paper does so 10 times, in
    jumps of 10 of its 250 steps.

    Steps are taken in blocks of ``jump``, counted from the noisiest; each is run ``resamplings`` times but for the one
    that ends the table, which is run once (t > 1 in the paper's algorithm).

    Args:
        table: of a first-order sampler; the paper uses DDPM.
        resamplings: times that each block is run; 1 for plain replacement of the known part.
        jump: steps in a block.

    Raises:
        UserError: either is below 1, or the sampler remembers earlier predictions, which jumps would make wrong.
    """
    if not table.is_first_order:
        raise UserError("inpainting needs a sampler of first order; choose ddim, or a ddpm")
    if resamplings < 1 or jump < 1:
        raise UserError(f"resamplings={resamplings}, jump={jump}: both must be 1 or more")
    num_steps = len(table.time)
    order, again_keep, again_noise = [], [], []
    for begin in range(0, num_steps, jump):
        block = range(begin, min(begin + jump, num_steps))
        is_last = block.stop == num_steps
        ratio = 1.0 if is_last else table.alpha_bar[begin] / table.alpha_bar_next[block.stop - 1]
        for repeat in range(1 if is_last else resamplings):
            back = ratio if repeat + 1 < resamplings else 1.0
            order += block
            again_keep += [1.0] * (len(block) - 1) + [np.sqrt(back)]
            again_noise += [0.0] * (len(block) - 1) + [np.sqrt(1 - back)]
    return InpaintTable(
        SamplerTable(*(column[np.array(order)] for column in complete(table))),
        np.array(again_keep),
        np.array(again_noise),
    )


def inpaint(
    predict: Predict,
    x: jax.Array,
    known: jax.Array,
    mask: jax.Array,
    table: InpaintTable,
    keys: jax.Array,
    count: jax.Array | None = None,
) -> jax.Array:
    """Draws the unknown part of pictures.

    This loop as one ``lax.scan``::

        for row in table:
            z1, z2, z3 = fresh noise
            x = step(predict, x, row.step, z1)
            level = row.step.alpha_bar_next
            x = mask * (sqrt(level) * known + sqrt(1 - level) * z2) + (1 - mask) * x
            x = row.again_keep * x + row.again_noise * z3
        return x

    Args:
        predict: see ``prediction.py``.
        x: [n, h, w, c], at the level of the table's first row; usually :func:`initial_noise`.
        known: clean pictures, like x; outside the mask they do not matter, but must be finite.
        mask: 1 where the picture is known, 0 where it is to be drawn; [n, h, w, c], or a shape that broadcasts to it.
        table: from :func:`inpaint_table`.
        keys: [n], one per image. Row r takes draws 3 r + 1 to 3 r + 3.
        count: rows that are meant, of a table that is padded (:func:`~ddim_jax.diffusion.loop.padded`) to be data to a
            compiled program; None for all.

    Returns:
        Images like x. If the table ends at the clean image, the known part is exactly that of ``known``.

    Raises:
        UserError: the mask or the pictures have another size than x.
    """
    if known.shape != x.shape:
        raise UserError(f"pictures to inpaint have shape {known.shape}, the model draws {x.shape}; resize them")
    fits = mask.ndim <= x.ndim and all(m in (1, s) for m, s in zip(mask.shape[::-1], x.shape[::-1], strict=False))
    if not fits:
        raise UserError(f"the mask has shape {mask.shape}, the pictures {x.shape}; resize the mask")
    mask = mask.astype(x.dtype)
    mover = Mover(table.step)

    def advance(x: jax.Array, row_and_draw: tuple[InpaintTable, jax.Array]) -> tuple[jax.Array, None]:
        row, draw = row_and_draw
        z1, z2, z3 = (normal_each(keys, draw + i, x.shape[1:], x.dtype) for i in range(3))
        x = step(predict, x, row.step, z1, mover)
        x = mask * diffuse(known, z2, row.step.alpha_bar_next) + (1 - mask) * x
        return row.again_keep * x + row.again_noise * z3, None

    rows = InpaintTable(as_rows(table.step, x.dtype), *(jnp.asarray(column, x.dtype) for column in table[1:]))
    draws = 1 + 3 * jnp.arange(len(table.again_keep), dtype=jnp.int32)
    return loop_over_rows(advance, x, (rows, draws), (), x, count)[0]
