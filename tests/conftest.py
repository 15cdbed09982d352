"""Runs the tests on eight fake CPU devices, so that every test of sharding is a real one."""

import gc
import os
import pathlib

# Most of the tests' time is compilation. Programs are compiled with less effort, and kept for the next test, process
# and run. Commands that tests start inherit this.
_CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402 - reads the variables above
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Programs stay in memory, each with mappings of its own: a whole run of the tests would use up both."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def forget_large_programs(request):
    """Slow tests compile so much that they cannot wait for the end of their module."""
    yield
    if request.node.get_closest_marker("slow"):
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder that the tests of a file share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDIM_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
