"""Checksums of a state's arrays: written with a checkpoint, compared when it is read.

They stand in ``checkpoints/STEP/default/checksums.json``, beside what Orbax writes there: of each array, by its path in
the state, shape, dtype, bytes and the CRC-32 of its values, and over all that a CRC-32 of its own. A file that
has changed is noticed by what that does to the arrays, whatever their format on the disk; else it is harmless.
"""

import concurrent.futures
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ddim_jax.digests import crc32_of_array, crc32_of_bytes, digest_of_arrays
from ddim_jax.parallel import usable_cores

FILE_NAME = "checksums.json"

# More threads would wait for memory.
_MOST_THREADS = 4


class Checksum(NamedTuple):
    """What is written down of an array.

    Attributes:
        shape: its shape.
        dtype: name of its dtype.
        crc32: of its values in C order, eight hexadecimal digits.
        bytes: how many they are.
    """

    shape: tuple[int, ...]
    dtype: str
    crc32: str
    bytes: int


def by_path(state: Any) -> dict[str, Any]:
    """The leaves of a state by their paths, e.g. ``params/conv_in/kernel``."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def digest_of_weights(variables: Any) -> str:
    """SHA-256 that stands for the weights of a network, see :func:`~ddim_jax.digests.digest_of_arrays`."""
    return digest_of_arrays({name: np.asarray(leaf) for name, leaf in by_path(variables).items()})


def checksums_of(state: Any) -> dict[str, Checksum]:
    """Computes the checksums of all arrays of a state, on the host, by several threads."""
    arrays = by_path(state)
    with concurrent.futures.ThreadPoolExecutor(min(_MOST_THREADS, usable_cores())) as pool:
        return dict(zip(arrays, pool.map(_checksum, arrays.values()), strict=True))


def _checksum(leaf: Any) -> Checksum:
    array = np.asarray(leaf)
    return Checksum(array.shape, array.dtype.name, crc32_of_array(array), array.nbytes)


def to_json(checksums: Mapping[str, Checksum]) -> str:
    """Writes checksums as JSON, with one of themselves."""
    arrays = {name: checksum._asdict() for name, checksum in checksums.items()}
    return json.dumps({"arrays": arrays, "crc32": _crc32_of_json(arrays)}, indent=1) + "\n"


def from_json(text: str | bytes) -> dict[str, Checksum]:
    """Reads what :func:`to_json` wrote.

    Raises:
        ValueError: it is something else by now.
    """
    try:
        record = json.loads(text)
        arrays = record["arrays"]
        if record["crc32"] != _crc32_of_json(arrays):
            raise ValueError("it is not what was written")
        found = {name: Checksum(**values) for name, values in arrays.items()}
        return {name: checksum._replace(shape=tuple(checksum.shape)) for name, checksum in found.items()}
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError("it is not what was written") from error


def _crc32_of_json(value: Any) -> str:
    return crc32_of_bytes(json.dumps(value, sort_keys=True).encode())


def changed_arrays(written: Mapping[str, Checksum], found: Mapping[str, Checksum]) -> list[str]:
    """The paths of arrays that are not what was written, those that are missing or too many among them."""
    return [name for name in {**written, **found} if written.get(name) != found.get(name)]
