"""What needs a process of its own: the time from the command to the first training step, and peaks of memory.

These subjects come first: a TPU serves one process at a time, and a process that has used a GPU keeps its memory.
"""

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.rows import OURS, Row, note
from benchmarks.setting import Setting

_REPOSITORY = pathlib.Path(__file__).parent.parent.parent
_SMALL_CONFIG = str(_REPOSITORY / "configs" / "digits.py") + ":tiny"

# What JAX_LOG_COMPILES makes JAX say, by what it was doing.
_TRACING = re.compile(r"Finished (?:tracing \+ transforming|jaxpr to MLIR module conversion) .* in ([\d.e-]+) sec")
_COMPILING = re.compile(r"Finished XLA compilation of .* in ([\d.e-]+) sec")

# What --mode=describe says that training needs: of main memory where it trains on the CPU, else of a device's.
_PREDICTIONS = (
    re.compile(r"^main memory, [^\d]*([\d,.]+) MiB", re.MULTILINE),
    re.compile(r"^total +([\d,.]+) MiB per device", re.MULTILINE),
)

_TRAINED_STEPS = 3
_POLL_SECONDS = 0.01
_SAMPLE_STEPS = (10, 100, 1000)


def _environment(**more: str) -> dict[str, str]:
    """Ours, but for a compilation cache chosen there."""
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return {**kept, **more}


def _job_flags(setting: Setting) -> list[str]:
    """The config for a job's command line, with the batch and the images of the setting."""
    data = setting.config.data
    images = {key: getattr(data, key) for key in ("source", "path", "split", "crop", "resize")}
    return [
        *setting.flags,
        f"--config.train.batch_size={setting.batch}",
        *(f"--config.data.{key}={value}" for key, value in images.items()),
        "--config.data.validation=",
    ]


# --- start-up -----------------------------------------------------------------------------------


class _Start(NamedTuple):
    """Seconds from the command on; the parts overlap nowhere."""

    total: float
    imports: float
    tracing: float
    compiling: float

    @property
    def rest(self) -> float:
        """Reading data, initial values, running the first step."""
        return self.total - self.imports - self.tracing - self.compiling


def measure_startup(setting: Setting) -> list[Row]:
    """The time from the command to the first finished training step, with an empty and with a filled compilation cache.

    Of the digits' trial run, and of the config at the batch given.
    """
    ours = _job_flags(setting)
    rows = _measure_starts(_SMALL_CONFIG, [f"--config={_SMALL_CONFIG}"], setting.repeats)
    return rows + _measure_starts(f"{setting.config_name}, batch {setting.batch}", ours, setting.repeats)


def _measure_starts(name: str, flags: Sequence[str], repeats: int) -> list[Row]:
    task = f"start-up, {name.removeprefix(str(_REPOSITORY) + os.sep)}"
    note(task)
    empty, filled = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for found in (empty, filled):
                with tempfile.TemporaryDirectory() as workdir:
                    found.append(_start(flags, pathlib.Path(workdir), folder))
                note(f"    {found[-1].total:.3g} s")
    return [_start_row(f"{task}, empty cache", empty), _start_row(f"{task}, filled cache", filled)]


def _start(flags: Sequence[str], workdir: pathlib.Path, compilation_cache: str) -> _Start:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import ddim_jax.jobs.train"], check=True, env=_environment())
    imports = time.perf_counter() - begin
    log, metrics = workdir / "log.txt", workdir / "run" / "metrics.jsonl"
    begin = time.perf_counter()
    command = _command(
        *flags,
        f"--workdir={workdir / 'run'}",
        # Losses are fetched late, but those of the last step at once.
        "--config.train.steps=1",
        "--config.train.epochs=0",
        "--config.train.sample_every=0",
        f"--config.train.compilation_cache={compilation_cache}",
    )
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(JAX_LOG_COMPILES="1"),
        )
        try:
            while not (metrics.exists() and "\n" in metrics.read_text()):
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended before its first step:\n{log.read_text()}")
                time.sleep(_POLL_SECONDS)
            total = time.perf_counter() - begin
        finally:
            process.kill()
            process.wait()
    said = log.read_text()
    tracing, compiling = (sum(map(float, pattern.findall(said))) for pattern in (_TRACING, _COMPILING))
    return _Start(total, imports, tracing, compiling)


def _start_row(task: str, starts: Sequence[_Start]) -> Row:
    parts = {
        "imports": [start.imports for start in starts],
        "tracing and lowering": [start.tracing for start in starts],
        "XLA": [start.compiling for start in starts],
        "data, initial values, first step": [start.rest for start in starts],
    }
    remark = ", ".join(f"{name} {statistics.median(seconds):.2g} s" for name, seconds in parts.items())
    return Row(task, OURS, [start.total for start in starts], remark=remark, details=parts)


# --- memory -------------------------------------------------------------------------------------


def measure_memory(setting: Setting) -> list[Row]:
    """Peaks of real jobs: training, against what ``--mode=describe`` predicts, and sampling in more and more steps.

    On GPUs and TPUs of the device that held the most, on a CPU of the whole process.
    """
    common = _job_flags(setting)
    sampling = [
        *common,
        "--mode=sample",
        f"--config.sample.num={setting.batch}",
        f"--config.sample.batch_size={setting.batch}",
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        training = [
            *common,
            f"--workdir={workdir}",
            f"--config.train.steps={_TRAINED_STEPS}",
            f"--config.train.checkpoint_every={_TRAINED_STEPS}",
            "--config.train.final_sample_steps=()",
        ]
        peak = _peak_mib(training)
        predicted = _predicted_mib(common)
        remark = "" if predicted is None else f"predicted: {predicted:,.0f} MiB, {peak / predicted - 1:+.0%} measured"
        task = f"memory, training at batch {setting.batch}"
        rows.append(Row(task, OURS, [peak], "MiB", remark=remark, details={"predicted_mib": predicted}))
        for steps in _SAMPLE_STEPS:
            peak = _peak_mib([*sampling, f"--workdir={workdir}", f"--config.sample.steps={steps}"])
            rows.append(Row(f"memory, {setting.batch} images in {steps:,} steps", OURS, [peak], "MiB"))
    return rows


def _peak_mib(flags: Sequence[str]) -> float:
    """The peak of a run with these flags, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "peak.json"
        script = pathlib.Path(__file__).parent / "peak_memory.py"
        note(f"    {' '.join(flags)}")
        _run([sys.executable, str(script), str(file), *flags])
        return json.loads(file.read_text())["bytes"] / 2**20


def _predicted_mib(flags: Sequence[str]) -> float | None:
    """What describe says that training needs; None where it says nothing."""
    text = _run(_command(*flags, "--mode=describe"))
    found = [match[1] for pattern in _PREDICTIONS if (match := pattern.search(text))]
    return float(found[0].replace(",", "")) if found else None


def _command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "ddim_jax.main", *flags]


def _run(command: Sequence[str]) -> str:
    """What a command prints; its errors as an error."""
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
    return done.stdout
