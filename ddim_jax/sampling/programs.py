"""What can be done with a trained network, each as a pure function of weights and a batch, to be compiled.

Here the pieces of ``diffusion/`` meet a network: config → schedule → subsequence → table → sampler, one random key per
image, floats inside and uint8 outside. A program is ``program(variables, items) -> results``; items and results are
trees of arrays with the image as leading axis, and an image's result does not depend on the others. ``ShardedMap`` runs
programs over devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.config import Config
from ddim_jax.diffusion import editing, samplers
from ddim_jax.diffusion.guidance import guided
from ddim_jax.diffusion.inversion import Encoder, make_encoder
from ddim_jax.diffusion.prediction import Predict, make_predict
from ddim_jax.diffusion.samplers import Sampler, make_sampler
from ddim_jax.diffusion.schedule import Schedule, make_schedule
from ddim_jax.diffusion.steps import StepTable
from ddim_jax.diffusion.timesteps import explicit_levels, level_pairs, levels_from, sampling_levels
from ddim_jax.errors import UserError
from ddim_jax.images import Normalization, to_float, to_uint8
from ddim_jax.random_streams import image_keys

Program = Callable[[Any, Any], Any]


class Items(NamedTuple):
    """Which images a program shall make.

    Attributes:
        seed: int32 [n], of their random draws; data and not part of the program, so that another seed compiles nothing.
        index: int32 [n], image indices.
        label: int32 [n], classes; unused by an unconditional network.
    """

    seed: Any
    index: Any
    label: Any


# --- from the config to the mathematics ---------------------------------------------------------


def build_schedule(config: Config) -> Schedule:
    """The noise schedule of ``config.diffusion``."""
    diffusion = config.diffusion
    return make_schedule(
        diffusion.schedule, diffusion.num_levels, diffusion.beta_start, diffusion.beta_end, diffusion.zero_terminal_snr
    )


def build_levels(config: Config) -> np.ndarray:
    """The levels that ``config.sample`` visits, noisiest first.

    Raises:
        UserError: steps or levels that the schedule does not have.
    """
    sample = config.sample
    if sample.levels:
        return explicit_levels(sample.levels, config.diffusion.num_levels)
    return sampling_levels(sample.spacing, config.diffusion.num_levels, sample.steps, build_schedule(config))


def build_sampler(config: Config, start_level: int | None = None) -> Sampler:
    """The sampler of ``config.sample``.

    Args:
        config: the run.
        start_level: level of the images it is given, instead of the noisiest.

    Raises:
        UserError: an eta too large, ``sample.eta_per_step`` of another length than the steps, or levels that the
            sampler cannot use.
    """
    sample = config.sample
    levels = build_levels(config)
    if start_level is not None:
        levels = levels_from(levels, start_level)
    eta = np.asarray(sample.eta_per_step) if sample.eta_per_step else sample.eta
    return make_sampler(sample.sampler, build_schedule(config), level_pairs(levels), eta)


def build_encoder(config: Config, iterations: int = 0) -> Encoder:
    """The encoder whose noise the sampler of ``config.sample`` decodes; by DDIM, or by Heun for Heun.

    Raises:
        UserError: see :func:`~ddim_jax.diffusion.inversion.make_encoder`.
    """
    solver = "heun" if config.sample.sampler == "heun" else "ddim"
    return make_encoder(solver, build_schedule(config), build_levels(config), iterations)


def build_predict(config: Config, model: nn.Module, variables: Any, label: jax.Array, clip: str) -> Predict:
    """The network as samplers call it, guided towards its labels if ``config.sample`` says so."""
    sample, num_classes = config.sample, config.model.num_classes

    def conditional(x: jax.Array, time: jax.Array, label: jax.Array) -> Any:
        return model.apply(variables, x, time, label)

    def unconditional(x: jax.Array, time: jax.Array) -> Any:
        return model.apply(variables, x, time)

    network = unconditional
    if num_classes:
        levels = sample.guidance_levels
        interval = (levels[0] - 1.0, levels[1] - 1.0) if levels else None
        network = guided(conditional, label, num_classes, sample.guidance_scale, interval)
    return make_predict(network, config.diffusion.objective, clip, sample.threshold_percentile, sample.threshold_limit)


def build_normalization(config: Config) -> Normalization:
    """How the network's floats are made of pixels."""
    return Normalization(config.data.mean, config.data.std)


def image_shape(config: Config) -> tuple[int, int, int]:
    """Height, width and channels."""
    return (config.data.image_size, config.data.image_size, config.data.channels)


# --- programs -----------------------------------------------------------------------------------


def image_program(config: Config, model: nn.Module, sampler: Sampler) -> Program:
    """Draws images: :class:`Items` → uint8 [n, h, w, c]."""
    draw_noise, decode = noise_program(config), decode_program(config, model, sampler)
    return lambda variables, items: decode(variables, (draw_noise(variables, items), items))


class KeptImages(NamedTuple):
    """What a trajectory passed, as pictures.

    Attributes:
        x: uint8 [n, K, h, w, c], the noisy image at the beginning of each kept step; clipped, so that the noise can be
            seen.
        x0: uint8 [n, K, h, w, c], the clean image predicted there.
        final: uint8 [n, h, w, c].
    """

    x: Any
    x0: Any
    final: Any


def trajectory_program(config: Config, model: nn.Module, sampler: Sampler, steps: np.ndarray) -> Program:
    """Draws images and keeps what is passed at some steps: :class:`Items` → :class:`KeptImages`.

    Args:
        config: the run.
        model: the network.
        sampler: how to draw.
        steps: K step numbers, from 0.
    """

    def program(variables: Any, items: Items) -> KeptImages:
        keys = image_keys(items.seed, items.index)
        x = samplers.initial_noise(keys, image_shape(config), jnp.float32)
        with jax.default_matmul_precision(config.sample.precision):
            final, kept = sampler.run_keeping(
                build_predict(config, model, variables, items.label, config.sample.clip), x, steps, keys
            )
        normalization = build_normalization(config)
        by_image = jax.tree.map(lambda places: to_uint8(jnp.moveaxis(places, 0, 1), normalization), kept)
        return KeptImages(by_image.x, by_image.x0, to_uint8(final, normalization))

    return program


def noise_program(config: Config) -> Program:
    """The noise x_T that images are drawn from: :class:`Items` → float32 [n, h, w, c]."""

    def program(variables: Any, items: Items) -> jax.Array:
        del variables
        return samplers.initial_noise(image_keys(items.seed, items.index), image_shape(config), jnp.float32)

    return program


def encode_program(config: Config, model: nn.Module, encoder: Encoder) -> Program:
    """Encodes images: (uint8 [n, h, w, c], :class:`Items`) → noise float32 [n, h, w, c]. Never clips."""

    def program(variables: Any, images_and_items: tuple[jax.Array, Items]) -> jax.Array:
        images, items = images_and_items
        with jax.default_matmul_precision(config.sample.precision):
            predict = build_predict(config, model, variables, items.label, clip="none")
            return encoder.run(predict, to_float(images, build_normalization(config)))

    return program


def decode_program(config: Config, model: nn.Module, sampler: Sampler) -> Program:
    """Decodes noise: (float32 [n, h, w, c], :class:`Items`) → uint8 [n, h, w, c]."""

    def program(variables: Any, latents_and_items: tuple[jax.Array, Items]) -> jax.Array:
        latents, items = latents_and_items
        keys = image_keys(items.seed, items.index)
        with jax.default_matmul_precision(config.sample.precision):
            x = sampler.run(build_predict(config, model, variables, items.label, config.sample.clip), latents, keys)
        return to_uint8(x, build_normalization(config))

    return program


class Recovered(NamedTuple):
    """Images spoilt and restored.

    Attributes:
        noised: uint8 [n, h, w, c].
        recovered: uint8 [n, h, w, c].
    """

    noised: Any
    recovered: Any


def recover_program(config: Config, model: nn.Module, level: int) -> Program:
    """Noises images to a level and denoises them: (uint8 [n, h, w, c], :class:`Items`) → :class:`Recovered`.

    With photographs of the training data's kind this restores them; with a sketch or another kind of picture it is
    SDEdit (Meng et al. 2022): the higher the level, the more realistic and the less faithful.
    """
    schedule = build_schedule(config)
    if not 1 <= level <= schedule.num_levels:
        raise UserError(f"level {level} does not exist; choose from 1 to {schedule.num_levels}")
    sampler = build_sampler(config, level)

    def program(variables: Any, images_and_items: tuple[jax.Array, Items]) -> Recovered:
        images, items = images_and_items
        normalization = build_normalization(config)
        keys = image_keys(items.seed, items.index)
        noised = editing.noise_to_level(to_float(images, normalization), schedule, level, keys)
        with jax.default_matmul_precision(config.sample.precision):
            x = sampler.run(build_predict(config, model, variables, items.label, config.sample.clip), noised, keys)
        return Recovered(to_uint8(noised, normalization), to_uint8(x, normalization))

    return program


def inpaint_program(config: Config, model: nn.Module, sampler: Sampler, resamplings: int, jump: int) -> Program:
    """Draws the part of images that a mask leaves out.

    (images uint8 [n, h, w, c], mask bool [n, h, w, 1] with True where the image is kept, :class:`Items`) → uint8
    [n, h, w, c].

    Args:
        config: the run.
        model: the network.
        sampler: of first order.
        resamplings: see :func:`~ddim_jax.diffusion.editing.inpaint_table`.
        jump: see there.

    Raises:
        UserError: a sampler that is not of first order, or numbers below 1.
    """
    if not isinstance(sampler.table, StepTable):
        raise UserError(f"sampler '{sampler.name}' cannot inpaint; choose from: ddim, ddpm_small, ddpm_large")
    table = editing.inpaint_table(sampler.table, resamplings, jump)

    def program(variables: Any, images_mask_items: tuple[jax.Array, jax.Array, Items]) -> jax.Array:
        images, mask, items = images_mask_items
        keys = image_keys(items.seed, items.index)
        x = samplers.initial_noise(keys, image_shape(config), jnp.float32)
        with jax.default_matmul_precision(config.sample.precision):
            predict = build_predict(config, model, variables, items.label, config.sample.clip)
            x = editing.inpaint(predict, x, to_float(images, build_normalization(config)), mask, table, keys)
        return to_uint8(x, build_normalization(config))

    return program
