"""Convolutions in the words that XLA's CPU backend is quick at, against those that JAX derives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.models.convolution import Conv, Dense, convolve


def plain(x, kernel, stride):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def arrays(size=(3, 6, 4), channels=5, features=7, stride=1):
    """An image, a kernel, a tangent of each and a cotangent of the result."""
    n, height, width = size
    rng = np.random.default_rng(0)
    out = (n, -(-height // stride), -(-width // stride), features)
    shapes = [(n, height, width, channels), (3, 3, channels, features)] * 2 + [out]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize(("size", "stride"), [((3, 6, 4), 1), ((3, 6, 4), 2), ((2, 5, 7), 1), ((2, 5, 7), 2)])
def test_values_and_derivatives_are_those_of_lax(size, stride):
    x, kernel, x_tangent, kernel_tangent, cotangent = arrays(size, stride=stride)

    def everything(convolution):
        def of_both(x, kernel):
            return convolution(x, kernel, stride)

        def of_image(x):
            return convolution(x, kernel, stride)

        value, pull_back = jax.vjp(of_both, x, kernel)
        _, along_both = jax.jvp(of_both, (x, kernel), (x_tangent, kernel_tangent))
        # As the likelihood takes them: forward mode for the image alone, for several directions at once.
        several = jnp.stack([x_tangent, x])
        along_image = jax.vmap(lambda direction: jax.jvp(of_image, (x,), (direction,))[1])(several)
        return value, pull_back(cotangent), along_both, along_image, jax.vjp(of_image, x)[1](cotangent)

    ours, expected = (jax.jit(functools.partial(everything, f))() for f in (convolve, plain))
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for actual, reference in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-5)


def test_in_a_loop_every_gradient_is_a_convolution_of_the_quick_kind():
    x, kernel, *_ = arrays(channels=8, features=8)

    def descend(kernel, x):
        def loss(kernel, x):
            return jnp.sum(jnp.square(convolve(jnp.sin(convolve(x, kernel)), kernel)))

        return kernel - 1e-3 * jax.grad(loss)(kernel, x), None

    several = jax.jit(lambda kernel, x: jax.lax.scan(descend, kernel, x)[0])
    program = several.lower(kernel, jnp.stack([x] * 3)).compile().as_text()
    convolutions = [line for line in program.splitlines() if " convolution(" in line]
    # Two forward; the gradients of two kernels and of the image between them.
    assert len(convolutions) == 5
    assert all("dim_labels=b01f_01io->b01f" in line for line in convolutions)


def test_biases_are_added_and_differentiated_in_float32():
    x = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    for layer in (Conv(1, dtype=jnp.bfloat16), Dense(1, dtype=jnp.bfloat16)):
        params = jax.tree.map(jnp.zeros_like, layer.init(jax.random.key(0), x)["params"])
        assert layer.apply({"params": params}, x).dtype == jnp.bfloat16

        def total(bias, layer=layer, params=params):
            return jnp.sum(layer.apply({"params": params | {"bias": bias}}, x).astype(jnp.float32))

        # 4096 + 1 is no bfloat16, nor could 4096 ones be added up in it: 256 + 1 is none either.
        assert jax.grad(total)(jnp.zeros(1)) == 4096
    offset = jnp.full((1, 1, 1, 1), 2.0**-9)
    conv, params = Conv(1, dtype=jnp.bfloat16), {"kernel": jnp.zeros((3, 3, 1, 1)), "bias": jnp.array([1.0 + 2.0**-8])}
    # 1 + 2^-8 alone would be rounded down to 1, and 2^-9 more with it.
    assert conv.apply({"params": params}, x, offset)[0, 0, 0, 0] == 1 + 2.0**-7
