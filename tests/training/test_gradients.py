"""The gradient as a whole: its norm, clipping by it, and how it is arranged for an optimiser."""

import jax
import numpy as np
import optax
import pytest

from ddim_jax.training import gradients

SHAPES = ((3, 3, 16, 64), (7,), (128, 64), (1024,), (3, 5), ())
# Those that an NVIDIA GPU gets together, once more, and one that is too large.
ALIKE = (*SHAPES, (7,), (3, 5), (7,), (513, 512), (513, 512))


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


@pytest.mark.parametrize("arranged", [gradients.arranged_for_optimizer, gradients._with_small_ones_together])
def test_arranging_leaves_values_alone(arranged):
    rng = np.random.default_rng(0)
    gradient = [rng.standard_normal(shape).astype(np.float32) for shape in ALIKE]
    jax.tree.map(np.testing.assert_array_equal, jax.jit(arranged)(gradient), gradient)


def test_small_arrays_of_one_shape_are_parts_of_one():
    gradient = [np.zeros(shape, np.float32) for shape in ALIKE]
    text = str(jax.make_jaxpr(gradients._with_small_ones_together)(gradient))
    assert "f32[3,7]" in text and "f32[2,3,5]" in text
    assert text.count(" = optimization_barrier ") == 2
