"""``--mode=distill``: teach a student to draw in few steps what a trained network draws in many."""

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from etils import epath

from ddim_jax import memory, parallel
from ddim_jax.config import Config, to_json, with_values
from ddim_jax.data.sources import Source, check_labels
from ddim_jax.errors import UserError
from ddim_jax.jobs.evaluate import evaluate
from ddim_jax.measuring.extractors import make_extractor
from ddim_jax.models import Model, build_model, parameter_count
from ddim_jax.one_writer import check_no_other_writer, one_writer
from ddim_jax.training.checkpoint import Checkpoints, newest_step, select_weights
from ddim_jax.training.data import batches_for, live_on_devices, open_sources
from ddim_jax.training.distillation import (
    Lesson,
    begin_round,
    lesson_of,
    losses_of_round,
    optimizer_steps,
    same_program,
    step_in_schedule,
)
from ddim_jax.training.fitting import check_could_fit, explaining_out_of_memory
from ddim_jax.training.host_average import HostAverage
from ddim_jax.training.log import announce
from ddim_jax.training.loop import TrainingLoop
from ddim_jax.training.pictures import TrainingPictures, condition_of_examples
from ddim_jax.training.program import TrainProgram, compile_ahead
from ddim_jax.training.state import (
    TrainState,
    abstract_state,
    fresh_optimizer_state,
    learning_rate_schedule,
    make_optimizer,
)
from ddim_jax.training.step import make_train_step
from ddim_jax.training.stop_signals import StopRequest, catch_stop_signals
from ddim_jax.training.students import Round, described, rounds_of, settled_config
from ddim_jax.training.teacher import Teacher, read_teacher
from ddim_jax.workdir import (
    check_writable,
    checkpoint_dir,
    config_path,
    is_resumed,
    prepare_for_training,
    read_config,
    run_in,
)
from ddim_jax.writers import MetricWriter, SilentWriter, say


def distill(config: Config, workdir: epath.PathLike) -> int | None:
    """Runs the job.

    The student's workdir is one like any other: all jobs run on it. Its checkpoint of step 0 holds the teacher's
    weights, and that of the end of each round, which is never deleted, the student's after it. A round learns from the
    checkpoint before it, so that a run that was killed, at whatever moment, goes on without the teacher and ends with
    the parameters of an uninterrupted one, bit by bit.

    Args:
        config: the run; ``distill.teacher`` names the teacher, whose network it must be.
        workdir: where the student is written.

    Returns:
        The step at which a signal stopped the run before its end, saved; None when the run is complete.

    Raises:
        UserError: teacher, workdir, data or config cannot be used, the teacher is not the one that this student began
            with, another job trains there, or the loss stopped being finite.
    """
    check_no_other_writer(*run_in(workdir))
    check_writable(workdir)
    config, teacher = _settled(config, workdir)
    if config.distill.measure_num:
        # Weights that cannot be had are missed now, not in the end.
        make_extractor(config)
    rounds = rounds_of(config)
    total_steps = rounds[-1].ends
    devices = parallel.training_devices(config.train.batch_size, config.train.accumulate)
    free = memory.free_bytes([device for device in devices if device in parallel.local_devices()])
    check_could_fit(config, len(devices), free)
    source, _ = open_sources(config.data)
    check_labels(source, config.model.num_classes)
    if is_resumed(workdir, config):
        _check_not_past(workdir, total_steps)
    run = _Run(config, workdir, source, devices, free)
    with contextlib.ExitStack() as stack:
        writing = stack.enter_context(one_writer(*run_in(workdir)))
        prepare_for_training(workdir, config, write=parallel.is_main_process())
        parallel.barrier("workdir")
        kept = Checkpoints(checkpoint_dir(workdir), config.train.keep_last, config.distill.updates)
        checkpoints = stack.enter_context(kept)
        if checkpoints.latest_step() is not None:
            start, state = checkpoints.restore_newest(run.like, together=True)
        elif teacher is not None:
            start, state = 0, _as_state(teacher, run.optimizer)
            checkpoints.save(0, state)  # from here on nobody needs the teacher any more
        else:
            raise UserError(f"distill.teacher={config.distill.teacher} is gone, and this student had not begun")
        announce(config, state, len(source), start, total_steps, devices)
        if parallel.is_main_process() and not start:
            say(described(config.distill))
        writer: MetricWriter = SilentWriter()
        if parallel.is_main_process():
            writer = stack.enter_context(MetricWriter(workdir, start, config.train.tensorboard))
            writer.text(start, "config", to_json(config))
        with catch_stop_signals() as stop:
            for round_ in rounds:
                if start >= round_.ends:
                    continue
                if parallel.is_main_process():
                    say(_about(config, round_))
                lesson = run.lesson(round_, state if start == round_.begins else None, checkpoints)
                if start == round_.begins and config.distill.is_progressive:
                    state = begin_round(state, run.optimizer)
                # What was there before makes room.
                state, stopped_at = run.round(round_, state, lesson, start, stop, writer, writing, checkpoints)
                if stopped_at is not None and stopped_at < total_steps:
                    say(f"stopped by {stop.by} after saving step {stopped_at}; start the same command again to go on")
                    return stopped_at
                start = round_.ends
        if parallel.is_main_process():
            writing.check()
            run.draw_rounds(rounds, checkpoints, writer)
            say(f"done: {total_steps:,} steps; {config.sample.steps} network evaluations an image")
        parallel.barrier("pictures of rounds")
    if config.distill.measure_num:
        _measure(config, workdir, rounds)
    return None


def _settled(config: Config, workdir: epath.PathLike) -> tuple[Config, Teacher | None]:
    """The student's config, and its teacher; None where that is gone, and this run has begun.

    Raises:
        UserError: there is no such teacher, it is not the one that this run began with, or it cannot teach this.
    """
    named = config.distill.teacher
    if not named:
        raise UserError("distill.teacher is empty: name the workdir that is to be distilled")
    begun = read_config(workdir).distill if config_path(workdir).exists() else None
    is_same = begun is not None and begun.teacher == named and not config.train.overwrite
    step = config.distill.teacher_step
    if step is None and begun is not None and is_same:
        step = begun.teacher_step
    try:
        teacher = read_teacher(named, step)
    except UserError as error:
        if begun is None or not is_same or newest_step(checkpoint_dir(workdir)) is None:
            raise UserError(f"distill.teacher={named}: {error}") from error
        if not config.distill.teacher_sha256:
            config = dataclasses.replace(config, distill=begun)
        say(f"the teacher is not there any more ({error}); the student has what it needs of it")
        return config, None
    if begun is not None and is_same and begun.teacher_sha256 not in ("", teacher.sha256):
        raise UserError(
            f"distill.teacher={named} has changed since this student began: the weights of step {teacher.step:,} hash "
            f"to {teacher.sha256[:12]}, not to {begun.teacher_sha256[:12]}; put those back, or name another --workdir"
        )
    return settled_config(config, teacher, is_same), teacher


def _check_not_past(workdir: epath.PathLike, total_steps: int) -> None:
    done = newest_step(checkpoint_dir(workdir))
    if done is not None and done > total_steps:
        raise UserError(
            f"distill.rounds asks for {total_steps:,} steps: the student in workdir {workdir} is past that, at step "
            f"{done:,}, and was left as it is; ask for more rounds, or name another --workdir"
        )


def _as_state(teacher: Teacher, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of step 0: the teacher's weights."""
    params, batch_stats = teacher.variables["params"], teacher.variables.get("batch_stats", {})
    opt_state: Any = parallel.host_copy(fresh_optimizer_state(optimizer, params, 0))
    return TrainState(np.int32(0), params, opt_state, params, batch_stats, batch_stats)


def _about(config: Config, round_: Round) -> str:
    distill = config.distill
    of = f"round {round_.number} of {distill.rounds}" if round_.number else "first"
    if not round_.number:
        return f"{of}: learns to predict {distill.objective} instead of {distill.teacher_objective}"
    if distill.is_progressive:
        return f"{of}: {2 * round_.steps} steps become {round_.steps}"
    return f"{of}: points {0.5**round_.number:.3g} of the way apart"


class _Run:
    """What the rounds share: network, programs, images."""

    def __init__(
        self, config: Config, workdir: epath.PathLike, source: Source, devices: parallel.Devices, free: int | None
    ) -> None:
        self._config = config
        self._workdir = epath.Path(workdir)
        self._source = source
        self._devices = devices
        self._free = free
        self._model: Model = build_model(config, parallel.mean_over_devices, flash_attention=True)
        self.optimizer = make_optimizer(config.train, optimizer_steps(config))
        self.like = abstract_state(config, self._model, self.optimizer)
        condition = condition_of_examples(config, source, config.train.sample_num)
        self._pictures = TrainingPictures(
            config, self._model, self._workdir, rounds_of(config)[-1].ends, len(source), condition
        )
        self._on_device = live_on_devices(len(source), config.data, devices, free)
        self._programs: list[tuple[Round, TrainProgram]] = []

    def lesson(self, round_: Round, state: TrainState | None, checkpoints: Checkpoints) -> Lesson:
        """What a round learns from.

        Args:
            round_: the round.
            state: that it begins with, as the round before left it; None where it is in the midst of it.
            checkpoints: of the run.
        """
        method = self._config.distill.method
        if method == "easy_consistency" and round_.number:
            return lesson_of(self._config, round_, None)
        step = round_.begins if method == "progressive" else 0
        before = state if state is not None and state.step == step else checkpoints.restore(step, self.like)
        return lesson_of(self._config, round_, parallel.host_copy(select_weights(before, ema=True)))

    def round(
        self,
        round_: Round,
        state: TrainState,
        lesson: Lesson,
        start: int,
        stop: StopRequest,
        writer: MetricWriter,
        writing: Any,
        checkpoints: Checkpoints,
    ) -> tuple[TrainState, int | None]:
        """Trains a round to its end, or until it is told to stop; returns the state and the step that it stopped at."""
        config, devices = self._config, self._devices
        num_params = parameter_count(state.params)
        program, needed = self._program(round_, lesson, num_params)
        average = HostAverage(config.train, state) if config.train.ema_on_host else None
        memory.return_unused_memory()
        with contextlib.closing(batches_for(program, config, self._source, start)) as batches:
            program.give(lesson)
            replicated = parallel.replicate(state if average is None else average.part_for_devices(state), devices)
            del state
            loop = TrainingLoop(
                config=config,
                total_steps=round_.ends,
                writer=writer,
                writing=writing,
                checkpoints=checkpoints,
                pictures=self._pictures.of_other_steps(round_.steps, round_.ends),
                validation=None,
                best=None,
                average=average,
            )
            with explaining_out_of_memory(config, num_params, len(devices), needed, self._free):
                end = loop.run(program, replicated, batches, start, stop)
        program.give()
        return parallel.host_copy(end.state), end.stopped_at

    def _program(
        self, round_: Round, lesson: Lesson, num_params: int
    ) -> tuple[TrainProgram, memory.ProgramMemory | None]:
        """The compiled step of a round; that of the one before where it serves."""
        config = self._config
        for other, program in self._programs:
            if same_program(config, other, round_):
                return program, None
        steps = optimizer_steps(config)
        rate = learning_rate_schedule(config.train, steps)
        losses = losses_of_round(config, self._model, round_)
        step = make_train_step(config, self._model, self.optimizer, parallel.mean_over_devices, losses)
        program = TrainProgram(
            step, lambda done: rate(step_in_schedule(config, done)), self._devices, self._on_device, constants=1
        )
        self._programs = [(round_, program)]
        needed = None
        if parallel.process_count() == 1:
            with explaining_out_of_memory(config, num_params, len(self._devices), None, self._free):
                needed = compile_ahead(
                    program,
                    config,
                    self._model,
                    self.optimizer,
                    steps,
                    len(self._source),
                    jax.eval_shape(lambda: lesson),
                )
        return program, needed

    def draw_rounds(self, rounds: list[Round], checkpoints: Checkpoints, writer: MetricWriter) -> None:
        """Draws one picture with a row for each round, of the same noise."""
        counts = {round_.ends: (round_.steps,) for round_ in rounds}
        if not self._config.distill.is_progressive:
            counts = {rounds[-1].ends: self._config.eval.steps}
        self._pictures.draw_rows(
            "rounds",
            [
                (f"step {step:,}, {steps} evaluation{'s' * (steps > 1)}", step, steps)
                for step, each in counts.items()
                for steps in each
            ],
            lambda step: checkpoints.restore(step, self.like),
            writer,
        )


def _measure(config: Config, workdir: epath.PathLike, rounds: list[Round]) -> None:
    """Adds a row for each round to the table of ``--mode=evaluate``, whose report shows them side by side."""
    rows = [(round_.ends, (round_.steps,)) for round_ in rounds]
    if not config.distill.is_progressive:
        rows = [(rounds[-1].ends, config.eval.steps)]
    for step, steps in rows:
        asked = {"eval.checkpoints": (str(step),), "eval.steps": steps, "eval.num": config.distill.measure_num}
        evaluate(with_values(config, asked), workdir)
