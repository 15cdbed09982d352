"""LPIPS (Zhang et al. 2018), version 0.1 on VGG16: how different two images look, by a network's features.

Features are those after the last ReLU of each of VGG16's five blocks, each place's scaled to length 1. Their squared
differences are weighted by channel, as people's judgements taught, and averaged over places; the blocks' are added.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

# Of VGG16's 3x3 convolutions, by block; blocks begin with a pooling by 2, but for the first.
WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

# Smaller images have nothing left after four poolings.
SMALLEST_SIDE = 16

# ImageNet's means and deviations of colours, for pixels in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)

# Accelerators multiply float32 in bfloat16 or TF32 by default.
_PRECISION = jax.lax.Precision.HIGHEST


class Lpips(nn.Module):
    """The network, see the module's docstring. Its parameters are float32 and come from ``weights/lpips.py``."""

    @nn.compact
    def __call__(self, images: jax.Array, others: jax.Array) -> jax.Array:
        """Compares images with others.

        Args:
            images: [n, h, w, 3] float32 RGB in [-1, 1], 16 pixels a side or more.
            others: likewise.

        Returns:
            [n], 0 where both are the same.
        """
        x = (jnp.concatenate([images, others]) - jnp.asarray(_SHIFT)) / jnp.asarray(_SCALE)
        distance = jnp.zeros(len(images))
        for block, widths in enumerate(WIDTHS):
            if block:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            for place, width in enumerate(widths):
                x = nn.relu(nn.Conv(width, (3, 3), precision=_PRECISION, name=f"conv_{block}_{place}")(x))
            unit = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)
            one, other = jnp.split(unit, 2)
            weights = self.param(f"weights_{block}", nn.initializers.ones, (widths[-1],))
            distance += ((one - other) ** 2 * weights).sum(axis=-1).mean(axis=(1, 2))
        return distance
