"""What images are compared with: statistics of real images, and where they come from.

A figure is only as good as its reference: other images, another split, crop, resize or number of images, and the same
model has another FID. So statistics carry their *provenance*, and those that contradict what they would be used for are
refused.
"""

import contextlib
import hashlib
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.cache import cache_dir, is_trusted
from ddim_jax.config import Config, EvalConfig
from ddim_jax.digests import digest_of_facts
from ddim_jax.errors import UserError
from ddim_jax.measuring.extractor import Extractor
from ddim_jax.measuring.feature_sums import FeatureSums
from ddim_jax.measuring.figures import chosen_metrics
from ddim_jax.measuring.image_sets import ImageSet, open_image_set, spread_indices
from ddim_jax.measuring.reference_file import Reference, is_statistics, read_reference, write_reference
from ddim_jax.npz import load_arrays, load_if_whole, save_arrays
from ddim_jax.version import __version__
from ddim_jax.writers import progress, say

# How much of a killed program's work may be lost.
_SAVE_EVERY_SECONDS = 60

_UNKNOWN = "data set, split, number of images, crop, resize, and the protocol and weights of the network"


def reference_for(config: Config, extractor: Extractor) -> Reference:
    """Returns the reference that ``config.eval`` names; statistics of images are computed once and kept in the cache.

    Args:
        config: ``eval.reference``, or the training images.
        extractor: whose features are compared.

    Raises:
        UserError: it cannot be read, or its statistics are of another extractor.
    """
    settings = config.eval
    if has_statistics(settings):
        reference = read_reference(settings.reference)
        check_provenance(reference, extractor, settings.reference)
    else:
        images = reference_images(config)
        provenance = reference_provenance(images, extractor, settings)
        file = f"{reference_name(provenance)}-{provenance_digest(provenance)[:12]}.npz"
        kept = epath.Path(cache_dir("reference")) / file
        reference = _kept_reference(kept)
        if reference is not None and ("left_out" not in reference.provenance or config.data.on_error == "skip"):
            return reference
        parts = kept.with_suffix(".parts")
        reference = measure_reference(images, extractor, settings, parts)
        write_reference(kept, reference)
        remove_parts(parts)
    left_out = [word for metric in chosen_metrics(settings) if metric.needs_single_images for word in metric.words]
    if reference.features is None and left_out:
        *others, last = left_out
        words = f"{', '.join(others)} or {last}" if others else last
        say(f"warning: {settings.reference} has no features of single images: no {words}")
    return reference


def has_statistics(settings: EvalConfig) -> bool:
    """Whether ``eval.reference`` names statistics, and not images.

    Raises:
        UserError: it is neither.
    """
    path = settings.reference
    if not path:
        return False
    if not epath.Path(path).expanduser().exists():
        raise UserError(f"eval.reference={path!r} does not exist; name a folder, or an .npz of images or statistics")
    try:
        return is_statistics(path)
    except UserError as error:
        raise UserError(f"eval.reference: {error}") from error


def _kept_reference(path: epath.Path) -> Reference | None:
    """Reads statistics from the cache; None if there are none, or a file that a full or failing disk has spoilt."""
    if not path.exists() or not is_trusted(path.parent):
        return None
    try:
        return read_reference(path)
    except UserError as error:
        say(f"{error}; these statistics are measured anew")
        return None


def reference_images(config: Config) -> ImageSet:
    """Opens the images that ``config.eval`` compares with: a folder, an ``.npz``, or the data set.

    Where statistics are given, whose images are not at hand, these are the data set's.
    """
    path = "" if has_statistics(config.eval) else config.eval.reference
    return open_image_set(path, config.data, config.eval.reference_split, "eval.reference")


def reference_provenance(images: ImageSet, extractor: Extractor, settings: EvalConfig) -> dict[str, Any]:
    """Says how statistics are made, as JSON's types.

    Returns:
        ``images`` (their identity: data set or files, split, crop, resize, size, decoder), ``name``, ``count``,
        ``features_kept``, ``extractor`` (its provenance) and the version of ``ddim_jax``. Where ``data.on_error=skip``
        has left out some of the ``count`` images, :func:`measure_reference` adds how many: ``left_out``.
    """
    count = min(settings.reference_num or len(images), len(images))
    return {
        "name": images.name,
        "images": images.identity,
        "count": count,
        "features_kept": min(settings.features_kept, count),
        "extractor": extractor.provenance,
        "ddim_jax": __version__,
    }


def reference_name(provenance: Mapping[str, Any]) -> str:
    """Returns a name for a file: which images, how many, and by what they are compared.

    >>> reference_name({"name": "cifar10-train[:90%]", "count": 45000, "extractor": {"name": "inception-tf1"}})
    'cifar10-train-to90%-45000-inception-tf1'
    """
    name = f"{provenance['name']}-{provenance['count']}-{provenance['extractor']['name']}"
    return re.sub(r"[^\w.%+-]+", "_", name.replace("[", "-").replace(":", "to").replace("]", ""))


def same_provenance(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Returns whether both describe the same statistics; by which version they were made does not matter."""
    return provenance_digest(a) == provenance_digest(b)


def values_of(reference: Reference) -> dict[str, str]:
    """Says what statistics are of a file that does not say so itself: the numbers do."""
    values = reference.mean.tobytes() + reference.covariance.tobytes()
    return {"values_sha256": hashlib.sha256(values).hexdigest()}


def provenance_digest(provenance: Mapping[str, Any]) -> str:
    """Returns a hash of all that was known before the images were read."""
    return digest_of_facts({key: value for key, value in provenance.items() if key not in ("ddim_jax", "left_out")})


# --- from images --------------------------------------------------------------------------------


def measure_reference(
    images: ImageSet, extractor: Extractor, settings: EvalConfig, parts: epath.Path, together: bool = False
) -> Reference:
    """Computes statistics, going on from where a killed program stopped.

    Args:
        images: the images; ``eval.reference_num`` of them, evenly spread.
        extractor: whose features.
        settings: ``reference_num`` and ``features_kept``.
        parts: folder for the sums so far; to be removed by :func:`remove_parts` once the result is kept. Its name must
            stand for all that decides the result.
        together: each process takes its share of the images, and ``parts`` is a folder that all of them see. Otherwise
            each process computes everything.

    Raises:
        UserError: images that cannot be read, or fewer than 2.
    """
    process, count = (parallel.process_index(), parallel.process_count()) if together else (0, 1)
    chosen = spread_indices(len(images), settings.reference_num or len(images))
    own = parts / f"{process}-of-{count}.npz"
    sums = FeatureSums.empty(extractor, len(chosen), settings, ("moments", "spatial"))
    saved_sums = load_if_whole(own)
    if saved_sums is not None and sums.fit(saved_sums):
        sums = FeatureSums.from_arrays(saved_sums)
    share = np.arange(process, len(chosen), count)
    todo = share[~sums.seen[share]]
    bar = progress(len(share), f"measuring {images.name}", "image", len(share) - len(todo), parallel.is_main_process())
    saved = time.monotonic()
    with bar:
        for loaded in images.batches(chosen[todo], extractor.images_per_call):
            sums.add(np.searchsorted(chosen, loaded.index), extractor(loaded.image))
            bar.update(len(loaded.index))
            if time.monotonic() - saved > _SAVE_EVERY_SECONDS:
                save_arrays(own, sums.to_arrays())
                saved = time.monotonic()
    if count > 1:
        sums = _merged(sums, parts, process, count)
    sums.finish()
    provenance = reference_provenance(images, extractor, settings)
    if len(sums.missing):
        provenance["left_out"] = len(sums.missing)
    spatial = sums.sums["spatial"].gaussian() if "spatial" in sums.sums else None
    moments = sums.sums["moments"]
    return Reference(moments.mean, moments.covariance, moments.count, sums.kept_features, provenance, spatial)


def remove_parts(parts: epath.Path) -> None:
    """Removes what :func:`measure_reference` has put there."""
    # Another program may be measuring the same images: what it puts there is its own to remove.
    with contextlib.suppress(OSError):
        parts.rmtree(missing_ok=True)


def _merged(sums: FeatureSums, parts: epath.Path, process: int, count: int) -> FeatureSums:
    """Returns the sums of all processes, merged by each in the same order."""
    save_arrays(parts / f"{process}-of-{count}.npz", sums.to_arrays())
    parallel.barrier("features measured")
    merged = FeatureSums.from_arrays(load_arrays(parts / f"0-of-{count}.npz"))
    for other in range(1, count):
        merged.merge(FeatureSums.from_arrays(load_arrays(parts / f"{other}-of-{count}.npz")))
    parallel.barrier("features merged")
    return merged


# --- whether they fit ---------------------------------------------------------------------------


def check_provenance(reference: Reference, extractor: Extractor, path: epath.PathLike) -> None:
    """Refuses statistics of another extractor, and warns of those that do not say what they are.

    Raises:
        UserError: the name, dimension, protocol, weights or whatever else is not that of ``extractor``.
    """
    found = reference.provenance.get("extractor")
    if found is not None:
        keys = sorted(found.keys() | extractor.provenance.keys())
        changed = [key for key in keys if found.get(key) != extractor.provenance.get(key)]
        if changed:
            listed = ", ".join(f"{key} {found.get(key)!r} and not {extractor.provenance.get(key)!r}" for key in changed)
            raise UserError(
                f"{path} cannot be compared with extractor '{extractor.name}': it was made with {listed}; make it anew "
                "with --mode=stats"
            )
    if len(reference.mean) != extractor.dimension:
        raise UserError(
            f"{path} has {len(reference.mean)} features, but extractor '{extractor.name}' has {extractor.dimension}; "
            "make it anew with --mode=stats"
        )
    if found is None:
        if extractor.prefix != "inception":
            raise UserError(
                f"{path} does not say what it is, so it can only be statistics of Inception; set "
                "eval.extractor=inception, or make it with --mode=stats"
            )
        say(
            f"warning: {path} does not say how it was made; unknown are {_UNKNOWN}. A figure is only right if they "
            "agree with this run's"
        )
