"""Weights of the Inception network, as published and turned into our parameters.

They are those of TensorFlow's graph of 5 December 2015, in the PyTorch form that torch-fidelity and pytorch-fid both
use (under two names, the same bytes). The file's hash belongs to every figure: other weights make another metric.
"""

import contextlib
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ddim_jax.cache import cache_dir
from ddim_jax.errors import UserError
from ddim_jax.models.inception import INPUT_SIZE, Inception
from ddim_jax.npz import load_arrays, save_arrays
from ddim_jax.weights.download import PublishedFile, fetch, given_instead
from ddim_jax.weights.shapes import Shape, name_first
from ddim_jax.weights.torch_file import read_torch_file

PUBLISHED = PublishedFile(
    title="Inception weights",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    folder="inception",
    name="pt_inception-2015-12-05-6726825d.pth",
    setting="eval.inception_path",
)

_BATCH_NORM_EPS = 1e-3
_NORM_ARRAYS = ("weight", "bias", "running_mean", "running_var")


class InceptionWeights(NamedTuple):
    """Parameters of :class:`~ddim_jax.models.inception.Inception`, and where they came from.

    Attributes:
        params: tree of float32 NumPy arrays; the network is called by ``apply({"params": params}, x)``.
        sha256: hash of the file that they were read from, in hexadecimal; ``PUBLISHED.sha256`` for the published one.
    """

    params: dict[str, Any]
    sha256: str


def inception_variables(path: str = "") -> InceptionWeights:
    """Reads the network's parameters, from the published file or from a given one.

    The published file (96 MB) is downloaded at first use. Converted parameters are kept in the cache under the hash of
    their file, so that neither download nor conversion happens again.

    Args:
        path: ``eval.inception_path``: a PyTorch file of these weights; empty for the published one. Another file than
            the published is taken, with a warning: its hash tells its figures from others.

    Raises:
        UserError: the published file cannot be fetched or is not what was published, or the given one cannot be read
            or does not fit the network.
    """
    if not path:
        kept = _read_kept(PUBLISHED.sha256)
        if kept is not None:
            return InceptionWeights(kept, PUBLISHED.sha256)
        return _convert(fetch(PUBLISHED), PUBLISHED.sha256)
    file, sha256 = given_instead(path, PUBLISHED, "Inception network", PUBLISHED.setting)
    kept = _read_kept(sha256)
    return InceptionWeights(kept, sha256) if kept is not None else _convert(file, sha256)


def convert_state(state: Any, source: str) -> dict[str, Any]:
    """Turns the network's PyTorch state dict into our parameters.

    Each convolution there is followed by a batch norm with fixed statistics, y = weight (conv(x) - running_mean) /
    sqrt(running_var + eps) + bias. Both together are one convolution with a bias, which is computed here in float64.

    Args:
        state: arrays by PyTorch's names, e.g. ``Mixed_5b.branch1x1.conv.weight`` [out, in, h, w].
        source: name of the file in messages.

    Raises:
        UserError: arrays are missing, left over, of another shape, or not finite; the message names the first five.
    """
    expected = inception_state_shapes()
    if not isinstance(state, Mapping):
        raise UserError(f"{source} does not hold arrays by name: give the state dict of the Inception network")
    # Counts of training batches: they do not enter the function, and some files lack them.
    names = {name for name in state if not str(name).endswith(".num_batches_tracked")}
    _refuse(source, "lacks", expected.keys() - names)
    _refuse(source, "has, beyond those of the Inception network,", names - expected.keys())
    _refuse(source, "has in another shape", (n for n in expected if getattr(state[n], "shape", None) != expected[n]))
    arrays = {name: np.asarray(state[name], np.float64) for name in expected}
    _refuse(source, "has values that are not finite in", (n for n, array in arrays.items() if not _usable(n, array)))

    params: dict[str, np.ndarray] = {"fc/kernel": arrays["fc.weight"].T, "fc_bias": arrays["fc.bias"]}
    for module in sorted({name.removesuffix(".conv.weight") for name in expected if name.endswith(".conv.weight")}):
        weight, bias, mean, variance = (arrays[f"{module}.bn.{name}"] for name in _NORM_ARRAYS)
        scale = weight / np.sqrt(variance + _BATCH_NORM_EPS)
        kernel = arrays[f"{module}.conv.weight"].transpose(2, 3, 1, 0)
        name = module.replace(".", "/")
        params[f"{name}/kernel"] = kernel * scale
        params[f"{name}/bias"] = bias - mean * scale
    return _nested({name: np.ascontiguousarray(value, np.float32) for name, value in params.items()})


def _usable(name: str, array: np.ndarray) -> bool:
    return bool(np.isfinite(array).all()) and not (name.endswith("running_var") and (array < 0).any())


def _refuse(source: str, what: str, names: Iterable[Any]) -> None:
    """Raises an error that names the first of ``names``, if there are any."""
    names = sorted(map(str, names))
    if names:
        raise UserError(
            f"{source} {what} {len(names)} arrays: {name_first(names)}; give the weights of FID's Inception network"
        )


@functools.cache
def _our_shapes() -> dict[str, Shape]:
    """Shapes of the network's parameters, by names such as ``Mixed_5b/branch1x1/kernel``."""
    image = jnp.zeros((1, INPUT_SIZE, INPUT_SIZE, 3))
    params = jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
    return {name: leaf.shape for name, leaf in _flat(params).items()}


def inception_state_shapes() -> dict[str, Shape]:
    """Shapes of the arrays of the published file, by PyTorch's names, e.g. ``Mixed_5b.branch1x1.bn.weight``."""
    shapes: dict[str, Shape] = {}
    for name, shape in _our_shapes().items():
        if len(shape) == 4:
            module = name.removesuffix("/kernel").replace("/", ".")
            height, width, inputs, outputs = shape
            shapes[f"{module}.conv.weight"] = (outputs, inputs, height, width)
            shapes.update({f"{module}.bn.{array}": (outputs,) for array in _NORM_ARRAYS})
    inputs, outputs = _our_shapes()["fc/kernel"]
    return {**shapes, "fc.weight": (outputs, inputs), "fc.bias": (outputs,)}


def _flat(params: Any) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(params, sep="/"))


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(flat, sep="/")


# --- files --------------------------------------------------------------------------------------


def _convert(file: pathlib.Path, sha256: str) -> InceptionWeights:
    """Reads a PyTorch file and keeps the result for the next time."""
    params = convert_state(read_torch_file(file), str(file))
    # What cannot be kept is converted again.
    with contextlib.suppress(UserError):
        save_arrays(_kept_path(sha256), _flat(params))
    return InceptionWeights(params, sha256)


def _kept_path(sha256: str) -> pathlib.Path:
    return cache_dir(PUBLISHED.folder) / f"{sha256}.npz"


def _read_kept(sha256: str) -> dict[str, Any] | None:
    """Reads converted parameters of the file with that hash; None if there are none, or damaged ones."""
    try:
        flat = load_arrays(_kept_path(sha256))
    except UserError:
        return None
    if {name: array.shape for name, array in flat.items()} != _our_shapes():
        return None
    return _nested(flat)
