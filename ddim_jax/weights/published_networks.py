"""Published networks whose files hold nothing but arrays, by which they are recognised.

They are those of the DDIM paper (appendix D.1): CIFAR-10, LSUN and CelebA-HQ by DDPM's authors, CelebA by DDIM's.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ddim_jax.config import Config, ConfigTree, default_config, from_config_dict, recipes
from ddim_jax.weights.shapes import array_shapes
from ddim_jax.weights.unet_names import unet_state_shapes


class PublishedNetwork(NamedTuple):
    """Published network.

    Attributes:
        name: name that people know it by.
        file: config file that trains it.
        config: settings of it, with the sampler of the DDIM paper.
    """

    name: str
    file: str
    config: Config


def published_networks() -> list[PublishedNetwork]:
    """Lists the published networks, smallest first."""
    return [
        PublishedNetwork("CIFAR-10", "configs/cifar10.py", _config(_cifar10)),
        PublishedNetwork("CelebA 64x64", "configs/celeba.py", _config(_celeba)),
        PublishedNetwork("LSUN and CelebA-HQ 256x256", "configs/lsun.py", _config(_lsun)),
    ]


def recognise(state: Mapping[Any, Any]) -> PublishedNetwork | None:
    """Finds the network of a state dict with the names of DDIM's code; None when it is no published one."""
    shapes = array_shapes(state)
    for network in published_networks():
        if unet_state_shapes(network.config, "ddim") == shapes:
            return network
    return None


def _config(apply: Callable[[ConfigTree], None]) -> Config:
    config = default_config()
    config.data.source = "tfds"
    config.sample.steps = 50
    apply(config)
    return from_config_dict(config)


def _cifar10(config: ConfigTree) -> None:
    # The defaults of ``model`` and ``diffusion`` are its settings.
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.sample.preset = "ddim-paper-cifar10"


def _celeba(config: ConfigTree) -> None:
    config.data.name = "celeb_a"
    config.data.image_size = 64
    recipes.faces_64(config)
    config.sample.preset = "ddim-paper-celeba"


def _lsun(config: ConfigTree) -> None:
    config.data.name = "lsun"
    recipes.ddpm_256(config)
