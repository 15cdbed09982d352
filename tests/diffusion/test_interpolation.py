import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.diffusion.interpolation import slerp, slerp_grid, slerp_path

SHAPE = (3, 4, 2)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def noises(seed, n=5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, *SHAPE)))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_equation_67(alpha):
    z1, z2 = noises(0), noises(1)
    result = slerp(z1, z2, alpha)
    for a, b, c in zip(*(np.asarray(z).reshape(5, -1) for z in (z1, z2, result)), strict=True):
        theta = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        expected = (np.sin((1 - alpha) * theta) * a + np.sin(alpha * theta) * b) / np.sin(theta)
        np.testing.assert_allclose(c, expected, atol=1e-12)


def test_one_alpha_per_image():
    z1, z2, alpha = noises(0), noises(1), jnp.linspace(0, 1, 5)
    together = slerp(z1, z2, alpha)
    for i in range(5):
        np.testing.assert_allclose(together[i], slerp(z1[i : i + 1], z2[i : i + 1], alpha[i])[0], atol=1e-14)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(st.floats(0, np.pi), st.floats(0, 1))
@hypothesis.example(np.pi, 0.5)
@hypothesis.example(np.pi - 1e-9, 0.5)
@hypothesis.example(1e-9, 0.5)
def test_vectors_of_one_length_keep_it_at_any_angle_and_the_angle_is_divided(angle, alpha):
    a = np.array(noises(2, 1)).ravel()
    a /= np.linalg.norm(a)
    b = np.array(noises(3, 1)).ravel()
    b -= (a @ b) * a
    b = np.cos(angle) * a + np.sin(angle) * b / np.linalg.norm(b)
    z1, z2 = (jnp.asarray(v.reshape(1, *SHAPE)) for v in (a, b))
    result = np.asarray(slerp(z1, z2, alpha)).ravel()
    assert np.linalg.norm(result) == pytest.approx(1, abs=1e-6)
    assert np.arccos(np.clip(result @ a, -1, 1)) == pytest.approx(alpha * angle, abs=1e-6)


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), SHAPE])
@pytest.mark.parametrize("factor", [2.0, 1.0, 0.0, -1.0, -0.5])
def test_degenerate_pairs_are_finite_and_reach_both_ends(factor, shape):
    z1 = jnp.asarray(np.random.default_rng(4).normal(size=(2, *shape)))
    z2 = factor * z1
    path = np.asarray(slerp_path(z1, z2, 5))
    assert np.all(np.isfinite(path))
    np.testing.assert_allclose(path[0], z1, atol=1e-12)
    np.testing.assert_allclose(path[-1], z2, atol=1e-12)
    if factor >= 0:
        np.testing.assert_allclose(path[2], (1 + factor) / 2 * z1, atol=1e-12)
    elif np.prod(shape) > 1:
        norms = np.linalg.norm(path[2].reshape(2, -1), axis=1)
        np.testing.assert_allclose(norms, (1 - factor) / 2 * np.linalg.norm(z1.reshape(2, -1), axis=1), rtol=1e-12)


def test_opposites_whose_only_coordinate_is_the_odd_last():
    z = jnp.array([[0.0, 0.0, 2.0]])
    assert np.linalg.norm(slerp(z, -z, 0.5)) == pytest.approx(2)


def test_two_zeros_stay_zero():
    zero = jnp.zeros((1, *SHAPE))
    np.testing.assert_array_equal(slerp(zero, zero, 0.5), zero)


def test_the_middle_of_two_noises_is_as_long_as_noise():
    z1, z2 = (jnp.asarray(np.random.default_rng(seed).normal(size=(1, 50, 50, 3))) for seed in (5, 6))
    assert float(jnp.std(slerp(z1, z2, 0.5))) == pytest.approx(1, abs=0.02)
    assert float(jnp.std((z1 + z2) / 2)) == pytest.approx(0.5**0.5, abs=0.02)


def test_paths_have_the_points_asked_for():
    z1, z2 = noises(7), noises(8)
    path = slerp_path(z1, z2, 11)
    assert path.shape == (11, 5, *SHAPE)
    for point in (0, 3, 10):
        np.testing.assert_allclose(path[point], slerp(z1, z2, point / 10), atol=1e-12)


def test_grids_have_the_corners_at_their_corners_and_arcs_for_rows():
    corners = noises(9, 4)
    grid = slerp_grid(corners, 3, 5)
    assert grid.shape == (3, 5, *SHAPE)
    for place, corner in zip([(0, 0), (0, -1), (-1, 0), (-1, -1)], corners, strict=True):
        np.testing.assert_allclose(grid[place], corner, atol=1e-12)
    np.testing.assert_allclose(grid[1, 0], slerp(corners[:1], corners[2:3], 0.5)[0], atol=1e-12)
    np.testing.assert_allclose(grid[1, 2], slerp(grid[1:2, 0], grid[1:2, -1], 0.5)[0], atol=1e-12)


def test_float32_stays_float32():
    result = slerp(noises(10).astype(jnp.float32), noises(11).astype(jnp.float32), 0.3)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, slerp(noises(10), noises(11), 0.3), atol=1e-6)
