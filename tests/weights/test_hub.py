"""Weights from the Hugging Face hub: its protocol, spoken by a server of the tests."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from web import Repository, serving
from weight_files import random_params, small_config, state_dict, write_diffusers, write_torch

import ddim_jax
from ddim_jax import main
from ddim_jax.errors import UserError
from ddim_jax.weights.array_files import ArrayFile, write_safetensors
from ddim_jax.weights.forms import read_weights
from ddim_jax.workdir import read_run_record

constants = pytest.importorskip("huggingface_hub.constants")

NAME = "someone/small"
ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_params(pipe, seed=0):
    jax.tree.map(np.testing.assert_array_equal, pipe.variables["params"], random_params(small_config(), seed))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A pipeline, with what is not needed beside it."""
    folder = write_diffusers(tmp_path_factory.mktemp("pipeline") / "of", small_config())
    (folder / "model_index.json").write_text(json.dumps({"unet": [], "scheduler": []}))
    (folder / "README.md").write_text("A model.")
    write_torch(folder / "unet" / "diffusion_pytorch_model.bin", state_dict(small_config(), "diffusers", 5))
    return files_of(folder)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def web(monkeypatch, cache, tmp_path):
    with serving() as web:
        monkeypatch.setattr(constants, "ENDPOINT", web.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", web.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.chdir(tmp_path)
        yield web


def test_a_name_is_loaded_and_only_what_is_needed_is_fetched(web, files, capsys):
    web.repositories[NAME] = Repository(files)
    commit = web.repositories[NAME].names["main"]
    pipe = ddim_jax.load(NAME)
    assert_params(pipe)
    assert pipe.config.data.image_size == 8
    assert f"hf:{NAME} is commit {commit}" in capsys.readouterr().err
    # The first by the name of the branch, the others by the commit that it is.
    assert [path for path in web.paths() if "/resolve/" in path] == [
        f"/{NAME}/resolve/main/unet/config.json",
        *(
            f"/{NAME}/resolve/{commit}/{name}"
            for name in ("model_index.json", "scheduler/scheduler_config.json", WEIGHTS)
        ),
    ]
    for again in (f"hf:{NAME}", f"hf:{NAME}@main", f"hf:{NAME}@{commit}"):
        assert_params(ddim_jax.load_weights(again))


def test_a_network_at_the_top_and_older_files(web, files, capsys):
    top = {name.rpartition("/")[2]: data for name, data in files.items() if "safetensors" not in name}
    del top["model_index.json"]
    web.repositories[NAME] = Repository(top)
    assert_params(ddim_jax.load(NAME), seed=5)


def test_a_folder_of_that_name_wins(web, files, tmp_path):
    web.repositories[NAME] = Repository(files)
    (tmp_path / NAME).mkdir(parents=True)
    with pytest.raises(UserError, match=r"no config\.json in workdir someone/small"):
        ddim_jax.load(NAME)
    assert web.asked == []


def test_the_revision_that_is_meant(web, files, tmp_path):
    repository = web.repositories[NAME] = Repository(files)
    other = files_of(write_diffusers(tmp_path / "other", small_config(), seed=1))
    repository.commit(other, "v2")
    assert_params(ddim_jax.load(f"{NAME}@v2"), seed=1)
    assert_params(ddim_jax.load(NAME))
    repository.commit(other)
    assert_params(ddim_jax.load(NAME), seed=1)
    with pytest.raises(UserError, match=r"hf:someone/small@v3: there is no such revision: name a branch"):
        ddim_jax.load_weights(f"hf:{NAME}@v3")


def importing(workdir, path=f"hf:{NAME}"):
    sizes = ["data.image_size=8", "model.channels=16", "model.num_groups=4", "model.multipliers=(1, 2)"]
    sizes += ["model.num_blocks=1", "model.attention_resolutions=(4,)"]
    return main.run(
        ["ddim_jax", f"--config={ROOT}/configs/cifar10.py", "--mode=import", f"--workdir={workdir}"]
        + [f"--config.{each}" for each in sizes]
        + [f"--config.weights.path={path}"]
    )


def test_an_import_keeps_the_commit_and_means_it_for_ever(web, files, tmp_path, capsys):
    repository = web.repositories[NAME] = Repository(files)
    commit = repository.names["main"]
    assert importing(tmp_path / "run") == 0
    record = read_run_record(tmp_path / "run" / "import")
    assert record["origin"] == {"asked": f"hf:{NAME}", "repository": NAME, "commit": commit}
    assert_params(ddim_jax.load(tmp_path / "run"))
    # The branch goes on, but this workdir is of that commit.
    repository.commit(files_of(write_diffusers(tmp_path / "other", small_config(), seed=1)))
    before = len(web.asked)
    assert importing(tmp_path / "run") == 0
    assert "holds " in capsys.readouterr().err
    assert len(web.asked) == before
    assert importing(tmp_path / "run", f"hf:{NAME}@main") == 2
    assert "holds a run already: choose another --workdir" in capsys.readouterr().err


def test_a_connection_that_breaks_off_is_gone_on_with(web, files, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    # What came of a piece that is not whole is asked for again.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    web.repositories[NAME] = Repository(files)
    half = len(files[WEIGHTS]) // 2000 * 1000
    web.breaks = [10**9] * 3 + [half]
    assert_params(ddim_jax.load(NAME))
    assert [asked.range for asked in web.asked if asked.path.endswith(WEIGHTS) and asked.method == "GET"] == [
        "",
        f"bytes={half}-",
    ]


def test_what_is_whole_is_not_fetched_again(web, files):
    web.repositories[NAME] = Repository({name: data for name, data in files.items() if name != WEIGHTS})
    del web.repositories[NAME].commits[web.repositories[NAME].names["main"]]["unet/diffusion_pytorch_model.bin"]
    with pytest.raises(UserError, match=r"unet has a config\.json but no diffusion_pytorch_model\.safetensors"):
        ddim_jax.load(NAME)
    # The same texts in another commit: the hub's cache knows them by their hash.
    web.repositories[NAME].commit(files)
    before = len(web.asked)
    assert_params(ddim_jax.load(NAME))
    gets = [asked.path for asked in web.asked[before:] if asked.method == "GET" and "/resolve/" in asked.path]
    assert [path.rpartition("/")[2] for path in gets] == ["diffusion_pytorch_model.safetensors"]


def test_without_a_network(web, files, monkeypatch, capsys):
    web.repositories[NAME] = Repository(files)
    ddim_jax.load(NAME)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    # Nothing answers at this port.
    closed = web.url.rpartition(":")[0] + ":9"
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    assert_params(ddim_jax.load(NAME))
    assert "warning: hf:someone/small: the hub cannot be reached (ConnectError" in (said := capsys.readouterr().err)
    assert "took what its cache has" in said
    with pytest.raises(UserError, match=r"hf:else/where: the .* hub cannot be reached \(ConnectError") as caught:
        ddim_jax.load("else/where")
    assert str(caught.value).startswith("there is no workdir else/where here; hf:else/where: ")
    assert "\n" not in str(caught.value)


def test_offline(web, files, monkeypatch, cache):
    web.repositories[NAME] = Repository(files)
    commit = web.repositories[NAME].names["main"]
    ddim_jax.load(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(web.asked)
    assert_params(ddim_jax.load(NAME))
    assert_params(ddim_jax.load(f"{NAME}@{commit}"))
    with pytest.raises(UserError, match=r"not whole in the cache of the .* hub, and HF_HUB_OFFLINE forbids"):
        ddim_jax.load_weights("hf:else/where")
    (weights,) = cache.rglob("*.safetensors")
    weights.unlink()
    with pytest.raises(UserError, match="not whole in the cache"):
        ddim_jax.load_weights(f"hf:{NAME}")
    assert len(web.asked) == before


def test_what_the_hub_does_not_give(web, files, monkeypatch):
    web.repositories["someone/private"] = Repository(files, private=True)
    web.repositories["someone/gated"] = Repository(files, gated=True)
    for name in ("someone/private", "someone/missing"):
        with pytest.raises(UserError, match="has no such repository, or it is private: check the name, or log in by"):
            ddim_jax.load_weights(f"hf:{name}")
    with pytest.raises(UserError, match=r"hf:someone/gated is gated: ask for access .*, and log in by"):
        ddim_jax.load_weights("hf:someone/gated")
    with pytest.raises(UserError, match=r"no workdir runs/digits here; hf:runs/digits: .* no such repository"):
        ddim_jax.load("runs/digits")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert_params(ddim_jax.load("someone/private"))
    assert_params(ddim_jax.load("someone/gated"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"model.safetensors": b"0"},
            "no UNet2DModel: neither config.json nor unet/config.json is there, but model",
        ),
        ({}, "holds no UNet2DModel: .*, but nothing"),
        ({"config.json": b'{"model_type": "bert"}', "model.bin": b""}, "_class_name=None: only UNet2DModel is read"),
        (
            {"model_index.json": b'{"unet": [], "vae": []}', "unet/config.json": b"{}", WEIGHTS: b"0"},
            "is of a pipeline with vae: only unet and scheduler are ours",
        ),
        ({"config.json": b"{", "diffusion_pytorch_model.bin": b"0"}, "config.json cannot be used: no JSON"),
    ],
)
def test_other_repositories_are_refused_before_anything_large_comes(web, files, message):
    web.repositories[NAME] = Repository(files)
    with pytest.raises(UserError, match=message) as caught:
        read_weights(f"hf:{NAME}")
    assert str(caught.value).startswith(f"hf:{NAME}")
    assert not [path for path in web.paths() if path.endswith((".bin", ".safetensors"))]


@pytest.mark.parametrize("name", ["hf:", "hf:small", "hf:a/b/c", "hf:/a/b", "hf:../b", "hf:a/b@"])
def test_other_names_are_refused(web, name):
    with pytest.raises(UserError, match=r"hf:OWNER/NAME or hf:OWNER/NAME@REVISION is meant"):
        read_weights(name)
    assert web.asked == []


def test_a_name_without_the_prefix_is_told_of_it(web):
    with pytest.raises(UserError, match=r"No such file or directory; if the .* hub is meant, write hf:someone/small"):
        read_weights(NAME)
    assert web.asked == []


def test_nothing_large_is_imported_with_it(web, files, tmp_path):
    """The package that reads the hub can use PyTorch; a program that loads weights must not wait for that."""
    web.repositories[NAME] = Repository(files)
    program = (
        f"import sys, ddim_jax; ddim_jax.load({NAME!r}); print(sorted({{'torch', 'tensorflow'}} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "HF_ENDPOINT": web.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (0, "set()\n"), result.stderr


def test_without_the_package(web, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"is read by huggingface_hub: pip install 'ddim_jax\[hub\]'"):
        read_weights(f"hf:{NAME}")


def test_weights_in_several_files(web, tmp_path):
    state = state_dict(small_config(), "diffusers")
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {array: names[i % 2] for i, array in enumerate(state)}
    folder = write_diffusers(tmp_path / "whole", small_config())
    (folder / WEIGHTS).unlink()
    for name in names:
        arrays = {array: state[array] for array, holder in where.items() if holder == name}
        write_safetensors(folder / "unet" / name, ArrayFile(arrays, {"format": "pt"}))
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": where}))
    web.repositories[NAME] = Repository(files_of(folder))
    assert_params(ddim_jax.load(NAME))


def test_the_environment_is_honoured_and_a_new_run_begins_with_it(web, files, tmp_path):
    """``train.init_from``, in a process of its own, which the hub's variables are given to."""
    web.repositories[NAME] = Repository(files, private=True)
    sizes = ["data.channels=3", "model.channels=16", "model.num_groups=4", "model.multipliers=(1,2)"]
    sizes += ["model.num_blocks=1", "model.attention_resolutions=(4,)", "data.source=folder", f"data.path={tmp_path}/i"]
    sizes += ["data.image_size=8", "train.steps=1", "train.final_sample_steps=()", "train.sample_every=0"]
    (tmp_path / "i").mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / "i" / f"{i}.png")
    result = subprocess.run(
        [sys.executable, "-m", "ddim_jax.main", f"--config={ROOT}/configs/folder.py:tiny", f"--workdir={tmp_path}/run"]
        + [f"--config.{each}" for each in sizes]
        + [f"--config.train.init_from=hf:{NAME}"],
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": web.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "secret"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert f"begins with the weights of hf:{NAME}" in result.stderr
    assert list((tmp_path / "home" / "hub").glob("models--someone--small/snapshots/*/unet/*.safetensors"))
    assert {asked.token for asked in web.asked if NAME in asked.path} == {"secret"}
