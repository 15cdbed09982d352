"""The networks: ``unet.py``, that of the DDIM paper; ``residual_unet.py``, Keras'; ``song_unet.py``, score SDE's.

A network is called by :func:`call`, with what its images are drawn from, and knows nothing of schedules, losses or
devices. Their parts: ``convolution.py``, ``group_norm.py``, ``dropout.py``, ``padding.py``, ``flash_attention.py``
(which GPU computes attention without keeping its logits), ``initialization.py``. ``inception.py``,
``vision_transformer.py`` and ``classifier.py`` are the networks that images are measured by.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddim_jax.conditions import Condition
from ddim_jax.config import Config
from ddim_jax.models.flash_attention import flash_attention_width, local_compute_capability
from ddim_jax.models.residual_unet import ResidualUNet
from ddim_jax.models.song_unet import SongUNet
from ddim_jax.models.unet import UNet
from ddim_jax.names import lookup

# A network, whatever its kind: what the rest of the program knows of Flax.
Model: TypeAlias = nn.Module

# Averages a tree over the devices that share a training batch.
MeanOverDevices: TypeAlias = Callable[[Any], Any]


def build_model(
    config: Config,
    mean_over_devices: MeanOverDevices = lambda tree: tree,
    *,
    compute_capability: str | None = None,
) -> Model:
    """Builds the network that ``config.model`` describes.

    On NVIDIA GPUs it takes forms that suit them. They have no forward-mode derivatives; see :func:`with_forward_mode`.

    Args:
        config: the run.
        mean_over_devices: averages over the devices that share a training batch, for batch norms.
        compute_capability: of the NVIDIA GPUs that the network runs on, such as ``9.0``, empty for other devices; None
            for what this machine has.

    Raises:
        UserError: ``config.model.name`` has no network.
    """
    build = lookup(NETWORKS, config.model.name, "model.name")
    if compute_capability is None:
        # Devices are looked for only where it matters: who counts parameters may not want them started.
        compute_capability = "" if config.model.dtype == "float32" else local_compute_capability()
    return build(config, mean_over_devices, compute_capability)


def with_forward_mode(model: Model) -> Model:
    """The same network in forms that have forward-mode derivatives."""
    forms = {"flash_width": 0, "few_passes": False}
    return model.clone(**{name: value for name, value in forms.items() if hasattr(model, name)})


# What is given to a network that is drawn from noise alone; to others it means "none".
NO_CONDITION = Condition()


def call(
    model: Model, variables: Any, x: jax.Array, time: jax.Array, condition: Condition = NO_CONDITION, **options: Any
) -> Any:
    """Applies a network to noisy images and what they are drawn from.

    Args:
        model: the network.
        variables: ``params`` and ``batch_stats``.
        x: [n, h, w, c] noisy images.
        time: [n] noise levels, as the network is told.
        condition: of n images. A kind that the network knows and that is None means "none" for all of them.
        **options: what else networks take in training, such as ``dropout_keys``, and Flax's, such as ``mutable``.

    Returns:
        [n, h, w, out_channels] float32; with ``mutable``, as Flax gives it.
    """
    numbers = [condition.vector] if condition.vector is not None else []
    if condition.level is not None:
        numbers.append(condition.level[:, None])
    told = {"vector": jnp.concatenate(numbers, axis=1)} if numbers else {}
    if condition.image is not None:
        told["image"] = condition.image
    return model.apply(variables, x, time, condition.label, **told, **options)


def vector_inputs(config: Config) -> int:
    """Length of the vector that a network is told: the numbers and whether they are told, and the picture's noise."""
    of_vector = config.model.vector_size + 1 if "vector" in config.model.kinds else 0
    return of_vector + (config.data.condition_augmentation > 0)


def image_inputs(config: Config) -> int:
    """Channels of the picture that a network is told."""
    return config.data.picture_channels if "image" in config.model.kinds else 0


def _unet(config: Config, mean_over_devices: MeanOverDevices, compute_capability: str) -> UNet:
    del mean_over_devices  # Group norms need no other example.
    model = config.model
    return UNet(
        out_channels=config.data.channels * (2 if model.learn_variance else 1),
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
        flash_width=flash_attention_width(compute_capability, model.dtype),
        null_label=model.null_label,
        time_freq_shift=model.time_freq_shift,
        time_cos_first=model.time_cos_first,
        downsample_padding=model.downsample_padding,
        norm_eps=model.norm_eps,
        head_channels=model.head_channels,
        num_heads=model.num_heads,
        scale_shift_norm=model.scale_shift_norm,
        resample_blocks=model.resample_blocks,
        time_channels=model.time_channels,
        time_scale=model.time_scale,
        vector_inputs=vector_inputs(config),
        image_inputs=image_inputs(config),
        pad=config.data.pad,
        few_passes=bool(compute_capability) and model.dtype == "bfloat16",
    )


def _residual_unet(config: Config, mean_over_devices: MeanOverDevices, compute_capability: str) -> ResidualUNet:
    del compute_capability  # It has no attention, and is float32.
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
        mean_over_devices=mean_over_devices,
        image_inputs=image_inputs(config),
        pad=config.data.pad,
    )


def _song_unet(config: Config, mean_over_devices: MeanOverDevices, compute_capability: str) -> SongUNet:
    del mean_over_devices  # Group norms need no other example.
    model = config.model
    return SongUNet(
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
        flash_width=flash_attention_width(compute_capability, model.dtype),
        null_label=model.null_label,
        norm_eps=model.norm_eps,
        head_channels=model.head_channels,
        embedding=model.embedding,
        encoder=model.encoder,
        resample_filter=model.resample_filter,
        augmentation_inputs=model.augmentation_inputs,
        vector_inputs=vector_inputs(config),
        image_inputs=image_inputs(config),
        pad=config.data.pad,
        few_passes=bool(compute_capability) and model.dtype == "bfloat16",
    )


# By names.NetworkName.
NETWORKS: Mapping[str, Callable[[Config, MeanOverDevices, str], Model]] = {
    "unet": _unet,
    "residual_unet": _residual_unet,
    "song_unet": _song_unet,
}


def parameter_count(params: object) -> int:
    """The number of values in a tree of arrays (or of their shapes, from ``jax.eval_shape``)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
