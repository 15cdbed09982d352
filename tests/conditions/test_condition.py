import jax.numpy as jnp
import numpy as np

from ddim_jax.conditions import Condition, dropped, none_of, told_vector


def condition():
    return Condition(
        label=jnp.array([0, 1, 2]),
        vector=told_vector(jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])),
        image=jnp.ones((3, 2, 2, 1)),
        level=jnp.array([0.1, 0.2, 0.3]),
    )


def test_a_vector_of_zeros_differs_from_none():
    zeros = Condition(vector=told_vector(jnp.zeros((1, 2))))
    assert zeros.vector.tolist() == [[0, 0, 1]]
    assert none_of(zeros, {"vector"}, 0).vector.tolist() == [[0, 0, 0]]


def test_kinds_are_left_out_alone_and_together():
    none = none_of(condition(), {"class", "image"}, num_classes=10)
    np.testing.assert_array_equal(none.label, 10)
    np.testing.assert_array_equal(none.vector, condition().vector)
    assert not np.any(none.image) and not np.any(none.level)
    assert none_of(Condition(), {"class", "vector", "image"}, 10) == Condition()


def test_a_kind_is_dropped_from_some_images():
    which = jnp.array([True, False, True])
    result = dropped(condition(), "image", which, 10)
    np.testing.assert_array_equal(result.image[:, 0, 0, 0], [0, 1, 0])
    np.testing.assert_allclose(result.level, [0, 0.2, 0])
    np.testing.assert_array_equal(result.label, condition().label)
    np.testing.assert_array_equal(dropped(condition(), "class", which, 10).label, [10, 1, 10])
    np.testing.assert_array_equal(dropped(condition(), "vector", which, 10).vector[:, 2], [0, 1, 0])
