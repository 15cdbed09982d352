"""The first images of a data set, a folder or a file, for jobs that encode, rate or edit a few."""

import dataclasses

import numpy as np
from etils import epath

from ddim_jax.config import DataConfig
from ddim_jax.data.prepared import open_images
from ddim_jax.data.reading import Images, load_images
from ddim_jax.data.transforms import decode_image, prepare_image
from ddim_jax.errors import UserError


def read_first_images(data: DataConfig, split: str, path: str, num: int) -> Images:
    """Reads the first images of a data set, a folder or a file, prepared for the network.

    Args:
        data: what the model was trained on.
        split: split instead of the trained one; empty for that.
        path: folder or image file instead; images of another size are cut to a centred square and resized.
        num: number of images; fewer if there are no more. 0 for all.

    Returns:
        Images uint8 [n, h, w, c] and labels.

    Raises:
        UserError: they cannot be read.
    """
    if path:
        data = dataclasses.replace(
            data, source="folder", path=path, split="train", crop="center", resize="lanczos", cache="none"
        )
        if epath.Path(path).is_file():
            try:
                image = prepare_image(decode_image(epath.Path(path).read_bytes()), data)
            except UserError as error:
                raise UserError(f"{path} cannot be used: {error}") from error
            return Images(image[None], np.zeros(1, np.int32), np.zeros(1, np.int64))
    source = open_images(data, split or None)
    return load_images(source, data, np.arange(min(num or len(source), len(source))))
