"""Where a program's time goes: the most expensive operations of a ``jax.profiler`` trace, read without TensorBoard."""

import collections
import multiprocessing
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData

# Their time is that of the operations inside.
_CONTAINERS = ("while", "call", "conditional")

# An operation of a compiled program, and where it comes from.
_ORIGIN = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', re.MULTILINE)

# How many operations are listed, and how much of the names of kernels and of places in the code.
_LISTED = 15
_MOST_CHARACTERS = 90


class Operation(NamedTuple):
    """One operation of a compiled program, over all its runs and devices.

    Attributes:
        name: in the optimised program, e.g. ``fusion.12``.
        kernel: what ran it, where that has another name.
        origin: place in our code.
        seconds: time of all its runs.
        runs: number of its runs.
        share: its share of the time of all operations, 0 ... 1.
    """

    name: str
    kernel: str
    origin: str
    seconds: float
    runs: int
    share: float


def profile(run: Callable[[], Any], folder: pathlib.Path, text: str = "") -> list[Operation]:
    """Runs once more, writing a trace into a folder (TensorBoard and Perfetto show it), and reads it.

    Args:
        run: returns when its work is finished.
        folder: the folder of the trace.
        text: the compiled program, for the places in our code that operations come from.

    Returns:
        Its most expensive operations; none where the backend reports none, or jaxlib cannot read its own file.
    """
    options = jax.profiler.ProfileOptions()
    # Python's own calls would fill most of the file.
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        run()
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    return listed_apart(read_operations, newest, dict(_ORIGIN.findall(text)))


def listed_apart(function: Callable[..., list[Operation]], *arguments: Any) -> list[Operation]:
    """What a function lists in a process of its own: jaxlib's reader can abort the process that it runs in.

    Returns:
        The list; an empty one, with a line on stderr, where the process was aborted.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            print("the profile is not listed: jaxlib aborted while it read it", file=sys.stderr)
            return []


def read_operations(file: pathlib.Path, origins: Mapping[str, str]) -> list[Operation]:
    """The most expensive operations of a profile's file."""
    return top_operations(ProfileData.from_file(str(file)), origins)


def top_operations(data: Any, origins: Mapping[str, str], count: int = _LISTED) -> list[Operation]:
    """The operations that took the most time, the most expensive first.

    Args:
        data: a ``ProfileData``.
        origins: where operations come from, by name.
        count: how many.
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    counts: dict[str, int] = collections.Counter()
    kernels: dict[str, str] = {}
    with warnings.catch_warnings():
        # jaxlib 0.12 makes the classes of a profile's parts when it first reads one, of which Python says that they
        # have no __module__. Where warnings are errors, jaxlib aborts the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        for event, stats in _operations(data):
            name = str(stats.get("hlo_op") or event.name)
            if name.lstrip("%").startswith(_CONTAINERS):
                continue
            seconds[name] += event.duration_ns * 1e-9
            counts[name] += 1
            kernels[name] = "" if event.name == name else event.name
    total = sum(seconds.values())
    longest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:count]
    return [
        Operation(name, kernels[name], origins.get(name, ""), seconds[name], counts[name], seconds[name] / total)
        for name in longest
    ]


def _operations(data: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Each run of an operation, with what the backend says of it.

    TPUs report operations in lines of their own, GPUs as kernels on streams, and the CPU among the events of its
    threads, where those with ``hlo_op`` are operations.
    """
    planes = list(data.planes)
    on_devices = [plane for plane in planes if plane.name.startswith("/device:") and any(True for _ in plane.lines)]
    for plane in on_devices or [plane for plane in planes if plane.name == "/host:CPU"]:
        lines = list(plane.lines)
        named = [line for line in lines if line.name == "XLA Ops"] or [
            line for line in lines if not on_devices or line.name.startswith("Stream")
        ]
        for line in named:
            for event in line.events:
                stats = {key: value for key, value in event.stats if key == "hlo_op"}
                if on_devices or "hlo_op" in stats:
                    yield event, stats


def markdown(task: str, operations: list[Operation]) -> str:
    """The operations as a table."""
    lines = [
        f"Most expensive operations of: {task}",
        "",
        "| operation | share | time | runs | kernel | origin |",
        "|---|---|---|---|---|---|",
    ]
    for operation in operations:
        kernel, origin = (text.replace("|", "/") for text in (operation.kernel, operation.origin))
        lines.append(
            f"| {operation.name} | {operation.share:.1%} | {1e3 * operation.seconds:.3g} ms | {operation.runs} "
            f"| {kernel[:_MOST_CHARACTERS]} | {origin[-_MOST_CHARACTERS:]} |"
        )
    return "\n".join(lines)
