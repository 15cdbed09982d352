"""Students beside solvers at the same number of network evaluations: one table and one picture.

    python scripts/compare_few_steps.py runs/digits --students runs/progressive runs/consistency --out few_steps.png

For each number of evaluations the teacher draws by DDIM, DPM-Solver++ 2M and UniPC, each with the spacing that measures
best of those named, and each student by what it has learned: of progressive distillation the checkpoint of the round
with that many steps. Rows are measured by ``--mode=evaluate`` in each workdir, so that a killed comparison goes on.
"""

import argparse
import pathlib
from typing import Any, NamedTuple

import numpy as np

import ddim_jax
from ddim_jax.config import Config, with_values
from ddim_jax.configured import pictures
from ddim_jax.errors import UserError
from ddim_jax.images import save_png, table
from ddim_jax.jobs.evaluate import evaluate
from ddim_jax.tables.rows import Result
from ddim_jax.training.students import rounds_of
from ddim_jax.workdir import config_for_job, read_config

_SOLVERS = ("ddim", "dpmpp_2m", "unipc3")
_SHOWN = 4


class Drawn(NamedTuple):
    """A cell: what was measured of images drawn in some steps, and how they are drawn.

    Attributes:
        distance: Fréchet distance, by ``eval.extractor``.
        workdir: whose network draws.
        checkpoint: step of its checkpoint; the newest when None.
        settings: keys of ``config.sample``.
    """

    distance: float
    workdir: str
    checkpoint: int | None
    settings: dict[str, Any]


def main() -> None:
    """Prints the table and writes the picture."""
    parser = argparse.ArgumentParser(description="Compares students with solvers.")
    parser.add_argument("teacher", help="its workdir")
    parser.add_argument("--students", nargs="+", default=[], help="workdirs of --mode=distill")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8], help="network evaluations")
    parser.add_argument("--spacings", nargs="+", default=["uniform", "trailing", "logsnr", "karras"])
    parser.add_argument("--tuned", action="store_true", help="a row of --mode=tune, for steps that it was run for")
    parser.add_argument("--num", type=int, default=5000, help="images in a cell")
    parser.add_argument("--extractor", default="classifier", help="eval.extractor")
    parser.add_argument("--out", default="few_steps.png", help="picture")
    arguments = parser.parse_args()

    rows: dict[str, dict[int, Drawn]] = {}
    for solver in _SOLVERS:
        rows[solver] = _best_of_spacings(arguments, solver)
    if arguments.tuned:
        rows["tuned"] = _tuned(arguments)
    for student in arguments.students:
        rows[pathlib.Path(student).name] = _of_student(arguments, student)
    _print_table(rows, arguments.steps)
    _draw(rows, arguments.steps, arguments.out)


def _measured(arguments: argparse.Namespace, workdir: str, **asked: Any) -> list[Result]:
    """The rows of a table of ``--mode=evaluate`` that are asked for, measured now or before."""
    settings = {"eval.num": arguments.num, "eval.extractor": arguments.extractor, "eval.metrics": ("fid",)}
    config = with_values(read_config(workdir), settings | {f"eval.{key}": value for key, value in asked.items()})
    folder = evaluate(config_for_job(workdir, config), workdir)
    return [Result.read(path) for path in sorted((folder / "rows").glob("*.json"))]


def _distance(result: Result) -> float:
    return next(value for name, value in result.figures.items() if name.endswith("frechet") or name == "fid")


def _best_of_spacings(arguments: argparse.Namespace, solver: str) -> dict[int, Drawn]:
    results = _measured(
        arguments,
        arguments.teacher,
        samplers=(solver,),
        spacings=tuple(arguments.spacings),
        steps=tuple(arguments.steps),
    )
    found: dict[int, Drawn] = {}
    for result in results:
        columns = result.columns
        steps, spacing = columns["steps"], columns["spacing"]
        is_asked = columns["sampler"] == solver and not columns["eta"] and spacing in arguments.spacings
        if (
            not is_asked
            or steps not in arguments.steps
            or (steps in found and found[steps].distance <= _distance(result))
        ):
            continue
        settings = {"sampler": solver, "spacing": spacing, "steps": steps}
        found[steps] = Drawn(_distance(result), arguments.teacher, columns["checkpoint"], settings)
    return found


def _tuned(arguments: argparse.Namespace) -> dict[int, Drawn]:
    found = {}
    for steps in arguments.steps:
        asked = {"samplers": ("tuned",), "spacings": ("tuned",), "steps": (steps,)}
        try:
            results = _measured(arguments, arguments.teacher, **asked)
        except UserError:
            continue  # not tuned for so many
        result = next(r for r in results if r.columns["sampler"] == "tuned" and r.columns["steps"] == steps)
        settings = {"sampler": "tuned", "spacing": "tuned", "steps": steps}
        found[steps] = Drawn(_distance(result), arguments.teacher, result.columns["checkpoint"], settings)
    return found


def _of_student(arguments: argparse.Namespace, workdir: str) -> dict[int, Drawn]:
    config = read_config(workdir)
    found = {}
    for steps, checkpoint in _checkpoints(config, arguments.steps).items():
        sample = config.sample
        asked = {"checkpoints": (str(checkpoint),), "samplers": (sample.sampler,), "steps": (steps,)}
        for result in _measured(arguments, workdir, **asked):
            columns = result.columns
            is_asked = (columns["checkpoint"], columns["steps"]) == (checkpoint, steps)
            if is_asked and (columns["sampler"], columns["spacing"]) == (sample.sampler, sample.spacing):
                found[steps] = Drawn(_distance(result), workdir, checkpoint, {"steps": steps})
    return found


def _checkpoints(config: Config, steps: list[int]) -> dict[int, int]:
    """By number of evaluations, the step of the checkpoint that has learned it."""
    rounds = rounds_of(config)
    if config.distill.is_progressive:
        return {round_.steps: round_.ends for round_ in rounds if round_.number and round_.steps in steps}
    return dict.fromkeys(steps, rounds[-1].ends)


def _print_table(rows: dict[str, dict[int, Drawn]], steps: list[int]) -> None:
    print("| |" + "".join(f" {count} |" for count in steps))
    print("| --- |" + " ---: |" * len(steps))
    for name, cells in rows.items():
        print(f"| {name} |" + "".join(f" {_cell(cells.get(count))} |" for count in steps))


def _cell(drawn: Drawn | None) -> str:
    if drawn is None:
        return ""
    spacing = drawn.settings.get("spacing", "tuned")
    return f"{drawn.distance:.2f}" + ("" if spacing == "tuned" else f" ({spacing})")


def _draw(rows: dict[str, dict[int, Drawn]], steps: list[int], out: str) -> None:
    """Draws a table of pictures: the same noise in each cell."""
    loaded: dict[tuple[str, int | None], ddim_jax.Pipeline] = {}
    cells = []
    for of_row in rows.values():
        row = []
        for count in steps:
            drawn = of_row.get(count)
            if drawn is None:
                row.append(None)
                continue
            key = (drawn.workdir, drawn.checkpoint)
            pipe = loaded.setdefault(key, ddim_jax.load(drawn.workdir, step=drawn.checkpoint))
            row.append(pictures(pipe.config, pipe.sample(_SHOWN, seed=0, **drawn.settings)))
        cells.append(row)
    blank = next(cell for row in cells for cell in row if cell is not None)
    filled = [[np.full_like(blank, 255) if cell is None else cell for cell in row] for row in cells]
    titles = [f"{count} evaluation{'s' * (count > 1)}" for count in steps]
    save_png(out, table(filled, list(rows), titles))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
