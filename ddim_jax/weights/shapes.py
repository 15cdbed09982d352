"""Shapes of the arrays that a network needs, and checks of those that a file has."""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ddim_jax.config import Config
from ddim_jax.errors import UserError
from ddim_jax.models import build_model
from ddim_jax.names import ConditionKind

Shape = tuple[int, ...]

_MAX_NAMED = 5


@functools.lru_cache(maxsize=8)
def variable_shapes(config: Config) -> dict[str, Shape]:
    """Shapes of the network's variables by their paths, e.g. ``params/conv_in/kernel``."""
    image = jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    variables = jax.eval_shape(build_model(config).init, jax.random.key(0), image, time)
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(variables, sep="/"))
    return {name: leaf.shape for name, leaf in flat.items()}


def array_shapes(state: Mapping[Any, Any]) -> dict[Any, Shape | str]:
    """Shapes of the arrays in a state dict, by name; words where there is none."""
    return {name: getattr(value, "shape", "no array") for name, value in state.items()}


def check_shapes(theirs: Mapping[Any, Shape | str], ours: Mapping[Any, Shape], source: str) -> None:
    """Compares the arrays of a file with those of the network; none may be missing or left over.

    Args:
        theirs: shapes of the file's arrays, see :func:`array_shapes`.
        ours: shapes that the network needs, by the same kind of names.
        source: name of the file in messages.

    Raises:
        UserError: they differ; the message names the first five.
    """
    different = different_shapes(theirs, ours)
    if different:
        raise UserError(
            f"{source} holds another network than model.* of the config describes: {name_first(different)}; give the "
            "config that it was trained with"
        )


def different_shapes(theirs: Mapping[Any, Shape | str], ours: Mapping[Any, Shape]) -> list[str]:
    """The arrays whose shapes differ, and those that are missing or left over, each in words with both shapes."""
    return [
        f"{name} (there {theirs.get(name, 'none')}, here {ours.get(name, 'none')})"
        for name in [*ours, *(name for name in theirs if name not in ours)]
        if theirs.get(name, "none") != ours.get(name, "none")
    ]


def check_told(config: Config, known: Collection[ConditionKind], source: str, form: str) -> None:
    """Checks that networks of another project's form can be told what those of the config are, beside classes.

    Args:
        config: config of the network.
        known: what that form knows.
        source: name of the file in messages.
        form: the project, in words.

    Raises:
        UserError: they cannot.
    """
    unknown = [kind for kind in config.model.condition if kind not in ("class", *known)]
    if unknown:
        raise UserError(
            f"{source} has the form of {form}, whose networks are told no {unknown[0]}: model.condition="
            f"{config.model.condition}; leave it out"
        )
    if config.data.condition_augmentation:
        raise UserError(
            f"{source} has the form of {form}, whose networks are not told of noise in pictures: "
            f"data.condition_augmentation={config.data.condition_augmentation}; set it to 0"
        )


def check_finite(arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Refuses arrays with values that are not finite.

    Raises:
        UserError: there are some; the message names the first five.
    """
    broken = [name for name, value in arrays.items() if not np.isfinite(value).all()]
    if broken:
        raise UserError(f"{source} has values that are not finite in {name_first(broken)}: no network can use them")


def name_first(items: Sequence[str]) -> str:
    """Lists the first five items for a message, and says how many more there are.

    >>> name_first(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(items) - _MAX_NAMED} more" if len(items) > _MAX_NAMED else ""
    return ", ".join(items[:_MAX_NAMED]) + more
