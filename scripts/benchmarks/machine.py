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
    """What one JAX device can do at best: matrix products in TFLOP/s, without sparsity, and its memory.

    Attributes:
        bfloat16: of bfloat16 operands.
        float32: of float32 operands as JAX multiplies them by default: in TF32 on GPUs that have it, in one pass of
            bfloat16 on TPUs.
        exact: of float32 operands at the highest precision: without matrix units on GPUs, in six passes on TPUs.
        bandwidth: of its memory, in TB/s.
    """

    bfloat16: float
    float32: float
    exact: float
    bandwidth: float


# By the beginning of JAX's name for a device. NVIDIA's are from its data sheets (of A100, H100, H200, L4, L40S, HGX
# B200; "Tensor Core" rows, halved where they are given with sparsity), those of GeForce from the architectures' white
# papers (FP32 accumulation); Google's from the pages of Cloud TPU's system architecture. A device of TPU v2 and v3 is a
# core, half of a chip.
_PEAKS = {
    "NVIDIA A100-SXM4-40GB": Peak(312, 156, 19.5, 1.555),
    "NVIDIA A100-PCIE-40GB": Peak(312, 156, 19.5, 1.555),
    "NVIDIA A100-SXM4-80GB": Peak(312, 156, 19.5, 2.039),
    "NVIDIA A100 80GB PCIe": Peak(312, 156, 19.5, 1.935),
    "NVIDIA H100 80GB HBM3": Peak(989.4, 494.7, 66.9, 3.35),
    "NVIDIA H100 PCIe": Peak(756, 378, 51.2, 2.0),
    "NVIDIA H200": Peak(989.4, 494.7, 66.9, 4.8),
    "NVIDIA B200": Peak(2250, 1125, 75, 8.0),
    "NVIDIA L4": Peak(121, 60, 30.3, 0.3),
    "NVIDIA L40S": Peak(362, 183, 91.6, 0.864),
    "NVIDIA GeForce RTX 3090": Peak(71, 35.6, 35.6, 0.936),
    "NVIDIA GeForce RTX 4090": Peak(165.2, 82.6, 82.6, 1.008),
    "TPU v2": Peak(22.5, 22.5, 22.5 / 6, 0.35),
    "TPU v3": Peak(61.5, 61.5, 61.5 / 6, 0.45),
    "TPU v4": Peak(275, 275, 275 / 6, 1.2),
    "TPU v5 lite": Peak(197, 197, 197 / 6, 0.819),
    "TPU v5": Peak(459, 459, 459 / 6, 2.765),
    "TPU v6 lite": Peak(918, 918, 918 / 6, 1.64),
}


def known_device(device_kind: str) -> Peak | None:
    """What a device can do at best; None for those that are not in the table, and CPUs.

    Args:
        device_kind: JAX's ``device.device_kind``, e.g. ``NVIDIA H200``.
    """
    # Names may begin alike: "NVIDIA L4" is not "NVIDIA L40S".
    names = [name for name in _PEAKS if device_kind == name or device_kind.startswith((name + " ", name + "-"))]
    return _PEAKS[max(names, key=len)] if names else None


def known_peak(device_kind: str, dtype: str) -> float | None:
    """TFLOP/s of one device for matrix products of ``dtype``; None for devices that are not in the table, and CPUs.

    Args:
        device_kind: JAX's ``device.device_kind``, e.g. ``NVIDIA H200``.
        dtype: ``float32`` or ``bfloat16``.
    """
    device = known_device(device_kind)
    return None if device is None else getattr(device, dtype)


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
