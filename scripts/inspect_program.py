"""Compiles the training step or the sampler for devices that need not be at hand, and prints what the program costs.

    python scripts/inspect_program.py --config=configs/cifar10.py:bf16 --topology=tpu:v5e:2x2 --devices=1 --batch=128
    python scripts/inspect_program.py --config=configs/cifar10.py --topology=cpu --devices=8 --batch=2 --program=sample

Nothing runs. With the extra ``tpu`` XLA's compiler for TPUs works on any machine, and says of each piece of the program
how many cycles it expects it to take. That is the compiler's estimate, not a measurement, and leaves out what devices
wait for one another and for the host. Topologies have Cloud TPU's names: ``tpu:v5e:2x2`` are 4 chips, ``tpu:v5e:16x16``
256, ``tpu:v5p:8x8x16`` 1,024.

The programs are those of the jobs, made by the same functions for all devices (``ddim_jax/parallel.py``): one training
step on images given to it (:func:`~ddim_jax.training.step.make_train_step`), and the sampler
(:func:`~ddim_jax.sampling.programs.image_program`). Further options change the config: ``--config.sample.steps=10``.
"""

import argparse
import collections
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.machine import known_peak
from jax.experimental import topologies

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.configured import build_sampler
from ddim_jax.data.batches import Batch
from ddim_jax.diffusion.table import as_data
from ddim_jax.errors import UserError
from ddim_jax.jobs.describe import flops
from ddim_jax.main import parse as parse_command
from ddim_jax.memory import program_memory
from ddim_jax.models import build_model
from ddim_jax.sampling.image_sampler import blank_items
from ddim_jax.sampling.programs import Given, image_program
from ddim_jax.training.state import abstract_state, make_optimizer
from ddim_jax.training.step import make_train_step

# Collectives by their names in XLA's language; those that overlap with other work are cut into a start and a wait.
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)

# From the peak of the data sheet and the multiply-adds of a cycle: 4 matrix units of 128x128 a core on v5e and v5p,
# whose chips have one and two cores, 256x256 on v6e.
_CLOCK_HZ = {"TPU v5 lite": 1.5e9, "TPU v5": 1.75e9, "TPU v6 lite": 1.75e9}

_LISTED = 20

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_WRAPPER = re.compile(r"\w*\(|(while|body|cond|closed_call|shard_map|checkpoint|rematted_computation|branch_\d+_fun)$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")


# --- the compiled program's text ----------------------------------------------------------------


class Instruction(NamedTuple):
    """An instruction of a compiled program that is executed on its own, and not as a part of a fusion.

    Attributes:
        name: its name in the program.
        opcode: what it does: ``fusion``, ``convolution``, ``all-reduce`` ...
        type: shapes of its result.
        source: the operation of the network that it comes from, as JAX names it; empty where XLA made it itself.
        cycles: the compiler's estimate for one execution; 0 where it gives none.
        times: how often it is executed in one run of the program.
    """

    name: str
    opcode: str
    type: str
    source: str
    cycles: int
    times: int


def instructions(hlo: str) -> list[Instruction]:
    """All that a compiled program executes: its entry, and the bodies of its loops and branches.

    Args:
        hlo: from ``compiled.as_text()``. Loops of unknown length count once.
    """
    computations: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in hlo.splitlines():
        begins = _COMPUTATION.match(line)
        if begins:
            current = begins[2]
            computations[current] = []
            entry = current if begins[1] else entry
        elif current:
            computations[current].append(line)
    return list(_executed(computations, entry, 1))


def _executed(computations: dict[str, list[str]], name: str, times: int) -> Iterator[Instruction]:
    for line in computations.get(name, ()):
        found = _INSTRUCTION.match(line)
        if found is None:
            continue
        opcode = found[3]
        source = re.search(r'op_name="([^"]*)"', line)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
        yield Instruction(
            found[1], opcode, found[2], source[1] if source else "", int(cycles[1]) if cycles else 0, times
        )
        if opcode == "while":
            inner = times * _loop_length(computations, line)
        elif opcode in ("call", "conditional"):
            inner = times
        else:
            continue
        for called in re.findall(r"(?:body|condition|to_apply|calls|_computation)=%?([\w.\-]+)", line):
            yield from _executed(computations, called, inner)
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            for branch in re.findall(r"%?([\w.\-]+)", branches):
                yield from _executed(computations, branch, inner)


def _loop_length(computations: dict[str, list[str]], line: str) -> int:
    """How often a loop runs: as XLA says it or, as on TPUs it does not, the bound that ``lax.scan`` counts up to."""
    said = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    bounds = [
        int(bound)
        for each in computations.get(condition[1] if condition else "", ())
        for bound in re.findall(r" = s32\[\]\S* constant\((\d+)\)", each)
    ]
    return int(said[1]) if said else bounds[0] if len(bounds) == 1 else 1


class Traffic(NamedTuple):
    """Collectives of one kind in one run of a program.

    Attributes:
        number: how many are executed.
        bytes: bytes of their results on each device.
    """

    number: int
    bytes: int


def collectives(hlo: str) -> dict[str, Traffic]:
    """What crosses the network in one run of a compiled program, by kind; empty on one device."""
    found: dict[str, Traffic] = {}
    for instruction in instructions(hlo):
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            before = found.get(kind, Traffic(0, 0))
            found[kind] = Traffic(
                before.number + instruction.times, before.bytes + instruction.times * _size(instruction.type)
            )
    return found


def _size(shapes: str) -> int:
    """Bytes of a result: of ``f32[3,3]{1,0}``, or of a tuple of such."""
    sizes = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    return sum(_BYTES.get(dtype, 0) * int(np.prod([int(n) for n in dims.split(",") if n])) for dtype, dims in sizes)


def _layer(instruction: Instruction) -> str:
    """The kind of layer that an instruction belongs to, with its direction: ``conv``, ``norm, backward`` ..."""
    if not instruction.source:
        return f"({instruction.opcode})"
    # A source looks like jit(_fun)/shard_map/while/body/transpose(jvp(UNet))/up_0_block_1/conv_0/reduce_sum: without
    # what JAX wraps around layers, the last but one names the layer.
    inside = [part for part in instruction.source.split("/") if not _WRAPPER.match(part)]
    layer = re.sub(r"_\d+$", "", inside[-2]) if len(inside) > 1 else "(optimiser, loss, and other)"
    return f"{layer}, backward" if "transpose(" in instruction.source else layer


# --- the program --------------------------------------------------------------------------------


def devices_of(topology: str, count: int) -> parallel.Devices:
    """The first ``count`` devices of a topology; all if 0.

    Args:
        topology: ``cpu``, for as many CPU devices of this machine, ``local``, for the devices of this machine, or
            ``tpu:`` and the name of a TPU topology.
        count: number of devices.

    Raises:
        UserError: an unknown topology, too few devices, or TPUs without libtpu.
    """
    if topology in ("cpu", "local"):
        if topology == "cpu":
            jax.config.update("jax_platforms", "cpu")
            parallel.share_cpu(count or 1)
        devices = jax.local_devices()
    elif topology.startswith("tpu:"):
        devices = _tpu_devices(topology.removeprefix("tpu:"))
    else:
        raise UserError(f"--topology={topology} is unknown; give cpu, local, or a TPU's, such as tpu:v5e:2x2")
    if len(devices) < count:
        raise UserError(f"--topology={topology} has {len(devices)} devices, not --devices={count}")
    return devices[: count or len(devices)]


def _tpu_devices(name: str) -> parallel.Devices:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--topology=tpu:... needs XLA's compiler for TPUs: pip install 'ddim_jax[tpu]'")
    # No TPU is used: it must not be looked for, nor its lock be waited for.
    jax.config.update("jax_platforms", "cpu")
    surroundings = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.update(surroundings | {"TPU_ACCELERATOR_TYPE": "v5litepod-4"})
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(f"--topology=tpu:{name} is unknown: {str(error).splitlines()[0]}") from error


def compile_program(config: Config, program: str, devices: parallel.Devices, batch: int) -> jax.stages.Compiled:
    """Compiles one training step, or one sampler, for devices that need not exist.

    Args:
        config: the run.
        program: ``train`` or ``sample``.
        devices: from :func:`devices_of`.
        batch: images on each device.

    Raises:
        UserError: settings that no program can be made of.
    """
    num = batch * len(devices)
    model = build_model(config, parallel.mean_over_devices)
    optimizer = make_optimizer(config.train, max(1, config.train.steps))
    state = abstract_state(config, model, optimizer)
    if program == "sample":
        draw, table = image_program(config, model), as_data(build_sampler(config).table)
        # The table is known here and not given, so that the text says how often the loop is run.
        sampler: Any = parallel.map_over_batch(lambda variables, items: draw(Given(variables, table), items), devices)
        variables = {"params": state.ema_params, "batch_stats": state.ema_batch_stats}
        items = parallel.split_batch(blank_items(config, num), len(devices))
        return sampler.lower(variables, items).compile()
    step: Any = parallel.step_over_batch(
        make_train_step(config, model, optimizer, parallel.mean_over_devices), devices, donate=True
    )
    index = jax.ShapeDtypeStruct((num,), jnp.int32)
    images: Any = Batch(jax.ShapeDtypeStruct((num, *config.data.image_shape), jnp.uint8), index, index)  # pyright: ignore[reportArgumentType]
    parts = jax.eval_shape(lambda batch: parallel.split_batch(batch, len(devices)), images)
    return step.lower(state, parts).compile()


def flops_by_hand(config: Config, program: str, batch: int) -> int:
    """Convolutions and matrix products of ``batch`` images; a backward pass counts as two forward ones."""
    model = build_model(config)
    state = abstract_state(config, model, make_optimizer(config.train, 1))
    image = jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.float32)
    time_ = jax.ShapeDtypeStruct((1,), jnp.float32)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    forward = flops(jax.make_jaxpr(model.apply)(variables, image, time_))
    return batch * forward * (3 if program == "train" else build_sampler(config).evaluations)


# --- the report ---------------------------------------------------------------------------------


def inspect(config: Config, program: str, devices: parallel.Devices, batch: int) -> tuple[dict[str, Any], str]:
    """Compiles a program; returns what is known of its cost on each device, and its text.

    Args:
        config: the run.
        program: ``train`` or ``sample``.
        devices: from :func:`devices_of`.
        batch: images on each device.
    """
    start = time.perf_counter()
    compiled = compile_program(config, program, devices, batch)
    seconds = time.perf_counter() - start
    hlo = compiled.as_text() or ""
    analysis: Any = compiled.cost_analysis() or {}
    memory = program_memory(compiled)
    by_hand = flops_by_hand(config, program, batch)
    return {
        "program": program,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "images_per_device": batch,
        "compile_seconds": seconds,
        "flops_by_xla": analysis.get("flops"),
        "flops_by_hand": by_hand,
        "bytes_accessed": analysis.get("bytes accessed"),
        "memory": None if memory is None else memory._asdict() | {"total": memory.total},
        "collectives": {kind: traffic._asdict() for kind, traffic in collectives(hlo).items()},
        "estimate": _estimate(hlo, devices[0].device_kind, by_hand, config.model.dtype),
    }, hlo


def _estimate(hlo: str, device_kind: str, by_hand: int, dtype: str) -> dict[str, Any] | None:
    """The compiler's own estimate of a program's cost; None where it makes none."""
    executed = [each for each in instructions(hlo) if each.cycles]
    cycles = sum(each.cycles * each.times for each in executed)
    if not cycles:
        return None
    layers: collections.Counter[str] = collections.Counter()
    for each in executed:
        layers[_layer(each)] += each.cycles * each.times
    most = sorted(executed, key=lambda each: each.cycles * each.times, reverse=True)[:_LISTED]
    estimate: dict[str, Any] = {
        "cycles": cycles,
        "layers": dict(layers.most_common(_LISTED)),
        "instructions": [each._asdict() for each in most],
    }
    clock, peak = _CLOCK_HZ.get(device_kind), known_peak(device_kind, dtype)
    if clock is not None and peak is not None:
        seconds = cycles / clock
        estimate |= {"clock_hz": clock, "seconds": seconds, "share_of_peak": by_hand / seconds / (peak * 1e12)}
    return estimate


def markdown(found: dict[str, Any]) -> str:
    """The report for people."""
    heading = (
        f"{found['program']}, {found['images_per_device']} images on each of {found['devices']} x {found['device']}"
    )
    lines = [f"{heading}; compiled in {found['compile_seconds']:.0f} s", "", "| on each device | |", "|---|---:|"]

    def row(name: str, value: float | None, unit: str, factor: float) -> None:
        if value is not None:
            lines.append(f"| {name} | {value / factor:,.3f} {unit} |")

    row("operations, XLA's count", found["flops_by_xla"], "GFLOP", 1e9)
    row("operations, by hand (convolutions and matrix products)", found["flops_by_hand"], "GFLOP", 1e9)
    row("bytes accessed, XLA's count", found["bytes_accessed"], "GB", 1e9)
    for name, size in (found["memory"] or {}).items():
        row(f"memory: {name}", size, "MiB", 2**20)
    for kind, traffic in found["collectives"].items():
        row(f"{kind}, {traffic['number']} of them", traffic["bytes"], "MB", 1e6)
    if not found["collectives"]:
        lines.append("| collectives | none |")
    estimate = found["estimate"]
    if estimate is None:
        return "\n".join([*lines, "", "XLA's compiler gives no cycles for this device."])
    row("the compiler's estimate, not a measurement", estimate["cycles"], "million cycles", 1e6)
    if "seconds" in estimate:
        row(f"... at {estimate['clock_hz'] / 1e9:g} GHz", estimate["seconds"], "ms", 1e-3)
        row("... share of the data sheet's peak, by operations by hand", estimate["share_of_peak"], "%", 1e-2)

    def share(cycles: int) -> str:
        return f"{cycles / 1e6:,.3f} | {cycles / estimate['cycles']:.1%}"

    lines += ["", "| layers | million cycles | share |", "|---|---:|---:|"]
    lines += [f"| {layer} | {share(cycles)} |" for layer, cycles in estimate["layers"].items()]
    lines += ["", "| instruction | times | million cycles | share | from |", "|---|---:|---:|---:|---|"]
    for each in estimate["instructions"]:
        source = "/".join(each["source"].split("/")[-3:])
        cost = share(each["cycles"] * each["times"])
        lines.append(f"| {each['opcode']} {each['name']} | {each['times']} | {cost} | {source} |")
    return "\n".join(lines)


# --- the command --------------------------------------------------------------------------------


def _read_config(arguments: Sequence[str], num: int) -> Config:
    """The config that the command line describes, for ``num`` images at a time."""
    # No other mode does without a workdir.
    config, _ = parse_command(["", "--mode=describe", *arguments, f"--config.train.batch_size={num}"])
    if not config.data.mean:
        # Training measures them; any values cost the same.
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, mean=(0.5,), std=(0.5,)))
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles, prints, and writes the files; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="--config=FILE[:VARIANTS] and --config.GROUP.KEY=VALUE choose the network",
        allow_abbrev=False,
    )
    parser.add_argument("--topology", default="local", help="cpu, local, or tpu:NAME (%(default)s)")
    parser.add_argument("--devices", type=int, default=0, help="how many of its devices (all)")
    parser.add_argument("--program", choices=("train", "sample"), default="train", help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images on each device (%(default)s)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="file for all figures")
    parser.add_argument("--hlo", type=pathlib.Path, metavar="FILE", help="file for the compiled program's text")
    options, rest = parser.parse_known_args(arguments)
    unknown = [argument for argument in rest if not argument.startswith("--config")]
    if unknown or not rest:
        parser.error(f"unknown: {' '.join(unknown)}" if unknown else "--config=configs/NAME.py is missing")
    try:
        devices = devices_of(options.topology, options.devices)
        config = _read_config(rest, options.batch * len(devices))
        found, hlo = inspect(config, options.program, devices, options.batch)
    except UserError as error:
        print(f"inspect_program: error: {error}", file=sys.stderr)
        return 2
    if options.hlo is not None:
        options.hlo.write_text(hlo)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
