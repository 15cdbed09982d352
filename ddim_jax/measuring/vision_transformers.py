"""The extractors ``dinov2`` and ``clip``: Vision Transformers that were trained without classes.

Inception tells the classes of ImageNet apart, and people do not look at pictures so. Stein et al. (2023, "Exposing
flaws of generative model evaluation metrics") find that distances among DINOv2's features agree with people's judgement
best; Jayasumana et al. (2024, "Rethinking FID") take CLIP's, and another distance, CMMD.

A figure depends on how images are prepared. Here it is as those papers' code does it:

- ``dinov2``, ``dinov2_vitb14``, ``dinov2_vits14`` as dgm-eval: made 224x224 by Pillow's bicubic filter, which shrinks
  without aliasing and rounds to 8 bits, then ImageNet's mean and deviation of colours. The features are DINOv2's first
  token as it is. (dgm-eval's ``--clean_resize`` does not round. torch-fidelity has another protocol, bilinear as
  TensorFlow 1, and so other figures, by a fifth in one trial with random weights: never compare the two.)
- ``clip``, ``clip_vitb32`` as CMMD: the largest square in the middle, made 336x336 (224x224) by the same filter, then
  CLIP's own mean and deviation of colours. The features are its embedding, scaled to length 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddim_jax import names
from ddim_jax.measuring.extractor import Extractor, FeatureProgram, Features
from ddim_jax.measuring.resize import resize_as_pillow
from ddim_jax.models.vision_transformer import VisionTransformer
from ddim_jax.pixels import Normalization, to_pictures
from ddim_jax.weights.vision_transformers import TRANSFORMERS, TransformerWeights, transformer_variables


class Protocol(NamedTuple):
    """How images are prepared for a network, and what is made of its features.

    Attributes:
        name: the code that does so.
        mean: of the colours that the network was trained with, for pixels in [0, 1].
        deviation: of them.
        is_cropped: whether the square in the middle is seen; otherwise all of it, made square.
        has_length_1: whether features are divided by their length.
    """

    name: str
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    is_cropped: bool
    has_length_1: bool


DGM_EVAL = Protocol("dgm-eval", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), is_cropped=False, has_length_1=False)
CMMD = Protocol(
    "cmmd",
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
    is_cropped=True,
    has_length_1=True,
)

PROTOCOLS: dict[str, Protocol] = {
    "dinov2": DGM_EVAL,
    "dinov2_vitb14": DGM_EVAL,
    "dinov2_vits14": DGM_EVAL,
    "clip": CMMD,
    "clip_vitb32": CMMD,
}


def transformer_extractor(
    name: str,
    path: str,
    batch_size: int,
    normalization: Normalization = Normalization(),  # noqa: B008 - immutable
    channels: tuple[int, ...] | None = None,
) -> Extractor:
    """Makes one of the extractors.

    Args:
        name: of :data:`PROTOCOLS`.
        path: file of its weights; the published ones when empty.
        batch_size: images per device at a time.
        normalization: of the images, which are shown to the network as pictures for people are made of them where they
            are not of 8 bits.
        channels: that such pictures show; None where the images are pictures already.

    Raises:
        UserError: there is none of that name, or the weights cannot be had.
    """
    protocol = names.lookup(PROTOCOLS, name, "extractor")
    weights = transformer_variables(name, path)
    extractor = extractor_of(name, TRANSFORMERS[name].network, weights, protocol, batch_size)
    if channels is None:
        return extractor
    return extractor.of_pictures(normalization, lambda images: to_pictures(images, normalization, channels), channels)


def extractor_of(
    name: str, network: VisionTransformer, weights: TransformerWeights, protocol: Protocol, batch_size: int
) -> Extractor:
    """Makes an extractor of any network and protocol.

    Args:
        name: what its figures are called by.
        network: without parameters.
        weights: its parameters.
        protocol: how images are prepared.
        batch_size: images per device at a time.
    """

    def function(params: Any, images: jax.Array) -> Features:
        features: Any = network.apply({"params": params}, prepared(images, network.side, protocol))
        if protocol.has_length_1:
            features = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
        return Features(features)

    provenance = {
        "name": name,
        "protocol": protocol.name,
        "side": network.side,
        "weights_sha256": weights.sha256,
    }
    program = FeatureProgram(function, weights.params, batch_size)
    return Extractor(name, provenance, program, network.num_features)


def prepared(images: jax.Array, side: int, protocol: Protocol) -> jax.Array:
    """Makes of images what a network gets, see the module's text.

    Args:
        images: uint8 [n, h, w, 1 or 3].
        side: of the network's images.
        protocol: what is done.

    Returns:
        float32 [n, side, side, 3].
    """
    if protocol.is_cropped:
        height, width = images.shape[1:3]
        least = min(height, width)
        top, left = (height - least) // 2, (width - least) // 2
        images = images[:, top : top + least, left : left + least]
    pixels = resize_as_pillow(images, side) / 255
    return (pixels - jnp.asarray(protocol.mean)) / jnp.asarray(protocol.deviation)
