"""The one form that all samplers have: a table of coefficients, and the loop that runs it.

A row of the table asks the network once, notes one quantity q, and moves the images linearly in the quantities noted
last::

    x0, eps = predict(x, row)                    the clean image and the noise that x is thought to be made of
    q_0     = of_x x + of_x0 x0 + of_eps eps     q_1 is that of the row before, and so on: K in all
    x       = x + sum_j correction[j] q_j        what the new prediction changes about x as it stands
    x       = keep x + sum_j weights[j] q_j + noise z,    z ~ N(0, I)

Where the network says how much noise a step should add, z is multiplied by exp(fraction log_range / 2) on the way, the
fraction being the prediction's, a number for each value of x.

That is enough for DDIM at any eta and both DDPMs (``ddim.py``: q is the next image but for its noise), for the solvers
of higher order (``solvers.py``: q is what they interpolate), and for the way back from an image to its noise
(``inversion.py``). Rows are computed on the host in float64, so that no sampler contains any arithmetic but this.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ddim_jax.diffusion.loop import KeptStates, PaddedTable, check_kept_steps, loop_over_rows, padded
from ddim_jax.diffusion.prediction import Predict, Prediction
from ddim_jax.errors import UserError
from ddim_jax.random_streams import normal_each

# In a table a NumPy array, float64 [R] or [R, K]; in the row that a scan hands to each turn a jax scalar or [K].
Column = Any


class SamplerTable(NamedTuple):
    """A sampler: R rows, one per network evaluation. Inside a ``lax.scan`` the same tuple is one row.

    Attributes:
        step: number of the step that the row is part of, from 0; Heun's steps have two rows.
        time: what the network is told, ``Schedule.time_input`` of the level that it is asked about.
        alpha_bar: of that level.
        alpha_bar_next: of the level where the row ends; 1 at the clean image.
        of_x: factor of x in q.
        of_x0: factor of the predicted clean image in q.
        of_eps: factor of the predicted noise in q.
        correction: [R, K], what the new prediction changes about x; [R, 0] in samplers that do not correct.
        keep: factor of x.
        weights: [R, K], factors of the last K quantities, newest first.
        noise: factor of fresh noise; 0 in deterministic rows.
        log_range: [R, 1], by how much the network may raise the variance of that noise, as the logarithm of a factor;
            [R, 0] in samplers that do not ask it for that, and may leave the column out.
    """

    step: Column
    time: Column
    alpha_bar: Column
    alpha_bar_next: Column
    of_x: Column
    of_x0: Column
    of_eps: Column
    correction: Column
    keep: Column
    weights: Column
    noise: Column
    log_range: Column = np.zeros(0)

    @property
    def is_first_order(self) -> bool:
        """Whether each row is a step of its own that remembers nothing of those before."""
        return self.weights.shape[1] == 1 and self.correction.shape[1] == 0

    @property
    def is_stochastic(self) -> bool:
        """Whether fresh noise is added, or may be: the table of a compiled function is not known while it is traced."""
        return _constant(self.noise) != 0


def sample(predict: Predict, x: jax.Array, table: SamplerTable, keys: jax.Array | None = None) -> jax.Array:
    """Runs a sampler from pure noise, or any noisy images, to the level where its table ends.

    It computes what this loop does, ::

        memory = []                                               # the quantities noted last, newest first
        for r, row in enumerate(rows):
            x0, eps = predict(x, row)
            memory = [row.of_x * x + row.of_x0 * x0 + row.of_eps * eps, *memory][:K]
            x = x + sum(c * q for c, q in zip(row.correction, memory))
            x = row.keep * x + sum(w * q for w, q in zip(row.weights, memory))
            if table_is_stochastic:
                z = [normal(fold_in(key, r + 1)) for key in keys]
                for most in row.log_range:  # one, or none
                    z = z * exp(fraction * most / 2)  # the third part of the prediction
                x = x + row.noise * z
        return x

    as one ``lax.scan``: compiled once for any number of rows, in memory that does not grow with it. All arithmetic is
    in x's dtype. The function may be used inside ``jit``, ``vmap`` and ``pmap``.

    >>> from ddim_jax.diffusion import ddim_table, level_pairs, make_schedule
    >>> from ddim_jax.diffusion.prediction import Prediction
    >>> table = ddim_table(make_schedule("linear"), level_pairs(np.array([1000, 500, 100])))
    >>> def predict(x, row):  # data that are 0 everywhere: all of x is noise
    ...     return Prediction(x0=0 * x, eps=x / jnp.sqrt(1 - row.alpha_bar))
    >>> sample(predict, jnp.ones((1, 2, 2, 1)), table).ravel().tolist()
    [0.0, 0.0, 0.0, 0.0]

    Args:
        predict: see ``prediction.py``.
        x: [n, h, w, c], at the level where the table begins; ``initial_noise`` if that is the noisiest.
        table: R rows. Where its values are known while tracing, as in a closure, what they leave out is left out of the
            program: a deterministic sampler compiles to one without random numbers, and one of first order carries
            nothing but x. As an argument of a compiled function a table must come with keys.
        keys: [n], one per image, see :func:`~ddim_jax.random_streams.image_keys`: row r takes draw r + 1, so that an
            image does not depend on the others in the batch. Not needed where no noise is added.

    Returns:
        Images like x, not clipped.

    Raises:
        ValueError: the table may add noise, but there are no keys; or not one per image.
        UserError: the sampler asks for a learned variance, and the network has learned none.
    """
    return sample_keeping(predict, x, table, (), keys)[0]


def sample_keeping(
    predict: Predict,
    x: jax.Array,
    table: SamplerTable,
    steps: Sequence[int] | np.ndarray,
    keys: jax.Array | None = None,
) -> tuple[jax.Array, KeptStates]:
    """:func:`sample`, which also returns x and the predicted x0 at the beginning of some steps, numbered from 0.

    Where the prediction made there corrects x, the corrected one is returned.

    Raises:
        ValueError: see :func:`sample`.
        UserError: there is no such step, or one is named twice.
    """
    return _run(predict, x, table, _rows_of_steps(table, steps), keys)


def as_data(table: SamplerTable, steps: Sequence[int] | np.ndarray = ()) -> PaddedTable:
    """A table as data to a compiled program: another number of steps, eta or spacing is then no other program.

    Only the shapes of ``weights`` and ``correction``, how much is remembered, are part of a program that has it as an
    argument, see :func:`sample_padded`.

    Args:
        table: R rows, known.
        steps: to keep, numbered from 0, see :func:`sample_keeping`.

    Raises:
        UserError: there is no such step, or one is named twice.
    """
    return padded(complete(table), _rows_of_steps(table, steps))


def sample_padded(
    predict: Predict, x: jax.Array, data: PaddedTable, keys: jax.Array | None = None
) -> tuple[jax.Array, KeptStates]:
    """:func:`sample_keeping` of a table that is an argument of a compiled function.

    >>> from ddim_jax.diffusion import ddim_table, level_pairs, make_schedule
    >>> run = jax.jit(lambda x, data: sample_padded(lambda x, row: Prediction(x0=0 * x, eps=x), x, data)[0])
    >>> pairs = level_pairs(np.array([1000, 500, 100]))
    >>> for count in (3, 2):  # compiled once
    ...     run(jnp.ones((1, 2, 2, 1)), as_data(ddim_table(make_schedule("linear"), pairs[-count:]))).shape
    (1, 2, 2, 1)
    (1, 2, 2, 1)

    Args:
        predict: see ``prediction.py``.
        x: [n, h, w, c].
        data: from :func:`as_data`.
        keys: [n], one per image; None for tables that never add noise, which is not checked.
    """
    return _run(predict, x, data.table, data.kept, keys, data.count)


def _rows_of_steps(table: SamplerTable, steps: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where steps begin in the table."""
    if not len(steps):
        return np.zeros(0, np.int64)
    _, first_rows = np.unique(np.asarray(table.step), return_index=True)
    return first_rows[check_kept_steps(steps, len(first_rows))]


def _run(
    predict: Predict,
    x: jax.Array,
    table: SamplerTable,
    kept_rows: np.ndarray | jax.Array,
    keys: jax.Array | None,
    count: jax.Array | None = None,
) -> tuple[jax.Array, KeptStates]:
    if count is None and table.is_stochastic and keys is None:
        raise ValueError("this sampler may add noise: give keys, one per image")
    if keys is not None and keys.shape != x.shape[:1]:
        raise ValueError(f"keys must be one per image: {keys.shape} for images {x.shape}")
    mover = Mover(table)

    def draw_noise(row: SamplerTable, draw: jax.Array) -> jax.Array | None:
        if keys is None or not table.is_stochastic:
            return None
        fresh = functools.partial(normal_each, keys, draw, x.shape[1:], x.dtype)
        if count is None:
            return fresh()
        # A row of a table that is data may be deterministic: random numbers take longer than to see that.
        return jax.lax.cond(row.noise != 0, fresh, lambda: jnp.zeros_like(x))

    def advance(
        state: tuple[jax.Array, list[jax.Array]], row_and_draw: tuple[SamplerTable, jax.Array]
    ) -> tuple[tuple[jax.Array, list[jax.Array]], KeptStates]:
        (x, memory), (row, draw) = state, row_and_draw
        prediction = predict(x, row)
        quantities = [mover.quantity(x, prediction, row), *memory]
        x = mover.correct(x, quantities, row)
        noise = mover.stretch(draw_noise(row, draw), prediction, row)
        return (mover.move(x, quantities, row, noise), quantities[:-1]), KeptStates(x, prediction.x0)

    rows = as_rows(table, x.dtype)
    draws = jnp.arange(1, len(table.time) + 1, dtype=jnp.int32)
    memory = [jnp.zeros_like(x)] * (table.weights.shape[1] - 1)
    (x, _), kept = loop_over_rows(advance, (x, memory), (rows, draws), kept_rows, x, count)
    return x, kept


def step(
    predict: Predict, x: jax.Array, row: SamplerTable, noise: jax.Array | None = None, mover: "Mover | None" = None
) -> jax.Array:
    """One step of a first-order sampler, to the next level.

    Args:
        predict: gives x̂0 and ε̂.
        x: [n, h, w, c], at noise level ``row.alpha_bar``.
        row: scalars in x's dtype, see :func:`as_rows`.
        noise: z, like x; None for a step that adds none.
        mover: of the table that the row is from, which knows what to leave out; None leaves nothing out.

    Returns:
        Images at noise level ``row.alpha_bar_next``, like x.
    """
    mover = mover or Mover(row)
    prediction = predict(x, row)
    return mover.move(x, [mover.quantity(x, prediction, row)], row, mover.stretch(noise, prediction, row))


def as_rows(table: SamplerTable, dtype: jax.typing.DTypeLike) -> SamplerTable:
    """The table's columns as jax arrays of the images' dtype, to be scanned over."""
    return jax.tree.map(lambda column: jnp.asarray(column, dtype), complete(table))


def complete(table: SamplerTable) -> SamplerTable:
    """The table with the column that its maker may leave out."""
    return table if np.ndim(table.log_range) == 2 else table._replace(log_range=np.zeros((len(table.time), 0)))


class Mover:
    """The arithmetic of a row, without the terms that are 0, or 1 times something, in all rows of a table."""

    def __init__(self, table: SamplerTable) -> None:
        """Looks at the table once, before its rows become part of a program."""
        self._of_x, self._of_x0, self._of_eps = map(_constant, (table.of_x, table.of_x0, table.of_eps))
        self._keep, self._noise = _constant(table.keep), _constant(table.noise)
        self._corrections = [_constant(table.correction[..., j]) for j in range(np.shape(table.correction)[-1])]
        self._weights = [_constant(table.weights[..., j]) for j in range(np.shape(table.weights)[-1])]

    def quantity(self, x: jax.Array, prediction: Prediction, row: SamplerTable) -> jax.Array:
        """What a row notes: of_x x + of_x0 x̂0 + of_eps ε̂."""
        return _sum(
            _times(self._of_x, row.of_x, x),
            _times(self._of_x0, row.of_x0, prediction.x0),
            _times(self._of_eps, row.of_eps, prediction.eps),
        )

    def correct(self, x: jax.Array, quantities: list[jax.Array], row: SamplerTable) -> jax.Array:
        """Corrects the images by the new prediction: x + correction q."""
        return _sum(x, *(_times(known, row.correction[j], quantities[j]) for j, known in enumerate(self._corrections)))

    def stretch(self, noise: jax.Array | None, prediction: Prediction, row: SamplerTable) -> jax.Array | None:
        """Multiplies fresh noise by what the network says of it, if the sampler asks.

        Raises:
            UserError: it asks, and the network has not learned to say.
        """
        if noise is None or not np.shape(row.log_range)[-1]:
            return noise
        if prediction.fraction is None:
            raise UserError("this sampler takes its variance from the network, which has learned none: choose another")
        return noise * jnp.exp(prediction.fraction * (row.log_range[0] / 2))

    def move(
        self, x: jax.Array, quantities: list[jax.Array], row: SamplerTable, noise: jax.Array | None = None
    ) -> jax.Array:
        """Moves the images: keep x + weights q + noise z."""
        return _sum(
            _times(self._keep, row.keep, x),
            *(_times(known, row.weights[j], quantities[j]) for j, known in enumerate(self._weights)),
            None if noise is None else _times(self._noise, row.noise, noise),
        )


def _constant(column: Column) -> float | None:
    """0 or 1 where that is known to be the value in all rows, else None."""
    if isinstance(column, Tracer):
        return None
    values = np.asarray(column)
    return next((float(value) for value in (0, 1) if np.all(values == value)), None)


def _times(known: float | None, factor: jax.Array, values: jax.Array) -> jax.Array | None:
    """The product; None for nothing, where the factor is known to be 0."""
    if known == 0:
        return None
    return values if known == 1 else factor * values


def _sum(*terms: jax.Array | None) -> jax.Array:
    """The sum of the terms that there are, in this order; rounding depends on it."""
    first, *others = [term for term in terms if term is not None]
    for term in others:
        first = first + term
    return first
