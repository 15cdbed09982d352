"""Keeping some of what a sampler passes on its way, in memory for those alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.errors import UserError


class KeptStates(NamedTuple):
    """What a sampler passed at K chosen steps.

    Attributes:
        x: [K, n, h, w, c], where each of the steps begins.
        x0: [K, n, h, w, c], the clean image that was predicted there.
    """

    x: jax.Array
    x0: jax.Array


def scan_keeping(
    advance: Callable[[Any, Any], tuple[Any, KeptStates]],
    carry: Any,
    rows: Any,
    keep: np.ndarray,
    like: jax.Array,
) -> tuple[Any, KeptStates]:
    """A ``lax.scan`` that stores what it passes at some rows only.

    The K places for it are part of the scan's carry and are written in turn, so memory grows with K and not with the
    number of rows. With K = 0 this is a plain scan.

    Args:
        advance: from the carry and a row to the next carry and what is seen on the way (without the axis K).
        carry: the first one.
        rows: a pytree with the rows as leading axis.
        keep: int [K], row numbers.
        like: the images' shape [n, h, w, c] and dtype.

    Returns:
        The last carry, and what was kept, in the order of ``keep``.
    """
    num_rows = len(jax.tree.leaves(rows)[0])
    slots = np.full(num_rows, len(keep), np.int32)  # this number is beyond the places, and writing there does nothing
    slots[keep] = np.arange(len(keep))

    def body(state: tuple[Any, KeptStates], row_and_slot: tuple[Any, jax.Array]) -> tuple[Any, None]:
        (carry, kept), (row, slot) = state, row_and_slot
        carry, seen = advance(carry, row)
        if len(keep):
            kept = jax.tree.map(lambda places, value: places.at[slot].set(value, mode="drop"), kept, seen)
        return (carry, kept), None

    empty = jnp.zeros((len(keep), *like.shape), like.dtype)
    (carry, kept), _ = jax.lax.scan(body, (carry, KeptStates(empty, empty)), (rows, jnp.asarray(slots)))
    return carry, kept


def check_kept_steps(steps: Sequence[int] | np.ndarray, num_steps: int) -> np.ndarray:
    """Checks the numbers of steps to keep: int64 [K], each in 0 ... num_steps - 1 and none twice.

    >>> check_kept_steps([0, 9], num_steps=10).tolist()
    [0, 9]

    Raises:
        UserError: they are not.
    """
    steps = np.asarray(steps, np.int64).reshape(-1)
    outside = steps[(steps < 0) | (steps >= num_steps)]
    if outside.size:
        raise UserError(f"step {outside[0]} cannot be kept: there are {num_steps} steps, 0 to {num_steps - 1}")
    if len(np.unique(steps)) < len(steps):
        raise UserError(f"steps {steps.tolist()} to keep hold a step twice; name each once")
    return steps
