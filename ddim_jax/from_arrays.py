"""``ddim_jax.train``: training from Python, on arrays in memory or on what a config names.

>>> import ddim_jax
>>> pipe = ddim_jax.train(None, images, labels)  # doctest: +SKIP
>>> new = pipe.sample(16)  # doctest: +SKIP
"""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import math
import os
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from ddim_jax import pipeline, process, writers
from ddim_jax.config import Config, default_config, flatten, from_config_dict, recipes, shipped_configs, with_values
from ddim_jax.config.schema import height_and_width
from ddim_jax.data.sources.array import IN_MEMORY, InMemory
from ddim_jax.data.sources.array_files import image_array
from ddim_jax.errors import UserError, shown
from ddim_jax.jobs.train import train as train_job
from ddim_jax.pipeline import Pipeline
from ddim_jax.workdir import config_of_file, config_path, read_config

# For arrays without a config. Levels of the U-Net, each but the last of which halves the image, down to some pixels.
_MOST_LEVELS = 4
_LEAST_SIDE = 8
# Of a larger image attention would take most of the time.
_MOST_ATTENDED = 256

# A batch has about so many pixels, and images between these.
_PIXELS_OF_BATCH = 2**18
_LEAST_BATCH, _LARGEST_BATCH = 8, 64

_DIGITS_OF_NAME = 16

# Grey, two fields, RGB, RGBA: as an image's height they would be odd.
_USUAL_CHANNELS = (1, 2, 3, 4)

# What a keyword means that names no group.
_SHORT = {name: f"train.{name}" for name in ("steps", "epochs", "batch_size")}

# The others of ``train``.
_ARGUMENTS = ("config", "images", "labels", "vectors", "paired", "workdir", "progress")

_NO_PICTURES: dict[str, Any] = {
    "train.sample_every": 0,
    "train.sample_every_epochs": 0.0,
    "train.final_sample_steps": (),
}


def train(
    config: Config | str | os.PathLike[str] | None = None,
    images: Any = None,
    labels: Any = None,
    *,
    vectors: Any = None,
    paired: Any = None,
    workdir: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    **changes: Any,
) -> Pipeline:
    """Trains a model, and returns it ready to draw images.

    Ctrl-C saves the step and returns the model as it is then; called again with the same arrays and workdir it goes on
    from there, exactly.

    Args:
        config: a config, the path of a config file, perhaps with variants, or one of the package's configs by name,
            such as ``digits`` or ``mnist:tiny``; None for one that suits the images. What it says of the images' size,
            channels, values and classes gives way to what they have.
        images: [n, h, w, c] or [n, h, w], uint8, uint16, or other numbers, which become float32; a memory map may be
            larger than the memory. None for the data that the config names.
        labels: [n], whole numbers from 0: the model is then told the class.
        vectors: [n, d], numbers that the model is told of each image.
        paired: [n, h', w', c'], a picture for each image, that the model is given.
        workdir: where the run is kept; None for a folder that goes when the pipeline does.
        progress: show how far it is; left out, it is shown in a terminal or a notebook.
        **changes: keys of the config with ``__`` for the dot, e.g. ``train__learning_rate=1e-3``;
            ``**{"train.learning_rate": 1e-3}`` and ``changes={"train.learning_rate": 1e-3}`` do the same. ``steps``,
            ``epochs`` and ``batch_size`` are those of ``train``.

    Raises:
        UserError: arrays, config or workdir cannot be used, or the workdir holds a run on other arrays.
    """
    given = _keys_of({**changes.pop("changes", {}), **changes})
    base = config if isinstance(config, Config) else None if config is None else _read_config(os.fspath(config))
    # Nobody would see them.
    pictures = _NO_PICTURES if workdir is None else {}
    memory = None
    if images is not None:
        memory = InMemory(*(None if each is None else _array(each) for each in (images, labels, vectors, paired)))  # pyright: ignore[reportArgumentType]
        base = with_values(base or _digits(), {**_values_of(memory, base, given), **pictures, **given})
    elif base is None:
        raise UserError("train() needs images, or a config that names them")
    elif any(each is not None for each in (labels, vectors, paired)):
        raise UserError("labels, vectors and paired pictures need images=")
    else:
        base = with_values(base, {**pictures, **given})
    folder = os.fspath(workdir) if workdir is not None else tempfile.mkdtemp(prefix="ddim_jax-")
    try:
        if memory is not None:
            IN_MEMORY[base.data.name] = memory
            _check_same_arrays(folder, base.data.name)
        pipe = _run(base, folder, writers.is_watched() if progress is None else progress, workdir is not None)
    except BaseException:
        if workdir is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        IN_MEMORY.pop(base.data.name, None)
    if workdir is None:
        weakref.finalize(pipe, shutil.rmtree, folder, ignore_errors=True)
    return pipe


def _digits() -> Config:
    """The config of scikit-learn's digits, a network that a CPU trains in minutes where images are small."""
    tree = default_config()
    recipes.digits(tree)
    return from_config_dict(tree)


def _keys_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the config that keywords mean, with their values.

    Raises:
        UserError: one means none.
    """
    known = flatten(Config())
    given: dict[str, Any] = {}
    for name, value in changes.items():
        key = _SHORT.get(name, name.replace("__", ".", 1))
        if key not in known:
            written = [each.replace(".", "__") for each in known]
            meant = {**{each.rpartition("__")[2]: each for each in written}, **{each: each for each in written}}
            meant |= {each: each for each in (*_ARGUMENTS, *_SHORT)}
            close = dict.fromkeys(meant[each] for each in difflib.get_close_matches(name, meant, n=3))
            hint = f"did you mean {' or '.join(close)}?" if close else "name a key of the config, such as train__steps"
            raise UserError(f"train() has no argument {name!r}; {hint}")
        given[key] = value
    if given.get("train.steps") and given.get("train.epochs"):
        raise UserError("steps and epochs both say how long to train; give one of them")
    # Epochs, of the config too, would count instead.
    return {"train.epochs": 0.0, **given} if given.get("train.steps") else given


def _run(config: Config, folder: str, progress: bool, is_kept: bool) -> Pipeline:
    # Some libraries refuse to work as long as absl's own flags are unparsed, as they are in a notebook.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with contextlib.nullcontext() if progress else writers.silent(), process.interrupts_asked_by_library():
        stopped_at = train_job(config, folder)
    if stopped_at is not None:
        remedy = f"call it again with workdir={folder!r}" if is_kept else "name a workdir to be able to"
        writers.say(f"the model is that of step {stopped_at:,}; to go on, {remedy}")
    return pipeline.load(folder)


def _read_config(named: str) -> Config:
    """The config that a name or path means."""
    if named.endswith(".json"):
        from etils import epath

        return config_of_file(epath.Path(named), "name the config.json of a run")
    name, _, variants = named.partition(":")
    path = pathlib.Path(name).expanduser()
    shipped = shipped_configs()
    if not path.is_file():
        if name not in shipped:
            raise UserError(f"config={shown(named)} is not a file; name a config file, or one of {', '.join(shipped)}")
        path = shipped[name]
    spec = importlib.util.spec_from_file_location(f"ddim_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config={shown(named)} is no Python file; name a config file, or one of {', '.join(shipped)}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        tree = module.get_config(variants or None)
    except UserError:
        raise
    except Exception as error:
        # It is the user's Python.
        raise UserError(f"config file {path}: {type(error).__name__}: {error}") from error
    return from_config_dict(tree)


def _array(values: Any) -> np.ndarray:
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    if array.dtype.kind not in "biuf" or not array.size:
        raise UserError(f"an array of {array.dtype} and shape {tuple(array.shape)} cannot be used; give numbers")
    return array


def _values_of(memory: InMemory, base: Config | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the arrays say of the config: by dotted key."""
    images = image_array(memory.images, "images")
    _check_channels_last(images.shape, given.get("data.channels"))
    num, *size, channels = images.shape
    dtype = str(images.dtype) if images.dtype in (np.uint8, np.uint16) else "float32"
    values: dict[str, Any] = {
        "data.source": "array",
        "data.path": "",
        "data.name": f"array-{_digest(memory)}",
        "data.split": "train",
        "data.channels": channels,
        "data.dtype": dtype,
    }
    if base is None:
        values |= _small_network(tuple(size), given.get("model.multipliers"))
        if dtype != "uint8" and "data.range" not in given:
            # Such values may lie in a small part of their range: measured, they have variance 1.
            values |= {"data.mean": (), "data.std": ()}
    elif base.data.resize == "none" or height_and_width(base.data.image_size) == tuple(size):
        values |= {"data.image_size": tuple(size)} if height_and_width(base.data.image_size) != tuple(size) else {}
        values |= _fitting(base, tuple(size))
    if base is not None and (base.data.dtype, base.data.channels) != (dtype, channels):
        values |= {"data.range": ()}
        if len(base.data.mean) > 1:
            values |= {"data.mean": (0.5,), "data.std": (0.5,)}
    kinds = []
    for name, array in (("labels", memory.labels), ("vectors", memory.vectors), ("paired", memory.paired)):
        if array is not None and len(array) != num:
            raise UserError(f"{name} has {len(array):,} rows for {num:,} images; give one for each")
    values["model.num_classes"] = 0
    if memory.labels is not None:
        if memory.labels.dtype.kind not in "iub":
            raise UserError(f"labels are {memory.labels.dtype}; give whole numbers from 0, or vectors=")
        values["model.num_classes"] = int(memory.labels.max()) + 1
        kinds.append("class")
    if memory.vectors is not None:
        values |= {"data.vector": "vectors", "model.vector_size": int(memory.vectors.reshape(num, -1).shape[1])}
        kinds.append("vector")
    if memory.paired is not None:
        _, *side, count = image_array(memory.paired, "paired").shape
        values |= {"data.condition": "paired", "data.condition_size": tuple(side), "data.condition_channels": count}
        kinds.append("image")
    values["model.condition"] = tuple(kinds) if kinds != ["class"] else ()
    return values if "model.condition" not in given else {**values, "model.condition": given["model.condition"]}


def _check_channels_last(shape: tuple[int, ...], channels: Any) -> None:
    """Refuses what looks like images with channels before height and width, as other libraries have them.

    Args:
        shape: of the images, [n, h, w, c].
        channels: what the caller says that they are, who need not be asked then.
    """
    _, first, *others = shape
    if first in _USUAL_CHANNELS and min(others) > max(_USUAL_CHANNELS) and channels != shape[-1]:
        raise UserError(
            f"images have the shape {tuple(shape)}, which looks like channels first; give them channels last, by "
            f"np.moveaxis(images, 1, -1), or say data__channels={shape[-1]} if they are"
        )


def _fitting(base: Config, size: tuple[int, ...]) -> dict[str, Any]:
    """What else changes of a network where the images have another size than its config's."""
    if height_and_width(base.data.image_size) == size:
        return {}
    there = dataclasses.replace(base, data=dataclasses.replace(base.data, image_size=size))
    return {
        "data.pad": base.data.pad or there.network_sides != size,
        "model.attention_resolutions": tuple(
            each for each in base.model.attention_resolutions if each in there.resolutions
        ),
    }


def _small_network(size: tuple[int, ...], multipliers: Any) -> dict[str, Any]:
    """What differs from ``configs/digits.py`` for images of a size: levels, and how much is drawn and kept.

    Args:
        size: height and width.
        multipliers: those that whoever calls has chosen, which decide the levels; else None.
    """
    levels = len(multipliers) if isinstance(multipliers, (tuple, list)) and multipliers else 1
    while not multipliers and levels < _MOST_LEVELS and min(size) / 2**levels >= _LEAST_SIDE // 2:
        levels += 1
    factor = 2 ** (levels - 1)
    lowest = [-(-side // factor) for side in size]
    attends = lowest[0] * lowest[1] <= _MOST_ATTENDED
    return {
        "data.image_size": size[0] if size[0] == size[1] else size,
        "data.pad": any(side % factor for side in size),
        "model.multipliers": (1, 2, 2, 2)[:levels],
        "model.attention_resolutions": (lowest[0],) if attends else (),
        "train.batch_size": max(_LEAST_BATCH, min(_LARGEST_BATCH, _PIXELS_OF_BATCH // math.prod(size))),
        "train.steps": 1000,
        "train.learning_rate": 1e-3,
        "train.sample_num": 16,
        "train.final_sample_steps": (20,),
        "train.tensorboard": False,
    }


def _digest(memory: InMemory) -> str:
    """What stands for the arrays: their contents; of memory maps, which may be long, size and time of the file.

    Of these also how rows lie in the file, and the first and the last: a map may be a part of another.
    """
    digest = hashlib.sha256()
    for name, array in memory._asdict().items():
        if array is None:
            continue
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        path = getattr(array, "filename", None)
        if isinstance(array, np.memmap) and path is not None:
            found = os.stat(path)
            digest.update(f"{found.st_size} {found.st_mtime_ns} {array.strides}".encode())
            array = array[[0, -1]]
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:_DIGITS_OF_NAME]


def _check_same_arrays(folder: str, name: str) -> None:
    """Refuses to go on with a run on other arrays."""
    if not config_path(folder).exists():
        return
    data = read_config(folder).data
    if data.source == "array" and not data.path and data.name != name:
        raise UserError(
            f"workdir {folder} holds a run on other images, labels, vectors or paired pictures; give those, or name "
            "another workdir"
        )
