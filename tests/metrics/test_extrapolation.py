"""The distance of infinitely many images: exact on a line, and nearer the closed form than that of those at hand."""

import numpy as np
import pytest

from ddim_jax.metrics.extrapolation import extrapolated, frechet_at_infinity, gaussian_of_rows, subset_sizes
from ddim_jax.metrics.frechet import frechet_distance
from ddim_jax.metrics.moments import Gaussian


def test_a_line_over_one_over_n_is_found_again():
    counts = np.array([7, 50, 123, 4000])
    assert extrapolated(counts, 2.25 + 310 / counts) == pytest.approx(2.25, abs=1e-12)
    assert extrapolated(counts, -0.5 + 0 * counts) == pytest.approx(-0.5, abs=1e-15)
    # By hand: over 1/n = 1, 0.5 the line through 3 and 2 has slope 2 and is 1 at 0.
    assert extrapolated([1, 2], [3.0, 2.0]) == pytest.approx(1.0, abs=1e-15)


def test_least_squares_are_numpys():
    counts, figures = subset_sizes(900), np.random.default_rng(0).normal(size=15)
    assert extrapolated(counts, figures) == pytest.approx(np.polyfit(1 / counts, figures, 1)[1], rel=1e-9)


def test_sizes_are_fifteen_from_a_tenth_to_all():
    sizes = subset_sizes(1000)
    assert (len(sizes), sizes[0], sizes[-1]) == (15, 100, 1000)
    assert set(np.diff(sizes)) == {64, 65}
    assert subset_sizes(5).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_of_gaussians_it_is_nearer_the_closed_form(shift):
    """N(shift, 1.5² I) against N(0, I) in 10 dimensions: d (shift² + 0.5²), and a bias at n = 600 that is not small."""
    d, exact = 10, 10 * (shift**2 + 0.25)
    reference = Gaussian(np.zeros(d), np.eye(d))
    plain, extended = [], []
    for seed in range(8):
        features = shift + 1.5 * np.random.default_rng(seed).normal(size=(600, d))
        plain.append(frechet_distance(gaussian_of_rows(features, np.arange(600)), reference))
        extended.append(frechet_at_infinity(features, reference))
    assert abs(np.mean(extended) - exact) < abs(np.mean(plain) - exact) / 2


def test_rows_count_as_often_as_they_are_named(tmp_path):
    features = np.random.default_rng(1).normal(size=(5000, 3)).astype(np.float32)
    rows = np.sort(np.random.default_rng(2).integers(5000, size=5000))
    np.save(tmp_path / "features.npy", features)
    found = gaussian_of_rows(np.load(tmp_path / "features.npy", mmap_mode="r"), rows)
    np.testing.assert_allclose(found.mean, features[rows].astype(float).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features[rows].astype(float).T), rtol=1e-10, atol=1e-12)
