"""Our Inception network, weights and resizing against torch-fidelity's, PyTorch's and Pillow's, on random weights."""

import jax
import numpy as np
import pytest

from ddim_jax.measuring.resize import resize
from ddim_jax.models.inception import Inception
from ddim_jax.weights.inception import inception_variables
from ddim_jax.weights.torch_file import read_torch_file

torch = pytest.importorskip("torch")
pytest.importorskip("torch_fidelity")
from inception_weights import random_state  # noqa: E402
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same random weights in both of PyTorch's layouts."""
    state = random_state()
    folder = tmp_path_factory.mktemp("inception")
    paths = {}
    for layout in ("zip", "old"):
        paths[layout] = folder / f"{layout}.pth"
        torch.save(state, paths[layout], _use_new_zipfile_serialization=layout == "zip")
    return paths


@pytest.fixture(scope="module")
def networks(files, tmp_path_factory):
    """Functions of uint8 images [n, h, w, 1 or 3] that give pool3, unbiased and biased logits: theirs, ours."""
    extractor = FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased", "logits"], str(files["old"]))

    def theirs(images):
        planes = torch.tensor(np.broadcast_to(images, (*images.shape[:3], 3)).transpose(0, 3, 1, 2).copy())
        return [output.numpy() for output in extractor(planes)]

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DDIM_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        params = {layout: inception_variables(str(path)).params for layout, path in files.items()}
    jax.tree.map(np.testing.assert_array_equal, params["zip"], params["old"])
    apply = jax.jit(Inception().apply)

    def ours(images):
        features = apply({"params": params["old"]}, resize(images, "tf1"))
        return [np.asarray(output) for output in (features.pool3, features.logits_unbiased, features.logits)]

    return theirs, ours


def random_images(n, height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("layout", ["zip", "old"])
def test_weights_are_read_as_torch_reads_them(files, layout):
    theirs = torch.load(files[layout], weights_only=True)
    ours = read_torch_file(files[layout])
    assert list(ours) == list(theirs) and len(ours) == 566
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value.numpy())


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (299, 340, 3)])
def test_features_and_logits(networks, shape):
    theirs, ours = networks
    images = random_images(2, *shape)
    for found, expected in zip(ours(images), theirs(images), strict=True):
        assert found.shape == expected.shape and 0.1 < expected.std() < 10
        # Relative to the spread over images and features: single values can be near zero.
        assert np.abs(found - expected).max() < 1e-4 * expected.std()
        assert np.abs(expected[0] - expected[1]).max() > 1e-2 * expected.std()


@pytest.mark.parametrize(
    "shape", [(8, 8), (28, 28), (32, 32), (64, 64), (256, 256), (299, 299), (512, 512), (48, 80), (400, 180)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing(shape, channels):
    from PIL import Image

    images = random_images(2, *shape, channels)
    planes = torch.tensor(images).permute(0, 3, 1, 2).float()
    pillow = [
        [np.asarray(Image.fromarray(plane).resize((299, 299), Image.Resampling.BICUBIC)) for plane in image]
        for image in planes.numpy()
    ]
    halfway = torch.nn.functional.interpolate(planes / 255, (299, 299), mode="bilinear", align_corners=False)
    expected = {
        "tf1": (interpolate_bilinear_2d_like_tensorflow1x(planes, (299, 299), align_corners=False).numpy() - 128) / 128,
        "pytorch": 2 * halfway.numpy() - 1,
        "clean": (np.clip(pillow, 0, 255) - 128) / 128,
    }
    for protocol, values in expected.items():
        ours = np.asarray(resize(images, protocol)).transpose(0, 3, 1, 2)
        # float32 has 24 bits: a few last ones of a grey level, twice rounded. PyTorch also rounds the position of a
        # pixel, up to 512, once or twice, which depends on its version.
        difference = float(np.abs(ours - np.broadcast_to(values, ours.shape)).max())
        assert difference < (2e-5 if protocol == "pytorch" else 1e-6), protocol
