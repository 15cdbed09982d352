"""The evaluate job of models that draw from conditions: each image beside the one that it should be."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from runs import linked_run
from small import CONFIGS, SMALL, changed, tiny_config

from ddim_jax.conditions.tasks import to_network
from ddim_jax.config import EvalConfig
from ddim_jax.errors import UserError
from ddim_jax.images import save_png
from ddim_jax.jobs import evaluate as module
from ddim_jax.jobs.evaluate import evaluate
from ddim_jax.jobs.train import train
from ddim_jax.metrics import psnr, ssim
from ddim_jax.pipeline import load
from ddim_jax.sampling.condition_sets import ConditionSet
from ddim_jax.tables.row_progress import RowProgress

NUM = 12
MEASURED = EvalConfig(num=NUM, steps=(2,), extractor="pixels", metrics=("fid", "psnr", "ssim"), batch_size=8)


def small(name, **changes):
    config = changed(tiny_config(CONFIGS / name), **SMALL, model__init="torch", train__final_sample_steps=(), **changes)
    return changed(dataclasses.replace(config, eval=MEASURED), sample__batch_size=1)


CONFIG = small("superres.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("conditional") / "run"
    train(CONFIG, workdir)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    return linked_run(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def finished(trained):
    return evaluate(CONFIG, trained)


def figures(folder):
    (path,) = (folder / "rows").glob("*.json")
    return json.loads(path.read_text())["figures"]


def truth_of(config, indices):
    conditions = ConditionSet(config)
    return conditions.load(indices).picture, conditions.truth(indices)


def to_bytes(pixels):
    return np.floor(np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def test_figures_are_those_of_the_samples_beside_their_truth(trained, finished):
    picture, truth = truth_of(CONFIG, np.arange(NUM))
    images = load(trained).sample(condition={"picture": picture}, steps=2, batch_size=1)
    bicubic = to_bytes(np.asarray(to_network(jax.numpy.asarray(picture), (8, 8, 1))) / 2 + 0.5)
    found = figures(finished)
    assert list(found) == ["pixels_frechet", "psnr", "bicubic_psnr", "ssim", "bicubic_ssim"]
    assert found["psnr"] == pytest.approx(psnr(images, truth, 255).mean(), rel=1e-9)
    assert found["ssim"] == pytest.approx(ssim(images, truth, 255).mean(), rel=1e-9)
    assert found["bicubic_psnr"] == pytest.approx(psnr(bicubic, truth, 255).mean(), rel=1e-9)
    assert found["bicubic_ssim"] == pytest.approx(ssim(bicubic, truth, 255).mean(), rel=1e-9)
    # Two steps of training are worse than no network at all.
    assert found["psnr"] < found["bicubic_psnr"] and found["bicubic_ssim"] > 0.5


def test_the_page_shows_them(finished):
    page = (finished / "report.html").read_text()
    for heading in ("PSNR, dB", "PSNR of bicubic, dB", "SSIM", "SSIM of bicubic"):
        assert re.search(rf"<th[^>]*>{heading}</th>", page)
        assert heading in (finished / "table.md").read_text()


def test_images_of_other_batch_sizes_have_the_same_figures(workdir, finished):
    folder = evaluate(changed(CONFIG, sample__batch_size=2, eval__batch_size=3), workdir)
    assert folder.name == finished.name
    assert figures(folder) == figures(finished)


def test_a_killed_row_goes_on_and_ends_the_same(workdir, finished, monkeypatch):
    monkeypatch.setattr(module, "_SAVE_EVERY_SECONDS", -1)
    add, batches = RowProgress.add, []

    class Killed(Exception):
        """Stands for a kill."""

    def dying(self, batch):
        if batches:
            raise Killed
        batches.append(batch)
        add(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(RowProgress, "add", dying)
        with pytest.raises(Killed):
            evaluate(CONFIG, workdir)
    assert list((workdir / "evaluate" / finished.name / "rows").glob("*.partial-*"))
    drawn = []

    def noting(self, batch):
        drawn.extend(batch.index.tolist())
        add(self, batch)

    monkeypatch.setattr(RowProgress, "add", noting)
    folder = evaluate(CONFIG, workdir)
    assert drawn == list(range(len(batches[0].index), NUM))
    assert figures(folder) == figures(finished)


def test_several_images_of_each_condition_are_another_table(workdir, finished):
    folder = evaluate(changed(CONFIG, sample__per_condition=3), workdir)
    assert folder.name != finished.name
    picture, truth = truth_of(CONFIG, np.arange(NUM // 3))
    images = load(workdir).sample(condition={"picture": picture}, per_condition=3, steps=2, batch_size=1)
    expected = psnr(images, np.repeat(truth, 3, axis=0), 255).mean()
    assert figures(folder)["psnr"] == pytest.approx(expected, rel=1e-9)


@pytest.fixture
def pictures(tmp_path):
    """A folder of three small pictures, whose truth nobody knows."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        save_png(folder / f"{i}.png", np.full((4, 4, 1), 80 * i, np.uint8))
    return folder


def test_pictures_of_ones_own_have_no_truth(workdir, pictures, finished):
    asked = changed(CONFIG, sample__condition_path=str(pictures), eval__num=3)
    with pytest.raises(UserError, match=r"^eval\.metrics: no psnr, since what these images should be is not known"):
        evaluate(asked, workdir)
    folder = evaluate(changed(asked, eval__metrics=("fid",)), workdir)
    assert list(figures(folder)) == ["pixels_frechet"]


def test_more_images_than_conditions_are_refused(workdir, pictures):
    with pytest.raises(
        UserError, match=r"^eval\.num=300: digits, train\[1500:\] holds 297 conditions to draw images from;"
    ):
        evaluate(changed(CONFIG, eval__num=300), workdir)
    asked = changed(CONFIG, sample__condition_path=str(pictures), eval__metrics=("fid",), eval__num=4)
    with pytest.raises(UserError, match=r"holds 3 conditions to draw images from; set eval\.num to 3 or less"):
        evaluate(asked, workdir)


def test_parts_that_are_missing_have_no_bicubic_figures(tmp_path, cache):
    config = small("inpaint.py", data__source="digits", data__name="", data__image_size=8, data__validation="train")
    train(config, tmp_path / "run")
    assert list(figures(evaluate(config, tmp_path / "run"))) == ["pixels_frechet", "psnr", "ssim"]


def test_accuracy_is_the_share_that_the_classifier_recognises(tmp_path, cache):
    config = small("digits.py", model__num_classes=10)
    config = changed(config, eval__metrics=("accuracy",), eval__extractor="classifier")
    train(config, tmp_path / "run")
    folder = evaluate(config, tmp_path / "run")
    images = load(tmp_path / "run").sample(NUM, steps=2, batch_size=1)
    logits = module.make_extractor(config)(images).logits
    assert figures(folder) == {"accuracy": np.mean(logits.argmax(axis=1) == np.arange(NUM) % 10)}
    with pytest.raises(UserError, match=r"no accuracy, since eval\.extractor=pixels does not tell the classes"):
        evaluate(changed(config, eval__extractor="pixels"), tmp_path / "run")
    with pytest.raises(UserError, match="no ssim, since what these images should be is not known"):
        evaluate(changed(config, eval__metrics=("ssim",)), tmp_path / "run")


class Squared:
    """Stands for LPIPS."""

    sha256 = "0" * 64

    def __init__(self, path, shape, batch_size):
        assert (path, shape) == ("lpips.pth", (8, 8, 1))

    def __call__(self, images, others):
        return ((images - others) ** 2).mean(axis=(1, 2, 3))


def test_a_network_compares_where_there_are_weights_for_it(workdir, monkeypatch, capsys):
    asked = changed(CONFIG, eval__metrics=("psnr", "lpips"))
    without = evaluate(asked, workdir)
    assert list(figures(without)) == ["psnr", "bicubic_psnr"]
    told = "LPIPS is left out: there are no weights for it (eval.lpips_path)."
    assert told in capsys.readouterr().err and told in (without / "table.md").read_text()
    monkeypatch.setattr("ddim_jax.tables.row_images.PerceptualDistance", Squared)
    folder = evaluate(changed(asked, eval__lpips_path="lpips.pth"), workdir)
    assert folder != without and "LPIPS of bicubic" in (folder / "table.md").read_text()
    found = figures(folder)
    assert list(found) == ["psnr", "bicubic_psnr", "lpips", "bicubic_lpips"]
    assert 0 < found["bicubic_lpips"] < found["lpips"]


def test_without_classes_there_is_no_accuracy(workdir):
    with pytest.raises(UserError, match="no accuracy, since no classes were asked for; leave it out"):
        evaluate(changed(CONFIG, eval__metrics=("fid", "accuracy")), workdir)
