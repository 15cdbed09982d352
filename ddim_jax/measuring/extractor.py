"""What an image looks like to a metric: features, and what makes them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from ddim_jax import parallel
from ddim_jax.errors import UserError
from ddim_jax.names import PixelType
from ddim_jax.pixels import Normalization
from ddim_jax.sharded_map import BatchSize, ShardedMap

# Of ADM's sFID: 17 x 17 places with 7 channels.
SPATIAL_DIMENSION = 2023


class Features(NamedTuple):
    """What an extractor has to say about n images, float32.

    Attributes:
        features: [n, d], what sets of images are compared by.
        logits: [n, k] of the classes, for the Inception score; None where the extractor knows no classes.
        spatial: [n, 2023], Inception's features before pooling, for ADM's sFID; None unless asked for.
    """

    features: Any
    logits: Any = None
    spatial: Any = None


class FeatureProgram:
    """The computation of features, over all devices of this process.

    Attributes:
        images_per_call: images that it computes at a time; calls with multiples of it waste nothing.
    """

    def __init__(self, function: Callable[[Any, Any], Features], variables: Any, batch_size: int) -> None:
        """Prepares the program; it is compiled at the first call.

        Args:
            function: ``function(variables, images)``, traced by JAX, for images [n, h, w, c], or for pictures of
                them (:attr:`Extractor.to_pictures`).
            variables: a tree of arrays.
            batch_size: images per device at a time.
        """
        devices = parallel.local_devices()
        self.images_per_call = batch_size * len(devices)
        self._map = ShardedMap(function, BatchSize(batch_size, what="images", key="eval.batch_size"))
        self._variables = parallel.replicate(variables, devices)

    def __call__(self, images: np.ndarray) -> Features:
        """Computes features of images [n, h, w, c], as NumPy arrays."""
        return self._map(self._variables, images)


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
    """A program from images to features, and what is known of it.

    Attributes:
        prefix: what figures of this extractor are called by, e.g. ``pixels``.
        provenance: all that makes two figures comparable, as JSON's types: the name, the protocol, the hash of weights.
        program: computes the features.
        dimension: d.
        num_logits: k; 0 where there are no logits.
        spatial: whether there are spatial features.
        shape: [h, w, c] of the images that it takes; None if it takes any.
        dtype: of the images that it takes.
        to_pictures: makes of the images what the program sees, uint8 [n, h, w, 1 or 3]; None where it sees them as they
            are.
    """

    prefix: str
    provenance: dict[str, Any]
    program: FeatureProgram
    dimension: int
    num_logits: int = 0
    spatial: bool = False
    shape: tuple[int, int, int] | None = None
    dtype: PixelType = "uint8"
    to_pictures: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def name(self) -> str:
        """The name with the protocol or number, e.g. ``inception-tf1`` or ``pixels_pca-64``."""
        return self.provenance["name"]

    @property
    def images_per_call(self) -> int:
        """The number of images that the program computes at a time."""
        return self.program.images_per_call

    @property
    def widths(self) -> dict[str, int]:
        """The numbers per image of each field of :class:`Features` that this extractor gives."""
        widths = {"features": self.dimension}
        if self.num_logits:
            widths["logits"] = self.num_logits
        if self.spatial:
            widths["spatial"] = SPATIAL_DIMENSION
        return widths

    def of_pictures(
        self, normalization: Normalization, to_pictures: Callable[[np.ndarray], np.ndarray], channels: Sequence[int]
    ) -> Self:
        """Returns this extractor for images that are no pictures of 8 bits: it sees what people are shown of them.

        Args:
            normalization: of the images.
            to_pictures: makes the pictures.
            channels: of the images, those shown.
        """
        provenance = {**self.provenance, "pictures": {**normalization.facts, "shown_channels": list(channels)}}
        return dataclasses.replace(self, provenance=provenance, dtype=normalization.dtype, to_pictures=to_pictures)

    def __call__(self, images: np.ndarray) -> Features:
        """Computes features of images [n, h, w, c], as NumPy arrays; an image's depend on it alone.

        Raises:
            TypeError: images are of another type than the extractor's, uint8 for pictures: rounding is part of every
                figure, so it is not done here in silence.
            UserError: they have another shape than the extractor takes.
        """
        if images.dtype != np.dtype(self.dtype):
            hint = ": round them as one who saved them would" if self.dtype == "uint8" else ""
            raise TypeError(f"images must be {self.dtype}, got {images.dtype}{hint}")
        takes_any = self.shape is None and self.to_pictures is None
        if images.ndim != 4 or (takes_any and images.shape[-1] not in (1, 3)):
            raise ValueError(f"images must be [n, h, w, 1 or 3], got {images.shape}")
        if self.shape is not None and images.shape[1:] != self.shape:
            raise UserError(
                f"images are {_in_words(images.shape[1:])}, but the extractor '{self.name}' compares "
                f"{_in_words(self.shape)}: set data.image_size and data.channels, or eval.extractor=inception"
            )
        return self.program(images if self.to_pictures is None else self.to_pictures(images))


def _in_words(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{width}x{height} pixels with {channels} channel{'s' if channels > 1 else ''}"
