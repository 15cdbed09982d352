"""Rows of tables: which there are, what they are called, and what was published for them."""

import dataclasses
import json
import random

import pytest
from etils import epath
from small import small_digits

from ddim_jax.config import Config, EvalConfig, with_sample, with_values
from ddim_jax.config.presets import TABLES
from ddim_jax.errors import UserError
from ddim_jax.names import TableName, choices
from ddim_jax.tables.published_figures import PUBLISHED, published_row
from ddim_jax.tables.rows import Result, images_row, in_table_order, model_rows

# Song et al. 2021, tables 1 and 3, by eta (None: sigma-hat) and S.
TABLE_1_STEPS = (10, 20, 50, 100, 1000)
TABLE_1 = {
    "ddim-table1-cifar10": {
        0.0: (13.36, 6.84, 4.67, 4.16, 4.04),
        0.2: (14.04, 7.11, 4.77, 4.25, 4.09),
        0.5: (16.66, 8.35, 5.25, 4.46, 4.29),
        1.0: (41.07, 18.36, 8.01, 5.78, 4.73),
        None: (367.43, 133.37, 32.72, 9.99, 3.17),
    },
    "ddim-table1-celeba": {
        0.0: (17.33, 13.73, 9.17, 6.53, 3.51),
        0.2: (17.66, 14.11, 9.51, 6.79, 3.64),
        0.5: (19.86, 16.06, 11.01, 8.09, 4.28),
        1.0: (33.12, 26.03, 18.48, 13.93, 5.98),
        None: (299.71, 183.83, 71.71, 45.20, 3.26),
    },
}


def config(levels=1000, **evaluation):
    """The smallest digits model, with T levels."""
    small = small_digits()
    return dataclasses.replace(
        small,
        diffusion=dataclasses.replace(small.diffusion, num_levels=levels),
        eval=EvalConfig(**evaluation),
    )


def result(row, **changes):
    values = dict(name=row.name, columns=row.columns, seed=row.seed, num=24, figures={"fid": 1.0}, evaluations=2)
    values |= dict(sampling_seconds=1.0, seconds=2.0, device="1 x cpu", versions={})
    return Result(**{**values, **changes})


# --- which rows ---------------------------------------------------------------------------------


def test_rows_are_checkpoint_sampler_eta_spacing_steps_seed_in_this_order():
    rows = model_rows(
        config(samplers=("ddim", "heun"), etas=(0.0, 1.0), spacings=("uniform", "quad"), steps=(5, 10), seeds=(0, 7)),
        [2, 4],
    )
    found = [
        (r.columns["checkpoint"], r.sample.sampler, r.sample.eta, r.sample.spacing, r.sample.steps, r.seed)
        for r in rows
    ]
    expected = [
        (checkpoint, sampler, eta, spacing, steps, seed)
        for checkpoint in (2, 4)
        for sampler, eta in (("ddim", 0.0), ("ddim", 1.0), ("heun", 0.0))
        for spacing in ("uniform", "quad")
        for steps in (5, 10)
        for seed in (0, 7)
    ]
    assert found == expected
    assert len({row.name for row in rows}) == len(rows)


def test_a_row_asked_for_twice_is_one_row():
    assert len(model_rows(config(steps=(5, 5, 10), seeds=(1, 1)), [2])) == 2


def test_spacing_and_clip_come_from_sample_unless_given():
    (row,) = model_rows(with_sample(config(steps=(5,)), spacing="trailing", clip="rederive_eps"), [2])
    assert (row.sample.spacing, row.sample.clip) == ("trailing", "rederive_eps")
    (row,) = model_rows(with_sample(config(steps=(5,), spacings=("quad",)), spacing="trailing"), [2])
    assert row.sample.spacing == "quad"


def test_a_preset_of_sample_is_the_rows_settings():
    (row,) = model_rows(with_sample(config(steps=(5,)), preset="ddim-paper-cifar10"), [2])
    assert (row.sample.preset, row.sample.spacing) == ("", "quad_published")


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"levels": (9, 5, 1)}, "sample.levels.*eval.steps"),
        ({"eta_per_step": (0.0,) * 5}, "sample.eta_per_step.*eval.etas"),
        ({"checkpoint": 0}, "sample.checkpoint.*eval.checkpoints"),
    ],
)
def test_settings_that_rows_would_pass_over_are_refused(sample, message):
    asked = config(steps=(5,))
    asked = dataclasses.replace(asked, sample=dataclasses.replace(asked.sample, **sample))
    with pytest.raises(UserError, match=message):
        model_rows(asked, [2])


def test_more_steps_than_levels_are_refused_with_the_key():
    with pytest.raises(UserError, match=r"eval\.steps=\(5, 61\): 61 steps, but the model has 60 noise levels"):
        model_rows(config(levels=60, steps=(5, 61)), [2])
    with pytest.raises(UserError, match=r"eval\.preset=step-times: 100 steps, but the model has 60"):
        model_rows(config(levels=60, preset="step-times"), [2])


# --- names --------------------------------------------------------------------------------------


def test_names_tell_apart_what_decides_images_and_nothing_else():
    (row,) = model_rows(config(steps=(5,)), [2])
    assert row.name.startswith("step2-ddim-S5-eta0-uniform-seed0-")
    same = with_sample(config(steps=(5,)), batch_size=3, num=7, start=4, steps=33, seed=5, format="npz")
    assert model_rows(same, [2])[0].name == row.name
    for settings in ({"ema": False}, {"precision": "highest"}, {"clip": "keep_eps"}):
        (other,) = model_rows(with_sample(config(steps=(5,)), **settings), [2])
        assert other.name != row.name
    assert model_rows(config(steps=(5,)), [4])[0].name != row.name


def test_settings_without_a_column_are_told():
    (row,) = model_rows(with_sample(config(steps=(5,)), ema=False, precision="highest"), [2])
    assert row.columns["other"] == "ema False, precision highest"


def test_names_of_image_folders_are_names_of_files():
    assert images_row("my images/a|b", {"npz": "1"}).name.startswith("images-my_images_a_b-")
    assert images_row("a", {"npz": "1"}).name != images_row("a", {"npz": "2"}).name


def test_the_order_of_a_table_does_not_depend_on_who_came_first():
    rows = model_rows(config(samplers=("ddim", "ddpm_large"), etas=(0.0, 0.5), steps=(10, 5), seeds=(1, 0)), [4, 2])
    results = [result(row) for row in [*rows, images_row("folder", {})]]
    random.Random(0).shuffle(results)
    ordered = [
        (r.columns.get("checkpoint"), r.columns.get("sampler"), r.columns.get("steps"), r.seed)
        for r in in_table_order(results)
    ]
    assert ordered[:3] == [(None, None, None, None), (2, "ddim", 5, 0), (2, "ddim", 5, 1)]
    assert ordered[-1] == (4, "ddpm_large", 10, 1)


def test_results_survive_their_file(tmp_path):
    (row,) = model_rows(config(steps=(5,)), [2])
    one = result(row, figures={"fid": 1 / 3}, sampling_seconds=None)
    path = epath.Path(tmp_path) / f"{row.name}.json"
    path.write_text(one.to_json())
    assert Result.read(path) == one
    whole = json.loads(one.to_json())
    path.write_text(json.dumps({**whole, "figures": {"fid": 1 / 4}}))
    with pytest.raises(UserError, match="its sha256 is not that of its values; delete it"):
        Result.read(path)
    del whole["sha256"]  # as an older version has written it
    path.write_text(json.dumps(whole))
    assert Result.read(path) == one
    changes = [
        *({"more": 1}, {"name": "other"}, {"num": "24"}, {"figures": {"fid": "low"}}, {"seed": True}),
        *({"columns": {}}, {"columns": {**whole["columns"], "sampler": "dimm"}}, {"columns": {"images": 3}}),
    ]
    for wrong in ("[]", "{}", "nonsense", *(json.dumps({**whole, **change}) for change in changes)):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"cannot be used: .*; delete it to measure that row again"):
            Result.read(path)


# --- published ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE_1)
def test_table_1_is_as_printed(name):
    found = {}
    for row in PUBLISHED[name].rows:
        eta = None if row.sampler == "ddpm_large" else row.eta
        found.setdefault(eta, []).append((row.steps, row.figures["fid"]))
        assert "table 1" in row.source
    expected = {eta: list(zip(TABLE_1_STEPS, fids, strict=True)) for eta, fids in TABLE_1[name].items()}
    assert found == expected


def test_table_1_is_drawn_as_in_the_papers_code():
    for name, spacing in (("ddim-table1-cifar10", "quad_published"), ("ddim-table1-celeba", "uniform_published")):
        for row in PUBLISHED[name].rows:
            # All of a thousand levels are no quadratic list.
            all_levels = (row.steps, spacing) == (1000, "quad_published")
            assert row.spacing == ("uniform_published" if all_levels else spacing)
            assert row.clip == ("rederive_eps" if row.sampler == "ddpm_large" else "none")


def test_table_3_is_as_printed():
    def fids(name, eta):
        return [row.figures["fid"] for row in PUBLISHED[name].rows if row.sampler == "ddim" and row.eta == eta]

    assert fids("ddim-table3-bedroom", 0.0) == [16.95, 8.89, 6.75, 6.62]
    assert fids("ddim-table3-bedroom", 1.0) == [42.78, 22.77, 10.81, 6.81]
    assert fids("ddim-table3-church", 0.0) == [19.45, 12.47, 10.84, 10.58]
    assert fids("ddim-table3-church", 1.0) == [51.56, 23.37, 11.16, 8.27]
    for name, fid in (("ddim-table3-bedroom", 6.36), ("ddim-table3-church", 7.89)):
        last = PUBLISHED[name].rows[-1]
        assert (last.sampler, last.steps, last.figures["fid"]) == ("ddpm_small", 1000, fid)


def test_ddpm_and_ddim_are_as_measured_by_their_source():
    rows = {(row.sampler, row.eta, row.steps): dict(row.figures) for row in PUBLISHED["ddpm-ddim"].rows}
    assert len(rows) == 16
    assert rows["ddpm_large", 0.0, 1000] == {"fid": 3.0459, "is_mean": 9.4515}
    assert [rows["ddpm_large", 0.0, s]["fid"] for s in (100, 50, 10)] == [46.55, 85.22, 266.75]
    assert [rows["ddpm_small", 0.0, s]["fid"] for s in (1000, 100, 50, 10)] == [5.37, 11.22, 15.05, 41.05]
    assert [rows["ddim", 0.0, s]["fid"] for s in (1000, 100, 50, 10)] == [4.1892, 6.0508, 7.7011, 18.9559]
    assert all(rows["ddim", 1.0, s] == {} for s in (1000, 100, 50, 10))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_preset_makes_its_rows(name):
    rows = model_rows(with_values(config(preset=name), PUBLISHED[name].model), [2])
    assert len(rows) == len(PUBLISHED[name].rows)
    for row, published in zip(rows, PUBLISHED[name].rows, strict=True):
        sample = row.sample
        assert (sample.sampler, sample.eta, sample.spacing, sample.clip, sample.steps) == published[:5]
        assert bool(published.source) == bool(published.figures)


def test_presets_are_those_of_the_config():
    for name in PUBLISHED:
        assert Config(eval=EvalConfig(preset=name)).eval.preset == name
    assert set(choices(TableName)) == {*PUBLISHED, *TABLES}


def test_a_published_row_is_found_only_where_all_of_it_agrees():
    found = published_row("cifar10", "ddim", 0.0, "quad_published", "none", 50)
    assert found is not None and found.figures == {"fid": 4.67}
    for other in (
        ("celeb_a", "ddim", 0.0, "quad_published", "none", 50),
        ("cifar10", "ddim", 0.1, "quad_published", "none", 50),
        ("cifar10", "ddim", 0.0, "quad", "none", 50),
        ("cifar10", "ddim", 0.0, "quad_published", "keep_eps", 50),
        ("cifar10", "ddim", 0.0, "quad_published", "none", 51),
        ("cifar10", "ddim", 1.0, "uniform", "none", 50),
    ):
        assert published_row(*other) is None
