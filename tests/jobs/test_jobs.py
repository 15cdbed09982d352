"""Jobs in this process, on eight devices: runs that repeat, and mistakes that only a job can see."""

import gc
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from small import DIGITS, changed, plain_digits

from ddim_jax import main
from ddim_jax.jobs.sample import sample
from ddim_jax.jobs.train import train

# --- a trained workdir --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(plain_digits(), workdir)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


def contents(folder):
    """Every file's bytes, by path."""
    folder = pathlib.Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments):
    return main.run(["ddim_jax", *map(str, arguments)])


def refused(capsys, *arguments):
    """The one line that a mistake gives."""
    capsys.readouterr()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("ddim_jax: error: ")]
    assert "Traceback" not in err
    return line


def test_the_command_runs_twice_in_one_process(workdir, capsys):
    """As in a notebook; the overrides are those given, not the process's own arguments."""
    for steps in (2, 3):
        assert run(*DIGITS, f"--workdir={workdir}", "--mode=sample", f"--config.sample.steps={steps}") == 0
    assert len(list((workdir / "sample").glob("step2-ddim-S[23]-*"))) == 2
    assert run(*DIGITS, f"--workdir={workdir}", "--config.train.steps=2") == 0
    assert "done: 2 steps" in capsys.readouterr().err


def test_other_settings_get_another_folder_and_the_same_ones_compute_nothing(workdir, monkeypatch):
    config = plain_digits()
    settings = [{"sample__eta": 0.5}, {"sample__seed": 1}, {"sample__num": 3}, {"sample__ema": False}]
    folders = {sample(config, workdir), *(sample(changed(config, **each), workdir) for each in settings)}
    assert len(folders) == 5

    before = {folder: contents(folder) for folder in folders}
    assert all(json.loads((folder / "run.json").read_text())["images_computed"] > 0 for folder in folders)

    def write_nothing(*_):
        raise AssertionError("a picture was written again")

    monkeypatch.setattr("ddim_jax.jobs.sample.save_png", write_nothing)
    again = {sample(config, workdir), *(sample(changed(config, **each), workdir) for each in settings)}
    assert before == {folder: contents(folder) for folder in again}


def test_only_missing_images_are_drawn_and_they_come_out_the_same(workdir):
    config = plain_digits(sample__num=11, sample__start=2)
    folder = sample(config, workdir)
    before = contents(folder)
    for name in ("000004.png", "000012.png", "run.json"):
        (folder / name).unlink()
    assert sample(config, workdir) == folder
    after = contents(folder)
    assert json.loads(after.pop("run.json"))["images_computed"] == 2
    del before["run.json"]
    assert after == before
    assert sorted(path.stem for path in folder.glob("0*.png")) == [f"{index:06d}" for index in range(2, 13)]


@pytest.mark.parametrize("storage", ["png", "npz"])
def test_damaged_files_are_made_again_and_strangers_are_left_alone(workdir, storage):
    config = changed(plain_digits(), sample__num=11, sample__format=storage)
    folder = pathlib.Path(sample(config, workdir))
    before = contents(folder)
    if storage == "png":
        (folder / "000003.png").write_bytes(b"")
        truncate(folder / "000009.png")
        Image.new("L", (9, 9)).save(folder / "000010.png")
        shutil.copy(folder / "000007.png", folder / "000007 copy.png")
    else:
        truncate(folder / "samples.npz")
    truncate(folder / "run.json")
    sample(config, workdir)
    after = contents(folder)
    assert json.loads(after.pop("run.json"))["images_computed"] == (3 if storage == "png" else 11)
    assert (after.pop("000007 copy.png", None) is None) == (storage == "npz")
    del before["run.json"]
    assert after.keys() == before.keys()
    for name, data in after.items():
        assert data == before[name] or name == "samples.npz"

    record = (folder / "run.json").read_bytes()
    (folder / "grid.png").write_bytes(b"")
    sample(config, workdir)
    assert (folder / "grid.png").read_bytes() == before["grid.png"]
    assert (folder / "run.json").read_bytes() == record


def test_training_again_changes_nothing(workdir):
    before = contents(workdir)
    train(plain_digits(), workdir)
    after = contents(workdir)
    assert {name: data for name, data in after.items() if not name.startswith("tensorboard")} == {
        name: data for name, data in before.items() if not name.startswith("tensorboard")
    }


def test_a_run_that_is_past_the_end_asked_for_is_left_alone(workdir, capsys):
    before = contents(workdir)
    line = refused(capsys, *DIGITS, f"--workdir={workdir}", "--config.train.steps=1", "--config.train.log_every=7")
    assert f"train.steps=1: the run in workdir {workdir} is past that, at step 2, and was left as it is" in line
    line = refused(capsys, *DIGITS, f"--workdir={workdir}", "--config.train.epochs=0.001")
    assert "train.epochs=0.001 (1 steps): the run in" in line
    assert contents(workdir) == before


def test_final_pictures_are_named_by_the_step_they_show(workdir):
    names = {path.name for path in (workdir / "samples").iterdir()}
    train(changed(plain_digits(), train__steps=3), workdir)
    assert {path.name for path in (workdir / "samples").iterdir()} - names == {
        name.replace("step_00000002", "step_00000003") for name in names
    }


# --- mistakes that only a job can see -----------------------------------------------------------


def test_a_workdir_of_another_run_is_left_alone(trained, capsys):
    before = contents(trained)
    line = refused(capsys, *DIGITS, f"--workdir={trained}", "--config.train.learning_rate=1.0", "--config.seed=5")
    assert "train.learning_rate (there 0.002, now 1.0), seed (there 0, now 5)" in line
    assert "--config.train.overwrite=true" in line
    assert contents(trained) == before


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("--config.diffusion.num_levels=500", "diffusion.num_levels (trained 1000, command line 500)"),
        ("--config.sample.checkpoint=7", "no checkpoint of step 7 in"),
        ("--config.sample.eta=1000", "eta"),
        ("--config.sample.eta_per_step=(0.1,0.2)", "eta has 2 values for 4 steps"),
        ("--config.sample.label=3", "sample.label=3: the model has no classes (model.num_classes=0); leave it out"),
    ],
)
def test_a_sample_job_that_cannot_be_done_writes_nothing(trained, capsys, override, line):
    before = contents(trained)
    folders = set(trained.rglob("*"))
    assert line in refused(capsys, *DIGITS, f"--workdir={trained}", "--mode=sample", override)
    assert contents(trained) == before
    assert set(trained.rglob("*")) == folders


def test_no_checkpoint_to_sample_from(workdir, tmp_path, capsys):
    arguments = (*DIGITS, "--mode=sample")
    assert "no config.json in workdir" in refused(capsys, *arguments, f"--workdir={tmp_path / 'nothing'}")
    assert not (tmp_path / "nothing").exists()
    shutil.rmtree(workdir / "checkpoints" / "2")
    assert "no checkpoint in workdir" in refused(capsys, *arguments, f"--workdir={workdir}")
    shutil.rmtree(workdir / "checkpoints")
    assert "no checkpoint in workdir" in refused(capsys, *arguments, f"--workdir={workdir}")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path):
    path.write_bytes(b"\0" * 100)


@pytest.mark.parametrize(
    ("mode", "part", "damage"),
    [
        ("train", "largest", truncate),
        ("sample", "largest", overwrite),
        ("sample", "largest", pathlib.Path.unlink),
        ("sample", "manifest.ocdbt", truncate),
        ("train", "manifest.ocdbt", pathlib.Path.unlink),
        ("sample", "_METADATA", overwrite),
        ("train", "_METADATA", pathlib.Path.unlink),
    ],
)
# Orbax leaves coroutines unfinished, of arrays that it was reading beside the damaged one.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named(workdir, capsys, damage, part, mode):
    files = [path for path in (workdir / "checkpoints" / "2").rglob("*") if path.is_file()]
    damaged = [path for path in files if path.name == part] or [max(files, key=lambda path: path.stat().st_size)]
    for path in damaged:
        damage(path)
    before = contents(workdir / "checkpoints")
    line = refused(capsys, *DIGITS, f"--workdir={workdir}", f"--mode={mode}", "--config.train.steps=4")
    assert f"{workdir / 'checkpoints' / '2'} cannot be restored" in line
    assert len(line) < 500
    assert contents(workdir / "checkpoints") == before
    gc.collect()  # here, not in a later test


@pytest.mark.parametrize("place", ["file/run", "/proc/run", "/dev/null", "file"])
def test_a_workdir_that_cannot_be_written(tmp_path, capsys, place):
    (tmp_path / "file").write_text("kept")
    assert "cannot be written" in refused(capsys, *DIGITS, f"--workdir={tmp_path / place}")
    assert contents(tmp_path) == {"file": b"kept"}


def folder_of(*sizes):
    def make(folder):
        folder.mkdir()
        for number, size in enumerate(sizes):
            pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")

    return make


@pytest.mark.parametrize(
    ("make", "overrides", "line"),
    [
        (lambda folder: None, ["data.source=folder", "data.path=images"], "data.path='images' is not a folder"),
        (folder_of(), ["data.source=folder", "data.path=images"], "data.path='images' has no images"),
        (folder_of((9, 9)), ["data.source=folder", "data.path=images"], "0.png: the image is 9x9 pixels after"),
        (folder_of((8, 9)), ["data.source=folder", "data.path=images"], "not square; set data.crop=center"),
        (folder_of((8, 8)), ["data.source=folder", "data.path=images", "data.crop=celeba"], "for aligned CelebA"),
        (folder_of(), ["model.num_classes=7"], "model.num_classes=7, but digits has 10 classes; set it to 10"),
        (folder_of(), ["data.source=tfds", "data.name=cifar11"], "TFDS does not know this name; did you mean"),
        (folder_of(), ["data.source=tfds"], "data.name='': name the TFDS data set"),
        (folder_of(), ["sample.eta=1000"], "eta"),
        (folder_of(), ["sample.eta_per_step=(1.0,)"], "eta has 1 values for 4 steps"),
    ],
)
def test_a_run_that_cannot_start_leaves_no_workdir(tmp_path, monkeypatch, capsys, make, overrides, line):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "images")
    before = contents(tmp_path)
    assert line in refused(capsys, *DIGITS, "--workdir=run", *(f"--config.{override}" for override in overrides))
    assert contents(tmp_path) == before
    assert not (tmp_path / "run").exists()
