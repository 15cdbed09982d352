import itertools

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.errors import UserError
from ddim_jax.metrics.moments import Moments

DIMENSION = 5


def features(n, seed=0, mean=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(DIMENSION, DIMENSION))
    return mean + scale * rng.normal(size=(n, DIMENSION)) @ mixing


def moments_of(*batches):
    moments = Moments.empty(DIMENSION)
    for batch in batches:
        moments = moments.update(batch)
    return moments


def assert_same(moments, expected, rtol=1e-12):
    assert moments.count == expected.count
    np.testing.assert_allclose(moments.mean, expected.mean, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(moments.scatter, expected.scatter, rtol=rtol, atol=rtol * np.abs(expected.scatter).max())


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) >= 2))
def test_batches_of_any_sizes_give_the_mean_and_covariance_of_all(sizes):
    x = features(sum(sizes))
    moments = moments_of(*np.split(x, np.cumsum(sizes)[:-1]))
    assert moments.count == len(x)
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False), rtol=1e-12, atol=1e-12)


def test_one_by_one_backwards_and_at_once_agree():
    x = features(200)
    expected = moments_of(x)
    assert_same(moments_of(*x[:, None]), expected)
    assert_same(moments_of(*x[::-1, None]), expected)


@pytest.mark.parametrize("mean", [1e4, -1e6])
def test_a_large_mean_costs_no_digits(mean):
    # Whole numbers, so that those around zero are exactly these but for the mean.
    x = np.round(features(3000, scale=100))
    expected = np.cov(x, rowvar=False)
    moments = moments_of(*np.array_split(x + mean, 37))
    np.testing.assert_allclose(moments.covariance, expected, rtol=1e-11, atol=1e-11 * np.abs(expected).max())


def test_a_feature_that_never_changes_has_no_variance():
    x = features(50)
    x[:, 2] = 0.3
    covariance = moments_of(*np.array_split(x, 7)).covariance
    assert np.abs(covariance[2]).max() < 1e-15


def test_parts_merge_in_any_order():
    parts = [moments_of(features(n, seed)) for seed, n in enumerate([1, 70, 0, 13])]
    expected = moments_of(*(features(n, seed) for seed, n in enumerate([1, 70, 0, 13])))
    for order in itertools.permutations(parts):
        a, b, c, d = order
        assert_same(a.merge(b).merge(c).merge(d), expected)
        assert_same(a.merge(b).merge(c.merge(d)), expected)


def test_parts_of_nothing_stay_empty():
    nothing = Moments.empty(DIMENSION).merge(Moments.empty(DIMENSION)).update(np.zeros((0, DIMENSION)))
    assert nothing.count == 0
    np.testing.assert_array_equal(nothing.scatter, 0)


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    batches = np.array_split(features(100), 9)
    np.savez(tmp_path / "part.npz", **moments_of(*batches[:4]).to_arrays())
    with np.load(tmp_path / "part.npz") as arrays:
        resumed = Moments.from_arrays(arrays)
    for batch in batches[4:]:
        resumed = resumed.update(batch)
    uninterrupted = moments_of(*batches)
    assert resumed.count == uninterrupted.count
    np.testing.assert_array_equal(resumed.mean, uninterrupted.mean)
    np.testing.assert_array_equal(resumed.scatter, uninterrupted.scatter)


def test_updating_leaves_the_earlier_value_alone():
    before = moments_of(features(10))
    mean, scatter = before.mean.copy(), before.scatter.copy()
    before.update(features(10, seed=1))
    np.testing.assert_array_equal(before.mean, mean)
    np.testing.assert_array_equal(before.scatter, scatter)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, np.uint8])
def test_any_dtype_is_summed_in_float64(dtype):
    x = np.abs(features(1000, mean=100)).astype(dtype)
    moments = moments_of(*np.array_split(x, 10))
    assert moments.mean.dtype == moments.scatter.dtype == np.float64
    np.testing.assert_allclose(moments.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-11, atol=1e-11)


def test_device_arrays_are_taken():
    x = jnp.asarray(features(20), jnp.float32)
    assert_same(moments_of(x), moments_of(np.asarray(x)))


def test_the_gaussian_has_what_the_moments_have():
    moments = moments_of(features(20))
    gaussian = moments.gaussian()
    assert gaussian.count == 20
    np.testing.assert_array_equal(gaussian.mean, moments.mean)
    np.testing.assert_array_equal(gaussian.covariance, moments.covariance)


@pytest.mark.parametrize("count", [0, 1])
def test_a_covariance_needs_two(count):
    with pytest.raises(UserError, match=f"2 or more images, got {count}"):
        _ = moments_of(features(count)).covariance


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_with_their_row(value):
    x = features(10)
    x[6, 3] = value
    with pytest.raises(UserError, match="NaN or infinity, first in row 6"):
        moments_of(x)


def test_other_dimensions_are_refused():
    with pytest.raises(UserError, match="dimension 4 added to ones of dimension 5"):
        moments_of(features(3)[:, :4])
    with pytest.raises(UserError, match="dimension 4 added to ones of dimension 5"):
        moments_of(features(3)).merge(Moments.empty(4))
    with pytest.raises(ValueError, match=r"not \[n, d\]"):
        moments_of(features(3)[0])
