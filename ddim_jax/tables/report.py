"""``quality.png`` and ``report.html``: a table for the eye, with curves and images.

The page is one file: pictures are part of it, and it needs no network, no script and no other file, so it can be sent
and kept. It follows the reader's light or dark setting, and can be read aloud.
"""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

from ddim_jax.tables.lines import (
    Column,
    Line,
    columns,
    format_estimate,
    heading,
    main_figure,
    sampler_label,
    sources,
    step_cell,
    step_tables,
)

# Pictures of larger images are shrunk for the page, and compressed with loss.
_MAX_PICTURE_SIDE = 1080
_JPEG_QUALITY = 88

_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --soft: #5a5a60; --page: #fdfdfc; --line: #d9d9dc; --band: #f3f3f1; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e9e9ea; --soft: #a5a5ab; --page: #17181a; --line: #3a3b40; --band: #202125; }
}
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 72rem; background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
p.lead { color: var(--soft); margin-top: 0; }
.wide { overflow-x: auto; margin-bottom: 1.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; margin-bottom: 1.5rem; }
caption { text-align: left; white-space: nowrap; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .35rem .75rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody th { font-weight: 500; }
tbody tr:nth-child(even) { background: var(--band); }
.number { text-align: right; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 0 0 1.5rem; }
figure img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); background: #fff; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .4rem; overflow-wrap: anywhere; }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1.25rem; }
.grids img { width: 100%; image-rendering: pixelated; }
"""


def quality_picture(table: Sequence[Line]) -> bytes:
    """Draws the main figure against network evaluations and against seconds of sampling, as PNG.

    A curve is one sampler, its points the numbers of steps; published figures are hollow, on a dashed line. Spreads
    over seeds are bars.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    name = main_figure(table)
    left, right = figure.subplots(1, 2, sharey=True)
    drawn = [line for line in table if line.evaluations is not None and name in line.figures]
    for label, curve in _curves(drawn).items():
        assert name is not None, "a line has figures"
        values = [line.figures[name].mean for line in curve]
        spreads = [line.figures[name].spread or 0.0 for line in curve]
        for axes, places in (
            (left, [line.evaluations for line in curve]),
            (right, [line.sampling_seconds for line in curve]),
        ):
            container = axes.errorbar(places, values, yerr=spreads if any(spreads) else None, fmt="o-", label=label)
            _draw_published(axes, places, curve, name, container[0].get_color())
    for axes, words in ((left, "network evaluations per image"), (right, "seconds of sampling, all images")):
        axes.set(xlabel=words, xscale="log", yscale=_scale(drawn, name))
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                _name_ticks(axis)
        axes.grid(alpha=0.3)
    left.set_xticks(_apart({line.evaluations for line in drawn if line.evaluations is not None}))
    left.set_ylabel("" if name is None else heading(name))
    if drawn:
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue()


def _name_ticks(axis: Axis) -> None:
    """Ticks at 1, 2, 5, 10, 20 ..., in plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _apart(numbers: Iterable[int]) -> list[int]:
    """The numbers in order, but for those so near to the one before that their names would overlap."""
    kept: list[int] = []
    for number in sorted(numbers):
        if not kept or number > 1.1 * kept[-1]:
            kept.append(number)
    return kept


def _curves(drawn: Sequence[Line]) -> dict[str, list[Line]]:
    several = len({line.columns["checkpoint"] for line in drawn}) > 1
    found: dict[str, list[Line]] = {}
    for line in drawn:
        checkpoint = f"step {line.columns['checkpoint']:,}: " if several else ""
        found.setdefault(checkpoint + sampler_label(line), []).append(line)
    return found


def _draw_published(axes: Axes, places: Sequence[Any], curve: Sequence[Line], name: str, color: Any) -> None:
    points = [
        (place, line.published.figures[name])
        for place, line in zip(places, curve, strict=True)
        if line.published is not None and name in line.published.figures
    ]
    if points:
        axes.plot(*zip(*points, strict=True), "o--", color=color, markerfacecolor="none", alpha=0.6)


def _scale(drawn: Sequence[Line], name: str | None) -> str:
    """Logarithmic where figures span a factor of five, as those of few steps do."""
    values = [line.figures[name].mean for line in drawn] if name is not None else []
    return "log" if values and min(values) > 0 and max(values) > 5 * min(values) else "linear"


def to_html(
    title: str,
    settings: Mapping[str, Any],
    table: Sequence[Line],
    notes: Sequence[str],
    quality: bytes,
    grids: Mapping[str, bytes],
) -> str:
    """The page.

    Args:
        title: its heading.
        settings: what all rows share: extractor, reference, number of images, metrics.
        table: the lines.
        notes: what is to be known of the figures.
        quality: of :func:`quality_picture`.
        grids: by name of a row, its first images as one PNG picture.
    """
    lead = f"{len(table)} settings, {sum(len(line.results) for line in table)} rows measured"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{_text(title)}</h1>",
        f'<p class="lead">{_text(lead)}</p>',
        *(f"<p>{_text(note)}</p>" for note in notes),
        "<h2>Figures</h2>",
        *_table("All settings; several seeds as mean ± standard deviation", columns(table)),
    ]
    figure = main_figure(table)
    for by_step in step_tables(table):
        assert figure is not None, "a table by S has lines, which have figures"
        published = "; published figures in brackets" if any(line.published for line in table) else ""
        caption = f"{heading(figure)} by number of steps S, checkpoint {by_step.checkpoint:,}{published}"
        by_column = [Column("sampler", list(by_step.cells), False)]
        for place, steps in enumerate(by_step.steps):
            cells = [step_cell(row[place], figure) for row in by_step.cells.values()]
            by_column.append(Column(f"S = {steps}", cells, True))
        parts += _table(caption, by_column)
    if figure is not None and any(line.evaluations is not None for line in table):
        described = "; ".join(
            f"{sampler_label(line)}, S = {line.columns['steps']}: {format_estimate(line.figures.get(figure))}"
            for line in table
            if "steps" in line.columns
        )
        hollow = "; hollow points are published figures" if sources(table) else ""
        parts += [
            "<h2>Quality against cost</h2>",
            "<figure>",
            _image(quality, "image/png", f"{heading(figure)} against network evaluations and seconds. {described}"),
            f"<figcaption>A curve for each sampler{hollow}.</figcaption>",
            "</figure>",
        ]
    parts += _grids(table, grids)
    if sources(table):
        parts += ["<h2>Published figures</h2>", "<ul>", *(f"<li>{_text(s)}</li>" for s in sources(table)), "</ul>"]
    parts += ["<h2>Settings and provenance</h2>", *_settings(settings), "</main>", "</body>", "</html>"]
    return "\n".join(parts) + "\n"


def _table(caption: str, table: Sequence[Column]) -> list[str]:
    """An HTML table whose first column heads its rows."""
    # Focus, so that a wide table can be scrolled by keyboard.
    region = f'<div class="wide" role="region" tabindex="0" aria-label="{html.escape(caption)}">'
    parts = [region, "<table>", f"<caption>{_text(caption)}</caption>", "<thead>", "<tr>"]
    parts += [f'<th scope="col"{_class(column)}>{_text(column.heading)}</th>' for column in table]
    parts += ["</tr>", "</thead>", "<tbody>"]
    for row in zip(*(column.cells for column in table), strict=True):
        first, *rest = zip(table, row, strict=True)
        cells = [f'<th scope="row"{_class(first[0])}>{_text(first[1])}</th>']
        cells += [f"<td{_class(column)}>{_text(cell)}</td>" for column, cell in rest]
        parts.append(f"<tr>{''.join(cells)}</tr>")
    return [*parts, "</tbody>", "</table>", "</div>"]


def _class(column: Column) -> str:
    return ' class="number"' if column.is_number else ""


def _grids(table: Sequence[Line], grids: Mapping[str, bytes]) -> list[str]:
    parts = ["<h2>Images</h2>", '<div class="grids">']
    for line in table:
        for result in line.results:
            if result.name not in grids:
                continue
            steps = f", S = {line.columns['steps']}" if "steps" in line.columns else ""
            seed = "" if result.seed is None else f", seed {result.seed}"
            checkpoint = f", checkpoint {line.columns['checkpoint']:,}" if "checkpoint" in line.columns else ""
            words = f"{sampler_label(line)}{steps}{checkpoint}{seed}"
            parts += [
                "<figure>",
                _image(*_for_page(grids[result.name]), f"The first images of {words}"),
                f"<figcaption>{_text(words)} <br><small>{_text(result.name)}</small></figcaption>",
                "</figure>",
            ]
    return [*parts, "</div>"]


def _settings(settings: Mapping[str, Any]) -> list[str]:
    parts = ['<div class="wide">', "<table>", "<caption>What all rows share</caption>", "<tbody>"]
    for key, value in settings.items():
        words = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
        parts.append(
            f'<tr><th scope="row">{_text(key.replace("_", " "))}</th><td class="text">{_text(words)}</td></tr>'
        )
    return [*parts, "</tbody>", "</table>", "</div>"]


def _for_page(png: bytes) -> tuple[bytes, str]:
    """A picture small enough for the page, and its media type."""
    with Image.open(io.BytesIO(png)) as picture:
        if max(picture.size) <= _MAX_PICTURE_SIDE:
            return png, "image/png"
        picture.thumbnail((_MAX_PICTURE_SIDE, _MAX_PICTURE_SIDE))
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=_JPEG_QUALITY)
        return file.getvalue(), "image/jpeg"


def _image(content: bytes, media_type: str, description: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<img src="data:{media_type};base64,{data}" alt="{html.escape(description)}">'


def _text(words: str) -> str:
    return html.escape(words, quote=False)
