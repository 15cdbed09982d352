"""Where diffusers' ``UNet2DModel`` keeps the parameters of our U-Net, and in which layout."""

import re

import numpy as np
from flax import traverse_util

_LAYERS = {
    "norm_0": "norm1",
    "conv_0": "conv1",
    "time_dense": "time_emb_proj",
    "norm_1": "norm2",
    "conv_1": "conv2",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_out": "to_out.0",
}
_TOP = {
    "conv_in": "conv_in",
    "time_dense_0": "time_embedding.linear_1",
    "time_dense_1": "time_embedding.linear_2",
    "label_embed": "class_embedding",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    "mid_block_0": "mid_block.resnets.0",
    "mid_block_1": "mid_block.resnets.1",
    "mid_attention": "mid_block.attentions.0",
}
_PARTS = {
    "block_": "resnets.",
    "attention_": "attentions.",
    "downsample": "downsamplers.0.conv",
    "upsample": "upsamplers.0.conv",
}


def diffusers_module(name: str, num_levels: int) -> str:
    """Their name of our module, e.g. ``up_blocks.0.resnets.1`` for ``up_3_block_1`` of four levels."""
    if name in _TOP:
        return _TOP[name]
    side, level, part, index = re.fullmatch(
        r"(down|up)_(\d+)_(block_|attention_|downsample|upsample)(\d*)", name
    ).groups()
    # They number the blocks of the way up in the order in which they run.
    position = int(level) if side == "down" else num_levels - 1 - int(level)
    return f"{side}_blocks.{position}.{_PARTS[part]}{index}"


def diffusers_weight(name: str, value: np.ndarray) -> np.ndarray:
    """Our array in PyTorch's layout: convolutions [out, in, h, w], dense layers [out, in]."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if name.endswith("shortcut/kernel"):
        return value.T[:, :, None, None]
    return value.T if name.endswith("kernel") else value


def to_diffusers(params: dict, num_levels: int) -> dict[str, np.ndarray]:
    """Turns our parameters, or their gradients, into a ``UNet2DModel`` state dict of NumPy arrays."""
    state = {}
    for name, value in traverse_util.flatten_dict(params, sep="/").items():
        module, *layer, kind = name.split("/")
        path = [diffusers_module(module, num_levels), *(_LAYERS[part] for part in layer)]
        if layer and module.endswith("sample"):  # a residual block in place of the convolution
            path[0] = path[0].removesuffix(".conv")
        path.append("bias" if kind == "bias" else "weight")
        state[".".join(path)] = diffusers_weight(name, np.asarray(value))
    return state
