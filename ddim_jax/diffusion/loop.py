"""The loop over the rows of a table: a ``lax.scan``, in memory for what is kept of the way and for nothing else.

A compiled program knows its table, or is given it: as a :class:`PaddedTable`, whose shape many tables have, so that
one program serves any number of steps.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.errors import UserError

# Rows of a padded table, or a power of two above it: one program for all subsequences of the usual 1,000 levels.
_FEWEST_ROWS = 1024


class PaddedTable(NamedTuple):
    """A table as data to a compiled program.

    Attributes:
        table: its columns, float32, [L, ...] with L rows, of which the first are meant.
        count: int32, number of rows meant.
        kept: int32 [K], rows at whose beginning the images are kept.
    """

    table: Any
    count: Any
    kept: Any


class KeptStates(NamedTuple):
    """What a sampler passed at K chosen steps.

    Attributes:
        x: [K, n, h, w, c], where each of the steps begins.
        x0: [K, n, h, w, c], the clean image that was predicted there.
    """

    x: jax.Array
    x0: jax.Array


def padded(table: Any, kept: Sequence[int] | np.ndarray = ()) -> PaddedTable:
    """Pads a table, a NamedTuple of columns [R, ...], to a length that many tables have.

    >>> columns, count, kept = padded((np.linspace(0, 1, 50),), kept=[49])
    >>> columns[0].shape, int(count), kept.tolist()
    ((1024,), 50, [49])
    """
    count = len(jax.tree.leaves(table)[0])
    rows = max(_FEWEST_ROWS, 1 << (count - 1).bit_length())

    def pad(column: np.ndarray) -> np.ndarray:
        return np.pad(column.astype(np.float32), [(0, rows - count)] + [(0, 0)] * (column.ndim - 1))

    return PaddedTable(jax.tree.map(pad, table), np.int32(count), np.asarray(kept, np.int32))


def loop_over_rows(
    advance: Callable[[Any, Any], tuple[Any, KeptStates | None]],
    carry: Any,
    rows: Any,
    kept: Sequence[int] | np.ndarray | jax.Array,
    like: jax.Array,
    count: jax.Array | None = None,
) -> tuple[Any, KeptStates]:
    """A ``lax.scan`` that stores what it passes at some rows only.

    The K places for it are part of the scan's carry and are written in turn, so memory grows with K and not with the
    number of rows. With K = 0 this is a plain scan.

    Args:
        advance: from the carry and a row to the next carry and what is seen on the way (without the axis K); None if
            nothing is kept.
        carry: the first one.
        rows: a pytree with the rows as leading axis.
        kept: int [K], row numbers.
        like: the images' shape [n, h, w, c] and dtype.
        count: how many of the rows are meant, where that is data; None for all. The scan is then a while loop, which
            costs the same, but has no derivative in reverse.

    Returns:
        The last carry, and what was kept, in the order of ``kept``.
    """
    num_kept, num_rows = len(kept), len(jax.tree.leaves(rows)[0])
    # The number of a place, or one beyond the places, where writing does nothing.
    in_order = jnp.arange(num_kept, dtype=jnp.int32)
    places = jnp.full(num_rows, num_kept, jnp.int32).at[jnp.asarray(kept, jnp.int32)].set(in_order)

    def body(state: tuple[Any, KeptStates], row_and_place: tuple[Any, jax.Array]) -> tuple[Any, None]:
        (carry, states), (row, place) = state, row_and_place
        carry, seen = advance(carry, row)
        if num_kept:
            states = jax.tree.map(lambda all_, value: all_.at[place].set(value, mode="drop"), states, seen)
        return (carry, states), None

    empty = jnp.zeros((num_kept, *like.shape), like.dtype)
    state, all_rows = (carry, KeptStates(empty, empty)), (rows, places)
    if count is None:
        return jax.lax.scan(body, state, all_rows)[0]
    return jax.lax.fori_loop(
        0, count, lambda i, state: body(state, jax.tree.map(lambda column: column[i], all_rows))[0], state
    )


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
