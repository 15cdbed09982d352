"""The exceptions that end a run with one line instead of a stack trace."""

import errno
import os
import unicodedata
from collections.abc import Iterator
from typing import Any

# Of a value in a message: what a line has room for.
_SHOWN = 60


class UserError(Exception):
    """A mistake that the user can mend: in the config, the data or the workdir.

    The message is one line that says what is wrong, where, and what to do.
    ``main`` prints it without a stack trace and exits with :attr:`status`.
    """

    status = 2


class ConfigError(UserError):
    """A config that cannot be used; the message names the key and what to do."""


class RefutedError(UserError):
    """Figures that are worse than those published: no mistake, but scripts must hear of it."""

    status = 1


class PeerLostError(UserError):
    """Another process of the run ended: nobody's mistake here, and starting all of them again goes on with the run."""

    status = 1


class WriteError(UserError):
    """A file that the machine could not write: nobody's mistake, and mended outside of the program."""

    status = 1


# What to do where the machine cannot write: nothing that another command line would mend.
_REMEDIES = {
    errno.ENOSPC: "make space on that disk",
    errno.EDQUOT: "your quota there is used up: make space, or ask for more",
    errno.EROFS: "that disk is mounted read-only: mount it for writing, or name a folder elsewhere",
    errno.EACCES: "you may not write there: have that changed, or name a folder elsewhere",
    errno.EPERM: "writing there is forbidden: have that changed, or name a folder elsewhere",
    errno.ENOENT: "its folder was removed or is no longer mounted: bring it back, or begin anew elsewhere",
    errno.ESTALE: "its folder was removed or is no longer mounted: bring it back, or begin anew elsewhere",
    errno.EIO: "the disk or the network to it failed: see the machine's log",
    errno.EFBIG: "that disk cannot hold files of this size: name a folder elsewhere",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "the machine has too many files open: end other programs",
}

# These come of writing alone, wherever they are raised.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def write_error(path: Any, error: OSError, remedy: str = "") -> UserError:
    """Says in one line that a file cannot be written, why, and what to do.

    Args:
        path: the file or folder.
        error: what came of writing there.
        remedy: what else helps.

    Returns:
        A :class:`WriteError` where the machine failed; else, such as for a file where a folder is needed, a mistake of
        the user's, who named the place.
    """
    told = f"{path} cannot be written: {error.strerror or error}"
    if error.errno not in _REMEDIES:
        return UserError("; ".join(filter(None, (told, remedy))))
    mend = " or ".join(filter(None, (_REMEDIES[error.errno], remedy)))
    return WriteError(f"{told}; {mend}; what is whole there is kept, and the same command goes on from it")


def failed_write(error: BaseException, was_writing: bool = False) -> OSError | None:
    """The failure of writing that an exception comes of, whoever has wrapped it; None if there is none.

    Libraries that write in the background raise exceptions of their own, some with nothing but the words of the
    system's.

    Args:
        error: the exception.
        was_writing: whether it comes of nothing but writing; else reading may have failed of a file that is not there
            or forbidden, and only what comes of writing alone is looked for.
    """
    numbers = _REMEDIES if was_writing else _OF_WRITING
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in numbers:
            return each
        for number in numbers:
            if os.strerror(number) in str(each):
                return OSError(number, os.strerror(number))
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, those that it was raised from or while handling, and those of groups; each once."""
    left, met = [error], set()
    while left:
        each = left.pop(0)
        if id(each) not in met:
            met.add(id(each))
            yield each
            left.extend(other for other in (each.__cause__, each.__context__) if other is not None)
            left.extend(each.exceptions if isinstance(each, BaseExceptionGroup) else ())


# Categories of Unicode: control characters, those that turn the direction of writing, lone halves of pairs (bytes of a
# file's name that are no text), ends of lines and paragraphs.
_NOT_SHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def on_one_line(text: str) -> str:
    r"""A text without characters that break lines or steer a terminal: these stand as Python writes them.

    >>> on_one_line("a\tname\nwith \x1b[2J")
    'a\\tname\\nwith \\x1b[2J'
    """
    return "".join(repr(letter)[1:-1] if unicodedata.category(letter) in _NOT_SHOWN else letter for letter in text)


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, and cut short where it is long, as arrays are.

    >>> shown([[0] * 4] * 100)
    '[[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], ...'
    """
    try:
        text = " ".join(repr(value).split())
    except ValueError:
        # Python refuses to write whole numbers of thousands of digits.
        text = f"a number of {value.bit_length():,} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
