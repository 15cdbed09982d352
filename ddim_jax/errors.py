"""The exceptions that end a run with one line instead of a stack trace."""

import unicodedata
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


class PeerLostError(UserError):
    """Another process of the run ended: nobody's mistake here, and starting all of them again goes on with the run."""

    status = 1


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
