"""Our weights written for others, and read back."""

import contextlib
import dataclasses
import json
import pathlib
import re

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from weight_files import random_params, small_config, write_ddim_checkpoint

import ddim_jax
from ddim_jax.config import WeightsConfig, default_config, from_config_dict, recipes
from ddim_jax.errors import UserError
from ddim_jax.jobs.export import export
from ddim_jax.jobs.import_weights import import_weights
from ddim_jax.models import build_model
from ddim_jax.names import WeightsFormat, choices
from ddim_jax.training.checkpoint import Checkpoints
from ddim_jax.training.state import init_state, make_optimizer
from ddim_jax.weights.array_files import ArrayFile, read_npz, read_safetensors, write_npz, write_safetensors
from ddim_jax.weights.description import shared_config
from ddim_jax.weights.export_formats import EXPORT_FORMATS, read_description
from ddim_jax.weights.forms import read_weights
from ddim_jax.workdir import checkpoint_dir, prepare_for_training


def with_weights(config=None, **settings):
    return dataclasses.replace(config or small_config(), weights=WeightsConfig(**settings))


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir with weights of seed 2 averaged, of seed 1 raw."""
    folder = tmp_path_factory.mktemp("export")
    path = write_ddim_checkpoint(folder / "ckpt.pth", small_config(), raw_seed=1, ema_seed=2)
    import_weights(with_weights(path=str(path)), folder / "run")
    return folder / "run"


# --- files of arrays ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_files_of_arrays_keep_values_types_and_texts(tmp_path, suffix):
    rng = np.random.default_rng(0)
    arrays = {
        f"a/{dtype}": np.asarray(rng.standard_normal((3, 4)), jax.numpy.dtype(dtype)).T
        for dtype in ("float32", "bfloat16", "float16")
    }
    path = tmp_path / f"arrays.{suffix}"
    write, read = (write_npz, read_npz) if suffix == "npz" else (write_safetensors, read_safetensors)
    write(path, ArrayFile(arrays, {"key": "Größe\n2"}))
    back = read(path)
    assert back.texts == {"key": "Größe\n2"}
    assert {name: array.dtype for name, array in back.arrays.items()} == {n: a.dtype for n, a in arrays.items()}
    assert_equal(back.arrays, arrays)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_every_format_that_a_config_can_name_has_its_writer():
    assert tuple(EXPORT_FORMATS) == choices(WeightsFormat)


# --- there and back -----------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "ema"), [*((form, True) for form in EXPORT_FORMATS), ("npz", False)])
def test_float32_comes_back_bit_by_bit(workdir, tmp_path, capsys, form, ema):
    suffix = "" if form == "diffusers" else f".{form}"
    out = export(with_weights(format=form, ema=ema, out=str(tmp_path / f"out{suffix}")), workdir)
    assert [entry.name for entry in tmp_path.iterdir()] == [out.name]
    assert ("warning: exporting the raw weights" in capsys.readouterr().err) == (not ema)
    weights = read_weights(out)
    assert (weights.averaged, weights.step) == (ema, 1234)
    assert_equal(weights.variables["params"], random_params(small_config(), 2 if ema else 1))
    # The config is in it, and the same model comes of it.
    assert weights.config.model == small_config().model
    assert weights.config.train == small_config().train


@pytest.mark.parametrize(
    ("form", "dtype", "bound"),
    [("diffusers", "bfloat16", 2**-8), ("npz", "bfloat16", 2**-8), ("safetensors", "float16", 2**-11)],
)
def test_short_floats_halve_the_size_and_the_cost_is_said(workdir, capsys, form, dtype, bound):
    out = export(with_weights(format=form, dtype=dtype), workdir)
    assert out.name == f"step1234-ema-{dtype}" + ("-diffusers" if form == "diffusers" else f".{form}")
    said = capsys.readouterr().err
    params = random_params(small_config(), 2)
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(params)) * 2 / 1e6:.1f} MB" in said
    assert f"rounding to {dtype} changes the weights by" in said
    back = read_weights(out).variables["params"]
    assert_equal(back, jax.tree.map(lambda leaf: leaf.astype(jax.numpy.dtype(dtype)).astype(np.float32), params))
    numbers = [float(number) for number in re.findall(r"[ ]([0-9.e+-]+) (?:of|at)", said.split("rounding to")[1])]
    weights_mean, weights_largest, output_mean, output_largest = numbers
    # float16 rounds its smallest values more: below 2^-14 it has fewer digits.
    assert 0.2 * bound < weights_mean < bound / 2
    assert bound / 2 < weights_largest < (1.01 * bound if dtype == "bfloat16" else 0.1)
    assert 0 < output_mean < 20 * bound
    assert 0 < output_largest < 20 * bound


def test_the_default_place_and_what_is_written(workdir):
    folder = export(with_weights(), workdir)
    assert folder == workdir / "export" / "step1234-ema-float32-diffusers"
    assert sorted(str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*.*")) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["clip_sample"], scheduler["set_alpha_to_one"], scheduler["steps_offset"]) == (False, True, 0)
    assert (scheduler["timestep_spacing"], scheduler["beta_schedule"]) == ("leading", "linear")


def test_nothing_of_this_machine_is_shared(workdir, tmp_path):
    config = small_config(data__source="folder", data__path="/home/somebody/photos", data__cache_dir="/scratch/x")
    out = export(with_weights(format="npz", out=str(tmp_path / "a.npz")), workdir)
    description = read_description(out)
    assert description.config.weights == WeightsConfig()
    assert shared_config(config).data.path == "photos"
    assert "somebody" not in description._replace(config=shared_config(config)).to_json()
    assert "scratch" not in description._replace(config=shared_config(config)).to_json()


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["diffusers", "npz"])
def test_another_export_is_not_overwritten(workdir, tmp_path, capsys, form):
    out = tmp_path / ("out" if form == "diffusers" else f"out.{form}")
    export(with_weights(format=form, out=str(out)), workdir)
    before = {path: path.stat().st_mtime_ns for path in (out, *out.rglob("*"))}
    export(with_weights(format=form, out=str(out)), workdir)
    assert f"{out} is there already" in capsys.readouterr().err
    with pytest.raises(UserError, match="exists and is another model's"):
        export(with_weights(format=form, out=str(out), ema=False), workdir)
    assert {path: path.stat().st_mtime_ns for path in (out, *out.rglob("*"))} == before


def test_somebody_elses_file_is_not_overwritten(workdir, tmp_path):
    (tmp_path / "notes.npz").write_text("mine")
    (tmp_path / "folder").mkdir()
    for form, name in (("npz", "notes.npz"), ("diffusers", "folder")):
        with pytest.raises(UserError, match="or something else"):
            export(with_weights(format=form, out=str(tmp_path / name)), workdir)
    assert (tmp_path / "notes.npz").read_text() == "mine"


def test_what_diffusers_would_do_otherwise_is_said_at_export(workdir, tmp_path, capsys):
    config = small_config(sample__spacing="quad", sample__eta=1.0)
    export(with_weights(config, out=str(tmp_path / "folder")), workdir)
    said = capsys.readouterr().err
    assert "warning: sample.spacing=quad" in said
    assert "warning: sample.eta=1" in said
    export(with_weights(config, format="npz", out=str(tmp_path / "a.npz")), workdir)
    assert "warning" not in capsys.readouterr().err


def test_a_file_has_the_ending_of_its_format(workdir, tmp_path):
    with pytest.raises(UserError, match=r"a file of weights.format=npz ends in .npz"):
        export(with_weights(format="npz", out=str(tmp_path / "weights.pth")), workdir)


def test_a_place_that_cannot_be_written(workdir, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: "):
        export(with_weights(format="npz", out=str(tmp_path / "file" / "a.npz")), workdir)


def test_a_failing_export_leaves_nothing(workdir, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ddim_jax.weights.diffusers_folder.write_safetensors", fail)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        export(with_weights(out=str(tmp_path / "out")), workdir)
    assert list(tmp_path.iterdir()) == []


# --- the network of Keras' example --------------------------------------------------------------


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A workdir of a residual U-Net with batch norms, and its config."""
    config = default_config()
    recipes.keras(config)
    config.data.image_size = 8
    config.data.mean, config.data.std = (0.4,), (0.3,)
    config.model.channels, config.model.multipliers, config.model.num_blocks = 8, (1, 2), 1
    config.train.steps, config.train.final_sample_steps = 4, ()
    config = from_config_dict(config)
    state = init_state(config, build_model(config), make_optimizer(config.train, 4))
    state = state.replace(ema_batch_stats=jax.tree.map(lambda leaf: leaf + 0.25, state.ema_batch_stats))
    workdir = tmp_path_factory.mktemp("residual") / "run"
    with Checkpoints(checkpoint_dir(workdir)) as checkpoints:
        checkpoints.save(0, state)
    prepare_for_training(workdir, config)
    return workdir, config


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_batch_statistics_travel_too(residual, form):
    workdir, config = residual
    variables = ddim_jax.load_weights(export(with_weights(config, format=form), workdir)).variables
    assert_equal(variables, ddim_jax.load(workdir).variables)
    assert jax.tree.leaves(variables["batch_stats"])


def test_diffusers_has_no_such_network(residual, tmp_path):
    workdir, config = residual
    with pytest.raises(UserError, match=r"model.name=residual_unet: diffusers has no such network"):
        export(with_weights(config, out=str(tmp_path / "out")), workdir)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place, value", [(6, 255), (9, 8)])
def test_a_zip_archive_with_a_damaged_directory_is_one_line(tmp_path, place, value):
    """Its version, and how names are written: at the latter the name is no longer text."""
    path = tmp_path / "a.pt"
    with path.open("wb") as file:
        np.savez(file, **{"ä": np.zeros(3)})
    damaged = bytearray(path.read_bytes().replace("ä".encode(), b"\xff\xff"))
    damaged[damaged.index(b"PK\x01\x02") + place] = value
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"a\.pt is damaged or cut short"):
        ddim_jax.load_weights(path)


def test_weights_of_nan_are_refused_as_such(tmp_path, monkeypatch, residual):
    workdir, config = residual
    pipe = ddim_jax.load(workdir)
    leaves, tree = jax.tree.flatten(pipe.variables)
    broken = [np.full_like(leaves[0], np.nan), *leaves[1:]]
    broken = dataclasses.replace(pipe, variables=jax.tree.unflatten(tree, broken))
    monkeypatch.setattr("ddim_jax.pipeline.load", lambda *unused, **also_unused: broken)
    with pytest.raises(UserError, match="the checkpoint has values that are not finite in"):
        export(with_weights(config, format="npz", out=str(tmp_path / "a.npz")), workdir)
    assert not (tmp_path / "a.npz").exists()


def test_a_flipped_bit_in_any_byte_of_a_safetensors_file_is_noticed_or_does_nothing(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {"b/a": np.arange(12, dtype=np.float32).reshape(3, 4), "c": np.ones(3, ml_dtypes.bfloat16)}
    write_safetensors(path, ArrayFile(arrays, {"key": "text"}))
    content = path.read_bytes()
    missed = []
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place + place // 8) % 8
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            found = read_safetensors(path)
            missed.append(place)
            assert all(np.array_equal(found.arrays[name], value) for name, value in arrays.items())
            assert found.texts["key"] == "text"
    # But for white space, what does nothing is the name of the checksum.
    assert len(missed) < 2 * len("ddim_jax.crc32")


def test_safetensors_of_earlier_versions_are_compared_with_their_hash(tmp_path, residual):
    workdir, config = residual
    path = export(with_weights(config, format="safetensors", out=str(tmp_path / "a.safetensors")), workdir)
    contents = read_safetensors(path)
    path.write_bytes(safetensors.numpy.save(contents.arrays, contents.texts))
    read_weights(path)
    name = next(iter(contents.arrays))
    path.write_bytes(safetensors.numpy.save({**contents.arrays, name: contents.arrays[name] + 1}, contents.texts))
    with pytest.raises(UserError, match="is damaged: its arrays have not the sha256 that it says"):
        read_weights(path)


def test_values_too_large_for_float16_are_refused(tmp_path, residual):
    workdir, config = residual
    path = export(with_weights(config, format="npz", out=str(tmp_path / "a.npz")), workdir)
    contents = read_npz(path)
    name = next(iter(contents.arrays))
    contents.arrays[name] = contents.arrays[name] + np.float32(1e6)
    write_npz(path, contents)
    import_weights(with_weights(config, path=str(path)), tmp_path / "run")
    with pytest.raises(UserError, match=r"weights.dtype=float16 cannot hold the values of"):
        export(with_weights(config, format="npz", dtype="float16"), tmp_path / "run")
