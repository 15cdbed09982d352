"""The training step as the training job runs it."""

import functools
import itertools
from collections.abc import Callable

import numpy as np

from benchmarks.networks import forward_flop, random_params
from benchmarks.peers import Peers
from benchmarks.rows import OURS, Program, Row, Task
from benchmarks.setting import Setting, time_compilation
from ddim_jax import memory, parallel
from ddim_jax.data.batch_order import BatchOrder
from ddim_jax.data.batches import train_batches
from ddim_jax.data.prepared import open_images
from ddim_jax.data.sources import Source
from ddim_jax.models import build_model
from ddim_jax.training.data import batches_for, live_on_devices
from ddim_jax.training.host_average import HostAverage
from ddim_jax.training.program import compile_ahead, make_program
from ddim_jax.training.state import init_state, make_optimizer


def measure_train(setting: Setting, peers: Peers | None) -> list[Row]:
    """Training steps on batches of real images: forward, backward, clipping, Adam, moving average.

    The host dispatches a step while others are in flight, as in the job, and hears of the last loss at the end of a
    repeat.
    """
    config = setting.config
    source = open_images(config.data)
    size = config.train.steps_per_call
    groups = -(-setting.calls // size)
    theirs: dict[str, Callable[[], Program]] = {}
    if peers is not None:
        batch = _first_images(setting, source)
        theirs = peers.train(config, random_params(config)["params"], batch, groups * size)
    images = setting.batch * groups * size
    task = Task("train", images, 3 * images * forward_flop(config))
    return setting.compare(task, {OURS: functools.partial(_train_program, setting, source, groups), **theirs}).rows


def _train_program(setting: Setting, source: Source, groups: int) -> Program:
    """``groups`` dispatches of the training step."""
    config, devices = setting.config, setting.devices
    model = build_model(config, parallel.mean_over_devices)
    total_steps = config.train.steps
    optimizer = make_optimizer(config.train, total_steps)
    on_device = live_on_devices(len(source), config.data, devices, memory.free_bytes(devices))
    program = make_program(config, model, optimizer, total_steps, devices, images_on_device=on_device)
    ahead = time_compilation(lambda: compile_ahead(program, config, model, optimizer, total_steps, len(source)))
    batches = batches_for(program, config, source, start=0)
    state = init_state(config, model, optimizer)
    average = HostAverage(config.train, state) if config.train.ema_on_host else None
    state = parallel.replicate(state if average is None else average.part_for_devices(state), devices)
    size = config.train.steps_per_call
    steps_done = 0

    def run() -> float:
        nonlocal state, steps_done
        in_flight = parallel.StepsInFlight(max(1, parallel.MAX_STEPS_IN_FLIGHT // size))
        for _ in range(groups):
            state, result = program(state, list(itertools.islice(batches, size)))
            if average is not None:
                average.update(steps_done, state)
            steps_done += size
            in_flight.add(result)
        return float(in_flight.drain()[-1].metrics.loss[-1])

    details = {"program_bytes": None if ahead.result is None else ahead.result.total}
    return Program(run, ahead.lower_seconds, ahead.compile_seconds, program.text, details)


def _first_images(setting: Setting, source: Source) -> np.ndarray:
    """One batch of uint8 images."""
    return next(iter(train_batches(source, setting.config.data, BatchOrder(seed=0, batch_size=setting.batch)))).image
