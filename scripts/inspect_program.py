"""Compiles the training step, the sampler or Inception for devices that need not be there, and prints the cost.

    python scripts/inspect_program.py --config=configs/cifar10.py:bf16 --topology=tpu:v5e:2x2 --devices=1 --batch=128
    python scripts/inspect_program.py --config=configs/cifar10.py:bf16 --topology=cuda:h100 --batch=128
    python scripts/inspect_program.py --config=configs/cifar10.py --topology=cpu --devices=8 --batch=2 --program=sample

Nothing runs.

With the extra ``tpu`` XLA's compiler for TPUs works on any machine, and says of each piece of the program how many
cycles it expects it to take. That is the compiler's estimate, not a measurement, and leaves out what devices wait for
one another and for the host. Topologies have Cloud TPU's names: ``tpu:v5e:2x2`` are 4 chips, ``tpu:v5e:16x16`` 256,
``tpu:v5p:8x8x16`` 1,024.

With the extra ``cuda`` XLA's compiler for NVIDIA GPUs does: ``cuda:h100``, ``cuda:h200``, ``cuda:a100``, and
``cuda:h100x8`` for eight of them. It makes no estimate; from the program's text this script reads what each kernel
computes, reads and writes, and adds up the least time (``inspecting/roofline.py``). Without a GPU nothing is autotuned:
on a real one XLA may choose other kernels.

The programs are those of the jobs, made by the same functions for all devices (``ddim_jax/parallel.py``): one training
step on images given to it (:func:`~ddim_jax.training.step.make_train_step`), the sampler
(:func:`~ddim_jax.sampling.programs.image_program`), and Inception on images of the config's size. Further options
change the config: ``--config.sample.steps=10``.
"""

import argparse
import collections
import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from benchmarks.machine import known_device, known_peak
from inspecting import cuda, roofline
from inspecting.text import Program, collectives, layer_of
from jax.experimental import topologies

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.configured import build_sampler
from ddim_jax.data.batches import Batch
from ddim_jax.diffusion.table import as_data
from ddim_jax.errors import UserError
from ddim_jax.jobs.describe import flops
from ddim_jax.main import parse as parse_command
from ddim_jax.measuring.resize import resize
from ddim_jax.memory import program_memory
from ddim_jax.models import build_model
from ddim_jax.models.inception import INPUT_SIZE, Inception
from ddim_jax.sampling.image_sampler import blank_items
from ddim_jax.sampling.programs import Given, image_program
from ddim_jax.training.state import abstract_state, make_optimizer
from ddim_jax.training.step import make_train_step

# From the peak of the data sheet and the multiply-adds of a cycle: 4 matrix units of 128x128 a core on v5e and v5p,
# whose chips have one and two cores, 256x256 on v6e.
_CLOCK_HZ = {"TPU v5 lite": 1.5e9, "TPU v5": 1.75e9, "TPU v6 lite": 1.75e9}

_LISTED = 20

PROGRAMS = ("train", "sample", "inception")


# --- the program --------------------------------------------------------------------------------


def devices_of(topology: str, count: int) -> parallel.Devices:
    """The first ``count`` devices of a topology; all if 0.

    Args:
        topology: ``cpu``, for as many CPU devices of this machine, ``local``, for the devices of this machine, or
            ``tpu:`` and the name of a TPU topology, or ``cuda:`` and a GPU of ``inspecting/cuda.py``.
        count: number of devices.

    Raises:
        UserError: an unknown topology, too few devices, or no compiler for them.
    """
    if topology in ("cpu", "local"):
        if topology == "cpu":
            jax.config.update("jax_platforms", "cpu")
            parallel.share_cpu(count or 1)
        devices = jax.local_devices()
    elif topology.startswith("tpu:"):
        devices = _tpu_devices(topology.removeprefix("tpu:"))
    elif topology.startswith("cuda:"):
        devices = cuda.devices(topology.removeprefix("cuda:"))
    else:
        raise UserError(
            f"--topology={topology} is unknown; give cpu, local, a TPU's, such as tpu:v5e:2x2, or GPUs, such as "
            "cuda:h100 or cuda:h100x8"
        )
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
    """Compiles one training step, one sampler, or Inception, for devices that need not exist.

    Args:
        config: the run.
        program: one of ``PROGRAMS``.
        devices: from :func:`devices_of`.
        batch: images on each device.

    Raises:
        UserError: settings that no program can be made of.
    """
    num = batch * len(devices)
    if program == "inception":
        features: Any = parallel.map_over_batch(_features(config), devices)
        pictures = jax.ShapeDtypeStruct((num, *config.data.image_shape), jnp.uint8)
        parts = jax.eval_shape(lambda images: parallel.split_batch(images, len(devices)), pictures)
        return features.lower(_inception_variables(), parts).compile()
    model = build_model(config, parallel.mean_over_devices, compute_capability=cuda.compute_capability(devices))
    optimizer = make_optimizer(config.train, max(1, config.train.steps))
    state = abstract_state(config, model, optimizer)
    if program == "sample":
        draw, table = image_program(config, model), as_data(build_sampler(config).table)
        # The table is known here and not given, so that the text says how often the loop is run.
        sampler: Any = parallel.map_over_batch(lambda variables, items: draw(Given(variables, table), items), devices)
        variables = {"params": state.ema_params, "batch_stats": state.ema_batch_stats}
        # Shapes and no arrays: those would have to be where the program runs.
        items = jax.eval_shape(lambda: parallel.split_batch(blank_items(config, num), len(devices)))
        return sampler.lower(variables, items).compile()
    step: Any = parallel.step_over_batch(
        make_train_step(config, model, optimizer, parallel.mean_over_devices), devices, donate=True
    )
    index = jax.ShapeDtypeStruct((num,), jnp.int32)
    images: Any = Batch(jax.ShapeDtypeStruct((num, *config.data.image_shape), jnp.uint8), index, index)  # pyright: ignore[reportArgumentType]
    parts = jax.eval_shape(lambda batch: parallel.split_batch(batch, len(devices)), images)
    return step.lower(state, parts).compile()


def _features(config: Config) -> Callable[[Any, jax.Array], Any]:
    """From uint8 images to Inception's features, as an evaluation computes them."""
    return lambda variables, images: Inception().apply(variables, resize(images, config.eval.resize))


def _inception_variables() -> Any:
    """Shapes of Inception's parameters."""
    image = jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, 3), jnp.float32)
    return jax.eval_shape(Inception().init, jax.random.key(0), image)


def flops_by_hand(config: Config, program: str, batch: int) -> int:
    """Convolutions and matrix products of ``batch`` images; a backward pass counts as two forward ones."""
    if program == "inception":
        picture = jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.uint8)
        return batch * flops(jax.make_jaxpr(_features(config))(_inception_variables(), picture))
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
        program: one of ``PROGRAMS``.
        devices: from :func:`devices_of`.
        batch: images on each device.
    """
    start = time.perf_counter()
    with cuda.as_if_there(devices):
        compiled = compile_program(config, program, devices, batch)
    seconds = time.perf_counter() - start
    hlo = compiled.as_text() or ""
    analysis: Any = compiled.cost_analysis() or {}
    memory = program_memory(compiled)
    by_hand = flops_by_hand(config, program, batch)
    device_kind = devices[0].device_kind
    # Inception is exact wherever it runs.
    dtype = "exact" if program == "inception" else config.model.dtype
    return {
        "program": program,
        "device": device_kind,
        "devices": len(devices),
        "images_per_device": batch,
        "compile_seconds": seconds,
        "flops_by_xla": analysis.get("flops"),
        "flops_by_hand": by_hand,
        "bytes_accessed": analysis.get("bytes accessed"),
        "memory": None if memory is None else memory._asdict() | {"total": memory.total},
        "collectives": {kind: traffic._asdict() for kind, traffic in collectives(hlo).items()},
        "estimate": _estimate(hlo, device_kind, by_hand, dtype),
        "roofline": _roofline(hlo, device_kind, by_hand, dtype) if devices[0].platform == "gpu" else None,
    }, hlo


def _estimate(hlo: str, device_kind: str, by_hand: int, dtype: str) -> dict[str, Any] | None:
    """The compiler's own estimate of a program's cost; None where it makes none."""
    executed = [each for each in Program(hlo).instructions() if each.cycles]
    cycles = sum(each.cycles * each.times for each in executed)
    if not cycles:
        return None
    layers: collections.Counter[str] = collections.Counter()
    for each in executed:
        layers[layer_of(each)] += each.cycles * each.times
    most = sorted(executed, key=lambda each: each.cycles * each.times, reverse=True)[:_LISTED]
    estimate: dict[str, Any] = {
        "cycles": cycles,
        "layers": dict(layers.most_common(_LISTED)),
        "instructions": [
            {
                "name": each.name,
                "opcode": each.opcode,
                "source": each.source,
                "cycles": each.cycles,
                "times": each.times,
            }
            for each in most
        ],
    }
    clock, peak = _CLOCK_HZ.get(device_kind), known_peak(device_kind, dtype)
    if clock is not None and peak is not None:
        seconds = cycles / clock
        estimate |= {"clock_hz": clock, "seconds": seconds, "share_of_peak": by_hand / seconds / (peak * 1e12)}
    return estimate


def _roofline(hlo: str, device_kind: str, by_hand: int, dtype: str) -> dict[str, Any] | None:
    """The least time that a program for GPUs takes (``inspecting/roofline.py``); None for a GPU of unknown limits."""
    peak = known_device(device_kind)
    if peak is None:
        return None
    kernels = roofline.kernels(hlo, peak)
    everything = roofline.total(kernels)
    others = [kernel for kernel in kernels if not roofline.is_convolution(kernel)]
    by_layer = roofline.by([f"{kernel.layer}: {kernel.kind}" for kernel in others], others)
    most = sorted(kernels, key=lambda kernel: kernel.seconds * kernel.instruction.times, reverse=True)[:_LISTED]
    return {
        "kernels": everything.kernels,
        "bytes": everything.bytes,
        "bytes_beside_convolutions": roofline.total(others).bytes,
        "seconds": everything.seconds,
        "flop_counted": sum(kernel.flop * kernel.instruction.times for kernel in kernels),
        "share_of_peak_assumed": roofline.SHARE_OF_PEAK,
        "bandwidth": peak.bandwidth * 1e12,
        "share_of_peak": by_hand / everything.seconds / (getattr(peak, dtype) * 1e12),
        "kinds": {kind: each._asdict() for kind, each in roofline.by([k.kind for k in kernels], kernels).items()},
        "layers": {layer: each._asdict() for layer, each in list(by_layer.items())[:_LISTED]},
        "instructions": [
            {
                "name": kernel.instruction.name,
                "kind": kernel.kind,
                "source": kernel.instruction.source,
                "times": kernel.instruction.times,
                "flop": kernel.flop,
                "bytes": kernel.bytes,
                "seconds": kernel.seconds,
            }
            for kernel in most
        ],
    }


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
    if found["roofline"] is not None:
        return "\n".join([*lines, *_roofline_lines(found["roofline"])])
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


def _roofline_lines(limits: dict[str, Any]) -> list[str]:
    """The report of :func:`_roofline`: the rest of the table of the program, and three more."""
    share, bandwidth = limits["share_of_peak_assumed"], limits["bandwidth"] / 1e12
    lines = [
        f"| kernels | {limits['kernels']:,} |",
        f"| operations, by the program's text | {limits['flop_counted'] / 1e9:,.3f} GFLOP |",
        f"| bytes read and written | {limits['bytes'] / 1e9:,.3f} GB |",
        f"| ... beside cuDNN's convolutions | {limits['bytes_beside_convolutions'] / 1e9:,.3f} GB |",
        f"| the least time, at {share:.0%} of the peak and {bandwidth:g} TB/s | {limits['seconds'] * 1e3:,.3f} ms |",
        f"| ... share of the data sheet's peak, by operations by hand | {limits['share_of_peak']:.1%} |",
    ]
    for key, title in (("kinds", "kernels that are"), ("layers", "kernels beside convolutions of")):
        lines += ["", f"| {title} | number | GB | ms |", "|---|---:|---:|---:|"]
        lines += [
            f"| {name} | {each['kernels']:,} | {each['bytes'] / 1e9:,.3f} | {each['seconds'] * 1e3:,.3f} |"
            for name, each in limits[key].items()
        ]
    lines += ["", "| kernel | times | GFLOP | MB | ms | from |", "|---|---:|---:|---:|---:|---|"]
    for each in limits["instructions"]:
        source = "/".join(each["source"].split("/")[-3:])
        cost = f"{each['flop'] / 1e9:,.1f} | {each['bytes'] / 1e6:,.1f} | {each['seconds'] * 1e3:,.3f}"
        lines.append(f"| {each['name']} | {each['times']} | {cost} | {source} |")
    return lines


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
    parser.add_argument("--topology", default="local", help="cpu, local, tpu:NAME or cuda:NAME (%(default)s)")
    parser.add_argument("--devices", type=int, default=0, help="how many of its devices (all)")
    parser.add_argument("--program", choices=PROGRAMS, default="train", help="(%(default)s)")
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
