"""The Inception score: are images clearly of some class, and are all classes there? Salimans et al. 2016.

    IS = exp E_x KL(p(y|x) || p(y)),    p(y) = E_x p(y|x)

between 1 and the number of classes, higher is better. It looks at generated images alone, so it cannot notice that they
look like nothing in the data set. Its value depends on conventions, so name them with it:

- *Splits*: images are divided into splits of (nearly) equal size, and the mean of the splits' scores is reported.
  torch-fidelity and ADM take 10; DDPM's code one of all images, whose score is a little higher. A split holds images
  in their order (ADM's), or in a shuffled one (torch-fidelity's), which matters where images are sorted by class.
- *Logits*: of Inception's 1008 outputs, without the last layer's bias (torch-fidelity, ADM).

Sums over each split are enough to have all of it, so nothing is kept per image:

    log IS = E_x sum_y p(y|x) log p(y|x) - sum_y p(y) log p(y)
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.special

from ddim_jax.errors import UserError
from ddim_jax.metrics.features import check_features

_SHUFFLE_SEED = 2020


class InceptionScore(NamedTuple):
    """The mean and deviation of the score over the splits.

    Attributes:
        mean: of the splits' scores.
        std: their standard deviation, divided by their number (``ddof=0``), as torch-fidelity does; 0 of one split.
    """

    mean: float
    std: float


@dataclasses.dataclass(frozen=True, eq=False)
class InceptionSums:
    """Sums over the class probabilities seen so far, by split; a value that is never changed in place.

    Which split an image is in follows from its index and from how many there will be, so batches may come in any order
    and on any machine. To go on after an interruption, and end with the same bits, save :meth:`to_arrays`.

    Four images, each surely of another class, have the score 4; four of which nothing is known have 1:

    >>> empty = InceptionSums.empty(num=4, classes=4, splits=1)
    >>> empty.update(1000 * np.eye(4), np.arange(4)).score()
    InceptionScore(mean=4.0, std=0.0)
    >>> empty.update(np.zeros((4, 4)), np.arange(4)).score()
    InceptionScore(mean=1.0, std=0.0)

    Attributes:
        split_of: int64 [n], the split of each image.
        count: int64 [splits], images seen.
        probabilities: float64 [splits, classes], sum of p(y|x).
        negative_entropy: float64 [splits], sum of p(y|x) log p(y|x).
    """

    split_of: np.ndarray
    count: np.ndarray
    probabilities: np.ndarray
    negative_entropy: np.ndarray

    @classmethod
    def empty(cls, num: int, classes: int = 1008, splits: int = 10, shuffle: bool = True) -> "InceptionSums":
        """Starts with no images.

        Args:
            num: images that there will be.
            classes: logits of each.
            splits: number of splits; split i holds the images at ``i num // splits ... (i + 1) num // splits - 1``.
            shuffle: as torch-fidelity, put images in the order of ``numpy.random.RandomState(2020).permutation(num)``
                first. Else splits are contiguous.

        Raises:
            UserError: more splits than images.
        """
        if not 1 <= splits <= num:
            raise UserError(f"Inception score of {num} images in {splits} splits: take between 1 and {num} splits")
        position_split = np.repeat(np.arange(splits), np.diff(np.arange(splits + 1) * num // splits))
        order = np.random.RandomState(_SHUFFLE_SEED).permutation(num) if shuffle else np.arange(num)
        split_of = np.empty(num, np.int64)
        split_of[order] = position_split
        return cls(split_of, np.zeros(splits, np.int64), np.zeros((splits, classes)), np.zeros(splits))

    def update(self, logits: np.ndarray, index: np.ndarray) -> "InceptionSums":
        """Returns the sums with a batch added.

        Args:
            logits: [b, classes] of any dtype; the softmax is taken in float64.
            index: int [b], which image each row is, 0 ... num - 1.

        Raises:
            ValueError: other shapes, or an index out of range.
            UserError: NaN or infinity.
        """
        logits, index = np.asarray(logits, np.float64), np.asarray(index)
        check_features(logits, "a batch")
        splits, classes = self.probabilities.shape
        if logits.shape != (len(index), classes):
            raise ValueError(f"{len(index)} indices for logits of shape {logits.shape}, not [b, {classes}]")
        if len(index) and (index.min() < 0 or index.max() >= len(self.split_of)):
            raise ValueError(f"index {index.min()} ... {index.max()} is not within 0 ... {len(self.split_of) - 1}")

        log_p = scipy.special.log_softmax(logits, axis=1)
        p = np.exp(log_p)
        split = self.split_of[index]
        in_split = (split == np.arange(splits)[:, None]).astype(np.float64)
        return dataclasses.replace(
            self,
            count=self.count + np.bincount(split, minlength=splits),
            probabilities=self.probabilities + in_split @ p,
            negative_entropy=self.negative_entropy + in_split @ np.sum(p * log_p, axis=1),
        )

    def merge(self, other: "InceptionSums") -> "InceptionSums":
        """Returns the sums over the images that either has seen, as of two machines that each saw a part.

        Raises:
            ValueError: the two divide images into splits differently.
        """
        if not np.array_equal(self.split_of, other.split_of):
            raise ValueError("sums over different splits cannot be merged")
        return dataclasses.replace(
            self,
            count=self.count + other.count,
            probabilities=self.probabilities + other.probabilities,
            negative_entropy=self.negative_entropy + other.negative_entropy,
        )

    def score(self) -> InceptionScore:
        """Computes the score of all images.

        Raises:
            ValueError: not every image was seen, or some twice.
        """
        expected = np.bincount(self.split_of, minlength=len(self.count))
        if not np.array_equal(self.count, expected):
            raise ValueError(f"splits have seen {self.count.tolist()} images instead of {expected.tolist()}")
        marginal = self.probabilities / self.count[:, None]
        marginal_entropy = scipy.special.entr(marginal).sum(axis=1)
        scores = np.exp(self.negative_entropy / self.count + marginal_entropy)
        return InceptionScore(float(scores.mean()), float(scores.std()))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns its arrays by name, for ``numpy.savez(path, **sums.to_arrays())`` or for another machine."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "InceptionSums":
        """Reads what :meth:`to_arrays` returned, to the bit."""
        return cls(**{field.name: np.asarray(arrays[field.name]) for field in dataclasses.fields(cls)})
