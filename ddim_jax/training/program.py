"""The training step as it runs: on all devices, compiled ahead of time, one or several steps at a time."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.data.batches import Batch
from ddim_jax.data.on_device import DeviceImages, Selection, gather
from ddim_jax.memory import ProgramMemory, program_memory
from ddim_jax.models import Model
from ddim_jax.training.host_average import HostAverage
from ddim_jax.training.state import TrainState, abstract_state, learning_rate_schedule
from ddim_jax.training.step import StepMetrics, TrainStep, make_train_step


class StepResult(NamedTuple):
    """What is told of each step of a group: float32 [K].

    Attributes:
        metrics: losses and gradient norm.
        learning_rate: the rate that the step used.
    """

    metrics: StepMetrics
    learning_rate: Any


class TrainProgram:
    """Runs groups of training steps.

    A group is one dispatch: a ``lax.scan`` over its batches, in which the host has no part. A single step is compiled
    without the loop: on a CPU XLA gives the operations of a loop's body fewer threads.
    """

    def __init__(
        self,
        step: TrainStep,
        learning_rate: optax.Schedule,
        devices: parallel.Devices,
        images_on_device: bool = False,
        constants: int = 0,
    ) -> None:
        """Compiles nothing yet.

        Args:
            step: from :func:`~ddim_jax.training.step.make_train_step`, averaging by ``parallel.mean_over_devices``.
            learning_rate: the rate by the number of steps done; it is only reported.
            devices: from :func:`~ddim_jax.parallel.training_devices`.
            images_on_device: whether batches are selections of the images given to :meth:`place`.
            constants: number of things given to :meth:`give`, which the step takes after its batch.
        """
        self.images_on_device = images_on_device
        self._devices = devices
        self._local_devices = len(devices) // parallel.process_count()
        self._images: tuple[DeviceImages, ...] = ()
        self._constants: tuple[Any, ...] = ()

        def one(state: TrainState, batch: Any, *given: Any) -> tuple[TrainState, StepResult]:
            rate = jnp.asarray(learning_rate(state.step), jnp.float32)
            if images_on_device:
                batch, given = gather(given[0], batch), given[1:]
            state, metrics = step(state, batch, *given)
            return state, StepResult(metrics, rate)

        def group(state: TrainState, batches: Any, *given: Any) -> tuple[TrainState, StepResult]:
            if len(jax.tree.leaves(batches)[0]) == 1:
                state, result = one(state, jax.tree.map(lambda x: x[0], batches), *given)
                return state, jax.tree.map(lambda x: x[None], result)
            return jax.lax.scan(lambda state, batch: one(state, batch, *given), state, batches)

        given = int(images_on_device) + constants
        self._run: Any = parallel.step_over_batch(group, devices, donate=True, constants=given)
        self._compiled: dict[int, Any] = {}

    def place(self, images: DeviceImages) -> None:
        """Puts all training images into the memory of each device."""
        self._images = (parallel.replicate(images, self._devices),)

    def give(self, *constants: Any) -> None:
        """Puts what the step takes after its batch, once, into the memory of each device."""
        self._constants = ()  # what was there before makes room
        self._constants = tuple(parallel.replicate(constant, self._devices) for constant in constants)

    def compile(self, state: Any, batches: Sequence[Batch | Selection], *given: Any) -> ProgramMemory | None:
        """Compiles the program for groups of this size, without running it.

        With one process what was compiled is what runs; with several, the first call compiles anew.

        Args:
            state: a state, or its shapes.
            batches: as many as the group has, of any content.
            *given: the images to place, and what to :meth:`give`, or their shapes.

        Returns:
            What it needs on each device; None where the backend does not tell.
        """
        compiled = self._run.lower(state, self._split(batches), *given).compile()
        self._compiled[len(batches)] = compiled
        return program_memory(compiled)

    def __call__(self, state: TrainState, batches: Sequence[Batch | Selection]) -> tuple[TrainState, StepResult]:
        """Dispatches a group of steps; ``state``, replicated over the devices, must not be used again."""
        compiled = self._compiled.get(len(batches))
        run = self._run if compiled is None else parallel.runnable(self._run, compiled)
        return run(state, self._split(batches), *self._images, *self._constants)

    def text(self) -> str:
        """What was compiled, in XLA's language."""
        return "".join(compiled.as_text() for compiled in self._compiled.values())

    def _split(self, batches: Sequence[Batch | Selection]) -> Any:
        return parallel.split_batches(batches, self._local_devices)


def make_program(
    config: Config,
    model: Model,
    optimizer: optax.GradientTransformation,
    total_steps: int,
    devices: parallel.Devices,
    *,
    images_on_device: bool = False,
) -> TrainProgram:
    """The program of a run's training step.

    Args:
        config: the run.
        model: the network, built with ``parallel.mean_over_devices``.
        optimizer: from :func:`~ddim_jax.training.state.make_optimizer`.
        total_steps: length of the run, which the learning rate depends on.
        devices: from :func:`~ddim_jax.parallel.training_devices`.
        images_on_device: whether batches are selections of the images given to :meth:`TrainProgram.place`.
    """
    step = make_train_step(config, model, optimizer, parallel.mean_over_devices)
    return TrainProgram(step, learning_rate_schedule(config.train, total_steps), devices, images_on_device)


def compile_ahead(
    program: TrainProgram,
    config: Config,
    model: Model,
    optimizer: optax.GradientTransformation,
    total_steps: int,
    num_examples: int,
    *constants: Any,
) -> ProgramMemory | None:
    """Compiles the program for the run's groups of steps before there is a state or an image.

    Args:
        program: the run's.
        config: the run.
        model: the network.
        optimizer: the run's.
        total_steps: its length.
        num_examples: number of training images.
        *constants: what the program will be given, or its shapes.

    Returns:
        What it needs, as :meth:`TrainProgram.compile` says.
    """
    state = abstract_state(config, model, optimizer)
    if config.train.ema_on_host:
        state = HostAverage.part_for_devices(state)
    shape, dtype = config.data.image_shape, config.data.dtype
    size = config.train.batch_size // parallel.process_count()
    index = np.zeros(size, np.int32)
    group = min(config.train.steps_per_call, total_steps)

    def beside(count: int) -> tuple[Any, Any]:
        """Vectors and pictures of so many images, where the data have them."""
        data = config.data
        vector = np.zeros((count, config.model.vector_size), np.float32) if data.vector else None
        return vector, np.zeros((count, *data.paired_shape), dtype) if data.condition == "paired" else None

    if program.images_on_device:
        images = jax.eval_shape(
            lambda: DeviceImages(
                jnp.zeros((num_examples, *shape), dtype),
                jnp.zeros(num_examples, jnp.int32),
                *jax.tree.map(jnp.asarray, beside(num_examples)),
            )
        )
        return program.compile(state, [Selection(index, np.zeros(size, bool), index)] * group, images, *constants)
    batch = Batch(np.zeros((size, *shape), dtype), index, index, *beside(size))
    return program.compile(state, [batch] * group, *constants)
