"""Hashes that stand for settings and for weights, in names of folders and in what figures say of themselves."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def digest_of_facts(facts: Any) -> str:
    """SHA-256 of JSON's types, in hexadecimal; names take its beginning. The order of keys does not matter.

    >>> digest_of_facts({"steps": 50, "eta": 0.0})[:8] == digest_of_facts({"eta": 0.0, "steps": 50})[:8]
    True
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def digest_of_arrays(arrays: Mapping[str, np.ndarray], separator: str = "\n") -> str:
    """SHA-256 of names, dtypes, shapes and values, in hexadecimal; the order of the names does not matter.

    Args:
        arrays: by name.
        separator: between what is said of an array and its values.
    """
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {array.dtype} {array.shape}{separator}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
