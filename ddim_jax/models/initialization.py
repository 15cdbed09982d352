"""How fresh parameters are drawn: the two initialisations of the published networks."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddim_jax.names import Initialization


class Initializers(NamedTuple):
    """How a layer's parameters are drawn: functions of (key, shape, dtype)."""

    kernel: Callable[..., jax.Array]
    bias: Callable[..., jax.Array]


def initializers(initialization: Initialization, fan_in: int, zero: bool) -> Initializers:
    """The published initialisations of a convolution or dense layer.

    ``ddpm`` is that of DDPM's code, from which the published CIFAR-10 and LSUN checkpoints were
    trained: kernels uniform with variance 2 / (fan_in + fan_out), biases zero, and the layers that
    end a residual branch or the network with 1e-10 times that variance, so that a fresh network
    returns almost zero and every block is almost the identity. ``torch`` is PyTorch's default, which
    DDIM's code leaves in place: kernels and biases uniform within 1 / sqrt(fan_in), no layer zero.

    Args:
        initialization: ``ddpm`` or ``torch``.
        fan_in: inputs of one output value: input channels times the kernel's pixels.
        zero: whether the layer ends a residual branch or the network.

    Raises:
        ValueError: ``initialization`` is neither.
    """
    if initialization == "ddpm":
        kernel = nn.initializers.variance_scaling(1e-10 if zero else 1.0, "fan_avg", "uniform")
        return Initializers(kernel, nn.initializers.zeros)
    if initialization == "torch":
        bound = fan_in**-0.5

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return Initializers(uniform, uniform)
    raise ValueError(f"initialization must be 'ddpm' or 'torch', got {initialization!r}")
