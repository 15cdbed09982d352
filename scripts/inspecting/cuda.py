"""NVIDIA GPUs for XLA's compiler, none of which need be there."""

import contextlib
import importlib
import importlib.util
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
from jax.experimental import topologies

from ddim_jax import parallel
from ddim_jax.errors import UserError

_DEVICES_OF_A_HOST = 8

_CUDNN_VERSION = 91000

# The plugin with the compiler that ``jax[cuda13]`` installs, and the one of ``jax[cuda12]``.
_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")


class Gpu(NamedTuple):
    """What XLA's compiler asks of a GPU beyond what all of these have in common.

    Attributes:
        kind: JAX's name of the device.
        compute_capability: such as ``9.0``.
        cores: streaming multiprocessors.
        units: float32 units of each.
        clock: GHz.
        bandwidth: bytes a second of its memory.
        memory: bytes.
        l2_cache: bytes.
        shared_memory: bytes of each multiprocessor; a block can have all but 1 KiB.
    """

    kind: str
    compute_capability: str
    cores: int
    units: int
    clock: float
    bandwidth: int
    memory: int
    l2_cache: int
    shared_memory: int

    @property
    def description(self) -> str:
        """XLA's ``GpuTargetConfigProto``, as text."""
        major, minor = self.compute_capability.split(".")
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024
              threads_per_warp: 32
              shared_memory_per_block: 49152
              shared_memory_per_core: {self.shared_memory}
              shared_memory_per_block_optin: {self.shared_memory - 1024}
              threads_per_core_limit: 2048
              core_count: {self.cores}
              fpus_per_core: {self.units}
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              memory_bandwidth: {self.bandwidth}
              l2_cache_size: {self.l2_cache}
              clock_rate_ghz: {self.clock}
              device_memory_size: {self.memory}
              cuda_compute_capability {{ major: {major} minor: {minor} }}
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            runtime_version {{ major: 13 minor: 0 }}
            device_description_str: "{self.kind}"
        """


# As the driver describes them.
GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", "8.0", 108, 64, 1.41, 2_039_000_000_000, 85_100_000_000, 40 << 20, 164 << 10),
    "h100": Gpu("NVIDIA H100 80GB HBM3", "9.0", 132, 128, 1.98, 3_352_320_000_000, 84_978_434_048, 50 << 20, 228 << 10),
    "h200": Gpu("NVIDIA H200", "9.0", 132, 128, 1.98, 4_800_000_000_000, 150_100_000_000, 60 << 20, 228 << 10),
}


def is_installed() -> bool:
    """Whether XLA's compiler for NVIDIA GPUs is there."""
    return _plugin() is not None


def _plugin() -> str | None:
    if importlib.util.find_spec("jax_plugins") is None:
        return None
    return next((name for name in _PLUGINS if importlib.util.find_spec(name) is not None), None)


def devices(name: str) -> parallel.Devices:
    """GPUs to compile for.

    Args:
        name: ``h100``, or ``h100x8`` for eight of them. More than eight are on machines of eight each.

    Raises:
        UserError: an unknown name, or no compiler.
    """
    found = re.fullmatch(r"(\w+?)(?:x([1-9]\d{0,4}))?", name)
    gpu = GPUS.get(found[1]) if found else None
    if found is None or gpu is None:
        raise UserError(f"--topology=cuda:{name} is unknown; give one of {', '.join(GPUS)}, or several such as h100x8")
    count = int(found[2] or 1)
    if count > _DEVICES_OF_A_HOST and count % _DEVICES_OF_A_HOST:
        raise UserError(
            f"--topology=cuda:{name}: more than {_DEVICES_OF_A_HOST} devices must be a multiple of {_DEVICES_OF_A_HOST}"
        )
    if not is_installed():
        raise UserError("--topology=cuda:... needs XLA's compiler for NVIDIA GPUs: pip install 'ddim_jax[cuda]'")
    # No GPU is used, nor looked for. JAX knows its plugins once it has devices, and only starts those of its platforms.
    jax.config.update("jax_platforms", "cpu")
    jax.devices()
    client: Any = importlib.import_module("jaxlib.xla_client")  # there is no public way to start a plugin by itself
    if not client.pjrt_plugin_initialized("cuda"):
        client.initialize_pjrt_plugin("cuda")
    hosts, each = max(1, count // _DEVICES_OF_A_HOST), min(count, _DEVICES_OF_A_HOST)
    described = topologies.get_topology_desc(
        topology_name=name, platform="cuda", target_config=gpu.description, topology=f"1x{hosts}x{each}"
    )
    return list(described.devices)


def compute_capability(chosen: parallel.Devices) -> str:
    """That of GPUs, such as ``9.0``; empty for other devices."""
    return chosen[0].compute_capability if chosen[0].platform == "gpu" else ""


@contextlib.contextmanager
def as_if_there(chosen: parallel.Devices) -> Iterator[None]:
    """Lets JAX believe that it has these GPUs where it asks whether cuDNN has a kernel for attention."""
    capability = compute_capability(chosen)
    if not capability:
        yield
        return
    asks: Any = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    answers = {
        "check_cudnn_version": lambda: _CUDNN_VERSION,
        "check_compute_capability": lambda least: float(capability) >= float(least),
        "is_cuda_compute_capability_equal": lambda other: capability == other,
    }
    with mock.patch.multiple(asks, **{name: answer for name, answer in answers.items() if hasattr(asks, name)}):
        yield
