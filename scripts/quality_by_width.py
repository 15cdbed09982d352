"""Draws how good samples are against the width of the averaged weights, from tables of ``--mode=evaluate``.

python scripts/quality_by_width.py --out width.png runs/digits/evaluate/classifier-n1000-1a2b3c4d

Rows are those of ``eval.ema_widths``; that of width 0, the average of ``train.ema_decay``, is drawn as a line across.
"""

import argparse
import json
import pathlib
import re

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# As the column of other settings has it.
_WIDTH = re.compile(r"ema_width ([\d.e-]+)")


def points(table: pathlib.Path, figure: str | None) -> tuple[str, dict[tuple[int, int], dict[float, float]]]:
    """The name of a figure of a table, and by checkpoint and seed its values by width; width 0 is ``train.ema_decay``.

    Args:
        table: folder of the table.
        figure: its name in ``table.json``; the first one when None.
    """
    lines = json.loads((table / "table.json").read_text())["lines"]
    name = figure or next(iter(lines[0]["figures"]))
    found: dict[tuple[int, int], dict[float, float]] = {}
    for line in lines:
        width = _WIDTH.search(line["other"])
        for row in line["rows"]:
            by_width = found.setdefault((line["checkpoint"], row["seed"]), {})
            by_width[float(width[1]) if width else 0.0] = row["figures"][name]
    return name, {which: by_width for which, by_width in found.items() if by_width.keys() > {0.0}}


def main() -> None:
    """Writes the picture: a curve for each seed, along which samples are of the same noise."""
    parser = argparse.ArgumentParser(description="Draws quality against the width of averages.")
    parser.add_argument("table", type=pathlib.Path, help="a folder of --mode=evaluate")
    parser.add_argument("--figure", help="e.g. classifier_frechet; the first of the table when left out")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    name, found = points(arguments.table, arguments.figure)
    picture, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for place, ((checkpoint, seed), by_width) in enumerate(sorted(found.items())):
        color, label = f"C{place}", f"step {checkpoint:,}, seed {seed}"
        widths = sorted(width for width in by_width if width)
        axes.plot(widths, [by_width[width] for width in widths], marker="o", color=color, label=label)
        if 0.0 in by_width:
            axes.axhline(by_width[0.0], color=color, linestyle="--", label=f"{label}, train.ema_decay")
    axes.set(xlabel="width of the average (sigma_rel)", ylabel=name.replace("_", " "))
    axes.grid(alpha=0.3)
    axes.legend()
    picture.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
