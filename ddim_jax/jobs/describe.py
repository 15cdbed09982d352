"""``--mode=describe``: what a config amounts to, before anything is trained."""

import contextlib
import dataclasses
import math
import textwrap
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from clu import parameter_overview
from etils import epath
from jax.extend.core import ClosedJaxpr, Jaxpr

from ddim_jax import memory, parallel
from ddim_jax.config import Config, flatten
from ddim_jax.configured import build_sampler, build_task, image_bytes
from ddim_jax.diffusion.samplers import Sampler
from ddim_jax.diffusion.table import as_data
from ddim_jax.memory import ProgramMemory
from ddim_jax.models import build_model, parameter_count
from ddim_jax.pixels import whole_range
from ddim_jax.sampling.image_sampler import batch_size_for, blank_items, image_count
from ddim_jax.sampling.programs import Given, Program, image_program
from ddim_jax.training.averages import snapshot_bytes
from ddim_jax.training.fitting import largest_batch
from ddim_jax.training.host_average import HostAverage
from ddim_jax.training.program import compile_ahead, make_program
from ddim_jax.training.state import TrainState, abstract_state, make_optimizer
from ddim_jax.training.students import described
from ddim_jax.writers import say

_LINE_WIDTH = 116


def describe(config: Config, workdir: epath.PathLike | None = None) -> None:
    """Prints a summary (parameters, cost, sampler, memory, what fits), its parts, the config; on request more tables.

    Nothing is computed and no data is opened; the programs are compiled, to know their memory.

    Args:
        config: the run.
        workdir: not used; all jobs take one.

    Raises:
        UserError: a batch or sampling settings that cannot be used.
    """
    del workdir
    asked = config
    if not config.data.mean:
        # Training measures them; any values cost the same.
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, mean=(0.5,), std=(0.5,)))
    if whole_range(config.data.dtype) is None and not config.data.range:
        # Measured by training, likewise.
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, range=(0.0, 1.0)))
    batch = config.train.batch_size
    memory.check_room(batch * image_bytes(config), "train.batch_size", batch, "the images of a batch")
    model = build_model(config)
    optimizer = make_optimizer(config.train, max(1, config.train.steps))
    state = abstract_state(config, model, optimizer)
    sampler = build_sampler(config)
    variables = {"params": state.params, "batch_stats": state.batch_stats}

    _heading("Summary")
    height, width, channels = config.data.image_shape
    num_params = parameter_count(state.params)
    print(f"{config.model.name} for images of {width}x{height}x{channels}: {num_params:,} parameters")
    if config.model.kinds:
        print(_conditions_line(config))
    if config.distill.teacher_sha256:
        print("\n  ".join(textwrap.wrap(described(config.distill), _LINE_WIDTH - 2)))
    image = jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.float32)
    moment = jax.ShapeDtypeStruct((1,), jnp.float32)
    forward = flops(jax.make_jaxpr(model.apply)(variables, image, moment))
    drawing = sampler.evaluations * forward
    print(
        f"GFLOP per image: {forward / 1e9:.3f} forward, {3 * forward / 1e9:.3f} to train, {drawing / 1e9:.3f} to draw"
    )
    levels = "the levels given" if config.sample.levels else f"spacing {config.sample.spacing}"
    print(f"{sampler.name}, {sampler.steps} steps, {sampler.evaluations} network evaluations, {levels}", flush=True)
    training = _training_memory_parts(config, state)
    print(training.summary, flush=True)
    sampling = _sampling_memory_parts(config, image_program(config, model), Given(variables, as_data(sampler.table)))
    print(sampling.summary)

    _heading("Cost per image (convolutions and matrix products; a multiply-add is two operations)")
    print(f"forward pass:  {forward / 1e9:12.3f} GFLOP")
    print(f"training:      {3 * forward / 1e9:12.3f} GFLOP, the backward pass counted as two forward ones")
    print(f"sampling:      {drawing / 1e9:12.3f} GFLOP, {sampler.evaluations} forward passes")

    for title, parts in (("Memory for training", training), ("Memory for sampling", sampling)):
        _heading(title)
        print("\n".join(parts.lines))

    _heading("Config, where it is not the default")
    _print_config(asked)

    if not config.describe.tables:
        print("\n--config.describe.tables=true: the parameters by block, and all sampling steps")
        return
    _heading("Parameters, by block of the network")
    _print_parameters(state.params)

    _heading("Sampling steps")
    _print_table(sampler)


def _conditions_line(config: Config) -> str:
    """What images are drawn from, with the share of each kind that training leaves out."""
    model, task = config.model, build_task(config)
    words = {"class": f"{model.num_classes} classes", "vector": f"vectors of {model.vector_size}"}
    if task is not None:
        height, width, channels = task.shape
        words["image"] = f"pictures of {width}x{height}x{channels} (data.condition={config.data.condition})"
    left_out = config.condition_dropout
    return "drawn from " + ", ".join(
        words[kind] + (f", {left_out[kind]:.0%} left out in training" if left_out[kind] else "") for kind in model.kinds
    )


def flops(closed: Any) -> int:
    """Operations of the convolutions and matrix products in a traced function, from ``jax.make_jaxpr``.

    The usual count: padding is computed with like any pixel, and all else, a few percent, is left out. (XLA's own count
    leaves the padding out and depends on the backend.) What has forms of its own for some platforms, as convolutions do
    on a CPU, is counted in the form of all others; of other branches the one with most operations counts.
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
        elif equation.primitive.name == "cond":
            branches = [_jaxpr_flops(branch.jaxpr) for branch in equation.params["branches"]]
            total += branches[-1] if equation.params.get("branches_platforms") else max(branches)
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


def _print_config(config: Config) -> None:
    """What a config sets, a line each; then, packed together by group, the keys that have their defaults."""
    defaults = flatten(Config())
    at_default: dict[str, list[str]] = {}
    for key, value in flatten(config).items():
        if value != defaults[key]:
            print(f"{key} = {value!r}")
        else:
            group, _, name = key.rpartition(".")
            at_default.setdefault(group or "the rest", []).append(f"{name}={value!r}")
    print("\nAt their defaults:")
    for group, settings in at_default.items():
        print(textwrap.fill(f"{group}: {', '.join(settings)}", _LINE_WIDTH, subsequent_indent="    "))


@dataclasses.dataclass(frozen=True)
class _Block:
    """A block of the network: a line of the parameter overview."""

    name: str
    arrays: int
    parameters: int


def _print_parameters(params: Any) -> None:
    """A line for each block of the network."""
    blocks = [_Block(name, len(jax.tree.leaves(block)), parameter_count(block)) for name, block in params.items()]
    print(parameter_overview.make_table(blocks))
    print(f"Total: {parameter_count(params):,} -- {_bytes_of(params):,} bytes")


def _print_table(sampler: Sampler) -> None:
    """A row per network evaluation; the coefficients of first-order samplers too."""
    table = sampler.table
    columns = {"time": table.time, "alpha_bar": table.alpha_bar, "alpha_bar_next": table.alpha_bar_next}
    if table.is_first_order:
        columns |= {"a": table.of_x0, "b": table.of_eps, "c": table.noise}
        print("x' = a x0 + b eps + c z")
    print("row " + "".join(f"{name:>15}" for name in columns))
    for row in range(sampler.evaluations):
        print(f"{row + 1:4d}" + "".join(f"{column[row]:15.6g}" for column in columns.values()))


def _heading(title: str) -> None:
    print(f"\n{title}\n{'-' * len(title)}")


# --- memory -------------------------------------------------------------------------------------


class _Memory(NamedTuple):
    """What is told of a program's memory: in one line, and in its parts."""

    summary: str
    lines: list[str]


_NOT_KNOWN = "XLA does not tell for this device"


def _training_memory_parts(config: Config, state: TrainState) -> _Memory:
    """What a device needs and has, and which batch fits; on a CPU also what the whole process needs."""
    devices, free = parallel.training_devices(config.train.batch_size, config.train.accumulate), _free_bytes()
    share = config.train.batch_size // len(devices)
    batch = f"batch {config.train.batch_size} on {len(devices)} x {devices[0].device_kind}"
    lines = [f"{batch}, {share} images each"]
    with _compiling("the training step"):
        needed = _training_memory(config, devices)
    memory.return_unused_memory()
    resident = memory.resident_memory()
    if needed is None:
        return _Memory(f"training: {batch}; its memory is not known: {_NOT_KNOWN}", [*lines, _NOT_KNOWN])
    lines += _memory_lines(needed, free)
    if devices[0].platform == "cpu" and resident is not None:
        parts = {
            "the process: Python, libraries, programs": resident.now,
            "its devices": needed.total * len(devices) // parallel.process_count(),
            # A copy of the state, and what has been encoded of it.
            "a checkpoint on its way to the disk": 2 * _bytes_of(state),
        }
        if config.train.ema_on_host:
            parts["the moving averages"] = _bytes_of(state) - _bytes_of(HostAverage.part_for_devices(state))
        if config.train.ema_widths:
            # The values, and the file made of them.
            parts["a snapshot of the averages, likewise"] = 2 * snapshot_bytes(config, state)
        in_training = sum(parts.values())
        parts["before that, to compile: at most"] = resident.peak
        parts["main memory, without images kept there"] = max(in_training, resident.peak)
        lines += [_size_line(name, size) for name, size in parts.items()]
    summary = f"training: {batch}: {_need_in_words(needed, free)}"
    if free is None:
        return _Memory(summary, lines)
    num_params = parameter_count(state.params)
    largest = largest_batch(config, num_params, len(devices), needed, free)
    summary += f"; largest batch {largest:,}"
    lines.append(f"largest train.batch_size that fits in what is free: {largest:,}")
    # Compiling takes long: the other variant only where this one does not fit.
    if needed.total > free and not config.model.remat:
        remat = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=True))
        with _compiling("the training step with model.remat=true, since it does not fit without"):
            needed = _training_memory(remat, devices) or needed
        largest = largest_batch(config, num_params, len(devices), needed, free)
        summary += f" ({largest:,} with model.remat=true)"
        lines.append(_size_line("total with model.remat=true", needed.total) + " per device")
        lines.append(f"largest train.batch_size that fits in what is free with model.remat=true: {largest:,}")
    return _Memory(summary, lines)


def _training_memory(config: Config, devices: parallel.Devices) -> ProgramMemory | None:
    """The memory of the training step, without images kept on the devices; None where XLA does not tell."""
    model = build_model(config, parallel.mean_over_devices)
    total_steps = max(1, config.train.steps)
    optimizer = make_optimizer(config.train, total_steps)
    program = make_program(config, model, optimizer, total_steps, devices)
    return compile_ahead(program, config, model, optimizer, total_steps, num_examples=0)


def _sampling_memory_parts(config: Config, program: Program, given: Given) -> _Memory:
    """What a device needs and has, and how many images fit."""
    free = _free_bytes()
    batch = batch_size_for(config, -(-image_count(config) // parallel.process_count()))
    items = blank_items(config, batch.size)
    with _compiling("the sampler"):
        needed = memory.program_memory(jax.jit(program).lower(given, items).compile())
    lines = [f"{batch.size} {batch.what} per device at a time"]
    if needed is None:
        return _Memory(f"sampling: {lines[0]}; its memory is not known: {_NOT_KNOWN}", [*lines, _NOT_KNOWN])
    lines += _memory_lines(needed, free)
    summary = f"sampling: {lines[0]}: {_need_in_words(needed, free)}"
    if free is not None:
        usable = int(free * memory.USABLE)
        largest = memory.largest_fitting_batch(batch.size, needed.arguments, needed.beside_arguments, usable)
        summary += f"; largest batch {largest:,}"
        lines.append(f"largest sample.batch_size that fits in {memory.USABLE:.0%} of what is free: {largest:,}")
    return _Memory(summary, lines)


@contextlib.contextmanager
def _compiling(what: str) -> Iterator[None]:
    """Says what is being compiled, to know its memory, and how long it took."""
    say(f"compiling {what} ...")
    started = time.perf_counter()
    yield
    say(f"compiled in {time.perf_counter() - started:.0f} s")


def _free_bytes() -> int | None:
    return memory.free_bytes(parallel.local_devices())


def _bytes_of(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _memory_lines(needed: ProgramMemory, free: int | None) -> list[str]:
    sizes = {
        "what it is given: parameters, batch ...": needed.arguments,
        "activations and other temporary values": needed.temporary,
        "results that take no argument's place": needed.results,
        "total": needed.total,
    }
    sizes = sizes if free is None else sizes | {"free now": free}
    return [_size_line(name, size) + " per device" for name, size in sizes.items()]


def _need_in_words(needed: ProgramMemory, free: int | None) -> str:
    there = "" if free is None else f" of {memory.in_words(free)} free"
    return f"{memory.in_words(needed.total)}{there} per device"


def _size_line(name: str, size: int) -> str:
    return f"{name:45s} {size / 2**20:10,.1f} MiB"
