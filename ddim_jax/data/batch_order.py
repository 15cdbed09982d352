"""The order of training: the examples of each step's batch, and which are mirrored, from seed and step alone.

All epochs, each a fresh permutation of the examples, are laid end to end, and step k takes places
k * batch_size ... (k + 1) * batch_size - 1 of that endless row. An epoch may end inside a batch; nothing is dropped.
"""

import dataclasses
import functools
import math
from fractions import Fraction

import numpy as np

from ddim_jax.config import ConfigError
from ddim_jax.random_streams import Stream, host_generator


@dataclasses.dataclass(frozen=True)
class BatchOrder:
    """The order of a run's examples, and the part of each batch that is this process's.

    Each process gets a contiguous slice of the global batch: process p of P the examples
    p * B / P ... (p + 1) * B / P - 1. All that is drawn is drawn for the global batch, so that the processes' parts,
    joined, are the batch of a single one.

    Attributes:
        seed: the run's seed.
        batch_size: B, the *global* batch size.
        process_index: this process, 0 ... process_count - 1.
        process_count: number of processes that share the batch.

    Raises:
        ConfigError: ``process_count`` does not divide ``batch_size``.
    """

    seed: int
    batch_size: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        """Checks that the processes can share the batch."""
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process_index={self.process_index} must lie in 0 ... {self.process_count - 1}")
        if self.batch_size % self.process_count:
            raise ConfigError(
                f"train.batch_size={self.batch_size} must be divisible by {self.process_count}, the number of processes"
            )

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """The places of this process's examples in the global batch: int32 [b], read-only."""
        positions = np.arange(self.batch_size, dtype=np.int32)[self._share]
        positions.setflags(write=False)  # every batch holds this one array
        return positions

    def examples(self, step: int, num_examples: int) -> np.ndarray:
        """Finds the examples that form this process's part of a step's batch: int64 [b].

        Place p = step * batch_size + i of the endless row of epochs is element p mod n of the permutation of epoch
        p // n.

        Args:
            step: counted from 0.
            num_examples: n.
        """
        epoch, place = np.divmod(step * self.batch_size + np.arange(self.batch_size), num_examples)
        indices = np.empty(self.batch_size, np.int64)
        for number in range(epoch[0], epoch[-1] + 1):
            inside = epoch == number
            indices[inside] = epoch_order(self.seed, number, num_examples)[place[inside]]
        return indices[self._share]

    def flips(self, step: int) -> np.ndarray:
        """Draws which of this process's examples of a step ``data.flip`` mirrors: bool [b], each with 1/2."""
        drawn = host_generator(self.seed, Stream.FLIP, step).random(self.batch_size)
        return drawn[self._share] < 0.5

    @property
    def _share(self) -> slice:
        local_size = self.batch_size // self.process_count
        return slice(self.process_index * local_size, (self.process_index + 1) * local_size)


# Two, since a batch may lie across the end of an epoch. Permuting a million takes 20 ms.
@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of the examples in an epoch: a permutation, int64 [num_examples], read-only."""
    order = host_generator(seed, Stream.ORDER, epoch).permutation(num_examples)
    order.setflags(write=False)
    return order


def steps_for_epochs(num_examples: int, batch_size: int, epochs: float) -> int:
    """The number of steps that show every example ``epochs`` times: ceil(num_examples * epochs / batch_size)."""
    # As decimals: in floats 10 * 1.1 is a hair above 11, and would cost a step more.
    return math.ceil(num_examples * Fraction(str(epochs)) / batch_size)


def substitutes(usable: np.ndarray, num_examples: int) -> np.ndarray:
    """Finds who takes the place of each example that cannot be used: the next one that can, or past the last the first.

    Args:
        usable: int64 [m], the numbers of the examples that can be used, in order.
        num_examples: n, of all.

    Returns:
        int64 [n], places in ``usable``; an example that can be used stands for itself.
    """
    return np.searchsorted(usable, np.arange(num_examples)) % len(usable)
