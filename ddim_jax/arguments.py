"""What is given to the Python API, checked before anything is computed.

Each function takes an argument as users write it, array or list, and returns it in the one form that programs take, or
says what was found and what is meant. Settings of ``config.sample`` are checked with the config.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.conditions import DataCondition
from ddim_jax.conditions.tasks import masked
from ddim_jax.config import Config
from ddim_jax.config.keys import LARGEST_INDEX
from ddim_jax.configured import build_normalization, build_task
from ddim_jax.errors import UserError, shown
from ddim_jax.names import ConditionKind
from ddim_jax.pixels import Normalization
from ddim_jax.sampling.conditions import as_unit


def pixels(
    images: Any,
    shape: Sequence[int],
    normalization: Normalization = Normalization(),  # noqa: B008 - immutable
) -> np.ndarray:
    """Images for a network: [n, h, w, c] of the type of its data, uint8 unless said otherwise.

    >>> pixels(np.ones((2, 8, 8, 1)), (8, 8, 1))
    Traceback (most recent call last):
    ddim_jax.errors.UserError: images are float64 in 1 ... 1, but whole numbers in 0 ... 255 (uint8) are meant; for \
pixels in [0, 1] that is np.round(255 * images).astype(np.uint8)

    Args:
        images: whole numbers in 0 ... 255, as an array or lists; or what the data are.
        shape: (h, w, c) of the network.
        normalization: says of which type and range the data are.

    Raises:
        UserError: another shape, no images, or values that are not the data's. For integer data floats are refused
            whatever they are: a program cannot know which range is meant.
    """
    images = _array(images, "images")
    _check_shape(images, shape, "images")
    if not normalization.is_plain:
        return _values(images, normalization)
    if np.issubdtype(images.dtype, np.integer) and images.min() >= 0 and images.max() <= 255:
        return images.astype(np.uint8)
    _check_finite(images, "images")
    lowest, highest = images.min(), images.max()
    if images.dtype == bool or (np.issubdtype(images.dtype, np.floating) and lowest >= 0 and highest <= 1):
        hint = "for pixels in [0, 1] that is np.round(255 * images).astype(np.uint8)"
    elif lowest >= -1 and highest <= 1:
        hint = "for pixels in [-1, 1] that is np.round(127.5 * (images + 1)).astype(np.uint8)"
    elif lowest >= 0 and highest <= 255:
        hint = "for pixels in [0, 255] that is np.round(images).astype(np.uint8)"
    else:
        hint = "scale and round them"
    raise UserError(
        f"images are {images.dtype} in {lowest:.4g} ... {highest:.4g}, but whole numbers in 0 ... 255 (uint8) are "
        f"meant; {hint}"
    )


def _values(images: np.ndarray, normalization: Normalization) -> np.ndarray:
    """Images [n, h, w, c] of other types or ranges than those of 8-bit pixels."""
    _check_finite(images, "images")
    dtype, whole = np.dtype(normalization.dtype), normalization.dtype != "float32"
    low, high = (np.asarray(values, np.float32) for values in (normalization.low, normalization.high))
    found = f"images are {images.dtype} in {images.min():.6g} ... {images.max():.6g}"
    meant = f"{'whole numbers' if whole else 'floats'} in {_in_words(low)} ... {_in_words(high)} ({dtype}) are meant"
    if whole and not np.issubdtype(images.dtype, np.integer):
        raise UserError(f"{found}, but {meant}; for whole numbers among floats that is images.astype(np.{dtype})")
    with np.errstate(over="ignore"):
        values = images if whole else images.astype(np.float32)
    outside = (values < low) | (values > high)
    if outside.any():
        image = int(np.flatnonzero(outside.reshape(len(images), -1).any(axis=1))[0])
        raise UserError(
            f"{found}, but {meant} (data.range): {int(outside.sum()):,} of {outside.size:,} values lie outside, the "
            f"first in images[{image}]; scale them as the training data, or np.clip them"
        )
    return values.astype(dtype)


def _in_words(values: np.ndarray) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"({', '.join(f'{value:g}' for value in values)})"


def images_to_show(images: Any, shape: Sequence[int], dtype: str) -> np.ndarray:
    """Images of a network as its methods return them: [..., h, w, c] of its type, of any number of leading axes.

    Raises:
        UserError: another shape or type, or no images.
    """
    images = _array(images, "images")
    if images.ndim < 3 or images.shape[-3:] != tuple(shape) or not images.size:
        raise UserError(
            f"images have shape {images.shape}, but [..., {', '.join(map(str, shape))}] is meant, with one image at "
            "least"
        )
    if images.dtype != np.dtype(dtype):
        raise UserError(f"images are {images.dtype}, but the model's are {dtype}; decode() makes images of latents")
    return images


def latents(values: Any, shape: Sequence[int]) -> np.ndarray:
    """Noise for a network: float32 [n, h, w, c].

    Args:
        values: finite floats, as an array or lists.
        shape: (h, w, c) of the network.

    Raises:
        UserError: another shape, none at all, or values that are not finite floats.
    """
    values = _array(values, "latents")
    _check_shape(values, shape, "latents")
    if not np.issubdtype(values.dtype, np.floating):
        raise UserError(
            f"latents are {values.dtype}, but floats like standard normal noise are meant; encode() makes them of "
            "images"
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    _check_finite(values, "latents")
    return values


def mask(values: Any, images_shape: Sequence[int]) -> np.ndarray:
    """A mask of images: bool [n, h, w, 1], True where an image is kept.

    Args:
        values: [h, w] or [n, h, w]; bool, or 0 beside 1 or 255.
        images_shape: (n, h, w, c).

    Raises:
        UserError: another shape, or values between the two.
    """
    values = _array(values, "mask")
    n, height, width, _ = images_shape
    if values.shape not in ((height, width), (n, height, width)):
        raise UserError(
            f"the mask has shape {values.shape}, but the images are {(height, width)}; resize the mask to [h, w], or "
            "[n, h, w] with one for each image"
        )
    if values.dtype != bool and not any(np.isin(values, (0, one)).all() for one in (1, 255)):
        raise UserError(
            f"the mask is {values.dtype} in {values.min():.4g} ... {values.max():.4g}, but True (keep) and False (draw "
            "anew) are meant; e.g. mask > 0.5"
        )
    return np.broadcast_to(values.astype(bool), (n, height, width))[..., None]


def labels(values: Any, count: int, num_classes: int) -> np.ndarray | None:
    """Classes of images: int32 [n], or None where none are given.

    Args:
        values: whole numbers, one for each image; or None.
        count: number of images n.
        num_classes: number of classes of the network.

    Raises:
        UserError: a network without classes, a class that does not exist, another number of them than of images.
    """
    if values is None:
        return None
    if not num_classes:
        raise UserError("labels: the model has no classes (model.num_classes=0); leave labels out")
    values = _array(values, "labels")
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"labels are {values.dtype}, but classes are meant: whole numbers in 0 ... {num_classes - 1}")
    if values.shape != (count,):
        hint = f"; for one class of all, np.full({count}, {values})" if values.ndim == 0 else ""
        raise UserError(f"labels have shape {values.shape}, but one for each of {count} images is meant{hint}")
    _check_each(values, num_classes - 1, "labels", f"the model has classes 0 ... {num_classes - 1}")
    return values.astype(np.int32)


def condition_count(value: Any, kinds: Sequence[ConditionKind]) -> int:
    """How many conditions there are, see :func:`condition`: as many as the first that is given has rows.

    Raises:
        UserError: none is given, or it has no rows.
    """
    parts = _parts_of_condition(value, kinds)
    for name, part in parts.items():
        if part is not None and name != "mask":
            rows = _array(part, f"condition {name}")
            if rows.ndim:
                return len(rows)
    raise UserError(f"condition={shown(value)}: one for each image is meant, an array of n rows")


def condition(value: Any, config: Config, count: int, per_condition: int = 1) -> DataCondition:
    """What images are drawn from, one row for each of them.

    Args:
        value: a dictionary of ``label``, ``vector`` and ``image`` (with ``mask`` where a part is missing) or
            ``picture``; or an array, where the network knows one kind.
        config: the run, which says what the network knows.
        count: number of images.
        per_condition: images in a row that share one.

    Raises:
        UserError: another number, shape or type, a class or a kind that the network has not, or one that is missing.
    """
    kinds = config.model.kinds
    parts = _parts_of_condition(value, kinds)
    if count % per_condition:
        raise UserError(f"per_condition={per_condition}: {count} images are no multiple of it")
    rows = count // per_condition
    for kind, names in (("vector", ("vector",)), ("image", ("image", "picture"))):
        if kind in kinds and not any(name in parts for name in names):
            raise UserError(f"condition: '{names[0]}' is missing; the network is told {', '.join(kinds)}")
        # None of a kind that training never left out would be an input that the network has not seen.
        if kind in kinds and all(parts.get(name) is None for name in names) and not config.condition_dropout[kind]:
            raise UserError(
                f"condition: {names[0]}=None: this network was never trained without one (train.condition_dropout)"
            )
    told = DataCondition(labels(parts.get("label"), rows, config.model.num_classes))
    if parts.get("vector") is not None:
        told = told._replace(vector=vectors(parts["vector"], rows, config.model.vector_size))
    if parts.get("image") is not None:
        told = told._replace(picture=_picture_of(parts["image"], parts.get("mask"), rows, config))
    elif parts.get("picture") is not None:
        told = told._replace(picture=_unit_picture(parts["picture"], rows, config))
    return jax.tree.map(lambda x: np.repeat(x, per_condition, axis=0), told)


# How far pictures that were computed may lie beyond [0, 1].
_ROUNDING = 1e-3

# What a dictionary of conditions may name, and the kind that it belongs to.
_CONDITION_PARTS: dict[str, ConditionKind] = {
    "label": "class",
    "vector": "vector",
    "image": "image",
    "mask": "image",
    "picture": "image",
}


def _parts_of_condition(value: Any, kinds: Sequence[ConditionKind]) -> dict[str, Any]:
    if not kinds:
        raise UserError("condition: the model is drawn from noise alone (model.condition=()); leave condition out")
    if not isinstance(value, Mapping):
        if len(kinds) > 1:
            names = ", ".join(f"'{name}'" for name, kind in _CONDITION_PARTS.items() if kind in kinds)
            raise UserError(f"condition: the network is told {' and '.join(kinds)}; give a dictionary of {names}")
        return {next(name for name, kind in _CONDITION_PARTS.items() if kind == kinds[0]): value}
    for name in value:
        if _CONDITION_PARTS.get(name) not in kinds:
            known = ", ".join(name for name, kind in _CONDITION_PARTS.items() if kind in kinds)
            raise UserError(f"condition: the network is told nothing of {shown(name)}; choose from: {known}")
    return dict(value)


def vectors(values: Any, count: int, size: int) -> np.ndarray:
    """Numbers that images are drawn from: float32 [n, d].

    Args:
        values: finite numbers.
        count: n.
        size: d of the network.

    Raises:
        UserError: another shape, or values that are not finite numbers.
    """
    values = _array(values, "vectors")
    if values.shape != (count, size):
        raise UserError(f"vectors have shape {values.shape}, but {(count, size)} is meant: model.vector_size={size}")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    _check_finite(values, "vectors")
    return values


def _picture_of(images: Any, known: Any, count: int, config: Config) -> np.ndarray:
    """A picture of the data's type, as float32 [n, h', w', c'] in [0, 1]."""
    task = build_task(config)
    assert task is not None, "a network that is told a picture has a task"
    height, width, channels = task.shape
    is_masked = config.data.condition == "mask"
    if known is not None and not is_masked:
        raise UserError(f"mask: data.condition={config.data.condition} has none; leave it out")
    images = pixels(images, (height, width, channels - 1) if is_masked else task.shape, build_normalization(config))
    if len(images) != count:
        raise UserError(f"condition: found {len(images)} pictures, but {count} are meant")
    picture = np.asarray(as_unit(images, config))
    if not is_masked:
        return picture
    if known is None:
        raise UserError("mask: this network is told which part is known; give mask, True where it is")
    masks = mask(known, images.shape)
    return np.asarray(masked(jnp.asarray(picture), jnp.asarray(masks, jnp.float32)))


def _unit_picture(values: Any, count: int, config: Config) -> np.ndarray:
    """A picture as tasks make it, checked."""
    task = build_task(config)
    assert task is not None, "a network that is told a picture has a task"
    values = _array(values, "picture")
    if values.shape != (count, *task.shape) or not np.issubdtype(values.dtype, np.floating):
        raise UserError(
            f"picture: found {values.dtype} of shape {values.shape}, but floats of shape {(count, *task.shape)} are "
            f"meant, as data.condition={config.data.condition} makes them"
        )
    _check_finite(values, "picture")
    # Filters round; noise goes wherever it goes.
    if config.data.condition != "noise" and (values.min() < -_ROUNDING or values.max() > 1 + _ROUNDING):
        raise UserError(f"picture: values lie in {values.min():.4g} ... {values.max():.4g}, but 0 ... 1 is meant")
    return values.astype(np.float32)


def indices(values: Any, name: str, count: int | None = None, may_be_empty: bool = False) -> np.ndarray:
    """Image indices: int64 [n].

    Args:
        values: whole numbers, one at least.
        name: the argument's, for messages.
        count: how many they have to be.
        may_be_empty: whether an empty list is one.

    Raises:
        UserError: not a list, none, another number of them, or some that no image has.
    """
    values = _array(values, name)
    if values.ndim == 0 and np.issubdtype(values.dtype, np.number):
        raise UserError(f"{name}={values}: a list of image indices is meant, e.g. [{values}]")
    if values.size == 0:
        if may_be_empty and values.ndim == 1:
            return np.empty(0, np.int64)
        raise UserError(f"{name} is empty: name one image index at least, e.g. [0]")
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise UserError(
            f"{name} are {values.dtype} of shape {values.shape}, but image indices are meant: a list of whole numbers"
        )
    if count is not None and len(values) != count:
        raise UserError(f"{name}: found {len(values)} image indices, but {count} are meant")
    _check_each(values, LARGEST_INDEX, name, "image indices lie in 0 ... 2^31 - 1")
    return values.astype(np.int64)


def whole_number(value: Any, name: str, at_least: int, at_most: int | None = None) -> int:
    """A whole number of Python or NumPy, as Python's.

    >>> whole_number(100.0, "level", 1, 1000)
    Traceback (most recent call last):
    ddim_jax.errors.UserError: level=100.0: a whole number in 1 ... 1000 is meant

    Args:
        value: the argument.
        name: its name, for messages.
        at_least: the smallest allowed.
        at_most: the largest allowed; None for any.

    Raises:
        UserError: something else, or outside that range.
    """
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < at_least or (at_most is not None and number > at_most):
        allowed = f"of {at_least} or more" if at_most is None else f"in {at_least} ... {at_most}"
        raise UserError(f"{name}={shown(value)}: a whole number {allowed} is meant")
    return number


def switch(value: Any, name: str) -> bool:
    """True or False, of Python or NumPy, or 1 or 0, as Python's.

    Args:
        value: the argument.
        name: its name, for messages.

    Raises:
        UserError: something else, such as a word.
    """
    if not isinstance(value, (bool, np.bool_, int, np.integer)) or value not in (0, 1):
        raise UserError(f"{name}={shown(value)}: True or False is meant")
    return bool(value)


def pictures(images: Any) -> np.ndarray:
    """Pictures to look at: uint8 [..., h, w, 1 or 3], of any number of leading axes.

    Args:
        images: what the API's methods return.

    Raises:
        UserError: another shape or type, or no images.
    """
    images = _array(images, "images")
    if images.ndim < 3 or images.shape[-1] not in (1, 3) or not images.size:
        others = "; of other channels, pipe.pictures(images) makes such" if images.ndim >= 3 and images.size else ""
        raise UserError(
            f"images have shape {images.shape}, but [n, h, w, 1 or 3] is meant, with one image at least{others}"
        )
    if images.dtype != np.uint8:
        raise UserError(
            f"images are {images.dtype}, but uint8 in 0 ... 255 is meant; decode() makes images of latents, and "
            "pipe.pictures(images) pictures of data of other types"
        )
    return images


def _array(values: Any, name: str) -> np.ndarray:
    """The values as an array of numbers."""
    try:
        array = np.asarray(values)
    except Exception as error:
        # What other libraries' arrays raise is theirs to choose: a tensor with a gradient, one of another device.
        _refuse(values, name, error)
    # An empty list has no type of its own.
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
        _refuse(values, name)
    return array


def _refuse(values: Any, name: str, error: Exception | None = None) -> NoReturn:
    reason = "" if error is None else f" ({' '.join(str(error).split())})"
    raise UserError(
        f"{name}: an array or a list of numbers is meant, of equal length throughout; got {shown(values)}{reason}"
    ) from error


def _check_shape(array: np.ndarray, shape: Sequence[int], name: str) -> None:
    """Refuses what is not [n, h, w, c], and knows the usual other layouts."""
    height, width, channels = shape
    if array.ndim == 4 and array.shape[1:] == tuple(shape):
        if not len(array):
            raise UserError(f"{name} are empty: give one image at least")
        return
    hint = ""
    if array.shape == (height, width, channels):
        hint = f"; that is one image: {name}[None]"
    elif array.shape == (channels, height, width):
        hint = f"; that is one image, channels first: np.moveaxis({name}, 0, -1)[None]"
    elif array.ndim == 4 and array.shape[1:] == (channels, height, width):
        hint = f"; channels come last: np.moveaxis({name}, 1, -1)"
    elif array.ndim == 3 and channels == 1 and array.shape[1:] == (height, width):
        hint = f"; the axis of channels is missing: {name}[..., None]"
    raise UserError(f"{name} have shape {array.shape}, but the model's are [n, {', '.join(map(str, shape))}]{hint}")


def _check_finite(array: np.ndarray, name: str) -> None:
    """Refuses NaN and infinity, and says in which image they are."""
    if not np.isfinite(array).all():
        image = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
        raise UserError(f"{name}[{image}] holds NaN or infinity: find out where they come from")


def _check_each(values: np.ndarray, most: int, name: str, allowed: str) -> None:
    wrong = np.flatnonzero((values < 0) | (values > most))
    if len(wrong):
        raise UserError(f"{name}[{wrong[0]}]={values[wrong[0]]}: {allowed}")
