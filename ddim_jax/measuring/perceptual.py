"""LPIPS of images and their truth, over all devices of this process."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import parallel
from ddim_jax.errors import UserError
from ddim_jax.models.lpips import SMALLEST_SIDE, Lpips
from ddim_jax.sharded_map import BatchSize, ShardedMap
from ddim_jax.weights.lpips import lpips_variables


class PerceptualDistance:
    """A program that compares images with others.

    Attributes:
        sha256: hash of the file of its weights.
    """

    def __init__(self, path: str, shape: tuple[int, int, int], batch_size: int) -> None:
        """Reads the weights; the program is compiled at the first call.

        Args:
            path: ``eval.lpips_path``.
            shape: [h, w, c] of the images.
            batch_size: pairs per device at a time.

        Raises:
            UserError: weights that cannot be read or do not fit, or images that the network does not take.
        """
        height, width, channels = shape
        if min(height, width) < SMALLEST_SIDE or channels not in (1, 3):
            raise UserError(
                f"eval.metrics: no lpips of images of {width}x{height} with {channels} channels: its network takes "
                f"grey or colours, {SMALLEST_SIDE}x{SMALLEST_SIDE} or more; leave it out"
            )
        weights = lpips_variables(path)
        self.sha256 = weights.sha256
        network = Lpips()

        def function(params: Any, pairs: tuple[jax.Array, jax.Array]) -> Any:
            images, others = (jnp.broadcast_to(2 * x - 1, (*x.shape[:3], 3)) for x in pairs)
            return network.apply({"params": params}, images, others)

        self._map = ShardedMap(function, BatchSize(batch_size, what="pairs of images", key="eval.batch_size"))
        self._params = parallel.replicate(weights.params, parallel.local_devices())

    def __call__(self, images: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Compares pixels in [0, 1], [n, h, w, c], with others: float64 [n]."""
        pairs = np.asarray(images, np.float32), np.asarray(others, np.float32)
        return np.asarray(self._map(self._params, pairs), np.float64)
