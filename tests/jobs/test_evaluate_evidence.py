"""What tables say of copies of training images, of infinitely many images, and of how sure their figures are."""

import dataclasses
import json
import re

import numpy as np
import pytest
from runs import completed, linked_run
from small import small_digits

from ddim_jax.config import EvalConfig, with_sample, with_values
from ddim_jax.data.prepared import open_images
from ddim_jax.data.reading import load_images
from ddim_jax.errors import ConfigError, UserError
from ddim_jax.images import load_png
from ddim_jax.jobs import evaluate as module
from ddim_jax.jobs.evaluate import evaluate
from ddim_jax.jobs.train import train
from ddim_jax.measuring.measurement import Measurement
from ddim_jax.tables.row_progress import RowProgress

SMALL = EvalConfig(
    num=24,
    steps=(2,),
    extractor="pixels_pca",
    components=8,
    metrics=("fid", "fid_infinity", "memorization"),
    features_kept=100,
    batch_size=8,
    bootstrap=4,
)
FIGURES = [
    *("pixels_pca_frechet", "pixels_pca_frechet_infinity", "pixels_pca_authenticity"),
    *("pixels_pca_authenticity_held_out", "pixels_pca_copies", "pixels_pca_copy_test"),
    *("pixel_authenticity", "pixel_copies"),
]


def asked(split="train[:1500]", validation="train[1500:]", batch_size=1, **changes):
    config = with_sample(small_digits(), batch_size=batch_size)
    data = dataclasses.replace(config.data, split=split, validation=validation)
    return dataclasses.replace(config, data=data, eval=dataclasses.replace(SMALL, **changes))


@pytest.fixture(scope="module", autouse=True)
def references(cache):
    """Points of these tests, computed once."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(asked(), workdir)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    return linked_run(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def finished(trained):
    return evaluate(asked(), trained)


def results(folder):
    return {path.stem: json.loads(path.read_text()) for path in (folder / "rows").glob("*.json")}


def digits(rows):
    data = asked().data
    data = dataclasses.replace(data, split="train")
    return load_images(open_images(data), data, np.asarray(rows)).image


def measured(images, tmp_path, **changes):
    np.savez(tmp_path / "images.npz", images=images)
    folder = evaluate(asked(images=str(tmp_path / "images.npz"), num=len(images), **changes), tmp_path)
    (found,) = results(folder).values()
    return folder, found["figures"]


# --- copies -------------------------------------------------------------------------------------


def test_copies_are_caught_and_seen(tmp_path):
    chosen = np.arange(0, 1500, 15)
    noise = np.random.default_rng(0).integers(-6, 7, (100, 8, 8, 1))
    copies = np.clip(digits(chosen).astype(int) + noise, 0, 255).astype(np.uint8)
    folder, figures = measured(copies, tmp_path)
    assert list(figures) == FIGURES
    assert figures["pixel_authenticity"] == 0 and figures["pixel_copies"] > 0.98
    assert figures["pixels_pca_authenticity"] == 0 and figures["pixels_pca_copies"] > 0.95
    assert figures["pixels_pca_copy_test"] < -10 and figures["pixels_pca_authenticity_held_out"] > 0.5
    (strip,) = (folder / "rows").glob("*.nearest.png")
    assert load_png(strip).ndim == 3
    assert "Warning: images are copies of training images" in (folder / "table.md").read_text()
    page = (folder / "report.html").read_text()
    assert (
        "Samples nearest to training images" in page and page.count("beside the training images nearest to them") == 1
    )


def test_fresh_images_are_not(tmp_path):
    folder, figures = measured(digits(np.arange(1500, 1797)), tmp_path)
    assert "Warning: images are copies" not in (folder / "table.md").read_text()
    assert figures["pixel_authenticity"] > 0.5 and figures["pixel_copies"] < 0.01
    assert figures["pixels_pca_copies"] < 0.01
    assert figures["pixels_pca_authenticity"] == figures["pixels_pca_authenticity_held_out"]
    # These are the held-out images themselves.
    assert figures["pixels_pca_copy_test"] == 0


def test_without_held_out_images_the_other_figures_remain(tmp_path):
    _, figures = measured(digits(np.arange(30)), tmp_path, validation="", split="train")
    assert list(figures) == [name for name in FIGURES if name not in (FIGURES[3], FIGURES[5])]
    assert figures["pixel_authenticity"] == 0 and figures["pixel_copies"] == 1


def test_the_split_of_the_reference_counts_as_held_out(tmp_path):
    _, figures = measured(digits(np.arange(30)), tmp_path, validation="", reference_split="train[1500:]")
    assert figures["pixels_pca_copy_test"] < -5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": "train[:300]"}, r"^data\.validation='train\[:300\]': these images are training images \(data"),
        (
            {"split": "train[:2]", "validation": "", "extractor": "pixels"},
            r"^2 training images: whether a model copies them is seen from 3 or more",
        ),
        ({"num": 19}, r"^eval\.metrics: fid_infinity extrapolates from a tenth .* 19 are too few; set eval\.num to 20"),
    ],
)
def test_what_cannot_be_had_is_refused_before_images_are_drawn(changes, message, workdir, monkeypatch):
    monkeypatch.setattr(RowProgress, "add", lambda *_: pytest.fail("drawn"))
    np.savez(workdir / "images.npz", images=digits(np.arange(30)))
    with pytest.raises(UserError, match=message):
        evaluate(asked(**changes, images=str(workdir / "images.npz")), workdir)


def test_images_of_another_size_are_refused(tmp_path):
    np.savez(tmp_path / "images.npz", images=np.zeros((30, 9, 8, 1), np.uint8))
    config = asked(images=str(tmp_path / "images.npz"))
    with pytest.raises(UserError, match=r"compares pixels, but the images are \[9, 8, 1\] and those of the .* \[8, 8"):
        evaluate(config, tmp_path)


def test_one_set_has_no_spread():
    with pytest.raises(ConfigError, match=r"eval\.bootstrap=1: a spread needs 2 or more; 0 computes none"):
        with_values(asked(), {"eval.bootstrap": 1})


# --- of a model ---------------------------------------------------------------------------------


def test_the_table_has_all_of_it(finished):
    (result,) = results(finished).values()
    assert list(result["figures"]) == FIGURES
    assert set(result["deviations"]) == {FIGURES[0], *(FIGURES[2], FIGURES[4], *FIGURES[6:])}
    assert result["deviations"]["pixels_pca_frechet"] > 0
    table = json.loads((finished / "table.json").read_text())
    assert table["training"]["images"]["split"] == "train[:1500]"
    assert table["training"]["held_out"]["split"] == "train[1500:]"
    assert table["metrics"]["bootstrap"] == 4
    (line,) = table["lines"]
    estimate = line["figures"]["pixels_pca_frechet"]
    assert estimate["bootstrap"] == result["deviations"]["pixels_pca_frechet"] and estimate["spread"] is None
    text = (finished / "table.md").read_text()
    assert "pixels pca Fréchet distance, N → ∞" in text and "pixels pca C_T" in text.replace("\\", "")
    assert "Of one seed, ± is the standard deviation over sets drawn from its images" in text
    assert not list((finished / "rows").glob("*.partial*"))


def test_seeds_give_mean_deviation_and_lowest(workdir):
    folder = evaluate(asked(seeds=(0, 1, 2), metrics=("fid",)), workdir)
    (line,) = json.loads((folder / "table.json").read_text())["lines"]
    values = [row["figures"]["pixels_pca_frechet"] for row in line["rows"]]
    found = line["figures"]["pixels_pca_frechet"]
    assert found["lowest"] == min(values) and found["mean"] == pytest.approx(np.mean(values))
    deviations = [row["deviations"]["pixels_pca_frechet"] for row in line["rows"]]
    assert found["bootstrap"] == pytest.approx(np.mean(deviations))
    text = (folder / "table.md").read_text()
    assert "lowest pixels pca Fréchet distance" in text and "EDM (Karras et al. 2022)" in text


def test_any_batch_size_gives_the_same(workdir, finished):
    (expected,) = results(finished).values()
    (found,) = results(evaluate(asked(batch_size=3), workdir)).values()
    for key in ("figures", "deviations"):
        # Images are uint8; of a few pixels rounding may differ.
        assert found[key] == pytest.approx(expected[key], rel=0.02, abs=0.02)


def test_a_killed_row_goes_on_and_ends_the_same(workdir, finished, monkeypatch):
    monkeypatch.setattr(module, "_SAVE_EVERY_SECONDS", -1)
    add, drawn = RowProgress.add, []

    def dying(self, batch):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(batch.index)
        add(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(RowProgress, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            evaluate(asked(), workdir)
    folder = workdir / "evaluate" / finished.name
    kept = sorted(re.sub(r".*partial-0-of-1\.", "", path.name) for path in (folder / "rows").glob("*.partial-*"))
    assert kept == ["features.npy", "npz", "pixels.npy"]

    def noting(self, batch):
        drawn.append(batch.index)
        add(self, batch)

    monkeypatch.setattr(RowProgress, "add", noting)
    # Killed again, when all images are there and the neighbours are looked for.
    with monkeypatch.context() as patch:
        patch.setattr(Measurement, "figures", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            evaluate(asked(), workdir)
    evaluate(asked(), workdir)
    assert [index.tolist() for index in drawn] == [list(range(s, s + 8)) for s in (0, 8, 16)]
    ((name, found),) = results(folder).items()
    expected = results(finished)[name]
    assert (found["figures"], found["deviations"]) == (expected["figures"], expected["deviations"])
    strips = [load_png(path / "rows" / f"{name}.nearest.png") for path in (folder, finished)]
    assert (strips[0] == strips[1]).all()
    assert not list((folder / "rows").glob("*.partial*"))


def test_lost_features_are_computed_again(workdir, finished, monkeypatch):
    monkeypatch.setattr(module, "_SAVE_EVERY_SECONDS", -1)
    with monkeypatch.context() as patch:
        patch.setattr(Measurement, "figures", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            evaluate(asked(), workdir)
    folder = workdir / "evaluate" / finished.name
    (lost,) = (folder / "rows").glob("*.features.npy")
    lost.write_bytes(lost.read_bytes()[:-1])
    evaluate(asked(), workdir)
    assert {name: one["figures"] for name, one in results(folder).items()} == {
        name: one["figures"] for name, one in results(finished).items()
    }


# --- real processes -----------------------------------------------------------------------------

COMMAND = (
    *("--mode=evaluate", "--config.eval.num=24", "--config.eval.steps=(2,)", "--config.eval.extractor=pixels"),
    *("--config.eval.batch_size=8", "--config.sample.batch_size=1", "--config.eval.bootstrap=3"),
    "--config.eval.metrics=('fid','fid_infinity','memorization')",
    *("--config.data.split=train[:1500]", "--config.data.validation=train[1500:]"),
)


@pytest.mark.slow
def test_two_processes_measure_as_one(tmp_path):
    trained = tmp_path / "trained"
    completed(trained, "--config.train.steps=2", "--config.data.split=train[:1500]")
    found = []
    for processes in (1, 2):
        workdir = linked_run(trained, tmp_path / f"by-{processes}")
        completed(workdir, *COMMAND, processes=processes)
        (folder,) = (workdir / "evaluate").iterdir()
        assert not list((folder / "rows").glob("*.partial*"))
        found += results(folder).values()
    one, two = found
    for key in ("figures", "deviations"):
        # Batches have another shape, so that single bytes of images differ by rounding.
        assert two[key] == pytest.approx(one[key], rel=1e-2, abs=1e-2)
