"""The networks. ``unet.py`` is the one that the published results were made with; ``residual_unet.py`` that of Keras.

A network is called as ``model.apply({"params": params}, x, time, label, dropout_keys)`` and knows
nothing of schedules, losses or devices.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddim_jax.config import Config
from ddim_jax.models.residual_unet import ResidualUNet
from ddim_jax.models.unet import UNet, flash_attention_width

# A network, whatever its kind: what the rest of the program knows of Flax.
Model: TypeAlias = nn.Module


def build_model(
    config: Config, mean_over_devices: Callable[[Any], Any] = lambda tree: tree, *, flash_attention: bool = False
) -> Model:
    """Builds the network that ``config.model`` describes.

    Args:
        config: the run.
        mean_over_devices: averages over the devices that share a training batch, for batch norms.
        flash_attention: compute attention by cuDNN's flash kernel where this machine's devices and the network's width
            allow it. Not for who takes forward-mode derivatives (likelihood): it has none.

    Raises:
        ValueError: ``config.model.name`` has no network.
    """
    model = config.model
    if model.name == "unet":
        return UNet(
            out_channels=config.data.channels,
            channels=model.channels,
            multipliers=model.multipliers,
            num_blocks=model.num_blocks,
            attention_resolutions=model.attention_resolutions,
            dropout=model.dropout,
            num_groups=model.num_groups,
            num_classes=model.num_classes,
            initialization=model.init,
            dtype=jnp.dtype(model.dtype),
            remat=model.remat,
            flash_width=_flash_width(model.dtype) if flash_attention else 0,
        )
    if model.name == "residual_unet":
        return ResidualUNet(
            out_channels=config.data.channels,
            channels=model.channels,
            multipliers=model.multipliers,
            num_blocks=model.num_blocks,
            structure=model.structure,
            norm=model.norm,
            num_groups=model.num_groups,
            remat=model.remat,
            mean_over_devices=mean_over_devices,
        )
    raise ValueError(f"no network is called {model.name!r}")


def _flash_width(dtype: str) -> int:
    device = jax.local_devices()[0]
    cuda = device.platform == "gpu" and "cuda" in device.client.platform_version
    return flash_attention_width("cuda", device.compute_capability, dtype) if cuda else 0


def parameter_count(params: object) -> int:
    """The number of values in a tree of arrays (or of their shapes, from ``jax.eval_shape``)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
