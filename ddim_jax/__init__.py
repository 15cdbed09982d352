"""Denoising diffusion implicit models in JAX.

Attributes are imported on first use: data readers import this package again in their own
processes, and ``import ddim_jax`` should cost nothing there.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ddim_jax.version import __version__

if TYPE_CHECKING:
    from ddim_jax.pipeline import Pipeline as Pipeline
    from ddim_jax.pipeline import load as load
    from ddim_jax.pipeline import load_weights as load_weights

__all__ = ["Pipeline", "__version__", "load", "load_weights"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in ("Pipeline", "load", "load_weights"):
        return getattr(importlib.import_module("ddim_jax.pipeline"), name)
    raise AttributeError(f"module 'ddim_jax' has no attribute '{name}'")
