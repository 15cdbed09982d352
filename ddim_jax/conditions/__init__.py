"""What an image is drawn from beside noise: a class, a vector of numbers, a picture, or several of them.

- ``condition``: :class:`Condition` and :class:`DataCondition`, the arrays that travel with images, and what "none"
  means for each kind.
- ``tasks``: pictures made of images, by name, so that a whole task such as super-resolution is one word.
- ``masks``: which part of an image is missing.
"""

from ddim_jax.conditions.condition import Condition, DataCondition, dropped, none_of, told_vector

__all__ = ["Condition", "DataCondition", "dropped", "none_of", "told_vector"]
