"""Extractors of features, and the sets of images that they are given."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import names
from ddim_jax.config import Config, DataConfig, EvalConfig
from ddim_jax.errors import UserError
from ddim_jax.images import save_png
from ddim_jax.measuring import extractors
from ddim_jax.measuring.extractors import (
    components_extractor,
    make_extractor,
    pixels_extractor,
    principal_components,
)
from ddim_jax.measuring.image_sets import open_image_set, spread_indices
from ddim_jax.measuring.resize import resize
from ddim_jax.models.inception import Inception, InceptionFeatures
from ddim_jax.weights.inception import InceptionWeights

GREY = DataConfig(image_size=8, channels=1)


def pictures(num, height=8, width=8, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, channels), np.uint8)


def config(**settings):
    return Config(data=GREY, eval=EvalConfig(batch_size=2, **settings))


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


# --- pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 13, 16, 40])
def test_pixels_are_the_pixels(num):
    images = pictures(num, 4, 6, 3)
    extractor = pixels_extractor((4, 6, 3), 2)
    found = extractor(images)
    assert (extractor.name, extractor.dimension, extractor.images_per_call) == ("pixels", 72, 16)
    assert found.features.dtype == np.float32 and found.logits is None and found.spatial is None
    # Compilers divide by 255 in their own way.
    np.testing.assert_allclose(found.features, images.reshape(num, -1) / 255, rtol=2e-7)


def test_too_many_pixels_are_refused():
    assert pixels_extractor((64, 64, 1), 1).dimension == 4096
    with pytest.raises(UserError, match=r"12,288 values are too large .* use pixels_pca"):
        pixels_extractor((64, 64, 3), 1)


def test_images_that_are_not_rounded_are_refused():
    extractor = pixels_extractor((8, 8, 1), 1)
    for dtype in (np.float32, np.float64, np.int32):
        with pytest.raises(TypeError, match="must be uint8"):
            extractor(pictures(2).astype(dtype))
    with pytest.raises(ValueError, match=r"must be \[n, h, w, 1 or 3\]"):
        extractor(pictures(2)[..., 0])


def test_images_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"are 9x8 pixels with 3 channels, .* 'pixels' compares 8x8 pixels with 1 chan"):
        pixels_extractor((8, 8, 1), 1)(pictures(2, 8, 9, 3))


# --- principal components -----------------------------------------------------------------------


@pytest.mark.parametrize("num", [30, 300])
def test_components_are_those_of_the_singular_value_decomposition(num):
    pixels = pictures(num, 5, 5, 3).reshape(num, -1)
    mean, basis = principal_components(pixels, 20)
    values = pixels.astype(np.float64)
    np.testing.assert_allclose(mean, values.mean(0) / 255, rtol=1e-14)
    _, _, expected = np.linalg.svd(values - values.mean(0), full_matrices=False)
    np.testing.assert_allclose(basis.T @ basis, np.eye(20), atol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(basis * expected[:20].T, 0)), 1, atol=1e-12)
    assert (basis[np.abs(basis).argmax(0), np.arange(20)] > 0).all()


def test_components_do_not_depend_on_how_many_pixels_are_taken_at_a_time(monkeypatch):
    pixels = pictures(40, 6, 6).reshape(40, -1)
    whole = principal_components(pixels, 10)
    monkeypatch.setattr(extractors, "_MOST_PIXELS", 7)
    for ours, expected in zip(principal_components(pixels, 10), whole, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-13)


def test_features_are_uncorrelated_with_the_variances_in_order():
    images = open_image_set("", GREY, "train[:400]")
    extractor = components_extractor(images, (8, 8, 1), 6, 64)
    features = extractor(images.load(np.arange(len(images))).image).features
    covariance = np.cov(features, rowvar=False)
    variances = np.diag(covariance)
    assert (np.diff(variances) < 0).all()
    np.testing.assert_allclose(covariance, np.diag(variances), atol=1e-5 * variances[0])
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-5)
    assert extractor.name == "pixels_pca-6" and extractor.dimension == 6


def test_more_components_than_there_are_is_refused():
    # Nine images differ in eight directions, and some pixels of all digits are black.
    with pytest.raises(UserError, match=r"eval\.components=9: 9 images have 8 principal components; ask for no more"):
        principal_components(pictures(9).reshape(9, -1), 9)
    pixels = open_image_set("", GREY).load(np.arange(100)).image.reshape(100, -1).astype(float)
    rank = np.linalg.matrix_rank(pixels - pixels.mean(0))
    with pytest.raises(UserError, match=f"components=64: 100 images have {rank} principal components"):
        make_extractor(config(extractor="pixels_pca", reference_split="train[:100]"))


def test_components_are_known_by_the_images_they_are_found_from(tmp_path):
    paths = [save_npz(tmp_path / f"{seed}.npz", arr_0=pictures(20, seed=seed)) for seed in (0, 1)]
    made = [make_extractor(config(extractor="pixels_pca", components=4, reference=path)) for path in paths]
    assert made[0].provenance != made[1].provenance
    assert json.loads(json.dumps(made[0].provenance)) == made[0].provenance


# --- inception ----------------------------------------------------------------------------------


class SmallInception(nn.Module):
    """Has the outputs of the real one, from the mean of each channel."""

    @nn.compact
    def __call__(self, x):
        mean = x.mean((1, 2))
        return InceptionFeatures(
            jnp.tile(mean, (1, 683))[:, :2048], nn.Dense(1008, name="bias")(mean), nn.Dense(1008)(mean)
        )


@pytest.fixture
def small_inception(monkeypatch):
    params = SmallInception().init(jax.random.key(0), jnp.zeros((1, 299, 299, 3)))["params"]
    monkeypatch.setattr(extractors, "Inception", SmallInception)
    monkeypatch.setattr(extractors, "inception_variables", lambda path: InceptionWeights(params, f"hash of {path}"))
    return params


@pytest.mark.parametrize("protocol", ["tf1", "pytorch", "clean"])
def test_inception_sees_images_by_the_protocol(small_inception, protocol):
    extractor = make_extractor(config(extractor="inception", resize=protocol, inception_path="a.pth"))
    for channels in (1, 3):
        images = pictures(3, 10, 7, channels)
        found = extractor(images)
        expected = SmallInception().apply({"params": small_inception}, resize(images, protocol))
        np.testing.assert_allclose(found.features, expected.pool3, atol=1e-6)
        np.testing.assert_allclose(found.logits, expected.logits_unbiased, atol=1e-5)
    assert extractor.name == f"inception-{protocol}"
    assert extractor.provenance["weights_sha256"] == "hash of a.pth" and extractor.provenance["protocol"] == protocol
    assert (extractor.dimension, extractor.num_logits) == (2048, 1008)


@pytest.mark.slow
def test_the_real_inception_network(monkeypatch):
    params = jax.jit(Inception().init)(jax.random.key(0), jnp.zeros((1, 299, 299, 3)))["params"]
    monkeypatch.setattr(extractors, "inception_variables", lambda path: InceptionWeights(params, "random"))
    images = pictures(3, 32, 32, 3)
    found = make_extractor(Config(eval=EvalConfig(batch_size=1)), spatial=True)(images)

    def with_all_layers(x):
        return Inception().apply({"params": params}, x, capture_intermediates=True, mutable=["intermediates"])

    expected, inside = jax.jit(with_all_layers)(resize(images, "tf1"))
    np.testing.assert_allclose(found.features, expected.pool3, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.logits, expected.logits_unbiased, rtol=1e-4, atol=1e-5)
    # ADM's spatial features, from the block before by hand.
    before = inside["intermediates"]["Mixed_6c"]["__call__"][0]
    layer = params["Mixed_6d"]["branch1x1"]
    spatial = np.maximum(np.asarray(before) @ np.asarray(layer["kernel"])[0, 0, :, :7] + layer["bias"][:7], 0)
    assert found.spatial.shape == (3, 2023) and spatial.std() > 1e-3
    np.testing.assert_allclose(found.spatial, spatial.reshape(3, -1), rtol=1e-4, atol=1e-5)


# --- sets of images -----------------------------------------------------------------------------


def test_the_same_images_from_a_folder_and_from_files_of_arrays(tmp_path):
    images = pictures(12, 5, 7, 3)
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(images):
        save_png(folder / f"{number:06d}.png", image)
    paths = [str(folder), *(save_npz(tmp_path / f"{name}.npz", **{name: images}) for name in ("arr_0", "images"))]
    for path in paths:
        found = open_image_set(path, DataConfig())
        assert len(found) == 12
        index, image = found.load(np.array([7, 2, 11]))
        np.testing.assert_array_equal(index, [7, 2, 11])
        np.testing.assert_array_equal(image, images[[7, 2, 11]])
        batches = list(found.batches(np.array([3, 1, 4, 0, 5]), 2))
        assert [batch.index.tolist() for batch in batches] == [[3, 1], [4, 0], [5]]
        np.testing.assert_array_equal(np.concatenate([batch.image for batch in batches]), images[[3, 1, 4, 0, 5]])
        assert json.loads(json.dumps(found.identity)) == found.identity


def test_grey_images(tmp_path):
    images = pictures(3)
    found = open_image_set(save_npz(tmp_path / "grey.npz", arr_0=images[..., 0]), DataConfig())
    np.testing.assert_array_equal(found.load(np.arange(3)).image, images)
    folder = tmp_path / "images"
    folder.mkdir()
    save_png(folder / "a.png", images[0])
    save_png(folder / "b.png", np.repeat(images[1], 3, axis=-1))
    coloured = open_image_set(str(folder), DataConfig(channels=3)).load(np.arange(2)).image
    np.testing.assert_array_equal(coloured, np.repeat(images[:2], 3, axis=-1))
    with pytest.raises(UserError, match=r"b\.png is in colour, but data\.channels=1; set it to 3"):
        open_image_set(str(folder), GREY).load(np.arange(2))


def test_the_data_set_as_the_network_sees_it(tmp_path):
    for number, image in enumerate(pictures(4, 20, 30, 3)):
        save_png(tmp_path / f"{number}.png", image)
    data = DataConfig(source="folder", path=str(tmp_path), crop="center", resize="box", image_size=10)
    found = open_image_set("", data, "train[:3]")
    assert len(found) == 3 and found.load(np.arange(3)).image.shape == (3, 10, 10, 3)
    other = open_image_set("", data, "train[1:]")
    assert found.identity != other.identity and found.name != other.name
    with pytest.raises(UserError, match=r"3\.png is 31x20 pixels, the first image of the folder 30x20"):
        save_png(tmp_path / "3.png", pictures(1, 20, 31, 3)[0])
        open_image_set(str(tmp_path), data).load(np.arange(4))


def test_an_unusable_file_of_a_folder_is_named(tmp_path):
    for number, image in enumerate(pictures(2)):
        save_png(tmp_path / f"{number}.png", image)
    (tmp_path / "2.png").touch()
    found = open_image_set(str(tmp_path), GREY)
    with pytest.raises(UserError, match=rf"^{tmp_path}/2\.png: the file is empty$"):
        found.load(np.arange(3))
    (tmp_path / "0.png").write_text("no image")
    with pytest.raises(UserError, match=rf"^{tmp_path}/0\.png: not a PNG"):
        open_image_set(str(tmp_path), GREY)


def test_a_folder_without_images_is_named_by_its_key(tmp_path):
    for key in ("eval.images", "eval.reference"):
        with pytest.raises(UserError, match=rf"^{key}='{tmp_path}' has no images"):
            open_image_set(str(tmp_path), GREY, key=key)


def test_files_that_hold_no_images_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    wrong = {
        "missing.npz": r"^eval.images='.*missing.npz' does not exist; name a folder of images",
        "text.npz": "^eval.images: .*text.npz cannot be read: it is no whole .npz",
        "float.npz": r"holds float64 \[2, 4, 4, 3\]; images must be uint8 .*: scale them to 0 ... 255 and round them",
        "first.npz": r"holds uint8 \[2, 3, 4, 4\]; .*: channels come last: np.moveaxis\(images, 1, -1\)$",
        "four.npz": r"holds uint8 \[2, 4, 4, 4\]; .*: one channel, or three$",
        "none.npz": "has no images: expected an array arr_0 or images, found mu",
        "empty.npz": r"holds uint8 \[0, 4, 4, 3\]",
    }
    save_npz(tmp_path / "float.npz", arr_0=np.zeros((2, 4, 4, 3)))
    save_npz(tmp_path / "first.npz", arr_0=np.zeros((2, 3, 4, 4), np.uint8))
    save_npz(tmp_path / "four.npz", arr_0=np.zeros((2, 4, 4, 4), np.uint8))
    save_npz(tmp_path / "none.npz", mu=np.zeros(3))
    save_npz(tmp_path / "empty.npz", arr_0=np.zeros((0, 4, 4, 3), np.uint8))
    for name, message in wrong.items():
        with pytest.raises(UserError, match=message) as caught:
            open_image_set(str(tmp_path / name), DataConfig())
        assert "\n" not in str(caught.value)


def test_extractors_are_those_that_a_config_may_name():
    assert tuple(extractors.EXTRACTORS) == names.choices(names.ExtractorName)


def test_spread_indices_are_fair():
    for num, count in ((10, 3), (1797, 1000), (7, 7), (5, 9), (50_000, 10_000)):
        found = spread_indices(num, count)
        assert len(found) == min(num, count) and found[0] == 0
        gaps = np.diff(np.append(found, num))
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
