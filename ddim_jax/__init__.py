"""Denoising diffusion implicit models in JAX.

What there is:

- :func:`load`, :func:`load_weights`: a trained model, as a :class:`Pipeline` that samples, encodes, edits.
- :func:`train`: training on arrays in memory.
- :func:`show`: images as one picture, for a notebook or a file.
- ``ddim_jax.diffusion``: the mathematics, to read and to build on.
- ``ddim_jax.metrics``: how good a set of images is.

All of it is imported on first use: data readers import this package again in their own processes, and
``import ddim_jax`` should cost nothing there.
"""

import importlib as _importlib
import typing as _typing

from ddim_jax.version import __version__

if _typing.TYPE_CHECKING:
    from ddim_jax import diffusion, metrics
    from ddim_jax.from_arrays import train
    from ddim_jax.pipeline import Pipeline, load, load_weights, show

__all__ = ["Pipeline", "__version__", "diffusion", "load", "load_weights", "metrics", "show", "train"]


def __getattr__(name: str) -> _typing.Any:
    if name in ("Pipeline", "load", "load_weights", "show"):
        return getattr(_importlib.import_module("ddim_jax.pipeline"), name)
    if name == "train":
        return _importlib.import_module("ddim_jax.from_arrays").train
    if name in ("diffusion", "metrics"):
        return _importlib.import_module(f"ddim_jax.{name}")
    raise AttributeError(f"module 'ddim_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
