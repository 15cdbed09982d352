"""From the results of rows to tables: seeds put together, published figures beside ours, as Markdown, CSV and JSON."""

import csv
import dataclasses
import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddim_jax.errors import on_one_line
from ddim_jax.measuring import figures
from ddim_jax.tables.published_figures import NUM_IMAGES, PublishedRow, published_row
from ddim_jax.tables.rows import Result, in_table_order

# Of columns that are no figures.
_HEADINGS = {
    "checkpoint": "checkpoint",
    "images": "images",
    "sampler": "sampler",
    "eta": "eta",
    "spacing": "spacing",
    "clip": "clip",
    "steps": "S",
    "other": "other settings",
    "seeds": "seeds",
    "evaluations": "network evaluations",
    "sampling_seconds": "sampling, s",
    "seconds": "in all, s",
}

# In a cell.
_NOTHING = "-"


class Comparison(NamedTuple):
    """Whether published figures may stand beside ours.

    Attributes:
        data_name: ``data.name`` of the model.
        obstacle: why they may not, as a sentence; empty if they may.
        preset: name of the published table whose rows were asked for; or empty.
        model: values by the config's keys, which tell the models of tables with the same rows apart.
    """

    data_name: str
    obstacle: str
    preset: str = ""
    model: Mapping[str, Any] = {}

    def row_for(self, columns: Mapping[str, Any]) -> PublishedRow | None:
        """Returns what was published for a setting of a sampler, by the columns of a table; None where nothing was."""
        if "sampler" not in columns or columns["other"]:
            return None
        return published_row(
            self.data_name,
            *(columns["sampler"], columns["eta"] or 0.0, columns["spacing"], columns["clip"], columns["steps"]),
            self.model,
            self.preset,
        )


class Estimate(NamedTuple):
    """A figure over seeds.

    Attributes:
        mean: over the seeds.
        spread: their standard deviation (divided by their number less one); None of one seed.
        lowest: of the seeds; None of one seed.
        bootstrap: the standard deviation of one seed's figure by ``eval.bootstrap``, the mean over the seeds; or None.
    """

    mean: float
    spread: float | None
    lowest: float | None = None
    bootstrap: float | None = None


class Line(NamedTuple):
    """A line of the table: a setting, over all its seeds.

    Attributes:
        columns: the setting, by column.
        results: of its seeds.
        figures: by name.
        evaluations: network evaluations per image, or None.
        sampling_seconds: mean over the seeds, or None.
        seconds: mean over the seeds.
        published: what was published for this setting, if that may stand beside it.
    """

    columns: dict[str, Any]
    results: list[Result]
    figures: dict[str, Estimate]
    evaluations: int | None
    sampling_seconds: float | None
    seconds: float
    published: PublishedRow | None

    def published_figure(self, name: str) -> float | None:
        """Returns what was published of a figure, if that may stand beside ours."""
        if self.published is None or not figures.has_published(name):
            return None
        return self.published.figures.get(name)


def comparison(
    data_name: str, extractor_provenance: Mapping[str, Any], num: int, reference: str, of_training_images: bool
) -> Comparison:
    """Says whether published figures may stand beside ours: only where they are figures of the same thing.

    Args:
        data_name: ``data.name`` of the model; empty if there is no model.
        extractor_provenance: of what measures.
        num: images measured.
        reference: what they are compared with, in words.
        of_training_images: whether these are all images that the model was trained on.
    """
    name = extractor_provenance["name"]
    if not name.startswith("inception"):
        obstacle = f"published figures are FIDs, by the Inception network; the ones here are by '{name}'"
    elif extractor_provenance.get("protocol") != "tf1":
        obstacle = f"published figures are by the resize of TensorFlow, eval.resize=tf1; the ones here by '{name}'"
    elif num != NUM_IMAGES:
        obstacle = f"published figures are of {NUM_IMAGES:,} images, the ones here of {num:,}"
    elif not of_training_images:
        obstacle = f"published figures compare with the training images, the ones here with {reference}"
    else:
        obstacle = ""
    return Comparison(data_name, obstacle)


def lines(results: Iterable[Result], compared: Comparison) -> list[Line]:
    """Puts rows that differ in the seed alone together, in the order of tables.

    Args:
        results: of rows.
        compared: whether published figures may be shown.
    """
    by_setting: dict[str, list[Result]] = {}
    for result in in_table_order(results):
        setting = result.columns if result.seed is not None else {**result.columns, "name": result.name}
        by_setting.setdefault(json.dumps(setting), []).append(result)
    return [_line(group, compared) for group in by_setting.values()]


def _line(results: list[Result], compared: Comparison) -> Line:
    columns = results[0].columns
    names = [name for name in results[0].figures if all(name in result.figures for result in results)]
    published = None if compared.obstacle else compared.row_for(columns)
    times = [result.sampling_seconds for result in results if result.sampling_seconds is not None]
    return Line(
        columns,
        results,
        {
            name: estimate(
                [result.figures[name] for result in results],
                [result.deviations[name] for result in results if name in result.deviations],
            )
            for name in names
        },
        results[0].evaluations,
        float(np.mean(times)) if times else None,
        float(np.mean([result.seconds for result in results])),
        published,
    )


def estimate(values: Sequence[float], deviations: Sequence[float] = ()) -> Estimate:
    """Computes mean, spread and lowest of one figure over seeds, and the mean of its deviations by bootstrap.

    >>> estimate([3.0, 5.0, 4.0])
    Estimate(mean=4.0, spread=1.0, lowest=3.0, bootstrap=None)
    >>> estimate([3.0], [0.25])
    Estimate(mean=3.0, spread=None, lowest=None, bootstrap=0.25)
    """
    several = len(values) > 1
    return Estimate(
        float(np.mean(values)),
        float(np.std(values, ddof=1)) if several else None,
        float(np.min(values)) if several else None,
        float(np.mean(deviations)) if deviations else None,
    )


class Column(NamedTuple):
    """A column of a table, as text.

    Attributes:
        heading: in words.
        cells: one for each line.
        is_number: whether to align it to the right.
    """

    heading: str
    cells: list[str]
    is_number: bool


def columns(table: Sequence[Line]) -> list[Column]:
    """Returns the table as text, by column; columns that say nothing are left out."""
    found = []
    for name in dict.fromkeys(name for line in table for name in line.columns):
        values = [line.columns.get(name) for line in table]
        if any(value not in (None, "") for value in values):
            found.append(Column(heading(name), [_cell(value) for value in values], name in ("checkpoint", "steps")))
    if any(len(line.results) > 1 for line in table):
        found.append(Column(heading("seeds"), [str(len(line.results)) for line in table], True))
    for name in figure_names(table):
        ours = [line.figures.get(name) for line in table]
        found.append(Column(heading(name), [format_estimate(one) for one in ours], True))
        theirs = [line.published_figure(name) for line in table]
        if any(value is not None for value in theirs):
            found.append(Column(f"published {heading(name)}", [_published(value) for value in theirs], True))
            both = zip(ours, theirs, strict=True)
            found.append(Column("difference", [_difference(one, value) for one, value in both], True))
        lowest = [None if one is None else one.lowest for one in ours]
        if figures.is_main(name) and any(value is not None for value in lowest):
            cells = [_NOTHING if value is None else format_figure(value) for value in lowest]
            found.append(Column(f"lowest {heading(name)}", cells, True))
    devices = [", ".join(dict.fromkeys(result.device for result in line.results)) for line in table]
    if len(set(devices)) > 1:
        found.append(Column("device", devices, False))
    for name in ("evaluations", "sampling_seconds", "seconds"):
        values = [getattr(line, name) for line in table]
        if any(value is not None for value in values):
            found.append(Column(heading(name), [_amount(value) for value in values], True))
    return found


def figure_names(table: Sequence[Line]) -> list[str]:
    """Returns the names of all figures in the table, in their order."""
    return list(dict.fromkeys(name for line in table for name in line.figures))


def main_figure(table: Sequence[Line]) -> str | None:
    """Returns the figure that a table is read for; None where there are no figures."""
    return figures.main_figure(figure_names(table))


def heading(name: str) -> str:
    """Returns the heading of a column, whether of a setting or of a figure."""
    return _HEADINGS.get(name) or figures.heading(name)


def sampler_label(line: Line) -> str:
    """Returns the line's setting but for S, in words: a curve over S has one."""
    setting = line.columns
    if "images" in setting:
        return setting["images"]
    eta = "" if setting["eta"] is None else f" eta {setting['eta']:g}"
    other = f", {setting['other']}" if setting["other"] else ""
    clip = "" if setting["clip"] == "none" else f", {setting['clip']}"
    return f"{setting['sampler']}{eta}, {setting['spacing']}{clip}{other}"


def clipping_note(table: Sequence[Line]) -> list[str]:
    """Says which rows clip the predicted image, and which do not, where a table has both; else says nothing."""
    clipped: dict[bool, list[str]] = {True: [], False: []}
    for line in table:
        if "clip" in line.columns:
            setting = line.columns
            eta = "" if setting["eta"] is None else f" eta {setting['eta']:g}"
            clipped[setting["clip"] != "none"].append(f"{setting['sampler']}{eta}")
    if not all(clipped.values()):
        return []
    names = {clips: ", ".join(dict.fromkeys(found)) for clips, found in clipped.items()}
    return [
        f"The rows differ in what is done to the predicted image: it is clipped for {names[True]}, not clipped for "
        f"{names[False]} (column 'clip')."
    ]


def spread_notes(table: Sequence[Line]) -> list[str]:
    """Says what stands behind a ±, and which of several seeds others report."""
    notes = []
    found = [one for line in table for one in line.figures.values()]
    if any(one.spread is not None for one in found):
        notes.append(
            "Of several seeds there are the mean ± the standard deviation over seeds, and the lowest. EDM (Karras et "
            "al. 2022) and much of what follows it report the lowest FID of three, which is no mean; other tables "
            "mostly have one value of one seed."
        )
    if any(one.spread is None and one.bootstrap is not None for one in found):
        notes.append(
            "Of one seed, ± is the standard deviation over sets drawn from its images with replacement "
            "(eval.bootstrap): how much the figure of as many other images of the same model would vary."
        )
    return notes


def copying_note(table: Sequence[Line]) -> list[str]:
    """Warns of rows whose images are copies of training images; else says nothing."""
    found = []
    for line in table:
        signs = [
            f"{heading(name)} {format_figure(one.mean)}"
            for name, one in line.figures.items()
            if figures.tells_of_copies(name, one.mean)
        ]
        if signs:
            steps = f", S = {line.columns['steps']}" if "steps" in line.columns else ""
            found.append(f"{sampler_label(line)}{steps}: {', '.join(signs)}")
    if not found:
        return []
    return [f"Warning: images are copies of training images, or nearly so: {'; '.join(found)}. See report.html."]


class TableBySteps(NamedTuple):
    """The main figure of one checkpoint by S, as papers print it.

    Attributes:
        figure: its name.
        checkpoint: step.
        steps: S of the columns.
        cells: by sampler, a line or None for each S.
    """

    figure: str
    checkpoint: int
    steps: list[int]
    cells: dict[str, list[Line | None]]

    def columns(self) -> list[Column]:
        """Returns the table as text: samplers, and for each S our figure with the published one in brackets."""
        by_column = [Column("sampler", list(self.cells), False)]
        for place, steps in enumerate(self.steps):
            cells = [self._cell(row[place]) for row in self.cells.values()]
            by_column.append(Column(f"S = {steps}", cells, True))
        return by_column

    def _cell(self, line: Line | None) -> str:
        if line is None or self.figure not in line.figures:
            return _NOTHING
        published = line.published_figure(self.figure)
        return format_estimate(line.figures[self.figure]) + ("" if published is None else f" ({published:g})")


def tables_by_steps(table: Sequence[Line]) -> list[TableBySteps]:
    """Arranges the lines by checkpoint, sampler and S; none where all have one S, or were made elsewhere."""
    found = []
    figure = main_figure(table)
    drawn = [line for line in table if "checkpoint" in line.columns]
    for checkpoint in dict.fromkeys(line.columns["checkpoint"] for line in drawn):
        chosen = [line for line in drawn if line.columns["checkpoint"] == checkpoint]
        steps = sorted({line.columns["steps"] for line in chosen})
        if figure is None or len(steps) < 2:
            continue
        cells: dict[str, list[Line | None]] = {}
        for line in chosen:
            row = cells.setdefault(sampler_label(line), [None] * len(steps))
            row[steps.index(line.columns["steps"])] = line
        found.append(TableBySteps(figure, checkpoint, steps, cells))
    return found


def to_markdown(title: str, table: Sequence[Line], notes: Sequence[str]) -> str:
    """Writes the table as Markdown, with the notes under it."""
    parts = [f"# {_as_markdown(title)}", "", *_markdown_table(columns(table))]
    brackets = " (published in brackets)" if any(line.published for line in table) else ""
    for by_steps in tables_by_steps(table):
        parts += ["", f"{heading(by_steps.figure)} by S, checkpoint {by_steps.checkpoint:,}{brackets}:", ""]
        parts += _markdown_table(by_steps.columns())
    parts += ["", *(f"- {_as_markdown(note)}" for note in notes)]
    return "\n".join(parts) + "\n"


def _markdown_table(table: Sequence[Column]) -> list[str]:
    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(map(_as_markdown, cells)) + " |"

    rules = ["---:" if column.is_number else "---" for column in table]
    rows = zip(*(column.cells for column in table), strict=True)
    return [row(column.heading for column in table), row(rules), *map(row, rows)]


def _as_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line: names of folders can hold anything, HTML and links among it."""
    text = html.escape(on_one_line(text), quote=False)
    return re.sub(r"([\\`|\[\]])", r"\\\1", text)


def _as_csv(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula; names get an apostrophe before what would begin one."""
    if not isinstance(value, str):
        return value
    text = on_one_line(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def to_csv(table: Sequence[Line]) -> str:
    """Writes the table as comma-separated values to all digits: mean and spread have columns of their own."""
    records = []
    for line in table:
        record = {**line.columns, "seeds": len(line.results), "num": line.results[0].num}
        for name, one in line.figures.items():
            record |= {name: one.mean, f"{name}_spread": one.spread}
            for other in ("lowest", "bootstrap"):
                if getattr(one, other) is not None:
                    record[f"{name}_{other}"] = getattr(one, other)
            published = line.published_figure(name)
            if published is not None:
                record[f"{name}_published"] = published
        record |= {
            "network_evaluations": line.evaluations,
            "sampling_seconds": line.sampling_seconds,
            "seconds": line.seconds,
        }
        records.append({name: _as_csv(value) for name, value in record.items()})
    text = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def to_json(settings: Mapping[str, Any], table: Sequence[Line], notes: Sequence[str]) -> str:
    """Writes all there is to know as JSON.

    These are the settings and provenance, the lines with mean and spread, and under each the rows of its seeds.

    Args:
        settings: what all rows share.
        table: the lines.
        notes: what is to be known of the figures.
    """
    written = [
        {
            **line.columns,
            "figures": {name: _known_of(one) for name, one in line.figures.items()},
            "network_evaluations": line.evaluations,
            "sampling_seconds": line.sampling_seconds,
            "seconds": line.seconds,
            "published": None
            if line.published is None
            else {"figures": dict(line.published.figures), "source": line.published.source},
            "rows": [dataclasses.asdict(result) for result in line.results],
        }
        for line in table
    ]
    return json.dumps({**settings, "notes": list(notes), "lines": written}, indent=2) + "\n"


def _known_of(one: Estimate) -> dict[str, float | None]:
    """The numbers of an estimate: its mean, its spread even if there is none, and whatever else is known."""
    return {name: value for name, value in one._asdict().items() if name == "spread" or value is not None}


def sources(table: Sequence[Line]) -> list[str]:
    """Returns where the published figures in the table come from."""
    return list(dict.fromkeys(line.published.source for line in table if line.published is not None))


def format_figure(value: float) -> str:
    """Writes a figure with two decimals, or four significant digits if these are more: 367.43, 4.160, 0.01234."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = max(2, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def format_estimate(one: Estimate | None) -> str:
    """Writes an estimate as mean ± spread, which is that over seeds, or of one seed that of its images."""
    if one is None:
        return _NOTHING
    spread = one.bootstrap if one.spread is None else one.spread
    return format_figure(one.mean) + ("" if spread is None else f" ± {spread:.2g}")


def _published(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:g}"


def _difference(one: Estimate | None, published: float | None) -> str:
    return _NOTHING if one is None or published is None else f"{one.mean - published:+.2f}"


def _cell(value: Any) -> str:
    if value is None or value == "":
        return _NOTHING
    return f"{value:g}" if isinstance(value, float) else str(value)


def _amount(value: float | None) -> str:
    if value is None:
        return _NOTHING
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
