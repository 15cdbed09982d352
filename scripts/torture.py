"""Makes faults on purpose, and tells which promises held: kills, full disks, flipped bits, damaged and hostile files.

    python scripts/torture.py                           # a few of each kind
    python scripts/torture.py --long --json torture.json
    python scripts/torture.py --only bit_flips,small_files

What is promised stands in ``docs/reliability.md``, with the table that this prints. Each kind is a module of
``scripts/faults/`` with a function ``trials(long)``. The exit status is 1 if any promise did not hold.
"""

import argparse
import importlib
import json
import pathlib
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from faults.trial import BrokenPromiseError, Trial

# Modules of faults/, in the order in which they run.
KINDS = (
    "kills",
    "kills_of_jobs",
    "bit_flips",
    "damaged_results",
    "small_files",
    "two_at_once",
    "disk_full",
    "odd_values",
    "processes",
    "hostile_files",
)


class Outcome(NamedTuple):
    """What came of a trial.

    Attributes:
        kind: module of ``faults/``.
        name: of the trial.
        broken: what happened instead of what was promised; empty where the promise held.
        seconds: that it took.
    """

    kind: str
    name: str
    broken: str
    seconds: float


def trials_of(kind: str, long: bool) -> list[Trial]:
    """The trials of a kind; all of them, or a few."""
    return list(importlib.import_module(f"faults.{kind}").trials(long))


def run_trial(kind: str, trial: Trial) -> Outcome:
    """Runs a trial in a temporary folder of its own."""
    started = time.monotonic()
    broken = ""
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder:
        try:
            trial.run(pathlib.Path(folder))
        except BrokenPromiseError as error:
            broken = str(error)
        except Exception:  # a trial that fails is told like a promise that does; the others go on
            broken = traceback.format_exc(limit=-3)
    return Outcome(kind, trial.name, broken, time.monotonic() - started)


def table(outcomes: Sequence[Outcome]) -> str:
    """The table of ``docs/reliability.md``."""
    lines = ["| fault | trials | held | seconds |", "|---|---|---|---|"]
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        of_kind = [outcome for outcome in outcomes if outcome.kind == kind]
        held = sum(not outcome.broken for outcome in of_kind)
        seconds = sum(outcome.seconds for outcome in of_kind)
        lines.append(f"| {kind.replace('_', ' ')} | {len(of_kind)} | {held} | {seconds:.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the trials; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of faults, comma-separated")
    parser.add_argument("--long", action="store_true", help="all trials, for hours, instead of a few")
    parser.add_argument("--json", type=pathlib.Path, help="file for all outcomes")
    options = parser.parse_args(arguments)
    kinds = options.only.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"--only: there is no kind '{unknown[0]}'; choose from {', '.join(KINDS)}")
    outcomes = []
    for kind in kinds:
        for trial in trials_of(kind, options.long):
            outcomes.append(outcome := run_trial(kind, trial))
            said = f"BROKEN: {outcome.broken}" if outcome.broken else "held"
            print(f"{kind}: {trial.name}: {said} ({outcome.seconds:.1f} s)", flush=True)
            if options.json:
                options.json.write_text(json.dumps([each._asdict() for each in outcomes], indent=1))
    print(table(outcomes))
    return int(any(outcome.broken for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
