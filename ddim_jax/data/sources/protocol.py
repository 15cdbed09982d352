"""What a source of images is: a random-access sequence, in which ``source[i]`` is example i, always the same one.

Training needs no more than that to be repeatable, since the order of the examples is made elsewhere, from the seed
(``batch_order.py``). Pixels are as stored, of any size; ``transforms.py`` makes them equal.
"""

from typing import NamedTuple, Protocol

import numpy as np

from ddim_jax.errors import UserError


class Example(NamedTuple):
    """An image as stored, and what belongs to it.

    Attributes:
        image: [h, w, c], of any type that ``data.dtype`` names.
        label: its class; 0 where the source has none.
        vector: float32 [d], the numbers of ``data.vector``; None where the source has none.
        paired: [h', w', c'], the picture that ``data.condition=paired`` puts beside it; None where there is none.
    """

    image: np.ndarray
    label: int
    vector: np.ndarray | None = None
    paired: np.ndarray | None = None


class Source(Protocol):
    """A random-access sequence of examples; subclass it, or write a class with these members.

    Attributes:
        name: what to call the data set in logs and records.
        num_classes: number of classes; labels lie in 0 ... num_classes - 1. 0 means no labels.
        prepared: images are cropped and resized already, and have their final number of channels.
        vector_size: length of the examples' vectors; 0 where they have none.
        has_paired: whether each example has a picture beside its image.
        numbers: int64 [n], the number of each example in the whole data set, of which ``data.split`` takes a part;
            None where that is not known.
        num_whole: examples of the whole data set, likewise.
        no_labels_because: why there are none, where the data look as if they should have some; else empty.
    """

    name: str
    num_classes: int
    prepared: bool = False
    vector_size: int = 0
    has_paired: bool = False
    numbers: np.ndarray | None = None
    num_whole: int = 0
    no_labels_because: str = ""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Reads example ``index``; must be safe to call from several threads.

        Raises:
            ImageError: this image cannot be read, whoever asks and whenever.
            IndexError: there is no such example.
        """
        ...

    def where(self, index: int) -> str:
        """The file or record that holds example ``index``, for messages."""
        return f"{self.name}, example {index}"

    def identity(self) -> dict[str, str | int]:
        """Says which examples these are: images kept on disk are used for no others (``prepared.py``).

        Two sources whose identities are equal have the same examples in the same order.
        """
        raise NotImplementedError(f"{type(self).__name__} has no identity(), so its images cannot be kept on disk")

    def describe(self) -> str:
        """Describes the source in one line for the log: name, number of images, number of classes."""
        classes = f"{self.num_classes} classes" if self.num_classes else "no labels"
        return f"{self.name}: {len(self):,} images, {classes}"


def check_labels(source: Source, num_classes: int) -> None:
    """Checks that a class-conditional network fits the source's labels.

    Args:
        source: where the labels come from.
        num_classes: ``model.num_classes``; 0 (an unconditional network) fits every source.

    Raises:
        UserError: the source has another number of classes, or none.
    """
    if num_classes in (0, source.num_classes):
        return
    has = f"{source.num_classes} classes" if source.num_classes else "no labels"
    because = getattr(source, "no_labels_because", "")
    if because:
        raise UserError(
            f"model.num_classes={num_classes}, but {source.name} has {has}, because {because}; "
            "move it away, or set model.num_classes to 0"
        )
    raise UserError(f"model.num_classes={num_classes}, but {source.name} has {has}; set it to {source.num_classes}")
