"""The DDPM network of score_sde (Song et al. 2021b), in JAX and Flax.

The project no longer imports with the JAX and Flax of today, but for its networks: what is missing is asked for by a
module beside them, which is replaced here. Its optimiser is gone from Flax too; the training step uses optax's.
"""

import importlib
import pathlib
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from benchmarks.rows import Program
from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.configured import build_schedule
from ddim_jax.pixels import Normalization, to_float
from ddim_jax.training.state import make_optimizer, update_ema

_PACKAGE = "score_sde_models"


def _load_network(config: Config, checkout: pathlib.Path) -> Any:
    """Its network of the size of ours."""
    package = types.ModuleType(_PACKAGE)
    package.__path__ = [str(checkout / "models")]
    # The network needs two of their utilities: a registry, which does nothing here, and noise levels that it does not
    # use.
    utilities = types.ModuleType(f"{_PACKAGE}.utils")
    utilities.register_model = lambda name: lambda network: network  # pyright: ignore[reportAttributeAccessIssue]
    utilities.get_sigmas = lambda config: None  # pyright: ignore[reportAttributeAccessIssue]
    package.utils = utilities  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules |= {_PACKAGE: package, utilities.__name__: utilities}
    module = importlib.import_module(f"{_PACKAGE}.ddpm")
    model = config.model
    settings = {
        "data": {"centered": True},
        "model": {
            "nf": model.channels,
            "ch_mult": model.multipliers,
            "num_res_blocks": model.num_blocks,
            "attn_resolutions": model.attention_resolutions,
            "dropout": model.dropout,
            "resamp_with_conv": True,
            "conditional": True,
            "scale_by_sigma": False,
            "normalization": "GroupNorm",
            "nonlinearity": "swish",
        },
    }
    return module.DDPM(ml_collections.FrozenConfigDict(settings))


def _init(network: Any, config: Config) -> Any:
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return jax.jit(network.init)(keys, jnp.zeros((1, *config.data.image_shape)), jnp.zeros(1))["params"]


def forward_program(config: Config, checkout: pathlib.Path, x: np.ndarray, times: np.ndarray, calls: int) -> Program:
    """``calls`` forward passes of x [n, h, w, c], over the devices that we use."""
    network = _load_network(config, checkout)
    devices = parallel.training_devices(len(x))
    params = parallel.replicate(_init(network, config), devices)
    keep = parallel.map_over_batch(lambda _, inputs: inputs, devices)
    inputs = keep(0, parallel.split_batch((x, times), len(devices)))
    forward = parallel.map_over_batch(
        lambda params, inputs: network.apply({"params": params}, *inputs, train=False), devices
    )

    def run() -> None:
        outputs = [forward(params, inputs) for _ in range(calls)]
        parallel.join_batch(outputs[-1])

    return Program(run)


def train_program(config: Config, checkout: pathlib.Path, images: np.ndarray, steps: int) -> Program:
    """``steps`` training steps on uint8 images [n, h, w, c], over the devices that we use."""
    network = _load_network(config, checkout)
    devices = parallel.training_devices(len(images))
    optimizer = make_optimizer(config.train, config.train.steps)
    alpha_bar = jnp.asarray(build_schedule(config).alpha_bar[1:], jnp.float32)
    decay = jnp.float32(config.train.ema_decay)

    def step(state: tuple[Any, Any, Any, jax.Array], batch: jax.Array) -> tuple[Any, jax.Array]:
        params, average, opt_state, count = state
        time_key, noise_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(0), count), 3)
        x0 = to_float(batch, Normalization())
        time = jax.random.randint(time_key, (len(x0),), 0, len(alpha_bar))
        eps = jax.random.normal(noise_key, x0.shape)
        level = alpha_bar[time].reshape(-1, 1, 1, 1)
        x = jnp.sqrt(level) * x0 + jnp.sqrt(1 - level) * eps

        def loss(params: Any) -> jax.Array:
            output = network.apply({"params": params}, x, time, train=True, rngs={"dropout": dropout_key})
            return jnp.mean((output - eps) ** 2)

        value, grads = parallel.mean_over_devices(jax.value_and_grad(loss)(params))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, update_ema(average, params, decay), opt_state, count + 1), value

    run_step = parallel.step_over_batch(step, devices, donate=True)
    params = _init(network, config)
    # A copy: memory that is given to the next state cannot be given twice.
    average = jax.tree.map(jnp.copy, params)
    state = parallel.replicate((params, average, optimizer.init(params), jnp.int32(0)), devices)
    batch = parallel.split_batch(images, len(devices))

    def run() -> float:
        nonlocal state
        in_flight = parallel.StepsInFlight()
        for _ in range(steps):
            state, loss = run_step(state, batch)
            in_flight.add(loss)
        return float(in_flight.drain()[-1])

    return Program(run)
