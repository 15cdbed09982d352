"""The rounds of a student's run (``--mode=distill``): each a stretch of training steps with a lesson of its own."""

import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ddim_jax import memory, parallel
from ddim_jax.config import Config
from ddim_jax.data.sources import Source
from ddim_jax.models import build_model, parameter_count
from ddim_jax.one_writer import Writing
from ddim_jax.training.checkpoint import Checkpoints, select_weights
from ddim_jax.training.data import batches_for, live_on_devices
from ddim_jax.training.distillation import (
    Lesson,
    begin_round,
    lesson_of,
    losses_of_round,
    optimizer_steps,
    same_program,
    step_in_schedule,
)
from ddim_jax.training.fitting import explaining_out_of_memory
from ddim_jax.training.host_average import HostAverage
from ddim_jax.training.loop import TrainingLoop
from ddim_jax.training.pictures import TrainingPictures
from ddim_jax.training.program import TrainProgram, compile_ahead
from ddim_jax.training.state import (
    TrainState,
    abstract_state,
    fresh_optimizer_state,
    learning_rate_schedule,
    make_optimizer,
)
from ddim_jax.training.step import make_train_step
from ddim_jax.training.students import Round
from ddim_jax.training.teacher import Teacher
from ddim_jax.writers import MetricWriter


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a run writes.

    Attributes:
        writer: of figures and pictures.
        writing: what this job has that alone may write the workdir.
        checkpoints: of the run.
        pictures: of samples.
    """

    writer: MetricWriter
    writing: Writing
    checkpoints: Checkpoints
    pictures: TrainingPictures


class Students:
    """The student, which is its own teacher from round to round.

    What rounds share is made once: network, optimiser, the images, and the program, but where the first teacher
    predicts otherwise than the student.

    Attributes:
        model: the network.
        like: shapes of the state.
        state: the student's, between rounds; None while one is under way, so that it is held once.
    """

    def __init__(self, config: Config, source: Source, devices: parallel.Devices, free: int | None) -> None:
        """Compiles nothing yet.

        Args:
            config: the student's, settled.
            source: the training images.
            devices: that share a batch.
            free: bytes free on each of them; None where not known.
        """
        self._config = config
        self._source = source
        self._devices = devices
        self._free = free
        self.model = build_model(config, parallel.mean_over_devices)
        self._optimizer = make_optimizer(config.train, optimizer_steps(config))
        self.like = abstract_state(config, self.model, self._optimizer)
        self.state: TrainState | None = None
        self._on_device = live_on_devices(len(source), config.data, devices, free)
        self._program: TrainProgram | None = None
        self._of_round: Round | None = None
        self._needed: memory.ProgramMemory | None = None
        self._batches: Any = None

    def first_state(self, teacher: Teacher) -> TrainState:
        """The state of step 0: the teacher's weights, and an optimiser that has seen nothing."""
        params, batch_stats = teacher.variables["params"], teacher.variables.get("batch_stats", {})
        opt_state: Any = parallel.host_copy(fresh_optimizer_state(self._optimizer, params, 0))
        return TrainState(np.int32(0), params, opt_state, params, batch_stats, batch_stats)

    def close(self) -> None:
        """Ends the reading of images."""
        if self._batches is not None:
            self._batches.close()

    def train(self, round_: Round, start: int, stop: threading.Event, outputs: Outputs) -> int:
        """Trains a round from some step of it to its end, or until it is told to stop.

        Args:
            round_: the round.
            start: number of steps done in the run; :attr:`state` is the state then.
            stop: asks the run to save and stop.
            outputs: what it writes.

        Returns:
            The number of steps done; :attr:`state` is the state then.

        Raises:
            UserError: a batch does not fit into memory, or the loss stopped being finite.
        """
        config, devices = self._config, self._devices
        state, self.state = self.state, None
        assert state is not None, "between rounds"
        lesson = self._lesson(round_, state, outputs.checkpoints)
        if start == round_.begins and config.distill.is_progressive:
            state = begin_round(state, self._optimizer)
        num_params = parameter_count(state.params)
        program, batches = self._prepared(round_, start, lesson, num_params)
        program.give(lesson)
        del lesson  # on the devices now
        average = HostAverage(config.train, state) if config.train.ema_on_host else None
        state = parallel.replicate(state if average is None else average.part_for_devices(state), devices)
        memory.return_unused_memory()
        loop = TrainingLoop(
            config=config,
            total_steps=round_.ends,
            writer=outputs.writer,
            writing=outputs.writing,
            checkpoints=outputs.checkpoints,
            pictures=outputs.pictures.of_other_steps(round_.steps, round_.ends),
            validation=None,
            best=None,
            average=average,
        )
        with explaining_out_of_memory(config, num_params, len(devices), self._needed, self._free):
            end = loop.run(program, state, batches, start, stop)
        program.give()
        self.state = parallel.host_copy(end.state)
        return round_.ends if end.stopped_at is None else end.stopped_at

    def _lesson(self, round_: Round, state: TrainState, checkpoints: Checkpoints) -> Lesson:
        """What a round learns from: the checkpoint that it began with, or in consistency distillation the first."""
        method = self._config.distill.method
        if method == "easy_consistency" and round_.number:
            return lesson_of(self._config, round_, None)
        step = round_.begins if method == "progressive" else 0
        teaching = state if state.step == step else checkpoints.restore(step, self.like)
        return lesson_of(self._config, round_, parallel.host_copy(select_weights(teaching, ema=True)))

    def _prepared(
        self, round_: Round, start: int, lesson: Lesson, num_params: int
    ) -> tuple[TrainProgram, Iterator[Any]]:
        """The compiled step of a round and its batches; those of the round before go on where they serve."""
        config = self._config
        if self._program is None or self._of_round is None or not same_program(config, self._of_round, round_):
            self.close()
            steps = optimizer_steps(config)
            rate = learning_rate_schedule(config.train, steps)
            losses = losses_of_round(config, self.model, round_)
            step = make_train_step(config, self.model, self._optimizer, parallel.mean_over_devices, losses)
            program = TrainProgram(
                step, lambda done: rate(step_in_schedule(config, done)), self._devices, self._on_device, constants=1
            )
            if parallel.process_count() == 1:
                shapes = jax.eval_shape(lambda: lesson)
                with explaining_out_of_memory(config, num_params, len(self._devices), None, self._free):
                    self._needed = compile_ahead(
                        program, config, self.model, self._optimizer, steps, len(self._source), shapes
                    )
            self._program, self._of_round = program, round_
            self._batches = batches_for(program, config, self._source, start)
        return self._program, self._batches
