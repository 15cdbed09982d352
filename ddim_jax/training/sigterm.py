"""SIGTERM, by which machines ask a run to end: it saves the step that it is at, and stops."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from ddim_jax import parallel


@contextlib.contextmanager
def catch_sigterm() -> Iterator[threading.Event]:
    """Yields an event that is set when SIGTERM arrives.

    With several processes it never is: JAX's own service takes the signal then, see
    :func:`~ddim_jax.parallel.stop_requested_anywhere`.
    """
    received = threading.Event()
    if parallel.process_count() > 1:
        yield received
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)
