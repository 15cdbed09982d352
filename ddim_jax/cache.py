"""The folder for files kept between runs: prepared images, published weights, reference statistics."""

import functools
import logging
import os
import pathlib
import stat

_log = logging.getLogger(__name__)


def cache_dir(*parts: str) -> pathlib.Path:
    """A folder of the cache; not made.

    ``$DDIM_JAX_CACHE`` if set, else ``$XDG_CACHE_HOME/ddim_jax``, else ``~/.cache/ddim_jax``.

    Args:
        *parts: names of the folder and of those above it, e.g. ``"prepared"``.
    """
    # Where no shell has set them, in a container or a notebook, nobody has expanded a ``~``.
    own = os.environ.get("DDIM_JAX_CACHE")
    if own:
        return pathlib.Path(own, *parts).expanduser()
    of_all = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return pathlib.Path(of_all, "ddim_jax", *parts)


def is_trusted(folder: str | os.PathLike[str]) -> bool:
    """Whether what lies in a folder of a cache can be no stranger's work; else warns, once for each folder.

    Compiled programs run as they are, and prepared images decide what is learnt. So the folder must be the user's own,
    or root's, and not writable by all; nor may all be able to put another in its place, which they can where a folder
    above is writable by all without the sticky bit that ``/tmp`` has.

    Args:
        folder: need not exist; then the folders above it decide. Object stores have rights of their own.
    """
    if "://" in os.fspath(folder) or not hasattr(os, "getuid"):
        return True
    return _is_trusted(os.path.realpath(folder))


@functools.cache
def _is_trusted(folder: str) -> bool:
    reason = _what_is_wrong(pathlib.Path(folder))
    if reason:
        _log.warning("the cache %s is not used: %s", folder, reason)
    return not reason


def _what_is_wrong(folder: pathlib.Path) -> str:
    """Who could have written into a folder, and what to do about it; empty if nobody else."""
    for path in (folder, *folder.parents):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{path}: {error.strerror}"
        itself = path == folder
        if itself and found.st_uid not in (os.getuid(), 0):
            return f"{path} belongs to user {found.st_uid}; name another, or make it yours (chown)"
        if found.st_mode & stat.S_IWOTH and (itself or not found.st_mode & stat.S_ISVTX):
            return f"{path} is writable by all; take that right away (chmod o-w), or name another folder"
    return ""
