"""The one way to write a file: it appears whole under its name, or not at all; and what kinds of files are read.

A run can be killed at any moment, and several programs may write the same file. So each writes to a name of its own in
the same folder, gets the bytes to the disk, and renames: whoever comes later finds one whole file, and after a crash of
the machine too. The name of its own is one that nobody could guess, and is never a link: where ``path`` is a link to a
file, the link is replaced, and what it led to stays as it is. On object stores (``gs://``) a rename is a copy, whose
result appears whole as well.
"""

import contextlib
import os
import re
import socket
import stat
import uuid
from collections.abc import Iterator

from etils import epath

from ddim_jax.errors import UserError, shown

# Of files that are read into memory in one piece: larger than any image that is decoded, stored without compression.
_MOST_BYTES = 2**31

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def check_kind(path: epath.PathLike) -> None:
    """Refuses what is neither file nor folder: a pipe may make its reader wait for ever, a device may never end.

    Args:
        path: may be missing, which its reader will say.

    Raises:
        UserError: it is a pipe, a device or a socket, or a link to one.
    """
    path = os.fspath(path)
    if "://" in path:
        return
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise UserError(f"{shown(path)[1:-1]} is {name}, not a file: give a file")


def read_file(path: epath.PathLike) -> bytes:
    """Reads a file that the user has named into memory.

    Raises:
        OSError: it cannot be read.
        UserError: it is no file, or of a size that nobody would read in one piece.
    """
    check_kind(path)
    path = epath.Path(path)
    size = path.stat().length
    if size > _MOST_BYTES:
        raise UserError(f"{path} has {size:,} bytes, more than any file of its kind: give another")
    return path.read_bytes()


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
    remove_left_over(path.parent)
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


def remove_folder(path: epath.PathLike) -> None:
    """Removes a folder that others may be about to use: it is there whole, or not at all.

    Raises:
        OSError: it cannot be removed; then it is there.
    """
    path = epath.Path(path)
    aside = _own_name(path)
    path.rename(aside)
    with contextlib.suppress(OSError):
        aside.rmtree()


def remove_left_over(folder: epath.PathLike) -> None:
    """Removes what programs of this machine were writing in a folder when they were killed."""
    if "://" in os.fspath(folder) or not os.path.isdir(folder):
        return
    for entry in os.listdir(folder):
        found = re.fullmatch(rf"\..+\.{re.escape(_host())}-(\d+)-[0-9a-f]{{32}}\.partial", entry)
        if found and not _is_running(int(found[1])):
            path = epath.Path(folder) / entry
            with contextlib.suppress(OSError):
                path.rmtree() if path.is_dir() else path.unlink()


def _own_name(path: epath.Path) -> epath.Path:
    """A name that no other program takes, and that no listing of the folder's files takes for one of them.

    It says whose it is, for :func:`remove_left_over`.
    """
    return path.with_name(f".{path.name[:100]}.{_host()}-{os.getpid()}-{uuid.uuid4().hex}.partial")


def _host() -> str:
    return socket.gethostname()[:64]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


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
