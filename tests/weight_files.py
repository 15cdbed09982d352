"""Small networks with random weights, and files as other projects write them, made without these."""

import json

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
