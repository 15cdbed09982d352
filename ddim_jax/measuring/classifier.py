"""A classifier trained on the data set itself: what can be said of images that Inception knows nothing of.

A tenth of the images is held out, and the share of them that is classified rightly is part of every figure's
provenance. Training depends on the images alone (its seed is fixed), and the result is kept in the cache.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import traverse_util

from ddim_jax import parallel
from ddim_jax.cache import cache_dir, is_trusted
from ddim_jax.config import DataConfig
from ddim_jax.data.prepared import open_images
from ddim_jax.data.reading import Images, load_images
from ddim_jax.data.sources import Source
from ddim_jax.digests import digest_of_arrays, digest_of_facts
from ddim_jax.errors import UserError
from ddim_jax.measuring.extractor import Extractor, FeatureProgram, Features
from ddim_jax.measuring.image_sets import spread_indices
from ddim_jax.models.classifier import NUM_FEATURES, Classifier
from ddim_jax.npz import load_arrays, load_if_whole, save_arrays
from ddim_jax.pixels import Normalization, scaled
from ddim_jax.random_streams import PRNG_IMPL
from ddim_jax.records import RecordError, parse_object
from ddim_jax.writers import progress, say

_SEED = 2020

# More images would teach a network of this size little.
_MOST_IMAGES = 50_000

_BATCH_SIZE = 32
_EPOCHS = 8
_FEWEST_STEPS = 2000
_LEARNING_RATE = 2e-3

# Part of the key of the cache: change it with the network or its training.
_RECIPE = "1"


class ClassifierExtractor(Extractor):
    """The trained network as an extractor: its last layer but one as features, and its logits."""

    @property
    def accuracy(self) -> float:
        """The share of the held-out images that is classified rightly."""
        return self.provenance["held_out_accuracy"]

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.num_logits


def classifier_extractor(
    params: Any,
    provenance: dict[str, Any],
    num_classes: int,
    shape: tuple[int, int, int],
    batch_size: int,
    normalization: Normalization = Normalization(),  # noqa: B008 - immutable
) -> ClassifierExtractor:
    """Makes an extractor of a trained network.

    Args:
        params: of :class:`~ddim_jax.models.classifier.Classifier`.
        provenance: what it was trained on, with ``held_out_accuracy``.
        num_classes: number of classes.
        shape: [h, w, c] of the images.
        batch_size: images per device at a time.
        normalization: says which values are pixels 0 and 1.
    """
    network = Classifier(num_classes)

    def function(params: Any, images: jax.Array) -> Features:
        output: Any = network.apply({"params": params}, _to_float(images, normalization))
        return Features(output.features, output.logits)

    program = FeatureProgram(function, params, batch_size)
    return ClassifierExtractor(
        "classifier", provenance, program, NUM_FEATURES, num_classes, shape=shape, dtype=normalization.dtype
    )


def classifier_for(
    data: DataConfig,
    batch_size: int = 64,
    normalization: Normalization = Normalization(),  # noqa: B008 - immutable
) -> ClassifierExtractor:
    """Returns the classifier of a data set, trained now or before.

    Args:
        data: the images, with labels.
        batch_size: images per device at a time, when it is used.
        normalization: of the images.

    Raises:
        UserError: the images have no labels, or only one class, or cannot be read.
    """
    source = open_images(data)
    if source.num_classes < 2:
        has = "one class only" if source.num_classes else "no labels"
        raise UserError(
            f"eval.extractor=classifier: {source.name} has {has}, from which no classifier can learn; use a data set "
            "with classes, or eval.extractor=pixels_pca"
        )
    about = {
        "name": "classifier",
        "recipe": _RECIPE,
        "data": source.identity(),
        **{key: getattr(data, key) for key in ("split", "crop", "resize", "image_size", "channels")},
        **normalization.facts,
    }
    kept = epath.Path(cache_dir("classifiers")) / f"{source.name}-{digest_of_facts(about)[:12]}.npz"
    arrays = load_if_whole(kept) if is_trusted(kept.parent) else None
    provenance = None if arrays is None else _provenance(arrays)
    if arrays is None or provenance is None:
        params, accuracy = _train(source, data, normalization)
        flat = traverse_util.flatten_dict(params, sep="/")
        provenance = {**about, "held_out_accuracy": accuracy}
        save_arrays(kept, {"provenance": json.dumps(provenance), **flat})
        arrays = load_arrays(kept)
    del arrays["provenance"]
    provenance["weights_sha256"] = digest_of_arrays(arrays, separator="")
    params = traverse_util.unflatten_dict(arrays, sep="/")
    return classifier_extractor(params, provenance, source.num_classes, data.image_shape, batch_size, normalization)


def _provenance(arrays: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """What a kept classifier says of itself; None where it does not, or is no classifier at all."""
    try:
        return parse_object(str(arrays["provenance"]), {"held_out_accuracy": float}) if len(arrays) > 1 else None
    except (KeyError, RecordError):
        return None


def labelled_images(source: Source, data: DataConfig) -> tuple[Images, Images]:
    """Loads the images that a classifier learns from, and the tenth of them that is held out to judge it.

    Raises:
        UserError: an image cannot be read, or there are fewer than 20.
    """
    images = load_images(source, data, spread_indices(len(source), _MOST_IMAGES), progress=True)
    num = len(images.image)
    if num < 20:
        raise UserError(f"eval.extractor=classifier: {num} images are too few to learn from; 20 are needed")
    order = _generator().permutation(num)
    learnt, held_out = order[num // 10 :], order[: num // 10]
    learnt, held_out = (jax.tree.map(lambda x, rows=rows: x[rows], images) for rows in (learnt, held_out))
    return learnt, held_out


def _train(source: Source, data: DataConfig, normalization: Normalization) -> tuple[Any, float]:
    """Returns parameters as NumPy arrays, and the accuracy on the held-out images."""
    learnt, held_out = labelled_images(source, data)
    network = Classifier(source.num_classes)
    params = network.init(jax.random.key(_SEED, impl=PRNG_IMPL), _to_float(learnt.image[:1], normalization))["params"]
    steps = max(_FEWEST_STEPS, _EPOCHS * len(learnt.image) // _BATCH_SIZE)
    optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, _LEARNING_RATE))

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        output: Any = network.apply({"params": params}, _to_float(images, normalization))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(output.logits, labels))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, images, labels), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    generator = _generator()
    show = parallel.is_main_process()
    with progress(steps, f"training a classifier of {source.name}", "step", show=show) as bar:
        for _ in range(steps):
            rows = generator.integers(len(learnt.image), size=_BATCH_SIZE)
            images = _shifted(learnt.image[rows], generator)
            params, state = step(params, state, images, learnt.label[rows])
            bar.update()
    params = jax.tree.map(np.asarray, params)
    shape = held_out.image.shape[1:]
    unjudged = {"name": "classifier", "held_out_accuracy": 0.0}
    classify = classifier_extractor(params, unjudged, source.num_classes, shape, 64, normalization)
    right = classify(held_out.image).logits.argmax(axis=1) == held_out.label
    accuracy = float(right.mean())
    say(f"the classifier of {source.name} is right on {accuracy:.2%} of {len(right):,} images that it has not seen")
    return params, accuracy


def _shifted(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Moves each image by up to a fourteenth of its side (at least a pixel) both ways; its border repeats."""
    count, height, width, _ = images.shape
    most = max(1, height // 14)
    padded = np.pad(images, [(0, 0), (most, most), (most, most), (0, 0)], mode="edge")
    top, left = generator.integers(0, 2 * most + 1, size=(2, count, 1))
    rows, columns = top + np.arange(height), left + np.arange(width)
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _to_float(images: Any, normalization: Normalization) -> jax.Array:
    values = jnp.asarray(images, jnp.float32)
    return values / 127.5 - 1 if normalization.is_plain else 2 * scaled(values, normalization) - 1


def _generator() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(_SEED))
