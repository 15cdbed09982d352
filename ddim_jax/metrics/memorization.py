"""Whether a generator makes new images, or those that it was trained on: from distances to the nearest training images.

A Fréchet distance does not see it: a model that returns its training images has a perfect one. Three figures do:

- :func:`authenticity` (Alaa et al. 2022): samples should be no nearer to training images than these are to one another,
- :func:`copy_share` (Yoon et al. 2023): samples that are far nearer to one training image than to any other,
- :func:`copy_test` (Meehan et al. 2020): samples should be no nearer to the training images than held-out images are.

All are of any space in which distances mean something: features of a network, or pixels.

>>> training = np.array([[0.0], [1.0], [4.0], [10.0]])
>>> found = neighbours(np.array([[0.0], [2.0], [7.5], [20.0]]), training)
>>> authenticity(found.first, found.own), copy_share(found.first, found.second)
(0.25, 0.25)
"""

from typing import NamedTuple

import numpy as np

from ddim_jax.errors import UserError
from ddim_jax.metrics.features import check_pair
from ddim_jax.metrics.nearest import nearest

# Shown beside a sample.
_NEIGHBOURS = 3

# As published: a copy is nearer to its image than a third of the way to the next one.
_COPY_RATIO = 3


class Neighbours(NamedTuple):
    """The three training images nearest to each of n samples, nearest first.

    Attributes:
        index: int64 [n, 3], which training images.
        distance: float64 [n, 3], to the sample.
        own: float64 [n], from the nearest of them to the other training image that is nearest to it.
    """

    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]
    distance: np.ndarray
    own: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """The distances to the nearest training image, [n]."""
        return self.distance[:, 0]

    @property
    def second(self) -> np.ndarray:
        """The distances to the second nearest, [n]."""
        return self.distance[:, 1]


def neighbours(samples: np.ndarray, training: np.ndarray, block: int = 2048) -> Neighbours:
    """Finds the nearest training images of samples.

    Work grows as n m d, and memory is that of a few blocks: for 50,000 samples and training images with 2,048 features
    20 TFLOP in float32, which are minutes on a few cores.

    Args:
        samples: [n, d] of any dtype; it and ``training`` may be memory maps.
        training: [m, d], features or pixels of the training images.
        block: rows of both at a time; decides nothing.

    Raises:
        UserError: different d, or fewer than three training images.
    """
    check_training(len(training))
    check_pair(samples[:1], training[:1], at_least=1)
    index, distance = nearest(samples, training, _NEIGHBOURS, block=block)
    # Only of training images that are somebody's nearest it matters how far they are from the others.
    chosen, place = np.unique(index[:, 0], return_inverse=True)
    own = np.empty(len(chosen))
    for start in range(0, len(chosen), block):
        rows = chosen[start : start + block]
        own[start : start + block] = nearest(training[rows], training, excluded=rows, block=block).distance[:, 0]
    return Neighbours(index, distance, own[place])


def check_training(count: int) -> None:
    """Refuses so few training images that a sample has no three neighbours among them.

    Raises:
        UserError: fewer than three.
    """
    if count < _NEIGHBOURS:
        raise UserError(
            f"{count} training images: whether a model copies them is seen from {_NEIGHBOURS} or more; leave "
            "memorization out"
        )


def authenticity(distance: np.ndarray, own: np.ndarray) -> float:
    """Computes the share of samples that are authentic.

    With r the training image nearest to a sample g, and r' the other training image nearest to r, g is authentic if

        |g - r| > |r - r'|

    Between 0 and 1. Of a model that returns its training images it is 0. Of fresh images from the distribution of the
    training images it is above a half, and the more the more dimensions the data have, since some training images are
    then everybody's nearest; so it is to be read beside the authenticity of held-out images. Well below theirs, the
    model memorises.

    >>> authenticity(np.array([0.0, 0.5, 2.0, 3.0]), np.array([1.0, 1.0, 1.0, 4.0]))
    0.25

    Source: Alaa et al. 2022, "How faithful is your synthetic data?", as dgm-eval (Stein et al. 2023) computes it.

    Args:
        distance: [n], from each sample to the nearest training image.
        own: [n], from that training image to the nearest other training image.
    """
    return float(authentic(distance, own).mean())


def authentic(distance: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Returns which samples are authentic, see :func:`authenticity`: bool [n]."""
    return np.asarray(distance) > np.asarray(own)


def copy_share(first: np.ndarray, second: np.ndarray) -> float:
    """Computes the share of samples that are near copies of a training image.

    With r₁ and r₂ the two training images nearest to a sample g, g is a near copy if

        |g - r₁| < |g - r₂| / 3

    or if it equals r₁. Between 0 and 1. Of fresh images it is about 0, however many training images there are, since
    distances to the first and second nearest of many points hardly differ; a share of one in a hundred or more is
    suspicious. Copies of an image that the training data hold several times are seen only when they are exact.

    >>> copy_share(np.array([0.0, 0.9, 1.0, 2.0]), np.array([0.0, 3.0, 3.0, 3.0]))
    0.5

    Source: Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize".

    Args:
        first: [n], distances to the nearest training image.
        second: [n], to the second nearest.
    """
    return float(near_copy(first, second).mean())


def near_copy(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns which samples are near copies, see :func:`copy_share`: bool [n]."""
    first = np.asarray(first)
    return (_COPY_RATIO * first < np.asarray(second)) | (first == 0)


def copy_test(samples: np.ndarray, held_out: np.ndarray) -> float:
    """Computes how much farther samples are from the training images than held-out images are, in standard deviations.

    It is the Mann-Whitney test of both sets of distances. Among the n m pairs of a sample and a held-out image, U have
    the sample farther from its nearest training image, and of equal ones a half counts. If neither set were nearer,
    U would have the mean n m / 2 and a known variance:

        C_T = (U - n m / 2) / sqrt(n m (n + m + 1) / 12)

    About 0 where samples are as near as held-out images, whose values beyond ±3 are not chance. Below -3 samples are
    nearer to the training images than fresh images would be: they are copied. Above 3 they are farther away: the model
    has not learnt the distribution well, which may hide copying of a few images. It grows with the number of images, so
    it only compares between equal ones.

    >>> round(copy_test(np.array([0.0, 0.1]), np.array([1.0, 2.0])), 4)
    -1.5492

    Source: Meehan et al. 2020, "A non-parametric test to detect data-copying in generative models"; here over the whole
    space as one cell.

    Args:
        samples: [n], distances of samples to their nearest training image.
        held_out: [m], of held-out images.
    """
    # Imported here, for it takes as long as importing JAX, and few runs come here.
    import scipy.stats

    n, m = len(samples), len(held_out)
    ranks = scipy.stats.rankdata(np.concatenate([samples, held_out]))
    farther = ranks[:n].sum() - n * (n + 1) / 2
    return float((farther - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12))
