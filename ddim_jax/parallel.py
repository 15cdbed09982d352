"""Devices and processes: the only file that knows how JAX spreads work over them, and the only one with collectives.

The work is data parallel: values that are the same on all devices (parameters, optimiser state), and a batch (images,
labels, keys) of which each device gets an equal part. :func:`step_over_batch` takes a step with the whole batch, on all
devices of all processes; :func:`map_over_batch` applies a function to each part, on the devices of this process.

The form of a batch that is divided among devices is known here alone: :func:`split_batch` makes it from arrays with the
example as leading axis, :func:`join_batch` undoes it. Values that are the same on all devices look like ordinary
arrays. Today ``pmap`` does the work; doing it by ``shard_map`` would change this file and no other.
"""

import collections
import contextlib
import errno
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddim_jax.errors import PeerLostError, UserError, shown

_AXIS = "devices"

# jax.Device, which type checkers take for a variable.
Devices: TypeAlias = list[Any]

# XLA's CPU backend aborts the process when about 32 steps with collectives are queued; eight keep
# every backend busy.
MAX_STEPS_IN_FLIGHT = 8

_FAKE_DEVICES_FLAG = "xla_force_host_platform_device_count"

# Orders a program such that several threads of one device find something to do. That keeps more values at a time (of a
# CIFAR-10 training step 1,080 instead of 670 MiB), and gains nothing where each core is a device.
_MANY_THREADS_FLAG = "xla_cpu_enable_concurrency_optimized_scheduler"

# Where a launcher lists the GPUs that it lets a process see.
_SEEN_GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")

# How long all processes of a run may take to come.
WAIT_SECONDS = 300

# How long the name of process 0's machine may be unknown: some clusters enter it when that process has started.
_NAME_SECONDS = 20

# JAX aborts the process when it has waited long enough. It never comes to that: a line of ours comes before.
_JAX_WAITS_LONGER = 60

# How long a failing process waits for the others to fail alike.
_GOODBYE_SECONDS = 5

# What the messages of collectives and of JAX's coordination service say when a process is gone: they have no error type
# of their own.
_SIGNS_OF_A_LOST_PEER = ("Gloo", "NCCL", "UNAVAILABLE", "heartbeat", "Barrier", "Connection")


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    automatic: bool = False,
    deterministic: bool = False,
    stop_together: bool = False,
    wait_seconds: int = WAIT_SECONDS,
) -> None:
    """Starts JAX's distributed runtime where several processes were asked for, else does nothing.

    Must run before the first JAX computation.

    Args:
        coordinator: ``host:port`` of process 0, for an explicit start.
        num_processes: number of processes of an explicit start.
        process_id: index of this process, 0 ... num_processes - 1.
        automatic: let JAX find the others (TPU pods, Slurm, Open MPI).
        deterministic: ask XLA for GPU kernels whose results are the same in every run.
        stop_together: let JAX catch SIGTERM, for :func:`stop_requested_anywhere`. Otherwise, with several processes as
            with one, SIGTERM ends a process at once.
        wait_seconds: how long all processes may take to come. Those that wait in vain end with a line and status 1.

    Raises:
        UserError: an incomplete explicit start, or an address that cannot be used.
    """
    if deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    explicit = (coordinator, num_processes, process_id)
    if not automatic and all(value is None for value in explicit):
        return
    if automatic and any(value is not None for value in explicit):
        raise UserError("--distributed=auto finds the processes itself: leave out --coordinator and its companions")
    if not automatic and any(value is None for value in explicit):
        raise UserError("--coordinator, --num_processes and --process_id belong together: give all three")
    bind_address = None
    if coordinator is not None and num_processes is not None and process_id is not None:
        if not 0 <= process_id < num_processes:
            raise UserError(
                f"--process_id={process_id} with --num_processes={num_processes}: processes are numbered from 0 to "
                "--num_processes - 1"
            )
        # What JAX makes of an address that it cannot use is a crash in one process, and others that wait for ever.
        bind_address = _checked_address(coordinator, listens=process_id == 0)
    # CPU collectives need gloo; other backends ignore the setting.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", stop_together)
    if not automatic:
        waiting = f"process {process_id}: waiting for all {num_processes} at {coordinator}, {wait_seconds} s at most"
        print(waiting, file=sys.stderr, flush=True)
    try:
        with _ending_after(wait_seconds, coordinator, num_processes):
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                _local_device_ids(os.environ),
                initialization_timeout=wait_seconds + _JAX_WAITS_LONGER,
                coordinator_bind_address=bind_address,
            )
    except (ValueError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"the processes could not be connected: {first_line}") from error


def _checked_address(coordinator: str, listens: bool) -> str | None:
    """Checks the address of process 0 as far as this process can.

    Args:
        coordinator: ``host:port``, an IPv6 address in brackets.
        listens: whether this is process 0.

    Returns:
        Where process 0 is to listen; None for all addresses of its machine, or where the environment says it.

    Raises:
        UserError: it is no address, its host is not known, or its port is taken.
    """
    form = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]/]+):(\d{1,5})", coordinator, re.ASCII)
    if form is None or not 0 < int(form[2]) < 2**16:
        raise UserError(
            f"--coordinator={shown(coordinator)} is no address: give HOST:PORT of process 0, e.g. 10.0.0.1:12355 or "
            "[fd00::1]:12355, with a port from 1 to 65535"
        )
    host, port = form[1].strip("[]"), int(form[2])
    addresses = _addresses(host, port, coordinator)
    if not listens or "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return None
    here = [address for family, address in addresses if _can_listen(family, address, coordinator)]
    only_loopback = all(address[0].startswith("127.") or address[0] == "::1" for address in here)
    if here and (not only_loopback or host == "localhost" or _is_numeric(host)):
        first = f"[{here[0][0]}]" if ":" in here[0][0] else here[0][0]
        return coordinator if len(here) == len(addresses) else f"{first}:{port}"
    # A gateway may pass on what comes to that address; and many a machine has its own name for loopback, where nobody
    # else would find it.
    print(
        f"--coordinator={coordinator} is no address by which others reach this machine: process 0 listens on all of "
        f"its addresses, port {port}",
        file=sys.stderr,
        flush=True,
    )
    _can_listen(socket.AF_INET, ("", port), coordinator)
    return None


def _addresses(host: str, port: int, coordinator: str) -> list[tuple[int, tuple[Any, ...]]]:
    """Looks a host up: families and addresses of sockets."""
    deadline = time.monotonic() + (0 if _is_numeric(host) else _NAME_SECONDS)
    while True:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return list(dict.fromkeys((family, address) for family, _, _, _, address in found))
        except (OSError, UnicodeError) as error:
            if isinstance(error, UnicodeError) or time.monotonic() > deadline:
                reason = (isinstance(error, OSError) and error.strerror) or error
                raise UserError(
                    f"--coordinator={coordinator}: the host '{host}' is not known here: {reason}"
                ) from error
            time.sleep(1)


def _is_numeric(host: str) -> bool:
    """Whether a host is given by its number, not by a name."""
    try:
        socket.getaddrinfo(host.strip("[]"), None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return True


def _can_listen(family: int, address: tuple[Any, ...], coordinator: str) -> bool:
    """Whether an address is one of this machine.

    Raises:
        UserError: it is, but the port is taken, or not for this user.
    """
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            # As servers do: connections that have just been closed do not hold a port.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EPERM):
            raise UserError(
                f"--coordinator={coordinator}: process 0 cannot listen there: {error.strerror}; choose another port, "
                "the same for all processes"
            ) from error
        return False
    return True


@contextlib.contextmanager
def _ending_after(seconds: float, coordinator: str | None, num_processes: int | None) -> Iterator[None]:
    """Ends this process with a line and status 1 if the block takes longer."""

    def end() -> None:
        at = "" if coordinator is None else f" at {coordinator}"
        several = "the processes" if num_processes is None else f"all {num_processes} processes"
        line = (
            f"ddim_jax: error: not {several} came{at} within {seconds:g} s; look whether each was started with the "
            "same --coordinator and --num_processes and an index of its own, and reaches process 0\n"
        )
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
        os._exit(PeerLostError.status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _local_device_ids(environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs that this process is to use, of those that it sees: its share of its machine's.

    Under Slurm and Open MPI JAX gives each process a single GPU, that of its rank on the machine, unless it is told
    which ones. A process that is alone on a machine takes all GPUs there, several divide them evenly, and one that the
    launcher shows its own GPUs only takes all that it sees.

    Args:
        environment: the variables of the process.

    Returns:
        The indices; an empty list for all; None where it is for JAX to decide, because the user has told it
        (``JAX_LOCAL_DEVICE_IDS``), because no such launcher runs the process, or because nothing says how many GPUs
        there are.
    """
    local = None if "JAX_LOCAL_DEVICE_IDS" in environment else _rank_on_machine(environment)
    if local is None:
        return None
    rank, processes = local
    if processes == 1:
        return []
    seen = next((environment[name] for name in _SEEN_GPUS if name in environment), None)
    there = environment.get("SLURM_GPUS_ON_NODE", "")
    if seen is None and not there.isdecimal():
        return None
    count = int(there) if seen is None else len(seen.split(","))
    if count < processes or (there.isdecimal() and count < int(there)):
        return []
    share = count // processes
    return list(range(rank * share, (rank + 1) * share))


def _rank_on_machine(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Which process of its machine this is, and of how many; None where neither Open MPI nor Slurm says it."""
    try:
        # Open MPI first, as JAX asks: inside a Slurm job, mpirun may start the processes.
        if "OMPI_COMM_WORLD_LOCAL_RANK" in environment:
            return int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]), int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"])
        if "SLURM_LOCALID" in environment:
            # Tasks of each machine of this step, e.g. 8(x3),4.
            tasks: list[int] = []
            for part in environment["SLURM_STEP_TASKS_PER_NODE"].split(","):
                number, _, times = part.rstrip(")").partition("(x")
                tasks += [int(number)] * int(times or 1)
            return int(environment["SLURM_LOCALID"]), tasks[int(environment["SLURM_NODEID"])]
    except (KeyError, ValueError, IndexError):
        return None
    return None


def share_cpu(devices: int) -> None:
    """Shares the cores of a CPU among some devices, unless the environment says among how many.

    Where each core is one, it asks for programs that need little memory, which those for many threads do not.

    XLA gives an operation of a small network to one core, so that without this the others would idle. Must run before
    the first JAX computation; other backends ignore it.

    Args:
        devices: how many.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if devices >= usable_cores() and _MANY_THREADS_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_MANY_THREADS_FLAG}=false".strip()
    decided = jax.config.values["jax_num_cpu_devices"] > 0 or _FAKE_DEVICES_FLAG in flags
    if not decided:
        jax.config.update("jax_num_cpu_devices", devices)


def usable_cores() -> int:
    """Cores that this process may use: fewer than there are under ``taskset``, which not all systems have."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- processes ----------------------------------------------------------------------------------


def process_index() -> int:
    """Index of this process; 0 writes what is written once."""
    return jax.process_index()


def process_count() -> int:
    """Number of processes of this run."""
    return jax.process_count()


def is_main_process() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes reach the same point; free with one process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def stop_requested_anywhere(step: int) -> bool:
    """Whether a SIGTERM reached any process, answered alike by all at the same step.

    With several processes JAX's coordination service catches the signal (see ``stop_together`` of :func:`initialize`)
    and agrees on a step that all have yet to reach. With one process it is not running, and the answer is no.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def failing_fast(report: Callable[[Exception], int]) -> Iterator[None]:
    """Ends this process at once when the work inside fails, so that the others need not wait for it.

    Left to itself, a failing process would wait for minutes at exit for the others, which wait for it in a collective.
    When it is the other that is gone, ``report`` is given a :class:`~ddim_jax.errors.PeerLostError`. Where collectives
    wait for ever instead of failing, JAX's coordination service misses the heartbeats of the lost process and aborts
    the others within two minutes. With one process errors just propagate.

    Args:
        report: tells the user about the error and returns the exit status.
    """
    try:
        yield
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        lost = is_lost_peer(error)
        status = report(_peer_lost() if lost else error)
        sys.stdout.flush()
        sys.stderr.flush()
        if not lost:
            # Those that fail alike, at a config that none of them can use, meet here and part in good order.
            goodbye = threading.Thread(target=_say_goodbye, daemon=True)
            goodbye.start()
            goodbye.join(_GOODBYE_SECONDS)
        os._exit(status)


def is_lost_peer(error: BaseException | None) -> bool:
    """Whether a collective or a barrier failed because another process is gone."""
    return isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in _SIGNS_OF_A_LOST_PEER)


def _peer_lost() -> PeerLostError:
    return PeerLostError(
        f"process {jax.process_index()} of {jax.process_count()} ends because another one died or cannot be reached; "
        "start the same commands again, and the run goes on from what is saved"
    )


def _say_goodbye() -> None:
    with contextlib.suppress(Exception):
        jax.distributed.shutdown()


# --- devices ------------------------------------------------------------------------------------


def device_description() -> str:
    """The devices in words, e.g. ``8 x cpu`` or ``4 x NVIDIA H100 80GB HBM3 in 2 processes``."""
    kind = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return kind if jax.process_count() == 1 else f"{kind} in {jax.process_count()} processes"


def training_devices(batch_size: int, parts: int = 1) -> Devices:
    """The devices that share a training batch: as many of each process as divide its share.

    Args:
        batch_size: images of the global batch.
        parts: micro-batches that each device's share must divide into (gradient accumulation).

    Returns:
        The devices, those of process 0 first; the same number for each process.

    Raises:
        UserError: the batch does not divide among the processes.
    """
    processes = jax.process_count()
    if batch_size % (processes * parts):
        raise UserError(
            f"train.batch_size={batch_size} must be divisible by {processes} processes x {parts} parts "
            "(train.accumulate)"
        )
    share = batch_size // (processes * parts)
    by_process = [[d for d in jax.devices() if d.process_index == p] for p in range(processes)]
    per_process = max(n for n in range(1, min(map(len, by_process)) + 1) if share % n == 0)
    return [device for devices in by_process for device in devices[:per_process]]


# A whole number travels between processes as floats that hold each of its digits exactly, times the processes.
_DIGIT = 4096
_DIGITS = 3


def value_of_main_process(value: int) -> int:
    """Process 0's value, a whole number of 35 bits or fewer, on all processes."""
    if process_count() == 1:
        return value
    digits = [value // _DIGIT**place % _DIGIT for place in range(_DIGITS - 1)]
    digits.append(value // _DIGIT ** (_DIGITS - 1))  # has the sign
    # One device of each process: process 0's share of the mean is all of it.
    devices = training_devices(process_count())
    run = step_over_batch(lambda nothing, x: (nothing, mean_over_devices(x)), devices)
    mine = np.array([digits], np.float32) * (process_count() if is_main_process() else 0)
    _, found = run(replicate(np.float32(0), devices), split_batch(mine, 1))
    return sum(round(float(digit)) * _DIGIT**place for place, digit in enumerate(np.ravel(host_copy(found))))


def local_devices() -> Devices:
    """The devices of this process, for work that needs no other process (sampling)."""
    return jax.local_devices()


def mean_over_devices(tree: Any) -> Any:
    """Averages each leaf over all devices; only inside a function given to :func:`step_over_batch`."""
    return jax.lax.pmean(tree, _AXIS)


def step_over_batch(
    function: Callable[..., Any], devices: Devices, *, donate: bool = False, constants: int = 0
) -> Callable[..., Any]:
    """Makes a program of ``function(state, batch, *constants) -> (state, result)`` for all devices.

    Args:
        function: traced by JAX; sees a device's part of the batch, and must make what it returns equal on all devices
            by :func:`mean_over_devices`.
        devices: from :func:`training_devices`.
        donate: give the memory of ``state`` to the new one.
        constants: number of further arguments, the same on all devices and never donated.

    Returns:
        A function of the state, of this process's part of the batch, as :func:`split_batch` divides it, and of the
        constants. It has the ``lower`` of a function compiled by JAX.
    """
    return jax.pmap(
        function,
        axis_name=_AXIS,
        in_axes=(None, 0) + constants * (None,),
        out_axes=(None, None),
        devices=devices,
        donate_argnums=(0,) if donate else (),
    )


def map_over_batch(function: Callable[..., Any], devices: Devices) -> Callable[..., Any]:
    """Makes a program of ``function(variables, batch) -> results`` for devices of one process.

    Args:
        function: traced by JAX; sees a device's part of the batch and returns that part's results.
        devices: the devices to use, all of one process.

    Returns:
        A function of the variables, the same on all devices, and of the batch, as :func:`split_batch` divides it; its
        results are for :func:`join_batch`. It has the ``lower`` of a function compiled by JAX.
    """
    return jax.pmap(function, axis_name=_AXIS, in_axes=(None, 0), out_axes=0, devices=devices)


def split_batch(tree: Any, device_count: int) -> Any:
    """Divides arrays [n, ...] among devices, an equal number of examples for each: [devices, n / devices, ...]."""
    return jax.tree.map(lambda x: x.reshape(device_count, -1, *x.shape[1:]), tree)


def split_batches(batches: Sequence[Any], device_count: int) -> Any:
    """Divides each of K batches, for a function that sees its parts of them stacked: [K, n / devices, ...]."""
    parts = [split_batch(batch, device_count) for batch in batches]
    return jax.tree.map(lambda *arrays: np.stack(arrays, axis=1), *parts)


def join_batch(tree: Any) -> Any:
    """Fetches results of :func:`map_over_batch` as NumPy arrays with the example as leading axis."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)


def runnable(function: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
    """What to call of a program that was compiled ahead of its first run.

    With several processes it is the function itself, which compiles anew: only that knows which part of an array each
    process has.

    Args:
        function: from :func:`step_over_batch` or :func:`map_over_batch`.
        compiled: ``function.lower(...).compile()``.
    """
    return compiled if jax.process_count() == 1 else function


class StepsInFlight:
    """Bounds how many dispatched steps may be unfinished, see ``MAX_STEPS_IN_FLIGHT``.

    Results come back in order, each once its step has finished, so that looking at a loss never holds up the device.
    """

    def __init__(self, limit: int = MAX_STEPS_IN_FLIGHT) -> None:
        """Starts with none.

        Args:
            limit: steps, or groups of steps dispatched together, that may be unfinished.
        """
        self._limit = limit
        self._pending: collections.deque[Any] = collections.deque()

    def add(self, result: Any) -> list[Any]:
        """Takes the newest step's (small) result; returns those that had to finish to make room."""
        self._pending.append(result)
        return [self._pop() for _ in range(len(self._pending) - self._limit)]

    def drain(self) -> list[Any]:
        """Waits for all steps and returns their results."""
        return [self._pop() for _ in range(len(self._pending))]

    def _pop(self) -> Any:
        return jax.device_get(self._pending.popleft())


def replicate(tree: Any, devices: Devices) -> Any:
    """Puts a copy on those of ``devices`` that this process owns, in the form that compiled steps take."""
    local = [device for device in devices if device.process_index == jax.process_index()]
    return jax.device_put(tree, NamedSharding(Mesh(np.asarray(local), (_AXIS,)), PartitionSpec()))


def host_copy(tree: Any) -> Any:
    """Copies replicated values to NumPy arrays of their own.

    A real copy: on the CPU a view would change under the reader when the next step reuses the donated memory.
    """
    return jax.tree.map(lambda x: np.array(host_view(x)), tree)


def host_view(x: Any) -> np.ndarray:
    """A replicated array as a NumPy array, to be read before the next step; on the CPU nothing is copied."""
    return np.asarray(x.addressable_data(0) if isinstance(x, jax.Array) else x)
