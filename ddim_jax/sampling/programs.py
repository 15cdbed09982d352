"""What can be done with a trained network, each as a pure function of weights and a batch, to be compiled.

Here the pieces of ``diffusion/`` meet a network: config → schedule → subsequence → table → sampler, one random key per
image, floats inside and values of the data's type outside (``data.dtype``, in docstrings "values"). A program is
``program(given, items) -> results``; items and results are trees of arrays with the image as leading axis, and an
image's result does not depend on the others. ``ShardedMap`` runs programs over devices.

The sampler is given as data, as the weights are (:class:`Given`), so that another number of steps, eta, spacing or
level is no other program.

NaN would become a black picture, which looks like a result. So each program says of each image whether the floats
behind its result are numbers (:class:`Checked`), and :func:`numbers_only` refuses those that are not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.conditions import DataCondition
from ddim_jax.config import Config
from ddim_jax.configured import Guide, build_normalization, build_predict
from ddim_jax.diffusion import editing, samplers
from ddim_jax.diffusion.loop import KeptStates, PaddedTable
from ddim_jax.diffusion.losses import diffuse
from ddim_jax.diffusion.prediction import Predict
from ddim_jax.diffusion.table import sample_padded
from ddim_jax.errors import UserError
from ddim_jax.models import Model
from ddim_jax.names import Clip
from ddim_jax.pixels import to_float, to_pixels
from ddim_jax.random_streams import image_keys
from ddim_jax.sampling.conditions import sampling_condition

# From what is given to all images, and items, to results; but for those of likelihood_programs.py, as ``Checked``.
Program = Callable[[Any, Any], Any]


class Given(NamedTuple):
    """What is the same for all images.

    Attributes:
        variables: of the network.
        table: of the sampler, or to inpaint (``diffusion/editing.py``), with the steps to keep.
        guide: variables of the network of ``sample.guide_workdir``; None without one.
    """

    variables: Any
    table: PaddedTable
    guide: Any = None


class Items(NamedTuple):
    """Which images a program shall make.

    Attributes:
        seed: int32 [n], of their random draws; data and not part of the program, so that another seed compiles nothing.
        index: int32 [n], image indices.
        condition: what they are drawn from, as the data have it; unused by an unconditional network.
    """

    seed: Any
    index: Any
    condition: DataCondition

    @property
    def label(self) -> Any:
        """The classes of the images, int32 [n]."""
        return self.condition.label


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
# ``guide`` is the model of ``sample.guide_workdir``, None without one; its variables are given.


def image_program(config: Config, model: Model, guide: Model | None = None) -> Program:
    """Draws images: :class:`Items` → values [n, h, w, c]."""
    draw_noise, decode = noise_program(config, model), decode_program(config, model, guide)
    return lambda given, items: decode(given, (draw_noise(given, items).result, items))


class KeptImages(NamedTuple):
    """What a trajectory passed, as pictures.

    Attributes:
        x: values [n, K, h, w, c], the noisy image at the beginning of each kept step; clipped, so that the noise can be
            seen.
        x0: values [n, K, h, w, c], the clean image predicted there.
        final: values [n, h, w, c].
    """

    x: Any
    x0: Any
    final: Any


def trajectory_program(config: Config, model: Model, guide: Model | None = None) -> Program:
    """Draws images and keeps what is passed at the steps that the table says: :class:`Items` → :class:`KeptImages`."""

    def program(given: Given, items: Items) -> Checked:
        keys = image_keys(items.seed, items.index)
        x = samplers.initial_noise(keys, config.data.image_shape, jnp.float32)
        final, kept = _run(config, model, guide, given, items, x, keys)
        normalization = build_normalization(config)
        by_image = jax.tree.map(lambda places: to_pixels(jnp.moveaxis(places, 0, 1), normalization), kept)
        images = KeptImages(by_image.x, by_image.x0, to_pixels(final, normalization))
        return _checked(images, final, jnp.moveaxis(kept.x, 0, 1), jnp.moveaxis(kept.x0, 0, 1))

    return program


def noise_program(config: Config, model: Model, guide: Model | None = None) -> Program:
    """The noise x_T that images are drawn from: :class:`Items` → float32 [n, h, w, c]. Asks no network."""
    del model, guide

    def program(given: Given, items: Items) -> Checked:
        del given
        x = samplers.initial_noise(image_keys(items.seed, items.index), config.data.image_shape, jnp.float32)
        return _checked(x, x)

    return program


def encode_program(config: Config, model: Model, guide: Model | None = None) -> Program:
    """Encodes images: (values [n, h, w, c], :class:`Items`) → noise float32 [n, h, w, c]. Never clips."""

    def program(given: Given, images_and_items: tuple[jax.Array, Items]) -> Checked:
        images, items = images_and_items
        with jax.default_matmul_precision(config.sample.precision):
            predict = _predict(config, model, guide, given, items, "none")
            x, _ = sample_padded(predict, to_float(images, build_normalization(config)), given.table)
        return _checked(x, x)

    return program


def decode_program(config: Config, model: Model, guide: Model | None = None) -> Program:
    """Decodes noise: (float32 [n, h, w, c], :class:`Items`) → values [n, h, w, c]."""

    def program(given: Given, latents_and_items: tuple[jax.Array, Items]) -> Checked:
        latents, items = latents_and_items
        x, _ = _run(config, model, guide, given, items, latents, image_keys(items.seed, items.index))
        return _checked(to_pixels(x, build_normalization(config)), x)

    return program


def prediction_program(config: Config, model: Model, guide: Model | None = None) -> Program:
    """What the network sees: (noisy float32 [n, h, w, c], :class:`Items`) → clean images, float32 [n, h, w, c].

    The first row of the table says at which level.
    """

    def program(given: Given, noisy_and_items: tuple[jax.Array, Items]) -> Checked:
        noisy, items = noisy_and_items
        with jax.default_matmul_precision(config.sample.precision):
            predict = _predict(config, model, guide, given, items, config.sample.clip)
            images = predict(noisy, jax.tree.map(lambda column: column[0], given.table.table)).x0
        return _checked(images, images)

    return program


class Recovered(NamedTuple):
    """Images spoilt and restored.

    Attributes:
        noised: values [n, h, w, c].
        recovered: values [n, h, w, c].
    """

    noised: Any
    recovered: Any


def recover_program(config: Config, model: Model, guide: Model | None = None) -> Program:
    """Noises images to the table's first level and denoises them: (values [n, h, w, c], Items) → :class:`Recovered`.

    With photographs of the training data's kind this restores them; with a sketch or another kind of picture it is
    SDEdit (Meng et al. 2022): the higher the level, the more realistic and the less faithful.
    """

    def program(given: Given, images_and_items: tuple[jax.Array, Items]) -> Checked:
        images, items = images_and_items
        normalization = build_normalization(config)
        keys = image_keys(items.seed, items.index)
        x0 = to_float(images, normalization)
        noised = diffuse(x0, samplers.initial_noise(keys, x0.shape[1:]), given.table.table.alpha_bar[0])
        x, _ = _run(config, model, guide, given, items, noised, keys)
        return _checked(Recovered(to_pixels(noised, normalization), to_pixels(x, normalization)), noised, x)

    return program


def inpaint_program(config: Config, model: Model, guide: Model | None = None) -> Program:
    """Draws the part of images that a mask leaves out.

    (images values [n, h, w, c], mask bool [n, h, w, 1] with True where the image is kept, :class:`Items`) → values
    [n, h, w, c].
    """

    def program(given: Given, images_mask_items: tuple[jax.Array, jax.Array, Items]) -> Checked:
        images, mask, items = images_mask_items
        keys = image_keys(items.seed, items.index)
        x = samplers.initial_noise(keys, config.data.image_shape, jnp.float32)
        with jax.default_matmul_precision(config.sample.precision):
            predict = _predict(config, model, guide, given, items, config.sample.clip)
            x = editing.inpaint(
                predict, x, to_float(images, build_normalization(config)), mask, given.table.table, keys,
                given.table.count,
            )  # fmt: skip
        return _checked(to_pixels(x, build_normalization(config)), x)

    return program


def _predict(config: Config, model: Model, guide: Model | None, given: Given, items: Items, clip: Clip) -> Predict:
    """The network on what the items are drawn from, led away from the guide where there is one."""
    condition = sampling_condition(config, items.condition, items.seed, items.index)
    guided_by = None if guide is None else Guide(guide, given.guide)
    return build_predict(config, model, given.variables, condition, clip, guided_by)


def _run(
    config: Config, model: Model, guide: Model | None, given: Given, items: Items, x: jax.Array, keys: jax.Array
) -> tuple[jax.Array, KeptStates]:
    """Denoises x as the table says, with the clipping and the precision of the config."""
    with jax.default_matmul_precision(config.sample.precision):
        predict = _predict(config, model, guide, given, items, config.sample.clip)
        final, kept = sample_padded(predict, x, given.table, keys)
    return _with_known(config, items, final), kept


def _with_known(config: Config, items: Items, x: jax.Array) -> jax.Array:
    """Floats with what was known of the images put back: a network that inpaints draws that too, but for a little."""
    picture = items.condition.picture
    if config.data.condition != "mask" or picture is None:
        return x
    of_unit = build_normalization(config)._replace(low=(0.0,), high=(1.0,))
    return jnp.where(picture[..., -1:] > 0.5, to_float(picture[..., :-1], of_unit, x.dtype), x)
