"""The networks. ``unet.py`` is the one that the published results were made with; ``residual_unet.py`` that of Keras.

They are made of ``convolution.py``, ``group_norm.py``, ``dropout.py`` and ``initialization.py``; ``flash_attention.py``
knows GPUs. ``inception.py`` and ``classifier.py`` are the networks that images are measured by.

A network is called as ``model.apply({"params": params}, x, time, label, dropout_keys)`` and knows
nothing of schedules, losses or devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddim_jax.config import Config
from ddim_jax.models.flash_attention import flash_width_here
from ddim_jax.models.residual_unet import ResidualUNet
from ddim_jax.models.unet import UNet
from ddim_jax.names import lookup

# A network, whatever its kind: what the rest of the program knows of Flax.
Model: TypeAlias = nn.Module


class Building(NamedTuple):
    """What a network may be built with beside its config.

    Attributes:
        mean_over_devices: averages over the devices that share a training batch, for batch norms.
        flash_attention: compute attention by cuDNN's flash kernel where this machine's devices and the network's width
            allow it.
    """

    mean_over_devices: Callable[[Any], Any]
    flash_attention: bool


def _unet(config: Config, building: Building) -> Model:
    model = config.model
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
        flash_width=flash_width_here(model.dtype) if building.flash_attention else 0,
    )


def _residual_unet(config: Config, building: Building) -> Model:
    model = config.model
    return ResidualUNet(
        out_channels=config.data.channels,
        channels=model.channels,
        multipliers=model.multipliers,
        num_blocks=model.num_blocks,
        structure=model.structure,
        norm=model.norm,
        num_groups=model.num_groups,
        remat=model.remat,
        mean_over_devices=building.mean_over_devices,
    )


NETWORKS: dict[str, Callable[[Config, Building], Model]] = {"unet": _unet, "residual_unet": _residual_unet}


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
        UserError: ``config.model.name`` has no network.
    """
    return lookup(NETWORKS, config.model.name, "network")(config, Building(mean_over_devices, flash_attention))


def parameter_count(params: object) -> int:
    """The number of values in a tree of arrays (or of their shapes, from ``jax.eval_shape``)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
