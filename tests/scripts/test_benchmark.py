"""The benchmark's command, on the smallest network, and what it reads and prints."""

import importlib
import json
import os
import pathlib
import sys
import types
import warnings

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# A process of two tasks, with one of three programs.
_PROGRAM = f"""
import importlib, json, pathlib, sys
sys.path.insert(0, {str(ROOT / "scripts")!r})
from benchmarks import rows
from benchmarks.apart import turn_of

diary, _, name, _, file = sys.argv[1:]
turn = turn_of(name)

def make():
    if name == "absent":
        importlib.import_module("absent")
    return rows.Program(run)

def run():
    print("heard by nobody")
    with open(diary, "a") as pages:
        print(name, file=pages)

def measured(task):
    return rows.take_turns(rows.Task(task), {{name: make}}, 2, turn=turn.waits, runs_before=turn.runs_before).rows

found = [measured(task) for task in ("first", "second")]
pathlib.Path(file).write_text(json.dumps({{"subjects": {{"train": [rows.as_json(*each) for each in found]}}}}))
"""


def load(name):
    return importlib.import_module(name)


def test_command_measures_and_reports(tmp_path, capsys):
    file = tmp_path / "speed.json"
    load("benchmark").main(
        [
            *("--only", "forward,sample,checkpoint", "--batch", "8", "--repeats", "1", "--steps", "2"),
            *("--json", str(file), "--profile", str(tmp_path / "traces")),
            f"--config={ROOT / 'configs' / 'digits.py'}:tiny",
            *("--config.model.multipliers=(1,)", "--config.model.attention_resolutions=(8,)"),
        ]
    )
    printed, told = capsys.readouterr()
    record = json.loads(file.read_text())

    assert record["device"] == "8 x cpu"
    assert {"python", "jax", "flax"} <= record["versions"].keys()
    assert list(record["subjects"]) == ["sample", "forward", "checkpoint"]
    (sample,), (forward,) = record["subjects"]["sample"], record["subjects"]["forward"]
    for row in (sample, forward):
        assert row["program"] == "ddim_jax"
        assert row["images"] == 8
        assert len(row["values"]) == len(row["processor_seconds"]) == 1
        assert row["median"] == row["values"][0] > 0
        assert min(row["lower_seconds"], row["compile_seconds"], row["first_seconds"]) > 0
        assert row["details"]["operations"][0]["seconds"] > 0
    assert sample["task"] == "sample, 2 steps"
    # Two network evaluations are the work of two forward passes.
    assert sample["flop"] == 2 * forward["flop"] > 0
    assert sample["details"]["seconds_for_50000_images"] == pytest.approx(50_000 / 8 * sample["median"])
    stall, write = record["subjects"]["checkpoint"]
    assert stall["details"]["bytes"] > 10_000
    assert stall["median"] > 0
    assert write["median"] > 0

    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert "8 x cpu" in printed.splitlines()[0]
    assert f"| forward | ddim_jax | {forward['median']:.4g} s |" in table[3]
    assert "Most expensive operations of: forward" in printed
    assert "conv" in printed.split("Most expensive operations of: forward")[1]
    assert "forward" in told


def test_unknown_subject_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        load("benchmark").main(["--only", "forward,fowrard"])
    assert stopped.value.code == 2
    assert "unknown: fowrard" in capsys.readouterr().err


def test_programs_take_turns_and_the_first_round_does_not_count():
    rows = load("benchmarks.rows")
    calls = []

    def program(name):
        return lambda: rows.Program(lambda: calls.append(name) or name, lower_seconds=1.0, compile_seconds=2.0)

    turns = rows.take_turns(
        rows.Task("task", images=4, flop=8.0), {"ddim_jax": program("a"), "peer": program("b")}, repeats=2
    )
    assert calls == ["a", "b"] * 3
    assert turns.results == {"ddim_jax": "a", "peer": "b"}
    assert [len(row.values) for row in turns.rows] == [2, 2]
    assert all(row.images == 4 and row.flop == 8 and row.compile_seconds == 2 for row in turns.rows)


def test_peer_that_cannot_run_gets_a_row_with_the_reason():
    rows = load("benchmarks.rows")

    def fail():
        raise ImportError("No module named 'peer'\nsecond line")

    programs = {"ddim_jax": lambda: rows.Program(lambda: 1), "peer": fail}
    ours, theirs = rows.take_turns(rows.Task("task"), programs, repeats=1).rows
    assert ours.values and not theirs.values
    assert "No module named 'peer'" in rows.markdown([ours, theirs])
    assert "second line" not in theirs.remark
    with pytest.raises(ImportError):
        rows.take_turns(rows.Task("task"), {"ddim_jax": fail}, repeats=1)


def test_programs_in_processes_of_their_own_take_turns(tmp_path):
    apart = load("benchmarks.apart")
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    diary = tmp_path / "diary.txt"
    commands = {name: [sys.executable, str(program), str(diary)] for name in ("ddim_jax", "peer", "absent")}
    found = apart.measure_apart(commands)
    assert [(row.task, row.program, len(row.values)) for row in found] == [
        *(("first", "ddim_jax", 2), ("first", "peer", 2), ("first", "absent", 0)),
        *(("second", "ddim_jax", 2), ("second", "peer", 2), ("second", "absent", 0)),
    ]
    # The one that cannot run has no turn; after the first round a run in each turn does not count.
    assert diary.read_text().split()[:10] == ["ddim_jax", "peer"] + ["ddim_jax", "ddim_jax", "peer", "peer"] * 2
    assert found[2].remark == "cannot run here: No module named 'absent'"


def test_a_process_that_fails_ends_the_comparison(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="ddim_jax ended with status 3"):
        load("benchmarks.apart").measure_apart({"ddim_jax": [sys.executable, str(program)]})


def test_ratios_are_peer_by_ours_within_a_task():
    rows = load("benchmarks.rows")
    table = rows.markdown(
        [
            rows.Row("train", "ddim_jax", [2.0, 2.0, 8.0], processor_seconds=[4.0], images=16, flop=1e13),
            rows.Row("train", "peer", [3.0, 3.0, 1.0], processor_seconds=[5.0], images=16),
            rows.Row("sample", "ddim_jax", [1.0]),
        ],
        peak=10.0,
    )
    head, line, ours, peer, other = ([cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines())
    assert line == ["---"] * len(head)
    named = dict(zip(range(len(head)), head, strict=True))
    ratios = [column for column, name in named.items() if name == "peer / ours"]
    assert [peer[column] for column in ratios] == ["1.50", "1.25"]
    assert [ours[column] for column in ratios] == [other[column] for column in ratios] == ["", ""]
    assert ours[head.index("images/s")] == "8"
    assert ours[head.index("TFLOP/s")] == "5 (50% of the peak)"


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA A100-SXM4-40GB", "float32", 156),
        ("NVIDIA L40S", "bfloat16", 362),
        ("NVIDIA L4", "bfloat16", 121),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5", "bfloat16", 459),
        ("cpu", "float32", None),
        ("NVIDIA H100 NVL", "bfloat16", None),
    ],
)
def test_known_peaks(kind, dtype, peak):
    assert load("benchmarks.machine").known_peak(kind, dtype) == peak


def test_known_devices():
    known_device = load("benchmarks.machine").known_device
    h100, h200 = known_device("NVIDIA H100 80GB HBM3"), known_device("NVIDIA H200")
    assert (h100.bandwidth, h200.bandwidth) == (3.35, 4.8)
    assert h100[:3] == h200[:3] == (989.4, 494.7, 66.9)
    assert known_device("cpu") is None


def test_operations_are_summed_by_name_and_traced_to_the_code():
    profiling = load("benchmarks.profiling")

    class Thing:
        def __init__(self, name, **fields):
            self.name = name
            self.__dict__.update(fields)

    def kernel(name, operation, nanoseconds):
        return Thing(name, duration_ns=nanoseconds, stats=[("hlo_op", operation), ("correlation_id", 1)])

    events = [kernel("cudnn", "conv.1", 3e6), kernel("loop", "fusion.2", 1e6), kernel("cudnn", "conv.1", 4e6)]
    modules = [kernel("jit_step", "jit_step", 9e9)]
    gpu = Thing("/device:GPU:0", lines=[Thing("Stream #13", events=events), Thing("XLA Modules", events=modules)])
    host = Thing("/host:CPU", lines=[Thing("python", events=[kernel("x", "on_host", 9e9)])])
    conv, fusion = profiling.top_operations(Thing("", planes=[host, gpu]), {"conv.1": "jit(step)/UNet/conv_in"})
    assert conv == ("conv.1", "cudnn", "jit(step)/UNet/conv_in", pytest.approx(7e-3), 2, pytest.approx(7 / 8))
    assert (fusion.name, fusion.runs, fusion.origin) == ("fusion.2", 1, "")


def test_a_profile_is_read_where_warnings_are_errors():
    profiling = load("benchmarks.profiling")

    class Event:
        name = "kernel"
        duration_ns = 5e6

        @property
        def stats(self):
            warnings.warn("builtin type event_stats has no __module__ attribute", DeprecationWarning, stacklevel=1)
            return [("hlo_op", "conv.1")]

    line = types.SimpleNamespace(name="threads", events=[Event()])
    plane = types.SimpleNamespace(name="/host:CPU", lines=[line])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (operation,) = profiling.top_operations(types.SimpleNamespace(planes=[plane]), {})
    assert operation[:2] == ("conv.1", "kernel")


def test_a_reader_that_aborts_does_not_end_the_benchmark(capsys):
    assert load("benchmarks.profiling").listed_apart(os.abort) == []
    assert "jaxlib aborted while it read it" in capsys.readouterr().err


def test_pictures_are_the_same_each_time(tmp_path):
    storage = load("benchmarks.storage")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        storage.make_pictures(tmp_path / name, 8, 1)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert len(first) == 1024
    assert first[7].read_bytes() == second[7].read_bytes()
    assert first[7].read_bytes() != first[8].read_bytes()
