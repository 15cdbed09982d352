"""Precision, recall, density and coverage on devices, against those of NumPy."""

import numpy as np
import pytest

from ddim_jax import parallel
from ddim_jax.errors import UserError
from ddim_jax.measuring import neighbours
from ddim_jax.measuring.neighbours import fast_overlap, overlap_on_devices
from ddim_jax.metrics.precision_recall import overlap


def feature_sets(num_generated=430, num_real=500, dimension=24, mean=0.0):
    rng = np.random.default_rng(0)
    generated = 1.1 * rng.standard_normal((num_generated, dimension)) + 0.3
    return (generated + mean).astype(np.float32), (rng.standard_normal((num_real, dimension)) + mean).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [7, 64, 1000])
def test_devices_and_numpy_agree(k, block):
    sets = feature_sets()
    found, expected = overlap_on_devices(*sets, k, block), overlap(*sets, k)
    assert found == expected
    assert all(0.05 < share < 0.95 for share in expected)


def test_a_large_mean_costs_no_digits():
    sets = feature_sets(mean=30.0)
    assert overlap_on_devices(*sets, 3) == overlap(*sets, 3)


def test_copies_are_at_distance_0():
    rng = np.random.default_rng(1)
    real = (rng.standard_normal((40, 300)) + 5).astype(np.float32)
    # Each real image twice; half of them generated, one of these three times.
    real = np.concatenate([real, real])
    generated = np.concatenate([real[:20], real[:1], real[:1], -real[:10]])
    found = overlap_on_devices(generated, real, 1, 16)
    assert found == overlap(generated, real, 1)
    # Balls have radius 0: they hold copies alone, on their surface.
    assert (found.precision, found.density, found.coverage) == (22 / 32, 0, 0)


def test_points_on_the_surface_are_inside_for_precision_alone():
    real = np.random.default_rng(2).standard_normal((60, 200)).astype(np.float32)
    # A set against itself: each image's nearest other one is on its ball's surface.
    found = overlap_on_devices(real, real, 1, 16)
    assert found == overlap(real, real, 1)
    assert found.precision == found.recall == 1 and found.coverage == 1 and found.density == 1


def test_what_is_refused():
    few, many = np.zeros((3, 4)), np.random.default_rng(0).standard_normal((9, 4))
    with pytest.raises(UserError, match=r"3 features of the generated images: this metric needs 4 or more"):
        overlap_on_devices(few, many, 3)
    with pytest.raises(UserError, match="NaN or infinity"):
        overlap_on_devices(many, np.full((9, 4), np.nan), 3)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_accelerators_are_used_where_there_are_any(platform, monkeypatch):
    class Device:
        pass

    device = Device()
    device.platform = platform
    called = []
    monkeypatch.setattr(parallel, "local_devices", lambda: [device])
    monkeypatch.setattr(neighbours, "overlap", lambda *arguments: called.append("cpu"))
    monkeypatch.setattr(neighbours, "overlap_on_devices", lambda *arguments: called.append("gpu"))
    fast_overlap(*feature_sets(), 3)
    assert called == [platform]
