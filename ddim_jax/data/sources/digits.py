"""The digits that come with scikit-learn, for trials without a download."""

from typing import Any

import numpy as np

from ddim_jax.data.sources.protocol import Example, Source
from ddim_jax.data.splits import split_indices
from ddim_jax.errors import UserError


class DigitsSource(Source):
    """The 1,797 handwritten digits bundled with scikit-learn: 8x8, grey, ten classes, no download.

    The stored grey levels 0 ... 16 become round(v * 255 / 16), halves rounded up.
    """

    def __init__(self, split: str = "train") -> None:
        """Loads the digits (115 kB).

        Args:
            split: ``train`` is all of them, ``train[:90%]`` a slice; see ``splits.py``.

        Raises:
            UserError: scikit-learn is missing, or the split cannot be used.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise UserError("data.source=digits needs scikit-learn: pip install scikit-learn") from error
        digits: Any = load_digits()
        self.name = "digits"
        self.num_classes = 10
        self._split = split
        chosen = split_indices(split, len(digits.images), self.name)
        self.numbers, self.num_whole = chosen, len(digits.images)
        self._images = np.floor(digits.images[chosen] * (255 / 16) + 0.5).astype(np.uint8)[..., None]
        self._labels = digits.target[chosen]

    def __len__(self) -> int:
        """The number of digits: 1,797, or as many as are in the slice."""
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        """Returns digit ``index``: uint8 [8, 8, 1]."""
        return Example(self._images[index], int(self._labels[index]))

    def identity(self) -> dict[str, str | int]:
        """The split: the digits themselves never change."""
        return {"source": "digits", "split": self._split}
