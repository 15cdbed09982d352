"""Several jobs on one folder: who does what, without a server.

A job that is about to do a piece of work makes the file ``NAME.claim-0``, which the file system grants to one job alone
(``O_EXCL``), and touches it every few seconds while it works. Where a claim is no longer touched, its job is dead, and
another one makes ``NAME.claim-1``, again granted to one alone; whoever has the highest number has the work. Nothing is
ever renamed or overwritten, so no claim is ever two jobs', however unlucky the moment.

A job that was only asleep (suspended, or cut off from the file system) may wake up after that and go on. What it does
is done twice then, which does no harm to a table: figures are the same from whichever job, and files appear whole
(``files.py``). Where it would do harm, the job asks whether its claim is lost before it writes (``one_writer.py``).

Clocks of machines are never compared: a job watches for a change, by its own clock. Of a process of this machine the
system says whether it runs; its time of start tells it from a later process of the same number. Containers are machines
of their own, as is a machine after a restart, whatever name they have.

What shared file systems must give is that of two jobs one makes a file (``O_EXCL``: NFS from version 3 on, Lustre,
GPFS, CephFS, SMB), and that a change of its time is seen on other machines within a minute or two (attributes kept for
longer, as with ``actimeo=600``, make the living look dead).

Of the packages for locks, filelock (its ``SoftFileLease``) takes over what is no longer touched too, but it does not
say whether another holder is known to be alive, nor who it is, without which a job cannot tell when it may leave. It
renames the files of the dead, and would not see the claims that jobs of other versions of this package hold.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import re
import socket
import threading
import time
import uuid
from collections.abc import Collection
from types import TracebackType
from typing import IO, Any, Literal, Self

from etils import epath

from ddim_jax.files import writing
from ddim_jax.records import read_if_sound

# Of a living job's claim. Network file systems show a change after up to a minute.
_TOUCH_SECONDS = 15.0
DEAD_AFTER_SECONDS = 180.0
LOOK_SECONDS = 1.0

State = Literal["free", "alive", "unknown"]


class Claims:
    """The claims of one job in one folder."""

    def __init__(
        self,
        folder: epath.PathLike,
        touch_seconds: float = _TOUCH_SECONDS,
        dead_after_seconds: float = DEAD_AFTER_SECONDS,
    ) -> None:
        """Starts without any claim.

        Args:
            folder: must exist, on a file system that all jobs see.
            touch_seconds: how often a claim that is held is touched.
            dead_after_seconds: how long a claim of another job may stay untouched.
        """
        self._folder = pathlib.Path(folder)
        self._touch_seconds = touch_seconds
        self._dead_after_seconds = dead_after_seconds
        # What other jobs' claims looked like when they were last seen to change, and when.
        self._seen: dict[pathlib.Path, _Sight] = {}

    def take(self, name: str) -> "Claim | None":
        """Claims a piece of work; None if another job has it, or may have it.

        The claim is to be used in a ``with`` statement, which gives it back. Look whether the work is done only after
        it was taken: another job may have finished it, and given it back, a moment ago.
        """
        dead = self.newest(name)
        of_dead = None if dead is None else _read(dead)
        if dead is not None and self._state(dead) != "free":
            return None
        path = self._folder / f"{name}.claim-{0 if dead is None else _number(dead) + 1}"
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": uuid.uuid4().hex,
            "since": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
            "machine": _machine(),
            "started": _process(os.getpid()).started,
        }
        with writing(path):
            try:
                file = path.open("x")
            except FileExistsError:
                return None
            try:
                json.dump(holder, file)
                file.flush()
            except OSError:
                # Of a claim that says nothing the others could not tell that it is nobody's.
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    file.close()
                raise
        # Since we looked, a third job may have taken the work over and given it back, and a fourth begun anew.
        if dead is not None and _read(dead) != of_dead:
            file.close()
            path.unlink(missing_ok=True)
            return None
        return Claim(self, name, holder["token"], file, self._touch_seconds)

    def state(self, name: str) -> State:
        """Returns whether somebody has a piece of work.

        A claim is ``alive`` once it was seen to be touched, until it was not for a while; before, ``unknown``. The work
        is ``free`` without a claim, or with one that is dead; that of a process of this machine that is gone, at once.
        """
        newest = self.newest(name)
        return "free" if newest is None else self._state(newest)

    def _state(self, newest: pathlib.Path) -> State:
        if self._process_here(newest) == "gone":
            return "free"
        try:
            touched = newest.stat().st_mtime_ns
        except FileNotFoundError:
            return "free"
        now = time.monotonic()
        sight = self._seen.setdefault(newest, _Sight(touched, now, False))
        if sight.touched != touched:
            sight = self._seen[newest] = _Sight(touched, now, True)
        if now - sight.at > self._dead_after_seconds:
            return "free"
        return "alive" if sight.changed else "unknown"

    def runs_here(self, name: str) -> bool:
        """Whether who has a piece of work is a process of this machine, and at work: neither gone nor stopped."""
        newest = self.newest(name)
        return newest is not None and self._process_here(newest) == "at work"

    @staticmethod
    def _process_here(newest: pathlib.Path) -> Literal["elsewhere", "gone", "stopped", "at work"]:
        """What this machine knows of the process that made a claim."""
        holder = _read(newest)
        # Claims of earlier versions do not say on which machine of that name.
        if holder.get("host") != socket.gethostname() or holder.get("machine", _machine()) != _machine():
            return "elsewhere"
        process = _process(holder["pid"])
        if not process.exists or holder.get("started", process.started) != process.started:
            return "gone"
        return "stopped" if process.is_stopped else "at work"

    def wait(self, names: Collection[str]) -> None:
        """Waits until one of these pieces of work is free, or all are known to be done by living jobs."""
        while True:
            states = [self.state(name) for name in names]
            if "free" in states or "unknown" not in states:
                return
            time.sleep(min(LOOK_SECONDS, self._touch_seconds))

    def holder(self, name: str) -> str:
        """Returns who has a piece of work, e.g. ``node3 (process 4711)``."""
        newest = self.newest(name)
        holder = {} if newest is None else _read(newest)
        return f"{holder['host']} (process {holder['pid']})" if holder else "another job"

    def since(self, name: str) -> str:
        """Returns when a piece of work was claimed, by the clock of who did; empty where that is not known."""
        newest = self.newest(name)
        return "" if newest is None else str(_read(newest).get("since", ""))

    def newest(self, name: str) -> pathlib.Path | None:
        """Returns the claim that counts; None if there is none."""
        return max(self._all(name), key=_number, default=None)

    def remove(self, name: str) -> None:
        """Removes all claims of a piece of work, dead ones first, so that the living one counts to the last."""
        for path in sorted(self._all(name), key=_number):
            path.unlink(missing_ok=True)

    def _all(self, name: str) -> list[pathlib.Path]:
        entries = [entry for entry in os.listdir(self._folder) if is_claim(entry)]
        return [self._folder / entry for entry in entries if _work(entry) == name]


class Claim:
    """A piece of work that this job has; touched by a thread until the ``with`` statement ends."""

    def __init__(self, claims: Claims, name: str, token: str, file: IO[str], touch_seconds: float) -> None:
        """Starts touching.

        Args:
            claims: the job's.
            name: of the work.
            token: what the claim's file says that no other does.
            file: the claim's, just made and open.
            touch_seconds: how often.
        """
        self._claims = claims
        self._name = name
        self._token = token
        self._file = file
        self._touch_seconds = touch_seconds
        self._given_back = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether another job took this one for dead and has the work now."""
        newest = self._claims.newest(self._name)
        return newest is None or _read(newest).get("token") != self._token

    def _touch(self) -> None:
        while not self._given_back.wait(self._touch_seconds):
            # A file system that is gone for a moment does not end the work.
            with contextlib.suppress(OSError):
                os.utime(self._file.fileno())

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives the work back; claims that dead jobs left are removed too, unless the claim was lost."""
        self._given_back.set()
        self._thread.join()
        # On a file system that fails the claim stays, and is free as soon as this process is gone.
        with contextlib.suppress(OSError):
            self._file.close()
            if not self.lost:
                self._claims.remove(self._name)


@dataclasses.dataclass(frozen=True)
class _Sight:
    """A look at another job's claim: when it was touched (its clock), seen so (ours), and whether it ever changed."""

    touched: int
    at: float
    changed: bool


def is_claim(name: str) -> bool:
    """Whether a file is a claim, by its name."""
    return re.fullmatch(r".+\.claim-\d{1,9}", name, re.ASCII | re.DOTALL) is not None


def _work(name: str) -> str:
    """The work that a claim's file is about."""
    return name.rpartition(".claim-")[0]


def _number(path: pathlib.Path) -> int:
    return int(path.name.rsplit("-", 1)[1])


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Reads who made a claim; empty where it is gone, damaged, or was made a moment ago and not written yet."""
    return read_if_sound(path, {"host": str, "pid": int}) or {}


# --- processes of this machine ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Process:
    """A process number of this machine: whether there is such a process, since when, and whether it was stopped."""

    exists: bool
    started: str | None = None
    is_stopped: bool = False


def _process(pid: int) -> _Process:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return _Process(False)
    except PermissionError:
        pass
    try:
        # What follows the name, which may hold anything: the state, and as the 20th the start in ticks of the machine.
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return _Process(fields[0] not in "ZX", fields[19], fields[0] in "Tt")
    except (OSError, IndexError):
        return _Process(True)  # a system without /proc


def _machine() -> str | None:
    """What tells this machine, from its start on, and this container from all others; None where nothing does."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
