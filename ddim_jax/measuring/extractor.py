"""What an image looks like to a metric: features, and what makes them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddim_jax import parallel
from ddim_jax.errors import UserError
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


class Extractor:
    """Images → features, over all devices of this process.

    Attributes:
        name: e.g. ``inception-tf1`` or ``pixels_pca-64``.
        prefix: what figures of this extractor are called by, e.g. ``pixels``.
        provenance: all that makes two figures comparable, as JSON's types: the name, the protocol, the hash of weights.
        dimension: d.
        num_logits: k; 0 where there are no logits.
        spatial: whether there are spatial features.
        shape: [h, w, c] of the images that it takes; None if it takes any.
        images_per_call: images that it computes at a time; calls with multiples of it waste nothing.
    """

    def __init__(
        self,
        prefix: str,
        provenance: dict[str, Any],
        function: Callable[[Any, Any], Features],
        variables: Any,
        batch_size: int,
        dimension: int,
        num_logits: int = 0,
        spatial: bool = False,
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        """Prepares the program; it is compiled at the first call.

        Args:
            prefix: see above.
            provenance: see above; its ``name`` is the extractor's.
            function: ``function(variables, images)``, traced by JAX, for uint8 [n, h, w, c].
            variables: a tree of arrays.
            batch_size: images per device at a time.
            dimension: see above, as the rest.
            num_logits: see above.
            spatial: see above.
            shape: see above.
        """
        self.name: str = provenance["name"]
        self.prefix = prefix
        self.provenance = provenance
        self.dimension = dimension
        self.num_logits = num_logits
        self.spatial = spatial
        self.shape = shape
        devices = parallel.local_devices()
        self.images_per_call = batch_size * len(devices)
        self._map = ShardedMap(function, BatchSize(batch_size, what="images", key="eval.batch_size"))
        self._variables = parallel.replicate(variables, devices)

    def __call__(self, images: np.ndarray) -> Features:
        """Features of images uint8 [n, h, w, 1 or 3], as NumPy arrays; those of an image depend on it alone.

        Raises:
            TypeError: images are not uint8: rounding is part of every figure, so it is not done here in silence.
            UserError: they have another shape than the extractor takes.
        """
        if images.dtype != np.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}: round them as one who saved them would")
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(f"images must be [n, h, w, 1 or 3], got {images.shape}")
        if self.shape is not None and images.shape[1:] != self.shape:
            raise UserError(
                f"images are {_in_words(images.shape[1:])}, but the extractor '{self.name}' compares "
                f"{_in_words(self.shape)}: set data.image_size and data.channels, or eval.extractor=inception"
            )
        return self._map(self._variables, images)


def _in_words(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{width}x{height} pixels with {channels} channel{'s' if channels > 1 else ''}"
