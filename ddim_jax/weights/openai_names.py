"""Names and layouts of OpenAI's improved-diffusion and guided-diffusion, whose networks ours can be too.

Their code numbers what runs one after the other, so that a name says nothing without the network's form::

    ours                               theirs
    time_dense_0/kernel                time_embed.0.weight
    conv_in/kernel                     input_blocks.0.0.weight
    down_0_block_1/conv_0/kernel       input_blocks.2.0.in_layers.2.weight
    down_1_attention_0/proj_out/kernel input_blocks.5.1.proj_out.weight         (of 3 blocks a level)
    mid_block_1/norm_1/scale           middle_block.2.out_layers.0.weight
    up_3_upsample/kernel               output_blocks.3.2.conv.weight            (2: after a block and its attention)

Queries, keys and values are one convolution over pixels in a row, ``qkv``, [3 c, c, 1]. Its outputs come in one of two
orders: those of a head together (the older one, ``legacy``), or first all queries (``new``, their
``use_new_attention_order``). No array tells which.

Nor do arrays tell the size of the images and the number of heads; all else :func:`stated_by_state` reads from them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from ddim_jax.config import Config, ModelConfig
from ddim_jax.errors import UserError
from ddim_jax.names import QkvOrder
from ddim_jax.weights.shapes import (
    Shape,
    array_shapes,
    check_finite,
    check_shapes,
    check_told,
    variable_shapes,
)

_TOP = {
    "time_dense_0": "time_embed.0",
    "time_dense_1": "time_embed.2",
    "label_embed": "label_emb",
    "conv_in": "input_blocks.0.0",
    "mid_block_0": "middle_block.0",
    "mid_attention": "middle_block.1",
    "mid_block_1": "middle_block.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
}
_LAYERS = {
    # Of residual blocks.
    "norm_0": "in_layers.0",
    "conv_0": "in_layers.2",
    "time_dense": "emb_layers.1",
    "norm_1": "out_layers.0",
    "conv_1": "out_layers.3",
    "shortcut": "skip_connection",
    # Of attention.
    "norm": "norm",
    "query": "qkv",
    "key": "qkv",
    "value": "qkv",
    "proj_out": "proj_out",
}
# The place of each in qkv.
_PARTS = {"query": 0, "key": 1, "value": 2}
# What their networks do, where ours have a choice.
_FIXED = {
    "model.name": "unet",
    "model.num_groups": 32,
    "model.time_freq_shift": 0,
    "model.time_cos_first": True,
    "model.norm_eps": 1e-5,
}


def is_openai(state: Mapping[Any, Any]) -> bool:
    """Tells whether a state dict has the names of OpenAI's code."""
    return "time_embed.0.weight" in state and "input_blocks.0.0.weight" in state


# --- names --------------------------------------------------------------------------------------


def module_names(model: ModelConfig, attends: list[bool]) -> dict[str, str]:
    """Their name of each of our modules.

    >>> names = module_names(ModelConfig(multipliers=(1, 2), num_blocks=1), [False, True])
    >>> names["down_1_attention_0"], names["up_1_upsample"]
    ('input_blocks.3.1', 'output_blocks.1.2.conv')

    Args:
        model: the network.
        attends: whether the blocks of each level are followed by attention.
    """
    names = dict(_TOP)
    last = len(model.multipliers) - 1
    position = 1
    for level in range(last + 1):
        for i in range(model.num_blocks):
            names[f"down_{level}_block_{i}"] = f"input_blocks.{position}.0"
            names[f"down_{level}_attention_{i}"] = f"input_blocks.{position}.1"
            position += 1
        names[f"down_{level}_downsample"] = f"input_blocks.{position}.0" + ("" if model.resample_blocks else ".op")
        position += level < last
    position = 0
    for level in range(last, -1, -1):
        for i in range(model.num_blocks + 1):
            names[f"up_{level}_block_{i}"] = f"output_blocks.{position}.0"
            names[f"up_{level}_attention_{i}"] = f"output_blocks.{position}.1"
            position += 1
        place = 2 if attends[level] else 1
        names[f"up_{level}_upsample"] = f"output_blocks.{position - 1}.{place}" + (
            "" if model.resample_blocks else ".conv"
        )
    return names


class _Place:
    """Where one of our arrays is in a state dict of theirs."""

    def __init__(self, name: str, modules: Mapping[str, str]) -> None:
        module, *layer, kind = name.split("/")
        self.layer = layer[0] if layer else module
        path = [modules[module], *(_LAYERS[part] for part in layer)]
        self.name = ".".join([*path, "bias" if kind == "bias" else "weight"])
        self.is_kernel = kind == "kernel"

    def shape(self, ours: Shape) -> Shape:
        """The shape of their array, given that of ours."""
        if self.layer in _PARTS:
            return (3 * ours[-1], *((ours[0], 1) if self.is_kernel else ()))
        if not self.is_kernel:
            return ours
        if len(ours) == 4:
            return (ours[3], ours[2], ours[0], ours[1])
        pixelwise = {"shortcut": (1, 1), "proj_out": (1,)}
        return (ours[1], ours[0], *pixelwise.get(self.layer, ()))

    def ours(self, theirs: np.ndarray, heads: int, order: QkvOrder) -> np.ndarray:
        """Our array, given theirs."""
        if self.layer in _PARTS:
            part, width = _PARTS[self.layer], len(theirs) // 3
            if order == "new":
                theirs = theirs[part * width : (part + 1) * width]
            else:
                theirs = theirs.reshape(heads, 3, width // heads, *theirs.shape[1:])[:, part]
                theirs = theirs.reshape(width, *theirs.shape[2:])
        if not self.is_kernel:
            return theirs
        if theirs.ndim == 4 and self.layer != "shortcut":
            return theirs.transpose(2, 3, 1, 0)
        return theirs.reshape(theirs.shape[:2]).T


def _places(config: Config) -> dict[str, tuple[_Place, Shape]]:
    """Where each of our arrays is, and its shape with us, by our name."""
    modules = module_names(config.model, config.attends)
    shapes = {name.removeprefix("params/"): shape for name, shape in variable_shapes(config).items()}
    return {name: (_Place(name, modules), shape) for name, shape in shapes.items()}


def from_openai(state: Mapping[Any, Any], config: Config, order: QkvOrder, source: str) -> dict[str, Any]:
    """Turns a state dict of OpenAI's code into our parameters.

    Args:
        state: arrays by plain names, of any float dtype.
        config: ``config.model`` must describe the network that the arrays are of.
        order: of ``qkv``: ``legacy`` or ``new``.
        source: name of the file in messages.

    Returns:
        The tree of parameters, float32.

    Raises:
        UserError: arrays are missing, left over, of another shape, or not finite; the message names the first five.
    """
    check_told(config, (), source, "OpenAI's code")
    places = _places(config)
    check_shapes(array_shapes(state), {place.name: place.shape(shape) for place, shape in places.values()}, source)
    model = config.model
    flat = {}
    for name, (place, shape) in places.items():
        heads = model.num_heads or (shape[-1] // model.head_channels if model.head_channels else 1)
        flat[name] = np.ascontiguousarray(place.ours(np.asarray(state[place.name]), heads, order), np.float32)
    check_finite(flat, source)
    return traverse_util.unflatten_dict(flat, sep="/")


# --- what shapes tell ---------------------------------------------------------------------------


def stated_by_state(
    state: Mapping[Any, Any], source: str, image_size: int, null_label: bool = False, channels: int = 3
) -> dict[str, Any]:
    """Reads from the shapes of a state dict which network it is of: values by keys of our config.

    Args:
        state: arrays by plain names.
        source: name of the file in messages.
        image_size: height of the network's images, by which attention's resolutions are told.
        null_label: whether the last of its classes means "no label", which no array can say.
        channels: of the images; of 1 and 3 it is known that they are images.

    Raises:
        UserError: it is of another kind of network.
    """
    if not any(str(name).startswith("output_blocks.") for name in state):
        raise UserError(f"{source} is a classifier of guided-diffusion: only its diffusion models are read")
    try:
        return {**_FIXED, **_read_form(array_shapes(state), source, image_size, null_label, channels)}
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{source} has names of OpenAI's code, but is not a whole U-Net of it (at {error}): copy it again"
        ) from error


def _read_form(
    shapes: Mapping[Any, Any], source: str, image_size: int, null_label: bool, expected: int
) -> dict[str, Any]:
    width, channels = shapes["input_blocks.0.0.weight"][:2]
    outputs = shapes["out.2.weight"][0]
    if outputs not in (channels, 2 * channels) or channels not in (1, 3, expected):
        raise UserError(
            f"{source} makes {outputs} channels of {channels}: it is an upsampler, or of another task; only networks "
            "that make images of noise are read"
        )
    positions = 1 + max(_numbers(shapes, r"output_blocks\.(\d+)\..*"))
    # What stands behind a block and its attention doubles the resolution, at the end of each level but the last.
    by_convolution = sorted(_numbers(shapes, r"output_blocks\.(\d+)\.[12]\.conv\.weight"))
    by_block = sorted(_numbers(shapes, r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight"))
    ups = by_convolution or by_block
    of_level = ups[0] + 1 if ups else positions
    num_levels = len(ups) + 1
    if positions != num_levels * of_level:
        raise ValueError("output_blocks")
    widths, attends = [], []
    for level in range(num_levels):
        first = f"input_blocks.{1 + level * of_level}"
        widths.append(shapes[f"{first}.0.out_layers.0.weight"][0])
        attends.append(f"{first}.1.qkv.weight" in shapes)
    if any(each % width for each in widths):
        raise UserError(f"{source} has levels of {widths} channels: ours are multiples of the first layer's, {width}")
    time_channels = shapes["time_embed.0.weight"][1]
    stated = {
        "data.channels": channels,
        "model.channels": width,
        "model.multipliers": tuple(each // width for each in widths),
        "model.num_blocks": of_level - 1,
        "model.attention_resolutions": tuple(image_size // 2**level for level, has in enumerate(attends) if has),
        "model.num_classes": 0,
        "model.scale_shift_norm": shapes["middle_block.0.emb_layers.1.weight"][0] == 2 * widths[-1],
        "model.learn_variance": outputs == 2 * channels,
        "model.time_channels": 0 if time_channels == width else time_channels,
    }
    if ups:
        stated["model.resample_blocks"] = bool(by_block)
    if by_convolution:
        stated["model.downsample_padding"] = 1
    if "label_emb.weight" in shapes:
        stated["model.null_label"] = null_label
        stated["model.num_classes"] = shapes["label_emb.weight"][0] - null_label
    return stated


def _numbers(names: Mapping[Any, Any], pattern: str) -> Iterator[int]:
    """The numbers that a pattern's group finds in names, each once."""
    matches = (re.fullmatch(pattern, str(name)) for name in names)
    return iter({int(match[1]) for match in matches if match})
