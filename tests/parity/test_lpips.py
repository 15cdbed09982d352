"""LPIPS with the same random weights through torch-fidelity's network and through ours."""

import numpy as np
import pytest

from ddim_jax.measuring.perceptual import PerceptualDistance
from ddim_jax.weights.lpips import lpips_state_shapes

torch = pytest.importorskip("torch")
pytest.importorskip("torch_fidelity")
torchvision = pytest.importorskip("torchvision")

pytestmark = pytest.mark.parity


@pytest.fixture
def theirs(monkeypatch):
    from torch_fidelity import sample_similarity_lpips as module

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    heads = {
        name: torch.rand(shape, generator=generator)
        for name, shape in lpips_state_shapes().items()
        if name.startswith("lin")
    }
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: heads)
    monkeypatch.setattr(module, "torchvision_load_pretrained_vgg16", torchvision.models.vgg16)
    return module.SampleSimilarityLPIPS("lpips")


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 20, 1)])
def test_distances(theirs, shape, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "lpips.pth")
    rng = np.random.default_rng(0)
    images, others = rng.integers(0, 256, (2, 5, *shape), np.uint8)
    others[4] = images[4]
    ours = PerceptualDistance(str(tmp_path / "lpips.pth"), shape, 2)(images / 255, others / 255)
    planes = [
        torch.tensor(np.broadcast_to(x, (*x.shape[:3], 3)).transpose(0, 3, 1, 2).copy()) for x in (images, others)
    ]
    expected = theirs(*planes).numpy().reshape(-1)
    assert expected[0] > 1e-3 and ours[4] == 0
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-9)
