"""The picture that a network is given of an image, by name: with less of it than the image has, for the network to add.

==============  ======================================================================================================
``downsample``  the image made smaller by a whole factor, by antialiased bicubic interpolation, as in SR3 (Saharia et
                al. 2021) and cascaded models (Ho et al. 2022): super-resolution
``grey``        its luma: colourisation
``mask``        a part of it is missing, see ``masks.py``: inpainting
``blur``        seen through a Gaussian filter: deblurring
``noise``       with Gaussian noise added: denoising
``paired``      no function of the image: the data have another picture beside it
==============  ======================================================================================================

Pictures are made of pixels in [0, 1], float32, and each of its image and its key alone. The network is given them at
the size of its images, in [-1, 1] (:func:`to_network`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.conditions.masks import known_pixels
from ddim_jax.errors import ConfigError
from ddim_jax.names import MaskKind, lookup

# Grey of RGB by ITU-R BT.601, as image files are made grey.
_LUMA = (0.299, 0.587, 0.114)

# Of pixels that are missing: the middle of their range, which is 0 to the network.
_MISSING = 0.5

# A Gaussian filter ends where it has fallen to 3e-4 of its middle, as SciPy's does.
_TRUNCATE = 4.0


class Task(NamedTuple):
    """What picture a network is given of an image.

    Attributes:
        shape: height, width and channels of the picture. The last channel of ``mask`` says where the image is known.
        make: ``make(pixels, keys)``, the pictures [n, *shape] in [0, 1] of images float32 [n, h, w, c] in [0, 1] and n
            keys; None where the data have the pictures.
    """

    shape: tuple[int, int, int]
    make: Callable[[jax.Array, jax.Array], jax.Array] | None


class TaskSettings(NamedTuple):
    """What tasks are told beside the shape of the images; see the keys ``data.condition_...`` of these names."""

    factor: int
    masks: tuple[MaskKind, ...]
    blur: float
    noise: float
    paired_shape: tuple[int, int, int]


def make_task(name: str, image_shape: tuple[int, int, int], **settings: Any) -> Task:
    """The task of a name, see the module's text.

    >>> task = make_task("downsample", (8, 12, 3), factor=4, masks=(), blur=1.0, noise=0.1, paired_shape=(8, 12, 3))
    >>> task.shape, task.make(jnp.ones((5, 8, 12, 3)), jax.random.split(jax.random.key(0), 5)).shape
    ((2, 3, 3), (5, 2, 3, 3))

    Args:
        name: of :data:`TASKS`.
        image_shape: height, width and channels of the images.
        **settings: those of :class:`TaskSettings`.

    Raises:
        UserError: a task that does not exist, or cannot be with images of this shape.
    """
    return lookup(TASKS, name, "data.condition")(image_shape, TaskSettings(**settings))


def to_network(picture: jax.Array, image_shape: tuple[int, int, int]) -> jax.Array:
    """Pictures as the network takes them: enlarged to the size of its images where they are smaller, and in [-1, 1].

    Args:
        picture: float32 [n, h', w', c'] in [0, 1].
        image_shape: height, width and channels of the images.

    Returns:
        float32 [n, h, w, c']; bicubic interpolation goes a little beyond the ends.
    """
    size = image_shape[:2]
    if picture.shape[1:3] != size:
        picture = jax.image.resize(picture, (len(picture), *size, picture.shape[3]), "cubic")
    return 2 * picture - 1


def augment(picture: jax.Array, level: jax.Array, keys: jax.Array) -> jax.Array:
    """Adds noise to what the network is given: sqrt(1 - level^2) picture + level noise.

    A network that is told the level bears pictures that are less perfect than those it was trained on, as what another
    network has drawn (conditioning augmentation, Ho et al. 2022).

    Args:
        picture: float32 [n, h, w, c], from :func:`to_network`.
        level: [n] in [0, 1].
        keys: n keys.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, picture.shape[1:], picture.dtype))(keys)
    level = level.astype(picture.dtype).reshape(-1, 1, 1, 1)
    return jnp.sqrt(1 - level**2) * picture + level * noise


# --- tasks --------------------------------------------------------------------------------------


def downsample(image_shape: tuple[int, int, int], settings: TaskSettings) -> Task:
    """Makes images smaller; what bicubic interpolation has beyond [0, 1] is cut off.

    Raises:
        ConfigError: the factor does not divide height or width.
    """
    height, width, channels = image_shape
    factor = settings.factor
    if height % factor or width % factor:
        raise ConfigError(
            f"data.condition_factor={factor}: must divide height and width of the images, {height} and {width}"
        )
    shape = (height // factor, width // factor, channels)

    def make(pixels: jax.Array, keys: jax.Array) -> jax.Array:
        del keys
        return jnp.clip(jax.image.resize(pixels, (len(pixels), *shape), "cubic", antialias=True), 0, 1)

    return Task(shape, make)


def grey(image_shape: tuple[int, int, int], settings: TaskSettings) -> Task:
    """Takes the colours away: luma of three channels, the mean of any other number.

    Raises:
        ConfigError: the images are grey.
    """
    del settings
    height, width, channels = image_shape
    if channels == 1:
        raise ConfigError("data.condition=grey: the images are grey already (data.channels=1)")
    weights = np.asarray(_LUMA if channels == 3 else [1 / channels] * channels, np.float32)
    return Task((height, width, 1), lambda pixels, keys: (pixels * weights).sum(axis=-1, keepdims=True))


def mask(image_shape: tuple[int, int, int], settings: TaskSettings) -> Task:
    """Takes a part away, of a kind drawn for each image; a last channel says where the rest is.

    Raises:
        ConfigError: images of a single row or column, of which no half can be taken.
    """
    height, width, channels = image_shape
    if min(height, width) < 2:
        raise ConfigError(f"data.condition=mask: images of {width}x{height} are too small to take a part of")

    def make(pixels: jax.Array, keys: jax.Array) -> jax.Array:
        return masked(pixels, known_pixels(keys, (height, width), settings.masks))

    return Task((height, width, channels + 1), make)


def masked(pixels: jax.Array, known: jax.Array) -> jax.Array:
    """Images with a part missing, as the task ``mask`` makes them of masks.

    Args:
        pixels: float32 [n, h, w, c] in [0, 1].
        known: float32 [n, h, w, 1], 1 where they are known, else 0.

    Returns:
        float32 [n, h, w, c + 1].
    """
    return jnp.concatenate([jnp.where(known > 0.5, pixels, _MISSING), known], axis=-1)


def blur(image_shape: tuple[int, int, int], settings: TaskSettings) -> Task:
    """Filters by a Gaussian; beyond the border the image is mirrored."""
    height, width, _ = image_shape
    rows, columns = (jnp.asarray(_gaussian_matrix(side, settings.blur)) for side in (height, width))

    def make(pixels: jax.Array, keys: jax.Array) -> jax.Array:
        del keys
        return jnp.einsum("ij,njkc,lk->nilc", rows, pixels, columns, precision="highest")

    return Task(image_shape, make)


def _gaussian_matrix(side: int, sigma: float) -> np.ndarray:
    """The filter along one side as a matrix [side, side], into which mirrored borders fold, at any length of it."""
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    places = (np.arange(side)[:, None] + offsets) % (2 * side)
    places = np.where(places < side, places, 2 * side - 1 - places)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], places), weights)
    return matrix.astype(np.float32)


def noise(image_shape: tuple[int, int, int], settings: TaskSettings) -> Task:
    """Adds Gaussian noise; what it lifts out of [0, 1] stays there, since cutting it off would shift the mean."""

    def make(pixels: jax.Array, keys: jax.Array) -> jax.Array:
        each = jax.vmap(lambda key: jax.random.normal(key, image_shape, pixels.dtype))(keys)
        return pixels + settings.noise * each

    return Task(image_shape, make)


def paired(image_shape: tuple[int, int, int], settings: TaskSettings) -> Task:
    """Makes nothing: the data have the pictures.

    Raises:
        ConfigError: they are larger than the images.
    """
    height, width, _ = settings.paired_shape
    if height > image_shape[0] or width > image_shape[1]:
        raise ConfigError(
            f"data.condition_size: pictures of {width}x{height} are larger than the images, {image_shape[1]}x"
            f"{image_shape[0]}; make them as large or smaller"
        )
    return Task(settings.paired_shape, None)


# By names.ConditionTask.
TASKS: Mapping[str, Callable[[tuple[int, int, int], TaskSettings], Task]] = {
    "downsample": downsample,
    "grey": grey,
    "mask": mask,
    "blur": blur,
    "noise": noise,
    "paired": paired,
}
