"""``--mode=describe``: what a config amounts to, before anything is trained."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from etils import epath
from jax.extend.core import ClosedJaxpr, Jaxpr

from ddim_jax import memory, parallel
from ddim_jax.config import Config, flatten
from ddim_jax.configured import build_sampler
from ddim_jax.diffusion.samplers import Sampler
from ddim_jax.memory import ProgramMemory
from ddim_jax.models import build_model, parameter_count
from ddim_jax.sampling.image_sampler import batch_size_for, image_indices, image_items
from ddim_jax.sampling.programs import Program, image_program
from ddim_jax.training.fitting import largest_batch
from ddim_jax.training.program import compile_ahead, make_program
from ddim_jax.training.state import TrainState, abstract_state, make_optimizer

# The middle of a longer step table is left out.
_MOST_ROWS = 100


def describe(config: Config, workdir: epath.PathLike | None = None) -> None:
    """Prints the resolved config, the parameters, the cost of a pass, the sampling steps, and the memory needed.

    Nothing is computed and no data is opened; the programs are compiled, to know their memory.

    Args:
        config: the run.
        workdir: not used; all jobs take one.

    Raises:
        UserError: a batch or sampling settings that cannot be used.
    """
    del workdir
    if not config.data.mean:
        # Training measures them; any values cost the same.
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, mean=(0.5,), std=(0.5,)))
    model = build_model(config)
    optimizer = make_optimizer(config.train, max(1, config.train.steps))
    state = abstract_state(config, model, optimizer)
    sampler = build_sampler(config)

    _heading("Config")
    for key, value in flatten(config).items():
        print(f"{key} = {value!r}")

    _heading("Parameters")
    print(parameter_overview.get_parameter_overview(state.params, include_stats=False))

    _heading("Cost per image (convolutions and matrix products; a multiply-add is two operations)")
    image = jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    forward = flops(jax.make_jaxpr(model.apply)(variables, image, time))
    print(f"forward pass:  {forward / 1e9:12.3f} GFLOP")
    print(f"training:      {3 * forward / 1e9:12.3f} GFLOP, the backward pass counted as two forward ones")
    print(f"sampling:      {sampler.evaluations * forward / 1e9:12.3f} GFLOP, {sampler.evaluations} forward passes")

    _heading("Sampling steps")
    levels = "the levels given" if config.sample.levels else f"spacing {config.sample.spacing}"
    print(f"{sampler.name}, {sampler.steps} steps, {sampler.evaluations} network evaluations, {levels}")
    _print_table(sampler)

    _heading("Memory for training")
    _print_training_memory(config, state)

    _heading("Memory for sampling")
    _print_sampling_memory(config, image_program(config, model, sampler), variables)


def flops(closed: Any) -> int:
    """Operations of the convolutions and matrix products in a traced function, from ``jax.make_jaxpr``.

    The usual count: padding is computed with like any pixel, and all else, a few percent, is left out. (XLA's own count
    leaves the padding out and depends on the backend.)
    """
    return _jaxpr_flops(closed.jaxpr)


def _jaxpr_flops(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
            total += 2 * math.prod(_shape(equation.outvars[0])) * depth
        elif equation.primitive.name == "conv_general_dilated":
            kernel = _shape(equation.invars[1])
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // features
        else:
            repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
            total += repeats * sum(map(_jaxpr_flops, _inner_jaxprs(equation.params)))
    return total


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The functions inside an operation: bodies of scans, branches, calls."""
    for value in params.values():
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(inner, ClosedJaxpr):
                yield inner.jaxpr
            elif isinstance(inner, Jaxpr):
                yield inner


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _print_table(sampler: Sampler) -> None:
    """A row per network evaluation; the coefficients of first-order samplers too."""
    table = sampler.table
    columns = {"time": table.time, "alpha_bar": table.alpha_bar, "alpha_bar_next": table.alpha_bar_next}
    if table.is_first_order:
        columns |= {"a": table.of_x0, "b": table.of_eps, "c": table.noise}
        print("x' = a x0 + b eps + c z")
    print("row " + "".join(f"{name:>15}" for name in columns))
    for row in range(sampler.evaluations):
        if sampler.evaluations > _MOST_ROWS and _MOST_ROWS // 2 <= row < sampler.evaluations - _MOST_ROWS // 2:
            if row == _MOST_ROWS // 2:
                print(f"... {sampler.evaluations - _MOST_ROWS} rows ...")
            continue
        print(f"{row + 1:4d}" + "".join(f"{column[row]:15.6g}" for column in columns.values()))


def _heading(title: str) -> None:
    print(f"\n{title}\n{'-' * len(title)}")


# --- memory -------------------------------------------------------------------------------------


def _print_training_memory(config: Config, state: TrainState) -> None:
    """What a device needs and has, and which batch fits; on a CPU also what the whole process needs."""
    devices, free = parallel.training_devices(config.train.batch_size, config.train.accumulate), _free_bytes()
    share = config.train.batch_size // len(devices)
    print(f"batch {config.train.batch_size} on {len(devices)} x {devices[0].device_kind}, {share} images each")
    needed = _training_memory(config, devices)
    memory.return_unused_memory()
    resident = memory.resident_memory()
    if needed is None:
        print("XLA does not tell for this device")
        return
    _print_memory(needed, free)
    if devices[0].platform == "cpu" and resident is not None:
        parts = {
            "the process: Python, libraries, programs": resident.now,
            "its devices": needed.total * len(devices) // parallel.process_count(),
            # A copy of the state, and what has been encoded of it.
            "a checkpoint on its way to the disk": 2 * _bytes_of(state),
        }
        if config.train.ema_on_host:
            parts["the moving average"] = _bytes_of((state.ema_params, state.ema_batch_stats))
        in_training = sum(parts.values())
        parts["before that, to compile: at most"] = resident.peak
        parts["main memory, without images kept there"] = max(in_training, resident.peak)
        for name, size in parts.items():
            print(_size_line(name, size))
    variants = {"": needed}
    if not config.model.remat:
        remat = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=True))
        variants[" with model.remat=true"] = _training_memory(remat, devices) or needed
    for variant, known in variants.items():
        if variant:
            print(_size_line(f"total{variant}", known.total) + " per device")
        if free is not None:
            largest = largest_batch(config, parameter_count(state.params), len(devices), known, free)
            print(f"largest train.batch_size that fits in what is free{variant}: {largest:,}")


def _training_memory(config: Config, devices: parallel.Devices) -> ProgramMemory | None:
    """The memory of the training step, without images kept on the devices; None where XLA does not tell."""
    model = build_model(config, parallel.mean_over_devices)
    total_steps = max(1, config.train.steps)
    optimizer = make_optimizer(config.train, total_steps)
    program = make_program(config, model, optimizer, total_steps, devices)
    return compile_ahead(program, config, model, optimizer, total_steps, num_examples=0)


def _print_sampling_memory(config: Config, program: Program, variables: Any) -> None:
    """What a device needs and has, and how many images fit."""
    free = _free_bytes()
    batch = batch_size_for(config, -(-len(image_indices(config)) // parallel.process_count()))
    items = image_items(config, np.arange(batch.size))
    needed = memory.program_memory(jax.jit(program).lower(variables, items).compile())
    print(f"{batch.size} {batch.what} per device at a time")
    if needed is None:
        print("XLA does not tell for this device")
        return
    _print_memory(needed, free)
    if free is not None:
        usable = int(free * memory.USABLE)
        largest = memory.largest_fitting_batch(batch.size, needed.arguments, needed.beside_arguments, usable)
        print(f"largest sample.batch_size that fits in {memory.USABLE:.0%} of what is free: {largest:,}")


def _free_bytes() -> int | None:
    return memory.free_bytes(parallel.local_devices())


def _bytes_of(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _print_memory(needed: ProgramMemory, free: int | None) -> None:
    sizes = {
        "what it is given: parameters, batch ...": needed.arguments,
        "activations and other temporary values": needed.temporary,
        "results that take no argument's place": needed.results,
        "total": needed.total,
    }
    for name, size in (sizes if free is None else sizes | {"free now": free}).items():
        print(_size_line(name, size) + " per device")


def _size_line(name: str, size: int) -> str:
    return f"{name:45s} {size / 2**20:10,.1f} MiB"
