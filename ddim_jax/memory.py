"""Memory of devices: what is free, what a compiled program needs, and which batch size fits."""

import ctypes
import pathlib
import re
import resource
import sys
from typing import Any, NamedTuple

import jax

from ddim_jax import parallel
from ddim_jax.errors import UserError, shown

# The share of free memory to count on: allocators cut theirs into pieces, and other programs take some of it.
USABLE = 0.8

_CGROUP = pathlib.Path("/sys/fs/cgroup")
_MEMINFO = pathlib.Path("/proc/meminfo")
_STATUS = pathlib.Path("/proc/self/status")

# What the runtimes of the backends say when an allocation fails: the errors have no type of their own.
_SIGNS_OF_TOO_LITTLE = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


class ProgramMemory(NamedTuple):
    """Bytes that a compiled program needs on each device.

    Attributes:
        arguments: bytes of what it is given: parameters, optimiser state, a batch.
        temporary: bytes of activations and whatever else it does not keep.
        results: bytes of what it returns, but for results that take the place of donated arguments.
    """

    arguments: int
    temporary: int
    results: int

    @property
    def total(self) -> int:
        """The sum of arguments, temporary values and results."""
        return self.arguments + self.temporary + self.results

    @property
    def beside_arguments(self) -> int:
        """What must be free when the arguments are in place."""
        return self.temporary + self.results


def program_memory(compiled: jax.stages.Compiled) -> ProgramMemory | None:
    """What XLA planned for a compiled program; None where the backend does not tell."""
    plan: Any = compiled.memory_analysis()
    if plan is None:
        return None
    results = max(0, plan.output_size_in_bytes - plan.alias_size_in_bytes)
    return ProgramMemory(plan.argument_size_in_bytes, plan.temp_size_in_bytes, results)


# --- what is free -------------------------------------------------------------------------------


def free_bytes(devices: parallel.Devices) -> int | None:
    """The memory that is free on each of these devices of one process, the least of them; None where it is not known.

    GPUs and TPUs: what the runtime may allocate (on GPUs three quarters of the memory, unless ``XLA_PYTHON_CLIENT_*``
    says otherwise) less what is in use. CPUs: what the machine and the process's control group have left, in equal
    parts for all CPU devices of the process.
    """
    if devices[0].platform == "cpu":
        available = available_host_bytes()
        return None if available is None else available // len(parallel.local_devices())
    found = [device.memory_stats() for device in devices]
    known = [stats["bytes_limit"] - stats["bytes_in_use"] for stats in found if stats and "bytes_limit" in stats]
    return min(known) if len(known) == len(devices) else None


def available_host_bytes() -> int | None:
    """Main memory that this process may still take without swapping; None where the system does not tell."""
    if not _MEMINFO.exists():
        return None
    available = re.search(r"MemAvailable:\s+(\d+) kB", _MEMINFO.read_text())
    if available is None:
        return None
    return min([int(available[1]) * 1024, *_left_in_control_groups(), *_left_of_address_space()])


def _left_of_address_space() -> list[int]:
    """What ``ulimit -v`` leaves; nothing where it sets no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return []
    held = re.search(r"VmSize:\s+(\d+) kB", _STATUS.read_text()) if _STATUS.exists() else None
    return [max(0, limit - int(held[1]) * 1024)] if held else []


def _left_in_control_groups() -> list[int]:
    """What the limits of containers and job schedulers leave; nothing where there is none."""
    version_2 = ("memory.max", "memory.current", "inactive_file")
    version_1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file")
    left = []
    for limit_name, used_name, reclaimable_name in (version_2, version_1):
        limit_path = _CGROUP / limit_name
        limit = limit_path.read_text().strip() if limit_path.exists() else "max"
        if limit == "max":
            continue
        used_path = _CGROUP / used_name
        statistics = (used_path.parent / "memory.stat").read_text()
        # Pages of files that were read count as used, but make room for others.
        reclaimable = re.search(rf"^{reclaimable_name} (\d+)", statistics, re.MULTILINE)
        used = int(used_path.read_text()) - (int(reclaimable[1]) if reclaimable else 0)
        left.append(max(0, int(limit) - used))
    return left


class ResidentMemory(NamedTuple):
    """Bytes of main memory that this process holds.

    Attributes:
        now: bytes held at this moment.
        peak: the most bytes held so far; ``now`` where the system does not tell.
    """

    now: int
    peak: int


def resident_memory() -> ResidentMemory | None:
    """The main memory that this process holds; None where the system does not tell."""
    if not _STATUS.exists():
        return None
    # What getrusage has for a peak begins with that of the process which started this one.
    sizes = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE))
    now = sizes["VmRSS"]
    return ResidentMemory(now=int(now) * 1024, peak=int(sizes.get("VmHWM", now)) * 1024)


def return_unused_memory() -> None:
    """Gives the system back what this process has freed, a matter of milliseconds; does nothing without glibc.

    Compiling a training step leaves hundreds of MiB that glibc would keep for later.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


# --- what fits ----------------------------------------------------------------------------------


def largest_fitting_batch(
    total_batch: int, fixed_bytes: int, bytes_per_batch: int, free: int, multiple_of: int = 1
) -> int:
    """The largest batch that fits, if memory grows linearly with it.

    Args:
        total_batch: batch size B of the program whose memory is known.
        fixed_bytes: bytes that the program needs whatever the batch.
        bytes_per_batch: bytes that it needs more, for B.
        free: bytes that may be used.
        multiple_of: a divisor of the batch.

    Returns:
        The batch; 0 if none fits.

    >>> largest_fitting_batch(128, fixed_bytes=100, bytes_per_batch=256, free=300, multiple_of=8)
    96
    """
    if fixed_bytes > free:
        return 0
    largest = (free - fixed_bytes) * total_batch // max(1, bytes_per_batch)
    return largest // multiple_of * multiple_of


def power_of_two_below(n: int) -> int:
    """The largest power of two that is at most ``n``; 1 for smaller ones.

    >>> power_of_two_below(100)
    64
    """
    return 1 << max(0, n.bit_length() - 1)


def check_room(needed: int, key: str, value: Any, what: str) -> None:
    """Refuses what the main memory cannot hold, by an estimate, before any of it is made.

    Args:
        needed: bytes that are needed at least.
        key: the setting that asks for so much.
        value: what it is.
        what: what needs the memory, in words.

    Raises:
        UserError: less is free.
    """
    free = available_host_bytes()
    if free is not None and needed > free:
        raise UserError(
            f"{key}={shown(value)}: {what} need {in_words(needed)} of memory or more, {in_words(free)} are free; ask "
            "for less"
        )


# --- in words -----------------------------------------------------------------------------------


def in_words(size: int) -> str:
    """Bytes as people read them.

    >>> in_words(98_000_000_000), in_words(300 * 2**20)
    ('91.3 GiB', '300 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a computation or its compilation failed for lack of memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in _SIGNS_OF_TOO_LITTLE)


def batch_refusal(size: int, what: str, key: str, needed: int | None, free: int | None, fitting: int) -> str:
    """The line that says that a batch does not fit, and what does.

    >>> batch_refusal(512, "images of 256x256x3", "sample.batch_size", 98 * 10**9, 76 * 10**9, 256)
    '512 images of 256x256x3 per device at a time need 91.3 GiB beside the weights, 70.8 GiB are free; sample.batch_size=256 fits'

    Args:
        size: items that a device was to take at a time.
        what: the items in words.
        key: the setting to change.
        needed: bytes per device beside the weights; None when the run failed, whatever was planned.
        free: bytes per device; None where not known.
        fitting: a size that fits; 0 if none does.
    """  # noqa: E501 - the line is one line
    there = "" if free is None else f", {in_words(free)} are free"
    problem = (
        f"are too many for its memory{there}"
        if needed is None
        else f"need {in_words(needed)} beside the weights{there}"
    )
    remedy = f"{key}={fitting} {'may fit' if needed is None else 'fits'}" if fitting else "not even one fits"
    return f"{size} {what} per device at a time {problem}; {remedy}"
