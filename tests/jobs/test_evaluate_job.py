"""The evaluate job: rows measured once and rightly, whatever happens to the jobs that measure them."""

import csv
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from runs import Run, arguments, completed, linked_run
from small import small_digits
from small_transformers import SMALL_DINOV2, dinov2_state, random_parameters
from weight_files import write_torch

from ddim_jax.claims import Claims
from ddim_jax.config import EvalConfig, with_sample
from ddim_jax.digests import digest_of_arrays
from ddim_jax.errors import ConfigError, RefutedError, UserError
from ddim_jax.images import load_png, save_png
from ddim_jax.jobs import evaluate as module
from ddim_jax.jobs.evaluate import evaluate
from ddim_jax.jobs.train import train
from ddim_jax.measuring.extractors import make_extractor
from ddim_jax.measuring.measurement import Measurement
from ddim_jax.measuring.reference import reference_for
from ddim_jax.measuring.reference_file import Reference, write_reference
from ddim_jax.pipeline import load
from ddim_jax.tables.claim_file import Claim
from ddim_jax.tables.published_figures import Protocol, PublishedRow, PublishedTable
from ddim_jax.tables.row_images import checkpoint_steps
from ddim_jax.tables.row_progress import RowProgress
from ddim_jax.training.checkpoint import restore_trained, select_weights
from ddim_jax.training.checksums import by_path
from ddim_jax.weights.vision_transformers import TRANSFORMERS

REPOSITORY = pathlib.Path(__file__).parents[2]

SMALL = EvalConfig(
    num=24,
    steps=(2, 3),
    extractor="pixels",
    metrics=("fid", "kid", "precision_recall"),
    features_kept=100,
    batch_size=8,
)
# A batch a device of eight, one image: three batches a row.
CONFIG = with_sample(dataclasses.replace(small_digits(), eval=SMALL), batch_size=1)


@pytest.fixture(scope="module", autouse=True)
def references(cache):
    """References of these tests, computed once."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(CONFIG, workdir)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """The trained model, in a folder without results."""
    return linked_run(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def finished(trained):
    """A table of two rows."""
    return evaluate(CONFIG, trained)


def asked(**changes):
    return dataclasses.replace(CONFIG, eval=dataclasses.replace(SMALL, **changes))


def figures(folder):
    """Figures by row."""
    return {path.stem: json.loads(path.read_text())["figures"] for path in (folder / "rows").glob("*.json")}


def lines(folder):
    return json.loads((folder / "table.json").read_text())["lines"]


# --- what is measured ---------------------------------------------------------------------------


def test_figures_are_those_of_the_images_that_sample_draws(finished, trained):
    images = load(trained).sample(24, steps=3, batch_size=1)
    extractor = make_extractor(CONFIG)
    measurement = Measurement(extractor, SMALL, 24)
    measurement.update(np.arange(24), images)
    expected = measurement.figures(reference_for(CONFIG, extractor))
    (line,) = [line for line in lines(finished) if line["steps"] == 3]
    assert line["rows"][0]["figures"] == expected
    assert set(expected) >= {"pixels_frechet", "pixels_precision", "pixels_kernel_distance_mean"}
    (name,) = [name for name in figures(finished) if "-S3-" in name]
    grid = load_png(finished / "rows" / f"{name}.png")
    assert (grid[2:10, 2:10] == images[0]).all()


def test_a_vision_transformer_of_given_weights(workdir, tmp_path, monkeypatch):
    row = TRANSFORMERS["dinov2"]._replace(network=SMALL_DINOV2)
    monkeypatch.setitem(TRANSFORMERS, "dinov2", row)
    path = write_torch(tmp_path / "weights.pth", dinov2_state(SMALL_DINOV2, random_parameters(SMALL_DINOV2)))
    config = asked(extractor="dinov2", extractor_path=str(path), steps=(2,), metrics=("fid", "density_coverage"))
    folder = evaluate(config, workdir)
    assert folder.name.startswith("dinov2-n24-")
    (found,) = figures(folder).values()
    assert found.keys() == {"dinov2_frechet", "dinov2_density", "dinov2_coverage"} and found["dinov2_frechet"] > 0
    # Statistics of other weights, of the same name, are refused.
    reference = tmp_path / "reference.npz"
    write_reference(reference, reference_for(config, make_extractor(config)))
    write_torch(path, dinov2_state(SMALL_DINOV2, random_parameters(SMALL_DINOV2, seed=1)))
    with pytest.raises(UserError, match=r"cannot be compared with extractor 'dinov2': .* weights_sha256"):
        reference_for(
            dataclasses.replace(config, eval=dataclasses.replace(config.eval, reference=str(reference))),
            make_extractor(config),
        )


def test_the_folder_says_all_there_is_to_know(finished, trained):
    assert finished.parent == trained / "evaluate"
    assert {path.name for path in finished.iterdir()} == {
        *("rows", "run.json", "table.md", "table.csv", "table.json", "quality.png", "report.html")
    }
    assert {path.suffix for path in (finished / "rows").iterdir()} == {".json", ".png"}
    record = json.loads((finished / "run.json").read_text())
    assert (record["mode"], record["images"], record["rows_measured"]) == ("evaluate", 24, 2)
    assert record["checkpoint_steps"] == [2]
    table = json.loads((finished / "table.json").read_text())
    assert table["num"] == 24
    assert table["extractor"]["name"] == "pixels"
    assert table["reference"]["count"] == 1797
    for line in table["lines"]:
        assert line["network_evaluations"] == line["steps"]
        assert 0 < line["sampling_seconds"] < line["seconds"]
    with (finished / "table.csv").open() as file:
        assert [row["steps"] for row in csv.DictReader(file)] == ["2", "3"]


def test_too_few_images_for_a_covariance_are_warned_of_in_log_and_report(workdir, capsys):
    folder = evaluate(asked(steps=(2,)), workdir)
    assert "24 images are no more than the 64 features" in capsys.readouterr().err
    for name in ("report.html", "table.md", "table.json"):
        assert "24 images are no more than the 64 features" in (folder / name).read_text()


def test_seeds_are_put_together_and_kept_apart(workdir):
    folder = evaluate(asked(steps=(2,), seeds=(0, 5)), workdir)
    (line,) = lines(folder)
    values = [row["figures"]["pixels_frechet"] for row in line["rows"]]
    assert values[0] != values[1]
    assert line["figures"]["pixels_frechet"]["mean"] == pytest.approx(np.mean(values))
    assert line["figures"]["pixels_frechet"]["spread"] == pytest.approx(np.std(values, ddof=1))
    assert " ± " in (folder / "table.md").read_text()


def test_checkpoints_and_samplers_make_rows_with_their_own_weights(workdir):
    config = asked(checkpoints=("all",), samplers=("ddim", "heun"), etas=(0.0, 1.0), steps=(2,))
    folder = evaluate(config, workdir)
    found = [(line["checkpoint"], line["sampler"], line["eta"]) for line in lines(folder)]
    settings = [("ddim", 0.0), ("ddim", 1.0), ("heun", None)]
    assert found == [(step, *setting) for step in (1, 2) for setting in settings]
    values = [line["figures"]["pixels_frechet"]["mean"] for line in lines(folder)]
    assert len(set(values)) == len(values)
    assert [line["network_evaluations"] for line in lines(folder)] == [2, 2, 3] * 2
    (first,) = [line for line in lines(folder) if line["checkpoint"] == 1 and line["eta"] == 0.0]
    images = load(workdir, step=1).sample(24, steps=2, batch_size=1)
    measurement = Measurement(make_extractor(config), SMALL, 24)
    measurement.update(np.arange(24), images)
    expected = measurement.figures(reference_for(config, make_extractor(config)))
    assert first["rows"][0]["figures"] == expected


def test_classifier_figures_have_honest_names(workdir):
    folder = evaluate(asked(extractor="classifier", metrics=("fid", "is"), is_splits=2, steps=(2,)), workdir)
    (line,) = lines(folder)
    assert set(line["figures"]) == {"classifier_frechet", "classifier_score_mean", "classifier_score_std"}
    page = re.sub(r"base64,[\w+/=]*", "", (folder / "report.html").read_text())
    assert "FID" not in page + (folder / "table.md").read_text()


def test_kept_images_are_those_measured(workdir):
    folder = evaluate(asked(steps=(2,), keep_images=True), workdir)
    (row,) = (folder / "images").iterdir()
    kept = np.stack([load_png(row / f"{i:06d}.png") for i in range(24)])
    assert (kept == load(workdir).sample(24, steps=2, batch_size=1)).all()
    assert len(list(row.iterdir())) == 24


def test_kept_images_are_looked_at_when_a_job_goes_on(workdir, monkeypatch, capsys):
    """Of a row that is measured, and of one that was killed after its progress was saved."""
    settings = asked(steps=(2,), keep_images=True)
    folder = evaluate(settings, workdir)
    (row,) = (folder / "images").iterdir()
    before = {path.name: path.read_bytes() for path in row.iterdir()}

    def damage():
        (row / "000003.png").write_bytes(b"")
        (row / "000007.png").write_bytes(bytes(len(before["000007.png"])))
        (row / "000008.png").write_bytes(before["000008.png"][:-1])
        (row / "000009.png").unlink()

    damage()
    evaluate(settings, workdir)
    assert "4 kept images are damaged or gone, and drawn again" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in row.iterdir()} == before

    (result,) = (folder / "rows").glob("*.json")
    result.unlink()
    monkeypatch.setattr("ddim_jax.jobs.evaluate._SAVE_EVERY_SECONDS", -1)
    with monkeypatch.context() as patch:
        patch.setattr(Measurement, "figures", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            evaluate(settings, workdir)
    damage()
    evaluate(settings, workdir)
    assert "4 kept images are damaged or gone, and drawn again" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in row.iterdir()} == before


# --- more rows, killed jobs, several jobs -------------------------------------------------------


def test_more_rows_join_the_table_and_measured_ones_stay(workdir, capsys):
    folder = evaluate(asked(steps=(3,)), workdir)
    (row,) = (folder / "rows").glob("*.json")
    before = os.stat(row).st_mtime_ns
    assert evaluate(asked(steps=(2, 3)), workdir) == folder
    assert os.stat(row).st_mtime_ns == before
    assert [line["steps"] for line in lines(folder)] == [2, 3]
    capsys.readouterr()
    evaluate(asked(steps=(2, 3)), workdir)
    said = capsys.readouterr().err
    assert "2 are there already" in said and " s);" not in said


@pytest.mark.parametrize(
    "changes",
    [{"num": 23}, {"metrics": ("fid",)}, {"kid_subsets": 3}, {"reference_num": 500}],
)
def test_what_cannot_be_compared_is_another_table(changes, workdir, finished):
    assert evaluate(asked(steps=(2,), **changes), workdir).name != finished.name


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("batches", [1, 2])
def test_a_killed_row_goes_on_where_it_was_and_ends_the_same(batches, workdir, finished, monkeypatch):
    monkeypatch.setattr(module, "_SAVE_EVERY_SECONDS", -1)
    add, drawn = RowProgress.add, []

    def dying(self, batch):
        if len(drawn) == batches:
            raise Killed
        drawn.extend([batch.index])
        add(self, batch)

    monkeypatch.setattr(RowProgress, "add", dying)
    with pytest.raises(Killed):
        evaluate(CONFIG, workdir)
    folder = workdir / "evaluate" / finished.name
    (partial,) = (folder / "rows").glob("*.partial-*")
    assert not list((folder / "rows").glob("*.claim-*"))

    def noting(self, batch):
        drawn.append(batch.index)
        add(self, batch)

    monkeypatch.setattr(RowProgress, "add", noting)
    evaluate(CONFIG, workdir)
    # Two rows of three batches, none of them drawn twice.
    assert [index.tolist() for index in drawn] == [list(range(s, s + 8)) for s in (0, 8, 16)] * 2
    assert figures(folder) == figures(finished)
    assert not partial.exists()
    grids = [(path / "rows").glob("*.png") for path in (folder, finished)]
    for one, other in zip(*map(sorted, grids), strict=True):
        assert (load_png(one) == load_png(other)).all()


def test_rows_that_living_jobs_work_on_are_left_to_them(workdir, finished, capsys):
    folder = workdir / "evaluate" / finished.name
    (folder / "rows").mkdir(parents=True)
    name = next(name for name in figures(finished) if "-S3-" in name)
    with Claims(folder / "rows", touch_seconds=0.02).take(name):
        evaluate(CONFIG, workdir)
    said = capsys.readouterr().err
    assert f"rows that other jobs are working on: {name} by" in said
    assert [line["steps"] for line in lines(folder)] == [2]
    assert "1 of the rows asked for are not measured yet" in (folder / "table.md").read_text()
    evaluate(CONFIG, workdir)
    assert figures(folder) == figures(finished)
    assert "not measured yet" not in (folder / "table.md").read_text()


def test_a_row_that_another_job_finished_first_keeps_its_result(workdir, finished, monkeypatch):
    """This job was asleep, and taken for dead."""
    add = RowProgress.add
    folder = workdir / "evaluate" / finished.name
    name = next(name for name in figures(finished) if "-S2-" in name)

    def overtaken(self, batch):
        path = folder / "rows" / f"{name}.json"
        if not path.exists():
            path.write_text((finished / "rows" / f"{name}.json").read_text())
        add(self, batch)

    monkeypatch.setattr(RowProgress, "add", overtaken)
    evaluate(asked(steps=(2,)), workdir)
    written = (folder / "rows" / f"{name}.json").read_text()
    assert written == (finished / "rows" / f"{name}.json").read_text()


def test_a_result_that_does_not_belong_here_is_refused(workdir, finished):
    folder = evaluate(asked(steps=(2,)), workdir)
    (path,) = (folder / "rows").glob("*.json")
    text = path.read_text()
    changed = {**json.loads(text), "num": 25}
    del changed["sha256"]  # as of an older version
    path.write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"of 25 images, this table of 24"):
        evaluate(asked(steps=(2,)), workdir)


def test_a_damaged_result_is_measured_again(workdir, finished, capsys):
    folder = evaluate(asked(steps=(2,)), workdir)
    (path,) = (folder / "rows").glob("*.json")
    whole = path.read_text()
    for damaged in ("", whole[:-20], "[]", whole.replace('"num": 24', '"num": 25')):
        path.write_text(damaged)
        evaluate(asked(steps=(2,)), workdir)
        assert f"{path} is damaged" in capsys.readouterr().err
        (found,) = figures(folder).items()
        assert found in figures(finished).items()
    # Of a row that nobody asked for now, it is for the user to decide; and a copy is no row of its own.
    text = path.read_text()
    path.write_text("")
    path.with_stem("copy").write_text(text)
    evaluate(asked(steps=(3,)), workdir)
    told = capsys.readouterr().err
    assert f"{path} cannot be used: it is empty; delete it" in told
    assert "copy.json cannot be used: it is the result of 'step2-ddim-" in told
    assert len(lines(folder)) == 1


# --- images made elsewhere ----------------------------------------------------------------------


@pytest.fixture
def drawn(trained, tmp_path):
    """Images of the model as a folder and as a file."""
    images = load(trained).sample(24, steps=3, batch_size=1)
    folder = tmp_path / "made"
    folder.mkdir()
    for index, image in enumerate(images):
        save_png(folder / f"{index:06d}.png", image)
    np.savez(tmp_path / "made.npz", images)
    np.savez(tmp_path / "images.npz", images=images[..., 0])
    return folder


def test_folders_and_files_have_the_figures_of_their_images(drawn, finished, tmp_path):
    (line,) = [line for line in lines(finished) if line["steps"] == 3]
    for path in (drawn, drawn.with_suffix(".npz"), drawn.with_name("images.npz")):
        folder = evaluate(asked(images=str(path), num=50_000), tmp_path / "results")
        (row,) = [row for row in lines(folder) if row["images"] == path.stem][-1:]
        assert row["rows"][0]["figures"] == line["rows"][0]["figures"]
        assert row["network_evaluations"] is None and row["sampling_seconds"] is None
    assert len(lines(folder)) == 3  # one table, since all are 24 images by the same extractor


def test_a_folder_is_compared_with_a_folder(drawn, tmp_path):
    folder = evaluate(asked(images=str(drawn), reference=str(drawn)), tmp_path / "results")
    (line,) = lines(folder)
    assert line["figures"]["pixels_frechet"]["mean"] == pytest.approx(0, abs=1e-9)
    assert line["figures"]["pixels_precision"]["mean"] == 1
    assert "Compared with 24 images" in (folder / "report.html").read_text()


def test_one_image_is_too_few(tmp_path):
    np.savez(tmp_path / "one.npz", np.zeros((1, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match="1 image; 2 are needed"):
        evaluate(asked(images=str(tmp_path / "one.npz")), tmp_path / "results")


# --- refusals and notes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": (5000,)}, "eval.steps.*1000 noise levels"),
        ({"checkpoints": ("7",)}, r"no checkpoint of step 7.*there are: 1, 2"),
        ({"checkpoints": ("best",)}, "keeps no best checkpoint"),
        ({"neighbours": 24}, "eval.neighbours=24"),
        ({"metrics": ("is",), "extractor": "classifier", "is_splits": 25}, "25 splits"),
        ({"etas": (40.0,)}, "eta"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_drawn(changes, message, workdir, monkeypatch):
    monkeypatch.setattr(module, "_measure", None)
    with pytest.raises(UserError, match=message):
        evaluate(asked(**changes), workdir)


@pytest.mark.parametrize(
    "changes", [{"num": 1}, {"metrics": ("sfid",)}, {"samplers": ("ddmi",)}, {"spacings": ("even",)}]
)
def test_misspelt_settings_are_refused_by_the_config(changes):
    config = dataclasses.replace(CONFIG, eval=dataclasses.replace(SMALL, **changes))
    with pytest.raises(ConfigError, match=f"eval.{next(iter(changes))}"):
        with_sample(config)


def test_statistics_of_another_extractor_are_refused(workdir, tmp_path):
    provenance = {"extractor": {"name": "pixels", "shape": [9, 9, 1]}}
    path = tmp_path / "reference.npz"
    write_reference(path, Reference(np.zeros(64), np.eye(64), 100, None, provenance))
    with pytest.raises(UserError, match=r"cannot be compared with extractor 'pixels'.*--mode=stats"):
        evaluate(asked(reference=str(path)), workdir)


def test_buckets_are_refused():
    with pytest.raises(UserError, match=r"gs://.*use a workdir on a file system"):
        evaluate(CONFIG, "gs://bucket/run")


def test_a_preset_of_other_data_says_so_and_shows_no_published_figures(workdir, monkeypatch, capsys):
    published = module.PUBLISHED["ddim-table1-cifar10"]
    short = published._replace(rows=tuple(row for row in published.rows if row.steps == 10 and row.eta == 0))
    monkeypatch.setitem(module.PUBLISHED, "ddim-table1-cifar10", short)
    folder = evaluate(asked(preset="ddim-table1-cifar10"), workdir)
    note = "Published figures of 'DDIM, table 1: CIFAR-10' are for cifar10; this model was trained on digits"
    assert note in capsys.readouterr().err
    assert note in (folder / "table.md").read_text()
    assert [(line["sampler"], line["spacing"]) for line in lines(folder)] == [
        ("ddim", "quad_published"),
        ("ddpm_large", "quad_published"),
    ]
    assert all(line["published"] is None for line in lines(folder))


# --- held against published figures -------------------------------------------------------------


@pytest.fixture
def published(monkeypatch, finished):
    """A table that says of these rows what was measured, but for the second, which was much better there."""
    by_steps = {line["steps"]: line["figures"]["pixels_frechet"]["mean"] for line in lines(finished)}

    def use(factor):
        rows = tuple(
            PublishedRow("ddim", 0.0, "uniform", "none", steps, {"pixels_frechet": figure * scale}, "this test")
            for (steps, figure), scale in zip(sorted(by_steps.items()), (1.01, factor), strict=True)
        )
        table = PublishedTable(
            "of the test",
            ("digits", ""),
            rows,
            {"diffusion.num_levels": CONFIG.diffusion.num_levels},
            Protocol(num=24, extractor="pixels", resize=""),
            {"pixels_frechet": 0.05},
        )
        monkeypatch.setitem(module.PUBLISHED, "step-times", table)
        return asked(preset="step-times", check=True)

    return use


def test_rows_that_agree_end_well_and_make_a_claim(published, trained, finished, capsys):
    folder = evaluate(published(0.99), trained)
    # Rows that were measured without a check are not measured again for one.
    assert folder == finished
    said = capsys.readouterr().err
    assert said.count(" is within ") == 2
    claim = Claim.read(folder)
    assert claim.holds
    assert [row["verdicts"][0]["word"] for row in claim.rows] == ["within", "within"]
    assert claim.measured["num"] == 24
    (weights,) = claim.weights.values()
    variables = select_weights(restore_trained(trained).state, ema=True)
    assert weights["sha256"] == digest_of_arrays(
        {name: np.asarray(value) for name, value in by_path(variables).items()}
    )
    assert claim.config["eval.preset"] == "step-times"
    assert claim.rows[0]["images_per_second"] > 0


def test_a_row_that_is_worse_ends_with_status_1_all_written(published, trained, finished, capsys):
    with pytest.raises(
        RefutedError, match=r"worse than published ones: see the verdicts above, and .*claim.json"
    ) as error:
        evaluate(published(0.5), trained)
    assert error.value.status == 1
    assert "is worse by" in capsys.readouterr().err
    claim = Claim.read(finished)
    assert not claim.holds
    assert [row["verdicts"][0]["word"] for row in claim.rows] == ["within", "worse"]


def test_a_row_that_is_better_refutes_nothing(published, trained):
    assert Claim.read(evaluate(published(2.0), trained)).rows[1]["verdicts"][0]["word"] == "better"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": ""}, "eval.preset is empty; one of: ddim-table1-cifar10"),
        ({"preset": "ddpm-ddim"}, "eval.num=50000 images, these of 24"),
        ({"preset": "ddpm-ddim"}, "data.name=cifar10, the model was trained on ''"),
        ({"preset": "ddpm-ddim"}, "eval.extractor=inception with eval.resize=tf1, these by eval.extractor=pixels"),
        ({"preset": "step-times"}, "nothing was published of the rows"),
        ({"images": "x"}, "eval.images=x"),
    ],
)
def test_a_check_that_could_not_be_made_is_refused_before_anything_is_drawn(
    changes, message, workdir, monkeypatch, tmp_path
):
    if "images" in changes:
        changes = {"images": str(tmp_path / "x")}
        (tmp_path / "x").mkdir()
        for index in range(24):
            save_png(tmp_path / "x" / f"{index}.png", np.full((8, 8, 1), index, np.uint8))
        message = "eval.images="
    monkeypatch.setattr(module, "_measure", None)
    with pytest.raises(UserError, match=message):
        evaluate(asked(check=True, **changes), workdir)


# --- checkpoints --------------------------------------------------------------------------------


def test_checkpoints_are_named_by_age_quality_or_step(workdir):
    regular = workdir / "checkpoints"
    assert checkpoint_steps(workdir, ("all",)) == {1: regular, 2: regular}
    assert checkpoint_steps(workdir, ("latest",)) == {2: regular}
    assert checkpoint_steps(workdir, ("2", "1", "latest")) == {1: regular, 2: regular}
    (workdir / "best").mkdir()
    (workdir / "best" / "1").symlink_to(regular / "1")
    assert checkpoint_steps(workdir, ("best",)) == {1: regular}
    (workdir / "best" / "1").rename(workdir / "best" / "7")
    assert checkpoint_steps(workdir, ("best", "latest")) == {2: regular, 7: workdir / "best"}


def test_a_workdir_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in workdir"):
        checkpoint_steps(tmp_path, ("latest",))


# --- real processes -----------------------------------------------------------------------------

COMMAND = (
    "--mode=evaluate",
    "--config.train.steps=6",
    "--config.eval.num=24",
    "--config.eval.extractor=pixels",
    "--config.eval.metrics=('fid',)",
    "--config.eval.steps=(2, 3, 4, 5)",
    "--config.sample.batch_size=4",
)


@pytest.fixture(scope="module")
def trained_by_command(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("command") / "run"
    completed(workdir, "--config.train.steps=6", "--config.train.checkpoint_every=6")
    return workdir


@pytest.fixture(scope="module")
def one_job(trained_by_command):
    """The table that one undisturbed job makes."""
    completed(trained_by_command, *COMMAND)
    (folder,) = (trained_by_command / "evaluate").iterdir()
    return folder


@pytest.fixture
def fresh(trained_by_command, tmp_path):
    return linked_run(trained_by_command, tmp_path / "run")


@pytest.mark.slow
def test_two_jobs_share_the_rows(fresh, one_job):
    runs = [Run(arguments(fresh, *COMMAND), fresh.parent / f"{i}.log", 1) for i in range(2)]
    outputs = [run.expect_success() for run in runs]
    (folder,) = (fresh / "evaluate").iterdir()
    assert folder.name == one_job.name
    assert figures(folder) == figures(one_job)
    for name in figures(folder):
        assert sum(f"{name}: pixels" in output for output in outputs) == 1
    # The table of the last to end is complete.
    assert [line["steps"] for line in lines(folder)] == [2, 3, 4, 5]
    assert {path.suffix for path in (folder / "rows").iterdir()} == {".json", ".png"}


# As the command line, but it saves after each batch, and waits there to be killed.
KILLABLE = """
import sys, time
from ddim_jax.jobs import evaluate
from ddim_jax import main
evaluate._SAVE_EVERY_SECONDS = -1
save = evaluate.RowProgress.save
def slowly(self, path):
    save(self, path)
    time.sleep(0.5)
evaluate.RowProgress.save = slowly
sys.exit(main.run(["main", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_job_killed_in_the_middle_of_a_row_goes_on(fresh, one_job):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    process = subprocess.Popen([sys.executable, "-c", KILLABLE, *arguments(fresh, *COMMAND)], env=environment)
    deadline = time.monotonic() + 240
    while len(list(fresh.glob("evaluate/*/rows/*-S3-*.partial-*.npz"))) == 0:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = (fresh / "evaluate").iterdir()
    assert len(figures(folder)) == 1
    assert list((folder / "rows").glob("*-S3-*.claim-0"))
    (output,) = completed(fresh, *COMMAND)
    assert "1 are there already" in output
    assert figures(folder) == figures(one_job)
    assert {path.suffix for path in (folder / "rows").iterdir()} == {".json", ".png"}


@pytest.mark.slow
def test_two_processes_of_one_job_measure_as_one(fresh, one_job):
    first, second = completed(fresh, *COMMAND, processes=2)
    assert "4 rows of 24 images" in first and "24 images" not in second
    (folder,) = (fresh / "evaluate").iterdir()
    one, two = figures(one_job), figures(folder)
    assert one.keys() == two.keys()
    for name in one:
        # Batches have another shape, so that single bytes of images differ by rounding.
        assert two[name]["pixels_frechet"] == pytest.approx(one[name]["pixels_frechet"], rel=1e-3)
    for grid in (folder / "rows").glob("*.png"):
        difference = load_png(grid).astype(int) - load_png(one_job / "rows" / grid.name)
        assert np.abs(difference).max() <= 1
    assert {path.suffix for path in (folder / "rows").iterdir()} == {".json", ".png"}


# --- scripts ------------------------------------------------------------------------------------


@pytest.fixture
def run_script(tmp_path):
    """Runs a script with a ``python`` that notes its arguments and ends with status 7, and an ``srun`` that runs it."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, line in (("python", f'printf "%s\\n" "$@" > {tmp_path}/arguments; exit 7'), ("srun", 'exec "$@"')):
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)

    def run(name, *given):
        environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"}
        script = str(REPOSITORY / "scripts" / name)
        done = subprocess.run([script, *given], env=environment, capture_output=True, text=True)
        noted = tmp_path / "arguments"
        return done, noted.read_text().splitlines() if noted.exists() else None

    return run


@pytest.mark.parametrize("name", ["evaluate_all.sh", "evaluate_slurm_array.sh"])
def test_scripts_pass_arguments_and_status_through(name, run_script):
    done, given = run_script(name)
    assert (done.returncode, given) == (2, None)
    assert done.stderr.startswith("usage: ") and "CONFIG WORKDIR" in done.stderr
    done, given = run_script(name, "configs/a.py", "runs/with space", "--config.eval.steps=(5, 10)")
    assert done.returncode == 7
    assert given[:5] == [
        *("-m", "ddim_jax.main", "--mode=evaluate", "--config=configs/a.py", "--workdir=runs/with space")
    ]
    assert given[-1] == "--config.eval.steps=(5, 10)"
    assert ("--config.eval.checkpoints=('all',)" in given) == (name == "evaluate_all.sh")
