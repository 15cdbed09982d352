"""The Inception network of 5 December 2015, by whose features FID, KID and Inception Score are defined.

Szegedy et al. 2016 ("Rethinking the Inception Architecture") describe Inception-v3; this is the network that its
authors published under that date, which Salimans et al. 2016 and Heusel et al. 2017 measured images with. Every figure
in the literature depends on its details, and it differs from the paper and from the networks that libraries call
Inception-v3:

- 1008 logits, of which 1000 classes are used;
- average pooling counts no zeros of the padding (``Mixed_5b`` to ``Mixed_5d``, ``Mixed_6b`` to ``Mixed_6e``,
  ``Mixed_7b``), and the last block pools by maximum instead;
- batch norm with eps = 1e-3.

A block runs several branches on the same input and concatenates what they give. Small kernels in a row and pairs of 1x7
and 7x1 see as far as a large one, for less work. Layers are named as in the published weights.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

INPUT_SIZE = 299
NUM_FEATURES = 2048
NUM_LOGITS = 1008

# Accelerators multiply float32 in bfloat16 or TF32 by default, and FID would move.
_PRECISION = jax.lax.Precision.HIGHEST


class InceptionFeatures(NamedTuple):
    """What the network says of n images, float32.

    Attributes:
        pool3: [n, 2048] the features of FID, KID, precision and recall.
        logits: [n, 1008] log-probabilities of the classes, up to a constant.
        logits_unbiased: [n, 1008] the same without the bias of the last layer, from which Inception Score was first
            computed, and is still.
    """

    pool3: jax.Array
    logits: jax.Array
    logits_unbiased: jax.Array


class Inception(nn.Module):
    """The network, see the module's docstring. Its parameters are float32 and come from ``weights/inception.py``.

    Batch norms are part of the convolutions: with fixed statistics both are linear, and one layer replaces two.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> InceptionFeatures:
        """Applies the network.

        Args:
            x: [n, 299, 299, 3] float32 RGB, resized and normalised to about [-1, 1] as ``measuring/resize.py`` does:
                (pixel - 128) / 128 of pixels in 0 ... 255 as TensorFlow's graph has it, 2 pixel / 255 - 1 in
                pytorch-fid. The difference is part of each protocol.

        Raises:
            ValueError: the input has another shape.
        """
        if x.shape[1:] != (INPUT_SIZE, INPUT_SIZE, 3):
            raise ValueError(f"the network needs [n, {INPUT_SIZE}, {INPUT_SIZE}, 3], got {x.shape}")
        x = _conv(x, "Conv2d_1a_3x3", 32, (3, 3), stride=2, padding="VALID")
        x = _conv(x, "Conv2d_2a_3x3", 32, (3, 3), padding="VALID")
        x = _conv(x, "Conv2d_2b_3x3", 64, (3, 3))
        x = _reduce_by_max(x)  # [n, 73, 73, 64]
        x = _conv(x, "Conv2d_3b_1x1", 80, (1, 1))
        x = _conv(x, "Conv2d_4a_3x3", 192, (3, 3), padding="VALID")
        x = _reduce_by_max(x)  # [n, 35, 35, 192]
        x = Fine(pool_features=32, name="Mixed_5b")(x)
        x = Fine(pool_features=64, name="Mixed_5c")(x)
        x = Fine(pool_features=64, name="Mixed_5d")(x)
        x = FineToMiddle(name="Mixed_6a")(x)  # [n, 17, 17, 768]
        x = Middle(width=128, name="Mixed_6b")(x)
        x = Middle(width=160, name="Mixed_6c")(x)
        x = Middle(width=160, name="Mixed_6d")(x)
        x = Middle(width=192, name="Mixed_6e")(x)
        x = MiddleToCoarse(name="Mixed_7a")(x)  # [n, 8, 8, 1280]
        x = Coarse(pool="average", name="Mixed_7b")(x)
        x = Coarse(pool="maximum", name="Mixed_7c")(x)
        pool3 = jnp.mean(x, axis=(1, 2))
        logits_unbiased = nn.Dense(NUM_LOGITS, use_bias=False, precision=_PRECISION, name="fc")(pool3)
        bias = self.param("fc_bias", nn.initializers.zeros_init(), (NUM_LOGITS,))
        return InceptionFeatures(pool3, logits_unbiased + bias, logits_unbiased)


class Fine(nn.Module):
    """Block at 35x35: [n, 35, 35, c] → [n, 35, 35, 224 + pool_features].

    Attributes:
        pool_features: channels of the branch with pooling.
    """

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        one = _conv(x, "branch1x1", 64, (1, 1))

        five = _conv(x, "branch5x5_1", 48, (1, 1))
        five = _conv(five, "branch5x5_2", 64, (5, 5))

        three = _conv(x, "branch3x3dbl_1", 64, (1, 1))
        three = _conv(three, "branch3x3dbl_2", 96, (3, 3))
        three = _conv(three, "branch3x3dbl_3", 96, (3, 3))

        pooled = _conv(_average(x), "branch_pool", self.pool_features, (1, 1))
        return jnp.concatenate([one, five, three, pooled], axis=-1)


class FineToMiddle(nn.Module):
    """Halves the resolution: [n, 35, 35, c] → [n, 17, 17, c + 480]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        three = _conv(x, "branch3x3", 384, (3, 3), stride=2, padding="VALID")

        double = _conv(x, "branch3x3dbl_1", 64, (1, 1))
        double = _conv(double, "branch3x3dbl_2", 96, (3, 3))
        double = _conv(double, "branch3x3dbl_3", 96, (3, 3), stride=2, padding="VALID")
        return jnp.concatenate([three, double, _reduce_by_max(x)], axis=-1)


class Middle(nn.Module):
    """Block at 17x17: [n, 17, 17, 768] → [n, 17, 17, 768].

    Attributes:
        width: channels between the kernels of 7x7, each split into 1x7 (height x width) and 7x1.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        one = _conv(x, "branch1x1", 192, (1, 1))

        seven = _conv(x, "branch7x7_1", self.width, (1, 1))
        seven = _conv(seven, "branch7x7_2", self.width, (1, 7))
        seven = _conv(seven, "branch7x7_3", 192, (7, 1))

        double = _conv(x, "branch7x7dbl_1", self.width, (1, 1))
        double = _conv(double, "branch7x7dbl_2", self.width, (7, 1))
        double = _conv(double, "branch7x7dbl_3", self.width, (1, 7))
        double = _conv(double, "branch7x7dbl_4", self.width, (7, 1))
        double = _conv(double, "branch7x7dbl_5", 192, (1, 7))

        pooled = _conv(_average(x), "branch_pool", 192, (1, 1))
        return jnp.concatenate([one, seven, double, pooled], axis=-1)


class MiddleToCoarse(nn.Module):
    """Halves the resolution: [n, 17, 17, c] → [n, 8, 8, c + 512]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        three = _conv(x, "branch3x3_1", 192, (1, 1))
        three = _conv(three, "branch3x3_2", 320, (3, 3), stride=2, padding="VALID")

        seven = _conv(x, "branch7x7x3_1", 192, (1, 1))
        seven = _conv(seven, "branch7x7x3_2", 192, (1, 7))
        seven = _conv(seven, "branch7x7x3_3", 192, (7, 1))
        seven = _conv(seven, "branch7x7x3_4", 192, (3, 3), stride=2, padding="VALID")
        return jnp.concatenate([three, seven, _reduce_by_max(x)], axis=-1)


class Coarse(nn.Module):
    """Block at 8x8, wider than deep: [n, 8, 8, c] → [n, 8, 8, 2048].

    Attributes:
        pool: ``average``, or ``maximum`` in the last block: a slip of the published network that is part of the metric.
    """

    pool: Literal["average", "maximum"]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        one = _conv(x, "branch1x1", 320, (1, 1))

        three = _conv(x, "branch3x3_1", 384, (1, 1))
        three_wide = _conv(three, "branch3x3_2a", 384, (1, 3))
        three_high = _conv(three, "branch3x3_2b", 384, (3, 1))

        double = _conv(x, "branch3x3dbl_1", 448, (1, 1))
        double = _conv(double, "branch3x3dbl_2", 384, (3, 3))
        double_wide = _conv(double, "branch3x3dbl_3a", 384, (1, 3))
        double_high = _conv(double, "branch3x3dbl_3b", 384, (3, 1))

        pooled = _average(x) if self.pool == "average" else nn.max_pool(x, (3, 3), padding="SAME")
        pooled = _conv(pooled, "branch_pool", 192, (1, 1))
        return jnp.concatenate([one, three_wide, three_high, double_wide, double_high, pooled], axis=-1)


def _conv(
    x: jax.Array, name: str, features: int, kernel: tuple[int, int], stride: int = 1, padding: str = "SAME"
) -> jax.Array:
    """Convolution with a kernel of (height, width), then relu: [n, h, w, c] → [n, h', w', features]."""
    return nn.relu(nn.Conv(features, kernel, stride, padding, precision=_PRECISION, name=name)(x))


def _average(x: jax.Array) -> jax.Array:
    """Averages 3x3 neighbours; at the border those that are there (PyTorch's ``count_include_pad=False``).

    As sums of shifted images, first of rows and then of columns: XLA runs that several times faster on a CPU than its
    own pooling.
    """
    counts = [np.convolve(np.ones(length), np.ones(3), "same") for length in x.shape[1:3]]
    neighbours = (counts[0][:, None] * counts[1])[:, :, None].astype(np.float32)
    return _sum_of_three(_sum_of_three(x, 1), 2) / neighbours


def _sum_of_three(x: jax.Array, axis: int) -> jax.Array:
    """Each value with its two neighbours along an axis; zeros beyond the border."""
    padded = jnp.pad(x, [(1, 1) if other == axis else (0, 0) for other in range(x.ndim)])
    return sum(jax.lax.slice_in_dim(padded, k, k + x.shape[axis], axis=axis) for k in range(3))  # pyright: ignore


def _reduce_by_max(x: jax.Array) -> jax.Array:
    """The maximum of 3x3 values at every second place, as maxima of shifted images, faster for the same reason."""
    for axis in (1, 2):
        places = (x.shape[axis] - 3) // 2 + 1
        shifted = [jax.lax.slice_in_dim(x, k, k + 2 * places - 1, stride=2, axis=axis) for k in range(3)]
        x = jnp.maximum(jnp.maximum(shifted[0], shifted[1]), shifted[2])
    return x
