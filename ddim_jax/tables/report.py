"""``quality.png`` and ``report.html``: a table for the eye, with curves and images.

The page is one file: pictures are part of it, and it needs no network, no script and no other file, so it can be sent
and kept. It follows the reader's light or dark setting, and can be read aloud.
"""

import base64
import functools
import io
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
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
    tables_by_steps,
)
from ddim_jax.tables.rows import Result

# Pictures of larger images are shrunk for the page, and compressed with loss.
_MAX_PICTURE_SIDE = 1080
_JPEG_QUALITY = 88


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
    """Puts ticks at 1, 2, 5, 10, 20 ..., in plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _apart(numbers: Iterable[int]) -> list[int]:
    """Returns the numbers in order, but for those so near to the one before that their names would overlap."""
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
        (place, value)
        for place, line in zip(places, curve, strict=True)
        if (value := line.published_figure(name)) is not None
    ]
    if points:
        axes.plot(*zip(*points, strict=True), "o--", color=color, markerfacecolor="none", alpha=0.6)


def _scale(drawn: Sequence[Line], name: str | None) -> str:
    """Returns the kind of axis: logarithmic where figures span a factor of five, as those of few steps do."""
    values = [line.figures[name].mean for line in drawn] if name is not None else []
    return "log" if values and min(values) > 0 and max(values) > 5 * min(values) else "linear"


def to_html(
    title: str,
    settings: Mapping[str, Any],
    table: Sequence[Line],
    notes: Sequence[str],
    quality: bytes,
    grids: Mapping[str, bytes],
    nearest: Mapping[str, bytes] = types.MappingProxyType({}),
) -> str:
    """Writes the page, by the template ``report.html.jinja``.

    Args:
        title: its heading.
        settings: what all rows share: extractor, reference, number of images, metrics.
        table: the lines.
        notes: what is to be known of the figures.
        quality: of :func:`quality_picture`.
        grids: by name of a row, its first images as one PNG picture.
        nearest: likewise, its samples nearest to training images, beside these.
    """
    figure = main_figure(table)
    return _template().render(
        title=title,
        lead=f"{len(table)} settings, {sum(len(line.results) for line in table)} rows measured",
        notes=notes,
        tables=_tables(table),
        quality=_address(quality, "image/png") if any(line.evaluations is not None for line in table) else "",
        quality_in_words="" if figure is None else _quality_in_words(table, figure),
        grids=[
            (_row_in_words(line, result), result.name, _address(*_for_page(grids[result.name])))
            for line in table
            for result in line.results
            if result.name in grids
        ],
        nearest=[
            (_row_in_words(line, result), result.name, _address(nearest[result.name], "image/png"))
            for line in table
            for result in line.results
            if result.name in nearest
        ],
        sources=sources(table),
        settings={
            key.replace("_", " "): value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
            for key, value in settings.items()
        },
    )


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("ddim_jax.tables", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html.jinja")


def _tables(table: Sequence[Line]) -> list[tuple[str, list[Column], list[tuple[str, ...]]]]:
    """Returns the tables of figures: their captions, columns, and cells by row."""
    found = [("All settings; several seeds as mean ± standard deviation", columns(table))]
    published = "; published figures in brackets" if any(line.published for line in table) else ""
    for by_steps in tables_by_steps(table):
        words = f"{heading(by_steps.figure)} by number of steps S, checkpoint {by_steps.checkpoint:,}{published}"
        found.append((words, by_steps.columns()))
    return [(words, shown, list(zip(*(column.cells for column in shown), strict=True))) for words, shown in found]


def _quality_in_words(table: Sequence[Line], figure: str) -> str:
    points = "; ".join(
        f"{sampler_label(line)}, S = {line.columns['steps']}: {format_estimate(line.figures.get(figure))}"
        for line in table
        if "steps" in line.columns
    )
    return f"{heading(figure)} against network evaluations and seconds. {points}"


def _row_in_words(line: Line, result: Result) -> str:
    steps = f", S = {line.columns['steps']}" if "steps" in line.columns else ""
    checkpoint = f", checkpoint {line.columns['checkpoint']:,}" if "checkpoint" in line.columns else ""
    seed = "" if result.seed is None else f", seed {result.seed}"
    return f"{sampler_label(line)}{steps}{checkpoint}{seed}"


def _address(picture: bytes, media_type: str) -> str:
    """Returns an address that is the picture itself."""
    return f"data:{media_type};base64,{base64.b64encode(picture).decode()}"


def _for_page(png: bytes) -> tuple[bytes, str]:
    """Returns a picture small enough for the page, and its media type."""
    with Image.open(io.BytesIO(png)) as picture:
        if max(picture.size) <= _MAX_PICTURE_SIDE:
            return png, "image/png"
        picture.thumbnail((_MAX_PICTURE_SIDE, _MAX_PICTURE_SIDE))
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=_JPEG_QUALITY)
        return file.getvalue(), "image/jpeg"
