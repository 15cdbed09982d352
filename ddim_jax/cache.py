"""The folder for files kept between runs: prepared images, published weights, reference statistics."""

import os
import pathlib


def cache_dir(*parts: str) -> pathlib.Path:
    """A folder of the cache; not made.

    ``$DDIM_JAX_CACHE`` if set, else ``$XDG_CACHE_HOME/ddim_jax``, else ``~/.cache/ddim_jax``.

    Args:
        *parts: names of the folder and of those above it, e.g. ``"prepared"``.
    """
    own = os.environ.get("DDIM_JAX_CACHE")
    if own:
        return pathlib.Path(own, *parts)
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "ddim_jax", *parts)
