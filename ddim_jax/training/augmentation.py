"""Augmentation that does not leak into samples (Karras et al. 2022, appendix F.2 and table 6).

Training images are flipped, scaled, turned, stretched and moved at random, and the network is told what was done, by
nine numbers that are all zero where nothing was. Samples are drawn with zeros: of the images as they are.

What is done is written in eight parameters, each of which is zero unless its transformation takes place:

===  ============================  ==========================  =========================================
a    transformation                drawn from                  told
===  ============================  ==========================  =========================================
0    mirrored left to right        0 or 1                      a0
1    mirrored top to bottom        0 or 1                      a1
2    scaled by 2^(a2 / 5)          N(0, 1)                     a2
3    turned by a3                  U(-π, π)                    cos a3 - 1, sin a3
4    axis of the next one          U(-π, π), or 0 as often
5    stretched by 2^(a5 / 5)       N(0, 1)                     a5 cos a4, a5 sin a4
     along a4, squeezed across it
6    moved by a6 / 8 of the width  N(0, 1)                     a6
7    and a7 / 8 of the height      N(0, 1)                     a7
===  ============================  ==========================  =========================================

Each transformation takes place with one probability, 12 % for CIFAR-10; but for the first, which the published runs
always drew, so that half of the images are mirrored. Angles are counted from the right upwards, shifts to the right and
downwards, as those runs did: training of their networks may go on.

**What differs from the paper.** There, images are doubled in size by a wavelet filter of twelve taps, warped with
bilinear interpolation, and halved again by the same filter. Here a pixel of the result is found at once, by cubic
convolution (Keys 1981, a = -1/2). Where an image shrinks, the kernel is as many times wider, so that nothing aliases;
where it does not, an image moved by whole pixels is copied exactly. What lies outside of an image is its mirror image,
with the border pixels twice; the paper's has them once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.config.schema import AUGMENTATION_INPUTS

# Of a scale or a stretch by one standard deviation, and of a shift in units of the image's side.
_LOG2_SCALE = 0.2
_SHIFT = 1 / 8

# Values that a part of the batch may need for its warp at a time: 128 MiB.
_MOST_VALUES = 2**25


class Augmented(NamedTuple):
    """Images after augmentation.

    Attributes:
        images: [n, h, w, c], of the dtype that they had.
        told: float32 [n, 9], what the network is told.
    """

    images: jax.Array
    told: jax.Array


def augment(images: jax.Array, keys: jax.Array, probability: float) -> Augmented:
    """Augments each image by what its key draws.

    Args:
        images: [n, h, w, c] floats; their scale and offset do not matter.
        keys: [n] keys; what is done to image i depends on ``keys[i]`` alone.
        probability: of each transformation but the mirroring left to right.
    """
    parameters = jax.vmap(lambda key: draw_parameters(key, probability))(keys)
    return Augmented(transform(images, parameters), what_is_told(parameters))


def draw_parameters(key: jax.Array, probability: float) -> jax.Array:
    """Draws what is done to one image: a0 ... a7 of the module's docstring, float32 [8]."""
    number, angle, chance = jax.random.split(key, 3)
    z = jax.random.normal(number, (6,))
    turn, axis = jax.random.uniform(angle, (2,), minval=-np.pi, maxval=np.pi)
    drawn = jnp.stack([z[0] > 0, z[1] > 0, z[2], turn, axis, z[3], z[4], z[5]])
    chances = jax.random.uniform(chance, (6,))
    drawn = drawn.at[4].multiply(chances[5] < 0.5)
    # One chance for each transformation: the axis goes with what stretches along it, right with down.
    takes_place = chances[:5] < probability
    return jnp.where(jnp.insert(takes_place, 0, probability > 0)[jnp.array([0, 1, 2, 3, 4, 4, 5, 5])], drawn, 0)


def what_is_told(parameters: jax.Array) -> jax.Array:
    """The numbers that the network is told: from [n, 8] to [n, 9], zeros for zeros."""
    a = parameters.T
    told = (
        *(a[0], a[1], a[2], jnp.cos(a[3]) - 1, jnp.sin(a[3])),
        *(a[5] * jnp.cos(a[4]), a[5] * jnp.sin(a[4]), a[6], a[7]),
    )
    assert len(told) == AUGMENTATION_INPUTS
    return jnp.stack(told, axis=-1)


def transform(images: jax.Array, parameters: jax.Array) -> jax.Array:
    """Does to each image what its parameters say: mirrors, scales, turns, stretches and moves it, in this order.

    Args:
        images: [n, h, w, c] floats.
        parameters: [n, 8], see the module's docstring. Angles are counted from the right upwards.

    Returns:
        Images of the same shape and dtype; mirroring alone copies pixels.
    """
    height, width, channels = images.shape[1:]

    def one(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        image, a = args
        image = jnp.where(a[0] > 0, image[:, ::-1], image)
        image = jnp.where(a[1] > 0, image[::-1], image)
        scale, stretch = jnp.exp2(_LOG2_SCALE * a[2]), jnp.exp2(_LOG2_SCALE * a[5])
        stretched = _upwards(a[4]) @ jnp.diag(jnp.stack([stretch, 1 / stretch])) @ _upwards(-a[4])
        linear = scale * stretched @ _upwards(a[3])
        shift = _SHIFT * a[6:] * jnp.array([width, height], jnp.float32)
        warped = warp(image, linear, shift).astype(image.dtype)
        return jnp.where(jnp.all(a[2:] == 0), image, warped)

    values = height * width * height * channels
    return jax.lax.map(one, (images, parameters), batch_size=max(1, min(len(images), _MOST_VALUES // values)))


def warp(image: jax.Array, linear: jax.Array, shift: jax.Array) -> jax.Array:
    """Maps an image by an affine map around its centre.

    Args:
        image: [h, w, c] floats.
        linear: [2, 2], maps an offset (right, down) from the centre to the one that it has in the result.
        shift: [2], added to that, in pixels.

    Returns:
        [h, w, c] float32.
    """
    height, width, _ = image.shape
    centre = jnp.array([(width - 1) / 2, (height - 1) / 2], jnp.float32)
    down, right = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    (a, b), (c, d) = linear
    inverse = jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
    offset = jnp.stack([right, down], axis=-1).reshape(-1, 2) - centre - shift
    source = offset[:, :1] * inverse[:, 0] + offset[:, 1:] * inverse[:, 1] + centre
    # How far apart neighbours in the result were in the image, along each of its axes.
    apart = jnp.maximum(1, jnp.linalg.norm(inverse, axis=1))
    of_columns = _weights(source[:, 0], width, apart[0])
    of_rows = _weights(source[:, 1], height, apart[1])
    in_rows = jnp.einsum("px,yxc->pyc", of_columns, image.astype(jnp.float32), precision="highest")
    return jnp.einsum("py,pyc->pc", of_rows, in_rows, precision="highest").reshape(image.shape)


def _upwards(angle: jax.Array) -> jax.Array:
    """The turn of (right, down) from the right upwards."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[cos, sin], [-sin, cos]])


def _weights(position: jax.Array, size: int, width: jax.Array) -> jax.Array:
    """What each pixel of an axis counts at positions along it: [p, size], with sum 1.

    Args:
        position: [p], in pixels; beyond both ends the axis goes on as its mirror image.
        size: number of pixels.
        width: how many times wider the kernel is than that which interpolates.
    """
    # Into the axis itself, from -1/2 to size - 1/2.
    position = size - jnp.abs(size - jnp.mod(position + 0.5, 2 * size)) - 0.5
    pixel = jnp.arange(size)
    mirrored = (pixel, -1 - pixel, 2 * size - 1 - pixel)
    weights = functools.reduce(jnp.add, (_cubic((position[:, None] - each) / width) for each in mirrored))
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def _cubic(x: jax.Array) -> jax.Array:
    """Cubic convolution's kernel: 1 at 0, 0 at all other whole numbers."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))
