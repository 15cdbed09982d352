"""Names and layouts that other projects give to the parameters of the U-Net.

The published U-Net exists under two sets of names: those of DDIM's PyTorch code, which pesser's conversions of DDPM's
checkpoints follow, and those of diffusers' ``UNet2DModel``. It is one network, so each of our arrays has its name in
both::

    ours                               DDIM's code                     diffusers
    time_dense_0/kernel                temb.dense.0.weight             time_embedding.linear_1.weight
    down_0_block_1/conv_0/kernel       down.0.block.1.conv1.weight     down_blocks.0.resnets.1.conv1.weight
    mid_attention/query/kernel         mid.attn_1.q.weight             mid_block.attentions.0.to_q.weight
    up_3_block_0/norm_0/scale          up.3.block.0.norm1.weight       up_blocks.0.resnets.0.norm1.weight

DDIM's code numbers the way up by level, as we do; diffusers in the order in which it runs, deepest level first.

PyTorch keeps a convolution's kernel as [out, in, height, width] and a dense layer's as [out, in], where we have
[height, width, in, out] and [in, out]. What works on each pixel alone (queries, keys, values, projections, shortcuts)
is a dense layer here; DDIM's code makes it a 1x1 convolution, diffusers only the shortcuts.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import traverse_util

from ddim_jax.config import Config
from ddim_jax.errors import UserError
from ddim_jax.weights.shapes import Shape, array_shapes, check_finite, check_shapes, check_told, variable_shapes

Naming = Literal["ddim", "diffusers"]


class _Names(NamedTuple):
    """Names of one module or layer."""

    ddim: str
    diffusers: str


_MODULES = {
    "conv_in": _Names("conv_in", "conv_in"),
    "time_dense_0": _Names("temb.dense.0", "time_embedding.linear_1"),
    "time_dense_1": _Names("temb.dense.1", "time_embedding.linear_2"),
    # DDIM's code has no classes; whoever adds some has to name the embedding.
    "label_embed": _Names("label_embed", "class_embedding"),
    "mid_block_0": _Names("mid.block_1", "mid_block.resnets.0"),
    "mid_attention": _Names("mid.attn_1", "mid_block.attentions.0"),
    "mid_block_1": _Names("mid.block_2", "mid_block.resnets.1"),
    "norm_out": _Names("norm_out", "conv_norm_out"),
    "conv_out": _Names("conv_out", "conv_out"),
}
_PARTS_OF_LEVELS = {
    "block_": _Names("block.", "resnets."),
    "attention_": _Names("attn.", "attentions."),
    # Convolutions, or residual blocks in their place, which DDIM's code does not have.
    "downsample": _Names("downsample", "downsamplers.0"),
    "upsample": _Names("upsample", "upsamplers.0"),
}
_LAYERS = {
    # Of residual blocks.
    "norm_0": _Names("norm1", "norm1"),
    "conv_0": _Names("conv1", "conv1"),
    "time_dense": _Names("temb_proj", "time_emb_proj"),
    "norm_1": _Names("norm2", "norm2"),
    "conv_1": _Names("conv2", "conv2"),
    "shortcut": _Names("nin_shortcut", "conv_shortcut"),
    # Of attention.
    "norm": _Names("norm", "group_norm"),
    "query": _Names("q", "to_q"),
    "key": _Names("k", "to_k"),
    "value": _Names("v", "to_v"),
    "proj_out": _Names("proj_out", "to_out.0"),
}
_PIXELWISE: dict[Naming, tuple[str, ...]] = {
    "ddim": ("shortcut", "query", "key", "value", "proj_out"),
    "diffusers": ("shortcut",),
}
# What PyTorch's DataParallel, torch.compile and training frameworks put before all names, in any order and number.
_PREFIXES = ("module.", "_orig_mod.", "model.", "unet.")
# What PyTorch's AveragedModel counts beside the parameters that it averages.
_COUNT = "n_averaged"
# What diffusers called the layers of attention until 2023; files of that time are still published.
_OLD_DIFFUSERS_LAYERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def torch_name(name: str, naming: Naming, num_levels: int) -> str:
    """Translates the name of an array to theirs.

    >>> torch_name("up_3_block_1/conv_0/kernel", "diffusers", num_levels=4)
    'up_blocks.0.resnets.1.conv1.weight'

    Args:
        name: path in the tree of our parameters, with slashes.
        naming: project whose name is wanted.
        num_levels: number of levels of the network.
    """
    module, *layer, kind = name.split("/")
    is_convolution = module.endswith("sample") and not layer
    path = [_module(module, naming, num_levels), *(["conv"] if is_convolution else [])]
    path = [*path, *(getattr(_LAYERS[part], naming) for part in layer)]
    return ".".join([*path, "bias" if kind == "bias" else "weight"])


def _module(name: str, naming: Naming, num_levels: int) -> str:
    if name in _MODULES:
        return getattr(_MODULES[name], naming)
    match = re.fullmatch(r"(down|up)_(\d+)_(block_|attention_|downsample|upsample)(\d*)", name)
    if match is None:
        raise ValueError(f"the U-Net has no module {name!r}")
    side, level, part, index = match.groups()
    inner = f"{getattr(_PARTS_OF_LEVELS[part], naming)}{index}"
    if naming == "ddim":
        return f"{side}.{level}.{inner}"
    position = int(level) if side == "down" else num_levels - 1 - int(level)
    return f"{side}_blocks.{position}.{inner}"


def _is_pixelwise(name: str, naming: Naming) -> bool:
    return name.endswith("/kernel") and name.split("/")[-2] in _PIXELWISE[naming]


def _to_torch_layout(name: str, value: np.ndarray, naming: Naming) -> np.ndarray:
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if _is_pixelwise(name, naming):
        return value.T[:, :, None, None]
    return value.T if name.endswith("/kernel") else value


def _from_torch_layout(name: str, value: np.ndarray, naming: Naming) -> np.ndarray:
    if _is_pixelwise(name, naming):
        return value[:, :, 0, 0].T
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T if name.endswith("/kernel") else value


def to_torch(params: Any, naming: Naming, num_levels: int) -> dict[str, np.ndarray]:
    """Turns our parameters, or anything of their structure, into a PyTorch state dict of NumPy arrays."""
    return {
        torch_name(name, naming, num_levels): _to_torch_layout(name, np.asarray(value), naming)
        for name, value in traverse_util.flatten_dict(params, sep="/").items()
    }


def _param_shapes(config: Config) -> dict[str, Shape]:
    shapes = variable_shapes(config)
    return {name.removeprefix("params/"): shape for name, shape in shapes.items() if name.startswith("params/")}


def unet_state_shapes(config: Config, naming: Naming) -> dict[str, Shape]:
    """Shapes of a PyTorch state dict with the parameters of ``config.model``, by its names."""
    nothing = np.float32(0)
    params = {name: np.broadcast_to(nothing, shape) for name, shape in _param_shapes(config).items()}
    state = to_torch(traverse_util.unflatten_dict(params, sep="/"), naming, len(config.model.multipliers))
    return {name: value.shape for name, value in state.items()}


def naming_of(state: Mapping[Any, Any]) -> Naming | None:
    """Tells whose names a state dict has; None when it is no U-Net of either."""
    if "temb.dense.0.weight" in state:
        return "ddim"
    if "time_embedding.linear_1.weight" in state:
        return "diffusers"
    return None


def with_plain_names(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Gives the arrays of a state dict today's names.

    PyTorch's ``DataParallel`` puts ``module.`` before each name, ``torch.compile`` ``_orig_mod.``, and diffusers has
    renamed the layers of attention.
    """
    state = {name: value for name, value in state.items() if name != _COUNT}
    while prefix := next((p for p in _PREFIXES if state and all(str(name).startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    if naming_of(state) != "diffusers":
        return state
    return {_modern(name): value for name, value in state.items()}


def _modern(name: str) -> str:
    match = re.fullmatch(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{match[1]}.{_OLD_DIFFUSERS_LAYERS[match[2]]}.{match[3]}" if match else name


def from_torch(state: Mapping[Any, Any], config: Config, naming: Naming, source: str) -> dict[str, Any]:
    """Turns a PyTorch state dict into our parameters.

    Args:
        state: arrays by plain names, of any float dtype.
        config: ``config.model`` must describe the network that the arrays are of.
        naming: project whose names they have.
        source: name of the file in messages.

    Returns:
        The tree of parameters, float32.

    Raises:
        UserError: arrays are missing, left over, of another shape, or not finite; the message names the first five.
    """
    if naming == "ddim" and config.model.num_classes:
        raise UserError(
            f"{source} has the form of DDIM's code, whose networks know no classes, but "
            f"model.num_classes={config.model.num_classes}; set it to 0"
        )
    if naming == "ddim":
        check_told(config, (), source, "DDIM's code")
    else:
        check_told(config, ("image",), source, "diffusers")
    num_levels = len(config.model.multipliers)
    check_shapes(array_shapes(state), unet_state_shapes(config, naming), source)
    flat = {}
    for name in _param_shapes(config):
        value = np.asarray(state[torch_name(name, naming, num_levels)])
        flat[name] = np.ascontiguousarray(_from_torch_layout(name, value, naming), np.float32)
    check_finite(flat, source)
    return traverse_util.unflatten_dict(flat, sep="/")
