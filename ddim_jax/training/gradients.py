"""What is done with a gradient as a whole: its norm, clipping, and how it lies in memory."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.layout import Layout, with_layout_constraint

# Values of a large array that an NVIDIA GPU adds up at a time.
_ROW = 1024

# Starting a kernel takes an NVIDIA GPU longer than what an optimiser does to so many values.
_SMALL = 512 * 512


def global_norm(gradient: Any) -> jax.Array:
    """The root of the sum of all squares of a tree, float32.

    On NVIDIA GPUs it is summed up in far fewer kernels than there are arrays, in another order.
    """
    return jax.lax.platform_dependent(gradient, cuda=_norm_in_few_kernels, default=optax.tree.norm)


def _norm_in_few_kernels(gradient: Any) -> jax.Array:
    """Small arrays are put together first, large ones summed up by rows, and the sums put together."""
    leaves = jax.tree.leaves(gradient)
    large = [leaf.size % _ROW == 0 and leaf.ndim > 1 for leaf in leaves]
    rows = [leaf.reshape(-1, _ROW) for leaf, is_large in zip(leaves, large, strict=True) if is_large]
    small = [leaf.reshape(-1) for leaf, is_large in zip(leaves, large, strict=True) if not is_large]
    squares = [jnp.sum(jnp.square(leaf), axis=1) for leaf in rows]
    if small:
        squares.append(jnp.square(jnp.concatenate(small)))
    # The barrier keeps XLA from taking the sum of each piece instead.
    return jnp.sqrt(jnp.sum(jax.lax.optimization_barrier(jnp.concatenate(squares))))


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """``optax.clip_by_global_norm``, by :func:`global_norm`."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        norm = global_norm(updates)

        def clipped(leaf: jax.Array) -> jax.Array:
            return jax.lax.select(norm < largest, leaf, (leaf / norm.astype(leaf.dtype)) * largest)

        return jax.tree.map(clipped, updates), state

    return optax.GradientTransformation(optax.clip_by_global_norm(largest).init, update)


def arranged_for_optimizer(gradient: Any) -> Any:
    """The same gradient, arranged in the memory of NVIDIA GPUs so that the optimiser needs few kernels and no copies.

    It lies there as parameters do. cuDNN gives gradients of kernels in another order, and XLA would have the optimiser
    work in that, and copy parameters and averages to it and back.

    And small arrays of one shape are parts of one. Of what reads the same array XLA makes one kernel; the update of
    each parameter would be a kernel of its own.
    """

    def arranged(tree: Any) -> Any:
        return _with_small_ones_together(
            jax.tree.map(lambda leaf: with_layout_constraint(leaf, Layout(tuple(range(leaf.ndim)))), tree)
        )

    return jax.lax.platform_dependent(gradient, cuda=arranged, default=lambda tree: tree)


def _with_small_ones_together(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    alike = collections.defaultdict(list)
    for place, leaf in enumerate(leaves):
        if leaf.size <= _SMALL:
            alike[leaf.shape, leaf.dtype].append(place)
    for places in alike.values():
        if len(places) == 1:
            continue
        # The barrier keeps XLA from taking each piece from where it was.
        together = jax.lax.optimization_barrier(jnp.stack([leaves[place] for place in places]))
        for row, place in enumerate(places):
            leaves[place] = jax.lax.index_in_dim(together, row, keepdims=False)
    return jax.tree.unflatten(structure, leaves)
