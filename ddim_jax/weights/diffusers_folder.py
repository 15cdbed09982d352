"""Folders of diffusers: a ``UNet2DModel``, a pipeline around one, or a checkpoint of its training script.

::

    FOLDER/model_index.json                                 a pipeline: which classes its parts have
    FOLDER/scheduler/scheduler_config.json                  the noise schedule
    FOLDER/unet/config.json                                 the network
    FOLDER/unet/diffusion_pytorch_model.safetensors (.bin)  its parameters; or parts of them, and an index
    FOLDER/unet_ema/                                        the same of the moving averages, in training checkpoints

A folder with ``config.json`` in it is the network alone. A variant of the parameters has its name in that of the file:
``diffusion_pytorch_model.fp16.safetensors``. It is read where there is no other.
"""

import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from flax import traverse_util

from ddim_jax.config import Config
from ddim_jax.errors import UserError
from ddim_jax.files import whole_folder
from ddim_jax.records import read_object
from ddim_jax.weights import diffusers_config
from ddim_jax.weights.agreement import agreed_config
from ddim_jax.weights.array_files import ArrayFile, read_safetensors, write_safetensors
from ddim_jax.weights.description import KEY, Description
from ddim_jax.weights.torch_file import read_torch_file
from ddim_jax.weights.unet_names import from_torch, to_torch, with_plain_names
from ddim_jax.weights.wrappers import unwrapped
from ddim_jax.writers import say

# The noise schedule, where it may be.
SCHEDULERS = ("scheduler/scheduler_config.json", "scheduler_config.json")

# Where a pipeline that we write has its parameters.
PIPELINE_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


class Network(NamedTuple):
    """Network read from a folder of diffusers.

    Attributes:
        params: tree of parameters.
        config: config that it agrees with.
        averaged: whether they are moving averages; None when the folder does not say.
        step: number of training steps done; 0 when the folder does not say.
        file: path of the file with the parameters.
        ours: whether we wrote it.
    """

    params: dict[str, Any]
    config: Config
    averaged: bool | None
    step: int
    file: pathlib.Path
    ours: bool


def read_folder(folder: pathlib.Path, config: Config | None, any_classes: bool = False) -> list[Network]:
    """Reads the network of a folder, or both of them: the moving averages, then the raw parameters.

    Args:
        folder: folder of any of the kinds above.
        config: config that the folder must agree with; None for what the folder says.
        any_classes: whether it may have other classes.

    Raises:
        UserError: there is no network in it, one that is not ours, one that the config contradicts, or damaged files.
    """
    if (folder / "config.json").exists():
        if (folder / "checkpoints").exists():
            raise UserError(f"{folder} is a workdir of ddim_jax already: use it as --workdir, without importing it")
        parts = [folder]
    else:
        parts = [part for part in (folder / "unet_ema", folder / "unet") if part.is_dir()]
    if not parts:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        raise UserError(
            f"{folder} holds no weights: a folder of diffusers has config.json or unet/ in it, this one {there}"
        )
    _check_index(folder / "model_index.json")
    schedule = _stated_by_scheduler(folder)
    return [_read_network(part, schedule, config, part.name == "unet_ema", any_classes) for part in parts]


def check_texts(folder: pathlib.Path) -> None:
    """Checks that the texts of a folder are of a network of ours, while its parameters are not there yet.

    Raises:
        UserError: they are of another, or damaged.
    """
    _check_index(folder / "model_index.json")
    _stated_by_scheduler(folder)
    for path in (folder / "config.json", folder / "unet" / "config.json", folder / "unet_ema" / "config.json"):
        if path.exists():
            _stated_by_unet(path, _read_json(path), Config(), None)


def _check_index(path: pathlib.Path) -> None:
    if not path.exists():
        return
    parts = {key for key in _read_json(path) if not key.startswith("_")}
    others = parts - {"unet", "scheduler"}
    if others:
        raise UserError(f"{path} is of a pipeline with {', '.join(sorted(others))}: only unet and scheduler are ours")


def _stated_by_scheduler(folder: pathlib.Path) -> dict[str, Any]:
    for path in (folder / name for name in SCHEDULERS):
        if path.exists():
            return diffusers_config.stated_by_scheduler(_read_json(path), str(path))
    return {}


def _read_network(
    part: pathlib.Path, schedule: Mapping[str, Any], config: Config | None, in_ema_folder: bool, any_classes: bool
) -> Network:
    path = part / "config.json"
    if not path.exists():
        raise UserError(f"{part} has no config.json, without which nobody knows what its weights are: copy that too")
    values = _read_json(path)
    file = _weight_file(part)
    contents = _read_index(file) if file.suffix == ".json" else _READERS[file.suffix](file)
    description = Description.from_json(contents.texts[KEY], str(file)) if KEY in contents.texts else None
    if config is None and values.get("sample_size") is None:
        raise UserError(f"{path} does not say the size of its images (sample_size): give a config")
    stated = _stated_by_unet(path, values, config or Config(), config or (description.config if description else None))
    base = description.config if description else None
    agreed = agreed_config(config, {**stated, **schedule}, str(part), base, any_classes)
    params = from_torch(with_plain_names(contents.arrays), agreed, "diffusers", str(file))
    if description is not None:
        return Network(params, agreed, description.averaged, description.step, file, ours=True)
    averaged = True if in_ema_folder or diffusers_config.is_average(values) else None
    if averaged is None and ".non_ema." in file.name:
        averaged = False
    step = values.get("optimization_step", 0)
    return Network(params, agreed, averaged, step if type(step) is int and step >= 0 else 0, file, ours=False)


def _stated_by_unet(
    path: pathlib.Path, values: Mapping[str, Any], config: Config, known: Config | None
) -> dict[str, Any]:
    """Translates a ``config.json``; ``config`` says the size of images, ``known`` what the last class means."""
    try:
        return diffusers_config.stated_by_unet(
            values,
            str(path),
            config.data.image_size,
            _has_null_label(values, known),
            known.data.picture_channels if known is not None else 0,
        )
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} has settings of a kind that diffusers never writes: {error}") from error


def _has_null_label(values: Mapping[str, Any], config: Config | None) -> bool:
    """Tells whether the last class means "no label": as the config says or counts; in diffusers itself none does."""
    if config is None:
        return False
    rows = values.get("num_class_embeds")
    return config.model.null_label and config.model.num_classes != rows


def _read_torch_arrays(file: pathlib.Path) -> ArrayFile:
    state = read_torch_file(file)
    if not isinstance(state, Mapping):
        raise UserError(f"{file} does not hold arrays by name, as diffusers writes them")
    found = unwrapped(state)
    if found.raw is None or found.averages is not None:
        raise UserError(f"{file} holds moving averages beside or instead of the weights: save the ones to read alone")
    return ArrayFile(dict(found.raw), {})


# By the endings of the files that diffusers saves parameters in, and the order in which they are looked for.
_READERS: dict[str, Callable[[pathlib.Path], ArrayFile]] = {
    ".safetensors": read_safetensors,
    ".bin": _read_torch_arrays,
}
_STEM = "diffusion_pytorch_model"
_PLAIN_NAMES = [name for ending in _READERS for name in (f"{_STEM}{ending}", f"{_STEM}{ending}.index.json")]
_VARIANTS = [
    pattern
    for ending in _READERS
    for pattern in (rf"{_STEM}\.(\w+)\{ending}", rf"{_STEM}\{ending}\.index\.(\w+)\.json")
]


def _weight_file(part: pathlib.Path) -> pathlib.Path:
    """Chooses the file with the parameters, or the index of several such files."""
    path = part / weight_file_among([path.name for path in part.iterdir() if path.exists()], "", str(part))
    for pattern in _VARIANTS:
        if match := re.fullmatch(pattern, path.name):
            say(f"took the variant {match[1]} of the weights, {path}")
    return path


def weight_file_among(names: Iterable[str], part: str, where: str = "") -> str:
    """Chooses the file with the parameters, or the index of several such files, by their names.

    Args:
        names: names of files, with the folders that they are in before them.
        part: folder of the network, which ends with a slash; empty for the one that all are in.
        where: what messages call it.

    Raises:
        UserError: there is none, or there are several, none of which is meant more than the others.
    """
    there = sorted(name.removeprefix(part) for name in names if name.startswith(part))
    for name in _PLAIN_NAMES:
        if name in there:
            return f"{part}{name}"
    variants: dict[str, str] = {}
    for pattern in _VARIANTS:
        for name in there:
            if match := re.fullmatch(pattern, name):
                variants.setdefault(match[1], name)
    where = where or part.rstrip("/") or "the folder"
    if len(variants) > 1:
        raise UserError(
            f"{where} has several variants of its weights, {', '.join(sorted(variants))}: move all but one away"
        )
    if not variants:
        raise UserError(f"{where} has a config.json but no {_STEM}.safetensors and no {_STEM}.bin: download that too")
    (name,) = variants.values()
    return f"{part}{name}"


def _read_index(path: pathlib.Path) -> ArrayFile:
    """Reads all the files that an index names; each of its arrays must be in the file that it says."""
    arrays: dict[str, np.ndarray] = {}
    where = _weight_map(path)
    for name in named_in_index(path):
        file = path.parent / name
        if not file.exists():
            raise UserError(f"{path} names {name}, which is not there: download that too")
        part = _READERS[file.suffix](file).arrays
        missing = [array for array, holder in where.items() if holder == name and array not in part]
        if missing:
            raise UserError(f"{file} does not hold {missing[0]}, as {path.name} says: download both again")
        arrays |= part
    return ArrayFile(arrays, {})


def named_in_index(path: pathlib.Path) -> list[str]:
    """Lists the files beside an index that hold the parameters.

    Raises:
        UserError: it is no index, or names something else.
    """
    names = sorted(set(_weight_map(path).values()))
    for name in names:
        if pathlib.PurePath(name).name != name or pathlib.PurePath(name).suffix not in _READERS:
            raise UserError(f"{path} names the file {name!r}, which is none of {', '.join(_READERS)} beside it")
    return names


def _weight_map(path: pathlib.Path) -> dict[str, str]:
    where = _read_json(path).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{path} has no weight_map that says which array is in which file")
    return where


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    return read_object(path, "download or copy it again")


def write_folder(folder: epath.PathLike, arrays: Mapping[str, np.ndarray], description: Description) -> None:
    """Writes a pipeline that ``diffusers.DDIMPipeline.from_pretrained`` loads; it appears whole or not at all.

    Args:
        folder: path of the folder, which must not exist.
        arrays: variables by their paths, as they are to be stored, e.g. ``params/conv_in/kernel``.
        description: description of the arrays, kept beside them; its config says which pipeline it is.

    Raises:
        UserError: diffusers cannot express the network or its schedule.
    """
    config = description.config
    texts = {
        "unet/config.json": diffusers_config.unet_config(config),
        "scheduler/scheduler_config.json": diffusers_config.scheduler_config(config),
        "model_index.json": diffusers_config.pipeline_index(),
    }
    params = traverse_util.unflatten_dict(dict(arrays), sep="/")["params"]
    state = to_torch(params, "diffusers", len(config.model.multipliers))
    with whole_folder(folder) as partial:
        for name, values in texts.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(json.dumps(values, indent=2) + "\n")
        write_safetensors(partial / PIPELINE_WEIGHTS, ArrayFile(state, {"format": "pt", KEY: description.to_json()}))
