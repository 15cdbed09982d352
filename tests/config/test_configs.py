"""Every file in ``configs/``: it loads, and its ``tiny`` form does everything that a run does."""

import importlib.util
import io
import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image
from runs import final_state

import ddim_jax
from ddim_jax.config import Config, from_config_dict
from ddim_jax.images import load_png
from ddim_jax.main import run
from ddim_jax.training.checkpoint import Checkpoints
from ddim_jax.workdir import checkpoint_dir, read_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))
VARIANTS = {
    "mnist": ("bk", "bbno", "bgano", "cond"),
    "flowers": ("bk", "bbno", "bgano"),
    "celeba": ("ddim_code", "bf16"),
    "cifar10": ("ddim_code", "v", "cond", "edm", "flow", "vp", "ve", "bf16", "ddpm_large", "ddpm_small", "eta1"),
    "lsun": ("church", "cat", "ddim_code", "bf16"),
    "celebahq": ("bf16",),
    "folder": ("bf16",),
    "superres": ("mnist", "cifar10", "faces"),
    "inpaint": ("digits", "cifar10", "faces"),
    "colorize": ("faces",),
    "attributes": ("bf16",),
}


def load(name: str, argument: str = "") -> Config:
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument)
    if config.data.source == "folder":
        config.data.path = "images"
    return from_config_dict(config)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_and_variant_loads_and_shrinks(name):
    for variant in ("", *VARIANTS.get(name, ())):
        config = load(name, variant)
        tiny = load(name, f"{variant},tiny")
        assert tiny.data.image_size <= config.data.image_size
        assert tiny.model.channels <= min(16, config.model.channels / 2)
        assert tiny.train.steps == 4
        assert tiny.diffusion.objective == config.diffusion.objective
        assert tiny.model.name == config.model.name


@pytest.mark.parametrize("name", NAMES)
def test_every_config_says_its_command_and_its_variants(name):
    text = (CONFIGS / f"{name}.py").read_text()
    assert f"python -m ddim_jax.main --config=configs/{name}.py" in text
    for variant in (*VARIANTS.get(name, ()), "tiny"):
        assert f"``{variant}``" in text
    assert "emory" in text  # what it needs


def test_recipes_that_are_published():
    cifar = load("cifar10")
    assert (cifar.train.batch_size, cifar.train.learning_rate, cifar.train.ema_decay) == (128, 2e-4, 0.9999)
    assert (cifar.model.dropout, cifar.data.flip, cifar.train.warmup_steps, cifar.train.grad_clip) == (
        0.1,
        True,
        5000,
        1,
    )
    celeba = load("celeba", "ddim_code")
    assert (celeba.model.multipliers, celeba.data.crop, celeba.diffusion.reduction) == (
        (1, 2, 2, 2, 4),
        "celeba",
        "sum",
    )
    assert (celeba.train.batch_size, celeba.train.learning_rate, celeba.train.warmup_steps) == (128, 2e-4, 0)
    bedroom = load("lsun")
    assert (bedroom.train.batch_size, bedroom.train.learning_rate, bedroom.train.ema_decay) == (64, 2e-5, 0.9999)
    assert (bedroom.model.dropout, bedroom.model.multipliers) == (0, (1, 1, 2, 2, 4, 4))
    code = load("lsun", "ddim_code")
    assert (code.train.ema_decay, code.train.grad_clip) == (0.999, 0)
    assert not load("lsun", "cat").data.flip
    flowers = load("flowers")
    assert (flowers.train.learning_rate, flowers.train.weight_decay, flowers.train.ema_decay) == (1e-3, 1e-4, 0.999)
    assert (flowers.model.channels, flowers.model.multipliers, flowers.model.num_blocks) == (32, (1, 2, 3, 4), 2)
    assert (flowers.diffusion.loss, flowers.diffusion.time_sampling) == ("mae", "continuous")
    assert flowers.data.mean == ()  # measured
    assert flowers.train.adam_eps == 1e-7  # Keras' default
    v = load("cifar10", "v").diffusion
    assert (v.objective, v.schedule, v.zero_terminal_snr) == ("v", "cosine", True)


# --- data of the same form ----------------------------------------------------------------------

# Name: version, height and width of an image, channels, classes, examples of each split.
TFDS = {
    "cifar10": ("3.0.2", (32, 32), 3, 10, {"train": 20, "test": 4}),
    "mnist": ("3.0.1", (28, 28), 1, 10, {"train": 20, "test": 4}),
    "oxford_flowers102": ("2.1.1", (70, 50), 3, 102, {"train": 10, "validation": 10, "test": 20}),
    "celeb_a": ("2.1.0", (218, 178), 3, 0, {"train": 20, "validation": 4, "test": 4}),
    "lsun/bedroom": ("3.1.0", (40, 60), 3, 0, {"train": 20, "validation": 4}),
}


def noise_image(seed: int, size: tuple[int, int], channels: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)
    return Image.fromarray(pixels.squeeze())


def prepare_tfds(name: str, directory: pathlib.Path) -> None:
    """Prepares a few images of noise under the name of a TFDS data set, in the form of the real one."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core import registered

    version, size, channels, classes, splits = TFDS[name]
    real = tfds.builder(name, data_dir=str(directory)).info.features
    attributes = sorted(real["attributes"]) if "attributes" in real else []
    base, _, config_name = name.partition("/")

    with registered.skip_registration():

        class Noise(tfds.core.GeneratorBasedBuilder):
            """Encoded already, so that TensorFlow is not needed."""

            VERSION = tfds.core.Version(version)
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config_name)] if config_name else []

            def _info(self):
                features = {"image": tfds.features.Image(shape=(None, None, channels))}
                if classes:
                    features["label"] = tfds.features.ClassLabel(num_classes=classes)
                if attributes:
                    features["attributes"] = dict.fromkeys(attributes, np.bool_)
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split, num) for split, num in splits.items()}

            def _generate_examples(self, split, num):
                for i in range(num):
                    file = io.BytesIO()
                    noise_image(len(split) * 100 + i, size, channels).save(file, "PNG")
                    label = {"label": i % classes} if classes else {}
                    held = {"attributes": {key: (i + k) % 3 == 0 for k, key in enumerate(attributes)}}
                    yield i, {"image": file.getvalue()} | label | (held if attributes else {})

        Noise.name = base
        builder = Noise(data_dir=str(directory), file_format="array_record")
    builder.download_and_prepare()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    """A folder of images of different sizes."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(24):
        noise_image(number, (40 + number, 60 - number), 3).save(folder / f"{number:06d}.png")
    return folder


def records(workdir: pathlib.Path, key: str) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl`` that have a key."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if key in record]


# --- runs ---------------------------------------------------------------------------------------


def runs_in_tiny_form(name: str, folder: pathlib.Path, images: pathlib.Path, argument: str = "tiny") -> pathlib.Path:
    """Describes, trains two steps, checkpoints and samples; returns the workdir."""
    config, workdir = load(name, argument), folder / "run"
    flags = [f"--config={CONFIGS / name}.py:{argument}", f"--workdir={workdir}", "--config.train.steps=2"]
    if config.data.source == "tfds":
        prepare_tfds(config.data.name, folder / "tfds")
        flags += [f"--config.data.dir={folder / 'tfds'}"]
    elif config.data.source == "folder":
        flags += [f"--config.data.path={images}"]
    assert run(["ddim_jax", *flags, "--mode=describe"]) == 0
    assert run(["ddim_jax", *flags]) == 0
    with Checkpoints(checkpoint_dir(workdir), read_only=True) as checkpoints:
        assert checkpoints.steps() == [2]
    assert read_config(workdir).data.mean
    assert [record["step"] for record in records(workdir, "loss")] == [1, 2]
    assert all(np.isfinite(record["loss"]) for record in records(workdir, "loss"))
    assert run(["ddim_jax", *flags, "--mode=sample"]) == 0
    (grid,) = workdir.glob("sample/*/grid.png")
    for index in range(config.sample.num):
        image = load_png(grid.parent / f"{index:06d}.png")
        assert image.shape == (config.data.image_size, config.data.image_size, config.data.channels)
    return workdir


@pytest.mark.slow
def test_the_flowers_config_runs(images, tmp_path):
    workdir = runs_in_tiny_form("flowers", tmp_path, images)
    assert len(records(workdir, "image_loss")) == 2
    (validated,) = records(workdir, "validation_loss")
    assert 0 < validated["validation_loss"] < 2 and validated["validation_image_loss"] > 0
    (measured,) = records(workdir, "sample_pixels_kernel_distance_mean")
    best = json.loads((workdir / "best.json").read_text())
    assert best["measured"] == {"2": measured["sample_pixels_kernel_distance_mean"]}
    assert best["best_step"] == 2 and ddim_jax.load(workdir, "best").step == 2
    # What draws is the averaged network, its batch norms' averaged statistics included.
    state, pipe = final_state(workdir), ddim_jax.load(workdir)
    drawn_with = jax.tree.leaves(pipe.variables["batch_stats"])
    for used, averaged in zip(drawn_with, jax.tree.leaves(state.ema_batch_stats), strict=True):
        np.testing.assert_array_equal(used, averaged)
    assert any(np.abs(leaf - leaf.round()).max() > 0 for leaf in drawn_with)  # no longer 0 and 1
    config = read_config(workdir)
    assert len(config.data.mean) == len(config.data.std) == 3
    np.testing.assert_allclose(config.data.mean, 0.5, atol=0.02)  # noise, uniform over all bytes
    assert 0 < max(config.data.std) < 12**-0.5  # and averaged by the resizing


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "flowers"])
def test_every_config_runs_in_its_tiny_form(name, images, tmp_path):
    runs_in_tiny_form(name, tmp_path, images)


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["v,tiny", "cond,tiny", "edm,tiny", "ve,tiny"])
def test_the_variants_of_cifar10_run(argument, images, tmp_path):
    runs_in_tiny_form("cifar10", tmp_path, images, argument)
