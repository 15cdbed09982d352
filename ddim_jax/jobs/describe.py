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

from ddim_jax import parallel
from ddim_jax.config import Config, flatten
from ddim_jax.data.pipeline import Batch
from ddim_jax.diffusion.samplers import Sampler
from ddim_jax.diffusion.steps import StepTable
from ddim_jax.models import build_model
from ddim_jax.sampling.programs import build_sampler
from ddim_jax.training.state import abstract_state, make_optimizer
from ddim_jax.training.step import make_train_step

# Of a longer step table the middle is left out.
_MOST_ROWS = 100


def describe(config: Config, workdir: epath.PathLike | None = None) -> None:
    """Prints the resolved config, the parameters, the cost of a pass, the sampling steps, and the memory of training.

    Nothing is computed and no data is opened; the training step is compiled, to know its memory.

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
    devices = parallel.training_devices(config.train.batch_size, config.train.accumulate)

    _heading("Config")
    for key, value in flatten(config).items():
        print(f"{key} = {value!r}")

    _heading("Parameters")
    print(parameter_overview.get_parameter_overview(state.params, include_stats=False))

    _heading("Cost per image (convolutions and matrix products; a multiply-add is two operations)")
    side, channels = config.data.image_size, config.data.channels
    image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
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
    share = config.train.batch_size // len(devices)
    step = jax.jit(make_train_step(config, model, optimizer), donate_argnums=0)
    compiled = step.lower(state, _abstract_batch(config, share)).compile()
    print(f"batch {config.train.batch_size} on {len(devices)} x {devices[0].device_kind}, {share} images each")
    for name, size in _memory(compiled).items():
        print(f"{name:45s} {size / 2**20:10,.1f} MiB per device")


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
    names = ("time", "alpha_bar", "alpha_bar_next", *(("a", "b", "c") if isinstance(table, StepTable) else ()))
    if isinstance(table, StepTable):
        print("x' = a x0 + b eps + c z")
    print("row " + "".join(f"{name:>15}" for name in names))
    for row in range(sampler.evaluations):
        if sampler.evaluations > _MOST_ROWS and _MOST_ROWS // 2 <= row < sampler.evaluations - _MOST_ROWS // 2:
            if row == _MOST_ROWS // 2:
                print(f"... {sampler.evaluations - _MOST_ROWS} rows ...")
            continue
        print(f"{row + 1:4d}" + "".join(f"{getattr(table, name)[row]:15.6g}" for name in names))


def _heading(title: str) -> None:
    print(f"\n{title}\n{'-' * len(title)}")


def _abstract_batch(config: Config, n: int) -> Batch:
    shape = (n, config.data.image_size, config.data.image_size, config.data.channels)
    return jax.eval_shape(lambda: Batch(np.zeros(shape, np.uint8), np.zeros(n, np.int32), np.zeros(n, np.int32)))


def _memory(compiled: Any) -> dict[str, int]:
    """Bytes by use. Donated arguments share memory with the results."""
    analysis = compiled.memory_analysis()
    state = analysis.argument_size_in_bytes
    extra = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return {
        "parameters, optimiser, averages, batch": state,
        "activations and other temporary values": analysis.temp_size_in_bytes,
        "total": state + max(0, extra) + analysis.temp_size_in_bytes,
    }
