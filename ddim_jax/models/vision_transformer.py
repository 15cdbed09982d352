"""Vision Transformers (Dosovitskiy et al. 2021) as DINOv2 and CLIP have them: what images are compared by today.

An image is cut into square patches, each of which becomes a vector, a *token*. A token of no place is put before them.
In each block all tokens look at one another (attention), and then each is changed by itself (two dense layers); both
are added to what was there. The first token's vector, after the last block, is what the network says of the image.

DINOv2 (Oquab et al. 2023, without registers) and CLIP (Radford et al. 2021) differ by attributes of one class:

- DINOv2 scales what a block adds, by channel (LayerScale);
- CLIP normalises the tokens before the first block, uses x σ(1.702 x) in place of GELU, has no bias in its patches, and
  projects the first token into the space that it shares with texts.

Parameters are float32 and come from ``weights/vision_transformers.py``.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

# Accelerators multiply float32 in bfloat16 or TF32 by default, and figures would differ in the third digit.
_PRECISION = jax.lax.Precision.HIGHEST

_MLP_RATIO = 4


def quick_gelu(x: jax.Array) -> jax.Array:
    """Approximates GELU as CLIP was trained with: x σ(1.702 x)."""
    return x * nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function, as PyTorch has it."""
    return nn.gelu(x, approximate=False)


class VisionTransformer(nn.Module):
    """The network: images [n, side, side, 3], normalised as it was trained with → features [n, d].

    Attributes:
        side: of the images in pixels.
        patch: side of a patch in pixels.
        width: numbers in a token; d, unless they are projected.
        depth: blocks.
        heads: of attention, among which the width is divided.
        activation: between the two dense layers of a block.
        epsilon: of layer norms.
        has_layer_scale: whether what a block adds is scaled by channel.
        has_norm_before: whether tokens are normalised before the first block, and patches have no bias.
        projection: d where the features are projected; 0 where they are not.
    """

    side: int
    patch: int
    width: int
    depth: int
    heads: int
    activation: Callable[[jax.Array], jax.Array] = exact_gelu
    epsilon: float = 1e-6
    has_layer_scale: bool = False
    has_norm_before: bool = False
    projection: int = 0

    @property
    def grid(self) -> int:
        """The number of patches along a side."""
        return self.side // self.patch

    @property
    def num_features(self) -> int:
        """The numbers of a feature: d."""
        return self.projection or self.width

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the features.

        Raises:
            ValueError: images have another shape.
        """
        if images.shape[1:] != (self.side, self.side, 3):
            raise ValueError(f"the network needs [n, {self.side}, {self.side}, 3], got {images.shape}")
        patches = nn.Conv(
            self.width, (self.patch, self.patch), self.patch, "VALID",
            use_bias=not self.has_norm_before, precision=_PRECISION, name="patches",
        )(images)  # fmt: skip
        patches = patches.reshape(len(images), self.grid**2, self.width)
        first = self.param("first_token", nn.initializers.normal(0.02), (self.width,))
        positions = self.param("positions", nn.initializers.normal(0.02), (1 + self.grid**2, self.width))
        x = jnp.concatenate([jnp.broadcast_to(first, (len(images), 1, self.width)), patches], axis=1) + positions
        if self.has_norm_before:
            x = _norm(self.epsilon, "norm_before")(x)
        for place in range(self.depth):
            x = Block(self.heads, self.activation, self.epsilon, self.has_layer_scale, name=f"block_{place}")(x)
        x = _norm(self.epsilon, "norm_after")(x[:, 0])
        if self.projection:
            x = nn.Dense(self.projection, use_bias=False, precision=_PRECISION, name="projection")(x)
        return x


class Block(nn.Module):
    """Attention, then dense layers, each of normalised tokens and added to them: [n, t, width] → [n, t, width].

    Attributes:
        heads: see :class:`VisionTransformer`, as for all others.
        activation: between the dense layers.
        epsilon: of layer norms.
        has_layer_scale: whether what is added is scaled by channel.
    """

    heads: int
    activation: Callable[[jax.Array], jax.Array]
    epsilon: float
    has_layer_scale: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        width = x.shape[-1]

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, precision=_PRECISION, name=name)

        def scaled(added: jax.Array, name: str) -> jax.Array:
            return added * self.param(name, nn.initializers.ones, (width,)) if self.has_layer_scale else added

        normed = _norm(self.epsilon, "norm_attention")(x)
        query, key, value = jnp.split(dense(3 * width, "query_key_value")(normed), 3, axis=-1)
        seen = dense(width, "attended")(attend(query, key, value, self.heads))
        x = x + scaled(seen, "scale_attention")

        normed = _norm(self.epsilon, "norm_dense")(x)
        changed = dense(width, "narrow")(self.activation(dense(_MLP_RATIO * width, "wide")(normed)))
        return x + scaled(changed, "scale_dense")


def _norm(epsilon: float, name: str) -> nn.LayerNorm:
    # The fast form of the variance loses digits where the mean is large, as in some of DINOv2's channels.
    return nn.LayerNorm(epsilon, use_fast_variance=False, name=name)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, heads: int) -> jax.Array:
    """Means of the values of all tokens, weighted by how well each one's key fits a query: all [n, t, width].

    Each head does so in its own part of the channels.
    """

    def by_head(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], heads, -1).transpose(0, 2, 1, 3)

    query, key, value = by_head(query), by_head(key), by_head(value)
    fits = jnp.matmul(query, key.transpose(0, 1, 3, 2), precision=_PRECISION) * query.shape[-1] ** -0.5
    means = jnp.matmul(nn.softmax(fits, axis=-1), value, precision=_PRECISION)
    # Plain products of matrices: XLA has failed to compile the same as sums over indices for NVIDIA's GPUs.
    return means.transpose(0, 2, 1, 3).reshape(len(means), means.shape[2], -1)


def dinov2(width: int, depth: int, heads: int) -> VisionTransformer:
    """DINOv2's network with patches of 14 pixels, for images of 224."""
    return VisionTransformer(224, 14, width, depth, heads, has_layer_scale=True)


def clip(side: int, patch: int, width: int, depth: int, projection: int) -> VisionTransformer:
    """CLIP's network for images; its heads have 64 channels each."""
    return VisionTransformer(
        side, patch, width, depth, width // 64, quick_gelu, 1e-5, has_norm_before=True, projection=projection
    )


DINOV2_S14 = dinov2(384, 12, 6)
DINOV2_B14 = dinov2(768, 12, 12)
DINOV2_L14 = dinov2(1024, 24, 16)
CLIP_B32 = clip(224, 32, 768, 12, 512)
CLIP_L14_336 = clip(336, 14, 1024, 24, 768)
