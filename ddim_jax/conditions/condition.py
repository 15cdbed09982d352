"""A condition: arrays that travel with images, from the data through training, sampling and guidance.

It has two forms. :class:`DataCondition` is what the data or a user have: classes, numbers, a picture.
:class:`Condition` is what the network takes: each kind has a value there that means "none", so that it can be dropped
in training and left out in guidance.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddim_jax.names import ConditionKind


class Condition(NamedTuple):
    """What n images are drawn from, as the network takes it; a kind that it does not know is None.

    Attributes:
        label: int32 [n], classes; ``num_classes`` itself means "none".
        vector: float32 [n, d + 1]: the numbers, and a 1 that says that they are told; zeros mean "none".
        image: float32 [n, h, w, c], at the size of the images, in the network's units; zeros mean "none".
        level: float32 [n], how much noise was added to ``image``, for networks that are told; 0 for none.
    """

    label: Any = None
    vector: Any = None
    image: Any = None
    level: Any = None


class DataCondition(NamedTuple):
    """What n images are drawn from, as the data have it; what is not known, or means nothing to the network, is None.

    Attributes:
        label: int32 [n], classes; any numbers where there are none.
        vector: float32 [n, d].
        picture: float32 [n, h', w', c'] in [0, 1], of the shape of ``data.condition``, see ``tasks.py``.
    """

    label: Any
    vector: Any = None
    picture: Any = None


def told_vector(vector: jax.Array) -> jax.Array:
    """Numbers [n, d] with the 1 that says that they are told: [n, d + 1].

    >>> told_vector(jnp.array([[0.5, -2.0]])).tolist()
    [[0.5, -2.0, 1.0]]
    """
    return jnp.concatenate([vector, jnp.ones_like(vector[:, :1])], axis=1)


def none_of(condition: Condition, kinds: Collection[ConditionKind], num_classes: int) -> Condition:
    """The condition without these kinds: each has the value that means "none".

    >>> none = none_of(Condition(label=jnp.array([3]), vector=jnp.array([[0.5, 1.0]])), {"class"}, num_classes=10)
    >>> none.label.tolist(), none.vector.tolist()
    ([10], [[0.5, 1.0]])

    Args:
        condition: of n images.
        kinds: the ones to leave out; those that the condition has not are passed over.
        num_classes: of the network.
    """
    nothing = jax.tree.map(jnp.zeros_like, condition)
    if condition.label is not None:
        nothing = nothing._replace(label=jnp.full_like(condition.label, num_classes))
    fields = [field for kind in kinds for field in _FIELDS[kind]]
    return condition._replace(**{field: getattr(nothing, field) for field in fields})


def dropped(condition: Condition, kind: ConditionKind, which: jax.Array, num_classes: int) -> Condition:
    """The condition with one kind left out of some images.

    Args:
        condition: of n images.
        kind: what is left out.
        which: bool [n], of which of them.
        num_classes: of the network.
    """

    def chosen(none: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.where(which.reshape(-1, *(1,) * (value.ndim - 1)), none, value)

    return jax.tree.map(chosen, none_of(condition, {kind}, num_classes), condition)


# What a kind consists of, by names.ConditionKind.
_FIELDS: dict[ConditionKind, tuple[str, ...]] = {
    "class": ("label",),
    "vector": ("vector",),
    "image": ("image", "level"),
}
