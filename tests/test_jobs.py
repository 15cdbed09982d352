"""Jobs in this process, on eight devices: every config, runs that repeat, and mistakes that only a job can see."""

import dataclasses
import gc
import importlib.util
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from ddim_jax import main
from ddim_jax.config import Config, from_config_dict
from ddim_jax.images import load_png
from ddim_jax.jobs.sample import sample
from ddim_jax.jobs.train import train

# ml_collections reads config files by a deprecated function.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
# The smallest network that has all kinds of layers.
SMALL = {"model__multipliers": (1,), "model__attention_resolutions": (8,), "train__steps": 2}
DIGITS = (
    f"--config={ROOT}/configs/digits.py:tiny",
    *(f"--config.{key.replace('__', '.')}={value}" for key, value in SMALL.items()),
)


def tiny_config(path):
    """The file's ``tiny`` variant."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_config_dict(module.get_config("tiny"))


def small_digits(**changes):
    """What ``DIGITS`` asks for on the command line."""
    return changed(tiny_config(ROOT / "configs" / "digits.py"), **SMALL, **changes)


def changed(config, **changes):
    for dotted, value in changes.items():
        group, _, key = dotted.partition("__")
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{key: value})})
    return config


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def noise_image(seed, size):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


# --- every config -------------------------------------------------------------------------------


def prepare_cifar10(directory):
    """Prepares twenty images under TFDS's name ``cifar10``, in the form of the real one."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core import registered

    with registered.skip_registration():

        class Cifar10(tfds.core.GeneratorBasedBuilder):
            """Noise instead of photographs; encoded already, so that TensorFlow is not needed."""

            VERSION = tfds.core.Version("3.0.2")

            def _info(self):
                features = {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(20), "test": self._generate_examples(4)}

            def _generate_examples(self, num):
                for i in range(num):
                    file = io.BytesIO()
                    noise_image(i, (32, 32)).save(file, "PNG")
                    yield i, {"id": f"train_{i:05d}", "image": file.getvalue(), "label": i % 10}

    Cifar10(data_dir=str(directory), file_format="array_record").download_and_prepare()


def with_made_data(config: Config, folder: pathlib.Path) -> Config:
    """The same run on twenty images of noise, of the size that the config's crop is made for, in its classes."""
    if config.data.source == "digits":
        return config
    if config.data.name == "cifar10":
        prepare_cifar10(folder)
        return changed(config, data__dir=str(folder))
    size = (218, 178) if config.data.crop == "celeba" else (40, 40)
    for number in range(20):
        path = folder / f"class_{number % max(1, config.model.num_classes):03d}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_image(number, size).save(path)
    return changed(config, data__source="folder", data__path=str(folder))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_and_samples(tmp_path, path):
    config = changed(tiny_config(path), train__steps=2, train__sample_every=0)
    config = with_made_data(config, tmp_path / "images")
    train(config, tmp_path / "run")
    records = metrics(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2]
    assert all(np.isfinite(record["loss"]) for record in records)
    folder = sample(config, tmp_path / "run")
    for index in range(config.sample.num):
        image = load_png(folder / f"{index:06d}.png")
        assert image.shape == (config.data.image_size, config.data.image_size, config.data.channels)


# --- a trained workdir --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(small_digits(), workdir)
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
    config = small_digits()
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
    config = small_digits(sample__num=11, sample__start=2)
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


def test_training_again_changes_nothing(workdir):
    before = contents(workdir)
    train(small_digits(), workdir)
    after = contents(workdir)
    assert {name: data for name, data in after.items() if not name.startswith("tensorboard")} == {
        name: data for name, data in before.items() if not name.startswith("tensorboard")
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
        ("--config.sample.label=3", "sample.label=3: must lie below model.num_classes=0"),
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
            noise_image(number, size).save(folder / f"{number}.png")

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
