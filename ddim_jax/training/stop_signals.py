"""The signals by which a run is asked to end: it saves the step that it is at, and stops.

Machines send SIGTERM, a terminal that is closed SIGHUP, Ctrl-C SIGINT; a second Ctrl-C ends the program at once.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from ddim_jax import parallel, process


class StopRequest(threading.Event):
    """Whether a signal has asked this run to stop.

    Attributes:
        by: name of the signal that this process has got last.
    """

    by = signal.SIGTERM.name


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Yields an event that is set when SIGTERM, SIGHUP or the first SIGINT arrives.

    With several processes it never is: JAX's own service takes SIGTERM then, and is passed the others, see
    :func:`~ddim_jax.parallel.stop_requested_anywhere`. A signal that the program was started to ignore, as by
    ``nohup``, stays ignored.
    """
    request = StopRequest()

    def stop(number: int, _: Any = None) -> None:
        request.by = signal.Signals(number).name
        if number == signal.SIGHUP:
            _write_nowhere()
        if parallel.process_count() == 1:
            request.set()
        elif number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        # Python gives signals to the main thread alone: they stay as they are there.
        yield request
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(process.interrupt_asks(lambda: stop(signal.SIGINT)))
        if parallel.process_count() == 1:
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, stop))
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            stack.callback(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, stop))
        yield request


def _write_nowhere() -> None:
    """Leads output nowhere whose terminal is gone: the next line would be an error, and the end of the run."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a notebook's has no number
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
            if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
