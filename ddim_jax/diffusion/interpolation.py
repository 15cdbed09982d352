"""Between two noises: pictures that change gradually (DDIM, section 5.3 and appendix D.5).

With eta = 0 the image is a function of x_T. A straight line between two noises would pass through points with too small
a norm to be noise, which the network never saw; an arc of a circle around the origin does not.
"""

import jax
import jax.numpy as jnp


def slerp(z1: jax.Array, z2: jax.Array, alpha: jax.typing.ArrayLike) -> jax.Array:
    """Spherical linear interpolation of each image as one vector (DDIM, eq. 67).

        z = sin((1 - alpha) theta) / sin(theta) z1 + sin(alpha theta) / sin(theta) z2,
        theta = the angle between z1 and z2.

    >>> [round(value, 4) for value in slerp(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), 0.5)[0].tolist()]
    [0.7071, 0.7071]

    Where that is undefined: for vectors in one direction, or a zero, it is taken as its limit, the straight line. For
    exactly opposite vectors there are many arcs; one of them is taken, always the same.

    Args:
        z1: [n, ...].
        z2: like z1.
        alpha: 0 gives z1, 1 gives z2; a scalar or [n].

    Returns:
        Like z1.
    """
    alpha = jnp.asarray(alpha, z1.dtype)
    return jax.vmap(_slerp, (0, 0, 0 if alpha.ndim else None))(z1, z2, alpha)


def _slerp(z1: jax.Array, z2: jax.Array, alpha: jax.Array) -> jax.Array:
    a, b = z1.ravel(), z2.ravel()
    norm_a, norm_b = jnp.linalg.norm(a), jnp.linalg.norm(b)
    tiny = jnp.finfo(a.dtype).tiny
    unit_a, unit_b = a / jnp.maximum(norm_a, tiny), b / jnp.maximum(norm_b, tiny)
    # Accurate at all angles, unlike the arc cosine of the inner product.
    theta = 2 * jnp.arctan2(jnp.linalg.norm(unit_a - unit_b), jnp.linalg.norm(unit_a + unit_b))
    # Below this, theta and sin(theta) are the same number, and so are the arc and the line.
    small = jnp.sqrt(jnp.finfo(a.dtype).eps)
    one_direction = (norm_a == 0) | (norm_b == 0) | (theta < small)
    opposite = ~one_direction & (jnp.pi - theta < small)

    sine = jnp.where(one_direction | opposite, 1, jnp.sin(theta))
    arc = (jnp.sin((1 - alpha) * theta) * a + jnp.sin(alpha * theta) * b) / sine
    line = (1 - alpha) * a + alpha * b
    radius = (1 - alpha) * norm_a + alpha * norm_b
    half_circle = radius * (jnp.cos(alpha * jnp.pi) * unit_a + jnp.sin(alpha * jnp.pi) * _orthogonal(unit_a))
    return jnp.where(one_direction, line, jnp.where(opposite, half_circle, arc)).reshape(z1.shape)


def _orthogonal(unit: jax.Array) -> jax.Array:
    """A unit vector at right angles to this one: coordinates 2j and 2j + 1 exchanged, one with its sign changed."""
    if len(unit) == 1:
        return jnp.zeros_like(unit)
    pairs = unit[: len(unit) // 2 * 2].reshape(-1, 2)
    turned = jnp.stack([-pairs[:, 1], pairs[:, 0]], axis=1).ravel()
    norm = jnp.linalg.norm(turned)
    # An odd last coordinate has no partner. Should it be all that there is, any other coordinate is orthogonal.
    turned = jnp.where(norm > 0, turned / jnp.maximum(norm, jnp.finfo(unit.dtype).tiny), turned.at[0].set(1))
    return jnp.pad(turned, (0, len(unit) % 2))


def slerp_path(z1: jax.Array, z2: jax.Array, points: int) -> jax.Array:
    """``points`` noises from z1 to z2, both included: [points, n, ...]; eleven of them in the DDIM paper's code.

    Args:
        z1: [n, ...].
        z2: like z1.
        points: at least 2.
    """
    return jax.vmap(slerp, (None, None, 0))(z1, z2, jnp.linspace(0, 1, points, dtype=z1.dtype))


def slerp_grid(corners: jax.Array, rows: int, columns: int) -> jax.Array:
    """Noises between four corners, as in the DDIM paper's figures: [rows, columns, ...].

    The left and the right column are arcs between the corners, and each row an arc between these.

    Args:
        corners: [4, ...]: top left, top right, bottom left, bottom right.
        rows: at least 2.
        columns: at least 2.
    """
    left_and_right = slerp_path(corners[:2], corners[2:], rows)
    grid = slerp_path(left_and_right[:, 0], left_and_right[:, 1], columns)
    return jnp.swapaxes(grid, 0, 1)
