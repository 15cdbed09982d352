"""The moving averages of the parameters, kept in the host's memory (``train.ema_on_host``)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.config import TrainConfig
from ddim_jax.parallel import host_copy, host_view
from ddim_jax.training.power_average import gamma_of, newest_share
from ddim_jax.training.state import PowerTrainState, TrainState, ema_decay


class HostAverage:
    """Averages the parameters as the training step does otherwise, in float32 NumPy; equal to rounding.

    A device is spared a quarter of what Adam and the average add to the parameters, and all averages of
    ``train.ema_widths``. The price: the host fetches the parameters of each step before it can begin the next.
    """

    def __init__(self, train: TrainConfig, state: TrainState) -> None:
        """Takes the averages out of a state.

        Args:
            train: the settings of the averages.
            state: the whole state; see :meth:`part_for_devices` for what remains of it.
        """
        self._train = train
        self._params, self._batch_stats = host_copy((state.ema_params, state.ema_batch_stats))
        self._power = host_copy(state.power_averages) if isinstance(state, PowerTrainState) else ()

    @staticmethod
    def part_for_devices(state: TrainState) -> TrainState:
        """The state without its averages."""
        power = {"power_averages": ()} if isinstance(state, PowerTrainState) else {}
        return dataclasses.replace(state, ema_params={}, ema_batch_stats={}, **power)

    def update(self, steps_done: int, state: TrainState) -> None:
        """Moves the averages.

        Args:
            steps_done: number of steps done before this one.
            state: the state after it, without average.
        """
        decay = np.float32(ema_decay(self._train, jnp.int32(steps_done)))

        def move(average: np.ndarray, new: jax.Array) -> None:
            average *= decay
            average += (np.float32(1) - decay) * host_view(new)

        jax.tree.map(move, (self._params, self._batch_stats), (state.params, state.batch_stats))
        new = {"params": state.params, "batch_stats": state.batch_stats}
        for width, of_width in zip(self._train.ema_widths, self._power, strict=True):
            share = np.float32(newest_share(gamma_of(width), np.float64(steps_done + 1)))
            jax.tree.map(lambda average, leaf, share=share: _approach(average, host_view(leaf), share), of_width, new)

    def whole(self, state: TrainState) -> TrainState:
        """The state with its averages, to save or to draw with before the next :meth:`update`."""
        power = {"power_averages": self._power} if isinstance(state, PowerTrainState) else {}
        return dataclasses.replace(state, ema_params=self._params, ema_batch_stats=self._batch_stats, **power)


def _approach(average: np.ndarray, new: np.ndarray, share: np.float32) -> None:
    average += share * (new - average)
