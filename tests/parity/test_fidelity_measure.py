"""The same images and weights through torch-fidelity and through ours, from pixels to figures."""

import dataclasses

import numpy as np
import pytest

from ddim_jax.config import EvalConfig
from ddim_jax.measuring.extractors import inception_extractor
from ddim_jax.measuring.measurement import Measurement
from ddim_jax.measuring.reference_file import Reference

torch = pytest.importorskip("torch")
torch_fidelity = pytest.importorskip("torch_fidelity")
from inception_weights import random_state  # noqa: E402

pytestmark = pytest.mark.parity


class Planes(torch.utils.data.Dataset):
    """Images as torch-fidelity takes them: uint8 [3, h, w]."""

    def __init__(self, images):
        self._planes = torch.tensor(images.transpose(0, 3, 1, 2).copy())

    def __len__(self):
        return len(self._planes)

    def __getitem__(self, index):
        return self._planes[index]


def blotches(n, seed):
    """Smooth random colours, whose features differ more than those of noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 4, 4, 3))
    fine = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2) + rng.normal(0, 8 + 4 * seed, (n, 32, 32, 3))
    return np.clip(fine, 0, 255).astype(np.uint8)


def test_the_figures_of_two_sets_of_images(tmp_path, monkeypatch):
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / "cache"))
    weights = tmp_path / "weights.pth"
    torch.save(random_state(), weights, _use_new_zipfile_serialization=False)
    generated, real = blotches(45, 0), blotches(36, 1)

    theirs = torch_fidelity.calculate_metrics(
        input1=Planes(generated), input2=Planes(real), cuda=False, isc=True, fid=True, kid=True, prc=True,
        feature_extractor="inception-v3-compat", feature_layer_prc="2048",  # not VGG, its default for prc
        feature_extractor_weights_path=str(weights), kid_subsets=10, kid_subset_size=20, batch_size=9, cache=False,
        verbose=False, save_cpu_ram=True,
    )  # fmt: skip

    settings = dataclasses.replace(EvalConfig(), kid_subsets=10, kid_subset_size=20)
    extractor = inception_extractor(str(weights), "tf1", batch_size=2)
    measured = {}
    for name, images in (("generated", generated), ("real", real)):
        measured[name] = Measurement(extractor, settings, len(images))
        measured[name].update(np.arange(len(images)), images)
    sums = measured["real"]._sums.finish()
    moments = sums.sums["moments"]
    reference = Reference(
        np.asarray(moments.mean), np.asarray(moments.covariance), moments.count, np.asarray(sums.kept_features), {}
    )
    ours = measured["generated"].figures(reference)

    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["is_mean"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert ours["is_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-3)
    assert ours["kid_mean"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours["kid_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-4)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-4)
    assert theirs["frechet_inception_distance"] > 0.1  # the sets differ
