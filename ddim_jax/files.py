"""The one way to write a file: it appears whole under its name, or not at all; and what kinds of files are read.

A run can be killed at any moment, and several programs may write the same file. So each writes to a name of its own in
the same folder, gets the bytes to the disk, and renames: whoever comes later finds one whole file, and after a crash of
the machine too. The name of its own is one that nobody could guess, and is never a link: where ``path`` is a link to a
file, the link is replaced, and what it led to stays as it is. On object stores (``gs://``) a rename is a copy, whose
result appears whole as well.
"""

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator

from etils import epath

from ddim_jax.errors import UserError

# Of files that are read into memory in one piece: larger than any image that is decoded, stored without compression.
MOST_BYTES = 2**31

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def check_kind(path: epath.PathLike, most_bytes: int | None = None) -> None:
    """Refuses what is neither file nor folder: a pipe may make its reader wait for ever, a device may never end.

    Args:
        path: may be missing, which its reader will say.
        most_bytes: that a file may have; None for any number.

    Raises:
        UserError: it is a pipe, a device or a socket, or a link to one, or larger than that.
    """
    path = os.fspath(path)
    if "://" in path:
        return
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return
    for is_kind, name in _KINDS:
        if is_kind(found.st_mode):
            raise UserError(f"{path} is {name}, not a file: give a file")
    if most_bytes is not None and stat.S_ISREG(found.st_mode) and found.st_size > most_bytes:
        raise UserError(f"{path} has {found.st_size:,} bytes, more than any file of its kind: give another")


def read_file(path: epath.PathLike) -> bytes:
    """Reads a file that the user has named into memory.

    Raises:
        OSError: it cannot be read.
        UserError: it is no file, or of a size that nobody would read in one piece.
    """
    check_kind(path, MOST_BYTES)
    return epath.Path(path).read_bytes()


@contextlib.contextmanager
def whole_file(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a path of this program's own to write to; what is there in the end becomes ``path``.

    Nothing remains if the block raises. The folder must exist.

    Args:
        path: the file; one that is there already is replaced.
    """
    path = epath.Path(path)
    partial = _own_name(path)
    try:
        _make_new(partial)
        yield partial
        _to_disk(partial)
        partial.replace(path)
        _to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: epath.PathLike, content: str | bytes | memoryview) -> None:
    """Writes a file, whole or not at all; text as UTF-8.

    Args:
        path: the file, in a folder that exists.
        content: all of it.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else bytes(content))


@contextlib.contextmanager
def whole_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a new folder of this program's own; what is in it in the end becomes the folder ``path``.

    Nothing remains if the block raises, or if ``path`` is there by then.

    Args:
        path: must not exist.

    Raises:
        OSError: it does, or the parent cannot be written.
    """
    path = epath.Path(path)
    partial = _own_name(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        for folder, _, files in os.walk(partial):
            for name in (*files, ""):
                _to_disk(epath.Path(folder) / name)
        partial.rename(path)
        _to_disk(path.parent)
    finally:
        if partial.exists():
            partial.rmtree()


def _own_name(path: epath.Path) -> epath.Path:
    """A name that no other program takes, and that no listing of the folder's files takes for one of them."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def _make_new(path: epath.Path) -> None:
    """Makes an empty file of this machine; a link that is there, wherever it leads, is not followed."""
    if "://" not in os.fspath(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666))


def _to_disk(path: epath.Path) -> None:
    """Waits until a file or folder of this machine has reached the disk; object stores do so by themselves."""
    if "://" in os.fspath(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
