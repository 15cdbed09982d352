"""Small networks with random weights, and files as other projects write them, made without these."""

import json
import re

import ml_dtypes
import numpy as np
from flax import traverse_util
from torch_files import tensor, write

from ddim_jax.config import default_config, from_config_dict
from ddim_jax.weights.array_files import ArrayFile, write_safetensors
from ddim_jax.weights.diffusers_config import scheduler_config, unet_config
from ddim_jax.weights.shapes import variable_shapes
from ddim_jax.weights.unet_names import to_torch

_KINDS = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}


def small_config(**changes):
    """Two levels with all kinds of layers, for images of 8x8."""
    config = default_config()
    small = {
        "data.image_size": 8,
        "model.channels": 16,
        "model.num_groups": 4,
        "model.multipliers": (1, 2),
        "model.num_blocks": 1,
        "model.attention_resolutions": (4,),
        "sample.num": 4,
        "sample.steps": 4,
        "train.steps": 4,
        "train.final_sample_steps": (),
    }
    for key, value in {**small, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
        config.update_from_flattened_dict({key: value})
    return from_config_dict(config)


def random_params(config, seed=0):
    """Parameters under which every layer matters."""
    rng = np.random.default_rng(seed)
    flat = {}
    for name, shape in variable_shapes(config).items():
        if name.startswith("params/"):
            spread = np.prod(shape[:-1]) ** -0.5 if name.endswith("kernel") else 0.1
            value = name.endswith("scale") + spread * rng.standard_normal(shape)
            flat[name.removeprefix("params/")] = value.astype(np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def state_dict(config, naming, seed=0):
    """The same as a PyTorch state dict of NumPy arrays."""
    return to_torch(random_params(config, seed), naming, len(config.model.multipliers))


def as_tensors(state, prefix=""):
    """What ``torch_files.write`` takes for a state dict; ``prefix`` keeps the storages of several apart."""
    return {
        name: tensor(f"{prefix}{name}", _KINDS[array.dtype], np.ascontiguousarray(array))
        for name, array in state.items()
    }


def write_torch(path, state, layout="zip"):
    """A plain state dict, as pesser's checkpoints are."""
    write(path, as_tensors(state), layout)
    return path


def write_ddim_checkpoint(path, config, raw_seed=1, ema_seed=2, layout="zip"):
    """What DDIM's training code saves: [model, optimiser, epoch, step, averages]."""
    raw = {f"module.{name}": value for name, value in state_dict(config, "ddim", raw_seed).items()}
    optimizer = {"state": {}, "param_groups": [{"lr": 2e-4, "params": [0, 1]}]}
    averages = as_tensors(state_dict(config, "ddim", ema_seed), "ema.")
    write(path, [as_tensors(raw), optimizer, 3, 1234, averages], layout)
    return path


def write_diffusers(folder, config, seed=0, unet=None, scheduler=None):
    """A pipeline's folder; ``unet`` and ``scheduler`` change settings."""
    (folder / "unet").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps({**unet_config(config), **(unet or {})}))
    settings = {**scheduler_config(config), **(scheduler or {})}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    arrays = state_dict(config, "diffusers", seed)
    write_safetensors(folder / "unet" / "diffusion_pytorch_model.safetensors", ArrayFile(arrays, {"format": "pt"}))
    return folder


class DdimModule:
    """Names and shapes in the order in which DDIM's code makes its modules, apart from ours."""

    def __init__(self, image_size, ch, ch_mult, num_res_blocks, attn_resolutions, channels=3):
        self.shapes = {}
        temb_ch = 4 * ch
        self.linear("temb.dense.0", ch, temb_ch)
        self.linear("temb.dense.1", temb_ch, temb_ch)
        self.conv("conv_in", channels, ch)
        in_ch_mult = (1, *ch_mult)
        resolution, last = image_size, len(ch_mult) - 1
        for level in range(last + 1):
            block_in, block_out = ch * in_ch_mult[level], ch * ch_mult[level]
            for block in range(num_res_blocks):
                self.block(f"down.{level}.block.{block}", block_in, block_out, temb_ch)
                block_in = block_out
                if resolution in attn_resolutions:
                    self.attention(f"down.{level}.attn.{block}", block_in)
            if level != last:
                self.conv(f"down.{level}.downsample.conv", block_in, block_in)
                resolution //= 2
        self.block("mid.block_1", block_in, block_in, temb_ch)
        self.attention("mid.attn_1", block_in)
        self.block("mid.block_2", block_in, block_in, temb_ch)
        for level in range(last, -1, -1):
            block_out = skip_in = ch * ch_mult[level]
            for block in range(num_res_blocks + 1):
                if block == num_res_blocks:
                    skip_in = ch * in_ch_mult[level]
                self.block(f"up.{level}.block.{block}", block_in + skip_in, block_out, temb_ch)
                block_in = block_out
                if resolution in attn_resolutions:
                    self.attention(f"up.{level}.attn.{block}", block_in)
            if level != 0:
                self.conv(f"up.{level}.upsample.conv", block_in, block_in)
                resolution *= 2
        self.norm("norm_out", block_in)
        self.conv("conv_out", block_in, channels)

    def add(self, name, weight, bias):
        self.shapes[f"{name}.weight"], self.shapes[f"{name}.bias"] = weight, (bias,)

    def linear(self, name, inputs, outputs):
        self.add(name, (outputs, inputs), outputs)

    def conv(self, name, inputs, outputs, side=3):
        self.add(name, (outputs, inputs, side, side), outputs)

    def norm(self, name, width):
        self.add(name, (width,), width)

    def block(self, name, inputs, outputs, temb_ch):
        self.norm(f"{name}.norm1", inputs)
        self.conv(f"{name}.conv1", inputs, outputs)
        self.linear(f"{name}.temb_proj", temb_ch, outputs)
        self.norm(f"{name}.norm2", outputs)
        self.conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            self.conv(f"{name}.nin_shortcut", inputs, outputs, side=1)

    def attention(self, name, width):
        self.norm(f"{name}.norm", width)
        for layer in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{layer}", width, width, side=1)


def converted_name(name, num_levels):
    """The name in diffusers of an array of DDIM's code, by the rules of the script that converts such checkpoints."""
    top = {"temb.dense.0": "time_embedding.linear_1", "temb.dense.1": "time_embedding.linear_2"}
    top |= {"norm_out": "conv_norm_out", "conv_in": "conv_in", "conv_out": "conv_out"}
    module, _, kind = name.rpartition(".")
    if module in top:
        return f"{top[module]}.{kind}"
    if "attn" in name:
        name = re.sub(r"\.(q|k|v)\.", lambda m: {"q": ".query.", "k": ".key.", "v": ".value."}[m[1]], name)
        name = name.replace("proj_out", "proj_attn").replace("norm", "group_norm")
        name = name.replace("mid.attn_1", "mid_block.attentions.0").replace(".attn.", ".attentions.")
    name = name.replace("mid.block_1", "mid_block.resnets.0").replace("mid.block_2", "mid_block.resnets.1")
    name = name.replace(".block.", ".resnets.").replace("nin_shortcut", "conv_shortcut")
    name = name.replace("temb_proj", "time_emb_proj")
    name = name.replace("downsample.conv", "downsamplers.0.conv").replace("upsample.conv", "upsamplers.0.conv")
    name = re.sub(r"^down\.", "down_blocks.", name)
    return re.sub(r"^up\.(\d+)", lambda m: f"up_blocks.{num_levels - 1 - int(m[1])}", name)
