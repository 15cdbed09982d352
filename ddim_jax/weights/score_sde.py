"""The networks of score SDE's PyTorch code (Song et al. 2021), whose files hold nothing but arrays.

Their outputs, and what they are told, depend on the process:

- ``vp``: the output is eps, told 999 t;
- ``ve``: the output is -eps, told ln(sigma), sigma being that of pixels in [0, 1]. Here pixels lie in [-1, 1], where
  sigma is twice as large; so the half, like the sign, goes into the weights.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ddim_jax.config import Config, ConfigTree, default_config, from_config_dict, recipes
from ddim_jax.errors import UserError
from ddim_jax.weights.shapes import array_shapes
from ddim_jax.weights.song_names import SCORE_SDE_TABLES, from_score_sde, negated, score_sde_shapes, told_less


class ScoreSDENetwork(NamedTuple):
    """Published network.

    Attributes:
        name: name that people know it by.
        config: its settings.
    """

    name: str
    config: Config


def score_sde_networks() -> list[ScoreSDENetwork]:
    """Lists the published networks for CIFAR-10 with continuous times."""
    return [
        ScoreSDENetwork(f"{name} ({process}{depth})", _config(apply, num_blocks))
        for name, process, apply in (("DDPM++", "VP", recipes.score_sde_vp), ("NCSN++", "VE", recipes.score_sde_ve))
        for depth, num_blocks in (("", 4), (", deep", 8))
    ]


def _config(apply: Callable[[ConfigTree], None], num_blocks: int) -> Config:
    config = default_config()
    config.data.source = "tfds"
    config.data.name = "cifar10"
    config.data.image_size = 32
    apply(config)
    config.model.num_blocks = num_blocks
    return from_config_dict(config)


def recognise_score_sde(state: Mapping[Any, Any]) -> ScoreSDENetwork | None:
    """Finds the network of a state dict; None when it is none of the published ones."""
    shapes = {name: shape for name, shape in array_shapes(state).items() if name not in SCORE_SDE_TABLES}
    return next((each for each in score_sde_networks() if score_sde_shapes(each.config) == shapes), None)


def score_sde_variables(state: Mapping[Any, Any], config: Config, source: str) -> dict[str, Any]:
    """Turns a state dict into our variables: of a network that returns eps, and is told what the schedule says.

    Args:
        state: arrays by plain names.
        config: describes the network and its process.
        source: name of the file in messages.

    Raises:
        UserError: the config is not that of such a network, or the arrays are not those of the config.
    """
    if config.model.name != "song_unet":
        raise UserError(
            f"{source} has the form of score SDE's code, whose networks are model.name=song_unet, but the config has "
            f"{config.model.name}"
        )
    schedule, data = config.diffusion.schedule, config.data
    if config.diffusion.objective != "eps":
        raise UserError(
            f"{source} has the form of score SDE's code, whose networks predict the noise: set diffusion.objective=eps"
        )
    if (set(data.mean), set(data.std)) != ({0.5}, {0.5}):
        raise UserError(f"{source} has the form of score SDE's code: set data.mean and data.std to 0.5")
    variables = from_score_sde(state, config, source)
    if schedule != "ve":
        return variables
    if config.model.embedding != "fourier":
        raise UserError(f"{source}: diffusion.schedule=ve goes with model.embedding=fourier in score SDE's networks")
    return negated(told_less(variables, math.log(2)))
