"""The networks. ``unet.py`` is the one that the published results were made with.

A network is called as ``model.apply({"params": params}, x, time, label, dropout_keys)`` and knows
nothing of schedules, losses or devices.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddim_jax.config import Config
from ddim_jax.models.unet import UNet


def build_model(config: Config) -> nn.Module:
    """Builds the network that ``config.model`` describes.

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
        )
    raise ValueError(f"no network is called {model.name!r}")


def parameter_count(params: object) -> int:
    """The number of values in a tree of arrays (or of their shapes, from ``jax.eval_shape``)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
