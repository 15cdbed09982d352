"""Reads weights in whatever form they were published: the form is found by what is in the file, not by its name.

- A state dict of DDIM's PyTorch code, in PyTorch's file or in ``.safetensors``: pesser's conversions of DDPM's
  checkpoints, ``ema_cifar10.ckpt`` and kin.
- DDIM's own checkpoint (CelebA's ``ckpt.pth``): a list of the model's state, the optimiser's, epoch, step and, last,
  the moving averages.
- Either of them as training frameworks wrap it: ``{"state_dict": ...}`` and kin, with the averages beside it or not,
  and names with ``module.``, ``_orig_mod.`` and the like before them.
- Score SDE's PyTorch checkpoints of DDPM++ and NCSN++: the same with averages in a list.
- EDM's pickles of whole networks, which carry their settings.
- A state dict of OpenAI's improved- or guided-diffusion: ``cifar10_uncond_50M_500K.pt``, ``64x64_diffusion.pt`` and
  kin, or of one's own training with that code.
- A folder of diffusers.
- Our own exported ``.npz`` and ``.safetensors``, which carry their config.

What is not on this machine yet is fetched first, see ``origins.py``.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from ddim_jax.config import Config, flatten
from ddim_jax.digests import digest_of_arrays
from ddim_jax.errors import UserError
from ddim_jax.files import check_kind
from ddim_jax.weights.agreement import agreed_config, deciding_values
from ddim_jax.weights.array_files import ArrayFile, is_npz, is_safetensors, read_npz, read_safetensors
from ddim_jax.weights.description import KEY, Description
from ddim_jax.weights.diffusers_folder import read_folder
from ddim_jax.weights.edm_file import read_edm_file
from ddim_jax.weights.hub import repository_named
from ddim_jax.weights.openai_names import from_openai, is_openai, stated_by_state
from ddim_jax.weights.openai_networks import OpenAINetwork, recognise_openai
from ddim_jax.weights.origins import HUB, fetched
from ddim_jax.weights.published_networks import published_networks, recognise
from ddim_jax.weights.score_sde import recognise_score_sde, score_sde_variables
from ddim_jax.weights.shapes import array_shapes, check_finite, check_shapes, variable_shapes
from ddim_jax.weights.song_names import is_edm, is_score_sde
from ddim_jax.weights.torch_file import ZIP_START, is_pickle, read_torch_file
from ddim_jax.weights.unet_names import from_torch, naming_of, unet_state_shapes, with_plain_names
from ddim_jax.weights.wrappers import unwrapped
from ddim_jax.writers import say

# What the averaging is worth, as measured by others for the same training run of DDPM's.
COST_OF_RAW_WEIGHTS = "published for CIFAR-10: FID 12.14 with the raw weights, 3.21 with their moving averages"


class Weights(NamedTuple):
    """Weights read from a file, and facts about them.

    Attributes:
        config: config that they agree with.
        variables: ``params`` and ``batch_stats``, float32 NumPy arrays: the moving averages where the file has them.
        raw: variables with the raw parameters, where the file has both; else None.
        averaged: whether ``variables`` are moving averages; None when the file does not say.
        step: number of training steps done; 0 when the file does not say.
        file: path of the file with the arrays.
        origin: where they were fetched from, the facts of :class:`~ddim_jax.weights.origins.Origin`; None for weights
            of this machine.
    """

    config: Config
    variables: dict[str, Any]
    raw: dict[str, Any] | None
    averaged: bool | None
    step: int
    file: pathlib.Path
    origin: Mapping[str, str] | None = None


def read_weights(
    path: str | os.PathLike[str],
    config: Config | None = None,
    ema: bool = True,
    any_classes: bool = False,
    kept: Mapping[str, Any] | None = None,
) -> Weights:
    """Reads weights, says what they are, and checks that they are those of the config.

    Args:
        path: file or folder; ``~`` is understood. Or ``hf:OWNER/NAME``, ``published:NAME``, or an address of the web.
        config: config of the network; None where the file says it, or holds one of the published networks.
        ema: whether to take the moving averages, where the file has both them and the raw parameters.
        any_classes: whether the file may have other classes than the config; its own are in the result's config then.
        kept: facts about weights that were fetched earlier, see :func:`~ddim_jax.weights.origins.fetched`.

    Raises:
        UserError: there is no such file, it is damaged or of no known form, or it holds another network.
    """
    origin = fetched(path, kept)
    path = origin.path if origin else pathlib.Path(os.path.expanduser(path))
    weights = _read(path, config, any_classes)._replace(origin=origin.facts if origin else None)
    if ema or weights.averaged is None:
        _say_what_was_taken(weights, path)
        return weights
    if weights.raw is None:
        if weights.averaged:
            raise UserError(f"{path} holds the moving averages alone, no raw weights: leave weights.ema at true")
        weights = weights._replace(raw=weights.variables)
    say(f"warning: took the raw weights of {path}, as weights.ema=false asks; {COST_OF_RAW_WEIGHTS}")
    return weights._replace(variables=weights.raw, averaged=False)


def _say_what_was_taken(weights: Weights, path: pathlib.Path) -> None:
    step = f", step {weights.step:,}" if weights.step else ""
    if weights.averaged:
        say(f"took the EMA weights of {path}{step}")
    elif weights.averaged is None:
        say(f"{path} does not say whether it holds averaged weights{step}; {COST_OF_RAW_WEIGHTS}")
    else:
        say(f"warning: {path} holds raw weights only{step}; {COST_OF_RAW_WEIGHTS}")


def _read(path: pathlib.Path, config: Config | None, any_classes: bool) -> Weights:
    if path.is_dir():
        return _from_folder(path, config, any_classes)
    check_kind(path)
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        is_perhaps_of_hub = isinstance(error, FileNotFoundError) and not path.suffix and repository_named(str(path))
        hint = f"; if the Hugging Face hub is meant, write {HUB}{path}" if is_perhaps_of_hub else ""
        raise UserError(f"{path} cannot be read: {reason}{hint}") from error
    if is_safetensors(start):
        contents = read_safetensors(path)
        _check_hash(contents, path)
        return _from_arrays(contents, path, config, any_classes)
    if start.startswith(ZIP_START) and is_npz(path):
        return _from_arrays(read_npz(path), path, config, any_classes)
    if is_pickle(start):
        config, variables = read_edm_file(path, config, any_classes)
        return Weights(config, variables, None, True, 0, path)
    return _from_torch_file(path, config, any_classes)


def _from_folder(path: pathlib.Path, config: Config | None, any_classes: bool) -> Weights:
    first, *others = read_folder(path, config, any_classes)
    model = first.config.model
    if model.num_classes and not first.ours and model.null_label:
        say(f'{path}: num_class_embeds={model.num_classes + 1}: the last is taken for "no label", as the config says')
    elif model.num_classes and not first.ours:
        say(
            f"{path}: num_class_embeds={model.num_classes} is taken for as many classes; where the last means "
            '"no label", give a config with model.null_label=true and one class fewer'
        )
    if first.averaged is None and deciding_values(first.config) == deciding_values(published_networks()[0].config):
        say(f"warning: {path} is CIFAR-10's network; google/ddpm-cifar10-32 of the Hugging Face hub is not averaged")
    raw = {"params": others[0].params, "batch_stats": {}} if others else None
    return Weights(
        first.config, {"params": first.params, "batch_stats": {}}, raw, first.averaged, first.step, first.file
    )


def _check_hash(contents: ArrayFile, path: pathlib.Path) -> None:
    """Compares arrays with the hash in their description, all that files of earlier versions have.

    Raises:
        UserError: they are not what was written.
    """
    if KEY not in contents.texts:
        return
    if digest_of_arrays(contents.arrays) != Description.from_json(contents.texts[KEY], str(path)).sha256:
        raise UserError(f"{path} is damaged: its arrays have not the sha256 that it says; copy or export it again")


def _from_arrays(contents: ArrayFile, path: pathlib.Path, config: Config | None, any_classes: bool) -> Weights:
    if KEY not in contents.texts:
        return _from_state(contents.arrays, path, config, any_classes)
    description = Description.from_json(contents.texts[KEY], str(path))
    stated = deciding_values(description.config)
    agreed = agreed_config(config, stated, str(path), description.config, any_classes)
    shapes = {name: array.shape for name, array in contents.arrays.items()}
    check_shapes(shapes, variable_shapes(agreed), str(path))
    flat = {name: np.asarray(array, np.float32) for name, array in contents.arrays.items()}
    check_finite(flat, str(path))
    variables = {"params": {}, "batch_stats": {}, **traverse_util.unflatten_dict(flat, sep="/")}
    return Weights(agreed, variables, None, description.averaged, description.step, path)


def _from_torch_file(path: pathlib.Path, config: Config | None, any_classes: bool) -> Weights:
    tree = read_torch_file(path)
    if isinstance(tree, Mapping):
        return _from_wrapper(tree, path, config, any_classes)
    if not isinstance(tree, (list, tuple)):
        return _from_state(tree, path, config, any_classes)
    # [model, optimiser, epoch, step], and the moving averages if there are any.
    if len(tree) not in (4, 5) or not isinstance(tree[0], Mapping) or type(tree[3]) is not int or tree[3] < 0:
        raise UserError(f"{path} is a list, but not DDIM's [model, optimiser, epoch, step, averages]")
    raw = _from_state(tree[0], path, config, any_classes)._replace(averaged=False, step=tree[3])
    if len(tree) == 4:
        return raw
    averages = _from_state(tree[4], path, raw.config, any_classes)
    return averages._replace(raw=raw.variables, averaged=True, step=tree[3])


def _from_wrapper(tree: Mapping[Any, Any], path: pathlib.Path, config: Config | None, any_classes: bool) -> Weights:
    """Makes weights of a state dict, perhaps inside of what a training framework saved around it."""
    found = unwrapped(tree)
    if found.averages is None:
        return _from_state(found.raw, path, config, any_classes)._replace(step=found.step)
    averaged = _from_state(found.averages, path, config, any_classes)._replace(averaged=True, step=found.step)
    if found.raw is None:
        return averaged
    return averaged._replace(raw=_from_state(found.raw, path, averaged.config, any_classes).variables)


def _from_state(state: Any, path: pathlib.Path, config: Config | None, any_classes: bool) -> Weights:
    """Makes weights of a state dict that says nothing of its network."""
    if not isinstance(state, Mapping):
        raise UserError(f"{path} does not hold arrays by name, but {type(state).__name__}: give a state dict")
    state = with_plain_names(state)
    if is_score_sde(state):
        return _from_score_sde(state, path, config, any_classes)
    if is_edm(state):
        raise UserError(f"{path} has EDM's arrays without the settings that they need: give the .pkl that EDM wrote")
    if is_openai(state):
        return _from_openai(state, path, config, any_classes)
    naming = naming_of(state)
    if naming is None:
        names = ", ".join(str(name)[:60] for name in list(state)[:3])
        raise UserError(
            f"{path} holds no U-Net of DDIM's code, OpenAI's or diffusers: what it holds is called {names} ..."
        )
    if naming == "diffusers":
        raise UserError(
            f"{path} is of diffusers, whose weights mean nothing without config.json: give the folder of both, in "
            "which it is called diffusion_pytorch_model.safetensors or .bin"
        )
    if config is None:
        published = recognise(state)
        if published is None:
            raise UserError(f"{path} is none of the published networks: give the config that it was trained with")
        say(f"{path} is the network of {published.name}")
        agreed = published.config
    else:
        agreed = agreed_config(config, {}, str(path), any_classes=any_classes)
    try:
        params = from_torch(state, agreed, naming, str(path))
    except UserError as error:
        published = recognise(state)
        if published is None or unet_state_shapes(published.config, "ddim") == unet_state_shapes(agreed, "ddim"):
            raise
        raise UserError(f"{error}: it is the network of {published.name}, --config={published.file}") from error
    return Weights(agreed, {"params": params, "batch_stats": {}}, None, None, 0, path)


def _from_score_sde(state: Mapping[Any, Any], path: pathlib.Path, config: Config | None, any_classes: bool) -> Weights:
    """Makes weights of a state dict of score SDE's code, which says nothing of its process."""
    if config is None:
        published = recognise_score_sde(state)
        if published is None:
            raise UserError(
                f"{path} is none of score SDE's networks for CIFAR-10: give the config that it was trained with"
            )
        say(f"{path} is taken for score SDE's {published.name}; other processes have the same form")
        config = published.config
    agreed = agreed_config(config, {}, str(path), any_classes=any_classes)
    return Weights(agreed, score_sde_variables(state, agreed, str(path)), None, None, 0, path)


def _from_openai(state: Mapping[Any, Any], path: pathlib.Path, config: Config | None, any_classes: bool) -> Weights:
    """Makes weights of a state dict of OpenAI's code, whose shapes say most of what its network is."""
    published = recognise_openai(state, str(path))
    if config is None:
        if published is None:
            raise UserError(
                f"{path} is none of OpenAI's published networks: give the config that it was trained with; its arrays "
                "do not say the size of the images, the number of attention heads and the schedule"
            )
        say(f"{path} is the network of {published.files}")
        agreed = published.config
    else:
        rows = array_shapes(state).get("label_emb.weight", (0,))[0]
        null_label = config.model.null_label and config.model.num_classes != rows
        stated = stated_by_state(state, str(path), config.network_sides[0], null_label, config.data.channels)
        agreed = agreed_config(config, stated, str(path), any_classes=any_classes)
        if published is not None:
            _say_what_differs(published, agreed, path)
    order = agreed.weights.qkv_order
    if order == "auto":
        order = published.order if published is not None else "legacy"
    params = from_openai(state, agreed, order, str(path))
    return Weights(agreed, {"params": params, "batch_stats": {}}, None, None, 0, path)


def _say_what_differs(published: OpenAINetwork, config: Config, path: pathlib.Path) -> None:
    """Warns of settings that no array shows, where they are not those of the published network of the same shapes."""
    ours, theirs = flatten(config), deciding_values(published.config)
    keys = ("model.num_heads", "model.head_channels", "model.time_scale", "diffusion.schedule", "diffusion.num_levels")
    flags = [f"--config.{key}={theirs[key]}" for key in keys if ours[key] != theirs[key]]
    if flags:
        say(f"warning: {path} has the shapes of {published.files}; if it is that, pass {' '.join(flags)}")
