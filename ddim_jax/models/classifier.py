"""A small convolutional classifier, by whose features sets of small images can be compared.

It is meant to be trained in a minute on the labelled images of one data set (``measuring/classifier.py``), where the
Inception network, which knows photographs of 1,000 kinds of things, has little to say: handwritten digits.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax

NUM_FEATURES = 64

_FIRST_WIDTH, _LAST_WIDTH = 16, 64

# Stages halve the resolution until it is between this and twice this.
_COARSEST = 3
_FEWEST_STAGES = 2

# Features must not depend on the device.
_PRECISION = jax.lax.Precision.HIGHEST


class ClassifierOutput(NamedTuple):
    """What the network says of n images, float32.

    Attributes:
        features: [n, 64] the last layer but one.
        logits: [n, classes] log-probabilities of the classes, up to a constant.
    """

    features: jax.Array
    logits: jax.Array


class Classifier(nn.Module):
    """Stages of convolution and pooling, then two dense layers.

    Attributes:
        num_classes: number of classes.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> ClassifierOutput:
        """Applies the network.

        Args:
            x: [n, h, w, c] float32, pixels scaled to [-1, 1]; h and w at least 4.
        """
        side = min(x.shape[1:3])
        stages = max(_FEWEST_STAGES, math.floor(math.log2(side / _COARSEST)))
        for stage in range(stages):
            width = min(_FIRST_WIDTH * 2**stage, _LAST_WIDTH)
            x = nn.relu(nn.Conv(width, (3, 3), precision=_PRECISION, name=f"conv_{stage}")(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        features = nn.relu(nn.Dense(NUM_FEATURES, precision=_PRECISION, name="features")(x))
        logits = nn.Dense(self.num_classes, precision=_PRECISION, name="logits")(features)
        return ClassifierOutput(features, logits)
