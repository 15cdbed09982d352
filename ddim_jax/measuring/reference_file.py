"""Statistics of images as a value, and as a file that other programs read and write too."""

import json
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ddim_jax.errors import UserError
from ddim_jax.measuring.training_images import TrainingImages
from ddim_jax.metrics.moments import Gaussian
from ddim_jax.names import StatisticsFormat
from ddim_jax.npz import array_names, load_arrays, save_arrays
from ddim_jax.records import RecordError, parse_object


class Reference(NamedTuple):
    """Statistics of a set of images.

    Attributes:
        mean: float64 [d], of the features.
        covariance: float64 [d, d].
        count: number n of images; None if not known.
        features: float32 [m, d] of some of the images, evenly spread, for KID, precision and recall; or None.
        provenance: how they were made, see ``reference_provenance`` in ``reference.py``; empty if not known.
        spatial: of Inception's spatial features, which ADM's sFID needs; or None.
        training: the training images themselves, for what looks for copies of them; or None. No part of a file.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None  # pyright: ignore[reportIncompatibleMethodOverride]
    features: np.ndarray | None
    provenance: dict[str, Any]
    spatial: Gaussian | None = None
    training: TrainingImages | None = None

    @property
    def gaussian(self) -> Gaussian:
        """The mean, covariance and count, as the Fréchet distance takes them."""
        return Gaussian(self.mean, self.covariance, self.count)


def is_statistics(path: epath.PathLike) -> bool:
    """Returns whether a file holds statistics, and not images.

    Raises:
        UserError: it is neither a folder nor an ``.npz``.
    """
    path = epath.Path(path)
    return not path.expanduser().is_dir() and {"mu", "sigma"} <= set(array_names(path.expanduser()))


def write_reference(path: epath.PathLike, reference: Reference, format: StatisticsFormat = "ddim_jax") -> None:
    """Writes statistics as ``.npz``.

    pytorch-fid, clean-fid and EDM read ``mu`` and ``sigma`` from it, ADM's evaluator ``mu_s`` and ``sigma_s`` too.
    Besides there are ``count``, ``features``, and ``provenance`` as JSON.

    Args:
        path: file to write.
        reference: the statistics.
        format: with ``adm`` the spatial statistics must be there.

    Raises:
        UserError: they are not, or the file cannot be written.
    """
    arrays: dict[str, Any] = {"mu": reference.mean, "sigma": reference.covariance}
    if reference.count is not None:
        arrays["count"] = np.asarray(reference.count)
    if reference.features is not None:
        arrays["features"] = reference.features
    if reference.provenance:
        arrays["provenance"] = np.asarray(json.dumps(reference.provenance))
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.covariance}
    elif format == "adm":
        raise ValueError("ADM's format needs spatial statistics: make the extractor with spatial=True")
    save_arrays(path, arrays)


def read_reference(path: epath.PathLike) -> Reference:
    """Reads statistics: ours, pytorch-fid's, EDM's or ADM's. Of the latter three nothing but moments is known.

    Raises:
        UserError: the file cannot be read, has not the form of statistics, or holds NaN or infinity.
    """
    path = epath.Path(path).expanduser()
    arrays = load_arrays(path)
    mean, covariance = arrays.get("mu"), arrays.get("sigma")
    if mean is None or covariance is None:
        raise UserError(f"{path} holds no statistics: expected arrays mu and sigma, found {', '.join(arrays)}")
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"{path}: mu {list(mean.shape)} and sigma {list(covariance.shape)} are not [d] and [d, d]")
    for name in ("mu", "sigma", "mu_s", "sigma_s", "features"):
        if name in arrays and arrays[name].dtype.kind not in "fiu":
            raise UserError(f"{path}: {name} holds no numbers; make the file anew (--mode=stats), or use another")
        if name in arrays and not np.isfinite(arrays[name]).all():
            raise UserError(f"{path}: {name} holds NaN or infinity; make the file anew (--mode=stats), or use another")
    try:
        provenance = parse_object(str(arrays["provenance"])) if "provenance" in arrays else {}
        if not isinstance(provenance.get("extractor", {}), dict):
            raise RecordError("its 'extractor' is of another type")
    except RecordError as error:
        raise UserError(f"{path}: its provenance cannot be read: {error}; make it anew with --mode=stats") from error
    spatial = Gaussian(arrays["mu_s"], arrays["sigma_s"]) if {"mu_s", "sigma_s"} <= arrays.keys() else None
    if "count" in arrays and (arrays["count"].size != 1 or arrays["count"].dtype.kind not in "fiu"):
        raise UserError(f"{path}: count is no number; make the file anew (--mode=stats), or use another")
    count = int(arrays["count"].item()) if "count" in arrays else None
    features = arrays.get("features")
    if features is not None and features.shape[1:] != mean.shape:
        raise UserError(f"{path}: features {list(features.shape)} are not [m, {len(mean)}]; make the file anew")
    return Reference(mean.astype(np.float64), covariance.astype(np.float64), count, features, provenance, spatial)
