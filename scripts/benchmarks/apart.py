"""Programs in processes of their own that take turns, each started as its user would start it.

In one process two frameworks keep threads of both on the same cores, and share one heap: neither runs there as it does
alone. Each of these processes is the benchmark's command once more, with one program; it works when it is its turn, and
sleeps while others have theirs.
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import IO, Any, NamedTuple

from benchmarks.rows import Row, from_json, note

# What the processes tell one another, a line each.
_READY, _GO, _DONE = "ready", "go", "done"


class Turn(NamedTuple):
    """Which programs a process runs, and when.

    Attributes:
        programs: their names; none where it runs all.
        waits: entered for each turn: waits for it, and tells when it is over.
        runs_before: runs at the beginning of a turn that do not count. After a pause the first one is slower where the
            machine is a virtual one that lends its free memory to others: each page has to be fetched back. Who trains
            or samples makes no pauses.
    """

    programs: tuple[str, ...] = ()
    waits: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    runs_before: int = 0


def turn_of(program: str) -> Turn:
    """The turns of this process, given by the process that started it.

    What Python prints goes to standard error from now on: standard output is for the other process.
    """
    answers, sys.stdout = sys.stdout, sys.stderr

    @contextlib.contextmanager
    def waits() -> Iterator[None]:
        print(_READY, file=answers, flush=True)
        if sys.stdin.readline().strip() != _GO:
            sys.exit("the benchmark that started this process has ended")
        try:
            yield
        finally:
            print(_DONE, file=answers, flush=True)

    return Turn((program,), waits, runs_before=1)


def measure_apart(commands: Mapping[str, Sequence[str]]) -> list[Row]:
    """Runs the programs, each in its process, one turn each, until all have ended.

    Args:
        commands: by the program's name; each is this benchmark's command, but for ``--serve`` and ``--json``.

    Returns:
        The rows of all, those of a task one after the other.

    Raises:
        RuntimeError: a process failed.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        files = {name: pathlib.Path(folder) / f"{number}.json" for number, name in enumerate(commands)}
        at_work: dict[str, subprocess.Popen[str]] = {}
        for name, command in commands.items():
            note(f"a process for {name}")
            process = subprocess.Popen(
                [*command, "--serve", name, "--json", str(files[name])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            # One after the other: the next begins when this one has nothing more to do than to wait.
            if _heard(process, name) == _READY:
                at_work[name] = process
        while at_work:
            for name, process in list(at_work.items()):
                print(_GO, file=_pipe(process.stdin), flush=True)
                if _heard(process, name) != _DONE or _heard(process, name) != _READY:
                    del at_work[name]
        rows = [from_json(row) for file in files.values() for row in _rows_in(json.loads(file.read_text()))]
    tasks = list(dict.fromkeys(row.task for row in rows))
    return sorted(rows, key=lambda row: tasks.index(row.task))


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _heard(process: subprocess.Popen[str], name: str) -> str:
    """The next line that a process tells; an empty one when it has ended well."""
    line = _pipe(process.stdout).readline().strip()
    if not line and process.wait():
        raise RuntimeError(f"{name} ended with status {process.returncode}: see above")
    return line


def _rows_in(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for rows in record["subjects"].values() for row in rows]
