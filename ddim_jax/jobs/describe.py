"""``--mode=describe``: what a config amounts to, before anything is trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview

from ddim_jax import parallel
from ddim_jax.config import Config, flatten
from ddim_jax.data.pipeline import Batch
from ddim_jax.models import build_model
from ddim_jax.sampling.sampler import build_table
from ddim_jax.training.state import abstract_state, make_optimizer
from ddim_jax.training.step import make_train_step


def describe(config: Config) -> None:
    """Prints the resolved config, the parameters, the cost of a step, the memory it needs, and the sampling steps."""
    model = build_model(config)
    optimizer = make_optimizer(config.train, max(1, config.train.steps))
    state = abstract_state(config, model, optimizer)

    _heading("Config")
    for key, value in flatten(config).items():
        print(f"{key} = {value!r}")

    _heading("Parameters")
    print(parameter_overview.get_parameter_overview(state.params, include_stats=False))

    _heading("Cost")
    side, channels = config.data.image_size, config.data.channels
    image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    forward = jax.jit(lambda params, x, t: model.apply({"params": params}, x, t)).lower(state.params, image, time)
    devices = parallel.training_devices(config.train.batch_size, config.train.accumulate)
    share = config.train.batch_size // len(devices)
    step = jax.jit(make_train_step(config, model, optimizer), donate_argnums=0).lower(
        state, _abstract_batch(config, share)
    )
    print(f"forward pass, per image:  {_flops(forward) / 1e9:10.3f} GFLOP")
    print(f"training step, per image: {_flops(step) / share / 1e9:10.3f} GFLOP")

    _heading("Memory for training")
    print(
        f"batch {config.train.batch_size} on {len(devices)} device(s), {share} images each; as compiled for "
        f"{jax.default_backend()}:"
    )
    for name, size in _memory(step.compile()).items():
        print(f"{name:45s} {size / 2**20:10.1f} MiB per device")

    _heading("Sampling steps")
    table = build_table(config)
    print(f"{config.sample.sampler}, {len(table.time)} steps ({config.sample.spacing}), one network evaluation each")
    print(f"{'step':>5} {'time':>8} {'alpha_bar':>12} {'next':>12} {'a':>9} {'b':>9} {'c':>9}")
    rows = zip(table.time, table.alpha_bar, table.alpha_bar_next, table.a, table.b, table.c, strict=True)
    for number, (t, now, later, a, b, c) in enumerate(rows, start=1):
        print(f"{number:5d} {t:8g} {now:12.5e} {later:12.5e} {a:9.6f} {b:9.6f} {c:9.6f}")


def _heading(title: str) -> None:
    print(f"\n{title}\n{'-' * len(title)}")


def _abstract_batch(config: Config, n: int) -> Batch:
    side, channels = config.data.image_size, config.data.channels
    integers = jax.ShapeDtypeStruct((n,), np.int32)
    return Batch(image=jax.ShapeDtypeStruct((n, side, side, channels), np.uint8), label=integers, index=integers)


def _flops(lowered: Any) -> float:
    """XLA's count; a multiply-add is two."""
    return float(lowered.cost_analysis()["flops"])


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
