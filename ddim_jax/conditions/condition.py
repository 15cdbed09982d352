"""A condition: arrays that travel with images, from the data through training, sampling and guidance."""

from typing import Any, NamedTuple


class Condition(NamedTuple):
    """What n images are drawn from, as the network takes it; a kind that it does not know is None.

    Attributes:
        label: int32 [n], classes; ``num_classes`` itself means "none".
        vector: float32 [n, d + 1]: the numbers, and a 1 that says that they are told; zeros mean "none".
        image: float32 [n, h, w, c], at the size of the images, in the network's units; zeros mean "none".
    """

    label: Any = None
    vector: Any = None
    image: Any = None
