"""Weights of all forms, read, checked against the config, and made a workdir."""

import dataclasses
import json
import pathlib
import pickle
import shutil

import jax
import numpy as np
import pytest
from torch_files import write
from weight_files import (
    as_tensors,
    random_params,
    small_config,
    state_dict,
    write_ddim_checkpoint,
    write_diffusers,
    write_torch,
)

import ddim_jax
from ddim_jax import main
from ddim_jax.config import WeightsConfig
from ddim_jax.errors import UserError
from ddim_jax.jobs.import_weights import import_weights
from ddim_jax.jobs.sample import sample
from ddim_jax.jobs.train import train
from ddim_jax.weights.array_files import ArrayFile, write_npz, write_safetensors
from ddim_jax.weights.forms import read_weights
from ddim_jax.weights.published_networks import published_networks


def importing(path, ema=True, **changes):
    return dataclasses.replace(small_config(**changes), weights=WeightsConfig(path=str(path), ema=ema))


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- forms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["zip", "old"])
def test_a_state_dict_of_ddims_code(tmp_path, capsys, layout):
    config = small_config()
    path = write_torch(tmp_path / "ema_cifar10.ckpt", state_dict(config, "ddim"), layout)
    weights = read_weights(path, config)
    assert_equal(weights.variables["params"], random_params(config))
    assert (weights.averaged, weights.raw, weights.step, weights.config) == (None, None, 0, config)
    # The name says EMA, but names prove nothing.
    assert "does not say whether it holds averaged weights" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["zip", "old"])
def test_ddims_checkpoint_has_both_and_the_averages_are_taken(tmp_path, capsys, layout):
    config = small_config()
    path = write_ddim_checkpoint(tmp_path / "ckpt.pth", config, raw_seed=1, ema_seed=2, layout=layout)
    weights = read_weights(path, config)
    assert_equal(weights.variables["params"], random_params(config, 2))
    assert_equal(weights.raw["params"], random_params(config, 1))
    assert (weights.averaged, weights.step) == (True, 1234)
    assert f"took the EMA weights of {path}, step 1,234" in capsys.readouterr().err


def test_raw_weights_are_taken_with_a_warning(tmp_path, capsys):
    config = small_config()
    path = write_ddim_checkpoint(tmp_path / "ckpt.pth", config, raw_seed=1)
    assert_equal(read_weights(path, config, ema=False).variables["params"], random_params(config, 1))
    assert "warning: took the raw weights" in (said := capsys.readouterr().err)
    assert "FID 12.14 with the raw weights, 3.21 with" in said


def test_ddims_checkpoint_without_averages(tmp_path, capsys):
    config = small_config()
    state = state_dict(config, "ddim")
    tensors = {f"module.{name}": value for name, value in state.items()}
    write(tmp_path / "ckpt.pth", [as_tensors(tensors), {}, 0, 7], "zip")
    weights = read_weights(tmp_path / "ckpt.pth", config)
    assert (weights.averaged, weights.step) == (False, 7)
    assert "warning:" in (said := capsys.readouterr().err)
    assert "holds raw weights only, step 7" in said


def test_a_state_dict_in_safetensors(tmp_path):
    config = small_config()
    write_safetensors(tmp_path / "any.name", ArrayFile(state_dict(config, "ddim"), {}))
    assert_equal(read_weights(tmp_path / "any.name", config).variables["params"], random_params(config))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_floats_are_read_exactly(tmp_path, dtype):
    config = small_config()
    short = {name: value.astype(jax.numpy.dtype(dtype)) for name, value in state_dict(config, "ddim").items()}
    weights = read_weights(write_torch(tmp_path / "short.pt", short), config)
    expected = jax.tree.map(
        lambda value: value.astype(jax.numpy.dtype(dtype)).astype(np.float32), random_params(config)
    )
    assert_equal(weights.variables["params"], expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights.variables)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("file", ["safetensors", "bin"])
def test_a_folder_of_diffusers(tmp_path, file):
    config = small_config(model__num_classes=4)
    folder = write_diffusers(tmp_path / "pipeline", config, scheduler={"_class_name": "DDPMScheduler"})
    if file == "bin":
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        write_torch(folder / "unet" / "diffusion_pytorch_model.bin", state_dict(config, "diffusers"))
    for path in (folder, folder / "unet"):
        assert_equal(read_weights(path, config).variables["params"], random_params(config))


def test_a_folder_of_diffusers_training_has_both(tmp_path, capsys):
    config = small_config()
    folder = write_diffusers(tmp_path / "checkpoint-500", config, seed=1)
    averages = write_diffusers(
        tmp_path / "other", config, seed=2, unet={"decay": 0.9999, "optimization_step": 500, "power": 0.75}
    )
    (averages / "unet").rename(folder / "unet_ema")
    weights = read_weights(folder, config)
    assert_equal(weights.variables["params"], random_params(config, 2))
    assert_equal(weights.raw["params"], random_params(config, 1))
    assert (weights.averaged, weights.step) == (True, 500)
    assert_equal(read_weights(folder, config, ema=False).variables["params"], random_params(config, 1))
    assert "took the EMA weights" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module.", "model.unet."])
def test_names_with_wrappers_before_them(tmp_path, prefix):
    config = small_config()
    state = {f"{prefix}{name}": value for name, value in state_dict(config, "ddim").items()}
    weights = read_weights(write_torch(tmp_path / "model.pt", state), config)
    assert_equal(weights.variables["params"], random_params(config))


def test_the_count_of_an_averaged_model_is_no_parameter(tmp_path):
    config = small_config()
    state = {f"module.{name}": value for name, value in state_dict(config, "ddim").items()}
    path = write_torch(tmp_path / "model.pt", {"n_averaged": np.array(5), **state})
    assert_equal(read_weights(path, config).variables["params"], random_params(config))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_a_state_dict_in_a_wrapper(tmp_path, key):
    config = small_config()
    state = {f"model.{name}": value for name, value in state_dict(config, "ddim").items()}
    write(tmp_path / "last.ckpt", {"epoch": 3, "global_step": 500, key: as_tensors(state), "optimizer": {}}, "zip")
    weights = read_weights(tmp_path / "last.ckpt", config)
    assert_equal(weights.variables["params"], random_params(config))
    assert (weights.averaged, weights.step, weights.raw) == (None, 500, None)


def test_a_wrapper_with_averages_beside_the_raw_weights(tmp_path):
    config = small_config()
    states = {key: as_tensors(state_dict(config, "ddim", seed), f"{key}.") for seed, key in ((1, "model"), (2, "ema"))}
    write(tmp_path / "last.ckpt", {**states, "step": 7}, "zip")
    weights = read_weights(tmp_path / "last.ckpt", config)
    assert_equal(weights.variables["params"], random_params(config, 2))
    assert_equal(weights.raw["params"], random_params(config, 1))
    assert (weights.averaged, weights.step) == (True, 7)


def test_a_step_is_known_from_the_inner_of_two_wrappers(tmp_path):
    config = small_config()
    inner = {"state_dict": as_tensors(state_dict(config, "ddim")), "global_step": 7}
    write(tmp_path / "last.ckpt", {"model": inner, "optimizer": {}}, "zip")
    assert read_weights(tmp_path / "last.ckpt", config).step == 7


def test_a_wrapper_inside_of_a_folder_of_diffusers(tmp_path):
    config = small_config()
    write_diffusers(tmp_path, config)
    unet = tmp_path / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    file = unet / "diffusion_pytorch_model.bin"
    state = as_tensors(state_dict(config, "diffusers"), "_orig_mod.")
    write(file, {"state_dict": state, "epoch": 3}, "zip")
    assert_equal(read_weights(tmp_path, config).variables["params"], random_params(config))
    write(file, {"state_dict": state, "ema": state}, "zip")
    with pytest.raises(UserError, match=r"model.bin holds moving averages beside or instead of the weights"):
        read_weights(tmp_path, config)


def test_a_network_of_ddims_code_with_one_channel_a_group(tmp_path):
    config = small_config(model__channels=32, model__num_groups=32)
    path = write_torch(tmp_path / "narrow.ckpt", state_dict(config, "ddim"))
    pipe = ddim_jax.load_weights(path, config)
    assert_equal(pipe.params, random_params(config))
    with pytest.raises(UserError, match=r"model.channels=32: must be twice model.num_groups=32 or more"):
        train(config, tmp_path / "run")


def moved_to(folder, name, config):
    """A folder of diffusers whose weights have another name."""
    write_diffusers(folder, config)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / name)
    return folder


@pytest.mark.parametrize(("variant", "averaged"), [("fp16", None), ("non_ema", False)])
def test_a_variant_of_diffusers_weights(tmp_path, capsys, variant, averaged):
    config = small_config()
    folder = moved_to(tmp_path / "folder", f"diffusion_pytorch_model.{variant}.safetensors", config)
    weights = read_weights(folder, config)
    assert_equal(weights.variables["params"], random_params(config))
    assert weights.averaged == averaged
    assert f"took the variant {variant} of the weights" in capsys.readouterr().err
    shutil.copy(weights.file, weights.file.with_name("diffusion_pytorch_model.mine.safetensors"))
    with pytest.raises(UserError, match=f"several variants of its weights, .*{variant}.*: move all but one away"):
        read_weights(folder, config)


def sharded(folder, config, index, shard):
    """A folder of diffusers whose weights are in two files."""
    write_diffusers(folder, config)
    unet = folder / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    state = state_dict(config, "diffusers")
    names = sorted(state)
    where = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        write_safetensors(unet / shard.format(i), ArrayFile({name: state[name] for name in part}, {"format": "pt"}))
        where |= dict.fromkeys(part, shard.format(i))
    (unet / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return unet


@pytest.mark.parametrize("variant", ["", "fp16."])
def test_weights_of_diffusers_in_several_files(tmp_path, variant):
    config = small_config()
    index = f"diffusion_pytorch_model.safetensors.index.{variant}json"
    unet = sharded(tmp_path / "a", config, index, f"diffusion_pytorch_model-0000{{}}-of-00002.{variant}safetensors")
    assert_equal(read_weights(unet.parent, config).variables["params"], random_params(config))
    where = json.loads((unet / index).read_text())["weight_map"]
    for wrong, message in (
        ({"more": next(iter(where.values()))}, "does not hold more, as"),
        ({"more": "third.safetensors"}, "names third.safetensors, which is not there: download that too"),
        ({"more": "../other.safetensors"}, "names the file '../other.safetensors', which is none of"),
        ({"more": 3}, "has no weight_map"),
    ):
        (unet / index).write_text(json.dumps({"weight_map": {**where, **wrong}}))
        with pytest.raises(UserError, match=message):
            read_weights(unet.parent, config)


# --- the config ---------------------------------------------------------------------------------


def test_a_folder_of_diffusers_needs_no_config(tmp_path, capsys):
    config = small_config(model__num_classes=4, diffusion__num_levels=100, diffusion__beta_end=0.03)
    folder = write_diffusers(tmp_path / "pipeline", config)
    pipe = ddim_jax.load_weights(folder)
    assert pipe.config.diffusion == config.diffusion
    model = dataclasses.replace(pipe.config.model, dropout=config.model.dropout)
    # diffusers itself knows no label that means "no label".
    assert model == dataclasses.replace(config.model, num_classes=5, null_label=False)
    assert pipe.config.data.image_size == 8
    assert "num_class_embeds=5 is taken for as many classes" in capsys.readouterr().err
    assert pipe.sample(2, steps=2).shape == (2, 8, 8, 3)
    with pytest.raises(UserError, match=r"sample.guidance_scale=2.0: model.null_label=False"):
        pipe.sample(2, steps=2, guidance_scale=2.0)
    assert read_weights(folder, config).config == config
    assert 'num_class_embeds=5: the last is taken for "no label", as the config says' in capsys.readouterr().err
    with pytest.raises(UserError, match=r"model.null_label \(there False, here True\)"):
        read_weights(folder, small_config(model__num_classes=5))


def test_a_config_that_disagrees_with_the_folder_is_refused(tmp_path):
    folder = write_diffusers(tmp_path / "pipeline", small_config(), scheduler={"beta_end": 0.03})
    with pytest.raises(UserError) as refused:
        read_weights(folder, small_config(model__multipliers=(1, 3)))
    assert "model.multipliers (there (1, 2), here (1, 3)), diffusion.beta_end (there 0.03, here 0.02)" in str(
        refused.value
    )
    assert "pass --config.model.multipliers='(1,2)' --config.diffusion.beta_end=0.03," in str(refused.value)


def test_published_networks_are_recognised_by_their_shapes(tmp_path, monkeypatch, capsys):
    # The real ones have hundreds of megabytes: a small one in their place.
    config = small_config()
    small = published_networks()[0]._replace(config=config)
    monkeypatch.setattr("ddim_jax.weights.published_networks.published_networks", lambda: [small])
    path = write_torch(tmp_path / "model.ckpt", state_dict(config, "ddim"))
    pipe = ddim_jax.load_weights(path)
    assert pipe.config == config
    assert_equal(pipe.params, random_params(config))
    assert "is the network of CIFAR-10" in capsys.readouterr().err
    other = write_torch(tmp_path / "other.ckpt", state_dict(small_config(model__channels=32), "ddim"))
    with pytest.raises(UserError, match="none of the published networks: give the config"):
        ddim_jax.load_weights(other)
    # With the wrong config, the right one is named.
    with pytest.raises(UserError, match=r"it is the network of CIFAR-10, --config=configs/cifar10.py"):
        read_weights(path, small_config(model__channels=32))


def test_the_wrong_config_is_not_blamed_for_broken_weights(tmp_path, monkeypatch):
    config = small_config()
    small = published_networks()[0]._replace(config=config)
    monkeypatch.setattr("ddim_jax.weights.published_networks.published_networks", lambda: [small])
    state = state_dict(config, "ddim")
    state["conv_in.bias"] = np.full(16, np.inf, np.float32)
    with pytest.raises(UserError, match=r"not finite in conv_in/bias: no network can use them$"):
        read_weights(write_torch(tmp_path / "model.ckpt", state), config)


def test_the_published_folder_of_cifar10_is_known_not_to_be_averaged(tmp_path, monkeypatch, capsys):
    config = small_config()
    small = published_networks()[0]._replace(config=config)
    monkeypatch.setattr("ddim_jax.weights.forms.published_networks", lambda: [small])
    read_weights(write_diffusers(tmp_path / "folder", config), config)
    said = capsys.readouterr().err
    assert "warning:" in said
    assert "google/ddpm-cifar10-32 of the Hugging Face hub is not averaged" in said


def test_normalisation_must_be_known(tmp_path):
    config = dataclasses.replace(small_config(), data=dataclasses.replace(small_config().data, mean=(), std=()))
    path = write_torch(tmp_path / "model.ckpt", state_dict(config, "ddim"))
    with pytest.raises(UserError, match=r"data.mean is empty, but .*model.ckpt does not say"):
        read_weights(path, config)
    assert read_weights(write_diffusers(tmp_path / "folder", small_config()), config).config.data.mean == (0.5,)


# --- bad files ----------------------------------------------------------------------------------


def damaged_safetensors(path, change):
    write_safetensors(path, ArrayFile(state_dict(small_config(), "ddim"), {}))
    path.write_bytes(change(path.read_bytes()))
    return path


def folder_without(tmp_path, *names):
    folder = write_diffusers(tmp_path / "pipeline", small_config())
    for name in names:
        (folder / name).unlink()
    return folder


def contents(path, data):
    path.write_bytes(data)
    return path


class Foreign:
    """A class that a pickle may name."""


BAD = {
    "nowhere": (lambda tmp: tmp / "no.ckpt", "no.ckpt cannot be read: No such file"),
    "empty": (lambda tmp: contents(tmp / "empty.ckpt", b""), "empty.ckpt is empty"),
    "page": (lambda tmp: contents(tmp / "ckpt.pth", b"<!DOCTYPE html><html>Sign in</html>"), "is a web page"),
    "short": (
        lambda tmp: contents(
            tmp / "short.ckpt", write_torch(tmp / "whole", state_dict(small_config(), "ddim")).read_bytes()[:5000]
        ),
        "short.ckpt is damaged or cut short",
    ),
    "pickle": (lambda tmp: contents(tmp / "evil.pth", pickle.dumps(Foreign())), "evil.pth is not a PyTorch file"),
    "another": (
        lambda tmp: write_torch(tmp / "resnet.pth", {"layer1.0.conv1.weight": np.zeros((4, 3, 3, 3), np.float32)}),
        "holds no U-Net of DDIM's code, OpenAI's or diffusers: what it holds is called layer1.0.conv1.weight",
    ),
    "wider": (
        lambda tmp: write_torch(tmp / "wide.pth", state_dict(small_config(model__channels=32), "ddim")),
        "holds another network than model.* of the config describes: conv_in.bias (there (32,), here (16,))",
    ),
    "list": (lambda tmp: write(tmp / "list.pth", [1, 2, 3], "zip") or tmp / "list.pth", "list.pth is a list, but not"),
    "no state": (lambda tmp: write(tmp / "n.pth", 5, "zip") or tmp / "n.pth", "does not hold arrays by name, but int"),
    "bare diffusers": (
        lambda tmp: write_torch(tmp / "model.bin", state_dict(small_config(), "diffusers")),
        "whose weights mean nothing without config.json",
    ),
    "cut safetensors": (
        lambda tmp: damaged_safetensors(tmp / "cut.safetensors", lambda data: data[:-10]),
        "cut.safetensors is damaged or cut short",
    ),
    "lying safetensors": (
        lambda tmp: damaged_safetensors(
            tmp / "lie.safetensors", lambda data: data.replace(b'"shape":[16]', b'"shape":[96]', 1)
        ),
        "lie.safetensors is damaged or cut short",
    ),
    "long header": (
        lambda tmp: damaged_safetensors(tmp / "h.safetensors", lambda data: b"\xff" * 7 + b"\x00" + data[8:]),
        "h.safetensors is damaged or cut short",
    ),
    "cut npz": (
        lambda tmp: contents(tmp / "cut.npz", npz(tmp / "whole.npz").read_bytes()[:3000]),
        "cut.npz is damaged or cut short",
    ),
    "other npz": (lambda tmp: npz(tmp / "any.npz"), "holds no U-Net"),
    "bad description": (
        lambda tmp: npz(tmp / "any.npz", {"ddim_jax": '{"version": 1, "config": {"modle": {}}}'}),
        "has a description that cannot be used: config key 'modle' does not exist",
    ),
    "newer description": (lambda tmp: npz(tmp / "any.npz", {"ddim_jax": '{"version": 2}'}), "by a newer ddim_jax"),
    "no config.json": (lambda tmp: folder_without(tmp, "unet/config.json"), "unet has no config.json"),
    "no weights": (
        lambda tmp: folder_without(tmp, "unet/diffusion_pytorch_model.safetensors"),
        "unet has a config.json but no diffusion_pytorch_model.safetensors and no diffusion_pytorch_model.bin",
    ),
    "no folder of weights": (lambda tmp: tmp, "holds no weights: a folder of diffusers has config.json or unet/"),
    "not json": (
        lambda tmp: contents(folder_without(tmp) / "unet" / "config.json", b"{'a': 1}").parent.parent,
        "config.json cannot be used: no JSON: ",
    ),
    "odd settings": (
        lambda tmp: write_diffusers(tmp / "odd", small_config(), unet={"block_out_channels": ["a", "b"]}),
        "has settings of a kind that diffusers never writes",
    ),
    "text to image": (
        lambda tmp: contents(folder_without(tmp) / "model_index.json", b'{"unet": [], "vae": []}').parent,
        "is of a pipeline with vae",
    ),
    "averages only": (
        lambda tmp: write_diffusers(tmp / "ema", small_config(), unet={"optimization_step": 5}),
        "holds the moving averages alone, no raw weights",
    ),
}


def npz(path, texts=None):
    write_npz(path, ArrayFile({"a": np.arange(1000.0)}, texts or {}))
    return path


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_and_nothing_is_written(tmp_path, name):
    make, reason = BAD[name]
    (tmp_path / "files").mkdir()
    path = make(tmp_path / "files")
    with pytest.raises(UserError) as refused:
        import_weights(importing(path, ema=name != "averages only"), tmp_path / "run")
    assert reason in str(refused.value)
    assert not (tmp_path / "run").exists()


# --- the workdir --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """DDIM's checkpoint, imported."""
    folder = tmp_path_factory.mktemp("imported")
    path = write_ddim_checkpoint(folder / "ckpt.pth", small_config(), raw_seed=1, ema_seed=2)
    import_weights(importing(path), folder / "run")
    return folder / "run"


def test_the_workdir_is_an_ordinary_one(imported, tmp_path):
    config = small_config()
    pipe = ddim_jax.load(imported)
    assert (pipe.step, pipe.config.model) == (1234, config.model)
    assert_equal(pipe.params, random_params(config, 2))
    assert_equal(ddim_jax.load(imported, ema=False).params, random_params(config, 1))
    # A job on it draws what the file draws without a workdir.
    folder = sample(config, imported)
    assert len(list(folder.glob("0*.png"))) == 4
    images = ddim_jax.load_weights(imported.parent / "ckpt.pth", config).sample(4, steps=4)
    np.testing.assert_array_equal(pipe.sample(4, steps=4), images)
    record = json.loads((imported / "import" / "run.json").read_text())
    assert record["averaged"] is True
    assert record["file"] == str(imported.parent / "ckpt.pth")
    assert len(record["sha256"]) == 64


@pytest.mark.slow
def test_training_goes_on_from_the_imported_weights(tmp_path):
    path = write_ddim_checkpoint(tmp_path / "ckpt.pth", small_config(), raw_seed=1)
    # A step so small that hardly anything moves.
    changes = dict(train__steps=1235, train__batch_size=8, train__learning_rate=1e-6)
    import_weights(importing(path, **changes), tmp_path / "run")
    train(small_config(**changes), tmp_path / "run")
    pipe = ddim_jax.load(tmp_path / "run", ema=False)
    assert pipe.step == 1235
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), pipe.params, random_params(small_config(), 1))
    assert 0 < max(jax.tree.leaves(moved)) < 1e-5


def test_a_workdir_with_a_run_is_refused_and_left_alone(imported):
    before = sorted((path, path.stat().st_mtime_ns) for path in imported.rglob("*"))
    other = write_ddim_checkpoint(imported.parent / "other.pth", small_config(), raw_seed=5, ema_seed=6)
    with pytest.raises(UserError, match="holds a run already: choose another --workdir"):
        import_weights(importing(other), imported)
    changed = dataclasses.replace(small_config(), seed=7)
    with pytest.raises(UserError, match="holds a run of another config: seed"):
        import_weights(dataclasses.replace(changed, weights=importing(imported.parent / "ckpt.pth").weights), imported)
    # Of the same file the raw weights.
    with pytest.raises(UserError, match="holds a run already: choose another --workdir"):
        import_weights(importing(imported.parent / "ckpt.pth", ema=False), imported)
    # The same import is done already.
    import_weights(importing(imported.parent / "ckpt.pth"), imported)
    assert sorted((path, path.stat().st_mtime_ns) for path in imported.rglob("*")) == before
    with pytest.raises(UserError, match="is a workdir of ddim_jax already: use it as --workdir"):
        read_weights(imported, small_config())


def test_a_killed_import_is_not_taken_for_a_run(imported, tmp_path):
    shutil.copytree(imported / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match=r"has checkpoints without config.json"):
        import_weights(importing(imported.parent / "ckpt.pth"), tmp_path / "run")


def test_an_import_killed_at_any_moment_goes_on(imported, tmp_path):
    """Before its record, its checkpoint, its config, and before the record says that it is done."""
    for number in range(4):
        workdir = tmp_path / str(number)
        shutil.copytree(imported, workdir)
        record = json.loads((workdir / "import" / "run.json").read_text())
        del record["seconds"]
        (workdir / "import" / "run.json").write_text(json.dumps(record))
        if number < 3:
            (workdir / "config.json").unlink()
        if number == 1:
            shutil.rmtree(workdir / "checkpoints")
            (workdir / "checkpoints").mkdir()
        if number == 0:
            shutil.rmtree(workdir / "checkpoints")
            shutil.rmtree(workdir / "import")
        import_weights(importing(imported.parent / "ckpt.pth"), workdir)
        assert_equal(ddim_jax.load(workdir).params, ddim_jax.load(imported).params)
        assert "seconds" in json.loads((workdir / "import" / "run.json").read_text())
        assert (workdir / "config.json").read_bytes() == (imported / "config.json").read_bytes()


def test_a_failing_import_leaves_nothing(imported, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("ddim_jax.jobs.import_weights.prepare_for_training", fail)
    with pytest.raises(OSError, match="disk full"):
        import_weights(importing(imported.parent / "ckpt.pth"), tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_raw_weights_alone_are_both(tmp_path):
    path = write_ddim_checkpoint(tmp_path / "ckpt.pth", small_config(), raw_seed=1, ema_seed=2)
    import_weights(importing(path, ema=False), tmp_path / "run")
    assert_equal(ddim_jax.load(tmp_path / "run").params, random_params(small_config(), 1))


def test_the_path_must_be_given(tmp_path):
    with pytest.raises(UserError, match=r"weights.path is empty"):
        import_weights(small_config(), tmp_path / "run")


def test_the_commands(tmp_path, capsys):
    config = small_config()
    path = write_diffusers(tmp_path / "pipeline", config)
    file = pathlib.Path(__file__).parents[2] / "configs" / "cifar10.py"
    flags = [f"--config={file}:tiny", "--config.model.channels=16", "--config.model.num_groups=4"]
    flags += ["--config.model.multipliers=(1,2)", f"--workdir={tmp_path / 'run'}"]
    command = ["main", *flags, "--mode=import", f"--config.weights.path={path}"]
    # What the tiny variant says otherwise is refused in one line, which says what to pass.
    assert main.run([*command, "--config.diffusion.num_levels=50"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("pass --config.diffusion.num_levels=1000, here and to later jobs")
    assert not (tmp_path / "run").exists()
    assert main.run(command) == 0
    assert main.run(["main", *flags, "--mode=export", "--config.weights.format=safetensors"]) == 0
    (exported,) = (tmp_path / "run" / "export").iterdir()
    assert_equal(ddim_jax.load_weights(exported).params, random_params(config))
