"""Convolutions and dense layers: operands in the dtype of the activations, what is added to their result in float32.

In bfloat16 a matrix unit multiplies bfloat16 numbers and adds up in float32. The bias is added to that sum before it is
rounded, so that a bias' gradient, a sum over all pixels of the batch, is one in float32 too; compilers do all of it
while they write the result.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ddim_jax.models import winograd
from ddim_jax.models.initialization import initializers
from ddim_jax.names import Initialization

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# From so many channels on, of the image and of the result, Winograd's form took less time than the plain one on a CPU
# with AVX-512, for results and gradients of images, and for gradients of kernels (docs/performance.md has the table).
_FEWEST_CHANNELS, _FEWEST_FOR_KERNELS = 64, 128


class Conv(nn.Module):
    """A 3x3 convolution with bias, zeros around the image.

    At stride 2, images of even height and width are padded right and below only, as the published networks do.

    Attributes:
        features: channels of the result.
        stride: 1, or 2 to halve height and width.
        dtype: dtype of image, kernel and result; parameters are float32.
        kernel_init: draws the ``kernel`` [3, 3, c, features].
        bias_init: draws the ``bias`` [features].
        few_passes: add in ``dtype`` what is added: cuDNN does so in float32, before it rounds and writes the result,
            where XLA lets it, and XLA lets it where all have the result's dtype.
    """

    features: int
    stride: int = 1
    dtype: jax.typing.DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    few_passes: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        offset: jax.Array | None = None,
        apart: bool = False,
        residual: jax.Array | None = None,
    ) -> Any:
        """Maps [n, h, w, c] to [n, h / stride, w / stride, features].

        Args:
            x: images.
            offset: float32, added to the result like the bias; of any shape that broadcasts to it, with ``few_passes``
                and not ``apart`` of the bias' own.
            apart: add neither, and return the sum of both beside the result.
            residual: images to add to the result.
        """
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        if apart:
            product = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
            return product, bias if offset is None else bias + offset
        if self.few_passes:
            bias = bias if offset is None else bias + offset
            product = with_bias(convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride), bias)
            return product if residual is None else product + residual
        total = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride).astype(jnp.float32) + bias
        total = (total if offset is None else total + offset).astype(self.dtype)
        return total if residual is None else residual + total


class Dense(nn.Module):
    """A dense layer with bias; on images, a 1x1 convolution.

    Attributes:
        features: channels of the result.
        dtype: dtype of input, kernel and result; parameters are float32.
        kernel_init: draws the ``kernel`` [c, features].
        bias_init: draws the ``bias`` [features].
    """

    features: int
    dtype: jax.typing.DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(
        self, x: jax.Array | tuple[jax.Array, ...], *, apart: bool = False, passed: jax.Array | None = None
    ) -> Any:
        """Maps [..., c] to [..., features].

        Args:
            x: the input; with ``apart`` images [n, h, w, c], or parts of which they are the concatenation.
            apart: do not add the bias, and return it beside the result: for who has more to add (:func:`with_bias`).
            passed: float32 [c], a bias that x lacks, of the layer that it comes from.
        """
        parts = x if isinstance(x, tuple) else (x,)
        kernel = self.param("kernel", self.kernel_init, (sum(part.shape[-1] for part in parts), self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        if passed is not None:
            bias = bias + jnp.dot(passed, kernel)
        narrow = kernel.astype(self.dtype)
        if not apart:
            (whole,) = parts
            product = jnp.dot(whole.astype(self.dtype), narrow)
            return (product.astype(jnp.float32) + bias).astype(self.dtype)
        # As convolutions, of which cuDNN adds each to the one before while it writes it.
        total, start = None, 0
        for part in parts:
            product = convolve(part.astype(self.dtype), narrow[None, None, start : start + part.shape[-1]])
            total, start = product if total is None else product + total, start + part.shape[-1]
        return total, bias


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Correlates images with a kernel, padded as TensorFlow's SAME.

    It is ``jax.lax.conv_general_dilated``, derivatives included. But on the CPU, which multiplies slowly and has a
    large cache, 3x3 kernels with many channels in float32 take Winograd's form, with less than half the
    multiplications, and the same result but for rounding (:mod:`ddim_jax.models.winograd`).

    And the derivatives of others are told in other words of the same meaning there: XLA runs a convolution by a fast
    routine only where images are stored as [n, h, w, c] and kernels as [h, w, in, out], and puts others into that form
    outside of loops alone. The gradients that JAX derives are stored otherwise, and inside ``lax.scan`` (several steps
    in one dispatch, accumulated gradients) they took 20 to 100 times as long. Here each operand is transposed first, so
    that the gradients find that form everywhere.

    Args:
        x: [n, h, w, c].
        kernel: [height, width, c, features].
        stride: distance between the pixels that are kept.

    Returns:
        [n, ceil(h / stride), ceil(w / stride), features].
    """
    plain = functools.partial(_convolve, stride=stride, dimensions=_DIMENSIONS)
    if not _multiplies_less(x, kernel, stride, _FEWEST_CHANNELS):
        return plain(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=winograd.convolve, default=plain)


def _multiplies_less(x: jax.Array, kernel: jax.Array, stride: int, fewest_channels: int) -> bool:
    """Whether Winograd's form is there, and quicker on a CPU."""
    several = min(kernel.shape[2:]) >= fewest_channels
    return several and stride == 1 and kernel.shape[:2] == (3, 3) and x.dtype == kernel.dtype == jnp.float32


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, dimensions: tuple[str, str, str]) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=dimensions)


@functools.partial(convolve.defjvp, symbolic_zeros=True)
def _convolve_jvp(stride: int, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """The change of the result, linear in each tangent. Reverse mode transposes it, forward mode runs it as it is.

    A transposed convolution has the two first letters of each part of its dimensions swapped: those of the functions
    for the CPU are chosen such that this gives ``_DIMENSIONS``. Who asks for no gradient of the kernel wants forward
    mode (likelihood) and gets the plain form.
    """
    x, kernel = primals
    x_tangent, kernel_tangent = tangents
    plain = functools.partial(_convolve, stride=stride, dimensions=_DIMENSIONS)

    def with_gradient(
        gradient: Callable[[jax.Array, jax.Array], jax.Array], tangent: jax.Array, operand: jax.Array
    ) -> jax.Array:
        """What reverse mode, which keeps the operand alone for it, transposes into ``gradient(of_result, operand)``."""
        of_result = jax.ShapeDtypeStruct((*x.shape[:3], kernel.shape[-1]), x.dtype)

        @jax.checkpoint
        def change(tangent: jax.Array, operand: jax.Array) -> jax.Array:
            return jax.linear_transpose(lambda of_result: gradient(of_result, operand), of_result)(tangent)[0]

        return change(tangent, operand)

    def by_image(x_tangent: jax.Array, kernel: jax.Array) -> jax.Array:
        if _multiplies_less(x_tangent, kernel, stride, _FEWEST_CHANNELS):
            return with_gradient(winograd.image_gradient, x_tangent, kernel)
        return _convolve(x_tangent, kernel.transpose(0, 1, 3, 2), stride, ("NHWC", "HWOI", "NHWC"))

    def by_kernel(x: jax.Array, kernel_tangent: jax.Array) -> jax.Array:
        if _multiplies_less(x, kernel_tangent, stride, _FEWEST_FOR_KERNELS):
            return with_gradient(lambda of_result, x: winograd.kernel_gradient(x, of_result), kernel_tangent, x)
        swapped = x.transpose(3, 1, 2, 0), kernel_tangent.transpose(2, 0, 1, 3)
        return _convolve(*swapped, stride, ("CHWN", "IHWO", "HWNC")).transpose(2, 0, 1, 3)

    changes = []
    if isinstance(kernel_tangent, SymbolicZero):
        changes.append(plain(x_tangent, kernel))
    else:
        changes.append(jax.lax.platform_dependent(x, kernel_tangent, cpu=by_kernel, default=plain))
        if not isinstance(x_tangent, SymbolicZero):
            changes.append(jax.lax.platform_dependent(x_tangent, kernel, cpu=by_image, default=plain))
    return convolve(x, kernel, stride), functools.reduce(jnp.add, changes)


@jax.custom_vjp
def with_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Images and a bias, added in the dtype of the images; the gradient of the bias is a sum in float32.

    What is added to a convolution in its own dtype, a bias and then images, cuDNN adds in float32 while it writes it.
    """
    return x + bias.astype(x.dtype)


def _with_bias_forward(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return with_bias(x, bias), None


def _with_bias_backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient, jnp.sum(gradient.astype(jnp.float32), axis=(0, 1, 2))


with_bias.defvjp(_with_bias_forward, _with_bias_backward)


# --- layers of the calling module ---------------------------------------------------------------


def conv(
    features: int,
    x: jax.Array,
    name: str,
    initialization: Initialization,
    dtype: jax.typing.DTypeLike,
    *,
    stride: int = 1,
    zero: bool = False,
    offset: jax.Array | None = None,
    apart: bool = False,
    residual: jax.Array | None = None,
    few_passes: bool = False,
) -> Any:
    """A 3x3 convolution of the calling module, applied to x."""
    kernel_init, bias_init = initializers(initialization, 9 * x.shape[-1], zero)
    return Conv(features, stride, dtype, kernel_init, bias_init, few_passes, name=name)(x, offset, apart, residual)


def dense(
    features: int,
    x: jax.Array | tuple[jax.Array, ...],
    name: str,
    initialization: Initialization,
    dtype: jax.typing.DTypeLike,
    *,
    zero: bool = False,
    apart: bool = False,
    passed: jax.Array | None = None,
) -> Any:
    """A dense layer (on images: a 1x1 convolution) of the calling module, applied to x."""
    fan_in = sum(part.shape[-1] for part in x) if isinstance(x, tuple) else x.shape[-1]
    kernel_init, bias_init = initializers(initialization, fan_in, zero)
    return Dense(features, dtype, kernel_init, bias_init, name=name)(x, apart=apart, passed=passed)
