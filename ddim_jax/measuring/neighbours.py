"""Precision, recall, density and coverage of many images: distances on all devices, in float32.

``metrics/precision_recall.py`` says what they are, and computes them in float64 on the host, which is fast enough for
ten thousand images. Of fifty thousand there are 7.5 billion distances, among thousands of numbers each: work for an
accelerator. Distances are computed block by block and never kept, so memory is that of the features.

Three things make float32 do:

- features are centred first: they have a large mean in common, and |x|² + |y|² - 2 x·y loses the digits of that;
- products are computed at the highest precision;
- norms are computed once, and all products have the same shape, so that the distance between two points is the same
  wherever it is asked for: who is exactly on a ball's surface stays there.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import parallel
from ddim_jax.metrics.features import check_pair
from ddim_jax.metrics.precision_recall import Overlap, overlap
from ddim_jax.sharded_map import ShardedMap

# Features of a side that distances are computed of at a time.
_BLOCK = 2048

# Of squared distance, relative to the squared norms: what float32 leaves of the distance between equal points.
_SAME_POINT = 1e-6


class _Rows(NamedTuple):
    """Features of one set.

    Attributes:
        features: float32 [n, d], centred.
        norms: [n], squared.
    """

    features: Any
    norms: Any


class _Points(NamedTuple):
    """Features of one set in blocks, each with its ball.

    Attributes:
        features: float32 [blocks, block, d], centred; 0 beyond the last.
        norms: [blocks, block], squared; infinite beyond the last, so that nothing is near.
        radii: [blocks, block], squared; below 0 beyond the last, so that nothing is within.
    """

    features: Any
    norms: Any
    radii: Any


class _Within(NamedTuple):
    """What is known of each feature of a set, from its distances to another set.

    Attributes:
        is_in_ball: whether it is in some ball of the other set, or on its surface.
        num_balls: the number of balls that it is inside of.
        nearest: squared distance to the nearest of the other set.
    """

    is_in_ball: Any
    num_balls: Any
    nearest: Any


def fast_overlap(generated: np.ndarray, real: np.ndarray, k: int) -> Overlap:
    """Computes precision, recall, density and coverage where it is fastest: on accelerators, if there are any.

    Args:
        generated: [n, d].
        real: [m, d].
        k: which neighbour a ball reaches.

    Raises:
        UserError: different d, NaN or infinity, or no more than k images in a set.
    """
    is_accelerated = parallel.local_devices()[0].platform != "cpu"
    return (overlap_on_devices if is_accelerated else overlap)(generated, real, k)


def overlap_on_devices(generated: np.ndarray, real: np.ndarray, k: int, block: int = _BLOCK) -> Overlap:
    """Computes the same as :func:`~ddim_jax.metrics.precision_recall.overlap`, over all devices of this process.

    Points nearer to each other than a thousandth of their norm count as equal.

    Args:
        generated: [n, d].
        real: [m, d].
        k: which neighbour a ball reaches.
        block: distances are computed for this many features of both sides at a time.

    Raises:
        UserError: different d, NaN or infinity, or no more than k images in a set.
    """
    generated, real = np.asarray(generated, np.float32), np.asarray(real, np.float32)
    check_pair(generated, real, at_least=k + 1)
    centre = real.mean(axis=0, dtype=np.float64).astype(np.float32)
    generated_rows, real_rows = _rows(generated - centre), _rows(real - centre)

    radii = ShardedMap(lambda points, rows: _neighbour_distances(points, rows, k), block)
    generated_radii = radii(_points(generated_rows, block), generated_rows)
    real_radii = radii(_points(real_rows, block), real_rows)

    within = ShardedMap(_within, block)
    of_generated = within(_points(real_rows, block, real_radii), generated_rows)
    of_real = within(_points(generated_rows, block, generated_radii), real_rows)
    return Overlap(
        precision=float(of_generated.is_in_ball.mean()),
        recall=float(of_real.is_in_ball.mean()),
        density=int(of_generated.num_balls.sum(dtype=np.int64)) / (k * len(generated)),
        coverage=float((of_real.nearest < real_radii).mean()),
    )


def _rows(features: np.ndarray) -> _Rows:
    return _Rows(features, np.einsum("nd,nd->n", features, features))


def _points(rows: _Rows, block: int, radii: np.ndarray | None = None) -> _Points:
    num = len(rows.norms)
    count = -(-num // block)
    beyond = count * block - num
    radii = np.zeros(num, np.float32) if radii is None else radii

    def blocks(values: np.ndarray, fill: float) -> np.ndarray:
        padded = np.pad(values, [(0, beyond)] + [(0, 0)] * (values.ndim - 1), constant_values=fill)
        return padded.reshape(count, block, *values.shape[1:])

    return _Points(blocks(rows.features, 0), blocks(rows.norms, np.inf), blocks(radii, -1))


def _neighbour_distances(points: _Points, rows: _Rows, k: int) -> jax.Array:
    """Squared distances [n] from each row to the k-th nearest other one of the set that it is of."""

    def step(nearest: jax.Array, block: _Points) -> tuple[jax.Array, None]:
        candidates = jnp.concatenate([nearest, _squared_distances(rows, block)], axis=1)
        return -jax.lax.top_k(-candidates, k + 1)[0], None

    # The k + 1 smallest so far, with the one of 0 to itself.
    nearest, _ = jax.lax.scan(step, jnp.full((len(rows.norms), k + 1), jnp.inf), points)
    return nearest[:, -1]


def _within(points: _Points, rows: _Rows) -> _Within:
    """Compares each row's distances to all points with the radii of their balls."""

    def step(known: _Within, block: _Points) -> tuple[_Within, None]:
        distances = _squared_distances(rows, block)
        return _Within(
            known.is_in_ball | (distances <= block.radii).any(axis=1),
            known.num_balls + (distances < block.radii).sum(axis=1, dtype=jnp.int32),
            jnp.minimum(known.nearest, distances.min(axis=1)),
        ), None

    num = len(rows.norms)
    nothing = _Within(jnp.zeros(num, bool), jnp.zeros(num, jnp.int32), jnp.full(num, jnp.inf))
    return jax.lax.scan(step, nothing, points)[0]


def _squared_distances(rows: _Rows, block: _Points) -> jax.Array:
    """Returns |x|² + |y|² - 2 x·y, and 0 where that is rounding only: float32 [n, block]."""
    norms = rows.norms[:, None] + block.norms
    distances = norms - 2 * jnp.matmul(rows.features, block.features.T, precision=jax.lax.Precision.HIGHEST)
    # Infinite ones are not less.
    return jnp.where(distances < _SAME_POINT * norms, 0, distances)
