"""Every random stream of the program, in one table.

A random number here never depends on how work is split: it is keyed by *what* it is for
(the stream), *when* (training step, or draw of a sampling trajectory) and *which* example or
image, never by device, process or batch. That is what makes image ``i`` the same image for any
batch size and number of devices, and a resumed run equal to an uninterrupted one.
"""

import enum

import jax
import jax.numpy as jnp
import numpy as np

# Pinned: jax's default implementation may change, and with it every image of every seed.
PRNG_IMPL = "threefry2x32"


class Stream(enum.IntEnum):
    """What a random number is for. Values are part of the format: never renumber one."""

    INIT = 0  # network initialisation
    ORDER = 1  # order of the examples in an epoch (host)
    FLIP = 2  # horizontal flips (host)
    TIME = 3  # noise level of a training example
    NOISE = 4  # noise added to a training example
    DROPOUT = 5  # dropout masks, per example
    LABEL = 6  # label dropout for classifier-free guidance, per example
    IMAGE = 7  # sampling: x_T (draw 0) and the noise of step s (draw s + 1)
    PROBE = 8  # probe vectors of likelihood estimates
    VALIDATION = 9  # noise level and noise of the validation images
    AUGMENTATION = 10  # what is done to a training image, and told the network
    CONDITION = 11  # what of a training image the network is told: masks, noise
    CONDITION_DROPOUT = 12  # dropout of vectors (fold 0) and images (fold 1) that an image is drawn from, per example


def root_key(seed: int | jax.Array, stream: Stream) -> jax.Array:
    """Returns the key of a stream: ``fold_in(key(seed), stream)``."""
    return jax.random.fold_in(jax.random.key(seed, impl=PRNG_IMPL), int(stream))


def fold_in_each(key: jax.Array, data: jax.Array) -> jax.Array:
    """Folds each element of ``data`` [n] into ``key`` (one key, or n keys); returns n keys [n]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0 if key.ndim else None, 0))(key, data)


def example_keys(seed: int, stream: Stream, step: jax.Array, index: jax.Array) -> jax.Array:
    """Keys of a training batch, one per example.

    Args:
        seed: the run's seed.
        stream: what the numbers are for.
        step: training step, an int scalar.
        index: [n] positions in the *global* batch, so that the split over devices is immaterial.

    Returns:
        [n] keys.
    """
    return fold_in_each(jax.random.fold_in(root_key(seed, stream), step), index)


def image_keys(seed: int | jax.Array, index: jax.Array) -> jax.Array:
    """Keys of sampled images, [n]: image i depends on (seed, i) alone.

    Draw d of image i is keyed by ``fold_in(image_keys(seed, [i])[0], d)``: d = 0 is x_T, d = s + 1
    is the noise of the trajectory's step s. x_T therefore does not depend on the number of steps.

    Args:
        seed: one seed, or one per image; below 2^31.
        index: int [n], image indices.
    """
    seeds = jnp.broadcast_to(jnp.asarray(seed, jnp.int32), index.shape)
    return jax.vmap(lambda seed, i: jax.random.fold_in(root_key(seed, Stream.IMAGE), i))(seeds, index)


def normal_each(
    keys: jax.Array, draw: int | jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Standard normal noise for draw number ``draw`` of each of n keys: [n, *shape]."""
    folded = jax.vmap(lambda key: jax.random.fold_in(key, draw))(keys)
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(folded)


def host_generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """A NumPy generator for host-side streams, keyed by (seed, stream, counters)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, int(stream), *counters))))
