"""Values that nobody means, of every key and flag, in every mode: refused in one line at once, or a run that works."""

import atexit
import functools
import json
import pathlib
import random
import shutil
import tempfile
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from ddim_jax.config import Config, flatten, keys_of
from ddim_jax.config.keys import Key
from ddim_jax.names import Mode, choices
from faults.trial import TINY, BrokenPromiseError, Result, Trial, command, expect, expect_one_line, expect_success

_CHILD = pathlib.Path(__file__).parent / "until_work.py"

# Draws of a child process; what one of them leaves behind can only harm those after it.
_AT_ONCE = 50

_SEED = 15

_WHOLE = (
    *("0", "-1", "1", "2", "3", "7", "100", "2147483647", "2147483648", "4294967296", "9223372036854775807"),
    *("9223372036854775808", "-9223372036854775808", "1" + 25 * "0", "-1" + 25 * "0", 4000 * "9", 5000 * "9"),
    *(
        "1000000",
        "1000000000",
        "nan",
        "inf",
        "1e9",
        "1.5",
        "",
        " ",
        "x",
        "0x10",
        "1_000",
        "None",
        "True",
        "(1,)",
        "\u0663",
    ),
)
_REAL = (
    *(
        "0",
        "-0.0",
        "-1",
        "1",
        "0.5",
        "0.9",
        "1e-9",
        "1e-30",
        "1e-320",
        "5e-324",
        "1e25",
        "1e308",
        "-1e308",
        "1e400",
        "nan",
    ),
    *("inf", "-inf", "1" + 25 * "0", 400 * "9", 5000 * "9", "", "x", "None", "(1.0,)", "1,5"),
)
_TRUTH = ("maybe", "", "2", "None", "true", "false", "-1")
_TEXT = (
    *("", " ", "x", "a\0b", "a\nb", 300 * "x", 5000 * "x", "~nosuchuser/x", "/nonexistent/x", "/dev/null", "gs://b/x"),
    *("s3://b/x", "http://h/x", "foo://x", "../..", "/", "%s%n{}", "\u202e", "\udcff", "\ud800", "$(id)", "-1", "None"),
    *("train[:10%]", "train[90%:", "train[:" + 30 * "9" + "]", "train+train", "latest", "1" + 25 * "0"),
)
_STRANGE_LISTS = ("", "x", "()", "(", "((1,),)", "[1]", "{}", "(None,)", "('a',)", "(True,)", 80 * "(" + 80 * ")")

# Of the flags beside --config.KEY. Addresses of other machines are tried elsewhere.
_FLAGS: dict[str, Sequence[str]] = {
    "mode": ("", "x", "trian", "a\0b", 5000 * "x", "--mode"),
    "workdir": (
        *("", "a\0b", 300 * "x", 5000 * "x", "~nosuchuser/x", "/dev/null", "/dev/null/x", "/proc/x", "gs://b/x"),
        *("s3://b/x", "az://b/x", "http://h/x", "foo://x", "\ud800"),
    ),
    "config": (
        *(
            "",
            "x",
            "a\0b",
            300 * "x",
            5000 * "x",
            "~nosuchuser/x.py",
            "/",
            "/dev/null",
            "/dev/null.json",
            "x.json",
            ":",
        ),
        *("digits:x", "digits:\0", "digits:" + 300 * "x", "gs://b/x.json", "http://h/x.json", "/proc/self/mem"),
    ),
    "num_processes": ("0", "-1", "x", "", "1" + 25 * "0", 5000 * "9", "1.5"),
    "process_id": ("-1", "1000000000", "x", "1" + 25 * "0", 5000 * "9"),
    "stopped_status": ("-1", "256", "300", "x", "", "1" + 25 * "0", 5000 * "9"),
    "distributed": ("", "x", "a\0b"),
    "flagfile": ("/nonexist", "/", "/dev/null/x", "a\0b", 5000 * "x"),
    "nosuchflag": ("", "1"),
    "config.nosuchkey": ("", "1"),
    "config.train": ("", "1"),
}

# Config files that are none, beside those that raise what Python's programs seldom raise.
_CONFIG_FILES = {
    "ends the program": b"import sys\nsys.exit(0)\n",
    "ends the program in get_config": b"def get_config():\n    raise SystemExit(3)\n",
    "interrupts": b"raise KeyboardInterrupt\n",
    "raises a bare exception": b"raise BaseException('x')\n",
    "imports what is not there": b"import no_such_module\n",
    "imports itself": b"import config as itself\nimport no_such_module\n",
    "calls itself": b"def get_config():\n    return get_config()\n",
    "is empty": b"",
    "is binary": bytes(range(256)) * 9,
    "has a number of 5,000 digits": (
        b"from ddim_jax.config import default_config\ndef get_config():\n    config = default_config()\n"
        b"    config.train.steps = 10**5000\n    return config\n"
    ),
    "returns another thing": b"def get_config():\n    return 10**5000\n",
}


@functools.cache
def _trained() -> pathlib.Path:
    """A workdir of a run of one step, for all draws of this process."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="odd-values-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    expect_success(command(*TINY, f"--workdir={folder / 'run'}", "--config.train.steps=1"))
    return folder / "run"


def _numbers(known: Key, plain: Sequence[str]) -> list[str]:
    """Odd numbers, and those at the ends of a key's range."""
    bounds = known.range or ()
    ends = [bound for bound in bounds if bound is not None]
    beside = [end + step for end in ends for step in (-1, 0, 1)]
    return [*plain, *(repr(end) if isinstance(end, float) else str(end) for end in beside)]


def _texts(rng: random.Random, annotation: Any, known: Key) -> str:
    """An odd value of a key, as it stands on a command line."""
    if typing.get_origin(annotation) is tuple:
        inner = typing.get_args(annotation)[0]
        if rng.random() < 0.3:
            return rng.choice(_STRANGE_LISTS)
        one = _texts(rng, inner, known)
        repeated = rng.choice((1, 1, 1, 2, 5, 2000))
        one = one if inner in (int, float) else repr(one)
        return f"({', '.join([one] * repeated)},)"
    if annotation is bool:
        return rng.choice(_TRUTH)
    if annotation is float:
        return rng.choice(_numbers(known, _REAL))
    if annotation is int or int in typing.get_args(annotation):
        return rng.choice(_numbers(known, _WHOLE))
    return rng.choice(_TEXT)


def _commands(count: int) -> Iterator[tuple[str, list[str]]]:
    """Draws commands: first each flag, then keys in turn; with their names."""
    rng = random.Random(_SEED)
    modes = choices(Mode)
    drawn = 0
    flags = [(flag, value) for flag, values in _FLAGS.items() for value in values]
    rng.shuffle(flags)
    for flag, value in flags[: count // 5]:
        others = [argument for argument in (TINY[0], "--workdir=new") if not argument.startswith(f"--{flag}=")]
        yield f"--{flag}={_shown(value)}", [*others, f"--{flag}={value}"]
        drawn += 1
    types = _types()
    keys = [(name, known) for name, known in keys_of(Config)]
    while drawn < count:
        rng.shuffle(keys)
        for name, known in keys[: count - drawn]:
            mode = rng.choice(_modes_of(name) if rng.random() < 0.8 else modes)
            value = _texts(rng, types[name], known)
            where = "new" if mode in ("train", "import", "stats", "describe") else str(_trained())
            given = [*TINY, "--config.eval.num=4", "--config.eval.extractor=pixels", f"--config.{name}={value}"]
            yield f"{mode} {name}={_shown(value)}", [f"--mode={mode}", f"--workdir={where}", *given]
        drawn += min(len(keys), count - drawn)


def _types() -> dict[str, Any]:
    """The types of all keys."""
    import dataclasses

    found = {}
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(field.type):
            found |= {f"{field.name}.{inner.name}": inner.type for inner in dataclasses.fields(field.type)}
        else:
            found[field.name] = field.type
    assert found.keys() == flatten(Config()).keys()
    return found


def _modes_of(key: str) -> Sequence[str]:
    """The modes to which a key matters most."""
    group = key.split(".")[0]
    of_group = {
        "sample": ("sample", "trajectory", "interpolate", "sweep"),
        "eval": ("evaluate", "stats"),
        "weights": ("import", "export"),
    }
    return of_group.get(group, (group,) if group in choices(Mode) else ("train", "train", "describe"))


def _shown(value: str) -> str:
    text = ascii(value)[1:-1]
    return text if len(text) <= 40 else f"{text[:20]}... ({len(value)} characters)"


class _Draws:
    """Commands that one child process runs when the first of their results is asked for."""

    def __init__(self, commands: Sequence[list[str]]) -> None:
        self._commands = list(commands)
        self._results: list[dict[str, Any]] = []

    def check(self, place: int) -> None:
        """Checks that a command was refused in one line and changed nothing, or came to its work."""
        if not self._results:
            self._run()
        found = self._results[place]
        result = Result(found["status"], found["output"], found["seconds"])
        if result.status == 0:
            expect("Traceback" not in result.output, result.output)
        else:
            expect_one_line(result)
        expect(not found["changed"], f"a refused command changed {found['changed'][:5]}")

    def _run(self) -> None:
        workdir = _trained()
        with tempfile.TemporaryDirectory(prefix="odd-values-") as name:
            results = pathlib.Path(name) / "results.jsonl"
            results.touch()
            while len(self._results) < len(self._commands):
                left = self._commands[len(self._results) :]
                (pathlib.Path(name) / "commands.json").write_text(json.dumps(left))
                results.write_text("")
                ended = ""
                try:
                    child = command(
                        *(f"{name}/commands.json", str(workdir), str(results)),
                        program=(str(_CHILD),),
                        environment={"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"},
                        limit_seconds=60.0 * len(left),
                    )
                    ended = f"ended with status {child.status}: {child.output[-500:]}"
                except BrokenPromiseError as error:
                    ended = str(error)
                found = [json.loads(line) for line in results.read_text().splitlines()]
                self._results += found
                if len(found) < len(left):
                    # The command that was at work took the process with it.
                    self._results.append({"status": -1, "output": ended, "seconds": 0.0, "changed": []})


def _config_file(folder: pathlib.Path, content: bytes) -> None:
    file = folder / "config.py"
    file.write_bytes(content)
    result = command(f"--config={file}", f"--workdir={folder / 'run'}")
    expect_one_line(result)
    expect(not (folder / "run").exists(), "a refused command made the workdir")


def trials(long: bool) -> Iterator[Trial]:
    """A thousand draws, or fifty; and config files that end or stop the program."""
    drawn = list(_commands(1_200 if long else 50))
    for first in range(0, len(drawn), _AT_ONCE):
        some = drawn[first : first + _AT_ONCE]
        draws = _Draws([arguments for _, arguments in some])
        for place, (name, _) in enumerate(some):
            yield Trial(name, lambda folder, draws=draws, place=place: draws.check(place))
    files = list(_CONFIG_FILES.items())
    for name, content in files if long else files[:3]:
        yield Trial(f"a config file that {name}", lambda folder, content=content: _config_file(folder, content))
