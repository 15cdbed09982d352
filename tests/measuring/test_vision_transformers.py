"""DINOv2 and CLIP as extractors, small and with random weights."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from small_transformers import SMALL_CLIP, SMALL_DINOV2, dinov2_state, random_parameters
from weight_files import write_torch

from ddim_jax import names
from ddim_jax.config import Config, DataConfig, EvalConfig
from ddim_jax.errors import UserError
from ddim_jax.measuring import vision_transformers
from ddim_jax.measuring.extractors import EXTRACTORS, make_extractor
from ddim_jax.measuring.reference import check_provenance
from ddim_jax.measuring.reference_file import Reference
from ddim_jax.measuring.vision_transformers import CMMD, DGM_EVAL, PROTOCOLS, prepared
from ddim_jax.weights import vision_transformers as weights
from ddim_jax.weights.download import sha256_of_file


def pictures(num, height=32, width=32, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, channels), np.uint8)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Puts a small network in place of DINOv2; returns the file of its weights."""
    row = weights.TRANSFORMERS["dinov2"]._replace(network=SMALL_DINOV2)
    monkeypatch.setitem(weights.TRANSFORMERS, "dinov2", row)
    return write_torch(tmp_path / "dinov2.pth", dinov2_state(SMALL_DINOV2, random_parameters(SMALL_DINOV2)))


def config(path, data=DataConfig(image_size=32), **settings):  # noqa: B008
    return Config(data=data, eval=EvalConfig(extractor="dinov2", extractor_path=str(path), **settings))


def test_every_network_has_a_protocol_and_a_name():
    assert PROTOCOLS.keys() == weights.TRANSFORMERS.keys() <= set(names.choices(names.ExtractorName))
    assert PROTOCOLS.keys() <= EXTRACTORS.keys()


@pytest.mark.parametrize("shape", [(32, 32), (50, 20), (20, 50), (28, 28)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_prepared_as_pillow_does(shape, channels):
    images = pictures(2, *shape, channels)
    rgb = np.broadcast_to(images, (2, *shape, 3))
    for protocol in (DGM_EVAL, CMMD):
        expected = []
        for image in rgb:
            picture = Image.fromarray(image)
            if protocol is CMMD:
                height, width = shape
                least = min(shape)
                left, top = (width - least) // 2, (height - least) // 2
                picture = picture.crop((left, top, left + least, top + least))
            # In two steps: Pillow 13 takes columns first where the height shrinks much.
            picture = picture.resize((28, picture.height), Image.Resampling.BICUBIC)
            picture = picture.resize((28, 28), Image.Resampling.BICUBIC)
            expected.append((np.asarray(picture) / 255 - protocol.mean) / protocol.deviation)
        found = np.asarray(prepared(images, 28, protocol))
        assert found.shape == (2, 28, 28, 3)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("num", [1, 16, 21])
def test_features_do_not_depend_on_the_batch_or_devices(num, small):
    images = pictures(num)
    found = make_extractor(config(small, batch_size=2))(images)
    assert found.features.shape == (num, 16) and found.features.dtype == np.float32
    assert found.logits is None and found.spatial is None
    alone = make_extractor(config(small, batch_size=1))
    for i in range(0, num, 7):
        np.testing.assert_allclose(alone(images[i : i + 1]).features[0], found.features[i], rtol=0, atol=2e-5)


def test_grey_images_are_three_equal_channels(small):
    extractor = make_extractor(config(small))
    grey = pictures(3, channels=1)
    np.testing.assert_array_equal(extractor(grey).features, extractor(np.repeat(grey, 3, axis=-1)).features)


def test_what_makes_figures_comparable(small):
    extractor = make_extractor(config(small))
    assert (extractor.prefix, extractor.name, extractor.dimension) == ("dinov2", "dinov2", 16)
    assert extractor.provenance == {
        "name": "dinov2", "protocol": "dgm-eval", "side": 28, "weights_sha256": sha256_of_file(small),
    }  # fmt: skip
    own = Reference(np.zeros(16), np.eye(16), 100, None, {"extractor": extractor.provenance})
    check_provenance(own, extractor, "own.npz")
    for key, value in (("protocol", "torch-fidelity"), ("weights_sha256", "0" * 64), ("name", "dinov2_vitb14")):
        other = own._replace(provenance={"extractor": {**extractor.provenance, key: value}})
        with pytest.raises(UserError, match=rf"cannot be compared with extractor 'dinov2': it was made with {key}"):
            check_provenance(other, extractor, "other.npz")


def test_other_images_than_pictures_are_shown_as_people_see_them(small, capsys):
    data = DataConfig(image_size=32, channels=5, dtype="float32", range=(0.0, 1.0), shown_channels=(0, 2, 4))
    extractor = make_extractor(config(small, data))
    assert "dinov2 sees pictures of images of 5 channels" in capsys.readouterr().err
    assert extractor.provenance["pictures"]["shown_channels"] == [0, 2, 4]
    images = pictures(2, channels=5)
    plain = dataclasses.replace(make_extractor(config(small)))
    found = extractor((images / 255).astype(np.float32)).features
    np.testing.assert_allclose(found, plain(images[..., ::2]).features, rtol=0, atol=1e-5)


def test_embeddings_of_clip_have_length_1():
    from flax import traverse_util

    params = traverse_util.unflatten_dict(random_parameters(SMALL_CLIP), sep="/")
    found = weights.TransformerWeights(params, "0" * 64)
    extractor = vision_transformers.extractor_of("clip", SMALL_CLIP, found, CMMD, 2)
    features = extractor(pictures(5)).features
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
    assert extractor.dimension == 6 and np.abs(features[0] - features[1]).max() > 1e-2
