"""Weights of Vision Transformers: names, shapes, positions, files and what is refused."""

import math

import numpy as np
import pytest
from flax import traverse_util
from small_transformers import SMALL_CLIP, SMALL_DINOV2, clip_state, dinov2_state, random_parameters
from weight_files import write_torch

from ddim_jax.errors import UserError
from ddim_jax.weights import vision_transformers as weights
from ddim_jax.weights.array_files import ArrayFile, write_safetensors
from ddim_jax.weights.download import sha256_of_file


@pytest.fixture(autouse=True)
def small_published(monkeypatch):
    """Puts small networks in place of the published ones."""
    small = {"dinov2": SMALL_DINOV2, "clip": SMALL_CLIP}
    rows = {name: weights.TRANSFORMERS[name]._replace(network=network) for name, network in small.items()}
    monkeypatch.setattr(weights, "TRANSFORMERS", rows)


STATES = {"dinov2": (SMALL_DINOV2, dinov2_state), "clip": (SMALL_CLIP, clip_state)}


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


@pytest.mark.parametrize("name", STATES)
def test_parameters_are_those_of_the_file(name):
    network, state_of = STATES[name]
    parameters = random_parameters(network)
    found = flat(weights.convert_state(state_of(network, parameters), network, "a.pth"))
    assert found.keys() == parameters.keys()
    for key, value in parameters.items():
        assert found[key].dtype == np.float32
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_the_published_files_have_as_many_bytes_as_their_numbers_take():
    sizes = {"dinov2_vits14": 88_283_115, "dinov2_vitb14": 346_378_731, "dinov2": 1_217_586_395}
    for name, size in sizes.items():
        network = PUBLISHED[name].network
        shapes = weights.our_shapes(network)
        # Positions of 37x37 places, and a token for places that training hides.
        numbers = sum(map(math.prod, shapes.values())) + (37**2 - 16**2 + 1) * network.width
        assert 0 < size - 4 * numbers < 1e-3 * size, name


PUBLISHED = dict(weights.TRANSFORMERS)


def test_positions_are_read_where_the_published_code_reads_them():
    # What is linear in the place nearly stays so under PyTorch's cubic, but at the border.
    rows, columns = np.mgrid[:37, :37].astype(float)
    given = np.concatenate([[[-1.0, -2.0]], np.stack([rows, 3 * columns], axis=-1).reshape(-1, 2)])
    found = weights.positions_for(given, 16)
    np.testing.assert_array_equal(found[0], given[0])
    plane = found[1:].reshape(16, 16, 2)
    # 16.1 and not 16 places: the last of them is read 0.2 places before the middle of what it would stand for.
    places = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    np.testing.assert_allclose(plane[1:-1, 8, 0], places[1:-1], rtol=0, atol=0.06)
    np.testing.assert_allclose(plane[8, 1:-1, 1], 3 * places[1:-1], rtol=0, atol=0.18)
    np.testing.assert_array_equal(weights.positions_for(given, 37), given)


def test_positions_of_another_grid_are_resized():
    parameters = random_parameters(SMALL_DINOV2)
    positions = np.random.default_rng(1).standard_normal((1 + 9**2, 16)).astype(np.float32)
    state = dinov2_state(SMALL_DINOV2, parameters, positions)
    found = weights.convert_state(state, SMALL_DINOV2, "a.pth")["positions"]
    expected = weights.positions_for(positions.astype(np.float64), 4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(state["pos_embed"][0], positions)


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_both_kinds(name, suffix, tmp_path, capsys):
    network, state_of = STATES[name]
    parameters = random_parameters(network)
    path = tmp_path / f"mine.{suffix}"
    state = {key: np.ascontiguousarray(value) for key, value in state_of(network, parameters).items()}
    if suffix == "pth":
        write_torch(path, state)
    else:
        write_safetensors(path, ArrayFile(state, {}))
    found = weights.transformer_variables(name, str(path))
    assert found.sha256 == sha256_of_file(path)
    assert "is not the published file" in capsys.readouterr().err
    for key, value in parameters.items():
        np.testing.assert_array_equal(flat(found.params)[key], value)


def test_the_published_file_is_downloaded_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / "cache"))
    path = write_torch(tmp_path / "published.pth", dinov2_state(SMALL_DINOV2, random_parameters(SMALL_DINOV2)))
    row = weights.TRANSFORMERS["dinov2"]
    file = row.file._replace(url=path.as_uri(), sha256=sha256_of_file(path))
    monkeypatch.setitem(weights.TRANSFORMERS, "dinov2", row._replace(file=file))
    first = weights.transformer_variables("dinov2")
    assert first.sha256 == file.sha256
    path.unlink()
    assert weights.transformer_variables("dinov2").sha256 == file.sha256
    assert [one.name for one in (tmp_path / "cache" / "dinov2").glob("*.pth")] == ["dinov2_vitl14_pretrain.pth"]
    assert "warning" not in capsys.readouterr().err


def test_a_download_of_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / "cache"))
    path = write_torch(tmp_path / "other.pth", clip_state(SMALL_CLIP, random_parameters(SMALL_CLIP)))
    row = weights.TRANSFORMERS["clip"]
    monkeypatch.setitem(weights.TRANSFORMERS, "clip", row._replace(file=row.file._replace(url=path.as_uri())))
    with pytest.raises(UserError, match=r"SHA-256 .* eval\.extractor_path") as caught:
        weights.transformer_variables("clip")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"norm.bias": None}, r"norm\.bias \(there none, here \(16,\)\)"),
        ({"register_tokens": np.zeros((1, 4, 16))}, r"register_tokens \(there \(1, 4, 16\), here none\)"),
        ({"blocks.2.norm1.bias": np.zeros(16)}, r"blocks\.2\.norm1\.bias"),
        *(({"pos_embed": np.zeros(shape)}, r"pos_embed") for shape in ((1, 18, 16), (1, 0, 16), (0, 17, 16), (17, 16))),
        ({"blocks.0.mlp.fc1.weight": np.zeros((32, 16))}, r"blocks\.0\.mlp\.fc1\.weight \(there \(32, 16\)"),
        ({"norm.weight": np.full(16, np.nan)}, r"not finite in norm\.weight"),
        ({"cls_token": None}, r"no network of DINOv2 or CLIP"),
    ],
)
def test_what_does_not_fit_is_named(change, named):
    state = {**dinov2_state(SMALL_DINOV2, random_parameters(SMALL_DINOV2)), **change}
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(UserError, match=named) as caught:
        weights.convert_state(state, SMALL_DINOV2, "a.pth")
    assert "eval.extractor_path: a.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_extractor_are_named():
    state = clip_state(SMALL_CLIP, random_parameters(SMALL_CLIP))
    with pytest.raises(UserError, match=r"a\.bin holds another network than eval\.extractor names"):
        weights.convert_state(state, SMALL_DINOV2, "a.bin")


def test_a_given_file_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"eval\.extractor_path: .*absent\.pth cannot be read: No such file"):
        weights.transformer_variables("dinov2", str(tmp_path / "absent.pth"))
