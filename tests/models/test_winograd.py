"""Winograd's form of 3x3 convolutions, against XLA's."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.models import winograd
from ddim_jax.models.convolution import convolve


def plain(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def whole_numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(-8, 9, shape), jnp.float32)


# Of 32x32 pixels two images are multiplied at a time: three, and five, are parts of one.
@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 4, 6), (2, 5, 7), (1, 1, 3), (5, 32, 32), (4, 32, 32)])
def test_whole_numbers_come_out_exactly(shape):
    x = whole_numbers(*shape, 5)
    # The transformed kernel has quarters.
    kernel = 4 * whole_numbers(3, 3, 5, 3, seed=1)
    cotangent = whole_numbers(*shape, 3, seed=2)
    expected, pull_back = jax.vjp(plain, x, kernel)
    by_image, by_kernel = pull_back(cotangent)
    np.testing.assert_array_equal(winograd.convolve(x, kernel), expected)
    np.testing.assert_array_equal(winograd.image_gradient(cotangent, kernel), by_image)
    np.testing.assert_array_equal(winograd.kernel_gradient(x, cotangent), by_kernel)


def test_rounding_is_a_few_times_that_of_the_plain_form():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 16, 16, 128)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 128, 128)).astype(np.float32)
    with jax.enable_x64(True):
        exact = np.asarray(plain(jnp.asarray(x, jnp.float64), jnp.asarray(kernel, jnp.float64)))

    def error(convolution):
        return np.sqrt(np.mean((np.asarray(convolution(x, kernel), np.float64) - exact) ** 2)) / exact.std()

    assert error(winograd.convolve) < 4 * error(plain) < 4e-6


# All of a network's layers of many channels are of this form on a CPU; kernels' gradients from 128 channels on.
@pytest.mark.parametrize("channels", [64, 128])
def test_layers_have_the_derivatives_of_the_plain_form(channels):
    rng = np.random.default_rng(0)
    x, x_tangent, cotangent = (jnp.asarray(rng.standard_normal((3, 6, 4, channels)), jnp.float32) for _ in range(3))
    kernel, kernel_tangent = (
        jnp.asarray(rng.standard_normal((3, 3, channels, channels)), jnp.float32) / 30 for _ in range(2)
    )

    def everything(convolution):
        value, pull_back = jax.vjp(convolution, x, kernel)
        _, along_both = jax.jvp(convolution, (x, kernel), (x_tangent, kernel_tangent))
        several = jnp.stack([x_tangent, x])
        along_image = jax.vmap(lambda direction: jax.jvp(lambda x: convolution(x, kernel), (x,), (direction,))[1])
        # The gradients of single examples.
        each = jax.vmap(jax.grad(lambda kernel, x: jnp.sum(convolution(x[None], kernel) ** 2)), (None, 0))(kernel, x)

        def descend(kernel, _):
            return kernel - 1e-3 * jax.grad(lambda kernel: jnp.sum(convolution(x, kernel) ** 2))(kernel), None

        in_a_loop, _ = jax.lax.scan(descend, kernel, length=2)
        return value, pull_back(cotangent), along_both, along_image(several), each, in_a_loop

    ours, expected = (jax.jit(lambda f=f: everything(f))() for f in (convolve, plain))
    for actual, reference in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-4, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize(
    ("channels", "features", "dtype", "stride", "less"),
    [
        (64, 64, "float32", 1, True),
        (63, 64, "float32", 1, False),
        (64, 3, "float32", 1, False),
        (64, 64, "bfloat16", 1, False),
        (64, 64, "float32", 2, False),
    ],
)
def test_what_takes_this_form(channels, features, dtype, stride, less):
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in [(2, 8, 8, channels), (3, 3, channels, features)]]
    # The name is Winograd's on a CPU alone.
    for platform, expected in {"cpu": less, "cuda": False, "tpu": False}.items():
        lowered = (
            jax.jit(lambda x, kernel: convolve(x, kernel, stride)).trace(*shapes).lower(lowering_platforms=(platform,))
        )
        assert ("dot_general" in lowered.as_text()) == expected


_MEMORY = """
import os
os.environ["XLA_FLAGS"] = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
import jax
import jax.numpy as jnp
from ddim_jax.models.convolution import convolve

def temporary(layers, x, kernel):
    def loss(kernel):
        y = x
        for _ in range(layers):
            y = jnp.tanh(convolve(y, kernel))
        return jnp.sum(y)

    return jax.jit(jax.grad(loss)).lower(kernel).compile().memory_analysis().temp_size_in_bytes

# The second has as many tiles as are multiplied at a time.
for x, kernel in [
    (jnp.zeros((8, 32, 32, 64)), jnp.zeros((3, 3, 64, 64))),
    (jnp.zeros((8, 16, 16, 128)), jnp.zeros((3, 3, 128, 128))),
]:
    print((temporary(12, x, kernel) - temporary(2, x, kernel)) / 10 / x.nbytes)
"""


def test_of_each_layer_only_its_image_is_kept_for_the_gradients():
    """Not its tiles, four times as large: in programs as the command makes them."""
    done = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True, timeout=300)
    assert max(map(float, done.stdout.split())) < 3.5
