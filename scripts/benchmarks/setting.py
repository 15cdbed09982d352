"""What all subjects are given, and compiling ahead of time."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import monitoring

from benchmarks.apart import Turn
from benchmarks.rows import Program, Task, Turns, take_turns
from ddim_jax import parallel
from ddim_jax.config import Config

# What JAX reports about each program that XLA compiles, or finds in the compilation cache.
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"

# An accelerator waits for the host between two repeats: each should be many steps long. A CPU does not.
_CALLS_ON_ACCELERATOR = 20


class Setting(NamedTuple):
    """What all subjects measure with.

    Attributes:
        config: the run; ``train.batch_size`` is the batch, and ``data`` a folder of images.
        flags: the command line's, that chose the config: ``--config=...``, and changes of keys.
        repeats: rounds that count.
        asked_calls: the wanted :attr:`calls`; 0 leaves it to the backend.
        steps: numbers of DDIM steps.
        traces: folder for traces of one more repeat of each of our programs; None makes none.
        turn: which programs run in this process, and when.
    """

    config: Config
    flags: tuple[str, ...]
    repeats: int
    asked_calls: int
    steps: tuple[int, ...]
    traces: Path | None
    turn: Turn = Turn()

    @property
    def config_name(self) -> str:
        """What ``--config`` names, e.g. ``configs/cifar10.py:bf16``."""
        return next(flag.split("=", 1)[1] for flag in self.flags if flag.startswith("--config="))

    @property
    def batch(self) -> int:
        """Images at a time, over all devices."""
        return self.config.train.batch_size

    @property
    def calls(self) -> int:
        """Forward passes, or training steps, in each repeat."""
        return self.asked_calls or (1 if jax.default_backend() == "cpu" else _CALLS_ON_ACCELERATOR)

    @property
    def devices(self) -> parallel.Devices:
        """The devices that share a batch."""
        return parallel.training_devices(self.batch)

    def compare(self, task: Task, programs: Mapping[str, Callable[[], Program]]) -> Turns:
        """Runs those of the programs that belong to this process in turns, as :func:`benchmarks.rows.take_turns`."""
        chosen = {name: make for name, make in programs.items() if name in self.turn.programs or not self.turn.programs}
        return take_turns(task, chosen, self.repeats, self.traces, self.turn.waits, self.turn.runs_before)


class Compiled(NamedTuple):
    """What compiling ahead of time gave.

    Attributes:
        result: what the function that compiles returned.
        lower_seconds: what tracing and lowering took.
        compile_seconds: what XLA took.
    """

    result: Any
    lower_seconds: float
    compile_seconds: float


def time_compilation(compile_it: Callable[[], Any]) -> Compiled:
    """Times a function that compiles programs and runs none."""
    seconds = [0.0]

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILE_EVENT:
            seconds[0] += duration_secs

    monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    try:
        result = compile_it()
    finally:
        monitoring.unregister_event_duration_listener(listen)
    return Compiled(result, time.perf_counter() - start - seconds[0], seconds[0])
