"""The folder for files kept between runs: prepared images, published weights, reference statistics."""

import os
import pathlib


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
