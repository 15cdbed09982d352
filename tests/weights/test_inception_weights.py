"""The Inception network's structure, and its weights from file to parameters."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_files import tensor, write

from ddim_jax.errors import UserError
from ddim_jax.models import inception as network
from ddim_jax.models import parameter_count
from ddim_jax.weights import inception as weights

SMALL = {
    "Conv2d_1a_3x3/kernel": (3, 2, 3, 4),
    "Conv2d_1a_3x3/bias": (4,),
    "Mixed_5b/branch1x1/kernel": (1, 1, 4, 5),
    "Mixed_5b/branch1x1/bias": (5,),
    "fc/kernel": (5, 7),
    "fc_bias": (7,),
}


@pytest.fixture
def small_network(monkeypatch, tmp_path):
    """A network of two convolutions, and an empty cache."""
    monkeypatch.setattr(weights, "_our_shapes", lambda: SMALL)
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / "cache"))


def random_state():
    """A state dict of the small network in PyTorch's names and layout."""
    rng = np.random.default_rng(0)
    state = {}
    for module, shape in (("Conv2d_1a_3x3", (4, 3, 3, 2)), ("Mixed_5b.branch1x1", (5, 4, 1, 1))):
        state[f"{module}.conv.weight"] = rng.standard_normal(shape).astype(np.float32)
        for name in ("weight", "bias", "running_mean"):
            state[f"{module}.bn.{name}"] = rng.standard_normal(shape[0]).astype(np.float32)
        state[f"{module}.bn.running_var"] = rng.uniform(0.1, 2, shape[0]).astype(np.float32)
        state[f"{module}.bn.num_batches_tracked"] = np.array(0)
    state["fc.weight"] = rng.standard_normal((7, 5)).astype(np.float32)
    state["fc.bias"] = rng.standard_normal(7).astype(np.float32)
    return state


def save_state(path, state):
    kinds = {np.dtype(np.float32): "FloatStorage", np.dtype(np.int64): "LongStorage"}
    write(path, {name: tensor(name, kinds[array.dtype], array) for name, array in state.items()}, "old")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- the network --------------------------------------------------------------------------------


def test_shapes_of_what_the_network_says():
    image = jax.ShapeDtypeStruct((5, 299, 299, 3), jnp.float32)
    features, variables = jax.eval_shape(network.Inception().init_with_output, jax.random.key(0), image)
    assert jax.tree.map(lambda leaf: leaf.shape, features) == ((5, 2048), (5, 1008), (5, 1008))
    # torch-fidelity's network has 23,850,960 parameters, of which each batch norm's scale is part of a kernel here.
    norms = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 1) - 1008
    assert parameter_count(variables["params"]) + norms == 23_850_960


def test_blocks_keep_halve_and_widen_as_published():
    x = jax.ShapeDtypeStruct((1, 35, 35, 192), jnp.float32)
    shapes = []
    for block in (
        *(network.Fine(32), network.Fine(64), network.FineToMiddle(), network.Middle(128), network.MiddleToCoarse()),
        network.Coarse("maximum"),
    ):
        x, _ = jax.eval_shape(block.init_with_output, jax.random.key(0), x)
        shapes.append(x.shape[1:])
    assert shapes == [(35, 35, 256), (35, 35, 288), (17, 17, 768), (17, 17, 768), (8, 8, 1280), (8, 8, 2048)]


def test_average_pooling_counts_no_padding():
    np.testing.assert_allclose(network._average(jnp.ones((1, 4, 5, 2))), 1, rtol=1e-6)
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    assert network._average(jnp.asarray(x))[0, 0, 0, 0] == np.mean(x[0, :2, :2])


def test_the_last_block_pools_by_maximum():
    """The pooled branch sees the largest of nine pixels, or the mean of the nine."""
    x = jnp.zeros((1, 8, 8, 3)).at[0, 4, 4].set(9.0)
    for pool, value in (("average", 1.0), ("maximum", 9.0)):
        block = network.Coarse(pool)
        shapes = jax.eval_shape(block.init, jax.random.key(0), x)
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)["params"]
        params["branch_pool"]["kernel"] = params["branch_pool"]["kernel"].at[..., 0, :].set(1.0)
        pooled = block.apply({"params": params}, x)[0, :, :, -192:]
        expected = np.zeros((8, 8))
        expected[3:6, 3:6] = value
        np.testing.assert_allclose(pooled, np.broadcast_to(expected[..., None], pooled.shape), rtol=1e-6)


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="299"):
        jax.eval_shape(network.Inception().init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))


# --- conversion ---------------------------------------------------------------------------------


def test_batch_norm_is_part_of_the_convolution(small_network):
    state = random_state()
    params = weights.convert_state(state, "weights.pth")
    layer, bn = params["Conv2d_1a_3x3"], "Conv2d_1a_3x3.bn."
    patch = np.random.default_rng(1).standard_normal((3, 2, 3))
    convolved = np.einsum("hwi,oihw->o", patch, state["Conv2d_1a_3x3.conv.weight"].astype(np.float64))
    normed = (convolved - state[bn + "running_mean"]) / np.sqrt(state[bn + "running_var"] + np.float64(1e-3))
    expected = normed * state[bn + "weight"] + state[bn + "bias"]
    found = np.einsum("hwi,hwio->o", patch, layer["kernel"].astype(np.float64)) + layer["bias"]
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(params["fc"]["kernel"], state["fc.weight"].T)
    np.testing.assert_array_equal(params["fc_bias"], state["fc.bias"])
    assert params["Mixed_5b"]["branch1x1"]["kernel"].shape == (1, 1, 4, 5)


def test_every_array_is_accounted_for(small_network):
    whole = random_state()
    for name in whole:
        state = {other: array for other, array in whole.items() if other != name}
        if name.endswith("num_batches_tracked"):
            weights.convert_state(state, "weights.pth")
            continue
        with pytest.raises(UserError, match=rf"^weights.pth lacks 1 arrays: {name};"):
            weights.convert_state(state, "weights.pth")
        with pytest.raises(UserError, match=rf"in another shape 1 arrays: {name};"):
            weights.convert_state({**whole, name: whole[name][..., None]}, "weights.pth")
        with pytest.raises(UserError, match=rf"not finite in 1 arrays: {name};"):
            weights.convert_state({**whole, name: np.full_like(whole[name], np.nan)}, "weights.pth")
    with pytest.raises(UserError, match=r"beyond .* 7 arrays: x0, x1, x2, x3, x4 and 2 more;"):
        weights.convert_state({**whole, **{f"x{i}": np.zeros(1) for i in range(7)}}, "weights.pth")
    with pytest.raises(UserError, match=r"in another shape 1 arrays: fc\.bias;"):
        weights.convert_state({**whole, "fc.bias": "text"}, "weights.pth")
    with pytest.raises(UserError, match="state dict"):
        weights.convert_state([whole], "weights.pth")


def test_names_and_shapes_of_the_whole_network():
    shapes = weights.inception_state_shapes()
    assert len(shapes) == 94 * 5 + 2
    assert shapes["Mixed_6b.branch7x7_2.conv.weight"] == (128, 128, 1, 7)
    assert shapes["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)
    assert shapes["fc.weight"] == (1008, 2048)


# --- files --------------------------------------------------------------------------------------


def test_a_given_file_is_converted_once_and_known_by_its_hash(small_network, tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.pth"
    sha256 = save_state(path, random_state())
    first = weights.inception_variables(str(path))
    assert first.sha256 == sha256
    assert_equal(first.params, weights.convert_state(random_state(), ""))
    assert "is not the published Inception network" in capsys.readouterr().err

    def never(file):
        raise AssertionError(f"{file} was read again")

    with monkeypatch.context() as patched:
        patched.setattr(weights, "read_torch_file", never)
        again = weights.inception_variables(str(path))
    assert_equal(again.params, first.params)

    kept = tmp_path / "cache" / "inception" / f"{sha256}.npz"
    kept.write_bytes(kept.read_bytes()[:100])
    assert_equal(weights.inception_variables(str(path)).params, first.params)
    assert [file.name for file in kept.parent.iterdir()] == [kept.name]


def test_a_cache_that_cannot_be_written_hinders_nobody(small_network, tmp_path, monkeypatch):
    path = tmp_path / "mine.pth"
    save_state(path, random_state())
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / "file"))
    assert_equal(weights.inception_variables(str(path)).params, weights.convert_state(random_state(), ""))


def test_the_published_file_is_downloaded_once(small_network, tmp_path, monkeypatch, capsys):
    path = tmp_path / "published.pth"
    sha256 = save_state(path, random_state())
    monkeypatch.setattr(weights, "PUBLISHED", weights.PUBLISHED._replace(url=path.as_uri(), sha256=sha256))
    first = weights.inception_variables()
    assert first.sha256 == sha256
    assert_equal(first.params, weights.convert_state(random_state(), ""))
    assert weights.inception_variables(str(path)).sha256 == first.sha256
    assert "warning" not in capsys.readouterr().err

    path.unlink()
    folder = tmp_path / "cache" / "inception"
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        [f"{first.sha256}.npz", "pt_inception-2015-12-05-6726825d.pth"]
    )
    assert_equal(weights.inception_variables().params, first.params)
    (folder / f"{first.sha256}.npz").unlink()
    assert_equal(weights.inception_variables().params, first.params)


def test_a_download_that_is_not_what_was_published_leaves_nothing(small_network, tmp_path, monkeypatch):
    path = tmp_path / "other.pth"
    save_state(path, random_state())
    monkeypatch.setattr(weights, "PUBLISHED", weights.PUBLISHED._replace(url=path.as_uri()))
    with pytest.raises(UserError, match=r"SHA-256 .* eval\.inception_path"):
        weights.inception_variables()
    assert list((tmp_path / "cache" / "inception").iterdir()) == []


def test_without_network_one_line_says_how_to_give_a_file(small_network, tmp_path, monkeypatch):
    absent = (tmp_path / "absent.pth").as_uri()
    monkeypatch.setattr(weights, "PUBLISHED", weights.PUBLISHED._replace(url=absent))
    with pytest.raises(UserError, match=r"could not be saved .* eval\.inception_path") as caught:
        weights.inception_variables()
    assert "\n" not in str(caught.value)


def test_a_given_file_that_does_not_exist(small_network, tmp_path):
    with pytest.raises(UserError, match=r"eval\.inception_path: .*absent\.pth cannot be read: No such file"):
        weights.inception_variables(str(tmp_path / "absent.pth"))
