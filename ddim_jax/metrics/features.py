"""Sets of features: arrays [n, d], one row an image, and the checks that every metric makes of them."""

import numpy as np

from ddim_jax.errors import UserError


def check_features(features: np.ndarray, of: str) -> None:
    """Refuses features from which any metric would be nonsense.

    >>> check_features(np.array([[0.0, 1.0], [np.nan, 1.0]]), of="A")
    Traceback (most recent call last):
    ddim_jax.errors.UserError: features of A hold NaN or infinity, first in row 1: check these images and the weights

    Args:
        features: [n, d].
        of: whose features they are, for the message: ``"the generated images"``.

    Raises:
        ValueError: not two axes.
        UserError: NaN or infinity among them.
    """
    if features.ndim != 2:
        raise ValueError(f"features of {of}: shape {features.shape}, not [n, d]")
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise UserError(
            f"features of {of} hold NaN or infinity, first in row {row}: check these images and the weights"
        )


def check_pair(generated: np.ndarray, real: np.ndarray, at_least: int) -> None:
    """Refuses two sets of features that cannot be compared.

    >>> check_pair(np.zeros((2, 8)), np.zeros((2, 4)), at_least=2)
    Traceback (most recent call last):
    ddim_jax.errors.UserError: generated images have 8 features each, real ones 4: use one feature network for both

    Args:
        generated: [n, d].
        real: [m, d].
        at_least: images that each set needs.

    Raises:
        ValueError: not two axes.
        UserError: NaN or infinity, different d, or too few images.
    """
    for features, of in ((generated, "the generated images"), (real, "the real images")):
        check_features(features, of)
        if len(features) < at_least:
            raise UserError(f"{len(features)} features of {of}: this metric needs {at_least} or more")
    if generated.shape[1] != real.shape[1]:
        raise UserError(
            f"generated images have {generated.shape[1]} features each, real ones {real.shape[1]}:"
            " use one feature network for both"
        )
