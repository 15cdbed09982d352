import numpy as np
import pytest

from ddim_jax.errors import UserError
from ddim_jax.metrics.kernel_distance import gaussian_distance, kernel_distance, squared_mmd


def features(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def by_definition(x, y):
    """Means of the kernel over all pairs, but of no image with itself."""

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def between_different(z):
        return np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

    return between_different(x) + between_different(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 1), (7, 7, 3), (5, 9, 4)])
def test_by_definition(n, m, d):
    x, y = features(n, d, 0), features(m, d, 1, shift=0.5)
    assert squared_mmd(x, y) == pytest.approx(by_definition(x, y), rel=1e-12)


def test_a_case_by_hand():
    # k(0, 1) = 1, k(0, 2) = 1, k(1, 2) = 27, k(1, 1) = 8: x = {0, 1}, y = {1, 2}.
    assert squared_mmd(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])) == 1 + 27 - 2 * (1 + 1 + 8 + 27) / 4


def test_its_expectation_is_the_distance_of_the_moments():
    # In one dimension (x y + 1)³ = sum_j C(3, j) x^j y^j, so MMD² = sum_j C(3, j) (E x^j - E y^j)².
    shift = 0.7
    moments_x, moments_y = np.array([0, 1, 0]), np.array([shift, 1 + shift**2, 3 * shift + shift**3])
    expected = np.array([3, 3, 1]) @ (moments_x - moments_y) ** 2
    pairs = [(features(40, 1, 2 * seed), features(40, 1, 2 * seed + 1, shift)) for seed in range(400)]
    estimates = np.array([squared_mmd(x, y) for x, y in pairs])
    error = estimates.std() / np.sqrt(len(estimates))
    assert error < 0.1 * expected
    assert abs(estimates.mean() - expected) < 4 * error


def test_sets_of_one_distribution_have_none_on_average_and_negative_ones_among_them():
    estimates = np.array([squared_mmd(features(5, 8, 2 * s), features(5, 8, 2 * s + 1)) for s in range(2000)])
    assert abs(estimates.mean()) < 4 * estimates.std() / np.sqrt(len(estimates))
    # With the pairs of each image with itself it would be near 2 (E k(x, x) - E k(x, x')) / 5, more than 2.
    assert estimates.std() / np.sqrt(len(estimates)) < 0.1
    assert estimates.min() < 0 < estimates.max()


def test_subsets_are_drawn_in_turn_from_generated_and_real():
    generated, real = features(50, 6, 0), features(30, 6, 1, shift=0.2)
    rng = np.random.RandomState(5)
    distances = []
    for _ in range(7):
        x = generated[rng.choice(50, 20, replace=False)]
        y = real[rng.choice(30, 20, replace=False)]
        distances.append(by_definition(x, y))
    result = kernel_distance(generated, real, subsets=7, max_subset_size=20, seed=5)
    assert result.mean == pytest.approx(np.mean(distances), rel=1e-11)
    assert result.std == pytest.approx(np.std(distances), rel=1e-9)
    assert result.subset_size == 20


def test_a_small_set_sets_the_size_of_subsets():
    generated, real = features(50, 6, 0), features(30, 6, 1)
    assert kernel_distance(generated, real).subset_size == 30
    assert kernel_distance(real, generated).subset_size == 30


def test_subsets_of_all_images_are_one_distance():
    generated, real = features(30, 6, 0), features(30, 6, 1)
    result = kernel_distance(generated, real, subsets=3)
    assert result.mean == pytest.approx(squared_mmd(generated, real), rel=1e-11)
    assert result.std == pytest.approx(0, abs=1e-12)


def test_float32_is_computed_in_float64():
    generated, real = features(60, 6, 0).astype(np.float32), features(60, 6, 1).astype(np.float32)
    expected = kernel_distance(generated.astype(np.float64), real.astype(np.float64), max_subset_size=20)
    assert kernel_distance(generated, real, max_subset_size=20) == expected


def test_what_is_not_a_pair_of_sets_is_refused():
    good = features(10, 4, 0)
    with pytest.raises(UserError, match="4 features each, real ones 5"):
        kernel_distance(good, features(10, 5, 0))
    with pytest.raises(UserError, match="1 features of the real images: this metric needs 2 or more"):
        kernel_distance(good, good[:1])
    with pytest.raises(UserError, match="features of the generated images hold NaN or infinity, first in row 0"):
        kernel_distance(good * np.nan, good)
    with pytest.raises(ValueError, match=r"not \[n, d\]"):
        kernel_distance(good[0], good)
    with pytest.raises(ValueError, match="0 subsets"):
        kernel_distance(good, good, subsets=0)
    with pytest.raises(ValueError, match="subsets of 1"):
        kernel_distance(good, good, max_subset_size=1)


# --- CMMD ---------------------------------------------------------------------------------------


def embeddings(n, d, seed, shift=0.0):
    """Features of length 1."""
    values = features(n, d, seed, shift)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_cmmd_is_that_of_the_papers_code(block):
    x, y = embeddings(40, 6, 0), embeddings(50, 6, 1, shift=0.5)

    def likeness(a, b):
        return np.mean([[np.exp(-np.sum((p - q) ** 2) / (2 * 10**2)) for q in b] for p in a])

    expected = 1000 * (likeness(x, x) + likeness(y, y) - 2 * likeness(x, y))
    assert gaussian_distance(x, y, block) == pytest.approx(expected, rel=1e-9) and expected > 1
    assert gaussian_distance(x, x, block) == pytest.approx(0, abs=1e-9)


def test_cmmd_is_computed_in_float64():
    # By the paper's own lines in float32 the last digits are lost: most of its kernels are near 1.
    x, y = (embeddings(300, 16, seed).astype(np.float32) for seed in (0, 1))
    exact = gaussian_distance(x.astype(np.float64), y.astype(np.float64))
    assert gaussian_distance(x, y) == pytest.approx(exact, rel=1e-12)
    with pytest.raises(ValueError, match="block=0"):
        gaussian_distance(x, y, 0)
