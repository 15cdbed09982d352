"""Draws a key of one or more runs' metrics.jsonl against the step.

python scripts/plot_metrics.py --key loss --out loss.png runs/a runs/b
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def read(workdir: pathlib.Path, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of ``key`` in a workdir's metrics.jsonl."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if record.get(key) is not None]
    return [record["step"] for record in records], [record[key] for record in records]


def main() -> None:
    """Writes the plot."""
    parser = argparse.ArgumentParser(description="Draws a key of metrics.jsonl.")
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--key", default="loss")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--log", action="store_true", help="logarithmic vertical axis")
    arguments = parser.parse_args()

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for workdir in arguments.workdirs:
        axes.plot(*read(workdir, arguments.key), label=workdir.name)
    axes.set(xlabel="step", ylabel=arguments.key, yscale="log" if arguments.log else "linear")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
