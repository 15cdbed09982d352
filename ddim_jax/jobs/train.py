"""``--mode=train``: train, or resume, until the last step; draw grids on the way and at the end."""

import concurrent.futures
import contextlib
import dataclasses

from etils import epath

from ddim_jax import memory, parallel
from ddim_jax.config import Config, DistillConfig, check_new_network, to_json
from ddim_jax.configured import build_sampler
from ddim_jax.data.sources import check_labels
from ddim_jax.errors import UserError
from ddim_jax.models import build_model, parameter_count
from ddim_jax.one_writer import check_no_other_writer, one_writer
from ddim_jax.training.averages import AverageSnapshots
from ddim_jax.training.best import BestCheckpoint, check_metric
from ddim_jax.training.checkpoint import Checkpoints, newest_step
from ddim_jax.training.data import batches_for, count_steps, live_on_devices, open_sources, with_statistics
from ddim_jax.training.fitting import check_could_fit, explaining_out_of_memory
from ddim_jax.training.groups import group_ending_at
from ddim_jax.training.guide import load_guide
from ddim_jax.training.host_average import HostAverage
from ddim_jax.training.initial_weights import read_initial_weights
from ddim_jax.training.log import announce
from ddim_jax.training.loop import TrainingLoop
from ddim_jax.training.pictures import TrainingPictures, condition_of_examples, data_figures_for
from ddim_jax.training.program import compile_ahead, make_program
from ddim_jax.training.state import abstract_state, init_state, make_optimizer
from ddim_jax.training.stop_signals import catch_stop_signals
from ddim_jax.training.validation import Validation
from ddim_jax.workdir import check_writable, checkpoint_dir, config_path, is_resumed, prepare_for_training, run_in
from ddim_jax.writers import MetricWriter, SilentWriter, say


def train(config: Config, workdir: epath.PathLike) -> int | None:
    """Runs the job.

    A run that was killed, at whatever moment, and is started again goes on from its newest checkpoint and ends with
    the parameters of an uninterrupted run, bit by bit: each step depends on (config, seed, step) alone.

    Args:
        config: the run.
        workdir: where it is written.

    Returns:
        The step at which a signal stopped the run before its end, saved; None when the run is complete.

    Raises:
        UserError: the workdir, data or config cannot be used, another job trains or imports there, the run is past its
            last step already, a batch does not fit into memory, or the loss stopped being finite.
    """
    if config.distill.teacher and (config.train.overwrite or not config_path(workdir).exists()):
        config = dataclasses.replace(config, distill=DistillConfig())  # of a student whose config serves another run
    if config.distill.teacher:
        raise UserError(
            f"workdir {workdir} is a student's, which --mode=distill trains; to train its network further on images, "
            f"name another --workdir and add --config.train.init_from={workdir}"
        )
    # What can be refused without the data is refused before they are opened, which may mean to prepare them.
    check_no_other_writer(*run_in(workdir))
    if not config_path(workdir).exists():
        check_new_network(config)
    build_sampler(config)
    check_metric(config)
    check_writable(workdir)
    main_process = parallel.is_main_process()
    config, initial = read_initial_weights(config, workdir)
    devices = parallel.training_devices(config.train.batch_size, config.train.accumulate)
    free = memory.free_bytes([device for device in devices if device in parallel.local_devices()])
    check_could_fit(config, len(devices), free)
    source, validation_source = open_sources(config.data)
    check_labels(source, config.model.num_classes)
    config = with_statistics(config, workdir, source)
    total_steps = count_steps(config, len(source))
    model = build_model(config, parallel.mean_over_devices)
    guide = load_guide(config)
    shown_source = source if validation_source is None else validation_source
    shown = condition_of_examples(config, shown_source, config.train.sample_num)
    pictures = TrainingPictures(
        config,
        model,
        epath.Path(workdir),
        total_steps,
        len(source),
        shown,
        guide,
        data_figures_for(config, source),
    )
    validation = best = None
    if main_process and config.train.validate_every and validation_source is not None:
        validation = Validation(config, model, validation_source)
    resumed = is_resumed(workdir, config)
    if resumed:
        _check_not_past(config, workdir, total_steps)
    optimizer = make_optimizer(config.train, total_steps)
    on_device = live_on_devices(len(source), config.data, devices, free)
    program = make_program(config, model, optimizer, total_steps, devices, images_on_device=on_device)

    with contextlib.ExitStack() as stack:
        # Beside the reading of images and checkpoints.
        compiler = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))

        def compile_beside() -> concurrent.futures.Future[memory.ProgramMemory | None]:
            return compiler.submit(compile_ahead, program, config, model, optimizer, total_steps, len(source))

        # First, for the compiler needs it too, and tracing is done by one thread at a time.
        like = abstract_state(config, model, optimizer)
        num_params = parameter_count(like.params)
        ahead = parallel.process_count() == 1
        compiling = compile_beside() if ahead and not resumed else None
        # Beside the compiling: both take seconds.
        state = None if resumed else init_state(config, model, optimizer)
        batches = None
        if not resumed:
            batches = stack.enter_context(contextlib.closing(batches_for(program, config, source, 0)))
        needed = _memory_of(compiling, config, num_params, len(devices), free)
        # All that a config can get wrong has been tried: only now is anything written.
        writing = stack.enter_context(one_writer(*run_in(workdir)))
        prepare_for_training(workdir, config, write=main_process)
        parallel.barrier("workdir")
        checkpoints = stack.enter_context(
            Checkpoints(checkpoint_dir(workdir), config.train.keep_last, config.train.keep_every or None)
        )
        saved = checkpoints.latest_step()
        start = saved or 0  # 0 also where imported weights do not say how long they were trained
        if compiling is None and ahead and start < total_steps:
            compiling = compile_beside()
        if main_process and config.train.measure_every:
            measured = condition_of_examples(config, source, config.train.measure_num)
            best = stack.enter_context(
                contextlib.closing(BestCheckpoint(config, model, workdir, writing, measured, guide))
            )
        if saved is not None:
            # An earlier step where the newest is damaged.
            start, state = checkpoints.restore_newest(like, together=True)
        else:
            state = init_state(config, model, optimizer) if state is None else state
            if initial is not None:
                state = initial.begin(state, optimizer)
                checkpoints.save(0, state)  # from here on nobody needs the source any more
        announce(config, state, len(source), start, total_steps, devices)
        writer: MetricWriter = SilentWriter()
        if main_process:
            writer = stack.enter_context(MetricWriter(workdir, start, config.train.tensorboard))
            writer.text(start, "config", to_json(config))
        if best is not None and start and (start == total_steps or start % config.train.measure_every == 0):
            # The run may have been killed while this was being measured.
            best.measure_if_missing(start, state, writer)
        if 0 < start < total_steps:
            pictures.draw_if_missing(group_ending_at(start, config.train.steps_per_call), state, writer)
        if start < total_steps:
            if batches is None or start:
                batches = stack.enter_context(contextlib.closing(batches_for(program, config, source, start)))
            average = HostAverage(config.train, state) if config.train.ema_on_host else None
            needed = _memory_of(compiling, config, num_params, len(devices), free)
            memory.return_unused_memory()  # of the compiler
            if needed is not None and main_process:
                of_free = "" if free is None else f" of the {memory.in_words(free)} that are free"
                say(f"a step takes {memory.in_words(needed.total)} per device{of_free}")
            state = parallel.replicate(state if average is None else average.part_for_devices(state), devices)
            loop = TrainingLoop(
                config=config,
                total_steps=total_steps,
                writer=writer,
                writing=writing,
                checkpoints=checkpoints,
                pictures=pictures,
                validation=validation,
                best=best,
                average=average,
                snapshots=AverageSnapshots(config, workdir) if config.train.ema_widths else None,
            )
            with catch_stop_signals() as stop, explaining_out_of_memory(config, num_params, len(devices), needed, free):
                state, stopped_at = loop.run(program, state, batches, start, stop)
            if stopped_at is not None:
                say(f"stopped by {stop.by} after saving step {stopped_at}; start the same command again to go on")
                return stopped_at
        if main_process:
            writing.check()
            pictures.draw_final(state, writer)
        parallel.barrier("final pictures")
    return None


def _memory_of(
    compiling: concurrent.futures.Future[memory.ProgramMemory | None] | None,
    config: Config,
    num_params: int,
    num_devices: int,
    free: int | None,
) -> memory.ProgramMemory | None:
    """What the step needs, once it is compiled; None where that is not known.

    Raises:
        UserError: more than there is.
    """
    if compiling is None:
        return None
    with explaining_out_of_memory(config, num_params, num_devices, None, free):
        needed = compiling.result()
    with explaining_out_of_memory(config, num_params, num_devices, needed, free):
        return needed


def _check_not_past(config: Config, workdir: epath.PathLike, total_steps: int) -> None:
    """Refuses to end a run before where it is: its pictures and its config would say what is not true."""
    done = newest_step(checkpoint_dir(workdir))
    if done is not None and done > total_steps:
        epochs = config.train.epochs
        asked = f"train.epochs={epochs:g} ({total_steps:,} steps)" if epochs else f"train.steps={total_steps}"
        raise UserError(
            f"{asked}: the run in workdir {workdir} is past that, at step {done:,}, and was left as it is; ask for "
            "more, or name another --workdir"
        )
