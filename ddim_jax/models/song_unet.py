"""The U-Nets of score SDE, DDPM++ and NCSN++ (Song et al. 2021, appendix H), in the settings of EDM.

They are DDPM's hourglass (``unet.py``) with wider and more blocks, and in these ways another network:

- resolutions are halved and doubled inside of residual blocks, by a fixed filter: ``(1, 1)``, which is the mean of
  2x2 pixels and their repetition, or the smoother ``(1, 3, 3, 1)``;
- a block's sum of branch and shortcut is divided by sqrt(2), so that its variance does not grow from block to block;
- on the way up only the last block of a resolution is followed by attention, and the lowest one has none.

==========  ==============  ============  =====================  =======================================
name        ``embedding``   ``encoder``   ``resample_filter``    what
==========  ==============  ============  =====================  =======================================
DDPM++      ``positional``  ``standard``  ``(1, 1)``             sines of the noise level, as in DDPM
NCSN++      ``fourier``     ``residual``  ``(1, 3, 3, 1)``       sines at random frequencies; the image
                                                                 itself enters at each resolution
==========  ==============  ============  =====================  =======================================

Karras et al. 2022 (table 7) train them on CIFAR-10 with widths of 256 at three resolutions, four blocks at each; their
networks are told classes, and what an augmentation did to the image, beside the noise level. What the network is told,
what its input is scaled by and what its output means is the schedule's and the objective's to say.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.models.convolution import Dense, conv, dense
from ddim_jax.models.dropout import dropout_each, kept_each
from ddim_jax.models.flash_attention import takes_flash_kernel
from ddim_jax.models.group_norm import GroupNorm, Parts
from ddim_jax.models.initialization import initializers
from ddim_jax.models.padding import enlarged, with_picture
from ddim_jax.models.unet import embedded_vector, time_embedding
from ddim_jax.names import Encoder, Initialization, TimeEmbedding

_HALF = 0.5**0.5

# Standard deviation of NCSN++'s random frequencies.
_FOURIER_SCALE = 16.0

# Queries, keys and values start with a tenth of the variance that other layers have.
_ATTENTION_VARIANCE = 0.1

# Changes the resolution of images by the weights of a filter: :func:`halved` or :func:`doubled`.
Resample: TypeAlias = Callable[[jax.Array, Sequence[float]], jax.Array]


class SongUNet(nn.Module):
    """The network of image and noise level, see the module's docstring.

    Attributes:
        out_channels: channels of the output; those of the image.
        channels: width of level 0 in units of which ``multipliers`` are, a multiple of 4.
        multipliers: width of each level in units of ``channels``.
        num_blocks: residual blocks per level on the way down, besides that which halves the resolution (one more on the
            way up).
        attention_resolutions: heights, in pixels, that have attention.
        dropout: rate of dropout before the second convolution of each block.
        num_groups: most groups of the group norms; there are four channels in a group at least.
        num_classes: 0 for an unconditional network, else the number of labels; ``num_classes`` itself means "no label".
        initialization: how fresh parameters are drawn, see :func:`~ddim_jax.models.initialization.initializers`.
        dtype: dtype of activations. Parameters, norms, softmax, the embedding, the last layer and the output are
            float32 in any case.
        remat: recompute each block in the backward pass instead of keeping its activations.
        flash_width: widest head for cuDNN's flash kernel, see ``models/flash_attention.py``.
        null_label: whether it has learnt what "no label" means.
        norm_eps: what the norms add to the variance.
        head_channels: width of an attention head; 0 for one head of all channels.
        embedding: ``positional`` or ``fourier``.
        encoder: ``standard`` or ``residual``.
        resample_filter: weights of neighbouring pixels, an even number of them, by which resolutions are changed.
        augmentation_inputs: length of the vector that tells what an augmentation did to the image; 0 for none.
        vector_inputs: see :class:`~ddim_jax.models.unet.UNet`.
        image_inputs: see there.
        pad: see there.
        few_passes: see there.
    """

    out_channels: int
    channels: int = 128
    multipliers: tuple[int, ...] = (2, 2, 2)
    num_blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.13
    num_groups: int = 32
    num_classes: int = 0
    initialization: Initialization = "ddpm"
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool = False
    flash_width: int = 0
    null_label: bool = True
    norm_eps: float = 1e-6
    head_channels: int = 0
    embedding: TimeEmbedding = "positional"
    encoder: Encoder = "standard"
    resample_filter: tuple[int, ...] = (1, 1)
    augmentation_inputs: int = 0
    vector_inputs: int = 0
    image_inputs: int = 0
    pad: bool = False
    few_passes: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        time: jax.Array,
        label: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        augmentation: jax.Array | None = None,
        vector: jax.Array | None = None,
        image: jax.Array | None = None,
    ) -> jax.Array:
        """Applies the network.

        Args:
            x: [n, h, w, c] noisy images; h and w divisible by 2^(levels - 1), unless ``pad``.
            time: [n] noise levels, on the scale that the network is trained with.
            label: [n] class labels in 0 ... num_classes, the last meaning "no label", which is also what None means.
                Only for a class-conditional network. Without ``null_label`` they end at num_classes - 1, and must be
                given.
            dropout_keys: [n] keys, one per example, or None to switch dropout off. The masks of an example depend on
                its key alone, not on the batch or the devices it is split over.
            augmentation: [n, augmentation_inputs], what was done to the images; None is all zeros: nothing was.
            vector: [n, vector_inputs], None for zeros; see :class:`~ddim_jax.conditions.Condition`.
            image: [n, h, w, image_inputs], likewise.

        Returns:
            [n, h, w, out_channels] float32.

        Raises:
            ValueError: h or w is not divisible, or the network does not take what is given, or needs what is not.
        """
        num_levels = len(self.multipliers)
        height, width = x.shape[1:3]
        x = with_picture(x, image, self.image_inputs)
        x = enlarged(x, 2 ** (num_levels - 1), self.pad, num_levels)

        block_type = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        attention_type = nn.remat(Attention) if self.remat else Attention
        num_built = 0

        def block(x: Parts, width: int, name: str, resample: Resample | None = None) -> jax.Array:
            nonlocal num_built
            module = block_type(
                features=width,
                dropout=self.dropout,
                index=num_built,
                num_groups=self.num_groups,
                initialization=self.initialization,
                dtype=self.dtype,
                norm_eps=self.norm_eps,
                resample=resample,
                resample_filter=self.resample_filter,
                few_passes=self.few_passes,
                name=name,
            )
            num_built += 1
            return module(x, embedding, dropout_keys)

        def attention(x: jax.Array, name: str) -> jax.Array:
            module = attention_type(
                num_groups=self.num_groups,
                initialization=self.initialization,
                dtype=self.dtype,
                flash_width=self.flash_width,
                norm_eps=self.norm_eps,
                head_channels=self.head_channels,
                few_passes=self.few_passes,
                name=name,
            )
            return module(x)

        embedding = self._embed(time, label, augmentation, vector)
        pyramid = x
        x = conv(self.channels, x, "conv_in", self.initialization, self.dtype)

        skips = [x]
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                x = block(x, x.shape[-1], f"down_{level - 1}_downsample", halved)
                if self.encoder == "residual":
                    pyramid = self._downsampled(pyramid, x.shape[-1], f"down_{level - 1}_pyramid")
                    x = pyramid = (x + pyramid) * _HALF
                skips.append(x)
            for i in range(self.num_blocks):
                x = block(x, self.channels * multiplier, f"down_{level}_block_{i}")
                if x.shape[1] in self.attention_resolutions:
                    x = attention(x, f"down_{level}_attention_{i}")
                skips.append(x)

        x = block(x, x.shape[-1], "mid_block_0")
        x = attention(x, "mid_attention")
        x = block(x, x.shape[-1], "mid_block_1")

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.num_blocks + 1):
                x = block((x, skips.pop()), self.channels * multiplier, f"up_{level}_block_{i}")
            if x.shape[1] in self.attention_resolutions:
                x = attention(x, f"up_{level}_attention")
            if level > 0:
                x = block(x, x.shape[-1], f"up_{level}_upsample", doubled)

        # The last layer in float32: its 2^-8 rounding in bfloat16 would be noise in every sampling step.
        groups = group_count(x.shape[-1], self.num_groups)
        x = nn.swish(GroupNorm(groups, jnp.float32, self.norm_eps, name="norm_out")(x))
        x = conv(self.out_channels, x, "conv_out", self.initialization, jnp.float32, zero=True)
        return x[:, :height, :width]

    def _embed(
        self,
        time: jax.Array,
        label: jax.Array | None,
        augmentation: jax.Array | None,
        vector: jax.Array | None,
    ) -> jax.Array:
        """What the blocks are told: [n, 4 * channels] float32."""
        match self.embedding:
            case "positional":
                embedding = time_embedding(time, self.channels)
            case "fourier":
                embedding = FourierEmbedding(self.channels, name="time_fourier")(time)
            case _:
                assert_never(self.embedding)
        width = embedding.shape[-1]
        if self.num_classes:
            if label is None:
                if not (self.null_label or self.is_initializing()):
                    raise ValueError("a label is needed: this network has none that means 'no label'")
                label = jnp.full(time.shape, self.num_classes)
            # The root gives the columns of a one-hot vector variance 1; "no label" is a vector of zeros.
            told = jax.nn.one_hot(label, self.num_classes) * self.num_classes**0.5
            embedding = embedding + dense(width, told, "label_dense", self.initialization, jnp.float32)
        elif label is not None:
            raise ValueError("a label was given to an unconditional network (num_classes=0)")
        if self.augmentation_inputs:
            if augmentation is None:
                augmentation = jnp.zeros((len(time), self.augmentation_inputs))
            init, _ = initializers(self.initialization, self.augmentation_inputs, zero=False)
            layer = nn.Dense(width, use_bias=False, kernel_init=init, name="augmentation_dense")
            embedding = embedding + layer(augmentation)
        elif augmentation is not None:
            raise ValueError("an augmentation was told to a network that takes none (augmentation_inputs=0)")
        if self.vector_inputs or vector is not None:
            embedding = embedding + embedded_vector(vector, len(time), self.vector_inputs, width, self.initialization)
        for i in range(2):
            layer = f"time_dense_{i}"
            embedding = nn.swish(dense(4 * self.channels, embedding, layer, self.initialization, jnp.float32))
        return embedding

    def _downsampled(self, x: jax.Array, features: int, name: str) -> jax.Array:
        """A convolution that halves the resolution of what the filter has smoothed."""
        smooth = smoothed(x, self.resample_filter)
        # At stride 2 the convolution's windows start at the first pixel, and all are whole but the last, which is left
        # out.
        return conv(features, smooth, name, self.initialization, self.dtype, stride=2)[:, :-1, :-1]


class ResidualBlock(nn.Module):
    """(shortcut(x) + conv(dropout(swish(norm(conv(swish(norm(x))) + dense(embedding)))))) / sqrt(2).

    Attributes:
        features: channels of the output; where they differ from the input's, or the resolution does, a 1x1 convolution
            (``shortcut``) carries x over.
        dropout: dropout rate.
        index: number of the block in the network, folded into the dropout keys.
        num_groups: most groups of the norms.
        initialization: see :func:`~ddim_jax.models.initialization.initializers`.
        dtype: dtype of activations.
        norm_eps: of the norms.
        resample: what changes the resolution, before the first convolution and in the shortcut; None leaves it.
        resample_filter: see :class:`SongUNet`.
        few_passes: see there.
    """

    features: int
    dropout: float
    index: int
    num_groups: int = 32
    initialization: Initialization = "ddpm"
    dtype: jax.typing.DTypeLike = jnp.float32
    norm_eps: float = 1e-6
    resample: Resample | None = None
    resample_filter: tuple[int, ...] = (1, 1)
    few_passes: bool = False

    @nn.compact
    def __call__(self, x: Parts, embedding: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Maps [n, h, w, c], whole or in parts, to [n, h', w', features], given [n, e] activated embeddings."""
        c = sum(part.shape[-1] for part in x) if isinstance(x, tuple) else x.shape[-1]
        told = dense(self.features, embedding, "time_dense", self.initialization, jnp.float32)[:, None, None, :]
        keys = None
        if dropout_keys is not None and self.dropout > 0:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, self.index))(dropout_keys)
        norm = functools.partial(GroupNorm, dtype=self.dtype, eps=self.norm_eps, few_passes=self.few_passes)
        h = norm(group_count(c, self.num_groups), name="norm_0")(x, swish=True)
        h = self._resampled(h)
        groups = group_count(self.features, self.num_groups)
        if self.few_passes:
            h, added = conv(self.features, h, "conv_0", self.initialization, self.dtype, offset=told, apart=True)
            kept = None if keys is None else kept_each(h.shape, keys, self.dropout)
            h = norm(groups, name="norm_1")(h, offset=added[:, 0, 0], swish=True, kept=kept)
        else:
            h = conv(self.features, h, "conv_0", self.initialization, self.dtype, offset=told)
            h = norm(groups, name="norm_1")(h, swish=True)
            h = h if keys is None else dropout_each(h, keys, self.dropout)
        h = conv(self.features, h, "conv_1", self.initialization, self.dtype, zero=True)
        if isinstance(x, tuple):
            x = jnp.concatenate(x, axis=-1)
        x = self._resampled(x)
        if c != self.features or self.resample is not None:
            x = dense(self.features, x, "shortcut", self.initialization, self.dtype)
        return (x + h) * _HALF

    def _resampled(self, x: jax.Array) -> jax.Array:
        return x if self.resample is None else self.resample(x, self.resample_filter)


class Attention(nn.Module):
    """(x + proj_out(softmax(q k^T / sqrt(c)) v)) / sqrt(2): every pixel attends to every pixel.

    Attributes:
        num_groups: most groups of the norm.
        initialization: see :func:`~ddim_jax.models.initialization.initializers`.
        dtype: dtype of activations; logits and softmax are float32.
        flash_width: widest head for cuDNN's flash kernel; 0 does without it.
        norm_eps: of the norm.
        head_channels: width of a head; 0 for one head.
        few_passes: see :class:`SongUNet`.
    """

    num_groups: int = 32
    initialization: Initialization = "ddpm"
    dtype: jax.typing.DTypeLike = jnp.float32
    flash_width: int = 0
    norm_eps: float = 1e-6
    head_channels: int = 0
    few_passes: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [n, h, w, c] to [n, h, w, c]."""
        n, height, width, c = x.shape
        pixels, head = height * width, self.head_channels or c
        groups = group_count(c, self.num_groups)
        tokens = GroupNorm(groups, self.dtype, self.norm_eps, self.few_passes, name="norm")(x).reshape(n, pixels, c)
        query, key, value = (
            self._layer(c, tokens, name).reshape(n, pixels, c // head, head) for name in ("query", "key", "value")
        )
        flash = takes_flash_kernel(self.flash_width, channels=head, pixels=pixels)
        attended = jax.nn.dot_product_attention(query, key, value, implementation="cudnn" if flash else "xla")
        out = dense(c, attended.reshape(x.shape), "proj_out", self.initialization, self.dtype, zero=True)
        return (x + out) * _HALF

    def _layer(self, features: int, x: jax.Array, name: str) -> jax.Array:
        kernel_init, bias_init = initializers(self.initialization, x.shape[-1], zero=False)
        if self.initialization == "ddpm":
            kernel_init = nn.initializers.variance_scaling(_ATTENTION_VARIANCE, "fan_avg", "uniform")
        return Dense(features, self.dtype, kernel_init, bias_init, name=name)(x)


class FourierEmbedding(nn.Module):
    """Sines, then cosines, of 2π f t at random frequencies f, which are drawn once and never trained.

    The frequencies lie beside the batch statistics of other networks, where no optimiser touches them.

    Attributes:
        frequencies: number of frequencies.
    """

    frequencies: int

    @nn.compact
    def __call__(self, time: jax.Array) -> jax.Array:
        """Maps [n] to [n, 2 * frequencies] float32."""
        frequency = self.variable(
            "batch_stats",
            "frequencies",
            lambda: _FOURIER_SCALE * jax.random.normal(self.make_rng("params"), (self.frequencies,)),
        )
        phase = time.astype(jnp.float32)[:, None] * (np.float32(2 * np.pi) * frequency.value)
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def group_count(channels: int, most: int) -> int:
    """Groups of a norm: ``most``, and four channels in a group at least.

    >>> group_count(256, 32), group_count(64, 32)
    (32, 16)
    """
    return min(most, channels // 4)


# --- filters --------------------------------------------------------------------------------------


def halved(x: jax.Array, weights: Sequence[float]) -> jax.Array:
    """Halves height and width by a filter.

    Args:
        x: [n, h, w, c], h and w even; zeros lie around it.
        weights: of the filter, an even number, centred between two neighbouring pixels; those of both axes are
            multiplied, and their sum divided out.

    Returns:
        [n, h / 2, w / 2, c], of x's dtype; computed in float32.
    """
    values, margin = x.astype(jnp.float32), len(weights) // 2 - 1
    for axis in (1, 2):
        length = values.shape[axis] // 2
        padded = _padded(values, axis, margin, margin)
        values = _total(
            weight * jax.lax.slice_in_dim(padded, i, i + 2 * length - 1, 2, axis)
            for i, weight in enumerate(_normalised(weights))
        )
    return values.astype(x.dtype)


def doubled(x: jax.Array, weights: Sequence[float]) -> jax.Array:
    """Doubles height and width by a filter, :func:`halved` transposed and four times as large.

    Args:
        x: [n, h, w, c]; zeros lie around it.
        weights: as of :func:`halved`.

    Returns:
        [n, 2 h, 2 w, c], of x's dtype; computed in float32.
    """
    values, margin = x.astype(jnp.float32), len(weights) // 2 - 1
    for axis in (1, 2):
        length = values.shape[axis]
        padded = _padded(values, axis, margin + 1, margin + 1)
        phases = []
        for phase in (0, 1):
            # Pixel i of x reaches pixels 2 i + k - margin, k = 0, 1 ... of the result by weight k.
            starts = {k: margin + 1 + (phase + margin - k) // 2 for k in range((phase + margin) % 2, len(weights), 2)}
            phases.append(
                _total(
                    2 * _normalised(weights)[k] * jax.lax.slice_in_dim(padded, start, start + length, 1, axis)
                    for k, start in starts.items()
                )
            )
        shape = (*values.shape[:axis], 2 * length, *values.shape[axis + 1 :])
        values = jnp.stack(phases, axis + 1).reshape(shape)
    return values.astype(x.dtype)


def smoothed(x: jax.Array, weights: Sequence[float]) -> jax.Array:
    """Applies a filter at the same resolution, wherever a 3x3 window of the result looks.

    Args:
        x: [n, h, w, c]; zeros lie around it.
        weights: as of :func:`halved`.

    Returns:
        [n, h + 2, w + 2, c], of x's dtype; computed in float32. Pixel (1, 1) lies where the first pixel of
        :func:`halved` does.
    """
    values, half = x.astype(jnp.float32), len(weights) // 2
    for axis in (1, 2):
        length = values.shape[axis] + 2
        padded = _padded(values, axis, half, half + 1)
        values = _total(
            weight * jax.lax.slice_in_dim(padded, i, i + length, 1, axis)
            for i, weight in enumerate(_normalised(weights))
        )
    return values.astype(x.dtype)


def _normalised(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def _total(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


def _padded(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, after)
    return jnp.pad(x, widths)
