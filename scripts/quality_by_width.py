"""Draws how good samples are against the width of the averaged weights, from tables of ``--mode=evaluate``.

python scripts/quality_by_width.py --out width.png runs/digits/evaluate/classifier-n1000-1a2b3c4d

Rows are those of ``eval.ema_widths``; that of width 0, the average of ``train.ema_decay``, is drawn as a line across.
"""

import argparse
import json
import pathlib
import re
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# As the column of other settings has it.
_WIDTH = re.compile(r"ema_width ([\d.e-]+)")


def points(table: pathlib.Path, figure: str | None) -> tuple[str, dict[int, dict[float, dict[str, Any]]]]:
    """The name of a figure of a table, and by checkpoint and width its mean and spread; width 0 is ``train.ema_decay``.

    Args:
        table: folder of the table.
        figure: its name in ``table.json``; the first one when None.
    """
    lines = json.loads((table / "table.json").read_text())["lines"]
    name = figure or next(iter(lines[0]["figures"]))
    found: dict[int, dict[float, dict[str, Any]]] = {}
    for line in lines:
        width = _WIDTH.search(line["other"])
        found.setdefault(line["checkpoint"], {})[float(width[1]) if width else 0.0] = line["figures"][name]
    return name, {checkpoint: by_width for checkpoint, by_width in found.items() if by_width.keys() > {0.0}}


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description="Draws quality against the width of averages.")
    parser.add_argument("table", type=pathlib.Path, help="a folder of --mode=evaluate")
    parser.add_argument("--figure", help="e.g. classifier_frechet; the first of the table when left out")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    name, found = points(arguments.table, arguments.figure)
    picture, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for place, (checkpoint, by_width) in enumerate(sorted(found.items())):
        color = f"C{place}"
        widths = sorted(width for width in by_width if width)
        means = [by_width[width]["mean"] for width in widths]
        spreads = [by_width[width]["spread"] or 0 for width in widths]
        axes.errorbar(widths, means, spreads, marker="o", capsize=3, color=color, label=f"step {checkpoint:,}")
        if 0.0 in by_width:
            usual = by_width[0.0]["mean"]
            axes.axhline(usual, color=color, linestyle="--", label=f"step {checkpoint:,}, train.ema_decay")
    axes.set(xlabel="width of the average (sigma_rel)", ylabel=name.replace("_", " "))
    axes.grid(alpha=0.3)
    axes.legend()
    picture.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
