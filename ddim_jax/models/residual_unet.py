"""The residual U-Net of Keras' DDIM example, and two relatives of it.

It is smaller than DDPM's U-Net (``unet.py``) and simpler: there is no attention, and the noise level enters once, at
the top, as an image of constant channels beside the noisy image. It is told the level by the variance of the noise, 1 -
alpha_bar in [0, 1], as the schedule ``offset_cosine`` does.

Two structures (``structure``) with two kinds of norms (``norm``) make the three networks that are compared in
``docs/recipes.md``:

===========  ==========  =======  =====================================================================================
name         structure   norm     what
===========  ==========  =======  =====================================================================================
``bk``       ``keras``   batch    that of the example: a norm, then two convolutions; average pooling down, bilinear up
``bbno``     ``ddim``    batch    DDPM's blocks (norm, swish, convolution, twice) and its strided convolutions
``bgano``    ``ddim``    group    the same with group norms, which learn a scale and a bias
===========  ==========  =======  =====================================================================================

**Batch norms carry state.** While training they divide by the statistics of the batch, and keep a running average of
them; for sampling they divide by that average. Copies of this network fail ("petals in random places") where that state
is lost or the wrong one is used, so here neither can happen by omission: the running averages are part of the training
state, the moving average of the weights averages them too, and a norm uses the batch's own statistics exactly where the
caller lets it update them (``mutable=["batch_stats"]``), which no sampler does.
"""

import functools
from collections.abc import Callable
from typing import Any, assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.models.convolution import Conv
from ddim_jax.models.group_norm import GroupNorm
from ddim_jax.models.padding import enlarged, with_picture
from ddim_jax.models.unet import upsample_nearest
from ddim_jax.names import Norm, Structure

_zero_kernel = nn.initializers.zeros
_glorot = nn.initializers.glorot_uniform()  # Keras' default


class ResidualUNet(nn.Module):
    """The network eps(x, variance of the noise), see the module's docstring.

    Attributes:
        out_channels: channels of the output; those of the image.
        channels: width of level 0, and of the embedding of the noise level; even.
        multipliers: width of each level in units of ``channels``; the example's are (1, 2, 3, 4), of 32.
        num_blocks: residual blocks per level and direction; ``ddim`` has one more on the way up.
        structure: ``keras`` or ``ddim``.
        norm: ``batch`` (without scale and bias) or ``group`` (with them).
        num_groups: groups of the group norms.
        remat: recompute each block in the backward pass instead of keeping its activations.
        mean_over_devices: averages the statistics of the batch over the devices that share it.
        image_inputs: see :class:`~ddim_jax.models.unet.UNet`.
        pad: see there.
    """

    out_channels: int
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 2
    structure: Structure = "keras"
    norm: Norm = "batch"
    num_groups: int = 8
    remat: bool = False
    mean_over_devices: Callable[[Any], Any] = lambda tree: tree
    image_inputs: int = 0
    pad: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        time: jax.Array,
        label: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        image: jax.Array | None = None,
    ) -> jax.Array:
        """Applies the network.

        Args:
            x: [n, h, w, c] noisy images; h and w divisible by 2^(levels - 1), unless ``pad``.
            time: [n] variances of their noise, in [0, 1].
            label: None; the network knows no labels.
            dropout_keys: None; it has no dropout.
            image: [n, h, w, image_inputs], None for zeros; see :class:`~ddim_jax.conditions.Condition`.

        Returns:
            [n, h, w, out_channels] float32.

        Raises:
            ValueError: h or w is not divisible, or a label or dropout is asked for.
        """
        if label is not None or dropout_keys is not None:
            raise ValueError("the residual U-Net knows neither labels nor dropout")
        height, width = x.shape[1:3]
        x = with_picture(x, image, self.image_inputs)
        x = enlarged(x, 2 ** (len(self.multipliers) - 1), self.pad, len(self.multipliers))
        embedding = variance_embedding(time, self.channels)[:, None, None, :]
        stem = _dense(self.channels, x, "conv_in")
        x = jnp.concatenate([stem, jnp.broadcast_to(embedding, stem.shape)], axis=-1)
        match self.structure:
            case "keras":
                return self._keras(x)[:, :height, :width]
            case "ddim":
                return self._ddim(x)[:, :height, :width]
            case _:
                assert_never(self.structure)

    def _keras(self, x: jax.Array) -> jax.Array:
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        skips = []
        for level, width in enumerate(widths[:-1]):
            for i in range(self.num_blocks):
                x = self._block(KerasBlock, width, f"down_{level}_block_{i}", x)
                skips.append(x)
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        for i in range(self.num_blocks):
            x = self._block(KerasBlock, widths[-1], f"mid_block_{i}", x)
        for level, width in reversed(list(enumerate(widths[:-1]))):
            n, height, wide, c = x.shape
            x = jax.image.resize(x, (n, 2 * height, 2 * wide, c), "bilinear")
            for i in range(self.num_blocks):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = self._block(KerasBlock, width, f"up_{level}_block_{i}", x)
        return nn.Dense(self.out_channels, kernel_init=_zero_kernel, name="conv_out")(x)

    def _ddim(self, x: jax.Array) -> jax.Array:
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        skips = [x]
        for level, width in enumerate(widths):
            for i in range(self.num_blocks):
                x = self._block(DDIMBlock, width, f"down_{level}_block_{i}", x)
                skips.append(x)
            if level < len(widths) - 1:
                x = _conv(width, x, f"down_{level}_downsample", stride=2)
                skips.append(x)
        for i in range(2):
            x = self._block(DDIMBlock, widths[-1], f"mid_block_{i}", x)
        for level, width in reversed(list(enumerate(widths))):
            for i in range(self.num_blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = self._block(DDIMBlock, width, f"up_{level}_block_{i}", x)
            if level > 0:
                x = _conv(width, upsample_nearest(x), f"up_{level}_upsample")
        x = nn.swish(self._norm()(name="norm_out")(x))
        return _conv(self.out_channels, x, "conv_out", zero=True)

    def _block(self, kind: type[nn.Module], width: int, name: str, x: jax.Array) -> jax.Array:
        block = nn.remat(kind) if self.remat else kind
        return block(width, self._norm(), name=name)(x)  # pyright: ignore[reportCallIssue]

    def _norm(self) -> Callable[..., nn.Module]:
        match self.norm:
            case "group":
                return functools.partial(GroupNorm, self.num_groups)
            case "batch":
                return functools.partial(BatchNorm, self.mean_over_devices)
            case _:
                assert_never(self.norm)


class KerasBlock(nn.Module):
    """x + conv(swish(conv(norm(x)))), as in the example.

    Attributes:
        features: channels of the output; where they differ from the input's, a 1x1 convolution (``shortcut``) carries x
            over.
        make_norm: makes a norm of the given name.
    """

    features: int
    make_norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [n, h, w, c] to [n, h, w, features]."""
        h = nn.swish(_conv(self.features, self.make_norm(name="norm")(x), "conv_0"))
        h = _conv(self.features, h, "conv_1")
        return h + (x if x.shape[-1] == self.features else _dense(self.features, x, "shortcut"))


class DDIMBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))): DDPM's residual block without time and dropout.

    Attributes:
        features: channels of the output, as in :class:`KerasBlock`.
        make_norm: makes a norm of the given name.
    """

    features: int
    make_norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [n, h, w, c] to [n, h, w, features]."""
        h = _conv(self.features, nn.swish(self.make_norm(name="norm_0")(x)), "conv_0")
        h = _conv(self.features, nn.swish(self.make_norm(name="norm_1")(h)), "conv_1", zero=True)
        return h + (x if x.shape[-1] == self.features else _dense(self.features, x, "shortcut"))


class BatchNorm(nn.Module):
    """Batch normalisation without scale and bias (Ioffe and Szegedy 2015), with Keras' constants.

    Where ``batch_stats`` is mutable, it subtracts the mean of the batch, divides by its standard deviation, and moves
    the running averages (biased variance, no correction); elsewhere it uses the averages, so that an image's result
    does not depend on its batch.

    Attributes:
        mean_over_devices: averages over the devices that share the batch, so that any number of them gives one result.
        momentum: share of the running averages that a batch leaves in place. PyTorch calls 1 - momentum so.
        eps: added to the variance.
    """

    mean_over_devices: Callable[[Any], Any] = lambda tree: tree
    momentum: float = 0.99
    eps: float = 1e-3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [n, h, w, c], channel by channel."""
        shape = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_variance = self.variable("batch_stats", "variance", jnp.ones, shape)
        mean, variance = running_mean.value, running_variance.value
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            mean = self.mean_over_devices(jnp.mean(x, (0, 1, 2)))
            variance = self.mean_over_devices(jnp.mean(jnp.square(x - mean), (0, 1, 2)))
            running_mean.value = self._moved(running_mean.value, mean)
            running_variance.value = self._moved(running_variance.value, variance)
        return (x - mean) * jax.lax.rsqrt(variance + self.eps)

    def _moved(self, average: jax.Array, new: jax.Array) -> jax.Array:
        return self.momentum * average + (1 - self.momentum) * jax.lax.stop_gradient(new)


def variance_embedding(variance: jax.Array, width: int) -> jax.Array:
    """Sines, then cosines, of 2π f v at ``width / 2`` frequencies f from 1 to 1000, evenly spaced in their logarithm.

    Args:
        variance: [n], in [0, 1].
        width: length of the embedding, even.

    Returns:
        [n, width] float32.
    """
    frequency = np.exp(np.linspace(0.0, np.log(1000.0), width // 2)).astype(np.float32)
    phase = variance.astype(jnp.float32)[:, None] * (2 * np.pi * frequency)
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def _conv(features: int, x: jax.Array, name: str, *, stride: int = 1, zero: bool = False) -> jax.Array:
    """A 3x3 convolution of the calling module, applied to x; at stride 2 it pads right and below only."""
    kernel_init = _zero_kernel if zero else _glorot
    return Conv(features, stride, kernel_init=kernel_init, name=name)(x)


def _dense(features: int, x: jax.Array, name: str) -> jax.Array:
    """A 1x1 convolution of the calling module, applied to x."""
    return nn.Dense(features, kernel_init=_glorot, name=name)(x)
