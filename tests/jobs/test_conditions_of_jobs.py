"""What jobs draw images from: the data's own conditions, folders, arrays and tables."""

import json

import numpy as np
import pytest
from PIL import Image
from runs import linked_run
from sklearn.datasets import load_digits
from small import CONFIGS, SMALL, changed, config_module

from ddim_jax import load
from ddim_jax.config import Config, from_config_dict, with_values
from ddim_jax.errors import UserError
from ddim_jax.images import load_png
from ddim_jax.jobs.sample import sample
from ddim_jax.jobs.train import train
from ddim_jax.sampling.condition_sets import ConditionSet


def small(name: str, argument: str = "tiny", **changes) -> Config:
    config = from_config_dict(config_module(CONFIGS / f"{name}.py").get_config(argument))
    more = {"model__init": "torch", "train__final_sample_steps": (), "train__sample_every": 0, "sample__steps": 2}
    return changed(config, **SMALL, **more, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of digits that is given a picture of half their size, and a class."""
    workdir = tmp_path_factory.mktemp("conditions") / "run"
    train(small("superres", model__num_classes=10), workdir)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    return linked_run(trained, tmp_path / "run")


def config_of(**changes) -> Config:
    return small("superres", model__num_classes=10, **changes)


def images_in(folder):
    return np.stack([load_png(path) for path in sorted(folder.glob("0*.png"))])


def test_images_are_drawn_from_the_pictures_and_classes_of_the_data(workdir):
    folder = sample(config_of(sample__num=6, sample__per_condition=2), workdir)
    conditions = ConditionSet(load(workdir).config)
    told = conditions.load(np.arange(3))
    from_python = load(workdir).sample(
        6, steps=2, condition={"picture": told.picture, "label": told.label}, per_condition=2
    )
    np.testing.assert_array_equal(images_in(folder), from_python)
    # Of the images that training does not see.
    assert told.label.tolist() == load_digits().target[1500:1503].tolist()
    assert conditions.truth(np.arange(3)).shape == (3, 8, 8, 1)
    # A row for each of three conditions: what was given, two draws, the truth.
    height, width, _ = load_png(folder / "grid.png").shape
    assert width > height


def test_missing_images_are_drawn_from_their_own_conditions(workdir):
    config = config_of(sample__num=5)
    folder = sample(config, workdir)
    before = images_in(folder)
    for name in ("000001.png", "000004.png"):
        (folder / name).unlink()
    assert sample(config, workdir) == folder
    np.testing.assert_array_equal(images_in(folder), before)


def test_pictures_of_a_folder_and_of_an_array_are_those_of_the_data(workdir, tmp_path):
    conditions = ConditionSet(load(workdir).config)
    small_ones = np.floor(255 * conditions.load(np.arange(4)).picture + 0.5).astype(np.uint8)
    (tmp_path / "small").mkdir()
    for index, image in enumerate(small_ones):
        Image.fromarray(image[..., 0]).save(tmp_path / "small" / f"{index}.png")
    np.savez(tmp_path / "small.npz", images=small_ones, labels=np.arange(4))
    np.save(tmp_path / "large.npy", conditions.truth(np.arange(4)))
    drawn = {}
    for name in ("small", "small.npz", "large.npy"):
        folder = sample(config_of(sample__num=4, sample__condition_path=str(tmp_path / name)), workdir)
        drawn[name] = images_in(folder)
    np.testing.assert_array_equal(drawn["small"], drawn["small.npz"])
    # Whole images are made small here, without a step of 8 bits.
    assert np.abs(drawn["large.npy"].astype(int) - drawn["small"]).max() <= 3
    assert ConditionSet(config_of(sample__condition_path=str(tmp_path / "large.npy"))).has_truth
    assert not ConditionSet(config_of(sample__condition_path=str(tmp_path / "small"))).has_truth


def test_paired_pictures_may_have_other_channels_than_the_images(tmp_path):
    images, paired = (np.random.default_rng(0).random((5, 8, 8, channels), np.float32) for channels in (2, 1))
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "p.npy", paired)
    values = {
        "data.source": "array", "data.path": str(tmp_path / "x.npy"), "data.dtype": "float32", "data.channels": 2,
        "data.image_size": 8, "data.range": (0.0, 1.0), "data.condition": "paired", "data.condition_channels": 1,
        "data.condition_path": str(tmp_path / "p.npy"), "model.condition": ("image",), "model.multipliers": (1,),
        "model.attention_resolutions": (),
    }  # fmt: skip
    config = with_values(Config(), values)
    for path, truth in (("", True), (str(tmp_path / "p.npy"), False)):
        conditions = ConditionSet(with_values(config, {"sample.condition_path": path}))
        np.testing.assert_array_equal(conditions.load(np.arange(1, 4)).picture, paired[1:4])
        assert conditions.has_truth == truth


def test_other_pictures_of_the_same_name_are_another_job(workdir, tmp_path):
    config = config_of(sample__num=2, sample__condition_path=str(tmp_path / "small.npy"))
    folders = set()
    for value in (10, 200):
        np.save(tmp_path / "small.npy", np.full((2, 4, 4, 1), value, np.uint8))
        folders.add(sample(config, workdir))
    assert len(folders) == 2


def test_what_images_cannot_be_drawn_from(workdir, tmp_path):
    def refused(**changes):
        with pytest.raises(UserError) as caught:
            sample(config_of(**changes), workdir)
        return str(caught.value)

    np.save(tmp_path / "two.npy", np.zeros((2, 4, 4, 1), np.uint8))
    line = refused(sample__num=5, sample__condition_path=str(tmp_path / "two.npy"))
    assert line.endswith(
        "holds 2 conditions, but image 4 needs number 4; ask for 2 images by sample.num, or for more of each by "
        "sample.per_condition"
    )
    assert "does not exist; name a folder" in refused(sample__condition_path=str(tmp_path / "none"))
    np.save(tmp_path / "odd.npy", np.zeros((9, 5, 5, 1), np.uint8))
    line = refused(sample__num=2, sample__condition_path=str(tmp_path / "odd.npy"))
    assert line.startswith("sample.condition_path: ")
    assert line.endswith("this model is given pictures of 4x4x1")
    (tmp_path / "table.csv").write_text("1\n2\n")
    assert "is a table, but this model is drawn from pictures" in refused(
        sample__condition_path=str(tmp_path / "table.csv")
    )
    assert not list((workdir / "sample").glob("*")) if (workdir / "sample").exists() else True


@pytest.fixture(scope="module")
def of_vectors(tmp_path_factory):
    """A model of digits that is told three numbers and a class."""
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    np.savez(
        folder / "data.npz", images=rng.integers(0, 256, (16, 8, 8, 1), np.uint8), labels=np.arange(16) % 4,
        numbers=rng.standard_normal((16, 3)).astype(np.float32),
    )  # fmt: skip
    config = small(
        "digits", data__source="array", data__path=str(folder / "data.npz"), data__vector="numbers",
        model__condition=("class", "vector"), model__vector_size=3, model__num_classes=4,
    )  # fmt: skip
    train(config, folder / "run")
    return folder / "run", config


def test_a_table_names_classes_and_numbers(of_vectors, tmp_path):
    trained, config = of_vectors
    workdir = linked_run(trained, tmp_path / "run")
    rows = np.array([[0.5, -1.0, 2.0], [0.0, 0.25, 1.0]], np.float32)
    (tmp_path / "a.csv").write_text("x,label,y,z\n0.5,3,-1,2\n0,1,0.25,1\n")
    (tmp_path / "b.csv").write_text("3,0.5,-1,2\n1,0,0.25,1\n")
    expected = load(workdir).sample(2, steps=2, condition={"vector": rows, "label": [3, 1]})
    for name in ("a.csv", "b.csv"):
        folder = sample(changed(config, sample__num=2, sample__condition_path=str(tmp_path / name)), workdir)
        np.testing.assert_array_equal(images_in(folder), expected)
    assert json.loads((folder / "run.json").read_text())["images"] == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("label,x,y,z\n4,0,0,0\n", "row 0 is of class 4, but the model has classes 0 to 3"),
        ("0,1,2\n", "line 1 has 3 columns; this model is drawn from a class and 3 numbers"),
        ("label,x,y,z\n0,1,2,nan\n", "line 2 has 4 columns; this model is drawn from"),
        ("label,x,y,z\n", "holds no row of numbers"),
    ],
)
def test_tables_that_cannot_be_used(of_vectors, tmp_path, text, line):
    _, config = of_vectors
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=r"sample\.condition_path=") as caught:
        ConditionSet(changed(config, sample__condition_path=str(tmp_path / "t.csv")))
    assert line in str(caught.value)


def test_known_pixels_come_out_as_they_were_given(tmp_path):
    workdir = tmp_path / "inpaint"
    train(small("inpaint", "digits,tiny"), workdir)
    pipe = load(workdir)
    digits = np.floor(load_digits().images[:3, ..., None] * (255 / 16) + 0.5).astype(np.uint8)
    mask = np.arange(8)[None, :] < np.array([3, 4, 6])[:, None, None] + np.zeros((1, 8, 1), int)
    restored = pipe.restore(digits, mask=mask, steps=2)
    np.testing.assert_array_equal(restored[mask], digits[mask])
    assert (restored[~mask] != digits[~mask]).any()
    folder = sample(small("inpaint", "digits,tiny", sample__num=4), workdir)
    conditions = ConditionSet(pipe.config)
    known = conditions.load(np.arange(4)).picture[..., -1:] > 0.5
    np.testing.assert_array_equal(images_in(folder)[known], conditions.truth(np.arange(4))[known])
