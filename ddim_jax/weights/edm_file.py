"""Networks that EDM saved (Karras et al. 2022): whole objects with their settings, in Python's pickle.

Each object is kept as its class's name and source text, and its attributes. The text is never looked at: an object is
known by the name of its class, a network by the settings and arrays among the attributes. The outer object says what
the network is told and what its output F means. With x kept variance-preserving (``diffusion/schedule.py``) that is

===============  =========  ==================================  ===================================
class            schedule   F                                   told
===============  =========  ==================================  ===================================
``EDMPrecond``   ``edm``    -v, images having variance 1        ln(sigma) / 4
``VPPrecond``    ``vp``     eps                                 999 t
``VEPrecond``    ``ve``     -eps                                ln(sigma / 2), here ln(sigma)
===============  =========  ==================================  ===================================

Signs, and the half in the last row, go into the weights, so that the network imported is told and returns what the
schedule and the objective say.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ddim_jax.config import Config, SampleConfig
from ddim_jax.errors import UserError
from ddim_jax.weights.agreement import agreed_config
from ddim_jax.weights.song_names import from_edm, negated, told_less
from ddim_jax.weights.torch_file import read_pickle
from ddim_jax.weights.torch_pickle import Foreign

# The function by which Python's pickle would make an object of a class whose text it holds.
_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
# How deep modules lie in modules.
_MAX_DEPTH = 20

# Settings of ``SongUNet`` where the file says nothing.
_DEFAULTS = {
    "label_dim": 0, "augment_dim": 0, "model_channels": 128, "channel_mult": [1, 2, 2, 2], "channel_mult_emb": 4,
    "num_blocks": 4, "attn_resolutions": [16], "dropout": 0.1, "label_dropout": 0, "embedding_type": "positional",
    "channel_mult_noise": 1, "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1],
}  # fmt: skip


class EDMWeights(NamedTuple):
    """What a file holds.

    Attributes:
        config: config that it agrees with.
        variables: ``params`` and ``batch_stats``, float32.
    """

    config: Config
    variables: dict[str, Any]


class _Saved(NamedTuple):
    """An object of a class whose text the file holds."""

    class_name: str
    state: Mapping[str, Any]


class _Meaning(NamedTuple):
    """What the outer object says of the network's input and output."""

    stated: dict[str, Any]
    drawn: dict[str, Any]  # how noise levels are drawn in training, and from which range
    negated: bool
    told_less: float = 0.0


def read_edm_file(path: pathlib.Path, config: Config | None, any_classes: bool) -> EDMWeights:
    """Reads the moving averages of a network that EDM saved.

    Args:
        path: the file.
        config: config that the user gave; None for what the file says.
        any_classes: whether the file may have other classes than the config.

    Raises:
        UserError: it is no such file, is damaged, holds a network of another kind, or contradicts the config.
    """
    tree = read_pickle(path)
    outer = _saved(tree.get("ema")) if isinstance(tree, Mapping) else None
    if outer is None:
        raise UserError(
            f"{path} is not a PyTorch file, nor a network that EDM pickled: give weights, not another object"
        )
    network = _saved(_mapping(outer.state.get("_modules")).get("model"))
    if network is None:
        raise UserError(f"{path} holds an object {outer.class_name} without a network that is known here")
    if network.class_name != "SongUNet":
        raise UserError(
            f"{path} holds a network {network.class_name}; of EDM's, only SongUNet (DDPM++, NCSN++) is read"
        )
    meaning = _meaning(outer, str(path))
    settings = _settings(network, str(path))
    stated = {**_stated(settings, outer, str(path)), **meaning.stated}
    agreed = agreed_config(config, stated, str(path), _base(settings, meaning), any_classes)
    variables = from_edm(dict(_arrays(network.state)), agreed, str(path))
    if meaning.told_less:
        if agreed.model.embedding != "fourier":
            raise UserError(f"{path} is a VEPrecond with a positional embedding, which is not read")
        variables = told_less(variables, meaning.told_less)
    return EDMWeights(agreed, negated(variables) if meaning.negated else variables)


def _saved(value: Any) -> _Saved | None:
    """Finds an object's class and attributes; None where it is none of which the file holds the class's text."""
    match value:
        case Foreign(name=name, arguments=({"type": "class", "class_name": str(kind), "state": dict(state)},)) if (
            name == _PERSISTENT
        ):
            return _Saved(kind, state)
    return None


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _meaning(outer: _Saved, source: str) -> _Meaning:
    def number(name: str) -> float:
        value = outer.state.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise UserError(f"{source}: {outer.class_name}.{name} is {value!r:.50}, no positive number")
        return float(value)

    match outer.class_name:
        case "EDMPrecond":
            sigma_data = number("sigma_data")
            stated = {
                "diffusion.schedule": "edm",
                "diffusion.objective": "v",
                "diffusion.sigma_data": sigma_data,
                "data.std": (sigma_data / 2,),
            }
            drawn = {"time_sampling": "lognormal", "time_mean": -1.2, "time_std": 1.2}
            return _Meaning({**stated, "data.mean": (0.5,)}, drawn, negated=True)
        case "VPPrecond":
            if number("M") != 1000:
                raise UserError(f"{source} was told its noise levels on a scale of {number('M'):g}; only 1000 is read")
            first, last = number("beta_min"), number("beta_min") + number("beta_d")
            stated = {
                "diffusion.schedule": "vp",
                "diffusion.objective": "eps",
                "diffusion.num_levels": 1000,
                "diffusion.beta_start": first / 1000,
                "diffusion.beta_end": last / 1000,
                "data.std": (0.5,),
            }
            return _Meaning({**stated, "data.mean": (0.5,)}, {"time_sampling": "continuous"}, negated=False)
        case "VEPrecond":
            stated = {"diffusion.schedule": "ve", "diffusion.objective": "eps", "data.std": (0.5,)}
            sigmas = {"sigma_min": number("sigma_min"), "sigma_max": number("sigma_max")}
            drawn = {"time_sampling": "continuous", **sigmas}
            return _Meaning({**stated, "data.mean": (0.5,)}, drawn, negated=True, told_less=math.log(2))
    raise UserError(f"{source} holds a network in {outer.class_name}; EDMPrecond, VPPrecond and VEPrecond are read")


def _settings(network: _Saved, source: str) -> dict[str, Any]:
    """The settings that a ``SongUNet`` was made with, and those that it had of itself."""
    given = network.state.get("_init_kwargs")
    if not isinstance(given, Mapping) or network.state.get("_init_args"):
        raise UserError(f"{source} does not say how its SongUNet was made: give a file that EDM's training wrote")
    settings = {**_DEFAULTS, **given}
    noise = 2 if settings["embedding_type"] == "fourier" else 1
    for name, only in (("decoder_type", "standard"), ("channel_mult_emb", 4), ("channel_mult_noise", noise)):
        if settings[name] != only:
            raise UserError(f"{source} holds a SongUNet with {name}={settings[name]!r:.50}; only {only!r} is read")
    return settings


def _stated(settings: Mapping[str, Any], outer: _Saved, source: str) -> dict[str, Any]:
    """The values of our config that settings amount to."""
    try:
        size, multipliers = settings["img_resolution"], settings["channel_mult"]
        sizes = [size >> level for level in range(len(multipliers))]
        channels = settings["in_channels"]
        if channels != settings["out_channels"]:
            raise UserError(
                f"{source}: out_channels={settings['out_channels']!r:.50}; only in_channels={channels} is read"
            )
        return {
            "model.name": "song_unet",
            "model.channels": settings["model_channels"],
            "model.multipliers": tuple(multipliers),
            "model.num_blocks": settings["num_blocks"],
            "model.attention_resolutions": tuple(each for each in settings["attn_resolutions"] if each in sizes),
            "model.num_groups": 32,
            "model.norm_eps": 1e-6,
            "model.num_classes": settings["label_dim"],
            "model.null_label": not settings["label_dim"] or settings["label_dropout"] > 0,
            "model.head_channels": 0,
            "model.embedding": settings["embedding_type"],
            "model.encoder": settings["encoder_type"],
            "model.resample_filter": tuple(settings["resample_filter"]),
            "model.augmentation_inputs": settings["augment_dim"],
            "data.image_size": size,
            "data.channels": channels,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source} has settings of its {outer.class_name} that cannot be used: {error}") from error


def _base(settings: Mapping[str, Any], meaning: _Meaning) -> Config:
    """What the file does not state, as EDM has it: sampled by its sampler without churn, in 18 steps."""
    plain = Config()
    dropout = settings["dropout"] if type(settings["dropout"]) in (int, float) else plain.model.dropout
    return dataclasses.replace(
        plain,
        model=dataclasses.replace(plain.model, dropout=float(dropout)),
        diffusion=dataclasses.replace(plain.diffusion, **meaning.drawn),
        sample=SampleConfig(sampler="edm", spacing="linspace", steps=18),
    )


def _arrays(state: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the parameters and buffers of a module and of all in it, by the names of its state dict."""
    if depth > _MAX_DEPTH:
        return
    for group in ("_parameters", "_buffers"):
        for name, value in _mapping(state.get(group)).items():
            if isinstance(value, np.ndarray):
                yield f"{prefix}{name}", value
    for name, module in _mapping(state.get("_modules")).items():
        saved = _saved(module)
        inner = saved.state if saved else _mapping(module.state if isinstance(module, Foreign) else None)
        yield from _arrays(inner, f"{prefix}{name}.", depth + 1)
