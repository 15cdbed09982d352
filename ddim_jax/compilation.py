"""Compiled programs, kept between runs: what took a GPU a minute to compile is there the next time."""

import hashlib
import os
import pathlib
import platform

import jax

from ddim_jax.cache import cache_dir, is_trusted

# Shorter compilations are repeated rather than kept.
_LEAST_SECONDS = 0.2


def keep_compiled_programs(setting: str) -> None:
    """Turns JAX's persistent compilation cache on, unless the environment (``JAX_COMPILATION_CACHE_DIR``) has.

    A program is found again by its text, the versions and the kind of device, so that nothing in the folder is ever
    out of date; it may be deleted at any time. A folder that others can write is not used, whoever has named it, for a
    compiled program is run as it is.

    Args:
        setting: ``train.compilation_cache``: a folder, ``auto``, or empty for none.
    """
    of_environment = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if of_environment and not is_trusted(of_environment):
        jax.config.update("jax_enable_compilation_cache", False)
    if of_environment is not None or not setting:
        return
    folder = cache_dir("compiled", _processor()) if setting == "auto" else pathlib.Path(setting)
    if not is_trusted(folder):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


def _processor() -> str:
    """The kind of processor: a program for one CPU may use instructions that another lacks, on a shared home."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0] if lines else "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
