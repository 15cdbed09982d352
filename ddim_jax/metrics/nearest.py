"""The nearest of many points, in a few blocks of memory, whatever the number of points."""

from typing import NamedTuple

import numpy as np

# Points kept beyond those asked for: products of whole blocks in float32, which take half the time, say which are near
# but for rounding; distances in float64 decide.
_SPARE = 5


class Nearest(NamedTuple):
    """The k nearest of the other points, nearest first; of equally near ones the first.

    Attributes:
        index: int64 [n, k].
        distance: float64 [n, k], Euclidean.
    """

    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]
    distance: np.ndarray


def nearest(
    points: np.ndarray, others: np.ndarray, k: int = 1, excluded: np.ndarray | None = None, block: int = 2048
) -> Nearest:
    """Finds the nearest points of another set.

    Candidates are found by |x|² + |y|² - 2 x·y, products of blocks, and their distances computed from the differences
    in float64, so that the distance of a copy is 0.

    >>> found = nearest(np.array([[0.0], [5.0]]), np.array([[1.0], [4.0], [9.0]]), k=2)
    >>> found.index.tolist(), found.distance.tolist()
    ([[0, 1], [1, 0]], [[1.0, 4.0], [1.0, 4.0]])

    Args:
        points: [n, d] of any dtype; it and ``others`` may be memory maps, of which a block at a time is read.
        others: [m, d], m at least k, or above k with ``excluded``.
        k: how many.
        excluded: int [n], for each point one of the others that does not count, as a point of the same set itself.
        block: points of both sides at a time.

    Raises:
        ValueError: there are too few others.
    """
    if len(others) < k + (excluded is not None):
        raise ValueError(f"{len(others)} points have no {k} nearest")
    index = np.empty((len(points), k), np.int64)
    distance = np.empty((len(points), k), np.float64)
    # Differences do not change when all points are moved, and rounding is least about 0.
    centre = np.asarray(others[:block], np.float64).mean(axis=0)
    for start in range(0, len(points), block):
        rows = slice(start, start + block)
        some = np.asarray(points[rows], np.float64) - centre
        not_these = None if excluded is None else excluded[rows]
        candidates = _candidates(some, others, centre, k + _SPARE, not_these, block)
        index[rows], distance[rows] = _by_distance(some, others, centre, candidates, k)
    return Nearest(index, distance)


def _candidates(
    points: np.ndarray, others: np.ndarray, centre: np.ndarray, count: int, excluded: np.ndarray | None, block: int
) -> np.ndarray:
    """Returns some of the nearest others of each point, in any order; -1 where there are not so many: int64 [n, c]."""
    points = points.astype(np.float32)
    best = np.full((len(points), count), np.inf, np.float32)
    index = np.full((len(points), count), -1, np.int64)
    for start in range(0, len(others), block):
        some = (np.asarray(others[start : start + block], np.float64) - centre).astype(np.float32)
        squared = np.sum(some * some, axis=1) - 2 * (points @ some.T)
        if excluded is not None:
            inside = (excluded >= start) & (excluded < start + len(some))
            squared[np.flatnonzero(inside), excluded[inside] - start] = np.inf
        if squared.shape[1] > count:
            place = np.argpartition(squared, count - 1, axis=1)[:, :count]
        else:
            place = np.broadcast_to(np.arange(squared.shape[1]), squared.shape)
        here = np.take_along_axis(squared, place, axis=1)
        values = np.concatenate([best, here], axis=1)
        places = np.concatenate([index, np.where(np.isfinite(here), place + start, -1)], axis=1)
        kept = np.argpartition(values, count - 1, axis=1)[:, :count]
        best, index = np.take_along_axis(values, kept, axis=1), np.take_along_axis(places, kept, axis=1)
    return index


def _by_distance(
    points: np.ndarray, others: np.ndarray, centre: np.ndarray, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k nearest candidates and their distances, nearest first."""
    distances = np.full(candidates.shape, np.inf)
    for column, chosen in enumerate(candidates.T):
        difference = points - (np.asarray(others[np.maximum(chosen, 0)], np.float64) - centre)
        exact = np.sqrt(np.sum(difference * difference, axis=1))
        distances[:, column] = np.where(chosen < 0, np.inf, exact)
    order = np.lexsort((candidates, distances), axis=1)[:, :k]
    return np.take_along_axis(candidates, order, axis=1), np.take_along_axis(distances, order, axis=1)
