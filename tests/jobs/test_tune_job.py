"""Steps tuned for a network: the job, and all that draws with them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from runs import linked_run
from small import CONFIGS, DIGITS, SMALL, changed, small_digits, tiny_config

import ddim_jax
from ddim_jax import main
from ddim_jax.config import EvalConfig, SampleConfig, deciding_values, with_sample
from ddim_jax.configured import build_levels, build_sampler
from ddim_jax.data.sources import DigitsSource
from ddim_jax.errors import UserError
from ddim_jax.images import load_png, save_png
from ddim_jax.jobs.edit import edit
from ddim_jax.jobs.evaluate import evaluate
from ddim_jax.jobs.interpolate import interpolate
from ddim_jax.jobs.reconstruct import reconstruct
from ddim_jax.jobs.sample import sample
from ddim_jax.jobs.sweep import sweep
from ddim_jax.jobs.train import train
from ddim_jax.jobs.trajectory import trajectory
from ddim_jax.jobs.tune import tune
from ddim_jax.one_writer import one_writer
from ddim_jax.sampling.tuned_steps import network_facts, read_tuned, tuned_path

TUNE = {"tune__steps": (2, 3), "tune__num": 8, "tune__fine_steps": 12, "tune__order": 2}


def small(**changes):
    return changed(small_digits(), **{**TUNE, "sample__num": 3, "sample__steps": 3, **changes})


def tuned(**settings):
    """Drawing with what was tuned."""
    return with_sample(small(), **{"spacing": "tuned", "sampler": "tuned", **settings})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    train(small(), workdir)
    tune(small(), workdir)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(trained / "tuned", linked_run(trained, tmp_path / "run") / "tuned")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def pipe(trained):
    return ddim_jax.load(trained)


def only_file(workdir):
    (path,) = (workdir / "tuned").glob("*.json")
    return path


def one_line(capsys, *arguments):
    capsys.readouterr()
    assert main.run(["ddim_jax", *map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("ddim_jax: error: ")]
    return line


# --- the job ------------------------------------------------------------------------------------


def test_what_is_written(trained):
    path = only_file(trained)
    assert path == tuned_path(trained, network_facts(small(), 2, None))
    found = read_tuned(path)
    assert list(found) == [2, 3]
    for steps, each in found.items():
        assert len(each.levels["levels"]) == steps
        assert np.shape(each.coefficients) == (steps, 3)
        assert set(each.others) == {"ddim", "dpmpp_2m", "unipc3"}
        assert 0 < each.distance < max(other["distance"] for other in each.others.values())
        assert each.tuned_with["num"] == 8
    assert json.loads(path.read_text())["network"]["checkpoint_step"] == 2


def test_the_table_that_is_printed(workdir, capsys):
    assert main.run(["main", f"--workdir={workdir}", "--mode=tune", "--config.tune.steps=(4,)"]) == 0
    told = capsys.readouterr().err
    (line,) = [line for line in told.splitlines() if line.startswith("    4 ")]
    of_four = read_tuned(only_file(workdir))[4]
    assert f"{of_four.distance:.4f}" in line
    assert f"{of_four.others['unipc3']['distance']:.4f} {of_four.others['unipc3']['spacing']}" in line


def test_a_second_call_adds_and_replaces(workdir):
    before = read_tuned(only_file(workdir))
    tune(small(tune__steps=(3, 4), tune__seed=5), workdir)
    after = read_tuned(only_file(workdir))
    assert list(after) == [2, 3, 4]
    assert after[2] == before[2]
    assert after[3] != before[3]
    assert after[3].tuned_with["seed"] == 5


def test_the_same_call_finds_the_same(workdir):
    before = only_file(workdir).read_bytes()
    tune(small(), workdir)
    assert only_file(workdir).read_bytes() == before


def test_a_damaged_file_is_replaced(workdir, capsys):
    before = only_file(workdir).read_bytes()
    only_file(workdir).write_bytes(before[:-40])
    tune(small(), workdir)
    assert "it is replaced now" in capsys.readouterr().err
    assert only_file(workdir).read_bytes() == before


def test_one_job_at_a_time(workdir, capsys):
    path = only_file(workdir)
    with one_writer(path.parent, path.stem, str(path), ""):
        assert "is at work there" in one_line(capsys, *DIGITS, f"--workdir={workdir}", "--mode=tune")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param(
            "edm", {"diffusion__schedule": "edm", "diffusion__time_sampling": "lognormal"}, marks=pytest.mark.slow
        ),
        ("flow", {"diffusion__schedule": "flow", "diffusion__time_sampling": "continuous"}),
        pytest.param("zero terminal SNR", {"diffusion__zero_terminal_snr": True}, marks=pytest.mark.slow),
        ("classes", {"model__num_classes": 10, "train__label_dropout": 0.5, "sample__guidance_scale": 2.0}),
    ],
)  # fmt: skip
def test_other_processes_and_networks(tmp_path, name, changes):
    config = small(**changes, tune__steps=(3,))
    train(config, tmp_path / "run")
    tune(config, tmp_path / "run")
    (found,) = read_tuned(only_file(tmp_path / "run")).values()
    assert list(found.levels) == (["sigmas"] if name in ("edm", "flow") else ["levels"])
    pipe = ddim_jax.load(tmp_path / "run")
    one, other = (pipe.sample(2, spacing="tuned", sampler=sampler) for sampler in ("tuned", "dpmpp_2m"))
    assert not np.array_equal(one, other)
    if name == "classes":
        # What was tuned for all of them serves each.
        assert pipe.sample(2, spacing="tuned", label=3).shape == one.shape


def test_networks_that_draw_from_pictures(tmp_path, cache):
    config = changed(
        tiny_config(CONFIGS / "superres.py"), **SMALL, **TUNE, model__init="torch", train__final_sample_steps=()
    )
    train(config, tmp_path / "run")
    tune(config, tmp_path / "run")
    assert list(read_tuned(only_file(tmp_path / "run"))) == [2, 3]


# --- who draws with them ------------------------------------------------------------------------


def test_images_of_the_command_and_of_python_are_the_same(workdir, pipe):
    folder = sample(tuned(), workdir)
    images = pipe.sample(3, steps=3, spacing="tuned", sampler="tuned")
    for index, image in enumerate(images):
        np.testing.assert_array_equal(load_png(folder / f"{index:06d}.png"), image)
    record = json.loads((folder / "run.json").read_text())["config"]
    found = read_tuned(only_file(workdir))[3]
    assert record["sample.levels"] == found.levels["levels"]
    assert record["sample.coefficients"] == np.ravel(found.coefficients).tolist()
    # The record says it all: the file is not needed.
    settings = {name: record[f"sample.{name}"] for name in ("levels", "coefficients", "spacing", "sampler")}
    alone = dataclasses.replace(pipe, workdir=None)
    np.testing.assert_array_equal(alone.sample(3, **settings), images)


def test_each_call_has_the_steps_that_it_asks_for(pipe):
    images = {steps: pipe.sample(2, steps=steps, spacing="tuned", sampler="tuned") for steps in (2, 3)}
    of_three = dataclasses.replace(pipe, config=pipe._config(steps=3, spacing="tuned", sampler="tuned"))
    assert build_sampler(of_three.config).steps == 3
    np.testing.assert_array_equal(of_three.sample(2), images[3])
    np.testing.assert_array_equal(of_three.sample(2, steps=2), images[2])
    np.testing.assert_array_equal(of_three.decode(of_three.noise([0, 1]), steps=2), images[2])
    np.testing.assert_array_equal(
        of_three.sample(2, sampler="unipc2"), pipe.sample(2, steps=3, spacing="tuned", sampler="unipc2")
    )
    np.testing.assert_array_equal(
        of_three.sample(2, steps=3, spacing="quad", sampler="ddim"), pipe.sample(2, steps=3, spacing="quad")
    )
    np.testing.assert_array_equal(of_three.sample(2, preset="diffusers"), pipe.sample(2, steps=3, preset="diffusers"))


def test_any_sampler_visits_the_levels(pipe, trained):
    config = pipe._config(steps=3, spacing="tuned", sampler="ddim")
    assert build_levels(config).tolist() == read_tuned(only_file(trained))[3].levels["levels"]
    assert config.sample.coefficients == ()


def test_tuned_again_they_are_other_images_in_another_folder(workdir):
    first = sample(tuned(), workdir)
    plain = sample(small(), workdir)
    tune(small(tune__seed=5, tune__num=4), workdir)
    assert sample(tuned(), workdir) != first
    assert sample(small(), workdir) == plain


def test_what_is_not_tuned_keeps_its_hashes():
    assert not {"coefficients", "sigmas"} & deciding_values(SampleConfig()).keys()


def test_rows_of_a_table(workdir):
    settings = EvalConfig(
        num=4, steps=(2, 3), samplers=("ddim", "tuned"), spacings=("uniform", "tuned"), extractor="pixels",
        metrics=("fid",), batch_size=4,
    )  # fmt: skip
    config = dataclasses.replace(small(), eval=settings)
    folder = evaluate(config, workdir)
    rows = [json.loads(path.read_text()) for path in (folder / "rows").glob("*.json")]
    found = sorted((row["columns"]["sampler"], row["columns"]["spacing"], row["columns"]["steps"]) for row in rows)
    ways = [("ddim", "tuned"), ("ddim", "uniform"), ("tuned", "tuned")]
    assert found == [(*way, steps) for way in ways for steps in (2, 3)]
    assert all(row["columns"]["other"] == "" for row in rows)
    tune(small(tune__steps=(3,), tune__seed=5, tune__num=4), workdir)
    evaluate(config, workdir)
    # Those of S = 2 are as they were, and so are rows of other spacings.
    assert len(list((folder / "rows").glob("*.json"))) == len(rows) + 2


@pytest.mark.parametrize("job", [trajectory, interpolate, sweep, reconstruct, edit])
def test_other_jobs(workdir, job):
    config = changed(
        with_sample(small(), spacing="tuned"), sweep__steps=(2, 3), sweep__samplers=("tuned",),
        reconstruct__steps=(2, 3), reconstruct__num=2, edit__num=2, trajectory__num=2, trajectory__moments=2,
        interpolate__points=2, interpolate__corners=(), interpolate__first=(0,), interpolate__second=(1,),
    )  # fmt: skip
    job(config, workdir)
    (first,) = (workdir / job.__name__).iterdir()
    tune(small(tune__seed=5, tune__num=4), workdir)
    job(config, workdir)
    assert len(list((workdir / job.__name__).iterdir())) == 2, first


# --- what cannot be -----------------------------------------------------------------------------


def run_arguments(workdir, *more):
    return (f"--workdir={workdir}", "--mode=sample", "--config.sample.spacing=tuned", *more)


def test_nothing_is_tuned_for_this_network(trained, capsys):
    line = one_line(capsys, *run_arguments(trained, "--config.sample.clip=keep_eps"))
    assert "nothing is tuned for step 2" in line
    command = f"run ddim_jax --workdir={trained} --mode=tune --config.tune.steps=3 --config.sample.clip=keep_eps"
    assert command in line


def test_nothing_is_tuned_for_so_many_steps(trained, capsys):
    line = one_line(capsys, *run_arguments(trained, "--config.sample.steps=7"))
    assert "sample.steps=7" in line
    assert "which has 2, 3; choose one of these, or run ddim_jax --workdir=" in line
    assert "--config.tune.steps=7" in line


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: values.update(sha256="0" * 64),
        lambda values: values.pop("sha256"),
        lambda values: values["steps"]["3"].pop("coefficients"),
        lambda values: values["steps"]["3"].update(distance="near"),
    ],
)
def test_a_damaged_file(workdir, spoil, capsys):
    path = only_file(workdir)
    values = json.loads(path.read_text())
    spoil(values)
    path.write_text(json.dumps(values))
    line = one_line(capsys, *run_arguments(workdir))
    assert f"{path} cannot be used" in line
    assert "run --mode=tune again, which replaces it" in line


def test_half_a_file(workdir, capsys):
    path = only_file(workdir)
    path.write_bytes(path.read_bytes()[:100])
    assert "no JSON" in one_line(capsys, *run_arguments(workdir))


def test_the_sampler_on_other_levels(trained, pipe, capsys):
    line = one_line(capsys, f"--workdir={trained}", "--mode=sample", "--config.sample.sampler=tuned")
    assert "sample.spacing=uniform: sample.sampler=tuned has coefficients for the levels that were tuned" in line
    with pytest.raises(UserError, match=r"set sample\.spacing=tuned"):
        pipe.sample(1, steps=3, sampler="tuned")
    line = one_line(
        capsys, f"--workdir={trained}", "--mode=evaluate", "--config.eval.samplers=('ddim','tuned')",
        "--config.eval.extractor=pixels", "--config.eval.num=4", "--config.eval.metrics=('fid',)",
    )  # fmt: skip
    assert "add tuned to eval.spacings" in line


def test_coefficients_of_another_sampler(trained, capsys):
    line = one_line(capsys, *run_arguments(trained, "--config.sample.coefficients=(1.0,1.0)"))
    assert "sample.sampler=ddim has its own" in line


def test_a_way_from_the_middle_has_no_coefficients(workdir, pipe, tmp_path):
    digits = np.stack([DigitsSource()[i].image for i in range(2)])
    with pytest.raises(UserError, match="and none of a way from level 100"):
        pipe.recover(digits, 100, steps=3, spacing="tuned", sampler="tuned")
    assert pipe.recover(digits, 100, steps=3, spacing="tuned").recovered.shape == digits.shape
    save_png(tmp_path / "mask.png", np.array([[0] * 4 + [255] * 4] * 8, np.uint8)[..., None])
    with pytest.raises(UserError, match="sampler 'tuned' cannot inpaint"):
        edit(changed(tuned(), edit__task="inpaint", edit__mask=str(tmp_path / "mask.png"), edit__num=1), workdir)


def test_before_training_nothing_can_be_tuned(tmp_path, capsys):
    for settings in (
        ["--config.sample.spacing=tuned"],
        ["--config.sample.spacing=tuned", "--config.sample.sampler=tuned"],
    ):
        line = one_line(capsys, *DIGITS, f"--workdir={tmp_path / 'run'}", *settings)
        assert "name a workdir where --mode=tune has run, or another spacing" in line
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_workdir():
    pipe = ddim_jax.load("mnist-small")
    with pytest.raises(UserError, match="this one is in none; put it into one by --mode=import"):
        pipe.sample(1, steps=5, spacing="tuned")


def test_more_steps_than_there_are_to_choose_from(workdir, capsys):
    line = one_line(
        capsys, f"--workdir={workdir}", "--mode=tune", "--config.tune.steps=20", "--config.tune.fine_steps=10"
    )
    assert "tune.steps=(20,): the fine trajectory of tune.fine_steps=10 visits" in line
