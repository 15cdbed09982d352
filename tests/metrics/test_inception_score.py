import itertools

import numpy as np
import pytest
import scipy.special

from ddim_jax.errors import UserError
from ddim_jax.metrics.inception_score import InceptionSums

CLASSES = 6


def random_logits(n, seed=0, scale=2.0):
    return scale * np.random.default_rng(seed).normal(size=(n, CLASSES))


def score(logits, **options):
    sums = InceptionSums.empty(len(logits), logits.shape[1], **options)
    return sums.update(logits, np.arange(len(logits))).score()


def by_definition(logits):
    """One split's exp E_x KL(p(y|x) || p(y))."""
    p = scipy.special.softmax(logits, axis=1)
    marginal = p.mean(axis=0)
    return np.exp(np.mean([np.sum(row * np.log(row / marginal)) for row in p]))


@pytest.mark.parametrize("used", [1, 2, 6])
def test_sure_and_evenly_spread_over_classes_is_their_number(used):
    logits = 1000 * np.eye(CLASSES)[np.arange(12 * used) % used]
    result = score(logits, splits=1)
    assert result.mean == pytest.approx(used, rel=1e-12)
    assert result.std == 0


def test_images_all_alike_score_1():
    assert score(np.repeat(random_logits(1), 30, axis=0), splits=3).mean == pytest.approx(1, rel=1e-12)


def test_two_classes_with_a_known_error():
    # Mutual information of a symmetric channel: log 2 less the entropy of its error.
    error = 0.1
    logits = np.log([[1 - error, error], [error, 1 - error]] * 10)
    entropy = -error * np.log(error) - (1 - error) * np.log(1 - error)
    assert score(logits, splits=2, shuffle=False).mean == pytest.approx(2 * np.exp(-entropy), rel=1e-12)


@pytest.mark.parametrize(("n", "splits"), [(50, 10), (47, 10), (10, 10), (9, 2), (5, 1)])
def test_contiguous_splits_by_definition(n, splits):
    logits = random_logits(n)
    scores = [by_definition(logits[i * n // splits : (i + 1) * n // splits]) for i in range(splits)]
    result = score(logits, splits=splits, shuffle=False)
    assert result.mean == pytest.approx(np.mean(scores), rel=1e-12)
    assert result.std == pytest.approx(np.std(scores), rel=1e-9, abs=1e-12)


def test_shuffled_splits_are_contiguous_ones_of_the_permutation():
    logits = random_logits(47)
    order = np.random.RandomState(2020).permutation(47)
    shuffled, contiguous = score(logits), score(logits[order], shuffle=False)
    assert shuffled.mean == pytest.approx(contiguous.mean, rel=1e-12)
    assert shuffled.std == pytest.approx(contiguous.std, rel=1e-9)
    assert abs(shuffled.mean - score(logits, shuffle=False).mean) > 1e-3


def test_shuffling_spreads_sorted_classes_over_all_splits():
    logits = 50 * np.eye(CLASSES)[np.repeat(np.arange(CLASSES), 200)]
    assert score(logits, splits=CLASSES, shuffle=False).mean == pytest.approx(1, abs=1e-9)
    assert score(logits, splits=CLASSES).mean > 0.95 * CLASSES


def test_batches_machines_and_orders_do_not_matter():
    logits, index = random_logits(83), np.random.default_rng(1).permutation(83)
    empty = InceptionSums.empty(83, CLASSES)
    expected = score(logits)
    parts = [empty.update(logits[i], i) for i in np.split(index, [1, 40, 40])]
    for a, b, c, d in itertools.permutations(parts):
        for sums in (a.merge(b).merge(c).merge(d), a.merge(b).merge(c.merge(d))):
            assert sums.score().mean == pytest.approx(expected.mean, rel=1e-12)
            assert sums.score().std == pytest.approx(expected.std, rel=1e-11)


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    logits, batches = random_logits(50), np.array_split(np.arange(50), 6)
    uninterrupted = resumed = InceptionSums.empty(50, CLASSES)
    for i in batches:
        uninterrupted = uninterrupted.update(logits[i], i)
        np.savez(tmp_path / "part.npz", **resumed.update(logits[i], i).to_arrays())
        with np.load(tmp_path / "part.npz") as arrays:
            resumed = InceptionSums.from_arrays(arrays)
    for name, array in uninterrupted.to_arrays().items():
        np.testing.assert_array_equal(resumed.to_arrays()[name], array)
    assert resumed.score() == uninterrupted.score()


def test_large_logits_overflow_nothing():
    logits = random_logits(40)
    assert score(logits + 1e6).mean == pytest.approx(score(logits).mean, rel=1e-8)
    assert np.isfinite(score(1e4 * logits).mean)


def test_float32_is_summed_in_float64():
    logits = random_logits(40).astype(np.float32)
    assert score(logits) == score(logits.astype(np.float64))


@pytest.mark.parametrize("splits", [0, 6])
def test_more_splits_than_images_are_refused(splits):
    with pytest.raises(UserError, match=f"5 images in {splits} splits: take between 1 and 5"):
        InceptionSums.empty(5, CLASSES, splits)


def test_there_is_no_score_of_some_images_or_of_one_twice():
    sums = InceptionSums.empty(20, CLASSES, splits=2, shuffle=False)
    with pytest.raises(ValueError, match=r"splits have seen \[10, 9\] images instead of \[10, 10\]"):
        sums.update(random_logits(19), np.arange(19)).score()
    with pytest.raises(ValueError, match=r"\[11, 10\]"):
        sums.update(random_logits(21), np.append(np.arange(20), 3)).score()


def test_what_does_not_fit_is_refused():
    sums = InceptionSums.empty(20, CLASSES)
    with pytest.raises(ValueError, match="3 indices for logits of shape"):
        sums.update(random_logits(2), np.arange(3))
    with pytest.raises(ValueError, match=r"not \[b, 6\]"):
        sums.update(random_logits(3)[:, :5], np.arange(3))
    for index in (-1, 20):
        with pytest.raises(ValueError, match=r"not within 0 \.\.\. 19"):
            sums.update(random_logits(1), np.array([index]))
    with pytest.raises(UserError, match="NaN or infinity, first in row 1"):
        sums.update(np.where(np.arange(3)[:, None] == 1, np.nan, random_logits(3)), np.arange(3))
    with pytest.raises(ValueError, match="different splits"):
        sums.merge(InceptionSums.empty(20, CLASSES, shuffle=False))
