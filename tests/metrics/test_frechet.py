import logging

import numpy as np
import pytest
import scipy.linalg

from ddim_jax.errors import UserError
from ddim_jax.metrics import frechet
from ddim_jax.metrics.frechet import frechet_distance, trace_sqrt_product
from ddim_jax.metrics.moments import Gaussian, Moments


def orthogonal(seed, d):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


def covariance(seed, eigenvalues):
    basis = orthogonal(seed, len(eigenvalues))
    return (basis * eigenvalues) @ basis.T


def moments(seed, n, d, shift=0.0):
    rng = np.random.default_rng(seed)
    return Moments.empty(d).update(shift + rng.normal(size=(n, d)) @ rng.normal(size=(d, d)))


def by_square_roots(a, b):
    """The trace by two symmetric square roots, from eigenvalues and eigenvectors."""
    root = scipy.linalg.sqrtm(a)
    return np.trace(scipy.linalg.sqrtm(root @ b @ root)).real


@pytest.fixture
def warnings(caplog):
    # Each case is told once a process, and other tests may have had these.
    frechet._warn_of_few.cache_clear()
    with caplog.at_level(logging.WARNING):
        yield caplog


@pytest.mark.parametrize("d", [1, 2, 7, 100])
def test_random_covariances_agree_with_matrix_square_roots(d):
    a, b = (moments(seed, 3 * d + 2, d).covariance for seed in (0, 1))
    expected = by_square_roots(a, b)
    assert trace_sqrt_product(a, b) == pytest.approx(expected, rel=1e-11)
    assert trace_sqrt_product(a, b) == pytest.approx(np.trace(scipy.linalg.sqrtm(a @ b)).real, rel=1e-9)


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
def test_ill_conditioned_pairs_whose_square_root_is_known(condition):
    # The map T sends N(0, A) to N(0, T A T), and A (T A T) = (A T)².
    a = covariance(0, np.geomspace(1, 1 / condition, 60))
    transport = covariance(1, np.geomspace(1, 0.01, 60))
    b = transport @ a @ transport
    assert trace_sqrt_product(a, b) == pytest.approx(np.trace(a @ transport), rel=1e-11)
    assert trace_sqrt_product(b, a) == pytest.approx(np.trace(a @ transport), rel=1e-11)


@pytest.mark.parametrize("conditions", [(1, 1e12), (1e12, 1), (1e8, 1e12), (1e12, 1e12)])
def test_two_levels_of_variance_far_apart_in_unrelated_directions(conditions):
    # Singular values of F' G are never squared on the way, so they are good to full precision.
    factors = []
    for seed, condition in enumerate(conditions):
        variance = np.where(np.arange(60) < 20, 1, 1 / condition)
        factors.append(orthogonal(seed, 60) * np.sqrt(variance))
    f, g = factors
    expected = np.linalg.svd(f.T @ g, compute_uv=False).sum()
    assert trace_sqrt_product(f @ f.T, g @ g.T) == pytest.approx(expected, rel=1e-8)


def test_commuting_covariances():
    p, q = np.geomspace(1, 1e-12, 50), np.random.default_rng(0).uniform(1, 2, 50)
    a, b = covariance(3, p), covariance(3, q)
    expected = Gaussian(np.zeros(50), a), Gaussian(np.zeros(50), b)
    assert frechet_distance(*expected) == pytest.approx(np.sum((np.sqrt(p) - np.sqrt(q)) ** 2), rel=1e-7)


def test_diagonal_covariances():
    rng = np.random.default_rng(1)
    m, n, p, q = rng.uniform(size=(4, 20))
    distance = frechet_distance(Gaussian(m, np.diag(p)), Gaussian(n, np.diag(q)))
    assert distance == pytest.approx(np.sum((m - n) ** 2 + (np.sqrt(p) - np.sqrt(q)) ** 2), rel=1e-12)


def test_equal_covariances_leave_the_distance_of_the_means():
    a = moments(0, 200, 30)
    shift = np.random.default_rng(2).normal(size=30)
    b = Gaussian(a.mean + shift, a.covariance, 200)
    assert frechet_distance(a, b) == pytest.approx(shift @ shift, rel=1e-10)


@pytest.mark.parametrize("n", [3, 40, 41, 400])
def test_equal_sets_have_no_distance(n):
    a = moments(0, n, 40, shift=5)
    assert 0 <= frechet_distance(a, a) <= 1e-12 * np.trace(a.covariance)


def test_it_is_symmetric():
    a, b = moments(0, 50, 20), moments(1, 70, 20, shift=0.3)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_with_one_direction_only():
    # (u u' B)^½ has the one eigenvalue (u' B u)^½.
    u, b = np.random.default_rng(0).normal(size=80), covariance(1, np.geomspace(1, 1e-8, 80))
    assert trace_sqrt_product(np.outer(u, u), b) == pytest.approx(np.sqrt(u @ b @ u), rel=1e-12)


@pytest.mark.parametrize("rank", [1, 10, 39])
def test_singular_pairs_whose_square_root_is_known(rank):
    a = covariance(0, np.append(np.linspace(1, 2, rank), np.zeros(40 - rank)))
    transport = covariance(1, np.linspace(0.5, 2, 40))
    assert trace_sqrt_product(a, transport @ a @ transport) == pytest.approx(np.trace(a @ transport), rel=1e-12)


def test_few_images_give_as_many_columns_less_one():
    for n in (2, 10, 60):
        assert frechet._factor(moments(0, n, 60, shift=3).covariance).shape == (60, n - 1)


def test_images_that_are_all_alike():
    nothing = Gaussian(np.zeros(30), np.zeros((30, 30)))
    b = moments(0, 100, 30)
    assert frechet_distance(nothing, b) == pytest.approx(b.mean @ b.mean + np.trace(b.covariance), rel=1e-12)
    assert frechet_distance(nothing, nothing) == 0


def test_units_only_scale_it():
    a, b = moments(0, 50, 20), moments(1, 70, 20, shift=0.3)
    for scale in (1e-6, 1e6):
        scaled = (Gaussian(scale * m.mean, scale**2 * m.covariance) for m in (a, b))
        assert frechet_distance(*scaled) == pytest.approx(scale**2 * frechet_distance(a, b), rel=1e-10)


def test_statistics_in_float32_are_taken():
    a, b = moments(0, 500, 60), moments(1, 500, 60, shift=0.3)
    rounded = (Gaussian(m.mean.astype(np.float32), m.covariance.astype(np.float32)) for m in (a, b))
    assert frechet_distance(*rounded) == pytest.approx(frechet_distance(a, b), rel=1e-5)


def test_too_few_images_are_told_once(warnings):
    few, many = moments(0, 20, 20), moments(1, 21, 20)
    frechet_distance(many, Gaussian(many.mean, many.covariance))
    assert not warnings.messages
    frechet_distance(few, many)
    frechet_distance(many, few)
    assert len(warnings.messages) == 1
    assert "from 20 images, no more than the 20 features" in warnings.messages[0]


def test_what_is_not_a_pair_of_statistics_is_refused():
    good = moments(0, 30, 4)
    with pytest.raises(UserError, match="dimensions 4 and 5"):
        frechet_distance(good, moments(0, 30, 5))
    for count in (0, 1):
        with pytest.raises(UserError, match=f"2 or more images, got {count}"):
            frechet_distance(good, Moments.empty(4).update(np.zeros((count, 4))))
    broken = [
        ("NaN or infinity", good.mean, np.where(np.eye(4), np.nan, good.covariance)),
        ("NaN or infinity", np.full(4, np.inf), good.covariance),
        ("negative eigenvalues", good.mean, np.diag([1.0, 1, 1, -0.1])),
        ("negative eigenvalues", good.mean, -good.covariance),
        ("not symmetric", good.mean, np.triu(good.covariance)),
        ("shape", good.mean, good.covariance[:3]),
    ]
    for message, mean, matrix in broken:
        with pytest.raises(UserError, match=message):
            frechet_distance(Gaussian(mean, matrix), good)
