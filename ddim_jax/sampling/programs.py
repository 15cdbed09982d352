"""What can be done with a trained network, each as a pure function of weights and a batch, to be compiled.

Here the pieces of ``diffusion/`` meet a network: config → schedule → subsequence → table → sampler, one random key per
image, floats inside and uint8 outside. A program is ``program(variables, items) -> results``; items and results are
trees of arrays with the image as leading axis, and an image's result does not depend on the others. ``ShardedMap`` runs
programs over devices.

NaN would become a black picture, which looks like a result. So each program says of each image whether the floats
behind its result are numbers (:class:`Checked`), and :func:`numbers_only` refuses those that are not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.config import Config
from ddim_jax.configured import build_normalization, build_predict, build_sampler, build_schedule
from ddim_jax.diffusion import editing, samplers
from ddim_jax.diffusion.samplers import Sampler
from ddim_jax.errors import UserError
from ddim_jax.models import Model
from ddim_jax.pixels import to_float, to_uint8
from ddim_jax.random_streams import image_keys

# From variables and items to results; but for those of likelihood_programs.py, as ``Checked``.
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


class Checked(NamedTuple):
    """What a program makes.

    Attributes:
        result: a tree of arrays with the image as leading axis.
        finite: bool [n], whether all floats are finite that an image's result is, or was rounded from.
    """

    result: Any
    finite: Any


def numbers_only(checked: Checked, indices: np.ndarray) -> Any:
    """The results of a program, on the host.

    Args:
        checked: the program's.
        indices: [n], of the images.

    Raises:
        UserError: some are made of NaN or infinity; the message names the first image.
    """
    wrong = np.flatnonzero(~checked.finite)
    if len(wrong):
        others = f", and of {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"NaN or infinity in place of image {indices[wrong[0]]}{others}: the weights or the settings give no "
            "picture; try another checkpoint, or sample settings that go with the objective and the schedule"
        )
    return checked.result


def _checked(result: Any, *floats: jax.Array) -> Checked:
    """The result of floats [n, ...], with whether they are finite."""
    finite = [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in floats]
    return Checked(result, jnp.stack(finite).all(axis=0))


# --- programs -----------------------------------------------------------------------------------


def image_program(config: Config, model: Model, sampler: Sampler) -> Program:
    """Draws images: :class:`Items` → uint8 [n, h, w, c]."""
    draw_noise, decode = noise_program(config), decode_program(config, model, sampler)
    return lambda variables, items: decode(variables, (draw_noise(variables, items).result, items))


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


def trajectory_program(config: Config, model: Model, sampler: Sampler, steps: np.ndarray) -> Program:
    """Draws images and keeps what is passed at some steps: :class:`Items` → :class:`KeptImages`.

    Args:
        config: the run.
        model: the network.
        sampler: how to draw.
        steps: K step numbers, from 0.
    """

    def program(variables: Any, items: Items) -> Checked:
        keys = image_keys(items.seed, items.index)
        x = samplers.initial_noise(keys, config.data.image_shape, jnp.float32)
        with jax.default_matmul_precision(config.sample.precision):
            final, kept = sampler.run_keeping(
                build_predict(config, model, variables, items.label, config.sample.clip), x, steps, keys
            )
        normalization = build_normalization(config)
        by_image = jax.tree.map(lambda places: to_uint8(jnp.moveaxis(places, 0, 1), normalization), kept)
        images = KeptImages(by_image.x, by_image.x0, to_uint8(final, normalization))
        return _checked(images, final, jnp.moveaxis(kept.x, 0, 1), jnp.moveaxis(kept.x0, 0, 1))

    return program


def noise_program(config: Config) -> Program:
    """The noise x_T that images are drawn from: :class:`Items` → float32 [n, h, w, c]."""

    def program(variables: Any, items: Items) -> Checked:
        del variables
        x = samplers.initial_noise(image_keys(items.seed, items.index), config.data.image_shape, jnp.float32)
        return _checked(x, x)

    return program


def encode_program(config: Config, model: Model, encoder: Sampler) -> Program:
    """Encodes images: (uint8 [n, h, w, c], :class:`Items`) → noise float32 [n, h, w, c]. Never clips."""

    def program(variables: Any, images_and_items: tuple[jax.Array, Items]) -> Checked:
        images, items = images_and_items
        with jax.default_matmul_precision(config.sample.precision):
            predict = build_predict(config, model, variables, items.label, clip="none")
            x = encoder.run(predict, to_float(images, build_normalization(config)))
        return _checked(x, x)

    return program


def decode_program(config: Config, model: Model, sampler: Sampler) -> Program:
    """Decodes noise: (float32 [n, h, w, c], :class:`Items`) → uint8 [n, h, w, c]."""

    def program(variables: Any, latents_and_items: tuple[jax.Array, Items]) -> Checked:
        latents, items = latents_and_items
        keys = image_keys(items.seed, items.index)
        with jax.default_matmul_precision(config.sample.precision):
            x = sampler.run(build_predict(config, model, variables, items.label, config.sample.clip), latents, keys)
        return _checked(to_uint8(x, build_normalization(config)), x)

    return program


class Recovered(NamedTuple):
    """Images spoilt and restored.

    Attributes:
        noised: uint8 [n, h, w, c].
        recovered: uint8 [n, h, w, c].
    """

    noised: Any
    recovered: Any


def recover_program(config: Config, model: Model, level: int) -> Program:
    """Noises images to a level and denoises them: (uint8 [n, h, w, c], :class:`Items`) → :class:`Recovered`.

    With photographs of the training data's kind this restores them; with a sketch or another kind of picture it is
    SDEdit (Meng et al. 2022): the higher the level, the more realistic and the less faithful.
    """
    schedule = build_schedule(config)
    if not 1 <= level <= schedule.num_levels:
        raise UserError(f"level {level} does not exist; choose from 1 to {schedule.num_levels}")
    sampler = build_sampler(config, level)

    def program(variables: Any, images_and_items: tuple[jax.Array, Items]) -> Checked:
        images, items = images_and_items
        normalization = build_normalization(config)
        keys = image_keys(items.seed, items.index)
        noised = editing.noise_to_level(to_float(images, normalization), schedule, level, keys)
        with jax.default_matmul_precision(config.sample.precision):
            x = sampler.run(build_predict(config, model, variables, items.label, config.sample.clip), noised, keys)
        return _checked(Recovered(to_uint8(noised, normalization), to_uint8(x, normalization)), noised, x)

    return program


def inpaint_program(config: Config, model: Model, sampler: Sampler, resamplings: int, jump: int) -> Program:
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
    if not sampler.table.is_first_order:
        first_order = ", ".join(name for name, rule in samplers.SAMPLERS.items() if rule.eta != "zero")
        raise UserError(f"sampler '{sampler.name}' cannot inpaint; choose from: {first_order}")
    table = editing.inpaint_table(sampler.table, resamplings, jump)

    def program(variables: Any, images_mask_items: tuple[jax.Array, jax.Array, Items]) -> Checked:
        images, mask, items = images_mask_items
        keys = image_keys(items.seed, items.index)
        x = samplers.initial_noise(keys, config.data.image_shape, jnp.float32)
        with jax.default_matmul_precision(config.sample.precision):
            predict = build_predict(config, model, variables, items.label, config.sample.clip)
            x = editing.inpaint(predict, x, to_float(images, build_normalization(config)), mask, table, keys)
        return _checked(to_uint8(x, build_normalization(config)), x)

    return program
