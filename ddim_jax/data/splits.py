"""Splits of a source that has but one, ``train``: slices of it, and their sums.

The strings are those of TensorFlow Datasets (tensorflow.org/datasets/splits), and mean the same::

    train                    all examples
    train[:90%]              the first 90 percent
    train[90%:]              the rest: together with the line above, each example once
    train[:162770]           the first 162,770 examples
    train[-10%:]             the last 10 percent
    train[:25%]+train[75%:]  the first and the last quarter, in this order

Where p percent of n examples is no whole number it is rounded to the nearest one (TFDS calls this
``closest``; halves go to the even neighbour), so adjoining slices neither overlap nor leave a gap.
If one bound of a slice has a percent sign, both are percentages.

A slice takes examples in the source's order. That is a random choice only where the order is
random, as in TFDS's own data sets: a folder with a sub-folder for each class is ordered by class,
and a slice of it holds some classes alone.
"""

import re

import numpy as np

from ddim_jax.errors import UserError

_NAME = "train"

_BOUND = r"(-?\d+(?:_\d+)*(?:\.\d+)?%?)?"
_PART = re.compile(rf"(\w+)(?:\[{_BOUND}:{_BOUND}\])?")


def split_indices(split: str, num_examples: int, name: str) -> np.ndarray:
    """Finds the examples that a split selects, in its order.

    Args:
        split: e.g. ``train[:90%]``; see the module's text.
        num_examples: number of examples of the source, at least 1.
        name: what to call the source in messages.

    Returns:
        int64 [n], n >= 1. An example that lies in several parts of a sum occurs several times.

    Raises:
        UserError: the string is no split of the source, or selects nothing.
    """
    parts = [np.arange(*_bounds(part.strip(), split, num_examples, name)) for part in split.split("+")]
    indices = np.concatenate(parts).astype(np.int64)
    if not len(indices):
        raise UserError(f"split {split!r} selects none of the {num_examples:,} images of {name}; widen it")
    return indices


def _bounds(part: str, split: str, num_examples: int, name: str) -> tuple[int, int]:
    """Finds the first example of a part, and the one after its last."""
    match = _PART.fullmatch(part)
    bounds = match.groups()[1:] if match else ()
    is_percent = any(bound and bound.endswith("%") for bound in bounds)
    is_decimal = any(bound and "." in bound for bound in bounds)
    if match is None or ("[" in part and not any(bounds)) or (is_decimal and not is_percent):
        raise UserError(
            f"split {split!r} cannot be understood; write {_NAME}, a slice such as {_NAME}[:90%] or "
            f"{_NAME}[5000:10000], or a sum of such with +"
        )
    if match[1] != _NAME:
        raise UserError(f"split {split!r}: {name} has one split, {_NAME}; take a slice of it, such as {_NAME}[:90%]")
    values = [float(bound.rstrip("%")) if bound else None for bound in bounds]
    whole = 100 if is_percent else num_examples
    if any(abs(value or 0) > whole for value in values):
        raise UserError(f"split {split!r} reaches beyond the {num_examples:,} images of {name}; shorten it")
    first, last = (None if value is None else round(value * num_examples / whole) for value in values)
    # Python's own rule for negative and missing bounds.
    start, stop, _ = slice(first, last).indices(num_examples)
    return start, stop
