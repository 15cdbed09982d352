"""How fresh parameters are drawn: the published initialisations of convolutions and dense layers."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddim_jax.names import Initialization, lookup


class Initializers(NamedTuple):
    """Functions of (key, shape, dtype) that draw a layer's parameters."""

    kernel: Callable[..., jax.Array]
    bias: Callable[..., jax.Array]


def initializers(initialization: Initialization, fan_in: int, zero: bool) -> Initializers:
    """The initialisers of a convolution or dense layer.

    Args:
        initialization: a name of ``INITIALIZATIONS``.
        fan_in: inputs of one output value: input channels times the kernel's pixels.
        zero: whether the layer ends a residual branch or the network.

    Raises:
        UserError: there is no initialisation of that name.
    """
    return lookup(INITIALIZATIONS, initialization, "initialization")(fan_in, zero)


def ddpm(fan_in: int, zero: bool) -> Initializers:
    """The initialisation of DDPM's code, from which the published CIFAR-10 and LSUN checkpoints were trained.

    Kernels are uniform with variance 2 / (fan_in + fan_out), biases zero, and the layers that end a residual branch or
    the network have 1e-10 times that variance, so that a fresh network returns almost zero and every block is almost
    the identity.
    """
    del fan_in  # Flax finds it in the kernel's shape.
    kernel = nn.initializers.variance_scaling(1e-10 if zero else 1.0, "fan_avg", "uniform")
    return Initializers(kernel, nn.initializers.zeros)


def torch(fan_in: int, zero: bool) -> Initializers:
    """PyTorch's default, which DDIM's code leaves in place: kernels and biases uniform within 1 / sqrt(fan_in)."""
    del zero  # No layer is.
    bound = fan_in**-0.5

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Initializers(uniform, uniform)


# By names.Initialization.
INITIALIZATIONS: Mapping[str, Callable[[int, bool], Initializers]] = {"ddpm": ddpm, "torch": torch}
