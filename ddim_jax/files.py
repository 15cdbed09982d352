"""The one way to write a file: it appears whole under its name, or not at all.

A run can be killed at any moment, and several programs may write the same file. So each writes to a name of its own in
the same folder, gets the bytes to the disk, and renames: whoever comes later finds one whole file, and after a crash of
the machine too. On object stores (``gs://``) a rename is a copy, whose result appears whole as well.

What the system has against it (a full disk, a folder that is gone) is one line with the path and what to do.
"""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator

from etils import epath

from ddim_jax.errors import UserError, write_error


@contextlib.contextmanager
def whole_file(path: epath.PathLike, remedy: str = "") -> Iterator[epath.Path]:
    """Yields a path of this program's own to write to; what is there in the end becomes ``path``.

    Nothing remains if the block raises. The folder must exist.

    Args:
        path: the file; one that is there already is replaced.
        remedy: what helps, where it cannot be written, beside what always does.

    Raises:
        UserError: it cannot be written, see :func:`~ddim_jax.errors.write_error`.
    """
    path = epath.Path(path)
    partial = _own_name(path)
    with writing(path, remedy):
        try:
            yield partial
            _to_disk(partial)
            partial.replace(path)
            _to_disk(path.parent)
        finally:
            with contextlib.suppress(OSError):  # as above, or there is nothing to remove
                partial.unlink(missing_ok=True)


def write_whole(path: epath.PathLike, content: str | bytes | memoryview) -> None:
    """Writes a file, whole or not at all; text as UTF-8.

    Args:
        path: the file, in a folder that exists.
        content: all of it.

    Raises:
        UserError: it cannot be written, see :func:`~ddim_jax.errors.write_error`.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else bytes(content))


@contextlib.contextmanager
def whole_folder(path: epath.PathLike, remedy: str = "") -> Iterator[epath.Path]:
    """Yields a new folder of this program's own; what is in it in the end becomes the folder ``path``.

    Nothing remains if the block raises, or if ``path`` is there by then.

    Args:
        path: must not exist.
        remedy: what helps, where it cannot be written, beside what always does.

    Raises:
        UserError: it does, or cannot be written, see :func:`~ddim_jax.errors.write_error`.
    """
    path = epath.Path(path)
    partial = _own_name(path)
    with writing(path, remedy):
        try:
            partial.mkdir(parents=True)
            yield partial
            for folder, _, files in os.walk(partial):
                for name in (*files, ""):
                    _to_disk(epath.Path(folder) / name)
            partial.rename(path)
            _to_disk(path.parent)
        finally:
            with contextlib.suppress(OSError):  # as above, or there is nothing to remove
                partial.rmtree(missing_ok=True)


@contextlib.contextmanager
def writing(path: epath.PathLike, remedy: str = "") -> Iterator[None]:
    """Meanwhile what the system raises is a failure to write ``path``, told in one line.

    Args:
        path: a file, or a folder in which files are written.
        remedy: what helps beside what always does.

    Raises:
        UserError: see :func:`~ddim_jax.errors.write_error`.
    """
    try:
        yield
    except OSError as error:
        # Those without a number are not the system's; and what comes from the network is downloaded.
        if error.errno is None or isinstance(error, ConnectionError | TimeoutError):
            raise
        raise write_error(os.fspath(path), error, remedy) from error


def make_folder(path: epath.PathLike, name: str = "", remedy: str = "") -> None:
    """Makes a folder and those above it, unless they are there.

    Args:
        path: the folder.
        name: what messages call it, else its path.
        remedy: what helps beside what always does.

    Raises:
        UserError: it cannot be made, see :func:`~ddim_jax.errors.write_error`.
    """
    name = name or os.fspath(path)
    try:
        epath.Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        # Missing folders are made: here this is a place where there can be none, such as /proc.
        if error.errno == errno.ENOENT:
            remedy = remedy or "name another place"
            raise UserError(f"{name} cannot be written: {error.strerror}; {remedy}") from error
        raise write_error(name, error, remedy) from error


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
