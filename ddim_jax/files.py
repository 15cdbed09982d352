"""The one way to write a file: it appears whole under its name, or not at all.

A run can be killed at any moment, and several programs may write the same file. So each writes to a name of its own in
the same folder, gets the bytes to the disk, and renames: whoever comes later finds one whole file, and after a crash of
the machine too. On object stores (``gs://``) a rename is a copy, whose result appears whole as well.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator

from etils import epath


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


def _to_disk(path: epath.Path) -> None:
    """Waits until a file or folder of this machine has reached the disk; object stores do so by themselves."""
    if "://" in os.fspath(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
