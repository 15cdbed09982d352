import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ddim_jax.errors import UserError
from ddim_jax.metrics.precision_recall import (
    density_coverage,
    overlap,
    precision_recall,
    squared_neighbour_distances,
)


def features(n, d, seed, shift=0.0, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(n, d)) + shift


def line(*places):
    return np.array(places, float)[:, None]


def by_definition(generated, real, k):
    """Precision and recall from whole tables of distances."""

    def share_inside(points, centres):
        radius = np.sort(cdist(centres, centres), axis=1)[:, k]
        return np.mean((cdist(points, centres) <= radius).any(axis=1))

    return share_inside(generated, real), share_inside(real, generated)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("d", "shift", "scale"), [(2, 0.0, 1.0), (2, 1.0, 0.5), (16, 0.3, 0.7), (3, 100.0, 1.0)])
def test_by_definition(d, shift, scale, k):
    generated, real = features(130, d, 0, shift, scale), features(90, d, 1)
    result = precision_recall(generated, real, k)
    assert (result.precision, result.recall) == by_definition(generated, real, k)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("d", "shift", "scale"), [(2, 0.0, 1.0), (2, 1.0, 0.5), (16, 0.3, 0.7), (3, 100.0, 1.0)])
def test_density_and_coverage_by_definition(d, shift, scale, k):
    generated, real = features(130, d, 0, shift, scale), features(90, d, 1)
    radius = np.sort(cdist(real, real), axis=1)[:, k]
    is_within = cdist(generated, real) < radius
    found = density_coverage(generated, real, k)
    assert found.density == pytest.approx(is_within.sum() / (k * 130), rel=1e-12)
    assert found.coverage == pytest.approx(is_within.any(axis=0).mean(), rel=1e-12)
    both = overlap(generated, real, k)
    assert both.density_coverage == found and both.precision_recall == precision_recall(generated, real, k)


def test_density_tells_crowds_from_outliers():
    # Three real images close together and one far away, whose ball reaches nearly all of the line.
    real = line(0.0, 1.0, 2.0, 100.0)
    crowd, beside = line(0.5, 0.5, 1.5, 1.5), line(50.0, 60.0, 70.0, 80.0)
    assert precision_recall(crowd, real, k=1).precision == precision_recall(beside, real, k=1).precision == 1
    assert density_coverage(crowd, real, k=1).density == 2
    assert density_coverage(beside, real, k=1) == (1, 0.25)


@pytest.mark.parametrize("block", [1, 7, 64, 90, 1000])
def test_blocks_change_nothing(block):
    generated, real = features(130, 4, 0, scale=0.7), features(90, 4, 1)
    assert overlap(generated, real, 3, block=block) == overlap(generated, real, 3)


def test_a_case_by_hand():
    # Balls of the real ones: [-1, 1], [0, 2], [8, 12], [10, 14]; of the generated: [0, 3], [1.5, 4.5], [3, 37].
    real, generated = line(0, 1, 10, 12), line(1.5, 3, 20)
    result = precision_recall(generated, real, k=1)
    assert result.precision == pytest.approx(1 / 3)
    assert result.recall == 1
    assert result.f_score == pytest.approx(0.5)


def test_a_point_on_the_surface_is_inside():
    # Real balls: [-1, 1], [0, 2]. Generated points at exactly -1 and 2, and just outside.
    real = line(0, 1)
    assert precision_recall(line(-1, 2), real, k=1).precision == 1
    assert precision_recall(line(-1.001, 2.001), real, k=1).precision == 0


def test_equal_sets_are_perfect():
    real = features(50, 300, 0).astype(np.float32)
    assert precision_recall(real, real) == (1, 1, 1)
    assert precision_recall(real[::-1], real) == (1, 1, 1)


def test_sets_far_apart_share_nothing():
    assert precision_recall(features(50, 5, 0, shift=100), features(50, 5, 1)) == (0, 0, 0)


def test_few_modes_made_well_are_precise_with_low_recall():
    real = np.concatenate([features(100, 4, seed, shift=20 * seed) for seed in range(4)])
    result = precision_recall(features(400, 4, 9), real)
    assert result.precision > 0.9
    assert 0.2 < result.recall <= 0.25


def test_copies_have_a_ball_of_no_size_that_holds_only_their_equals():
    real = features(60, 500, 0, shift=3)
    collapsed = np.repeat(real[:1], 10, axis=0)
    np.testing.assert_array_equal(squared_neighbour_distances(collapsed, 3), 0)
    result = precision_recall(collapsed, real)
    assert result.precision == 1
    assert result.recall == pytest.approx(1 / 60)


@pytest.mark.parametrize("block", [3, 1000])
def test_the_neighbour_is_another_feature(block):
    places = line(0, 1, 3, 7, 15)
    np.testing.assert_array_equal(squared_neighbour_distances(places, 1, block), [1, 1, 4, 16, 64])
    np.testing.assert_array_equal(squared_neighbour_distances(places, 2, block), [9, 4, 9, 36, 144])


def test_what_is_not_a_pair_of_sets_is_refused():
    good = features(10, 4, 0)
    with pytest.raises(UserError, match="3 features of the generated images: this metric needs 4 or more"):
        precision_recall(good[:3], good)
    with pytest.raises(UserError, match="4 features each, real ones 5"):
        precision_recall(good, features(10, 5, 0))
    with pytest.raises(UserError, match="features of the real images hold NaN"):
        precision_recall(good, good * np.inf)
    with pytest.raises(ValueError, match="k=0"):
        precision_recall(good, good, k=0)
