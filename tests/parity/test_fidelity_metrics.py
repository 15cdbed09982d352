"""The same features through torch-fidelity's metrics.

Where the two differ:

- It computes FID's trace from the eigenvalues of S1 S2, whose rounding a square root magnifies: of singular covariances
  it keeps about 8 digits, ours all.
- It computes KID in the features' dtype, float32 as Inception gives them, so that a KID near 0 keeps 4 digits or
  fewer. To compare formulas rather than rounding it is given float64 too.
- It computes precision and recall from float32 distances, so that an image very near a surface may change sides.
"""

import numpy as np
import pytest

from ddim_jax.measuring.neighbours import overlap_on_devices
from ddim_jax.metrics.frechet import frechet_distance
from ddim_jax.metrics.inception_score import InceptionSums
from ddim_jax.metrics.kernel_distance import kernel_distance
from ddim_jax.metrics.moments import Moments
from ddim_jax.metrics.precision_recall import overlap, precision_recall

torch = pytest.importorskip("torch")
pytest.importorskip("torch_fidelity")
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric  # noqa: E402
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402
from torch_fidelity.metric_kid import kid_features_to_metric  # noqa: E402
from torch_fidelity.metric_prc import prc_features_to_metric  # noqa: E402

pytestmark = pytest.mark.parity

DIMENSION = 64


@pytest.fixture(scope="module")
def feature_sets():
    """Two sets of features like Inception's: not negative, correlated, skew."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(DIMENSION, DIMENSION)) / DIMENSION**0.5
    sets = []
    for n, shift in ((523, 0.1), (431, 0.0)):
        sets.append(np.maximum(rng.normal(size=(n, DIMENSION)) @ mixing + 0.3 + shift, 0).astype(np.float32))
    return sets


def moments_of(features, batch):
    moments = Moments.empty(features.shape[1])
    for start in range(0, len(features), batch):
        moments = moments.update(features[start : start + batch])
    return moments


def their_fid(*sets):
    statistics = [fid_features_to_statistics(torch.as_tensor(features.astype(np.float64))) for features in sets]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def test_fid(feature_sets):
    ours = frechet_distance(*(moments_of(features, 100) for features in feature_sets))
    assert ours == pytest.approx(their_fid(*feature_sets), rel=1e-10)


def test_fid_of_singular_covariances(feature_sets):
    few = [features[:n] for features, n in zip(feature_sets, (40, 50), strict=True)]
    ours = frechet_distance(*(moments_of(features, 7) for features in few))
    assert ours == pytest.approx(their_fid(*few), rel=1e-5)


@pytest.mark.parametrize(
    ("n", "splits", "shuffle"), [(500, 10, True), (523, 10, True), (523, 10, False), (523, 1, True)]
)
def test_inception_score(n, splits, shuffle):
    logits = (3 * np.random.default_rng(1).normal(size=(n, 1008))).astype(np.float32)
    sums = InceptionSums.empty(n, splits=splits, shuffle=shuffle)
    for index in np.array_split(np.arange(n), 7):
        sums = sums.update(logits[index], index)
    theirs = isc_features_to_metric(torch.as_tensor(logits), splits, shuffle, rng_seed=2020)
    assert sums.score().mean == pytest.approx(theirs["inception_score_mean"], rel=1e-11)
    assert sums.score().std == pytest.approx(theirs["inception_score_std"], rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-4)])
@pytest.mark.parametrize("size", [100, 431])
def test_kid(feature_sets, size, dtype, tolerance):
    ours = kernel_distance(*feature_sets, subsets=20, max_subset_size=size)
    theirs = kid_features_to_metric(
        *(torch.as_tensor(features.astype(dtype)) for features in feature_sets),
        kid_subsets=20,
        kid_subset_size=size,
        verbose=False,
    )
    assert ours.subset_size == size
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=tolerance)
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=tolerance, abs=1e-6)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("low_memory", [True, False])
def test_precision_and_recall(feature_sets, k, low_memory):
    ours = precision_recall(*feature_sets, k=k, block=100)
    theirs = prc_features_to_metric(
        *(torch.as_tensor(features) for features in feature_sets),
        prc_neighborhood=k,
        save_cpu_ram=low_memory,
        verbose=False,
    )
    assert 0.05 < ours.precision < 0.95
    assert 0.05 < ours.recall < 0.95
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-6)
    assert ours.f_score == pytest.approx(theirs["f_score"], abs=1e-6)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_density_and_coverage(feature_sets, k, capsys):
    prdc = pytest.importorskip("prdc")
    generated, real = feature_sets
    theirs = prdc.compute_prdc(real_features=real, fake_features=generated, nearest_k=k)
    for ours in (overlap(generated, real, k, block=100), overlap_on_devices(generated, real, k, block=100)):
        assert ours.density > 0.05 and 0.05 < ours.coverage < 0.95
        assert ours._asdict() == pytest.approx(theirs, abs=1e-12)
