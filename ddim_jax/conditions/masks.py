"""Masks of what is known of an image: parts of it are missing, another one for each key.

Each kind is a function of one key and a size, with shapes that do not depend on what is drawn, so that it compiles, and
the mask of a training example is the same whoever trains it, and in whichever batch.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from ddim_jax.names import MaskKind, lookup

# Of a box: the shortest and longest side, as a share of the image's. Its area is 6 to 49 % of the image, about a fifth
# in the mean; Palette's centre box (Saharia et al. 2022) is a quarter.
_BOX_SIDES = (0.25, 0.7)

# Of free strokes, after Yu et al. 2019 (Free-form image inpainting): lines of several straight pieces, with round ends.
_STROKES = 3
_PIECES = 5
_STROKE_LENGTH = (0.15, 0.45)  # of a piece, as a share of the image's shorter side
_STROKE_WIDTH = (0.06, 0.16)  # likewise


def known_pixels(keys: jax.Array, size: tuple[int, int], kinds: Sequence[MaskKind]) -> jax.Array:
    """Draws masks: 1 where an image is known, 0 where it is missing.

    >>> keys = jax.random.split(jax.random.key(0), 100)
    >>> known = known_pixels(keys, (16, 12), ("box", "half", "strokes"))
    >>> known.shape, 0.4 < float(known.mean()) < 0.8
    ((100, 16, 12, 1), True)

    Args:
        keys: n keys.
        size: height and width of the images, two pixels at least.
        kinds: one of them is drawn for each image, all alike probable.

    Returns:
        float32 [n, height, width, 1]; in each image a pixel is known at least, and another is not.

    Raises:
        UserError: a kind that does not exist.
    """
    draws = [lookup(MASKS, kind, "mask") for kind in kinds]

    def draw(key: jax.Array) -> jax.Array:
        which, what = jax.random.split(key)
        missing = jax.lax.switch(jax.random.randint(which, (), 0, len(draws)), [_sized(d, size) for d in draws], what)
        # Strokes on a small image may cover it, or fall between its pixels.
        first = (jnp.arange(size[0] * size[1]) == 0).reshape(size)
        missing = jnp.where(missing.all(), ~first, jnp.where(missing.any(), missing, first))
        return 1.0 - missing.astype(jnp.float32)

    return jax.vmap(draw)(keys)[..., None]


def _sized(draw: Callable[[jax.Array, tuple[int, int]], jax.Array], size: tuple[int, int]) -> Callable:
    return lambda key: draw(key, size)


def box(key: jax.Array, size: tuple[int, int]) -> jax.Array:
    """A box of any place and of sides between a quarter and seven tenths of the image's: bool [h, w], True in it."""
    inside = []
    for key_of_side, side in zip(jax.random.split(key), size, strict=True):
        of_length, of_start = jax.random.split(key_of_side)
        length = jnp.round(side * jax.random.uniform(of_length, minval=_BOX_SIDES[0], maxval=_BOX_SIDES[1]))
        length = jnp.clip(length, 1, side - 1)
        start = jnp.floor(jax.random.uniform(of_start) * (side - length + 1))
        places = jnp.arange(side)
        inside.append((places >= start) & (places < start + length))
    return inside[0][:, None] & inside[1][None, :]


def half(key: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The left, right, upper or lower half: bool [h, w], True in it."""
    height, width = size
    left = jnp.broadcast_to(jnp.arange(width)[None, :] < width // 2, size)
    upper = jnp.broadcast_to(jnp.arange(height)[:, None] < height // 2, size)
    halves = jnp.stack([left, ~left, upper, ~upper])
    return halves[jax.random.randint(key, (), 0, len(halves))]


def strokes(key: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Free strokes of a thick pen, which turns at each of a few corners: bool [h, w], True under them.

    Lines of straight pieces with round ends, each piece in a direction of its own that differs from the last by less
    than 2/5 of a turn, as Yu et al. 2019 draw them.
    """
    height, width = size
    scale = min(size)
    rows, columns = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    pixels = jnp.stack([rows, columns], axis=-1)

    def stroke(key: jax.Array) -> jax.Array:
        of_start, of_angle, of_turns, of_lengths, of_width = jax.random.split(key, 5)
        start = jax.random.uniform(of_start, (2,)) * jnp.array([height, width])
        turns = jax.random.uniform(of_turns, (_PIECES,), minval=-0.8 * jnp.pi, maxval=0.8 * jnp.pi)
        angles = 2 * jnp.pi * jax.random.uniform(of_angle) + jnp.cumsum(turns)
        low, high = _STROKE_LENGTH
        lengths = scale * jax.random.uniform(of_lengths, (_PIECES,), minval=low, maxval=high)
        moves = lengths[:, None] * jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        # Corners outside of the image are brought back to its border.
        corners = jnp.clip(start + jnp.cumsum(moves, axis=0), 0, jnp.array([height, width]))
        corners = jnp.concatenate([start[None], corners])
        low, high = _STROKE_WIDTH
        radius = jnp.maximum(0.75, scale * jax.random.uniform(of_width, minval=low, maxval=high) / 2)
        distances = jax.vmap(lambda begin, end: _distance(pixels, begin, end))(corners[:-1], corners[1:])
        return (distances <= radius).any(axis=0)

    return jax.vmap(stroke)(jax.random.split(key, _STROKES)).any(axis=0)


def _distance(points: jax.Array, begin: jax.Array, end: jax.Array) -> jax.Array:
    """Distances of points [..., 2] from the straight line between two others."""
    along = end - begin
    share = jnp.clip((points - begin) @ along / jnp.maximum(along @ along, 1e-6), 0, 1)
    return jnp.linalg.norm(points - begin - share[..., None] * along, axis=-1)


# By names.MaskKind: from a key and a size to what is missing, bool [h, w].
MASKS: Mapping[str, Callable[[jax.Array, tuple[int, int]], jax.Array]] = {"box": box, "half": half, "strokes": strokes}
