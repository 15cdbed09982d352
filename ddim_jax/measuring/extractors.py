"""The extractors that ``eval.extractor`` names: what images are compared by.

- ``inception``: the features that FID, KID and Inception Score are defined by.
- ``dinov2`` and ``clip``, each in several sizes: those of newer networks, see ``vision_transformers.py``.
- ``pixels``: the pixels themselves, where no trained network is at hand or wanted.
- ``pixels_pca``: their principal components, where there are too many pixels for a covariance.
- ``classifier``: the features of a small network trained on the data set itself, see ``classifier.py``.

These see 8-bit pictures of 1 or 3 channels: of other data those that people are shown (``configured.pictures``).
The last three see all values of the data, whatever their type and channels, scaled from the data's range to [0, 1].
They are for trying things out and for data that Inception knows nothing of. Their figures compare with each
other alone, and are never called FID, IS or KID.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from ddim_jax import names
from ddim_jax.config import Config
from ddim_jax.configured import build_normalization
from ddim_jax.errors import UserError
from ddim_jax.measuring.classifier import classifier_for
from ddim_jax.measuring.extractor import Extractor, FeatureProgram, Features
from ddim_jax.measuring.image_sets import ImageSet, spread_indices
from ddim_jax.measuring.reference import reference_images
from ddim_jax.measuring.resize import resize
from ddim_jax.measuring.vision_transformers import PROTOCOLS, transformer_extractor
from ddim_jax.models.inception import NUM_FEATURES, NUM_LOGITS, Inception
from ddim_jax.names import ResizeProtocol
from ddim_jax.pixels import Normalization, scaled, to_pictures
from ddim_jax.weights.inception import inception_variables
from ddim_jax.writers import say

_SPATIAL_BLOCK, _SPATIAL_CHANNELS = "Mixed_6d", 7

# A covariance of so many pixels takes 128 MiB; the distance between two takes a minute.
_MOST_PIXELS = 4096

# Images that principal components are found from: enough for some hundreds of them.
_COMPONENT_IMAGES = 2048

# Of the sum of all squares: what rounding can make of no variance.
_NO_VARIANCE = 1e-12


def inception_extractor(
    path: str,
    protocol: ResizeProtocol,
    batch_size: int,
    spatial: bool = False,
    normalization: Normalization = Normalization(),  # noqa: B008 - immutable
    channels: tuple[int, ...] | None = None,
) -> Extractor:
    """Makes the network of FID: pool3 as features, logits without bias for the Inception score.

    Args:
        path: file of its weights; the published ones when empty.
        protocol: how images become 299x299, see ``resize.py``; part of every figure.
        batch_size: images per device at a time.
        spatial: have spatial features too.
        normalization: of the images, which are shown to the network as pictures for people are made of them where they
            are not of 8 bits.
        channels: that such pictures show; None where the images are pictures already.

    Raises:
        UserError: the weights cannot be had.
    """
    weights = inception_variables(path)
    network = Inception()

    def function(params: Any, images: jax.Array) -> Features:
        # The network asks for the highest precision itself. What is not used of the block's output is not computed.
        found: Any
        found, inside = network.apply(
            {"params": params},
            resize(images, protocol),
            capture_intermediates=lambda module, _: module.name == _SPATIAL_BLOCK,
            mutable=["intermediates"],
        )
        return Features(found.pool3, found.logits_unbiased, _spatial_features(inside) if spatial else None)

    name = f"inception-{protocol}"
    provenance: dict[str, Any] = {
        "name": name,
        "protocol": protocol,
        "weights_sha256": weights.sha256,
        "logits": "without bias",
    }
    program = FeatureProgram(function, weights.params, batch_size)
    extractor = Extractor("inception", provenance, program, NUM_FEATURES, NUM_LOGITS, spatial)
    if channels is None:
        return extractor
    return extractor.of_pictures(normalization, lambda images: to_pictures(images, normalization, channels), channels)


def _inception_for(config: Config, spatial: bool) -> Extractor:
    """Makes Inception for images of any type: it sees what people see of them."""
    settings = config.eval
    return inception_extractor(
        settings.inception_path, settings.resize, settings.batch_size, spatial, build_normalization(config),
        _shown_channels(config, "Inception"),
    )  # fmt: skip


def _transformer_for(config: Config, spatial: bool) -> Extractor:
    """Makes DINOv2 or CLIP for images of any type likewise."""
    del spatial
    settings = config.eval
    return transformer_extractor(
        settings.extractor, settings.extractor_path, settings.batch_size, build_normalization(config),
        _shown_channels(config, settings.extractor),
    )  # fmt: skip


def _shown_channels(config: Config, network: str) -> tuple[int, ...] | None:
    """Returns the channels that pictures of the data show to a network; None where they are such pictures already."""
    data = config.data
    if build_normalization(config).is_plain and data.channels in (1, 3) and not data.shown_channels:
        return None
    say(
        f"{network} sees pictures of images of {data.channels} channels and data.dtype={data.dtype}, 8-bit grey or "
        "colours as grids show them (data.range, data.shown_channels); for all of their values, use "
        "eval.extractor=pixels, pixels_pca or classifier"
    )
    return data.shown_channels


def _spatial_features(inside: Any) -> jax.Array:
    """Returns what ADM's evaluator compares by sFID (Nash et al. 2021): [n, 2023].

    The graph's tensor ``mixed_6/conv:0`` is that of the 1x1 convolution of the block ``Mixed_6d``, after batch norm and
    relu (what precedes those is called ``mixed_6/conv/Conv2D``). It is the first part of the block's output.
    """
    (block,) = inside["intermediates"][_SPATIAL_BLOCK]["__call__"]
    return block[..., :_SPATIAL_CHANNELS].reshape(len(block), -1)


def pixels_extractor(
    shape: tuple[int, int, int],
    batch_size: int,
    normalization: Normalization = Normalization(),  # noqa: B008 - immutable
) -> Extractor:
    """Takes the pixels in [0, 1] as features.

    Args:
        shape: [h, w, c] of the images.
        batch_size: images per device at a time.
        normalization: says which values are pixels 0 and 1.

    Raises:
        UserError: more than 4,096 values.
    """
    dimension = int(np.prod(shape))
    if dimension > _MOST_PIXELS:
        raise UserError(
            f"eval.extractor=pixels: images of {dimension:,} values are too large for a covariance (at most "
            f"{_MOST_PIXELS:,}); use pixels_pca"
        )

    def function(variables: Any, images: jax.Array) -> Features:
        del variables
        return Features(_flat_pixels(images, normalization))

    program = FeatureProgram(function, (), batch_size)
    provenance = {"name": "pixels", "shape": list(shape), **normalization.facts}
    return Extractor("pixels", provenance, program, dimension, shape=shape, dtype=normalization.dtype)


def components_extractor(
    images: ImageSet,
    shape: tuple[int, int, int],
    components: int,
    batch_size: int,
    normalization: Normalization = Normalization(),  # noqa: B008 - immutable
) -> Extractor:
    """Takes the principal components of some images as features: those directions in which they differ most.

    Args:
        images: what they are found from, by 2,048 of these at most, evenly spread.
        shape: [h, w, c] of the images.
        components: number of components.
        batch_size: images per device at a time.
        normalization: says which values are pixels 0 and 1.

    Raises:
        UserError: the images cannot be read, have another shape, or not so many components.
    """
    found = images.load(spread_indices(len(images), _COMPONENT_IMAGES)).image
    if found.shape[1:] != shape:
        raise UserError(
            f"images of {images.name} have shape {list(found.shape[1:])}, not {list(shape)}: set data.image_size and "
            "data.channels"
        )
    values = found
    if not normalization.is_plain:
        values = 255 * scaled(found.astype(np.float64), normalization)
    mean, basis = principal_components(values.reshape(len(found), -1), components)

    def function(variables: Any, images: jax.Array) -> Features:
        mean, basis = variables
        return Features(
            jnp.matmul(_flat_pixels(images, normalization) - mean, basis, precision=jax.lax.Precision.HIGHEST)
        )

    name = f"pixels_pca-{components}"
    provenance = {
        "name": name,
        "shape": list(shape),
        **normalization.facts,
        # Components that are computed twice may differ in their last digits, the images that decide them do not.
        "images_sha256": hashlib.sha256(found.tobytes()).hexdigest(),
    }
    program = FeatureProgram(function, (mean.astype(np.float32), basis.astype(np.float32)), batch_size)
    return Extractor("pixels_pca", provenance, program, components, shape=shape, dtype=normalization.dtype)


def principal_components(pixels: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and principal components of images, for pixels in [0, 1].

    With X [n, d] the centred pixels, each eigenvector u of X X' [n, n] gives an eigenvector X' u of the covariance
    X' X / n [d, d], which may be far larger. Products of uint8 values are whole numbers, and float64 holds their sums
    exactly.

    Args:
        pixels: uint8 [n, d], or floats in [0, 255].
        components: number of components k.

    Returns:
        Mean float64 [d] and components float64 [d, k], the greatest variance first; each has length 1, and a sign by
        which its largest value is positive.

    Raises:
        UserError: the images have fewer components.
    """
    num = len(pixels)
    products = np.zeros((num, num))
    for columns in _column_blocks(pixels):
        products += columns @ columns.T
    row_means = products.mean(axis=1)
    centred = products - row_means[:, None] - row_means + row_means.mean()
    asked = min(components, num)
    variances, vectors = scipy.linalg.eigh(centred, subset_by_index=(num - asked, num - 1))
    # LAPACK has the smallest first.
    variances, vectors = variances[::-1], vectors[:, ::-1]
    rank = int(np.count_nonzero(variances > _NO_VARIANCE * products.trace()))
    if rank < components:
        raise UserError(
            f"eval.components={components}: {num:,} images have {rank} principal components; ask for no more"
        )
    mean = np.concatenate([columns.mean(axis=0) for columns in _column_blocks(pixels)])
    basis = np.concatenate([(columns - columns.mean(axis=0)).T @ vectors for columns in _column_blocks(pixels)])
    basis /= np.linalg.norm(basis, axis=0)
    largest = np.argmax(np.abs(basis), axis=0)
    return mean / 255, basis * np.sign(basis[largest, np.arange(components)])


def _column_blocks(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Yields all images as float64, some pixels at a time: all at once could be gigabytes."""
    for start in range(0, pixels.shape[1], _MOST_PIXELS):
        yield pixels[:, start : start + _MOST_PIXELS].astype(np.float64)


def _flat_pixels(images: jax.Array, normalization: Normalization) -> jax.Array:
    """Returns images [n, h, w, c] as float32 [n, h w c] in [0, 1]."""
    return scaled(images.astype(jnp.float32), normalization).reshape(len(images), -1)


# By ``eval.extractor``: functions of the config and of whether Inception's spatial features are wanted.
EXTRACTORS: dict[str, Callable[[Config, bool], Extractor]] = {
    "inception": _inception_for,
    **dict.fromkeys(PROTOCOLS, _transformer_for),
    "pixels": lambda config, spatial: pixels_extractor(
        config.data.image_shape, config.eval.batch_size, build_normalization(config)
    ),
    "pixels_pca": lambda config, spatial: components_extractor(
        reference_images(config),
        config.data.image_shape,
        config.eval.components,
        config.eval.batch_size,
        build_normalization(config),
    ),
    "classifier": lambda config, spatial: classifier_for(
        config.data, config.eval.batch_size, build_normalization(config)
    ),
}


def make_extractor(config: Config, spatial: bool = False) -> Extractor:
    """Builds the extractor that ``config.eval`` names.

    Args:
        config: ``eval`` says which; ``data`` which images a classifier is trained on, and their size.
        spatial: have Inception's spatial features too.

    Raises:
        UserError: there is none of that name, weights or images that it needs cannot be had, or it does not suit the
            images.
    """
    return names.lookup(EXTRACTORS, config.eval.extractor, "extractor")(config, spatial)
