"""Signals, addresses that cannot be used, and processes that stand still, die or never come."""

import contextlib
import functools
import json
import os
import pathlib
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from faults.trial import TINY, BrokenPromiseError, Trial, command, expect, expect_one_line

_REPOSITORY = pathlib.Path(__file__).parent.parent.parent
_LAUNCHER = str(_REPOSITORY / "scripts" / "launch_processes.sh")

_UNENDING = (*TINY, "--config.train.steps=1000000", "--config.train.checkpoint_every=1000000")
_LIMIT_SECONDS = 240.0


def _heed_signals() -> None:
    """Undoes what a shell does to programs in the background, and ``nohup`` to all."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class _Started:
    """A command that runs on; its output goes to a file."""

    def __init__(self, program: Sequence[str], log: pathlib.Path) -> None:
        """Starts it."""
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                program,
                cwd=_REPOSITORY,
                env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=_heed_signals,
            )

    @property
    def output(self) -> str:
        """All that it has printed."""
        return self._log.read_text(errors="replace")

    def wait(self, seconds: float = _LIMIT_SECONDS) -> int:
        """Returns its exit status; negative for a signal."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise BrokenPromiseError(f"no end after {seconds:.0f} s: {self.output[-500:]}") from error

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Waits until something happens."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        while not happened():
            ended = self.process.poll()
            expect(ended is None, f"ended with status {ended}: {self.output[-800:]}")
            expect(time.monotonic() < deadline, f"nothing after {_LIMIT_SECONDS:.0f} s: {self.output[-500:]}")
            time.sleep(0.05)


@contextlib.contextmanager
def _started(program: Sequence[str], log: pathlib.Path) -> Iterator[_Started]:
    """Starts a command, and sees to it that it does not stay."""
    started = _Started(program, log)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.terminate()  # the launcher ends what it has started
            try:
                started.process.wait(60)
            except subprocess.TimeoutExpired:
                started.process.kill()
                started.process.wait()


def _program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ddim_jax", *arguments]


def _of_several(workdir: pathlib.Path, address: str, count: int, index: int, *more: str) -> list[str]:
    who = (f"--coordinator={address}", f"--num_processes={count}", f"--process_id={index}")
    return _program(*_UNENDING, f"--workdir={workdir}", *who, *more)


def _steps(workdir: pathlib.Path) -> list[int]:
    """Steps in the log of a run."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def _reached(workdir: pathlib.Path, step: int) -> Callable[[], bool]:
    return lambda: any(done >= step for done in _steps(workdir))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _expect_saved(workdir: pathlib.Path, run: _Started, name: str) -> None:
    said = re.search(rf"stopped by {name} after saving step (\d+); start the same command again", run.output)
    expect(said is not None and "Traceback" not in run.output, f"no word of what was saved: {run.output[-800:]}")
    assert said is not None
    saved = workdir / "checkpoints" / said[1]
    expect(saved.is_dir() and _steps(workdir)[-1] == int(said[1]), f"step {said[1]} is not the last, or was not saved")


# --- signals ------------------------------------------------------------------------------------


def _stopped_by(number: signal.Signals, status: int, folder: pathlib.Path) -> None:
    workdir = folder / "run"
    with _started(_program(*_UNENDING, f"--workdir={workdir}", "--stopped_status=75"), folder / "log") as run:
        run.wait_for(_reached(workdir, 3))
        run.process.send_signal(number)
        ended = run.wait()
        expect(ended == status, f"status {ended}, not {status}: {run.output[-500:]}")
        _expect_saved(workdir, run, number.name)


def _interrupted_twice(folder: pathlib.Path) -> None:
    workdir = folder / "run"
    with _started(_program(*_UNENDING, f"--workdir={workdir}"), folder / "log") as run:
        run.wait_for(_reached(workdir, 3))
        run.process.send_signal(signal.SIGSTOP)  # so that the second comes before the first is done
        run.process.send_signal(signal.SIGINT)
        run.process.send_signal(signal.SIGCONT)
        time.sleep(0.01)
        run.process.send_signal(signal.SIGINT)
        ended = run.wait(30)
        expect(ended == 130 and "Traceback" not in run.output, f"status {ended}: {run.output[-500:]}")


def _hung_up_under_nohup(folder: pathlib.Path) -> None:
    workdir = folder / "run"
    with _started(["nohup", *_program(*_UNENDING, f"--workdir={workdir}")], folder / "log") as run:
        run.wait_for(_reached(workdir, 3))
        run.process.send_signal(signal.SIGHUP)
        run.wait_for(_reached(workdir, _steps(workdir)[-1] + 5))


def _terminal_is_closed(folder: pathlib.Path) -> None:
    workdir = folder / "run"
    child, terminal = pty.fork()
    if child == 0:
        _heed_signals()
        os.chdir(_REPOSITORY)
        os.execv(sys.executable, _program(*_UNENDING, f"--workdir={workdir}"))
    deadline = time.monotonic() + _LIMIT_SECONDS
    os.set_blocking(terminal, False)
    while not _reached(workdir, 3)():
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 65_536)
        expect(time.monotonic() < deadline, "the run did not begin")
        time.sleep(0.05)
    os.close(terminal)
    while time.monotonic() < deadline:
        ended, how = os.waitpid(child, os.WNOHANG)
        if ended:
            expect(os.waitstatus_to_exitcode(how) == 0, f"status {os.waitstatus_to_exitcode(how)}")
            saved = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
            expect(saved != [] and saved[-1] == _steps(workdir)[-1], f"saved {saved}")
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise BrokenPromiseError("the run went on")


def _stands_still(seconds: float, folder: pathlib.Path) -> None:
    """Two processes, each of which is stopped for a while."""
    workdir, address = folder / "run", f"localhost:{_free_port()}"
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(_started(_of_several(workdir, address, 2, index), folder / f"log{index}"))
            for index in range(2)
        ]
        runs[0].wait_for(_reached(workdir, 3))
        for run in runs:
            run.process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            run.process.send_signal(signal.SIGCONT)
            runs[0].wait_for(_reached(workdir, _steps(workdir)[-1] + 5))
        runs[1].process.send_signal(signal.SIGINT)
        statuses = [run.wait() for run in runs]
        expect(statuses == [0, 130], f"statuses {statuses}: {runs[0].output[-500:]}")
        _expect_saved(workdir, runs[1], "SIGINT")


# --- addresses ----------------------------------------------------------------------------------

_NO_ADDRESSES = (
    *("::::", "localhost", "localhost:", "localhost:0", "localhost:70000", "localhost:-1", ":12355", "::1:12355"),
    *("[::1]", "http://localhost:1", "local host:1", "localhost:1e3"),
)


def _no_address(address: str, index: int, folder: pathlib.Path) -> None:
    who = (f"--coordinator={address}", "--num_processes=2", f"--process_id={index}")
    result = command(*TINY, f"--workdir={folder / 'run'}", *who, limit_seconds=60)
    expect_one_line(result, "--coordinator", "HOST:PORT")


def _unknown_host(folder: pathlib.Path) -> None:
    who = ("--coordinator=no.such.invalid:12355", "--num_processes=2", "--process_id=1")
    expect_one_line(command(*TINY, f"--workdir={folder / 'run'}", *who, limit_seconds=90), "no.such.invalid")


def _port_in_use(folder: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        result = command(*_of_several(folder / "run", address, 2, 0)[3:], limit_seconds=60)
    expect_one_line(result, address, "choose another port")


def _nobody_comes(index: int, folder: pathlib.Path) -> None:
    address = f"localhost:{_free_port()}"
    result = command(*_of_several(folder / "run", address, 2, index, "--wait_seconds=5")[3:], limit_seconds=60)
    expect_one_line(result, "not all 2 processes came", "5 s", statuses=(1,))


def _too_many_are_expected(folder: pathlib.Path) -> None:
    address = f"localhost:{_free_port()}"
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(
                _started(_of_several(folder / "run", address, 3, index, "--wait_seconds=20"), folder / f"log{index}")
            )
            for index in range(2)
        ]
        statuses = [run.wait(90) for run in runs]
        # The first to give up may end the other's wait too, by its port.
        said = ["not all 3 processes came" in run.output for run in runs]
        expect(
            statuses == [1, 1] and all(said), f"statuses {statuses}: {runs[0].output[-400:]} {runs[1].output[-400:]}"
        )


def _index_of_nobody(folder: pathlib.Path) -> None:
    result = command(*_of_several(folder / "run", "localhost:12355", 2, 2)[3:], limit_seconds=60)
    expect_one_line(result, "--process_id=2", "--num_processes=2")


def _listens_on_loopback_alone(folder: pathlib.Path) -> None:
    port = _free_port()
    with _started(_of_several(folder / "run", f"localhost:{port}", 2, 0), folder / "log") as run:
        run.wait_for(lambda: _listeners(port) != [])
        found = _listeners(port)
    # ::1, 127.0.0.1, and that as an IPv6 address, as the system writes them.
    loopback = {"0" * 24 + "01000000", "0100007F", "0" * 16 + "FFFF00000100007F"}
    expect(set(found) <= loopback, f"listens on {found}")


def _listeners(port: int) -> list[str]:
    """Addresses at which anybody listens, in the system's hexadecimal."""
    found = []
    for table in ("tcp", "tcp6"):
        path = pathlib.Path("/proc/net") / table
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            address, at = line.split()[1].split(":")
            if int(at, 16) == port and line.split()[3] == "0A":
                found.append(address)
    return found


# --- the launcher -------------------------------------------------------------------------------


def _children(parent: int) -> list[int]:
    path = pathlib.Path(f"/proc/{parent}/task/{parent}/children")
    found = [int(word) for word in path.read_text().split()]
    return [child for child in found if b"ddim_jax" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()]


def _launched(folder: pathlib.Path, *more: str) -> list[str]:
    return [_LAUNCHER, "2", *_UNENDING, f"--workdir={folder / 'run'}", *more]


def _launcher_ends_survivors(folder: pathlib.Path) -> None:
    with _started(_launched(folder), folder / "log") as run:
        run.wait_for(_reached(folder / "run", 3))
        children = _children(run.process.pid)
        os.kill(children[1], signal.SIGKILL)
        ended = run.wait(120)
        expect(ended == 137, f"status {ended}, not 137: {run.output[-500:]}")
        left = [child for child in children if pathlib.Path(f"/proc/{child}").exists()]
        expect(not left, "a survivor was left")


def _launcher_returns_the_first_bad_status(folder: pathlib.Path) -> None:
    with _started(_launched(folder, "--config.train.batch_size=5"), folder / "log") as run:
        ended = run.wait()
        expect(ended == 2 and "divisible by 2 processes" in run.output, f"status {ended}: {run.output[-500:]}")


def _launcher_passes_on(number: signal.Signals, folder: pathlib.Path) -> None:
    with _started(_launched(folder, "--stopped_status=75"), folder / "log") as run:
        run.wait_for(_reached(folder / "run", 3))
        run.process.send_signal(number)
        ended = run.wait()
        expect(ended == 75, f"status {ended}, not 75: {run.output[-500:]}")
        _expect_saved(folder / "run", run, "SIGTERM")


def _two_launches(folder: pathlib.Path) -> None:
    with contextlib.ExitStack() as stack:
        runs = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            program = _launched(folder / name, "--config.train.steps=5")
            runs.append(stack.enter_context(_started(program, folder / f"{name}.log")))
        # Four processes compile at the same time.
        statuses = [run.wait(900) for run in runs]
        expect(statuses == [0, 0], f"statuses {statuses}: {runs[0].output[-400:]} {runs[1].output[-400:]}")


def trials(long: bool) -> Iterator[Trial]:
    """Signals, addresses and the launcher; without ``long`` one of each that takes no two processes."""
    for number, status in ((signal.SIGINT, 130), (signal.SIGHUP, 75), (signal.SIGTERM, 75)):
        if long or number != signal.SIGTERM:
            yield Trial(f"{number.name} in training", functools.partial(_stopped_by, number, status))
    yield Trial("an address that is none", functools.partial(_no_address, "::::", 0))
    yield Trial("a port in use", _port_in_use)
    yield Trial("processes that never come", functools.partial(_nobody_comes, 0))
    if not long:
        return
    yield Trial("a second SIGINT", _interrupted_twice)
    yield Trial("SIGHUP under nohup", _hung_up_under_nohup)
    yield Trial("a terminal that is closed", _terminal_is_closed)
    yield Trial("each of two processes stopped for 30 s", functools.partial(_stands_still, 30))
    for address in _NO_ADDRESSES:
        yield Trial(f"the address {address}", functools.partial(_no_address, address, 1))
    yield Trial("a host that nobody knows", _unknown_host)
    yield Trial("a process 0 that never comes", functools.partial(_nobody_comes, 1))
    yield Trial("more processes expected than started", _too_many_are_expected)
    yield Trial("an index that no process has", _index_of_nobody)
    yield Trial("who listens at localhost", _listens_on_loopback_alone)
    yield Trial("the launcher: one process killed", _launcher_ends_survivors)
    yield Trial("the launcher: all fail", _launcher_returns_the_first_bad_status)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        yield Trial(f"the launcher: {number.name}", functools.partial(_launcher_passes_on, number))
    yield Trial("two launches at once", _two_launches)
