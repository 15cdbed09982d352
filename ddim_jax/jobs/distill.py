"""``--mode=distill``: teach a student to draw in few steps what a trained network draws in many."""

import contextlib
import os

from etils import epath

from ddim_jax import memory, parallel
from ddim_jax.config import Config, to_json, with_values
from ddim_jax.data.sources import check_labels
from ddim_jax.errors import UserError
from ddim_jax.jobs.evaluate import check_ahead, evaluate
from ddim_jax.one_writer import check_no_other_writer, one_writer
from ddim_jax.training.checkpoint import Checkpoints, newest_step
from ddim_jax.training.data import open_sources
from ddim_jax.training.fitting import check_could_fit
from ddim_jax.training.log import announce
from ddim_jax.training.pictures import TrainingPictures, condition_of_examples, data_figures_for
from ddim_jax.training.rounds import Outputs, Students
from ddim_jax.training.stop_signals import catch_stop_signals
from ddim_jax.training.students import Round, described, resumed_config, rounds_of, settled_config
from ddim_jax.training.teacher import Teacher, is_workdir_of, read_teacher
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

# The picture that shows all rounds: ``samples/rounds.png``.
_PICTURE = "rounds"


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
        # What cannot be had, or done, is missed now, not in the end.
        if "://" in os.fspath(workdir):
            raise UserError(
                f"distill.measure_num={config.distill.measure_num}: images cannot be measured in {workdir}; use 0, and "
                "--mode=evaluate on a copy of it"
            )
        check_ahead(with_values(config, {"eval.num": config.distill.measure_num}))
    rounds = rounds_of(config)
    total_steps = rounds[-1].ends
    devices = parallel.training_devices(config.train.batch_size, config.train.accumulate)
    free = memory.free_bytes([device for device in devices if device in parallel.local_devices()])
    check_could_fit(config, len(devices), free)
    source, _ = open_sources(config.data)
    check_labels(source, config.model.num_classes)
    if is_resumed(workdir, config):
        _check_not_past(workdir, total_steps)
    students = Students(config, source, devices, free)
    condition = condition_of_examples(config, source, config.train.sample_num)
    pictures = TrainingPictures(
        config,
        students.model,
        epath.Path(workdir),
        total_steps,
        len(source),
        condition,
        of_data=data_figures_for(config, source),
    )
    with contextlib.ExitStack() as stack:
        writing = stack.enter_context(one_writer(*run_in(workdir)))
        prepare_for_training(workdir, config, write=parallel.is_main_process())
        parallel.barrier("workdir")
        kept = Checkpoints(checkpoint_dir(workdir), config.train.keep_last, config.distill.updates)
        checkpoints = stack.enter_context(kept)
        if checkpoints.latest_step() is not None:
            start, state = checkpoints.restore_newest(students.like, together=True)
        elif teacher is not None:
            start, state = 0, students.first_state(teacher)
            checkpoints.save(0, state)  # from here on nobody needs the teacher any more
        else:
            raise UserError(f"distill.teacher={config.distill.teacher} is gone, and this student had not begun")
        teacher = None  # what it has said is in the state
        announce(config, state, len(source), start, total_steps, devices)
        if parallel.is_main_process() and not start:
            say(described(config.distill))
        if parallel.is_main_process() and start < total_steps:
            pictures.remove_rows(_PICTURE)  # of a run that had fewer rounds
        writer: MetricWriter = SilentWriter()
        if parallel.is_main_process():
            writer = stack.enter_context(MetricWriter(workdir, start, config.train.tensorboard))
            writer.text(start, "config", to_json(config))
        stack.enter_context(contextlib.closing(students))
        students.state = state
        del state  # held once
        outputs = Outputs(writer, writing, checkpoints, pictures)
        with catch_stop_signals() as stop:
            for round_ in rounds:
                if start >= round_.ends:
                    continue
                if parallel.is_main_process():
                    say(_about(config, round_))
                start = students.train(round_, start, stop, outputs)
                if start < round_.ends or (stop.is_set() and start < total_steps):
                    say(f"stopped by {stop.by} after saving step {start}; start the same command again to go on")
                    return start
        writing.check()
        pictures.draw_rows(_PICTURE, _rows(config, rounds), lambda at: checkpoints.restore(at, students.like), writer)
        if parallel.is_main_process():
            say(f"done: {total_steps:,} steps")
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
    if is_workdir_of(named, workdir):
        raise UserError(f"distill.teacher={named} is the workdir of the student itself; name another --workdir")
    if begun is not None and begun.teacher != named:
        if os.path.realpath(begun.teacher) == os.path.realpath(named):
            named = begun.teacher  # by another path
            config = with_values(config, {"distill.teacher": named})
        else:
            begun = None
    step = config.distill.teacher_step
    if step is None and begun is not None:
        step = begun.teacher_step
    try:
        teacher = read_teacher(named, step)
    except UserError as error:
        if begun is None or newest_step(checkpoint_dir(workdir)) is None:
            raise UserError(f"distill.teacher={named}: {error}") from error
        say(f"the teacher is not there any more ({error}); the student has what it needs of it")
        return resumed_config(config, read_config(workdir)), None
    is_other = begun is not None and begun.teacher_sha256 not in ("", teacher.sha256)
    if begun is not None and is_other and not config.train.overwrite:
        raise UserError(
            f"distill.teacher={named} has changed since this student began: the weights of step {teacher.step:,} hash "
            f"to {teacher.sha256[:12]}, not to {begun.teacher_sha256[:12]}; put those back, or name another --workdir"
        )
    return settled_config(config, teacher), teacher


def _check_not_past(workdir: epath.PathLike, total_steps: int) -> None:
    done = newest_step(checkpoint_dir(workdir))
    if done is not None and done > total_steps:
        raise UserError(
            f"distill.rounds asks for {total_steps:,} steps: the student in workdir {workdir} is past that, at step "
            f"{done:,}, and was left as it is; ask for more rounds, or name another --workdir"
        )


def _about(config: Config, round_: Round) -> str:
    distill = config.distill
    of = f"round {round_.number} of {distill.rounds}" if round_.number else "first"
    if not round_.number:
        return f"{of}: learns to predict {distill.objective} instead of {distill.teacher_objective}"
    if distill.is_progressive:
        return f"{of}: {2 * round_.steps} steps become {round_.steps}"
    nearer = "half as far apart as before" if round_.number > 1 else "half of it apart, with little noise all of it"
    return f"{of}: the two points of a way that are compared lie {nearer}"


def _drawn(config: Config, rounds: list[Round]) -> list[tuple[int, int]]:
    """What shows how good a student is: pairs of a checkpoint's step and a number of sampling steps."""
    if config.distill.is_progressive:
        return [(round_.ends, round_.steps) for round_ in rounds]
    return [(rounds[-1].ends, steps) for steps in config.eval.steps]


def _rows(config: Config, rounds: list[Round]) -> list[tuple[str, int, int]]:
    """The rows of the picture of a student: what is said of each, the checkpoint's step, sampling steps."""
    return [(f"{steps} evaluation{'s' * (steps > 1)}", at, steps) for at, steps in _drawn(config, rounds)]


def _measure(config: Config, workdir: epath.PathLike, rounds: list[Round]) -> None:
    """Adds its rows to the table of ``--mode=evaluate``, whose report shows them side by side."""
    for at, steps in _drawn(config, rounds):
        asked = {"eval.checkpoints": (str(at),), "eval.steps": (steps,), "eval.num": config.distill.measure_num}
        evaluate(with_values(config, asked), workdir)
