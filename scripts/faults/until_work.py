"""Runs commands one after the other in this process, each until its work would begin; the child of ``odd_values.py``.

    python scripts/faults/until_work.py COMMANDS.json WORKDIR RESULTS.jsonl

Starting Python and JAX takes seconds, a command that is refused takes a tenth of one. What takes long or much memory
if it is not refused (training, drawing, measuring, compiling) is replaced by :class:`WorkBeginsError`: a command that
comes so far would be at work now. Results are a JSON object a line: ``status``, ``output``, ``seconds``, ``changed``
(files of the workdir that a refused command has changed).
"""

import contextlib
import io
import json
import os
import pathlib
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn
from unittest import mock

# Address space beyond that of Python, JAX and their threads: what a slip of the hand asks for is more.
_MEMORY = 6 * 2**30

# Seconds that a command may take until its work begins, or it is refused.
_LIMIT_SECONDS = 60


class WorkBeginsError(BaseException):
    """The command is past all checks."""


class _NoEndError(BaseException):
    """The command took too long."""


def _work_begins(*_: Any, **__: Any) -> NoReturn:
    raise WorkBeginsError


def _no_end(number: int, frame: FrameType | None) -> NoReturn:
    del number
    raise _NoEndError("".join(traceback.format_stack(frame, 3)))


@contextlib.contextmanager
def _stopping_before_work() -> Iterator[None]:
    """Meanwhile jobs raise :class:`WorkBeginsError` where they would begin to compile, to draw or to write."""
    from ddim_jax.jobs import describe, evaluate, export, import_weights, stats, train
    from ddim_jax.pipeline import Pipeline
    from ddim_jax.sampling.image_sampler import ImageSampler
    from ddim_jax.sharded_map import ShardedMap
    from ddim_jax.training.state import abstract_state

    places: tuple[tuple[Any, str, Any], ...] = (
        # Of the programs that are compiled ahead nothing is known, as on backends that do not tell.
        (train, "compile_ahead", lambda *_: None),
        (train, "init_state", abstract_state),
        (train, "prepare_for_training", _work_begins),
        (Pipeline, "_run", _work_begins),
        (ImageSampler, "compile", _work_begins),
        (ShardedMap, "chunks", _work_begins),
        (evaluate, "_measure", _work_begins),
        (stats, "measure_reference", _work_begins),
        (export, "write_once", _work_begins),
        (import_weights, "_state", _work_begins),
        (describe, "_training_memory_parts", _work_begins),
    )
    with contextlib.ExitStack() as stack:
        for holder, name, instead in places:
            stack.enter_context(mock.patch.object(holder, name, instead))
        yield


def _contents(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Size and time of all files and folders in a workdir."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(folder))] = (status.st_size if path.is_file() else 0, status.st_mtime_ns)
    return found


def _result(arguments: list[str], workdir: pathlib.Path) -> dict[str, Any]:
    from ddim_jax import main

    before = _contents(workdir)
    told = io.StringIO()
    started = time.monotonic()
    signal.alarm(_LIMIT_SECONDS)
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            status = main.run(["ddim_jax", *arguments])
    except WorkBeginsError:
        status = 0
    except BaseException:
        status = 1
        told.write(traceback.format_exc(limit=-4))
    finally:
        signal.alarm(0)
    after = _contents(workdir) if status else before
    return {
        "status": status,
        "output": told.getvalue()[-4000:],
        "seconds": time.monotonic() - started,
        "changed": sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)),
    }


def _address_space() -> int:
    """Bytes of this process's address space."""
    size = re.search(r"VmSize:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    assert size is not None, "Linux tells it"
    return int(size[1]) * 1024


def main(commands: str, workdir: str, results: str) -> None:
    """Runs all commands of a file; their results are appended to another."""
    import jax

    jax.devices()
    signal.signal(signal.SIGALRM, _no_end)
    limit = _address_space() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.chdir(pathlib.Path(results).parent)  # relative paths among the odd values lead there
    with _stopping_before_work(), open(results, "a") as file:
        for arguments in json.loads(pathlib.Path(commands).read_text()):
            file.write(json.dumps(_result(arguments, pathlib.Path(workdir))) + "\n")
            file.flush()


if __name__ == "__main__":
    # In place of the script's folder, whose modules are not meant.
    sys.path[0] = str(pathlib.Path(__file__).parents[2])
    main(*sys.argv[1:])
