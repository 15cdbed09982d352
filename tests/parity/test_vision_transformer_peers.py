"""Our DINOv2 and CLIP against transformers', and their distances against dgm-eval's, torch-fidelity's and CMMD's.

Random weights, in networks of few and narrow blocks. dgm-eval and CMMD are no packages: what they call is called here.
"""

import jax
import numpy as np
import pytest
import scipy.linalg

from ddim_jax.config import EvalConfig
from ddim_jax.measuring.measurement import Measurement
from ddim_jax.measuring.reference_file import Reference
from ddim_jax.measuring.resize import resize
from ddim_jax.measuring.vision_transformers import CMMD, DGM_EVAL, extractor_of
from ddim_jax.models.vision_transformer import clip, dinov2
from ddim_jax.weights.array_files import read_safetensors
from ddim_jax.weights.vision_transformers import TransformerWeights, convert_state, positions_for

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

DINOV2 = dinov2(width=48, depth=2, heads=3)
CLIP = clip(side=224, patch=32, width=128, depth=2, projection=24)


def saved(network, folder):
    """Random weights for a network of transformers, and what it saves."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) + ("norm" in name and name.endswith("weight")))
    network.eval().requires_grad_(False).save_pretrained(folder)
    return read_safetensors(folder / "model.safetensors").arrays


@pytest.fixture(scope="module")
def their_dinov2(tmp_path_factory):
    """A function of images [n, 3, 224, 224] as DINOv2's code has it, and what is saved of it."""
    # With as many places as images of 224 pixels have: transformers would resize others in a way of its own.
    config = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=224, patch_size=14
    )
    network = transformers.Dinov2Model(config)
    state = saved(network, tmp_path_factory.mktemp("dinov2"))
    return lambda images: network(images).pooler_output, state


@pytest.fixture(scope="module")
def their_clip(tmp_path_factory):
    """The same of CLIP."""
    config = transformers.CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2, image_size=224,
        patch_size=32, projection_dim=24,
    )  # fmt: skip
    network = transformers.CLIPVisionModelWithProjection(config)
    state = saved(network, tmp_path_factory.mktemp("clip"))
    return lambda images: network(images).image_embeds, state


@pytest.mark.parametrize(("theirs", "ours"), [("their_dinov2", DINOV2), ("their_clip", CLIP)])
def test_features(theirs, ours, request):
    network, state = request.getfixturevalue(theirs)
    images = np.random.default_rng(0).standard_normal((3, 224, 224, 3)).astype(np.float32)
    expected = network(torch.tensor(images.transpose(0, 3, 1, 2).copy())).numpy()
    found = jax.jit(ours.apply)({"params": convert_state(state, ours, "saved")}, images)
    assert found.shape == expected.shape and 0.1 < expected.std() < 10
    assert np.abs(found - expected).max() < 1e-5 * expected.std()
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * expected.std()


@pytest.mark.parametrize(("given", "grid"), [(37, 16), (37, 32), (9, 16), (5, 4)])
def test_positions_are_resized_as_by_pytorch(given, grid):
    positions = np.random.default_rng(0).standard_normal((1 + given**2, 6))
    plane = torch.tensor(positions[1:].reshape(1, given, given, 6)).permute(0, 3, 1, 2)
    # As DINOv2's code calls it.
    factor = (grid + 0.1) / given
    expected = torch.nn.functional.interpolate(plane, scale_factor=(factor, factor), mode="bicubic", antialias=False)
    found = positions_for(positions, grid)
    np.testing.assert_array_equal(found[0], positions[0])
    np.testing.assert_allclose(found[1:], expected.permute(0, 2, 3, 1).reshape(grid**2, 6).numpy(), rtol=0, atol=1e-12)


# --- from pixels to figures ---------------------------------------------------------------------


def blotches(n, seed):
    """Smooth random colours."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 4, 4, 3))
    fine = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2) + rng.normal(0, 8 + 4 * seed, (n, 32, 32, 3))
    return np.clip(fine, 0, 255).astype(np.uint8)


def figures(extractor, generated, real, metrics):
    settings = EvalConfig(metrics=metrics)
    measured = []
    for images in (generated, real):
        measured.append(Measurement(extractor, settings, len(images)))
        measured[-1].update(np.arange(len(images)), images)
    sums = measured[1]._sums.finish()
    moments = sums.sums["moments"]
    reference = Reference(moments.mean, moments.covariance, moments.count, sums.kept_features, {})
    return measured[0].figures(reference)


def frechet(generated, real):
    """As dgm-eval computes it, ``dgm_eval/metrics/fd.py``."""
    (mean_1, covariance_1), (mean_2, covariance_2) = (
        (np.mean(features, axis=0), np.cov(features, rowvar=False)) for features in (generated, real)
    )
    root = scipy.linalg.sqrtm(covariance_1.dot(covariance_2)).real
    difference = mean_1 - mean_2
    return difference.dot(difference) + np.trace(covariance_1) + np.trace(covariance_2) - 2 * np.trace(root)


@pytest.fixture(scope="module")
def sets():
    return blotches(90, 0), blotches(100, 1)


def test_the_frechet_distance_of_dgm_eval(their_dinov2, sets):
    network, state = their_dinov2
    transform = torchvision.transforms.Compose([
        torchvision.transforms.Resize((224, 224), torchvision.transforms.InterpolationMode.BICUBIC),
        torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize(np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])),
    ])  # fmt: skip
    to_picture = torchvision.transforms.functional.to_pil_image
    theirs = [
        network(torch.stack([transform(to_picture(image)) for image in images])).numpy().astype(np.float64)
        for images in sets
    ]
    weights = TransformerWeights(convert_state(state, DINOV2, "saved"), "")
    extractor = extractor_of("dinov2", DINOV2, weights, DGM_EVAL, 4)
    for images, expected in zip(sets, theirs, strict=True):
        np.testing.assert_allclose(extractor(images).features, expected, rtol=0, atol=1e-5 * expected.std())
    found = figures(extractor, *sets, ("fid",))
    assert found["dinov2_frechet"] == pytest.approx(frechet(*theirs), rel=1e-5) and frechet(*theirs) > 0.1


class Planes(torch.utils.data.Dataset):
    """Images as torch-fidelity takes them: uint8 [3, h, w]."""

    def __init__(self, planes):
        self._planes = planes

    def __len__(self):
        return len(self._planes)

    def __getitem__(self, index):
        return self._planes[index]


def test_the_network_in_torch_fidelity(their_dinov2, sets, monkeypatch):
    torch_fidelity = pytest.importorskip("torch_fidelity")
    network, state = their_dinov2

    class Hub(torch.nn.Module):
        """What torch-fidelity would load from GitHub."""

        def forward(self, images):
            return network(images)

    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: Hub())
    planes = [torch.tensor(images.transpose(0, 3, 1, 2).copy()) for images in sets]
    theirs = torch_fidelity.calculate_metrics(
        input1=Planes(planes[0]), input2=Planes(planes[1]), cuda=False, fid=True, batch_size=30,
        feature_extractor="dinov2-vit-s-14", cache=False, verbose=False, save_cpu_ram=True,
    )["frechet_inception_distance"]  # fmt: skip
    params = convert_state(state, DINOV2, "saved")

    @jax.jit
    def features(images):
        pixels = (128 * resize(images, "tf1", 224) + 128) / 255
        return DINOV2.apply({"params": params}, (pixels - np.array(DGM_EVAL.mean)) / np.array(DGM_EVAL.deviation))

    ours = frechet(*(np.asarray(features(images), np.float64) for images in sets))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_the_embeddings_of_cmmd(their_clip, sets):
    from PIL import Image

    network, state = their_clip
    inputs = []
    for image in sets[0][:, 3:]:  # 29 rows of 32: the middle is seen
        picture = Image.fromarray(image).crop((1, 0, 30, 29)).resize((224, 224), Image.Resampling.BICUBIC)
        inputs.append((np.asarray(picture) / 255 - CMMD.mean) / CMMD.deviation)
    expected = network(torch.tensor(np.stack(inputs).transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    weights = TransformerWeights(convert_state(state, CLIP, "saved"), "")
    found = extractor_of("clip", CLIP, weights, CMMD, 4)(sets[0][:, 3:]).features
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.std())
