"""Tables and the report: what they say, and that the page stands alone."""

import csv
import html.parser
import io
import json
import re

import numpy as np
import pytest
from etils import epath
from PIL import Image

from ddim_jax.config import SampleConfig
from ddim_jax.errors import UserError
from ddim_jax.metrics.memorization import Neighbours
from ddim_jax.tables.folder import TableFolder
from ddim_jax.tables.lines import (
    clipping_note,
    columns,
    comparison,
    copying_note,
    estimate,
    format_figure,
    lines,
    main_figure,
    spread_notes,
    tables_by_steps,
    to_csv,
    to_json,
    to_markdown,
)
from ddim_jax.tables.neighbours import make_strip, nearest_samples, neighbours_picture
from ddim_jax.tables.published_figures import PUBLISHED
from ddim_jax.tables.report import quality_picture, to_html
from ddim_jax.tables.rows import Result

INCEPTION = {"name": "inception-tf1", "protocol": "tf1", "weights_sha256": "0"}
COMPARABLE = comparison("cifar10", INCEPTION, 50_000, "", of_training_images=True)
APART = comparison("digits", {"name": "pixels"}, 24, "", of_training_images=True)


def result(sampler="ddim", eta=0.0, steps=10, seed=0, spacing="quad_published", clip="none", **changes):
    setting = {"checkpoint": 800, "sampler": sampler, "eta": eta if sampler == "ddim" else None}
    setting |= {"spacing": spacing, "clip": clip, "steps": steps, "other": ""}
    values = {"name": f"{sampler}-{eta}-{steps}-{seed}", "columns": setting, "seed": seed, "num": 50_000}
    values |= {"figures": {"fid": 13.0 + (seed or 0), "precision": 0.6}, "evaluations": steps}
    values |= {"sampling_seconds": 2.0 * steps, "seconds": 3.0 * steps, "device": "1 x cpu", "versions": {"jax": "1"}}
    return Result(**{**values, **changes})


def elsewhere(name):
    return result(name=f"images-{name}", columns={"images": name}, seed=None, evaluations=None, sampling_seconds=None)


RESULTS = [
    *(result(steps=steps, seed=seed) for steps in (10, 20) for seed in (0, 1, 2)),
    result("ddpm_large", steps=10, clip="rederive_eps", figures={"fid": 370.0, "precision": 0.1}),
]


# --- when published figures may be shown --------------------------------------------------------


@pytest.mark.parametrize(
    ("provenance", "num", "of_training_images", "message"),
    [
        ({"name": "pixels"}, 50_000, True, "by 'pixels'"),
        ({"name": "classifier"}, 50_000, True, "by 'classifier'"),
        ({"name": "inception-clean", "protocol": "clean"}, 50_000, True, "inception-clean"),
        (INCEPTION, 49_984, True, "50,000 images, the ones here of 49,984"),
        (INCEPTION, 50_000, False, "compare with the training images, the ones here with the split 'test'"),
    ],
)
def test_published_figures_stay_out_with_the_reason(provenance, num, of_training_images, message):
    compared = comparison("cifar10", provenance, num, "the split 'test'", of_training_images)
    assert message in compared.obstacle
    table = lines(RESULTS, compared)
    assert all(line.published is None for line in table)
    assert "published FID" not in to_markdown("t", table, [])


def test_published_figures_stand_beside_ours_with_the_difference():
    assert not COMPARABLE.obstacle
    table = lines(RESULTS, COMPARABLE)
    assert [line.published.figures["fid"] for line in table] == [13.36, 6.84, 367.43]
    by_heading = {column.heading: column.cells for column in columns(table)}
    assert by_heading["FID"] == ["14.00 ± 1", "14.00 ± 1", "370.00"]
    assert by_heading["published FID"] == ["13.36", "6.84", "367.43"]
    assert by_heading["difference"] == ["+0.64", "+7.16", "+2.57"]
    assert "published precision" not in by_heading


def test_rows_with_other_settings_have_no_published_figure():
    guided = result()
    guided.columns["other"] = "ema False"
    (line,) = lines([guided], COMPARABLE)
    assert line.published is None


def test_every_published_row_finds_its_own_figure():
    for name, table in PUBLISHED.items():
        for row in table.rows:
            for data_name in table.data_names if row.figures else ():
                compared = COMPARABLE._replace(data_name=data_name, preset=name, model=table.model)
                one = result(row.sampler, row.eta, row.steps, spacing=row.spacing, clip=row.clip)
                (line,) = lines([one], compared)
                assert line.published == row, name


# --- lines --------------------------------------------------------------------------------------


def test_seeds_become_mean_and_spread():
    first, second, third = lines(RESULTS, APART)
    assert [len(line.results) for line in (first, second, third)] == [3, 3, 1]
    assert first.figures["fid"] == estimate([13.0, 14.0, 15.0]) == (14.0, 1.0, 13.0, None)
    assert third.figures["fid"] == (370.0, None, None, None)
    assert first.columns["steps"] == 10 and second.columns["steps"] == 20


def test_image_sets_of_one_name_are_lines_of_their_own():
    one, other = elsewhere("folder"), elsewhere("folder")
    two = lines([one, Result(**{**vars(other), "name": "images-folder-2"})], APART)
    assert len(two) == 2
    assert [column.heading for column in columns(two)] == ["images", "FID", "precision", "in all, s"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((367.43, "367.43"), (18.9559, "18.96"), (3.1666, "3.167"), (0.0123456, "0.01235"), (0.0, "0")),
        *((-0.0005, "-0.0005000"), (0.65, "0.6500"), (float("nan"), "nan")),
    ],
)
def test_figures_keep_two_decimals_or_four_digits(value, text):
    assert format_figure(value) == text


def test_tables_by_steps_are_laid_out_as_in_papers():
    (table,) = tables_by_steps(lines(RESULTS, COMPARABLE))
    assert table.steps == [10, 20]
    assert list(table.cells) == ["ddim eta 0, quad_published", "ddpm_large, quad_published, rederive_eps"]
    assert table.cells["ddpm_large, quad_published, rederive_eps"][1] is None
    text = to_markdown("t", lines(RESULTS, COMPARABLE), [])
    assert "| ddim eta 0, quad_published | 14.00 ± 1 (13.36) | 14.00 ± 1 (6.84) |" in text
    assert "| ddpm_large, quad_published, rederive_eps | 370.00 (367.43) | - |" in text
    assert tables_by_steps(lines(RESULTS[:3], COMPARABLE)) == []


def test_several_devices_are_told_one_is_not():
    def headings(results):
        return [column.heading for column in columns(lines(results, APART))]

    assert "device" not in headings(RESULTS)
    assert "device" in headings([*RESULTS, result(steps=50, device="1 x NVIDIA H100")])


def test_the_main_figure_is_a_frechet_distance_where_there_is_one():
    def of(figures):
        return main_figure(lines([result(figures=figures)], APART))

    assert of({"is_mean": 9.0, "fid": 3.0}) == "fid"
    assert of({"classifier_score_mean": 9.0, "classifier_frechet": 3.0}) == "classifier_frechet"
    assert of({"precision": 0.5}) == "precision"
    assert main_figure([]) is None


def test_a_table_says_which_of_its_rows_clip():
    rows = [result(row.sampler, row.eta, row.steps, clip=row.clip) for row in PUBLISHED["step-times"].rows]
    (note,) = clipping_note(lines(rows, APART))
    assert "clipped for ddpm_large, not clipped for ddim eta 0 " in note
    assert clipping_note(lines(rows[:-1], APART)) == clipping_note(lines([elsewhere("folder")], APART)) == []


def test_the_table_s_files_say_which_rows_clip(tmp_path):
    table = TableFolder(tmp_path, "t", {"num": 50_000}, APART)
    for one in RESULTS[-2:]:
        table.add(one, np.zeros((1, 8, 8, 1), np.uint8))
    table.write(["a note"])
    for name in ("table.md", "table.json", "report.html"):
        text = (tmp_path / name).read_text()
        assert "a note" in text and "it is clipped for ddpm_large, not clipped for ddim eta 0" in text


# --- files --------------------------------------------------------------------------------------


def test_csv_has_all_digits():
    exact = result(figures={"fid": 1 / 3})
    (record,) = csv.DictReader(io.StringIO(to_csv(lines([exact], COMPARABLE))))
    assert float(record["fid"]) == 1 / 3
    assert record["fid_spread"] == ""
    assert float(record["fid_published"]) == 13.36
    assert (record["sampler"], record["steps"], record["seeds"], record["num"]) == ("ddim", "10", "1", "50000")


def test_json_has_lines_with_the_rows_of_their_seeds():
    read = json.loads(to_json({"num": 50_000}, lines(RESULTS, COMPARABLE), ["a note"]))
    assert (read["num"], read["notes"]) == (50_000, ["a note"])
    assert [row["seed"] for row in read["lines"][0]["rows"]] == [0, 1, 2]
    assert read["lines"][0]["figures"]["fid"] == {"mean": 14.0, "spread": 1.0, "lowest": 13.0}
    assert "ICLR 2021" in read["lines"][0]["published"]["source"]


@pytest.mark.parametrize("results", [[], RESULTS[:1], RESULTS, [elsewhere("folder")]])
def test_the_picture_is_drawn_of_any_table(results):
    with Image.open(io.BytesIO(quality_picture(lines(results, COMPARABLE)))) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] == 1100
    assert pixels.std() > 0


class Page(html.parser.HTMLParser):
    """Checks that tags are closed, and collects what the page says and asks for."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.styles = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open and self.open[-1] == "style" else self.words).append(data)


def png(side):
    file = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(file, format="PNG")
    return file.getvalue()


def page_of(results, **changes):
    table = lines(results, COMPARABLE)
    settings = {"num": 50_000, "extractor": INCEPTION, "reference": {"name": "<cifar10>"}}
    grids = {one.name: png(16) for one in results}
    arguments = {"title": "a & b", "settings": settings, "table": table, "notes": ["N < d"], "grids": grids}
    return to_html(**{**arguments, "quality": quality_picture(table), **changes})


def test_the_page_stands_alone():
    text = page_of(RESULTS)
    page = Page(text)
    without_pictures = re.sub(r"base64,[\w+/=]*", "", text)
    assert not [word for word in ("http", "//", "<script", "@import", "url(") if word in without_pictures]
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        assert attributes.get("src", "data:image/").startswith("data:image/")


def test_the_page_says_everything():
    text = page_of(RESULTS)
    words = " ".join(Page(text).words)
    for one in RESULTS:
        assert one.name in words
    for said in ("a & b", "N < d", "<cifar10>", "14.00 ± 1", "13.36", "+0.64", "367.43", "ICLR 2021", "weights_sha256"):
        assert said in words


def test_the_page_can_be_read_aloud():
    tags = Page(page_of(RESULTS)).tags
    assert ("html", {"lang": "en"}) in tags
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 1 + len(RESULTS)
    assert all(attributes["alt"] for attributes in images)
    assert len({attributes["alt"] for attributes in images}) == len(images)
    headers = [attributes.get("scope") for tag, attributes in tags if tag == "th"]
    assert set(headers) == {"col", "row"}
    assert [tag for tag, _ in tags].count("caption") == [tag for tag, _ in tags].count("table")


def test_the_page_follows_light_and_dark():
    (style,) = Page(page_of(RESULTS)).styles
    assert "color-scheme: light dark" in style and "prefers-color-scheme: dark" in style


def test_large_pictures_are_shrunk_small_ones_kept_to_the_pixel():
    text = page_of(RESULTS[:1], grids={RESULTS[0].name: png(2200)})
    assert "data:image/jpeg" in text
    assert "data:image/jpeg" not in page_of(RESULTS[:1])


def test_columns_of_rows_are_settings_of_samples():
    assert set(result().columns) - {"checkpoint", "other"} <= set(vars(SampleConfig()))


def test_what_is_wide_scrolls_in_its_region():
    """The page itself fits: tables lie in regions that scroll, and long words and paths break."""
    text = page_of(RESULTS)
    (style,) = Page(text).styles
    assert ".wide { overflow-x: auto;" in style and "overflow-wrap: anywhere" in style.split("}")[3]
    assert text.count('<div class="wide" role="region" tabindex="0"') == text.count("<table>")


def test_a_spread_says_what_it_is():
    table = lines([*RESULTS[:3], result(steps=20, deviations={"fid": 0.25})], COMPARABLE)
    by_heading = {column.heading: column.cells for column in columns(table)}
    assert by_heading["FID"] == ["14.00 ± 1", "13.00 ± 0.25"]
    assert by_heading["lowest FID"] == ["13.00", "-"] and "lowest precision" not in by_heading
    seeds, bootstrap = spread_notes(table)
    assert "mean ± the standard deviation over seeds, and the lowest" in seeds and "lowest FID of three" in seeds
    assert "eval.bootstrap" in bootstrap
    assert spread_notes(lines(RESULTS[-1:], COMPARABLE)) == []
    seeds_alone, one = csv.DictReader(io.StringIO(to_csv(table)))
    assert (seeds_alone["fid_lowest"], one["fid_lowest"], one["fid_bootstrap"]) == ("13.0", "", "0.25")


def test_copies_are_warned_of_where_there_are_some():
    copied = result(figures={"fid": 1.0, "copies": 0.5, "copy_test": -12.3, "authenticity": 0.1})
    fresh = result(steps=20, figures={"fid": 1.0, "copies": 0.009, "copy_test": -2.9, "authenticity": 0.7})
    (note,) = copying_note(lines([copied, fresh], APART))
    assert note.startswith(
        "Warning: images are copies of training images, or nearly so: ddim eta 0, quad_published, S = 10"
    )
    assert "near copies 0.5000, C_T -12.30. See" in note and "S = 20" not in note
    assert copying_note(lines([fresh], APART)) == []


def test_deviations_are_read_again_and_older_results_have_none(tmp_path):
    path = epath.Path(tmp_path / "a.json")
    for one in (result(name="a"), result(name="a", deviations={"fid": 0.25})):
        path.write_text(one.to_json())
        assert Result.read(path) == one
    assert "deviations" not in result(name="a").to_json()
    path.write_text(result(name="a", deviations={"fid": "much"}).to_json())
    with pytest.raises(UserError, match="a figure is no number"):
        Result.read(path)


def test_copies_are_named_beside_their_training_images():
    grey = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8) * 50
    found = Neighbours(
        np.tile([0, 1, 2], (4, 1)), np.array([[1, 2, 3.0], [0.1, 2, 3], [0, 0, 1], [2, 2, 2]]), np.ones(4)
    )
    chosen = nearest_samples(found)
    assert chosen.tolist() == [2, 1, 0, 3]
    strip = make_strip("by pixels", found, chosen, grey[chosen], np.stack([grey[:3]] * 4))
    assert strip.is_copy.tolist() == [True, True, False, False]
    assert strip.images[0, :, 0, 0, 0].tolist() == [100, 0, 50, 100]
    picture = neighbours_picture([strip, strip])
    assert picture.dtype == np.uint8 and picture.ndim == 3
    # Grey pictures on white, and copies in red.
    red = (picture[..., 0].astype(int) - picture[..., 1] > 100).sum()
    assert red > 20
    calm = make_strip("by pixels", found, chosen[2:], grey[chosen[2:]], np.stack([grey[:3]] * 2))
    assert (neighbours_picture([calm])[..., 0] == neighbours_picture([calm])[..., 1]).all()
    page = Page(page_of(RESULTS[:1], nearest={RESULTS[0].name: png(16)}))
    assert "Samples nearest to training images" in " ".join(page.words)


HOSTILE = "=cmd|'/c calc'!A1\n<img src=x onerror=alert(1)> [x](javascript:x) `x` \\| \x1b[2J\u202e"


def test_names_in_markdown_are_text_on_one_line():
    table = lines([elsewhere(HOSTILE)], APART)
    text = to_markdown(HOSTILE, table, [f"images of {HOSTILE}"])
    (row,) = [line for line in text.splitlines() if line.startswith("| =cmd")]
    escaped = r"=cmd\|'/c calc'!A1\\n&lt;img src=x onerror=alert(1)&gt; \[x\](javascript:x) \`x\` \\\| \\x1b\[2J\\u202e"
    assert row.startswith(f"| {escaped} |")
    assert text.startswith(f"# {escaped}\n") and text.endswith(f"\n- images of {escaped}\n")


@pytest.mark.parametrize("name", [HOSTILE, "+1", "-1", "@x", "=1", "a,b", 'a"b', "a\rb", "plain"])
def test_names_in_csv_are_no_formulas_and_stay_in_their_cell(name):
    text = to_csv(lines([elsewhere(name)], APART))
    assert text.count("\n") == 2 and "\r" not in text
    (record,) = csv.DictReader(io.StringIO(text))
    assert record["images"][0] not in "=+-@"
    if name.startswith(("=", "+", "-", "@")):
        assert record["images"].startswith("'" + name[0])
    if name in ("plain", "a,b", 'a"b'):
        assert record["images"] == name
    assert float(record["fid"]) == 13.0


def test_names_in_the_page_are_text():
    text = page_of([elsewhere("<script>alert(1)</script>")])
    assert "<script>" not in text and "&lt;script&gt;" in text
