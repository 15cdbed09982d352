"""The gradient as a whole: its norm, and clipping by it."""

import jax
import numpy as np
import optax
import pytest

from ddim_jax.training import gradients

SHAPES = ((3, 3, 16, 64), (7,), (128, 64), (1024,), (3, 5), ())


@pytest.fixture
def gradient():
    rng = np.random.default_rng(0)
    return {str(shape): rng.standard_normal(shape).astype(np.float32) for shape in SHAPES}


@pytest.mark.parametrize("norm", [gradients.global_norm, gradients._norm_in_few_kernels])
def test_norm_is_the_root_of_all_squares(gradient, norm):
    expected = np.sqrt(sum(np.sum(np.square(leaf.astype(np.float64))) for leaf in gradient.values()))
    assert jax.jit(norm)(gradient) == pytest.approx(expected, rel=1e-6)
    small = {name: leaf for name, leaf in gradient.items() if leaf.ndim == 4}
    assert jax.jit(norm)(small) == pytest.approx(np.linalg.norm(small["(3, 3, 16, 64)"]), rel=1e-6)


@pytest.mark.parametrize("largest", [0.5, 1e4])
def test_clipping_is_that_of_optax(gradient, largest):
    ours, theirs = gradients.clip_by_global_norm(largest), optax.clip_by_global_norm(largest)
    state = ours.init(gradient)
    assert state == theirs.init(gradient)
    clipped, _ = jax.jit(ours.update)(gradient, state)
    expected, _ = jax.jit(theirs.update)(gradient, state)
    for leaf, other in zip(jax.tree.leaves(clipped), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_layout_leaves_values_alone(gradient):
    ordered = jax.jit(gradients.laid_out_as_parameters)(gradient)
    jax.tree.map(np.testing.assert_array_equal, ordered, gradient)
