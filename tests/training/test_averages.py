"""Averages of any width: what a run keeps of them, and what is made of that by Python, the jobs and other files."""

import dataclasses
import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from runs import arguments, digest, final_state, linked_run
from small import changed, small_digits

import ddim_jax
from ddim_jax import main
from ddim_jax.config import ConfigError, EvalConfig, SampleConfig, deciding_values, with_sample, with_values
from ddim_jax.errors import UserError
from ddim_jax.jobs.average import average
from ddim_jax.jobs.evaluate import evaluate
from ddim_jax.jobs.export import export
from ddim_jax.jobs.import_weights import import_weights
from ddim_jax.jobs.sample import sample
from ddim_jax.jobs.train import train
from ddim_jax.jobs.tune import tune
from ddim_jax.training.averages import plan_average
from ddim_jax.training.checkpoint import restore_trained
from ddim_jax.training.checksums import by_path
from ddim_jax.weights.array_files import read_safetensors
from ddim_jax.writers import MetricWriter

WIDTHS = (0.05, 0.10)
STEPS = 12


def small(**changes):
    settings = {
        **{"train__steps": STEPS, "train__ema_widths": WIDTHS, "train__ema_snapshot_every": 1, "train__keep_last": 1},
        **{"train__checkpoint_every": 6, "train__sample_every": 0, "sample__num": 3, "sample__steps": 3},
        **changes,
    }
    return changed(small_digits(), **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("averages") / "run"
    train(small(), workdir)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(trained / "averages", linked_run(trained, tmp_path / "run") / "averages")
    return tmp_path / "run"


def largest_difference(one, other):
    one, other = by_path(one), by_path(other)
    assert one.keys() == other.keys()
    return max((np.abs(np.asarray(one[name]) - np.asarray(other[name])).max() for name in one), default=0)


def assert_equal(one, other):
    assert largest_difference(one, other) == 0


def one_line(capsys, *arguments):
    capsys.readouterr()
    assert main.run(["ddim_jax", *map(str, arguments)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    return line


# --- what a run keeps ---------------------------------------------------------------------------


def test_snapshots_stay_when_checkpoints_go(trained):
    assert [path.name for path in sorted((trained / "averages").iterdir())] == [
        f"{step:08d}.safetensors" for step in range(1, STEPS + 1)
    ]
    assert [path.name for path in (trained / "checkpoints").iterdir() if path.name.isdigit()] == [str(STEPS)]
    contents = read_safetensors(trained / "averages" / f"{STEPS:08d}.safetensors")
    assert json.loads(contents.texts["ddim_jax.averages"]) == {
        **{"step": STEPS, "widths": list(WIDTHS), "dtype": "float32"},
    }
    in_checkpoint = restore_trained(trained).state.power_averages
    for place, width in enumerate(WIDTHS):
        for name, leaf in by_path(in_checkpoint[place]).items():
            np.testing.assert_array_equal(contents.arrays[f"{width}/{name}"], leaf)


def test_training_is_the_same_without(trained, tmp_path):
    train(small(train__ema_widths=()), tmp_path / "plain")
    plain, kept = restore_trained(tmp_path / "plain").state, restore_trained(trained).state
    for field in dataclasses.fields(plain):
        assert_equal(getattr(plain, field.name), getattr(kept, field.name))
    assert not (tmp_path / "plain" / "averages").exists()


def test_the_averages_are_those_of_the_formula(tmp_path):
    """Of the parameters after each step, in float64."""
    from ddim_jax.training.power_average import gamma_of, newest_share

    train(small(train__steps=5, train__checkpoint_every=1, train__keep_last=9), tmp_path / "run")
    averages = [None, None]
    for step in range(1, 6):
        state = restore_trained(tmp_path / "run", step).state
        new = jax.tree.map(np.float64, state.params)
        for place, width in enumerate(WIDTHS):
            share = newest_share(gamma_of(width), np.float64(step))
            old = new if averages[place] is None else averages[place]
            averages[place] = jax.tree.map(lambda a, n, share=share: a + share * (n - a), old, new)
            assert largest_difference(state.power_averages[place]["params"], averages[place]) < 1e-7


@pytest.mark.parametrize(
    "changes",
    [
        {"train__ema_on_host": True},
        {"train__steps_per_call": 4},
        pytest.param({"train__accumulate": 2}, marks=pytest.mark.slow),
    ],
)
def test_on_the_host_in_groups_and_in_parts(trained, tmp_path, changes):
    train(small(**changes), tmp_path / "run")
    one, other = restore_trained(trained).state, restore_trained(tmp_path / "run").state
    # Parts of a batch add up to another rounding, which Adam inflates where a gradient is nearly 0.
    rounding = 2e-4 if "train__accumulate" in changes else 1e-5
    assert largest_difference(one.power_averages, other.power_averages) < rounding
    every = changes.get("train__steps_per_call", 1)
    assert len(list((tmp_path / "run" / "averages").iterdir())) == STEPS // every


def snapshots(workdir):
    return {path.name: read_safetensors(path) for path in (workdir / "averages").iterdir()}


ON = (
    "--config.train.ema_widths=(0.05,0.1)",
    "--config.train.ema_snapshot_every=2",
    "--config.train.checkpoint_every=3",
)


@pytest.mark.parametrize("more", [(), ("--config.train.ema_on_host=true",)])
def test_a_stopped_run_ends_with_the_same_averages(tmp_path, monkeypatch, more):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    argv = [*ON, *more, "--config.train.steps=7"]
    assert main.run(["main", *arguments(whole, *argv)]) == 0
    write = MetricWriter.scalars

    def terminated_at_step_5(self, step, values):
        write(self, step, values)
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "scalars", terminated_at_step_5)
        assert main.run(["main", *arguments(stopped, *argv)]) == 0
    assert load_step(stopped) == 5
    # As if it had been killed after the snapshot, before the checkpoint.
    shutil.rmtree(stopped / "checkpoints" / "5")
    assert main.run(["main", *arguments(stopped, *argv)]) == 0
    assert digest(final_state(stopped)) == digest(final_state(whole))
    found, expected = snapshots(stopped), snapshots(whole)
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].texts == expected[name].texts
        assert_equal(found[name].arrays, expected[name].arrays)


def load_step(workdir):
    return restore_trained(workdir).step


def test_a_run_without_them_goes_on(tmp_path, capsys):
    """And is not given any on the way, since they would not be of the whole run."""
    workdir = tmp_path / "run"
    assert main.run(["main", *arguments(workdir, "--config.train.steps=2")]) == 0
    config = json.loads((workdir / "config.json").read_text())
    for name in ("ema_widths", "ema_snapshot_every", "ema_snapshot_dtype"):
        del config["train"][name]
    (workdir / "config.json").write_text(json.dumps(config))
    assert main.run(["main", *arguments(workdir, "--config.train.steps=3")]) == 0
    assert load_step(workdir) == 3
    line = one_line(capsys, *arguments(workdir, *ON, "--config.train.steps=4"))
    assert "train.ema_widths (there (), now (0.05, 0.1))" in line


# --- averages of any width ----------------------------------------------------------------------


def test_a_tracked_width_is_exact(trained):
    state = restore_trained(trained).state
    for place, width in enumerate(WIDTHS):
        pipe = ddim_jax.load(trained, ema_width=width)
        assert_equal(pipe.params, state.power_averages[place]["params"])
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(pipe.params))


def test_another_width_is_the_tracked_one(trained, tmp_path):
    """With a snapshot of each step there is hardly an error left."""
    train(small(train__ema_widths=(0.08, 0.14)), tmp_path / "run")
    tracked = restore_trained(tmp_path / "run").state
    for place, width in enumerate((0.08, 0.14)):
        plan = plan_average(trained, small(), STEPS, width)
        assert 0 < plan.error < 0.06
        found = ddim_jax.load(trained, ema_width=width).params
        moved = largest_difference(found, restore_trained(trained).state.params)
        error = largest_difference(found, tracked.power_averages[place]["params"])
        assert error < 0.02 * moved


def test_later_snapshots_change_nothing(trained, workdir):
    """An average at step 6 is the same whether the run went on or not."""
    plan = plan_average(workdir, small(), 6, 0.08)
    assert plan.snapshots == [1, 2, 3, 4, 5]
    assert plan.weights.shape == (6, 2) and plan.weights.sum() == pytest.approx(1)


def test_the_jobs_draw_with_it(workdir):
    usual = ddim_jax.load(workdir)
    pipe = ddim_jax.load(workdir, ema_width=0.08)
    expected = pipe.sample(3, steps=3)
    folder = sample(with_sample(small(), ema_width=0.08, format="npz"), workdir)
    with np.load(folder / "samples.npz") as stored:
        np.testing.assert_array_equal(stored["arr_0"], expected)
    assert (expected != usual.sample(3, steps=3)).any()
    record = json.loads((folder / "run.json").read_text())
    assert record["average"]["width"] == 0.08 and record["average"]["snapshots"] == list(range(1, STEPS))
    assert sample(with_sample(small(), format="npz"), workdir) != folder
    (workdir / "averages" / "00000005.safetensors").unlink()
    assert sample(with_sample(small(), ema_width=0.08, format="npz"), workdir) != folder


def test_hashes_are_those_without_it():
    assert "ema_width" not in deciding_values(SampleConfig())


def test_a_row_for_each_width(workdir):
    settings = EvalConfig(
        num=4, steps=(2,), ema_widths=(0, 0.05, 0.08), extractor="pixels", metrics=("fid",), batch_size=4
    )  # fmt: skip
    folder = evaluate(dataclasses.replace(small(), eval=settings), workdir)
    rows = [json.loads(path.read_text()) for path in (folder / "rows").glob("*.json")]
    found = {row["columns"]["other"]: row["figures"]["pixels_frechet"] for row in rows}
    assert found.keys() == {"", "ema_width 0.05", "ema_width 0.08"}
    assert len(set(found.values())) == 3
    # A row is that of the width asked for alone.
    alone = dataclasses.replace(settings, ema_widths=())
    again = evaluate(dataclasses.replace(with_sample(small(), ema_width=0.08), eval=alone), workdir)
    assert again == folder and len(list((folder / "rows").glob("*.json"))) == 3


def test_files_of_averages(workdir, tmp_path):
    asked = with_values(small(), {"eval.ema_widths": (0.05, 0.08)})
    files = average(asked, workdir)
    assert [path.name for path in files] == ["step12-width0.05.safetensors", "step12-width0.08.safetensors"]
    expected = ddim_jax.load(workdir, ema_width=0.08)
    loaded = ddim_jax.load_weights(files[1])
    assert_equal(loaded.params, expected.params)
    # Of these no others can be made, so that nobody asks for them.
    assert loaded.config.train.ema_widths == () and loaded.config.sample.ema_width == 0
    np.testing.assert_array_equal(loaded.sample(2, steps=3), expected.sample(2, steps=3))
    import_weights(with_values(loaded.config, {"weights.path": str(files[1])}), tmp_path / "imported")
    assert_equal(ddim_jax.load(tmp_path / "imported").params, expected.params)
    assert average(asked, workdir) == files


def test_an_export_has_it(workdir):
    asked = with_values(small(), {"sample.ema_width": 0.08, "weights.format": "npz"})
    out = export(asked, workdir)
    assert out.name == "step12-width0.08-float32.npz"
    assert_equal(ddim_jax.load_weights(out).params, ddim_jax.load(workdir, ema_width=0.08).params)


def test_snapshots_in_float16(tmp_path, trained):
    train(small(train__ema_snapshot_dtype="float16"), tmp_path / "run")
    sizes = [(path / "averages" / "00000003.safetensors").stat().st_size for path in (trained, tmp_path / "run")]
    assert sizes[1] < 0.6 * sizes[0]
    one, other = (ddim_jax.load(path, ema_width=0.08).params for path in (trained, tmp_path / "run"))
    assert 0 < largest_difference(one, other) < 5e-3
    one, other = (ddim_jax.load(path, ema_width=0.05).params for path in (trained, tmp_path / "run"))
    assert_equal(one, other)  # from the checkpoint


def test_statistics_of_batch_norms_are_averaged(tmp_path):
    settings = {"model__name": "residual_unet", "model__norm": "batch", "model__attention_resolutions": ()}
    diffusion = {"diffusion__schedule": "offset_cosine", "diffusion__num_levels": 1000}
    config = small(**settings, **diffusion, diffusion__time_sampling="continuous", train__steps=6)
    train(config, tmp_path / "run")
    pipe = ddim_jax.load(tmp_path / "run", ema_width=0.08)
    found, state = by_path(pipe.variables["batch_stats"]), restore_trained(tmp_path / "run").state
    variances = [name for name in found if name.endswith("/variance")]
    assert variances and all((found[name] > 0).all() for name in variances)
    low, high = (by_path(average["batch_stats"]) for average in state.power_averages)
    newest = by_path(state.batch_stats)
    for name in found:
        # Between two averages, as far as rounding and the error of few steps go.
        scale = np.abs(low[name] - high[name]).max() + np.abs(newest[name] - low[name]).max()
        assert np.abs(found[name] - (low[name] + high[name]) / 2).max() <= scale
    assert pipe.sample(2, steps=2).shape == (2, 8, 8, 1)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train.ema_widths": (0.3,)}, r"train.ema_widths=\(0.3,\): must lie in 0.001 ... 0.28"),
        ({"train.ema_widths": (0.05, 0.05)}, "occurs more than once"),
        ({"sample.ema_width": 0.5}, "sample.ema_width=0.5: must lie in 0 ... 0.28"),
        ({"sample.ema_width": 0.0001}, "must be 0, for the average of train.ema_decay, or lie in 0.001 ... 0.28"),
        ({"eval.ema_widths": (0, 0.0001)}, "eval.ema_widths=0.0001"),
        ({"sample.ema_width": 0.08, "sample.ema": False}, "has no width"),
    ],
)
def test_values_that_cannot_be(changes, line):
    with pytest.raises(ConfigError, match=line.replace("has no width", "have no width")):
        with_values(small(), changes)


@pytest.mark.parametrize("width", ["wide", 0.5, -1, True, 1e-9])
def test_widths_of_load(trained, width):
    with pytest.raises(UserError, match=r"a width in 0.001 ... 0.28 is meant"):
        ddim_jax.load(trained, ema_width=width)
    with pytest.raises(UserError, match=r"ha(ve|s) no width"):
        ddim_jax.load(trained, ema=False, ema_width=0.08)


def test_a_width_out_of_reach(workdir, capsys):
    for path in (workdir / "averages").iterdir():
        if path.name[:8] not in ("00000004", "00000008"):
            path.unlink()
    line = one_line(capsys, f"--workdir={workdir}", "--mode=sample", "--config.sample.ema_width=0.01")
    reach = re.search(r"miss the profile of this width by \d+%; within 10% they reach ([\d.]+) \.\.\. ([\d.]+)", line)
    assert reach and "the 2 snapshots before step 12" in line
    for edge, beyond in zip(map(float, reach.groups()), (-0.005, 0.005), strict=True):
        assert plan_average(workdir, small(), STEPS, edge).error <= 0.1
        with pytest.raises(UserError, match="miss the profile"):
            plan_average(workdir, small(), STEPS, round(edge + beyond, 3))


def test_no_snapshots_and_no_averages(workdir, tmp_path, capsys):
    shutil.rmtree(workdir / "averages")
    line = one_line(capsys, f"--workdir={workdir}", "--mode=evaluate", "--config.eval.ema_widths=(0.02,0.05)")
    assert "ema_width=0.02: the 0 snapshots before step 12" in line
    assert_equal(
        ddim_jax.load(workdir, ema_width=0.1).params, restore_trained(workdir).state.power_averages[1]["params"]
    )
    train(small(train__ema_widths=(), train__steps=1), tmp_path / "plain")
    line = one_line(capsys, f"--workdir={tmp_path / 'plain'}", "--mode=average", "--config.sample.ema_width=0.08")
    assert "kept no averages of which others can be made (train.ema_widths is empty)" in line
    assert "--mode=average needs a width" in one_line(capsys, f"--workdir={workdir}", "--mode=average")


def test_a_snapshot_that_cannot_be_used(workdir, capsys):
    path = workdir / "averages" / "00000007.safetensors"
    contents = path.read_bytes()
    path.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
    asked = (f"--workdir={workdir}", "--mode=sample", "--config.sample.ema_width=0.08")
    line = one_line(capsys, *asked)
    assert "00000007.safetensors is damaged" in line and "or delete it" in line
    shutil.copy(workdir / "averages" / "00000006.safetensors", path)
    assert "is not one of step 7 of this run: delete it" in one_line(capsys, *asked)
    path.unlink()
    assert ddim_jax.load(workdir, ema_width=0.08).average["snapshots"] == [*range(1, 7), *range(8, STEPS)]


def test_steps_are_tuned_for_the_average_of_the_snapshots_that_are_there(workdir):
    config = changed(small(), tune__steps=(2,), tune__num=4, tune__fine_steps=6, tune__order=1)
    config = with_sample(config, ema_width=0.07, steps=2, num=1)
    tune(config, workdir)
    drawing = with_sample(config, spacing="tuned")
    assert sample(drawing, workdir) == sample(drawing, workdir)
    next(iter(sorted((workdir / "averages").iterdir()))).unlink()
    with pytest.raises(UserError, match="nothing is tuned for"):
        sample(drawing, workdir)
