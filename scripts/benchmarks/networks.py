"""A forward pass, and sampling by DDIM."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import Peers
from benchmarks.rows import OURS, Program, Row, Task, with_details, with_remark
from benchmarks.setting import Setting, time_compilation
from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.configured import build_sampler
from ddim_jax.diffusion.table import as_data
from ddim_jax.jobs.describe import flops
from ddim_jax.models import build_model
from ddim_jax.sampling.image_sampler import blank_items
from ddim_jax.sampling.programs import Given, image_program
from ddim_jax.training.state import init_state, make_optimizer

# What the paper measures samples by.
_MANY_IMAGES = 50_000


def random_params(config: Config) -> Any:
    """Parameters under which the network computes something: DDPM's initial ones make its output almost zero."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, init="torch"))
    state = init_state(config, build_model(config), make_optimizer(config.train, 1))
    return jax.device_get({"params": state.params, "batch_stats": state.batch_stats})


def forward_flop(config: Config) -> float:
    """Operations of a forward pass of one image."""
    model = build_model(config)
    image, noise_level = jnp.zeros((1, *config.data.image_shape)), jnp.zeros(1)
    variables = jax.eval_shape(model.init, jax.random.key(0), image, noise_level)
    return flops(jax.make_jaxpr(model.apply)(variables, image, noise_level))


def measure_forward(setting: Setting, peers: Peers | None) -> list[Row]:
    """One pass of the network without dropout, from float32 images on the device."""
    config = setting.config
    variables = random_params(config)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((setting.batch, *config.data.image_shape)).astype(np.float32)
    times = rng.integers(0, config.diffusion.num_levels, setting.batch).astype(np.float32)
    label = np.zeros(setting.batch, np.int32) if config.model.num_classes else None

    theirs = peers.forward(config, variables["params"], x, times, setting.calls) if peers else {}
    images = setting.batch * setting.calls
    task = Task("forward", images, images * forward_flop(config))
    ours = functools.partial(_forward_program, setting, variables, (x, times, label))
    turns = setting.compare(task, {OURS: ours, **theirs})
    return [_with_distance(row, turns.results) for row in turns.rows]


def _forward_program(setting: Setting, variables: Any, arguments: tuple[np.ndarray | None, ...]) -> Program:
    model, devices = build_model(setting.config), setting.devices
    on_devices = parallel.replicate(variables, devices)
    # A program that returns its arguments leaves them on the devices.
    keep = parallel.map_over_batch(lambda _, inputs: inputs, devices)
    inputs = keep(0, parallel.split_batch(arguments, len(devices)))
    forward: Any = parallel.map_over_batch(lambda variables, inputs: model.apply(variables, *inputs), devices)
    ahead = time_compilation(lambda: forward.lower(on_devices, inputs).compile())

    def run() -> np.ndarray:
        outputs = [ahead.result(on_devices, inputs) for _ in range(setting.calls)]
        return parallel.join_batch(outputs[-1])

    return Program(run, ahead.lower_seconds, ahead.compile_seconds, ahead.result.as_text)


def _with_distance(row: Row, results: Mapping[str, Any]) -> Row:
    """Says how far a peer's output is from ours."""
    ours, theirs = results.get(OURS), results.get(row.program)
    if row.program == OURS or ours is None or theirs is None:
        return row
    error = np.max(np.abs(theirs - ours)) / np.max(np.abs(ours))
    return with_remark(row, f"output differs by {error:.0e}")


def measure_sample(setting: Setting, peers: Peers | None) -> list[Row]:
    """One trajectory of DDIM, from the image indices to uint8 images in the host's memory."""
    rows = []
    for steps in setting.steps:
        sample = dataclasses.replace(setting.config.sample, sampler="ddim", steps=steps, preset="", levels=())
        rows += _measure_trajectory(setting._replace(config=dataclasses.replace(setting.config, sample=sample)), peers)
    return rows


def _measure_trajectory(setting: Setting, peers: Peers | None) -> list[Row]:
    config = setting.config
    variables = random_params(config)
    # Guidance asks the network twice in each step.
    guided = 2 if config.model.num_classes and config.sample.guidance_scale != 1 else 1
    flop = setting.batch * build_sampler(config).evaluations * guided * forward_flop(config)
    theirs = peers.sample(config, variables["params"], setting.batch) if peers else {}
    task = Task(f"sample, {config.sample.steps} steps", setting.batch, flop)
    ours = functools.partial(_sample_program, setting, variables)
    return [_with_many(row) for row in setting.compare(task, {OURS: ours, **theirs}).rows]


def _sample_program(setting: Setting, variables: Any) -> Program:
    config, devices = setting.config, setting.devices
    sampler = build_sampler(config)
    on_devices = parallel.replicate(Given(variables, as_data(sampler.table)), devices)
    items = parallel.split_batch(blank_items(config, setting.batch), len(devices))
    program: Any = parallel.map_over_batch(image_program(config, build_model(config)), devices)
    ahead = time_compilation(lambda: program.lower(on_devices, items).compile())

    def run() -> np.ndarray:
        return parallel.join_batch(ahead.result(on_devices, items)).result

    return Program(run, ahead.lower_seconds, ahead.compile_seconds, ahead.result.as_text)


def _with_many(row: Row) -> Row:
    """Says how long as many images take as FID is measured with."""
    if not row.values:
        return row
    seconds = _MANY_IMAGES / row.images_per_second
    row = with_remark(row, f"{_MANY_IMAGES:,} images in {seconds:,.0f} s")
    return with_details(row, seconds_for_50000_images=seconds)
