"""Where cuDNN's flash kernel computes attention: on which GPUs, for which heads.

The kernel keeps no logits in memory. It has no forward-mode derivatives.
"""

import jax
import jax.numpy as jnp

# With fewer pixels the logits are small. The published networks have 256, where the compiler's text promises 5 % of
# a training step; whether the kernel keeps that promise, and takes their heads, was not tried on a GPU.
_FEWEST_PIXELS = 1024


def local_compute_capability() -> str:
    """The compute capability of this machine's NVIDIA GPUs, such as ``9.0``; empty where it has none."""
    device = jax.local_devices()[0]
    cuda = device.platform == "gpu" and "cuda" in device.client.platform_version
    return device.compute_capability if cuda else ""


def flash_attention_width(compute_capability: str, dtype: jax.typing.DTypeLike) -> int:
    """The widest attention head, in channels, whose flash attention cuDNN computes, gradient included.

    The published networks have one head of all channels, 256 or 512, which few GPUs take.

    Args:
        compute_capability: that of the NVIDIA GPU, such as ``9.0``; empty where there is none.
        dtype: dtype of the activations; cuDNN has kernels for 16 bits alone.

    Returns:
        0 where there is no kernel; 128 from Ampere (8.0) on; 256 on Hopper (9.0), whose successors have not taken the
        gradient of wider heads from it.
    """
    if not compute_capability or jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return 0
    generation = tuple(int(part) for part in compute_capability.split("."))
    if generation < (8, 0):
        return 0
    return 256 if generation == (9, 0) else 128


def takes_flash_kernel(width: int, channels: int, pixels: int) -> bool:
    """Whether the kernel computes the attention of one head.

    Args:
        width: from :func:`flash_attention_width`.
        channels: width of the head.
        pixels: number of pixels that attend to each other.
    """
    return channels <= width and channels % 8 == 0 and pixels >= _FEWEST_PIXELS
