"""Mean and covariance of features that arrive in batches, on one machine or many.

The textbook's ``E[x x'] - E[x] E[x]'`` is a small difference of large numbers when the mean is large. Here instead
the sum of squares is always taken about the mean of what was seen so far, and moved when two parts with different means
are joined (Chan, Golub and LeVeque 1979):

    delta   = mean_b - mean_a,    n = n_a + n_b
    mean    = mean_a + delta n_b / n
    scatter = scatter_a + scatter_b + delta delta' n_a n_b / n

A batch is a part too, so nothing but this joining is needed, and the order and sizes of batches do not matter.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ddim_jax.errors import UserError
from ddim_jax.metrics.features import check_features


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution fitted to features: all that the Fréchet distance knows of a set of images.

    Attributes:
        mean: float64 [d].
        covariance: float64 [d, d], divided by n - 1.
        count: images that it was fitted to; None if not known, as of most published statistics.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter of the features seen so far; a value that is never changed in place.

    ``Moments.empty(2048).update(batch_1).update(batch_2)`` equals ``Moments.empty(2048).update(both)`` to rounding.
    To go on after an interruption, and end with the same bits, save :meth:`to_arrays`.

    >>> moments = Moments.empty(2).update(np.array([[0, 0], [2, 0]])).update(np.array([[4, 3]]))
    >>> moments.count, moments.mean.tolist(), moments.covariance.tolist()
    (3, [2.0, 1.0], [[4.0, 3.0], [3.0, 3.0]])

    Attributes:
        count: number n of features.
        mean: float64 [d]; 0 if there are none.
        scatter: float64 [d, d], sum of (x - mean)(x - mean)'.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, dimension: int) -> "Moments":
        """Starts with no features; each of them will be ``dimension`` numbers."""
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    def update(self, features: np.ndarray) -> "Moments":
        """Returns the moments with a batch added.

        Args:
            features: [b, d] of any dtype; they are cast to float64 first. b may be 0, and may change between calls.
                The cost of a call is that of several [d, d] arrays, so batches of d or more rows are the cheapest.

        Raises:
            ValueError: not two axes.
            UserError: another d, NaN or infinity.
        """
        batch = np.asarray(features, np.float64)
        check_features(batch, "a batch")
        self._check_dimension(batch.shape[1])
        if not len(batch):
            return self
        mean = batch.mean(axis=0)
        centred = batch - mean
        return self.merge(Moments(len(batch), mean, centred.T @ centred))

    def merge(self, other: "Moments") -> "Moments":
        """Returns the moments of both sets together, as of two machines that each saw a part.

        Raises:
            UserError: another d.
        """
        self._check_dimension(len(other.mean))
        # An empty part changes nothing, not by a rounding either; and two of them have no n to divide by.
        if not other.count:
            return self
        if not self.count:
            return other
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        between = np.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """The scatter divided by n - 1, as ``numpy.cov`` does: float64 [d, d].

        Raises:
            UserError: fewer than 2 features.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs the features of 2 or more images, got {self.count}")
        return self.scatter / (self.count - 1)

    def gaussian(self) -> Gaussian:
        """Returns the normal distribution with this mean and covariance.

        Raises:
            UserError: fewer than 2 features.
        """
        return Gaussian(self.mean, self.covariance, self.count)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns its arrays by name, for ``numpy.savez(path, **moments.to_arrays())`` or for another machine."""
        return {"count": np.asarray(self.count, np.int64), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Moments":
        """Reads what :meth:`to_arrays` returned, to the bit."""
        return cls(int(arrays["count"]), np.asarray(arrays["mean"]), np.asarray(arrays["scatter"]))

    def _check_dimension(self, dimension: int) -> None:
        if dimension != len(self.mean):
            raise UserError(
                f"features of dimension {dimension} added to ones of dimension {len(self.mean)}:"
                " use one feature network for all images"
            )
