"""The machine that a figure was measured on, and how fast it could be at best."""

import contextlib
import importlib.metadata
import os
import platform
from typing import Any, NamedTuple

from ddim_jax import parallel
from ddim_jax.workdir import versions

_PEER_PACKAGES = ("scipy", "torch", "diffusers", "torch-fidelity", "pytorch-fid")


class Peak(NamedTuple):
    """Matrix products of one JAX device, in TFLOP/s, without sparsity.

    Attributes:
        bfloat16: of bfloat16 operands.
        float32: of float32 operands as JAX multiplies them by default: in TF32 on GPUs that have it, in one pass of
            bfloat16 on TPUs.
    """

    bfloat16: float
    float32: float


# By the beginning of JAX's name for a device. NVIDIA's are from its data sheets (of A100, H100, H200, L4, L40S, HGX
# B200; "Tensor Core" rows, halved where they are given with sparsity), those of GeForce from the architectures' white
# papers (FP32 accumulation); Google's from the pages of Cloud TPU's system architecture. A device of TPU v2 and v3 is a
# core, half of a chip.
_PEAKS = {
    "NVIDIA A100": Peak(312, 156),
    "NVIDIA H100 80GB HBM3": Peak(989.4, 494.7),
    "NVIDIA H100 PCIe": Peak(756, 378),
    "NVIDIA H200": Peak(989.4, 494.7),
    "NVIDIA B200": Peak(2250, 1125),
    "NVIDIA L4": Peak(121, 60),
    "NVIDIA L40S": Peak(362, 183),
    "NVIDIA GeForce RTX 3090": Peak(71, 35.6),
    "NVIDIA GeForce RTX 4090": Peak(165.2, 82.6),
    "TPU v2": Peak(22.5, 22.5),
    "TPU v3": Peak(61.5, 61.5),
    "TPU v4": Peak(275, 275),
    "TPU v5 lite": Peak(197, 197),
    "TPU v5": Peak(459, 459),
    "TPU v6 lite": Peak(918, 918),
}


def known_peak(device_kind: str, dtype: str) -> float | None:
    """TFLOP/s of one device for matrix products of ``dtype``; None for devices that are not in the table, and CPUs.

    Args:
        device_kind: JAX's ``device.device_kind``, e.g. ``NVIDIA H200``.
        dtype: ``float32`` or ``bfloat16``.
    """
    # Names may begin alike: "NVIDIA L4" is not "NVIDIA L40S".
    names = [name for name in _PEAKS if device_kind == name or device_kind.startswith((name + " ", name + "-"))]
    return getattr(_PEAKS[max(names, key=len)], dtype) if names else None


def describe_machine() -> dict[str, Any]:
    """Devices, cores, load and versions; starts JAX's devices."""
    return {
        "device": parallel.device_description(),
        "processor": f"{platform.machine()}, {parallel.usable_cores()} of {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **versions(), **_peer_versions()},
    }


def _peer_versions() -> dict[str, str]:
    """The versions of the peers' packages that are installed."""
    found = {}
    for package in _PEER_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
