"""Copies are caught and fresh images are not; small sets by hand; the same for blocks of any size."""

import numpy as np
import pytest
import scipy.stats

from ddim_jax.errors import UserError
from ddim_jax.metrics.memorization import authenticity, copy_share, copy_test, neighbours
from ddim_jax.metrics.nearest import nearest


def draw(num, seed, d=16):
    return np.random.default_rng(seed).normal(size=(num, d))


def figures(samples, training, held_out):
    found, fresh = neighbours(samples, training), neighbours(held_out, training)
    return (
        authenticity(found.first, found.own),
        copy_share(found.first, found.second),
        copy_test(found.first, fresh.first),
    )


def test_copies_are_caught_and_fresh_images_are_not():
    training, held_out = draw(400, 0), draw(200, 1)
    copied = training[np.random.default_rng(2).integers(400, size=300)] + 0.02 * draw(300, 3)
    share, copies, z = figures(copied, training, held_out)
    assert share == 0 and copies == 1 and z < -15
    share, copies, z = figures(draw(300, 4), training, held_out)
    assert 0.45 < share < 0.9 and copies == 0 and abs(z) < 3


def test_some_copies_among_fresh_images():
    training = draw(400, 0)
    mixed = np.concatenate([training[:60] + 0.01 * draw(60, 3), draw(240, 4)])
    share, copies, z = figures(mixed, training, draw(200, 1))
    assert copies == 60 / 300 and z < -3
    assert share == pytest.approx(0.8 * figures(draw(240, 4), training, draw(200, 1))[0], abs=1e-12)


def test_by_hand():
    """On a line: training at 0, 1, 4, 10; samples at 0, 2, 7.5, 20."""
    training, samples = np.array([[0.0], [1.0], [4.0], [10.0]]), np.array([[0.0], [2.0], [7.5], [20.0]])
    found = neighbours(samples, training)
    assert found.index.tolist() == [[0, 1, 2], [1, 0, 2], [3, 2, 1], [3, 2, 1]]
    assert found.distance.tolist() == [[0, 1, 4], [1, 2, 2], [2.5, 3.5, 6.5], [10, 16, 19]]
    assert found.own.tolist() == [1, 1, 6, 6]
    # 0 > 1, 1 > 1, 2.5 > 6, 10 > 6: one of four; and one copy, at 0.
    assert authenticity(found.first, found.own) == 0.25
    assert copy_share(found.first, found.second) == 0.25
    with pytest.raises(UserError, match="2 training images: whether a model copies them is seen from 3 or more"):
        neighbours(samples, training[:2])


def test_the_z_is_scipys():
    samples, held_out = np.abs(draw(70, 5, 1)[:, 0]), np.abs(1.3 * draw(40, 6, 1)[:, 0])
    found = scipy.stats.mannwhitneyu(samples, held_out, method="asymptotic", use_continuity=False)
    assert 2 * scipy.stats.norm.sf(abs(copy_test(samples, held_out))) == pytest.approx(found.pvalue, rel=1e-9)
    # 3 of 2 x 2 pairs, of which one is equal: (2.5 - 2) / sqrt(4 * 5 / 12).
    assert copy_test(np.array([1.0, 3.0]), np.array([0.0, 3.0])) == pytest.approx(0.5 / np.sqrt(5 / 3))
    assert copy_test(samples, samples) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("block", [1, 7, 64, 5000])
def test_any_size_of_blocks(block):
    points, others = 100 + draw(90, 7).astype(np.float32), 100 + draw(150, 8).astype(np.float32)
    others[40] = others[3]
    points[5] = others[3]
    found = nearest(points, others, 3, block=block)
    all_distances = np.linalg.norm(points[:, None].astype(float) - others.astype(float), axis=2)
    expected = np.argsort(all_distances, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found.index, expected)
    np.testing.assert_allclose(found.distance, np.take_along_axis(all_distances, expected, axis=1), rtol=1e-9)
    assert found.index[5, :2].tolist() == [3, 40] and found.distance[5, :2].tolist() == [0, 0]


def test_a_point_of_the_same_set_is_not_its_own_neighbour():
    points = draw(30, 9)
    found = nearest(points, points, 1, excluded=np.arange(30), block=8)
    distances = np.linalg.norm(points[:, None] - points, axis=2) + np.where(np.eye(30), np.inf, 0)
    np.testing.assert_array_equal(found.index[:, 0], distances.argmin(axis=1))
    with pytest.raises(ValueError, match="2 points have no 2 nearest"):
        nearest(points, points[:2], 2, excluded=np.zeros(30, int))
