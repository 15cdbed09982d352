"""Weights of LPIPS on VGG16, from the state dict of the ``lpips`` package's network, or torch-fidelity's.

::

    import lpips, torch
    torch.save(lpips.LPIPS(net="vgg").state_dict(), "lpips-vgg.pth")

Both packages put them together from two published files: VGG16's and the weights of its channels.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddim_jax.errors import UserError
from ddim_jax.files import MOST_BYTES, check_kind
from ddim_jax.models.lpips import WIDTHS
from ddim_jax.weights.download import sha256_of_file
from ddim_jax.weights.shapes import array_shapes, name_first
from ddim_jax.weights.torch_file import read_torch_file

_KEY = "eval.lpips_path"

# What says the same twice, or what the network has built in.
_PASSED_OVER = ("lins.", "scaling_layer.")


class LpipsWeights(NamedTuple):
    """Parameters of :class:`~ddim_jax.models.lpips.Lpips`, and where they came from.

    Attributes:
        params: tree of float32 NumPy arrays.
        sha256: hash of the file that they were read from, in hexadecimal.
    """

    params: dict[str, Any]
    sha256: str


def lpips_variables(path: str) -> LpipsWeights:
    """Reads the network's parameters.

    Args:
        path: ``eval.lpips_path``, see the module's text.

    Raises:
        UserError: the file cannot be read, or does not hold that network.
    """
    file = pathlib.Path(os.path.expanduser(path))
    if not file.is_file():
        raise UserError(f"{_KEY}={path!r} does not exist; name a file of LPIPS's weights")
    check_kind(file, MOST_BYTES)
    return LpipsWeights(convert_state(read_torch_file(file), str(file)), sha256_of_file(file))


def convert_state(state: Any, source: str) -> dict[str, Any]:
    """Turns a state dict into our parameters.

    Args:
        state: arrays by PyTorch's names, e.g. ``net.slice1.0.weight`` [out, in, 3, 3] and ``lin0.model.1.weight``.
        source: name of the file in messages.

    Raises:
        UserError: arrays are missing, left over, of another shape, or not finite.
    """
    if not isinstance(state, Mapping):
        raise UserError(f"{_KEY}: {source} does not hold arrays by name: give the state dict of LPIPS with VGG16")
    found = {name: value for name, value in state.items() if not str(name).startswith(_PASSED_OVER)}
    expected = lpips_state_shapes()
    shapes = array_shapes(found)
    wrong = sorted(str(name) for name in expected.keys() | found.keys() if expected.get(name) != shapes.get(name))
    wrong = wrong or [name for name in expected if not np.isfinite(found[name]).all()]
    if wrong:
        raise UserError(
            f"{_KEY}: {source} does not hold LPIPS with VGG16: missing, left over, not finite or of another shape are "
            f"{name_first(wrong)}; save lpips.LPIPS(net='vgg').state_dict()"
        )
    arrays = {name: np.asarray(found[name], np.float32) for name in expected}
    params: dict[str, Any] = {}
    for block, places in enumerate(_modules()):
        for place, module in enumerate(places):
            kernel = arrays[f"{module}.weight"].transpose(2, 3, 1, 0)
            params[f"conv_{block}_{place}"] = {
                "kernel": np.ascontiguousarray(kernel),
                "bias": arrays[f"{module}.bias"],
            }
        params[f"weights_{block}"] = arrays[_weights_name(block)].reshape(-1)
    return params


def lpips_state_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a file, by PyTorch's names."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for block, (widths, modules) in enumerate(zip(WIDTHS, _modules(), strict=True)):
        for width, module in zip(widths, modules, strict=True):
            shapes |= {f"{module}.weight": (width, inputs, 3, 3), f"{module}.bias": (width,)}
            inputs = width
        shapes[_weights_name(block)] = (1, inputs, 1, 1)
    return shapes


def _modules() -> list[list[str]]:
    """PyTorch's names of the convolutions, by block: they count ReLUs and poolings too."""
    names, place = [], 0
    for block, widths in enumerate(WIDTHS):
        place += bool(block)
        names.append([f"net.slice{block + 1}.{place + 2 * i}" for i in range(len(widths))])
        place += 2 * len(widths)
    return names


def _weights_name(block: int) -> str:
    return f"lin{block}.model.1.weight"
