"""The config as users write it: an ``ml_collections.ConfigDict``, and its variants."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from ddim_jax.config.schema import Config, height_and_width, is_one_or_several, without_none
from ddim_jax.errors import ConfigError

# An ml_collections.ConfigDict. Its attributes are the keys, which type checkers cannot know.
ConfigTree: typing.TypeAlias = Any


def default_config() -> ConfigTree:
    """Returns all keys with their defaults, locked: assigning to a misspelt key is an error."""
    return to_config_dict(Config())


def to_config_dict(config: Any) -> ConfigTree:
    """The form that users write of a typed config, or of a group of it; locked."""
    result = ml_collections.ConfigDict()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            result[field.name] = to_config_dict(value)
        elif value is None:
            # A placeholder remembers the type, so that a flag can set the key later.
            result[field.name] = config_dict.placeholder(without_none(field.type))
        elif is_one_or_several(field.type):
            result[field.name] = config_dict.FieldReference(value, field_type=object)
        else:
            result[field.name] = value
    return result.lock()


def shrink(config: ConfigTree) -> ConfigTree:
    """Turns any config into a trial run of seconds on a CPU: the ``tiny`` variant.

    The structure stays (levels, attention, objective, schedule, source); widths, images, steps
    and batch shrink.
    """
    halvings = len(config.model.multipliers) - 1
    sides = height_and_width(config.data.image_size)
    shortest = min(sides)
    side = min(shortest, max(8, 2**halvings))
    scale = shortest // side
    # A longer side in proportion, and as often halved.
    height, width = (max(side, round(side * each / shortest / 2**halvings) * 2**halvings) for each in sides)
    with config.unlocked():
        config.data.image_size = side if sides[0] == sides[1] else (height, width)
        if config.data.source != "digits" and config.data.resize == "none":
            config.data.resize = "bilinear"
        # To half of its width or less, in whole groups of two channels or more.
        config.model.channels = min(16, max(8, config.model.channels // 16 * 8))
        config.model.num_groups = min(8, config.model.channels // 2)
        config.model.num_blocks = 1
        config.data.cache = "none"
        config.model.attention_resolutions = tuple(
            sorted({max(1, r // scale) for r in config.model.attention_resolutions}, reverse=True)
        )
        config.train.batch_size = 8
        config.train.steps = 4
        config.train.epochs = 0.0
        config.train.warmup_steps = min(config.train.warmup_steps, 2)
        config.train.checkpoint_every = 2
        config.train.log_every = 1
        config.train.sample_every = 2
        config.train.sample_every_epochs = 0.0
        config.train.validate_every = min(config.train.validate_every, 2)
        config.train.measure_every = min(config.train.measure_every, 2)
        config.train.measure_num = 8
        config.train.sample_num = 4
        config.train.final_sample_steps = (2,)
        config.eval.extractor = "pixels"
        config.eval.num = 8
        config.eval.steps = (2, 4)
        config.eval.is_splits = 2
        config.sample.num = 4
        config.sample.steps = 4
        config.sample.batch_size = 4
    return config


def apply_variants(
    config: ConfigTree,
    argument: str | None,
    variants: Mapping[str, Callable[[ConfigTree], object]] | None = None,
) -> ConfigTree:
    """Applies the comma-separated variants of ``configs/NAME.py:ARG``; ``tiny`` is always one.

    Args:
        config: the base config, changed in place.
        argument: ARG, or None or empty for the base config itself.
        variants: the file's own variants: name to a function that changes the config in place.

    Raises:
        ConfigError: ARG names a variant that does not exist.
    """
    known = {**(variants or {}), "tiny": shrink}
    for name in filter(None, (part.strip() for part in (argument or "").split(","))):
        if name not in known:
            raise ConfigError(f"config variant '{name}' does not exist; choose from: {', '.join(sorted(known))}")
        known[name](config)
    return config
