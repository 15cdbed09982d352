"""The U-Net of DDPM and DDIM (Ho et al. 2020, appendix B; Song et al. 2021, appendix D.1).

The network takes a noisy image and its noise level and returns one value per pixel and channel:
the predicted noise, unless another objective was trained. Its shape is an hourglass::

    x ── conv_in ── level 0 ─────────── skip connections ─────────── level 0 ── conv_out ── eps
                       └── level 1 ──────────────────────────── level 1 ──┘
                              └── ... ── mid: block, attention, block ── ... ──┘

On the way down each level runs ``num_blocks`` residual blocks and then halves the resolution; on
the way up it runs one block more and doubles it. Every tensor made on the way down (the output
of ``conv_in``, of each block and of each downsampling) is kept, and the blocks on the way up take
them back, last in first out, concatenated to their input. The noise level enters every residual
block as a per-channel bias.

Arrays are [n, height, width, channels]. Details follow the published code, whose PyTorch and
TensorFlow versions compute the same function, so that published checkpoints give the published
numbers: group norm with 32 groups and eps = 1e-6, zeros padded right and below when downsampling,
one attention head, attention after *every* block of its resolutions, both ways. Networks of diffusers' training script
differ in some of these, and so do OpenAI's improved-diffusion (Nichol and Dhariwal 2021) and ADM (Dhariwal and Nichol
2021), whose blocks are told of the noise level by a scale and a shift, and change the resolution themselves: the last
attributes of :class:`UNet`.
"""

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.models.convolution import conv, dense, with_bias
from ddim_jax.models.dropout import dropout_each, kept_each
from ddim_jax.models.flash_attention import takes_flash_kernel
from ddim_jax.models.group_norm import GroupNorm, Parts
from ddim_jax.models.padding import enlarged, with_picture
from ddim_jax.names import Initialization

# What a residual block does to the resolution.
Resample = Literal["", "down", "up"]


class UNet(nn.Module):
    """The network eps(x, t), see the module's docstring.

    Attributes:
        out_channels: channels of the output: those of the image, for all objectives; twice as many where it has to say
            the variance too.
        channels: width of level 0, a multiple of ``num_groups``.
        multipliers: width of each level in units of ``channels``.
        num_blocks: residual blocks per level on the way down (one more on the way up).
        attention_resolutions: heights, in pixels, at which each block is followed by attention.
        dropout: rate of dropout before the second convolution of each block.
        num_groups: groups of the group norms, 32 as published. A network narrower than the published ones needs fewer:
            with one channel a group, the norm that follows takes away what the blocks are told of time and label.
        num_classes: 0 for an unconditional network, else the number of labels. With ``null_label`` one label more,
            ``num_classes`` itself, means "no label", for classifier-free guidance.
        initialization: how fresh parameters are drawn, see :func:`~ddim_jax.models.initialization.initializers`.
        dtype: dtype of activations. Parameters, norms, softmax, the embedding of time and label,
            the last layer and the output are float32 in any case.
        remat: recompute each block in the backward pass instead of keeping its activations.
        flash_width: widest head for cuDNN's flash kernel, see ``models/flash_attention.py``.
        null_label: whether there is a label that means "no label".
        time_freq_shift: see :func:`time_embedding`.
        time_cos_first: see :func:`time_embedding`.
        downsample_padding: 0 pads right and below when downsampling, 1 pads on all sides.
        norm_eps: what the norms add to the variance.
        head_channels: width of an attention head; 0 for one head of all channels.
        num_heads: number of attention heads, whatever their width; 0 for what ``head_channels`` says.
        scale_shift_norm: blocks are told of time and label by a scale and a shift after their second norm, not by an
            offset before it.
        resample_blocks: residual blocks halve and double the resolution, in place of convolutions.
        time_channels: width of the embedding of time, of which the blocks are told 4 times as many values; 0 for that
            of level 0.
        time_scale: what noise levels are multiplied by before they are embedded.
        vector_inputs: length of the vectors that the network is told, by two dense layers beside those of time; 0 for
            none.
        image_inputs: channels of the pictures that it is told, beside those of its input; 0 for none.
        pad: whether images whose sides it cannot halve are enlarged by zeros, at the bottom and at the right, and its
            output is cut back; resolutions are those of enlarged images.
        few_passes: the forms of norms, dropout and shortcuts that read and write memory least on GPUs, in bfloat16; see
            :func:`~ddim_jax.models.group_norm.norm_in_few_passes`. Without forward-mode derivatives.
    """

    out_channels: int
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    num_groups: int = 32
    num_classes: int = 0
    initialization: Initialization = "ddpm"
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool = False
    flash_width: int = 0
    null_label: bool = True
    time_freq_shift: int = 1
    time_cos_first: bool = False
    downsample_padding: int = 0
    norm_eps: float = 1e-6
    head_channels: int = 0
    num_heads: int = 0
    scale_shift_norm: bool = False
    resample_blocks: bool = False
    time_channels: int = 0
    time_scale: float = 1.0
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
        vector: jax.Array | None = None,
        image: jax.Array | None = None,
    ) -> jax.Array:
        """Applies the network.

        Args:
            x: [n, h, w, c] noisy images; h and w divisible by 2^(levels - 1), unless ``pad``.
            time: [n] noise levels on the scale of the checkpoint, 0 ... 999 for published ones;
                they need not be integers.
            label: [n] class labels in 0 ... num_classes, the last meaning "no label", which is
                also what None means. Only for a class-conditional network. Without ``null_label``
                they end at num_classes - 1, and must be given.
            dropout_keys: [n] keys, one per example, or None to switch dropout off. The masks of an
                example depend on its key alone, not on the batch or the devices it is split over.
            vector: [n, vector_inputs], None for zeros; see :class:`~ddim_jax.conditions.Condition`.
            image: [n, h, w, image_inputs], likewise.

        Returns:
            [n, h, w, out_channels] float32.

        Raises:
            ValueError: h or w is not divisible, the network does not take what is given, or needs what is not.
        """
        num_levels = len(self.multipliers)
        height, width = x.shape[1:3]
        x = with_picture(x, image, self.image_inputs)
        x = enlarged(x, 2 ** (num_levels - 1), self.pad, num_levels)

        block_type = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        attention_type = nn.remat(Attention) if self.remat else Attention
        num_built = 0

        def block(x: Parts, width: int, name: str, resample: Resample = "") -> jax.Array:
            nonlocal num_built
            module = block_type(
                width,
                self.dropout,
                num_built,
                self.num_groups,
                self.initialization,
                self.dtype,
                self.norm_eps,
                self.scale_shift_norm,
                resample,
                self.few_passes,
                name=name,
            )
            num_built += 1
            return module(x, embedding, dropout_keys)

        def attention(x: jax.Array, name: str) -> jax.Array:
            module = attention_type(
                self.num_groups,
                self.initialization,
                self.dtype,
                self.flash_width,
                self.norm_eps,
                self.head_channels,
                self.num_heads,
                self.few_passes,
                name=name,
            )
            return module(x)

        embedding = self._embed(time, label, vector)
        convolved = functools.partial(
            conv, initialization=self.initialization, dtype=self.dtype, few_passes=self.few_passes
        )
        x = convolved(self.channels, x, "conv_in")

        skips = [x]
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.num_blocks):
                x = block(x, self.channels * multiplier, f"down_{level}_block_{i}")
                if x.shape[1] in self.attention_resolutions:
                    x = attention(x, f"down_{level}_attention_{i}")
                skips.append(x)
            if level < num_levels - 1:
                # SAME at stride 2 on even sizes pads right and below only, as published.
                name = f"down_{level}_downsample"
                if self.resample_blocks:
                    x = block(x, x.shape[-1], name, "down")
                elif self.downsample_padding:
                    # Zeros on all sides now, and the row and column that follow from those right and below left out.
                    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
                    x = convolved(x.shape[-1], x, name, stride=2)[:, :-1, :-1]
                else:
                    x = convolved(x.shape[-1], x, name, stride=2)
                skips.append(x)

        x = block(x, x.shape[-1], "mid_block_0")
        x = attention(x, "mid_attention")
        x = block(x, x.shape[-1], "mid_block_1")

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.num_blocks + 1):
                x = block((x, skips.pop()), self.channels * multiplier, f"up_{level}_block_{i}")
                if x.shape[1] in self.attention_resolutions:
                    x = attention(x, f"up_{level}_attention_{i}")
            if level > 0:
                name = f"up_{level}_upsample"
                if self.resample_blocks:
                    x = block(x, x.shape[-1], name, "up")
                else:
                    x = convolved(x.shape[-1], upsample_nearest(x), name)

        # The last layer in float32: its 2^-8 rounding in bfloat16 would be noise in every sampling step.
        x = nn.swish(GroupNorm(self.num_groups, jnp.float32, self.norm_eps, name="norm_out")(x))
        x = conv(self.out_channels, x, "conv_out", self.initialization, jnp.float32, zero=True)
        return x[:, :height, :width]

    def _embed(self, time: jax.Array, label: jax.Array | None, vector: jax.Array | None) -> jax.Array:
        """What the blocks are told of time, label and vector: [n, 4 * channels] float32, or 4 * time_channels."""
        channels = self.time_channels or self.channels
        width = 4 * channels
        scaled = time if self.time_scale == 1 else time * self.time_scale
        embedding = time_embedding(scaled, channels, self.time_freq_shift, self.time_cos_first)
        embedding = dense(width, embedding, "time_dense_0", self.initialization, jnp.float32)
        embedding = dense(width, nn.swish(embedding), "time_dense_1", self.initialization, jnp.float32)
        if self.num_classes:
            if label is None:
                if not (self.null_label or self.is_initializing()):
                    raise ValueError("a label is needed: this network has none that means 'no label'")
                label = jnp.full(time.shape, self.num_classes if self.null_label else 0)
            # N(0, 1): PyTorch's default for embeddings, and usual for this network; the papers have no labels.
            table = nn.Embed(
                self.num_classes + self.null_label,
                width,
                embedding_init=nn.initializers.normal(1.0),
                name="label_embed",
            )
            embedding = embedding + table(label)
        elif label is not None:
            raise ValueError("a label was given to an unconditional network (num_classes=0)")
        if self.vector_inputs or vector is not None:
            embedding = embedding + embedded_vector(vector, len(time), self.vector_inputs, width, self.initialization)
        # Each block starts with this swish; it is the same for all, so it is done once.
        return nn.swish(embedding)


class ResidualBlock(nn.Module):
    """x + conv(dropout(swish(norm(conv(swish(norm(x))) + dense(embedding))))).

    With ``scale_shift_norm`` the dense layer gives a scale and a shift instead, and the second norm becomes
    norm(h) (1 + scale) + shift ("adaptive group normalisation"; Dhariwal and Nichol 2021, section 3). A block that
    resamples halves the resolution by the mean of 2 x 2 pixels, or doubles it by repeating them, on both of its
    branches: x, and swish(norm(x)) before the first convolution.

    Attributes:
        features: channels of the output; where they differ from the input's, a 1x1 convolution
            (``shortcut``) carries x over.
        dropout: dropout rate.
        index: number of the block in the network, folded into the dropout keys.
        num_groups: groups of the norms.
        initialization: see :func:`~ddim_jax.models.initialization.initializers`.
        dtype: dtype of activations.
        norm_eps: of the norms.
        scale_shift_norm: whether the embedding scales and shifts.
        resample: ``down``, ``up``, or empty for neither.
        few_passes: see :class:`UNet`.
    """

    features: int
    dropout: float
    index: int
    num_groups: int = 32
    initialization: Initialization = "ddpm"
    dtype: jax.typing.DTypeLike = jnp.float32
    norm_eps: float = 1e-6
    scale_shift_norm: bool = False
    resample: Resample = ""
    few_passes: bool = False

    @nn.compact
    def __call__(self, x: Parts, embedding: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Maps [n, h, w, c], whole or in parts, to [n, h, w, features], given [n, e] activated embeddings, [n] keys."""
        values = 2 * self.features if self.scale_shift_norm else self.features
        keys = None
        if dropout_keys is not None and self.dropout > 0:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, self.index))(dropout_keys)
        told = dense(values, embedding, "time_dense", self.initialization, jnp.float32)[:, None, None, :]
        h = GroupNorm(self.num_groups, self.dtype, self.norm_eps, self.few_passes, name="norm_0")(x, swish=True)
        if self.resample:
            resample = _RESAMPLERS[self.resample]
            h, x = resample(h), resample(jnp.concatenate(x, axis=-1) if isinstance(x, tuple) else x)
        if self.scale_shift_norm:
            scale, shift = jnp.split(told, 2, axis=-1)
            h = conv(self.features, h, "conv_0", self.initialization, self.dtype)
            h = GroupNorm(self.num_groups, jnp.float32, self.norm_eps, name="norm_1")(h)
            h = nn.swish((h * (1 + scale) + shift).astype(self.dtype))
        elif self.few_passes:
            h, added = conv(self.features, h, "conv_0", self.initialization, self.dtype, offset=told, apart=True)
            kept = None if keys is None else kept_each(h.shape, keys, self.dropout)
            norm = GroupNorm(self.num_groups, self.dtype, self.norm_eps, few_passes=True, name="norm_1")
            h = norm(h, offset=added[:, 0, 0], swish=True, kept=kept)
        else:
            h = conv(self.features, h, "conv_0", self.initialization, self.dtype, offset=told)
            h = GroupNorm(self.num_groups, self.dtype, self.norm_eps, name="norm_1")(h, swish=True)
        if keys is not None and (self.scale_shift_norm or not self.few_passes):
            h = dropout_each(h, keys, self.dropout)
        c = sum(part.shape[-1] for part in x) if isinstance(x, tuple) else x.shape[-1]
        passed = None
        if c == self.features:
            shortcut = jnp.concatenate(x, axis=-1) if isinstance(x, tuple) else x
        elif self.few_passes:
            shortcut, passed = dense(self.features, x, "shortcut", self.initialization, self.dtype, apart=True)
            # The barrier keeps XLA from adding the convolution below to this one.
            shortcut = jax.lax.optimization_barrier(shortcut)
        else:
            whole = jnp.concatenate(x, axis=-1) if isinstance(x, tuple) else x
            shortcut = dense(self.features, whole, "shortcut", self.initialization, self.dtype)
        return conv(
            self.features, h, "conv_1", self.initialization, self.dtype, zero=True, offset=passed, residual=shortcut,
            few_passes=self.few_passes,
        )  # fmt: skip


class Attention(nn.Module):
    """x + proj_out(softmax(q k^T / sqrt(c)) v): every pixel attends to every pixel, by one head of c channels or more.

    Attributes:
        num_groups: groups of the norm.
        initialization: see :func:`~ddim_jax.models.initialization.initializers`.
        dtype: dtype of activations; logits and softmax are float32.
        flash_width: widest head for cuDNN's flash kernel; 0 does without it.
        norm_eps: of the norm.
        head_channels: width of a head; 0 for one head.
        num_heads: number of heads; 0 for what ``head_channels`` says.
        few_passes: see :class:`UNet`.
    """

    num_groups: int = 32
    initialization: Initialization = "ddpm"
    dtype: jax.typing.DTypeLike = jnp.float32
    flash_width: int = 0
    norm_eps: float = 1e-6
    head_channels: int = 0
    num_heads: int = 0
    few_passes: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [n, h, w, c] to [n, h, w, c]."""
        n, height, width, c = x.shape
        head = c // self.num_heads if self.num_heads else self.head_channels or c
        flash = takes_flash_kernel(self.flash_width, channels=head, pixels=height * width)
        layer = functools.partial(dense, initialization=self.initialization, dtype=self.dtype)

        def attend(*tokens: jax.Array) -> jax.Array:
            query, key, value = (x.reshape(n, height * width, c // head, head) for x in tokens)
            return jax.nn.dot_product_attention(query, key, value, implementation="cudnn" if flash else "xla")

        normed = GroupNorm(self.num_groups, self.dtype, self.norm_eps, self.few_passes, name="norm")(x)
        if self.few_passes:
            query = with_bias(*layer(c, normed, "query", apart=True))
            # A key's bias adds the same to all logits of a query, which softmax does not see.
            key, _ = layer(c, normed, "key", apart=True)
            # Weights of a query's pixels add up to 1: a value's bias passes through.
            value, passed = layer(c, normed, "value", apart=True)
            attended = attend(query, key, value).reshape(x.shape)
            return with_bias(*layer(c, attended, "proj_out", zero=True, apart=True, passed=passed)) + x
        # One head: [n, pixels, 1, c].
        whole = (n, height * width, 1, c)
        tokens = normed.reshape(whole)
        attended = attend(*(layer(c, tokens, name) for name in ("query", "key", "value")))
        out = layer(c, attended.reshape(whole), "proj_out", zero=True)
        return x + out.reshape(x.shape)


def time_embedding(time: jax.Array, width: int, freq_shift: int = 1, cos_first: bool = False) -> jax.Array:
    """Sines, then cosines, of time at ``width / 2`` frequencies from 1 down to 1/10000.

    The frequencies are 10000^(-k / (half - 1)), k = 0 ... half - 1, half = width / 2 (Vaswani et
    al. 2017 as in DDPM's code). Other projects divide by half, or put the cosines first.

    Args:
        time: [n] noise levels.
        width: length of the embedding, even and at least 4.
        freq_shift: what is taken from half in the frequencies: 1, or 0.
        cos_first: put the cosines first.

    Returns:
        [n, width] float32.
    """
    half = width // 2
    # In float32 from the exponent on, as the published networks were trained: at time 999 a frequency's last bit
    # is 1e-4 in the phase.
    frequency = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - freq_shift)))
    phase = time.astype(jnp.float32)[:, None] * frequency
    parts = [jnp.sin(phase), jnp.cos(phase)]
    return jnp.concatenate(parts[::-1] if cos_first else parts, axis=-1)


def embedded_vector(
    vector: jax.Array | None, count: int, inputs: int, width: int, initialization: Initialization
) -> jax.Array:
    """Two dense layers of the calling module, as those of the noise level are: [n, width] float32.

    Args:
        vector: [n, inputs]; None for zeros.
        count: n.
        inputs: length that the network takes.
        width: of the result.
        initialization: see :func:`~ddim_jax.models.initialization.initializers`.

    Raises:
        ValueError: a vector of another length, or for a network that takes none.
    """
    if vector is None:
        vector = jnp.zeros((count, inputs))
    if vector.shape[1:] != (inputs,):
        raise ValueError(f"a vector of shape {vector.shape[1:]} was given to a network of vector_inputs={inputs}")
    hidden = dense(width, vector, "vector_dense_0", initialization, jnp.float32)
    return dense(width, nn.swish(hidden), "vector_dense_1", initialization, jnp.float32)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Doubles height and width of [n, h, w, c] by repeating every pixel."""
    n, height, width, c = x.shape
    repeated = jnp.broadcast_to(x[:, :, None, :, None, :], (n, height, 2, width, 2, c))
    return repeated.reshape(n, 2 * height, 2 * width, c)


def downsample_mean(x: jax.Array) -> jax.Array:
    """Halves height and width of [n, h, w, c] by the mean of each 2 x 2 pixels, taken in float32."""
    n, height, width, c = x.shape
    pixels = x.astype(jnp.float32).reshape(n, height // 2, 2, width // 2, 2, c)
    return jnp.mean(pixels, axis=(2, 4)).astype(x.dtype)


_RESAMPLERS: dict[str, Callable[[jax.Array], jax.Array]] = {"down": downsample_mean, "up": upsample_nearest}
