"""What training examples are drawn from: made from the batch, and left out of some examples.

All of it is keyed by (seed, step, position in the global batch), or by an image's number: as with noise, neither
devices nor interruptions have a part in it.
"""

from typing import Any

import jax

from ddim_jax.conditions import Condition, dropped
from ddim_jax.config import Config
from ddim_jax.names import ConditionKind
from ddim_jax.random_streams import Stream, example_keys
from ddim_jax.sampling.conditions import data_condition, network_condition

# Numbers folded into an example's key of conditions, beside the key itself, which is the task's.
_LEVEL, _NOISE = 2**31 - 2, 2**31 - 1

# Numbers folded into an example's key of dropout.
_DROPOUT_FOLDS: dict[ConditionKind, int] = {"vector": 0, "image": 1}


def example_condition(config: Config, examples: Any, keys: jax.Array) -> Condition:
    """What examples are drawn from, as the network takes it, with ``data.condition_augmentation``, drawn evenly."""
    if not config.model.kinds:
        return Condition()
    given, most = data_condition(config, examples, keys), config.data.condition_augmentation
    if not most or "image" not in config.model.kinds:
        return network_condition(config, given)
    level = jax.vmap(lambda key: jax.random.uniform(key, maxval=most))(_folded(keys, _LEVEL))
    return network_condition(config, given, level, _folded(keys, _NOISE))


def batch_condition(config: Config, batch: Any, step: jax.Array) -> Condition:
    """What a training batch is drawn from, some of it left out, see :func:`drop_conditions`."""
    return drop_conditions(config, undropped_condition(config, batch, step), step, batch.index)


def undropped_condition(config: Config, batch: Any, step: jax.Array) -> Condition:
    """What a training batch is drawn from."""
    return example_condition(config, batch, example_keys(config.seed, Stream.CONDITION, step, batch.index))


def drop_conditions(config: Config, condition: Condition, step: jax.Array, index: jax.Array) -> Condition:
    """Replaces a share of each kind by "none", for classifier-free guidance (Ho and Salimans 2022).

    Args:
        config: the run.
        condition: of n examples.
        step: training step.
        index: [n], positions in the global batch.
    """
    for kind, rate in config.condition_dropout.items():
        if kind == "class":
            keys = example_keys(config.seed, Stream.LABEL, step, index)
        elif rate:
            keys = example_keys(config.seed, Stream.CONDITION_DROPOUT, step, index)
            keys = _folded(keys, _DROPOUT_FOLDS[kind])
        else:
            continue
        which = jax.vmap(lambda key, rate=rate: jax.random.bernoulli(key, rate))(keys)
        condition = dropped(condition, kind, which, config.model.num_classes)
    return condition


def _folded(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
