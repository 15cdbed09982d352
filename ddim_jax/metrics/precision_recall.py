"""How real a generator's images are, and how much of what is real it can make: two answers instead of one.

FID mixes the two. Kynkäänniemi et al. (2019, "improved precision and recall") estimate the region that a set of
features fills as the union of balls: around each feature, out to its k-th nearest neighbour in the set. Then

- precision is the share of generated images inside the region of the real ones,
- recall is the share of real images inside the region of the generated ones.

One real image far from all others has a large ball, in which much of what is generated may lie by chance, and balls of
generated images far from one another hold real ones likewise. Naeem et al. (2020) trust balls of real images alone:

- density is the number of real balls that a generated image is in, on average and divided by k: near 1 where both sets
  are alike, and above where generated images crowd among real ones;
- coverage is the share of real balls in which there is a generated image.

All depend on the number of images and on k, so they only compare between equal ones.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ddim_jax.metrics.features import check_pair

# Of squared distance, relative to the squared norms: what float64 leaves of the distance between equal points.
_SAME_POINT = 1e-12


class PrecisionRecall(NamedTuple):
    """The two shares, between 0 and 1, and their harmonic mean.

    Attributes:
        precision: of generated images, those like real ones.
        recall: of real images, those like generated ones.
        f_score: 2 · precision · recall / (precision + recall), 0 if both are; as torch-fidelity reports it.
    """

    precision: float
    recall: float
    f_score: float


class DensityCoverage(NamedTuple):
    """How much generated images crowd among real ones, and the share of real ones that have some near.

    Attributes:
        density: 0 or more.
        coverage: between 0 and 1.
    """

    density: float
    coverage: float


class Overlap(NamedTuple):
    """What two sets of features have in common: precision, recall, density and coverage."""

    precision: float
    recall: float
    density: float
    coverage: float

    @property
    def precision_recall(self) -> PrecisionRecall:
        """The first two."""
        total = self.precision + self.recall
        return PrecisionRecall(self.precision, self.recall, 2 * self.precision * self.recall / total if total else 0.0)

    @property
    def density_coverage(self) -> DensityCoverage:
        """The last two."""
        return DensityCoverage(self.density, self.coverage)


def precision_recall(generated: np.ndarray, real: np.ndarray, k: int = 3, block: int = 2048) -> PrecisionRecall:
    """Computes improved precision and recall.

    Ties: a point exactly on a ball's surface is inside. A feature is not its own neighbour, but copies of it are, so a
    feature with k copies has a ball of radius 0, which holds these copies' equals alone. Points nearer to each other
    than a millionth of their norm count as equal.

    Of four generated images one is far from all real ones, but all real ones are near generated ones:

    >>> generated, real = np.array([[0.0], [1.0], [2.0], [9.0]]), np.array([[0.0], [1.0], [2.0]])
    >>> shares = precision_recall(generated, real, k=1)
    >>> shares.precision, shares.recall
    (0.75, 1.0)

    Memory is that of a few blocks, whatever the number of images; work grows with its square.

    Args:
        generated: [n, d] of any dtype; distances are computed in float64.
        real: [m, d].
        k: which neighbour a ball reaches.
        block: distances are computed for this many features of both sides at a time.

    Raises:
        ValueError: not two axes, or k or block below 1.
        UserError: different d, NaN or infinity, or no more than k images in a set.
    """
    return overlap(generated, real, k, block).precision_recall


def density_coverage(generated: np.ndarray, real: np.ndarray, k: int = 5, block: int = 2048) -> DensityCoverage:
    """Computes density and coverage, as the authors' package ``prdc`` does.

    Unlike for precision and recall, a point exactly on a ball's surface is outside. (In ``prdc`` for all four.)

    Of four generated images two are in the balls of all three real ones, and one in that of the last:

    >>> generated, real = np.array([[0.5], [0.5], [2.5], [9.0]]), np.array([[0.0], [1.0], [2.0]])
    >>> density_coverage(generated, real, k=1)
    DensityCoverage(density=1.25, coverage=1.0)

    Args:
        generated: [n, d] of any dtype; distances are computed in float64.
        real: [m, d].
        k: which neighbour a ball reaches.
        block: see :func:`precision_recall`.

    Raises:
        ValueError: not two axes, or k or block below 1.
        UserError: different d, NaN or infinity, or no more than k images in a set.
    """
    return overlap(generated, real, k, block).density_coverage


def overlap(generated: np.ndarray, real: np.ndarray, k: int, block: int = 2048) -> Overlap:
    """Computes all four, from the same distances; see :func:`precision_recall` and :func:`density_coverage`."""
    generated, real = np.asarray(generated), np.asarray(real)
    if k < 1 or block < 1:
        raise ValueError(f"k={k}, block={block}: both must be at least 1")
    check_pair(generated, real, at_least=k + 1)
    generated_radii = squared_neighbour_distances(generated, k, block)
    real_radii = squared_neighbour_distances(real, k, block)

    is_precise = np.zeros(len(generated), bool)
    is_recalled = np.zeros(len(real), bool)
    is_covered = np.zeros(len(real), bool)
    num_within = 0
    for rows in _blocks(len(generated), block):
        for columns in _blocks(len(real), block):
            distances = _squared_distances(generated[rows], real[columns])
            is_precise[rows] |= (distances <= real_radii[columns]).any(axis=1)
            is_recalled[columns] |= (distances <= generated_radii[rows, None]).any(axis=0)
            is_within = distances < real_radii[columns]
            is_covered[columns] |= is_within.any(axis=0)
            num_within += int(is_within.sum())

    density = num_within / (k * len(generated))
    return Overlap(float(is_precise.mean()), float(is_recalled.mean()), density, float(is_covered.mean()))


def squared_neighbour_distances(features: np.ndarray, k: int, block: int = 2048) -> np.ndarray:
    """Computes the squared distance from each feature to the k-th nearest other one: float64 [n].

    >>> squared_neighbour_distances(np.array([[0.0], [1.0], [3.0]]), k=1).tolist()
    [1.0, 1.0, 4.0]

    Args:
        features: [n, d], n > k.
        k: 1 for the nearest.
        block: see :func:`precision_recall`.
    """
    # The k + 1 smallest distances so far, with the one of 0 to itself.
    nearest = np.full((len(features), k + 1), np.inf)
    blocks = list(_blocks(len(features), block))
    for i, rows in enumerate(blocks):
        for columns in blocks[i:]:
            distances = _squared_distances(features[rows], features[columns])
            nearest[rows] = _smallest(nearest[rows], distances)
            # Distances are symmetric: each block serves both sides.
            if rows != columns:
                nearest[columns] = _smallest(nearest[columns], distances.T)
    return nearest.max(axis=1)


def _smallest(known: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Returns in each row as many of the smallest values of both as ``known`` has."""
    width = known.shape[1]
    return np.partition(np.concatenate([known, more], axis=1), width - 1, axis=1)[:, :width]


def _blocks(length: int, block: int) -> Iterator[slice]:
    for start in range(0, length, block):
        yield slice(start, min(start + block, length))


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns |x|² + |y|² - 2 x·y, and 0 where that is rounding only: float64 [n, m]."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    norms = np.sum(x * x, axis=1)[:, None] + np.sum(y * y, axis=1)
    distances = norms - 2 * (x @ y.T)
    distances[distances <= _SAME_POINT * norms] = 0
    return distances
