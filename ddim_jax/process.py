"""This process: whether it is the program ``ddim_jax``, and how Ctrl-C ends it.

Python's own way is to raise KeyboardInterrupt wherever the program is just then. While modules are imported this comes
out as a page of traceback, or as the ImportError of the C code that it hit; in a callback of the garbage collector (JAX
has one) it is printed and lost, and the program goes on; and when all is done but for threads that are waited for, it
is one of their tracebacks. Hence the program ends at once as long as there is nothing to clean up, and a job meets a
KeyboardInterrupt that does not get lost. Training is asked to save its step first.
"""

import contextlib
import gc
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

INTERRUPTED = "ddim_jax: interrupted"
INTERRUPTED_STATUS = 130

# What Python was told to run is one of these: modules (``python -m MODULE``) and names of scripts.
PROGRAMS = ("ddim_jax", "ddim_jax.main")

# Seconds after which an interrupt that got lost comes again.
_AGAIN_AFTER = 0.1

_received = threading.Event()
_asked = threading.Event()
_library_asks = threading.Event()


def is_program(*programs: str) -> bool:
    """Whether Python was told to run one of these: modules (``python -m MODULE``) and names of scripts."""
    arguments = iter(sys.orig_argv[1:])
    for argument in arguments:
        if argument.startswith("-m"):
            return (argument[2:] or next(arguments, "")) in programs
        if argument in ("-X", "-W"):
            next(arguments, None)
        elif not argument.startswith("-"):
            return pathlib.Path(argument).stem in programs
    return False


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Keeps Python's garbage collector from looking through what is imported here, now and later.

    Modules are there to stay, and there are so many objects in those of JAX that looking for garbage among them took a
    fifth of the time of imports, and a seventh of that of tracing. Nothing happens in another program, whose objects
    may well be garbage.
    """
    if not is_program(*PROGRAMS) or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def end_at_once_on_interrupt() -> None:
    """From now on Ctrl-C ends the program there and then.

    Nothing happens in another program, or where signals are somebody else's: ``nohup`` and shells without a terminal
    have programs ignore this one.
    """
    if is_program(*PROGRAMS) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def ends_at_once() -> bool:
    """Whether Ctrl-C would end the program here, so that no KeyboardInterrupt can be its doing."""
    return signal.getsignal(signal.SIGINT) is _end


@contextlib.contextmanager
def interrupts_raised() -> Iterator[None]:
    """Meanwhile Ctrl-C is a KeyboardInterrupt, so that files and bars are closed on its way; then again as before.

    Nothing changes where :func:`end_at_once_on_interrupt` has done nothing.
    """
    if signal.getsignal(signal.SIGINT) is not _end:
        yield
        return
    previous_hook = sys.unraisablehook

    def come_again(lost: "sys.UnraisableHookArgs") -> None:
        if lost.exc_type is KeyboardInterrupt:
            # A real signal, which also wakes a main thread that waits.
            again = (threading.main_thread().ident, signal.SIGINT)
            timer = threading.Timer(_AGAIN_AFTER, signal.pthread_kill, again)
            timer.daemon = True
            timer.start()
        else:
            previous_hook(lost)

    sys.unraisablehook = come_again
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)
        if sys.unraisablehook is come_again:  # else somebody has built on it
            sys.unraisablehook = previous_hook


@contextlib.contextmanager
def interrupt_asks(stop: Callable[[], None]) -> Iterator[None]:
    """Meanwhile the first Ctrl-C asks the job to stop in good order, and the second ends the program at once.

    Nothing changes outside of :func:`interrupts_raised` and :func:`interrupts_asked_by_library`; in the latter the
    second one does what Ctrl-C did before.

    Args:
        stop: asks the job; called as a handler of signals is.
    """
    before = signal.getsignal(signal.SIGINT)
    by_library = _library_asks.is_set() and threading.current_thread() is threading.main_thread()
    if not by_library and before is not _raise:
        yield
        return

    def ask(*_: Any) -> None:
        if not by_library:
            _asked.set()
        signal.signal(signal.SIGINT, before if by_library else _end)
        stop()

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def interrupts_asked_by_library() -> Iterator[None]:
    """Meanwhile jobs may take Ctrl-C for themselves, in a program or notebook that is not ours."""
    _library_asks.set()
    try:
        yield
    finally:
        _library_asks.clear()


def was_asked_to_stop() -> bool:
    """Whether Ctrl-C has asked a job to stop in good order."""
    return _asked.is_set()


def is_interrupted() -> bool:
    """Whether Ctrl-C has come to a job of the program; what is raised from then on is its doing."""
    return _received.is_set()


def _raise(*_: Any) -> None:
    _received.set()
    raise KeyboardInterrupt


def _end(*_: Any) -> None:
    if not _received.is_set():
        with contextlib.suppress(OSError):
            os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(INTERRUPTED_STATUS)
