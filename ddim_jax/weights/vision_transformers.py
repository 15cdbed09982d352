"""Weights of the Vision Transformers that images are compared by, as published and turned into our parameters.

- DINOv2's (Oquab et al. 2023), as its authors publish them, or as Hugging Face's transformers does
  (``facebook/dinov2-large``, ``.bin`` or ``.safetensors``).
- CLIP's (Radford et al. 2021), as transformers has them (``openai/clip-vit-large-patch14-336``), with or without the
  half that reads texts. OpenAI's own files are programs, which are not read.

The file's hash belongs to every figure: other weights make another metric.
"""

import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ddim_jax.errors import UserError
from ddim_jax.models.vision_transformer import (
    CLIP_B32,
    CLIP_L14_336,
    DINOV2_B14,
    DINOV2_L14,
    DINOV2_S14,
    VisionTransformer,
)
from ddim_jax.names import lookup
from ddim_jax.weights.array_files import is_safetensors, read_safetensors
from ddim_jax.weights.download import PublishedFile, fetch, given_instead
from ddim_jax.weights.shapes import Shape, array_shapes, different_shapes, name_first
from ddim_jax.weights.torch_file import read_torch_file

_KEY = "eval.extractor_path"

# DINOv2's code enlarges by (16 + 0.1) / 37 and not 16 / 37, for fear of rounding down to 15 places. It is part of the
# network: positions are read elsewhere than they would be.
_OFFSET = 0.1

# Of the cubic kernel (Keys 1981) as PyTorch has it; Pillow's is -1/2.
_SHARPNESS = -0.75


class PublishedTransformer(NamedTuple):
    """A network, and the file that its authors published.

    Attributes:
        network: without parameters.
        file: of its weights.
    """

    network: VisionTransformer
    file: PublishedFile


class TransformerWeights(NamedTuple):
    """Parameters of a :class:`~ddim_jax.models.vision_transformer.VisionTransformer`, and where they came from.

    Attributes:
        params: tree of float32 NumPy arrays; the network is called by ``apply({"params": params}, x)``.
        sha256: hash of the file that they were read from, in hexadecimal.
    """

    params: dict[str, Any]
    sha256: str


def _published_dinov2(network: VisionTransformer, name: str, sha256: str) -> PublishedTransformer:
    file = f"{name}_pretrain.pth"
    url = f"https://dl.fbaipublicfiles.com/dinov2/{name}/{file}"
    return PublishedTransformer(network, PublishedFile("DINOv2 weights", url, sha256, "dinov2", file, _KEY))


def _published_clip(network: VisionTransformer, name: str, sha256: str) -> PublishedTransformer:
    url = f"https://huggingface.co/openai/{name}/resolve/main/pytorch_model.bin"
    return PublishedTransformer(network, PublishedFile("CLIP weights", url, sha256, "clip", f"{name}.bin", _KEY))


# By ``eval.extractor``. Without a size, that of the papers: Stein et al. 2023 and Jayasumana et al. 2024.
TRANSFORMERS: dict[str, PublishedTransformer] = {
    "dinov2": _published_dinov2(
        DINOV2_L14, "dinov2_vitl14", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"
    ),
    "dinov2_vitb14": _published_dinov2(
        DINOV2_B14, "dinov2_vitb14", "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"
    ),
    "dinov2_vits14": _published_dinov2(
        DINOV2_S14, "dinov2_vits14", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"
    ),
    "clip": _published_clip(
        CLIP_L14_336,
        "clip-vit-large-patch14-336",
        "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
    ),
    "clip_vitb32": _published_clip(
        CLIP_B32, "clip-vit-base-patch32", "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f"
    ),
}


def transformer_variables(name: str, path: str = "") -> TransformerWeights:
    """Reads a network's parameters, from the published file or from a given one.

    Args:
        name: of :data:`TRANSFORMERS`.
        path: ``eval.extractor_path``: a file of these weights, in any form named above; empty for the published one,
            which is downloaded at first use. Another file than the published is taken, with a warning: its hash tells
            its figures from others.

    Raises:
        UserError: the published file cannot be fetched or is not what was published, or the given one cannot be read
            or does not fit the network.
    """
    network, published = lookup(TRANSFORMERS, name, "network")
    if not path:
        file, sha256 = fetch(published), published.sha256
    else:
        file, sha256 = given_instead(path, published, f"file {published.name}", _KEY)
    return TransformerWeights(convert_state(_read(file), network, str(file)), sha256)


def _read(file: pathlib.Path) -> Any:
    with file.open("rb") as opened:
        start = opened.read(9)
    return read_safetensors(file).arrays if is_safetensors(start) else read_torch_file(file)


# --- names --------------------------------------------------------------------------------------


class Naming(NamedTuple):
    """What others call the parts of a network: arrays by full names, modules without ``.weight`` and ``.bias``.

    Attributes:
        first_token: array.
        positions: array.
        block: what names of a block's parts begin with, with ``{}`` for its number.
        modules: by our names, those of modules outside of blocks.
        parts: by our names, those of a block's modules; three for queries, keys and values where they are apart.
        scale: of the arrays by which a block scales what it adds, with ``{}`` for 1 or 2.
        passed_over: what names of arrays begin with that are no part of the network.
    """

    first_token: str
    positions: str
    block: str
    modules: dict[str, str]
    parts: dict[str, tuple[str, ...]]
    scale: str = ""
    passed_over: tuple[str, ...] = ()


_NAMINGS = (
    # DINOv2's own code.
    Naming(
        first_token="cls_token",
        positions="pos_embed",
        block="blocks.{}.",
        modules={"patches": "patch_embed.proj", "norm_after": "norm"},
        parts={
            "norm_attention": ("norm1",),
            "query_key_value": ("attn.qkv",),
            "attended": ("attn.proj",),
            "norm_dense": ("norm2",),
            "wide": ("mlp.fc1",),
            "narrow": ("mlp.fc2",),
        },
        scale="ls{}.gamma",
        passed_over=("mask_token",),
    ),
    # DINOv2 in transformers.
    Naming(
        first_token="embeddings.cls_token",
        positions="embeddings.position_embeddings",
        block="encoder.layer.{}.",
        modules={"patches": "embeddings.patch_embeddings.projection", "norm_after": "layernorm"},
        parts={
            "norm_attention": ("norm1",),
            "query_key_value": tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
            "attended": ("attention.output.dense",),
            "norm_dense": ("norm2",),
            "wide": ("mlp.fc1",),
            "narrow": ("mlp.fc2",),
        },
        scale="layer_scale{}.lambda1",
        passed_over=("embeddings.mask_token",),
    ),
    # CLIP in transformers.
    Naming(
        first_token="vision_model.embeddings.class_embedding",
        positions="vision_model.embeddings.position_embedding.weight",
        block="vision_model.encoder.layers.{}.",
        modules={
            "patches": "vision_model.embeddings.patch_embedding",
            "norm_before": "vision_model.pre_layrnorm",  # their spelling
            "norm_after": "vision_model.post_layernorm",
            "projection": "visual_projection",
        },
        parts={
            "norm_attention": ("layer_norm1",),
            "query_key_value": tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v")),
            "attended": ("self_attn.out_proj",),
            "norm_dense": ("layer_norm2",),
            "wide": ("mlp.fc1",),
            "narrow": ("mlp.fc2",),
        },
        passed_over=("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids"),
    ),
)


def _their_names(name: str, naming: Naming) -> tuple[str, ...]:
    """Names of the arrays that one of ours is made of, e.g. of ``block_0/wide/kernel``."""
    if name in ("first_token", "positions"):
        return (getattr(naming, name),)
    module, _, array = name.rpartition("/")
    array = "bias" if array == "bias" else "weight" if array in ("kernel", "scale") else array
    if not module.startswith("block_"):
        return (f"{naming.modules.get(module, module)}.{array}",)
    block, _, part = module.partition("/")
    start = naming.block.format(block.removeprefix("block_"))
    if not part:
        place = ("scale_attention", "scale_dense").index(array) + 1
        return (start + naming.scale.format(place),)
    return tuple(f"{start}{theirs}.{array}" for theirs in naming.parts[part])


def _their_shape(shape: Shape) -> Shape:
    """Shape of an array there: channels that come out first, and those that go in second."""
    return (*shape[:-3:-1], *shape[:-2])


# --- arrays -------------------------------------------------------------------------------------


def convert_state(state: Any, network: VisionTransformer, source: str) -> dict[str, Any]:
    """Turns a state dict, by any of the namings above, into our parameters.

    Args:
        state: arrays by name.
        network: that they are of.
        source: name of the file in messages.

    Raises:
        UserError: arrays are missing, left over, of another shape, or not finite; the message names the first five.
    """
    if not isinstance(state, Mapping):
        raise UserError(f"{_KEY}: {source} does not hold arrays by name: give a state dict")
    naming = next((naming for naming in _NAMINGS if naming.first_token in state), None)
    if naming is None:
        raise UserError(
            f"{_KEY}: {source} holds no network of DINOv2 or CLIP by names that are known; give the published file, or "
            "that of Hugging Face's transformers"
        )
    found = {name: value for name, value in state.items() if not str(name).startswith(naming.passed_over)}
    positions = found.get(naming.positions)
    if network.has_layer_scale and isinstance(positions, np.ndarray) and positions.ndim == 3 and len(positions) == 1:
        found[naming.positions] = positions_for(np.asarray(positions[0], np.float64), network.grid)[None]
    wrong = different_shapes(array_shapes(found), dict(_expected(network, naming)))
    if wrong:
        raise UserError(
            f"{_KEY}: {source} holds another network than eval.extractor names: {name_first(wrong)}; give the weights "
            "of that, or name the extractor whose they are"
        )
    broken = [name for name in found if not np.isfinite(found[name]).all()]
    if broken:
        raise UserError(f"{_KEY}: {source} has values that are not finite in {name_first(broken)}; download it again")
    flat = {name: _made(name, shape, found, naming) for name, shape in our_shapes(network).items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _made(name: str, shape: Shape, arrays: Mapping[str, Any], naming: Naming) -> np.ndarray:
    parts = [np.asarray(arrays[theirs], np.float32) for theirs in _their_names(name, naming)]
    array = np.concatenate(parts)
    if name.endswith("/kernel"):
        array = array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
    return np.ascontiguousarray(array.reshape(shape))


def _expected(network: VisionTransformer, naming: Naming) -> Iterator[tuple[str, Shape]]:
    """Yields (name, shape) of all arrays that a file has, by its naming."""
    for name, shape in our_shapes(network).items():
        theirs = _their_names(name, naming)
        if name.endswith("/kernel"):
            shape = _their_shape(shape)
        if network.has_layer_scale and name in ("first_token", "positions"):
            shape = (1, *((1, *shape) if name == "first_token" else shape))
        for one in theirs:
            yield one, (shape[0] // len(theirs), *shape[1:])


def our_shapes(network: VisionTransformer) -> dict[str, Shape]:
    """Shapes of the network's parameters, by names such as ``block_0/wide/kernel``."""
    image = jnp.zeros((1, network.side, network.side, 3))
    params = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(params, sep="/"))
    return {name: leaf.shape for name, leaf in flat.items()}


def positions_for(positions: np.ndarray, grid: int) -> np.ndarray:
    """Resizes the vectors of DINOv2's places to those of another grid, as its code does.

    Its networks learnt 37x37 of them, for images of 518 pixels; of 224 pixels there are 16x16. They are read in between
    by a cubic over four neighbours along each side, none but the nearest four, though they get fewer; beyond the border
    the outermost one is repeated. Those of as many places as there are stay as they are.

    Args:
        positions: [1 + g², width], the first of no place.
        grid: the number of places along a side.

    Returns:
        [1 + grid², width].
    """
    width = positions.shape[1]
    given = math.isqrt(max(0, len(positions) - 1))
    if given in (0, grid) or given**2 != len(positions) - 1:
        return positions
    weights = _cubic_weights(given, grid)
    plane = positions[1:].reshape(given, given, width)
    resized = np.einsum("yh,xw,hwc->yxc", weights, weights, plane, optimize=True)
    return np.concatenate([positions[:1], resized.reshape(grid**2, width)])


def _cubic_weights(length: int, size: int) -> np.ndarray:
    """Weights [size, length] by which a line becomes one of another length, see :func:`positions_for`."""
    scale = length / (size + _OFFSET)
    centres = (np.arange(size) + 0.5) * scale - 0.5
    weights = np.zeros((size, length))
    for neighbour in range(-1, 3):
        places = np.floor(centres).astype(int) + neighbour
        within = np.clip(places, 0, length - 1)
        weights[np.arange(size), within] += _cubic(np.abs(centres - places))
    return weights


def _cubic(distance: np.ndarray) -> np.ndarray:
    a = _SHARPNESS
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
