"""What images cost under a trained network, as programs that ``ShardedMap`` runs; see ``diffusion/likelihood.py``.

A likelihood is that of the model and its data, so that nothing of ``config.sample`` that changes pictures has a part in
it: no sampler, no eta, no guidance.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.config import Config
from ddim_jax.configured import (
    build_normalization,
    build_predict,
    build_schedule,
    check_variance_is_learned,
)
from ddim_jax.diffusion.likelihood import (
    FlowTable,
    bound_table,
    flow_table,
    ode_bits_per_dim,
    variational_bound,
)
from ddim_jax.diffusion.prediction import Predict
from ddim_jax.diffusion.spacing import sampling_levels
from ddim_jax.errors import UserError
from ddim_jax.models import Model, with_forward_mode
from ddim_jax.random_streams import Stream, fold_in_each, image_keys, root_key
from ddim_jax.sampling.conditions import network_condition
from ddim_jax.sampling.programs import Items, Program


def likelihood_program(config: Config, model: Model) -> Program:
    """What images cost by ``config.likelihood.method``: (images [n, h, w, c], :class:`Items`) → a dict of float32 [n].

    All in bits per dimension. ``bits_per_dim`` is the result; with ``bound`` the sum of ``prior``, ``kl`` and
    ``decoder``, which are there too.

    Raises:
        UserError: more steps or levels than the schedule has.
    """
    return _bound_program(config, model) if config.likelihood.method == "bound" else _ode_program(config, model)


def network_evaluations(config: Config) -> int:
    """Network evaluations per image; those of ``ode`` are made with derivatives, which cost more."""
    settings = config.likelihood
    if settings.method == "ode":
        return 2 * settings.steps
    return (settings.levels_per_image or config.diffusion.num_levels - 1) + 1


def _bound_program(config: Config, model: Model) -> Program:
    settings = config.likelihood
    if config.data.dtype == "float32":
        raise UserError(
            "likelihood.method=bound: it tells the probability of levels of grey, which data.dtype=float32 has not; "
            "use likelihood.method=ode, their density"
        )
    if settings.variance == "learned":
        check_variance_is_learned(config, "likelihood.variance=learned", "small or large")
    table = bound_table(build_schedule(config), settings.variance)
    if not 0 <= settings.levels_per_image < len(table.time):
        raise UserError(
            f"likelihood.levels_per_image={settings.levels_per_image}: choose from 1 to {len(table.time) - 1}, or 0 "
            "for all levels"
        )

    def program(variables: Any, images_and_items: tuple[jax.Array, Items]) -> dict[str, jax.Array]:
        images, items = images_and_items
        with jax.default_matmul_precision(config.sample.precision):
            bound = variational_bound(
                _unguided(config, model, variables, items),
                images,
                table,
                image_keys(items.seed, items.index),
                build_normalization(config),
                levels_per_image=settings.levels_per_image,
            )
        kl = jnp.sum(bound.kl, axis=1)
        return {"bits_per_dim": bound.total, "prior": bound.prior, "kl": kl, "decoder": bound.decoder}

    return program


def _ode_program(config: Config, model: Model) -> Program:
    table = _build_flow(config)
    probes = 0 if config.likelihood.divergence == "exact" else config.likelihood.probes

    def program(variables: Any, images_and_items: tuple[jax.Array, Items]) -> dict[str, jax.Array]:
        images, items = images_and_items
        with jax.default_matmul_precision(config.sample.precision):
            bits = ode_bits_per_dim(
                _unguided(config, model, variables, items),
                images,
                table,
                fold_in_each(jax.vmap(lambda seed: root_key(seed, Stream.PROBE))(items.seed), items.index),
                build_normalization(config),
                probes=probes,
            )
        return {"bits_per_dim": bits}

    return program


def _build_flow(config: Config) -> FlowTable:
    """The flow from level 1 to the noisiest level that is not all noise, in steps even in log SNR."""
    schedule, steps = build_schedule(config), config.likelihood.steps
    schedule = schedule._replace(alpha_bar=np.trim_zeros(schedule.alpha_bar))
    most = schedule.num_levels - 1
    if not 1 <= steps <= most:
        raise UserError(f"likelihood.steps={steps}: choose from 1 to {most}, the steps between the schedule's levels")
    return flow_table(schedule, sampling_levels("logsnr", schedule.num_levels, steps + 1, schedule))


def _unguided(config: Config, model: Model, variables: Any, items: Items) -> Predict:
    sample = dataclasses.replace(config.sample, guidance_scale=1.0, condition_augmentation=0.0)
    plain = dataclasses.replace(config, sample=sample)
    return build_predict(
        plain, with_forward_mode(model), variables, network_condition(plain, items.condition), clip="none"
    )
