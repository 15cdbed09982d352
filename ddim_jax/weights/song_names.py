"""Names and layouts that EDM and score SDE give to the parameters of DDPM++ and NCSN++.

EDM names modules by resolution, score SDE's PyTorch code numbers them in the order in which they run::

    ours                             EDM                            score SDE
    conv_in/kernel                   enc.32x32_conv.weight          all_modules.2.weight
    time_dense_0/kernel              map_layer0.weight              all_modules.0.weight
    down_0_block_1/conv_0/kernel     enc.32x32_block1.conv0.weight  all_modules.4.Conv_0.weight
    down_0_downsample/norm_0/scale   enc.16x16_down.norm0.weight    all_modules.7.GroupNorm_0.weight
    mid_attention/query/kernel       dec.8x8_in0.qkv.weight         all_modules.26.NIN_0.W

EDM keeps queries, keys and values as one layer, in which they take turns channel by channel; its attention is part of a
block, while ours and score SDE's follows it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from ddim_jax.config import Config
from ddim_jax.errors import UserError
from ddim_jax.weights.shapes import (
    Shape,
    array_shapes,
    check_finite,
    check_shapes,
    check_told,
    variable_shapes,
)

# Their layers by ours: of residual blocks, and of attention.
_EDM_LAYERS = {
    "norm_0": "norm0", "conv_0": "conv0", "time_dense": "affine", "norm_1": "norm1", "conv_1": "conv1",
    "shortcut": "skip", "norm": "norm2", "query": "qkv", "key": "qkv", "value": "qkv", "proj_out": "proj",
}  # fmt: skip
_SCORE_SDE_LAYERS = {
    "norm_0": "GroupNorm_0", "conv_0": "Conv_0", "time_dense": "Dense_0", "norm_1": "GroupNorm_1", "conv_1": "Conv_1",
    "shortcut": "Conv_2",
    "norm": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2", "proj_out": "NIN_3",
}  # fmt: skip
_PIXELWISE = ("shortcut", "query", "key", "value", "proj_out")
_TURNS = ("query", "key", "value")
_FREQUENCIES = "batch_stats/time_fourier/frequencies"
# Tables that score SDE's networks carry along and do not use.
SCORE_SDE_TABLES = ("sigmas", "betas")


class _Source(NamedTuple):
    """Where one of our arrays is found.

    Attributes:
        name: of the array in their state dict.
        shape: that it has there.
        to_ours: brings it into our layout.
    """

    name: str
    shape: Shape
    to_ours: Callable[[np.ndarray], np.ndarray]


def is_edm(state: Mapping[Any, Any]) -> bool:
    """Whether a state dict has EDM's names."""
    return "map_layer0.weight" in state


def is_score_sde(state: Mapping[Any, Any]) -> bool:
    """Whether a state dict has the names of score SDE's PyTorch code."""
    return any(isinstance(name, str) and name.startswith("all_modules.") for name in state)


def from_edm(state: Mapping[Any, Any], config: Config, source: str) -> dict[str, Any]:
    """Turns EDM's state dict of a ``SongUNet`` into our variables.

    Args:
        state: arrays by the names that they have in the network itself.
        config: ``config.model`` must describe the network that the arrays are of.
        source: name of the file in messages.

    Returns:
        ``params`` and ``batch_stats``, float32.

    Raises:
        UserError: arrays are missing, left over, of another shape, or not finite; the message names the first five.
    """
    # The filters that change the resolution are buffers of each layer that does.
    state = {name: value for name, value in state.items() if not str(name).endswith("resample_filter")}
    check_told(config, (), source, "EDM's code")
    return _converted(state, _edm_sources(config), source)


def from_score_sde(state: Mapping[Any, Any], config: Config, source: str) -> dict[str, Any]:
    """Turns a state dict of score SDE's ``NCSNpp`` into our variables, as :func:`from_edm`."""
    if config.model.num_classes or config.model.augmentation_inputs:
        raise UserError(
            f"{source} has the form of score SDE's code, whose networks know neither classes nor augmentations: set "
            "model.num_classes and model.augmentation_inputs to 0"
        )
    state = {name: value for name, value in state.items() if name not in SCORE_SDE_TABLES}
    check_told(config, (), source, "score SDE's code")
    return _converted(state, _score_sde_sources(config), source)


def _converted(state: Mapping[Any, Any], sources: Mapping[str, _Source], source: str) -> dict[str, Any]:
    check_shapes(array_shapes(state), {each.name: each.shape for each in sources.values()}, source)
    flat = {
        name: np.ascontiguousarray(each.to_ours(np.asarray(state[each.name])), np.float32)
        for name, each in sources.items()
    }
    check_finite(flat, source)
    return {"params": {}, "batch_stats": {}, **traverse_util.unflatten_dict(flat, sep="/")}


def score_sde_shapes(config: Config) -> dict[str, Shape]:
    """Shapes of the arrays that score SDE's code has of a network, but for its tables."""
    return {each.name: each.shape for each in _score_sde_sources(config).values()}


def edm_shapes(config: Config) -> dict[str, Shape]:
    """Shapes of the arrays that EDM has of a network, but for its filters."""
    return {each.name: each.shape for each in _edm_sources(config).values()}


def told_less(variables: Mapping[str, Any], shift: float) -> dict[str, Any]:
    """Variables of the network that computes at time t what the given one computes at t - ``shift``.

    Sines and cosines of a time moved are the old ones turned, pair by pair; so the first layer that sees them is
    turned, and what else is added to them is turned back.

    Args:
        variables: of a network with random frequencies.
        shift: what is taken from the time.
    """
    params = dict(variables["params"])
    angle = 2 * np.pi * np.asarray(variables["batch_stats"]["time_fourier"]["frequencies"], np.float64) * shift
    cos, sin = np.cos(angle), np.sin(angle)
    # Columns of what is told; sin(a - b) = sin a cos b - cos a sin b, cos(a - b) = cos a cos b + sin a sin b.
    turn = np.block([[np.diag(cos), np.diag(sin)], [-np.diag(sin), np.diag(cos)]])
    first = params["time_dense_0"]
    params["time_dense_0"] = {**first, "kernel": _float32(turn @ np.asarray(first["kernel"], np.float64))}
    for name in ("label_dense", "augmentation_dense"):
        if name in params:
            back = {key: _float32(np.asarray(value, np.float64) @ turn.T) for key, value in params[name].items()}
            params[name] = back
    return {**variables, "params": params}


def negated(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of the network with the other sign."""
    params = dict(variables["params"])
    params["conv_out"] = {name: -np.asarray(value) for name, value in params["conv_out"].items()}
    return {**variables, "params": params}


def _float32(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value, np.float32)


# --- one of their names for each of ours --------------------------------------------------------------


def _edm_sources(config: Config) -> dict[str, _Source]:
    model, modules = config.model, _edm_modules(config)

    def source(name: str, shape: Shape) -> _Source:
        if name == _FREQUENCIES:
            return _Source("map_noise.freqs", shape, _unchanged)
        module, *layer, kind = name.removeprefix("params/").split("/")
        path = [modules[module], *(_EDM_LAYERS[part] for part in layer)]
        theirs = ".".join([*path, "bias" if kind == "bias" else "weight"])
        if layer and layer[0] in _TURNS:
            turn, heads = _TURNS.index(layer[0]), shape[-1] // model.head_channels if model.head_channels else 1

            def of_turn(value: np.ndarray) -> np.ndarray:
                mine = value.reshape(heads, -1, 3, *value.shape[1:])[:, :, turn]
                return mine.reshape(-1) if kind == "bias" else mine.reshape(mine.shape[0] * mine.shape[1], -1).T

            c = shape[-1]
            return _Source(theirs, (3 * c,) if kind == "bias" else (3 * c, c, 1, 1), of_turn)
        return _of_torch(theirs, kind, layer[-1:] or [module], shape)

    return {name: source(name, shape) for name, shape in variable_shapes(config).items()}


def _score_sde_sources(config: Config) -> dict[str, _Source]:
    first = ["time_fourier"] if config.model.embedding == "fourier" else []
    order = [*first, "time_dense_0", "time_dense_1", *_in_order(config)]
    modules = {name: f"all_modules.{i}" for i, name in enumerate(order)}

    def source(name: str, shape: Shape) -> _Source:
        if name == _FREQUENCIES:
            return _Source(f"{modules['time_fourier']}.W", shape, _unchanged)
        module, *layer, kind = name.removeprefix("params/").split("/")
        pyramid = ["Conv2d_0"] if module.endswith("_pyramid") else []
        path = [modules[module], *pyramid, *(_SCORE_SDE_LAYERS[part] for part in layer)]
        if layer and layer[0] in (*_TURNS, "proj_out"):
            return _Source(".".join([*path, "b" if kind == "bias" else "W"]), shape, _unchanged)
        theirs = ".".join([*path, "bias" if kind == "bias" else "weight"])
        return _of_torch(theirs, kind, layer[-1:] or [module], shape)

    return {name: source(name, shape) for name, shape in variable_shapes(config).items()}


def _of_torch(theirs: str, kind: str, layer: list[str], shape: Shape) -> _Source:
    if kind != "kernel":
        return _Source(theirs, shape, _unchanged)
    if layer[0] in _PIXELWISE:
        return _Source(theirs, (shape[1], shape[0], 1, 1), lambda value: value[:, :, 0, 0].T)
    if len(shape) == 4:
        return _Source(theirs, (shape[3], shape[2], *shape[:2]), lambda value: value.transpose(2, 3, 1, 0))
    return _Source(theirs, (shape[1], shape[0]), lambda value: value.T)


def _unchanged(value: np.ndarray) -> np.ndarray:
    return value


def _edm_modules(config: Config) -> dict[str, str]:
    """EDM's names of our modules."""
    num_blocks = config.model.num_blocks
    # EDM names a module by the resolution, of images that are square: of others by the height.
    sizes = [f"{height}x{height}" for height in config.resolutions]
    modules = {
        "time_dense_0": "map_layer0",
        "time_dense_1": "map_layer1",
        "label_dense": "map_label",
        "augmentation_dense": "map_augment",
        "conv_in": f"enc.{sizes[0]}_conv",
        "mid_block_0": f"dec.{sizes[-1]}_in0",
        "mid_attention": f"dec.{sizes[-1]}_in0",
        "mid_block_1": f"dec.{sizes[-1]}_in1",
        "norm_out": f"dec.{sizes[0]}_aux_norm",
        "conv_out": f"dec.{sizes[0]}_aux_conv",
    }
    for level, size in enumerate(sizes):
        for i in range(num_blocks):
            modules[f"down_{level}_block_{i}"] = modules[f"down_{level}_attention_{i}"] = f"enc.{size}_block{i}"
        for i in range(num_blocks + 1):
            modules[f"up_{level}_block_{i}"] = f"dec.{size}_block{i}"
        modules[f"up_{level}_attention"] = f"dec.{size}_block{num_blocks}"
        if level > 0:
            modules[f"down_{level - 1}_downsample"] = f"enc.{size}_down"
            modules[f"down_{level - 1}_pyramid"] = f"enc.{size}_aux_residual"
            modules[f"up_{level}_upsample"] = f"dec.{sizes[level - 1]}_up"
    return modules


def _in_order(config: Config) -> list[str]:
    """Our modules from ``conv_in`` on, in the order in which they run."""
    model = config.model
    levels = range(len(model.multipliers))
    attends = config.attends
    order = ["conv_in"]
    for level in levels:
        for i in range(model.num_blocks):
            order += [f"down_{level}_block_{i}", *([f"down_{level}_attention_{i}"] if attends[level] else [])]
        if level < levels[-1]:
            order += [f"down_{level}_downsample"]
            order += [f"down_{level}_pyramid"] if model.encoder == "residual" else []
    order += ["mid_block_0", "mid_attention", "mid_block_1"]
    for level in reversed(levels):
        order += [f"up_{level}_block_{i}" for i in range(model.num_blocks + 1)]
        order += [f"up_{level}_attention"] if attends[level] else []
        order += [f"up_{level}_upsample"] if level > 0 else []
    return [*order, "norm_out", "conv_out"]
