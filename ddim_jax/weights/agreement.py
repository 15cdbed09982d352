"""Agreement between what a file says about its network and what the config says.

Weights alone are no model: numbers made with another schedule or another normalisation than the network was trained
with are wrong without a sign. So whatever a file states is compared with the config, and what it does not state is the
config's to say.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ddim_jax.config import Config, Role, flatten, keys_with, with_values
from ddim_jax.diffusion.schedule import ScheduleSettings, make_schedule
from ddim_jax.errors import UserError


def deciding_values(config: Config) -> dict[str, Any]:
    """Values that decide which function the weights are, and what its output means, by dotted key."""
    flat = flatten(config)
    return {key: flat[key] for key in keys_with(config, Role.NETWORK)}


def agreed_config(
    config: Config | None, stated: Mapping[str, Any], source: str, base: Config | None = None, any_classes: bool = False
) -> Config:
    """Settles the config of a file's network.

    Args:
        config: config that the user gave; None for "what the file says".
        stated: values that the file states, by dotted key of the config.
        source: name of the file in messages.
        base: config of all that is not stated, where the user gave none; all defaults when None.
        any_classes: whether the file may have other classes than the config, and be told less.

    Returns:
        ``config``, with the file's normalisation where it leaves that open, and its classes where any will do; or
        ``base`` with what is stated.

    Raises:
        UserError: the config says otherwise; the message gives both values, and the flags that would agree.
    """
    if config is None:
        return with_values(base or Config(), stated)
    if any_classes:
        classes = stated.get("model.num_classes", 0)  # only DDIM's own code states none, and it has none
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=classes))
        config = _without_kinds(config, stated.get("model.condition", ()))
    if not config.data.mean:
        if "data.mean" not in stated:
            raise UserError(
                f"data.mean is empty, but {source} does not say how its images were normalised; published networks "
                "use data.mean=(0.5,) and data.std=(0.5,)"
            )
        config = with_values(config, {key: stated[key] for key in ("data.mean", "data.std")})
    ours = flatten(config)
    different = differences(config, stated)
    if different:
        values = ", ".join(f"{key} (there {value!r}, here {ours[key]!r})" for key, value in different.items())
        flags = " ".join(f"--config.{key}={_as_flag(value)}" for key, value in different.items())
        raise UserError(f"{source} and the config disagree: {values}; pass {flags}, here and to later jobs")
    return config


def _without_kinds(config: Config, told: Collection[str]) -> Config:
    """The config of a network that is told some of what the config's is; the config itself if that is more."""
    data, model = config.data, config.model
    kept = tuple(kind for kind in model.condition if kind in told and (kind != "class" or model.num_classes))
    if not set(told) - {"class"} <= set(kept):
        return config
    model = dataclasses.replace(model, condition=kept, vector_size=model.vector_size if "vector" in kept else 0)
    if "vector" not in kept:
        data = dataclasses.replace(data, vector="")
    if "image" not in kept:
        data = dataclasses.replace(data, condition="", condition_augmentation=0.0)
    train = dataclasses.replace(config.train, condition_dropout=())
    return dataclasses.replace(config, data=data, model=model, train=train)


def differences(config: Config, stated: Mapping[str, Any]) -> dict[str, Any]:
    """What is stated, by dotted key, and means something else than the config's own value."""
    ours = flatten(config)
    return {
        key: value
        for key, value in stated.items()
        if _comparable(key, value) != _comparable(key, ours[key]) and _matters(key, value, config)
    }


def _comparable(key: str, value: Any) -> Any:
    """Brings a value into a form that is equal where the meaning is."""
    if key == "model.attention_resolutions":
        return set(value)
    if key == "model.num_heads":
        return 0 if value == 1 else value  # 0 leaves it to the width, which says one head unless it is given
    if key == "model.condition":
        return set(value) - {"class"}  # model.num_classes tells it
    if key in ("data.mean", "data.std"):
        # One value stands for all channels.
        return value[:1] if len(set(value)) == 1 else value
    return value


# Keys that not all schedules look at.
_OF_SOME_SCHEDULES = tuple(
    f"diffusion.{name}" for name in ("beta_start", "beta_end", "sigma_min", "sigma_max", "sigma_data")
)


# Keys that one task of data.condition alone looks at.
_OF_A_TASK = {
    "data.condition_factor": "downsample",
    "data.condition_blur": "blur",
    "data.condition_noise": "noise",
    "data.condition_size": "paired",
    "data.condition_channels": "paired",
}


def _matters(key: str, value: Any, config: Config) -> bool:
    """Whether the network and the schedule of a config look at a key, of which a file has another value."""
    if key in ("model.structure", "model.norm"):
        return config.model.name == "residual_unet"
    if key == "model.downsample_padding":
        return not config.model.resample_blocks
    if key in _OF_A_TASK:
        return config.data.condition == _OF_A_TASK[key]
    if key in _OF_SOME_SCHEDULES:
        ours = config.diffusion
        theirs = dataclasses.replace(ours, **{key.removeprefix("diffusion."): value})
        here, there = (
            make_schedule(each.schedule, **{name: getattr(each, name) for name in ScheduleSettings._fields})
            for each in (ours, theirs)
        )
        return not (np.array_equal(here.alpha_bar, there.alpha_bar) and np.array_equal(here.times, there.times))
    return True


def _as_flag(value: Any) -> str:
    """Writes a value as a shell takes it."""
    return f"'{value}'".replace(" ", "") if isinstance(value, tuple) else str(value)
