"""Our figures held against published ones."""

import numpy as np
import pytest
from test_report import COMPARABLE, result

from ddim_jax.config import Config, flatten
from ddim_jax.errors import UserError
from ddim_jax.tables.claim_file import FILE_NAME, CheckedLine, Claim
from ddim_jax.tables.lines import lines
from ddim_jax.tables.published_figures import PUBLISHED, Protocol
from ddim_jax.tables.verdicts import judge, obstacles, verdicts_of

TABLE = PUBLISHED["ddim-table1-cifar10"]
MODEL = flatten(Config()) | TABLE.model
MEASURED = {"num": 50_000, "extractor": {"name": "inception-tf1"}, "reference": {"name": "cifar10", "ddim_jax": "1"}}


@pytest.mark.parametrize(
    ("figure", "ours", "published", "tolerance", "word"),
    [
        ("fid", 4.36, 4.16, 0.208, "within"),
        ("fid", 3.96, 4.16, 0.208, "within"),
        ("fid", 3.5, 4.16, 0.208, "better"),
        ("fid", 4.5, 4.16, 0.208, "worse"),
        ("is_mean", 9.1, 9.46, 0.2365, "worse"),
        ("is_mean", 9.9, 9.46, 0.2365, "better"),
        ("fid", float("nan"), 4.16, 0.208, "worse"),
    ],
)
def test_a_figure_is_within_the_tolerance_or_better_or_worse(figure, ours, published, tolerance, word):
    assert judge(figure, ours, published, tolerance).word == word


def checked(*figures):
    (line,) = lines([result(seed=seed, figures={"fid": fid}) for seed, fid in enumerate(figures)], COMPARABLE)
    return line, line.published


def test_of_several_seeds_the_mean_counts_or_the_least_where_that_was_published():
    line, row = checked(13.0, 15.0, 14.0)
    (verdict,) = verdicts_of(line, row, TABLE)
    assert (verdict.ours, verdict.published, verdict.word) == (14.0, 13.36, "within")
    assert verdict.tolerance == pytest.approx(0.05 * 13.36)
    (verdict,) = verdicts_of(line, row, TABLE._replace(lowest_of=3))
    assert verdict.ours == 13.0


def facts(**changes):
    values = {"data_name": "cifar10", "model": MODEL, "extractor": "inception", "resize": "tf1", "num": 50_000}
    return {**values, "reference": "the training images", "of_training_images": True, **changes}


def test_the_protocol_of_the_table_is_no_obstacle():
    assert obstacles(TABLE, **facts()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num": 10_000}, "eval.num=50000 images, these of 10000"),
        ({"extractor": "pixels", "resize": ""}, "eval.extractor=inception with eval.resize=tf1, these by eval.ext"),
        ({"resize": "clean"}, "these by eval.extractor=inception with eval.resize=clean"),
        ({"reference": "the split 'test'", "of_training_images": False}, "the training images, these with the split"),
        ({"data_name": "celeba"}, "data.name=cifar10, the model was trained on 'celeba'"),
        ({"model": MODEL | {"diffusion.schedule": "cosine"}}, "has diffusion.schedule=linear, this one cosine"),
    ],
)
def test_what_was_measured_otherwise_is_named(changes, message):
    (found,) = obstacles(TABLE, **facts(**changes))
    assert message in found


def test_a_table_that_compares_with_other_images_wants_them_named():
    table = PUBLISHED["guided-diffusion-64"]
    known = facts(data_name="imagenet64", model=MODEL | table.model)
    (found,) = obstacles(table, **known)
    assert "VIRTUAL_imagenet64_labeled.npz, these with the training images" in found
    assert obstacles(table, **{**known, "reference": "adm.npz", "of_training_images": False}) == []


def test_tables_with_the_same_rows_are_told_apart_by_the_model():
    one = result("edm", steps=18, spacing="linspace")
    one.columns["eta"] = None
    for name in ("edm-cifar10", "edm-cifar10-cond"):
        (line,) = lines([one], COMPARABLE._replace(model=MODEL | PUBLISHED[name].model))
        assert line.published == PUBLISHED[name].rows[0], name


def test_every_figure_of_a_table_has_a_tolerance():
    for table in PUBLISHED.values():
        assert {name for row in table.rows for name in row.figures} <= table.tolerances.keys()
        assert table.protocol == Protocol() or not table.protocol.is_of_training_images


# --- claim.json ---------------------------------------------------------------------------------


@pytest.fixture
def claim():
    line, row = checked(13.0, 14.0)
    lines_checked = [CheckedLine(line, row, verdicts_of(line, row, TABLE))]
    weights = {"800": {"sha256": "ab12"}}
    return Claim.of("t", "ddim-table1-cifar10", lines_checked, config=MODEL, weights=weights, measured=MEASURED)


def test_a_claim_says_what_it_rests_on_and_is_read_back(claim, tmp_path):
    (tmp_path / FILE_NAME).write_text(claim.to_json())
    read = Claim.read(tmp_path)
    assert read.to_json() == claim.to_json()
    assert read.holds
    (row,) = read.rows
    assert [seed["figures"] for seed in row["seeds"]] == [{"fid": 13.0}, {"fid": 14.0}]
    assert row["images_per_second"] == pytest.approx(50_000 / 20)
    assert row["published"]["figures"] == {"fid": 13.36}
    assert row["verdicts"][0]["word"] == "within"
    assert np.isclose(row["figures"]["fid"]["mean"], 13.5)


def test_a_claim_that_was_changed_is_refused(claim, tmp_path):
    path = tmp_path / FILE_NAME
    path.write_text(claim.to_json().replace("14.0", "12.0"))
    with pytest.raises(UserError, match="was changed after it was made"):
        Claim.read(path)
    path.write_text(claim.to_json().replace("version 1", "version 9"))
    with pytest.raises(UserError, match="its format is 'ddim_jax claim, version 9'"):
        Claim.read(path)
    path.write_text("{}")
    with pytest.raises(UserError, match="cannot be used"):
        Claim.read(path)
    with pytest.raises(UserError, match="does not exist"):
        Claim.read(tmp_path / "absent.json")


def test_claims_compare_where_the_same_was_measured_in_the_same_way(claim):
    newer = claim._replace(measured={**MEASURED, "reference": {"name": "cifar10", "ddim_jax": "2"}})
    assert claim.differs_from(newer) == []
    assert claim.differs_from(claim._replace(measured={**MEASURED, "num": 10_000})) == ["num: 50000 and 10000"]
