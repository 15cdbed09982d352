"""The first images of a data set, a folder or a file, for jobs that encode, rate or edit a few."""

import dataclasses

import numpy as np
from etils import epath

from ddim_jax.config import DataConfig
from ddim_jax.data.prepared import open_images
from ddim_jax.data.reading import Images, load_images
from ddim_jax.data.sources import FolderSource, Source
from ddim_jax.data.transforms import ImageError, decode_image, prepare_image
from ddim_jax.digests import digest_of_arrays
from ddim_jax.errors import UserError
from ddim_jax.files import check_kind, read_file


def read_first_images(data: DataConfig, split: str, path: str, num: int, key: str) -> Images:
    """Reads the first images of a data set, a folder or a file, prepared for the network.

    Args:
        data: what the model was trained on.
        split: split instead of the trained one; empty for that.
        path: folder or image file instead; images of another size are cut to the centred part
            of the shape of ``data.image_size`` and resized.
        num: number of images; fewer if there are no more. 0 for all.
        key: the config's key that ``path`` is the value of, such as ``edit.path``, for messages.

    Returns:
        Images [n, h, w, c] of the type ``data.dtype``, and labels.

    Raises:
        UserError: they cannot be read; the line names ``key``.
    """
    if path:
        return _read_path(data, path, num, key)
    try:
        source = open_images(data, split or None)
    except UserError as error:
        # Who runs a model of others often has not its data.
        raise UserError(f"{error}; or name other images by {key}") from error
    return _read(source, data, num)


def digest_of_images(images: Images, **beside: np.ndarray) -> str:
    """What stands for images, and for arrays beside them, in the name of a job's folder: a hash of all their values.

    Files may be replaced by others of the same names.
    """
    arrays = {name: array for name, array in {**images._asdict(), **beside}.items() if array is not None}
    return digest_of_arrays(arrays)


def _read_path(data: DataConfig, path: str, num: int, key: str) -> Images:
    found = epath.Path(path).expanduser()
    data = dataclasses.replace(data, crop="center", resize="lanczos", condition="", vector="")
    try:
        check_kind(found)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if found.is_file():
        try:
            image = prepare_image(decode_image(read_file(found), data.dtype, data.channels), data)
        except OSError as error:
            raise UserError(f"{key}={path!r} cannot be opened: {error.strerror or error}") from error
        except UserError as error:
            raise UserError(f"{key}={path!r} cannot be used: {error}") from error
        return Images(image[None], np.zeros(1, np.int32), np.zeros(1, np.int64))
    if not found.is_dir():
        raise UserError(f"{key}={path!r} does not exist; name a folder of images or an image file")
    source = FolderSource(path, key=key, dtype=data.dtype, channels=data.channels)
    try:
        return _read(source, data, num)
    except ImageError as error:
        raise UserError(f"{key}={path!r}: {error}") from error


def _read(source: Source, data: DataConfig, num: int) -> Images:
    return load_images(source, data, np.arange(min(num or len(source), len(source))))
