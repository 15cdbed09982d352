"""Images whose sides a network cannot halve: enlarged for it, and cut back."""

import jax
import jax.numpy as jnp


def enlarged(x: jax.Array, factor: int, may_pad: bool, num_levels: int) -> jax.Array:
    """Images with sides that ``factor`` divides, by zeros at the bottom and at the right.

    >>> enlarged(jnp.ones((1, 5, 4, 1)), 4, may_pad=True, num_levels=3).shape
    (1, 8, 4, 1)

    Args:
        x: [n, h, w, c].
        factor: what has to divide h and w.
        may_pad: whether the network enlarges images; others are left as they are where they fit.
        num_levels: of the network, for the message.

    Raises:
        ValueError: they do not fit and may not be enlarged.
    """
    missing = [-side % factor for side in x.shape[1:3]]
    if not any(missing):
        return x
    if not may_pad:
        raise ValueError(f"{num_levels} levels need a height and width divisible by {factor}, got {x.shape}")
    return jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))


def with_picture(x: jax.Array, picture: jax.Array | None, channels: int) -> jax.Array:
    """Noisy images beside the pictures that they are drawn from: [n, h, w, c + channels].

    Args:
        x: [n, h, w, c].
        picture: [n, h, w, channels], or None for zeros, which mean "none".
        channels: of the pictures that the network takes; 0 where it takes none.

    Raises:
        ValueError: a picture is given to a network that takes none.
    """
    if not channels:
        if picture is not None:
            raise ValueError("a picture was given to a network that is drawn from none (image_inputs=0)")
        return x
    if picture is None:
        picture = jnp.zeros((*x.shape[:-1], channels), x.dtype)
    return jnp.concatenate([x, picture.astype(x.dtype)], axis=-1)
