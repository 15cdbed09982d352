"""What is measured, how programs take turns, and the table of it."""

import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from benchmarks.profiling import Operation, profile

_HEAD = (
    *("task", "program", "median", "fastest - slowest", "images/s", "peer / ours", "processor time", "peer / ours"),
    *("tracing + compiling, first run", "TFLOP/s", "remark"),
)

# What our rows are called.
OURS = "ddim_jax"


class Task(NamedTuple):
    """What programs are compared at.

    Attributes:
        name: for the table.
        images: in each run; 0 where it is not about images.
        flop: floating-point operations in each run, all devices together; 0 where nobody counted.
    """

    name: str
    images: int = 0
    flop: float = 0.0


class Program(NamedTuple):
    """One program's way to do a task.

    Attributes:
        run: does it once, and returns when the devices have finished.
        lower_seconds: what tracing and lowering took; None where it is compiled at its first run, if at all.
        compile_seconds: what compiling took after that.
        text: returns the compiled program, which says where in our code its operations come from.
        details: see :class:`Row`.
    """

    run: Callable[[], Any]
    lower_seconds: float | None = None
    compile_seconds: float | None = None
    text: Callable[[], str] = str
    details: Mapping[str, Any] = {}


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        task: what was done.
        program: by whom; :data:`OURS` comes first.
        values: one of each repeat; empty if the program cannot run here.
        unit: unit of the values: ``s``, or ``MiB``.
        processor_seconds: processor time of each repeat, all threads together; empty where another process worked.
        images: see :class:`Task`.
        lower_seconds: see :class:`Program`.
        compile_seconds: see :class:`Program`.
        first_seconds: time of the first run, which does not count.
        flop: see :class:`Task`.
        remark: how far the result is from ours, or why there is none.
        details: whatever else was found, by name.
    """

    task: str
    program: str
    values: Sequence[float] = ()
    unit: str = "s"
    processor_seconds: Sequence[float] = ()
    images: int = 0
    lower_seconds: float | None = None
    compile_seconds: float | None = None
    first_seconds: float | None = None
    flop: float = 0.0
    remark: str = ""
    details: Mapping[str, Any] = {}

    @property
    def median(self) -> float:
        """The median of the values; there must be some."""
        return statistics.median(self.values)

    @property
    def images_per_second(self) -> float:
        """The speed at the median time."""
        return self.images / self.median


class Turns(NamedTuple):
    """What :func:`take_turns` found.

    Attributes:
        rows: one for each program, in order.
        results: result of the last run of each program that can run.
    """

    rows: list[Row]
    results: dict[str, Any]


def note(message: str) -> None:
    """Tells on standard error how far we are."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def left_out(task: str, program: str, error: Exception) -> Row:
    """The row of a program that cannot run here; its remark is the first line of the reason."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    note(f"    {program} cannot run here: {reason}")
    return Row(task, program, remark=f"cannot run here: {reason}")


def take_turns(
    task: Task,
    programs: Mapping[str, Callable[[], Program]],
    repeats: int,
    traces: pathlib.Path | None = None,
    turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    runs_before: int = 0,
) -> Turns:
    """Runs A B A B ..., so that a machine which slows down slows all of them.

    The first round makes the programs, compiles and warms up, and does not count. A peer that fails in it (it may not
    be installed, need more memory than there is, or a compiler that is not at hand) gets a row with the reason; ours
    must run.

    Args:
        task: what they do.
        programs: functions that make them, by name.
        repeats: rounds that count.
        traces: folder for the trace of one more run of ours; None makes none.
        turn: entered for each turn of a program.
        runs_before: runs at the beginning of a turn, but for the first, that do not count.
    """
    note(task.name)
    made: dict[str, Program] = {}
    rows: dict[str, Row] = {}
    results: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {}
    processor_seconds: dict[str, list[float]] = {}
    for count in range(repeats + 1):
        for name, make in programs.items():
            if count and name not in results:
                continue
            try:
                with turn():
                    program = made[name] if count else made.setdefault(name, make())
                    for _ in range(runs_before if count else 0):
                        program.run()
                    start, processor_start = time.perf_counter(), time.process_time()
                    results[name] = program.run()
                    now, processor_now = time.perf_counter(), time.process_time()
            except Exception as error:
                if count or name == OURS:
                    raise
                rows[name] = left_out(task.name, name, error)
                continue
            if count:
                seconds[name].append(now - start)
                processor_seconds[name].append(processor_now - processor_start)
            else:
                note(f"    {name}: first run {now - start:.3g} s")
                seconds[name], processor_seconds[name] = [], []
                rows[name] = Row(
                    task.name,
                    name,
                    seconds[name],
                    processor_seconds=processor_seconds[name],
                    images=task.images,
                    lower_seconds=program.lower_seconds,
                    compile_seconds=program.compile_seconds,
                    first_seconds=now - start,
                    flop=task.flop,
                    details=program.details,
                )
    for name in results:
        note(f"    {name}: {rows[name].median:.3g} s")
    if traces is not None and OURS in made:
        ours = made[OURS]
        operations = profile(ours.run, traces / re.sub(r"\W+", "_", task.name), ours.text())
        rows[OURS] = with_details(rows[OURS], operations=operations)
    return Turns([rows[name] for name in programs], results)


def with_remark(row: Row, remark: str) -> Row:
    """The row, and one more thing to say about it."""
    return row._replace(remark=f"{row.remark}; {remark}" if row.remark else remark)


def with_details(row: Row, **details: Any) -> Row:
    """The row, with more details."""
    return row._replace(details={**row.details, **details})


def as_json(row: Row) -> dict[str, Any]:
    """The row as JSON's types, with its median."""
    details = {**row.details}
    if "operations" in details:
        details["operations"] = [operation._asdict() for operation in details["operations"]]
    return {**row._asdict(), "details": details, "median": row.median if row.values else None}


def from_json(fields: Mapping[str, Any]) -> Row:
    """The row that :func:`as_json` told."""
    row = Row(**{name: value for name, value in fields.items() if name in Row._fields})
    if "operations" in row.details:
        operations = [Operation(**operation) for operation in row.details["operations"]]
        row = with_details(row, operations=operations)
    return row


def markdown(rows: Sequence[Row], peak: float | None = None) -> str:
    """All rows as one Markdown table, without the columns that nobody fills.

    Args:
        rows: those of a task one after the other, ours first: ratios are to that, above 1 where ours is the shorter.
        peak: TFLOP/s of all devices together, if known.
    """
    cells = []
    ours: Row | None = None
    for row in rows:
        if ours is None or ours.task != row.task:
            ours = row
        cells.append(_cells(row, ours, peak))
    used = [column for column in range(len(_HEAD)) if any(line[column] for line in cells)]
    lines = [_HEAD, *cells]
    table = ["| " + " | ".join(line[column] for column in used) + " |" for line in lines]
    table.insert(1, "|" + "---|" * len(used))
    return "\n".join(table)


def _cells(row: Row, ours: Row, peak: float | None) -> tuple[str, ...]:
    if not row.values:
        return (row.task, row.program, *[""] * (len(_HEAD) - 3), row.remark)
    processor = statistics.median(row.processor_seconds) if row.processor_seconds else None
    speed = row.flop / row.median / 1e12
    return (
        row.task,
        row.program,
        f"{row.median:.4g} {row.unit}",
        f"{min(row.values):.3g} - {max(row.values):.3g}" if len(row.values) > 1 else "",
        f"{row.images_per_second:.4g}" if row.images else "",
        f"{row.median / ours.median:.2f}" if row is not ours and ours.values else "",
        "" if processor is None else f"{processor:.4g} s",
        f"{processor / statistics.median(ours.processor_seconds):.2f}" if row is not ours and processor else "",
        _compilation(row),
        "" if not row.flop else f"{speed:.3g}" + (f" ({speed / peak:.0%} of the peak)" if peak else ""),
        row.remark,
    )


def _compilation(row: Row) -> str:
    if row.first_seconds is None:
        return ""
    ahead = "" if row.compile_seconds is None else f"{row.lower_seconds:.1f} + {row.compile_seconds:.1f} s, "
    return f"{ahead}{row.first_seconds:.3g} s"
