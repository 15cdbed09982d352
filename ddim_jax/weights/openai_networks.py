"""Networks that OpenAI published with improved-diffusion and guided-diffusion: what their files do not say.

Their settings are those of the READMEs beside the files.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ddim_jax.config import Config, flatten, with_values
from ddim_jax.names import QkvOrder
from ddim_jax.weights.openai_names import stated_by_state


class OpenAINetwork(NamedTuple):
    """Published network.

    Attributes:
        files: names of the files that hold it.
        config: settings of it, with the sampler of its paper.
        order: of queries, keys and values, see ``openai_names.py``.
    """

    files: str
    config: Config
    order: QkvOrder


# Of both projects.
_COMMON = {
    "data.source": "folder",
    "model.learn_variance": True,
    "model.time_freq_shift": 0,
    "model.time_cos_first": True,
    "model.downsample_padding": 1,
    "model.norm_eps": 1e-5,
    "model.null_label": False,
    "model.dropout": 0.0,
    "sample.sampler": "ddpm_learned",
    "sample.spacing": "openai",
    "sample.clip": "rederive_eps",
    "sample.steps": 250,
}
# Nichol and Dhariwal 2021: 4,000 levels, which are told as 0 ... 999.75.
_IMPROVED = {
    "model.num_blocks": 3,
    "model.num_heads": 4,
    "model.scale_shift_norm": True,
    "diffusion.schedule": "cosine",
    "diffusion.num_levels": 4000,
    "model.time_scale": 0.25,
}
# Dhariwal and Nichol 2021.
_ADM = {
    "model.channels": 256,
    "model.num_blocks": 2,
    "model.attention_resolutions": (32, 16, 8),
    "model.scale_shift_norm": True,
    "model.resample_blocks": True,
}
_WIDE_HEADS = {"model.head_channels": 64}
_CLASSES = {"model.num_classes": 1000}


def _network(
    files: str, image_size: int, *settings: Mapping[str, Any], order: QkvOrder = "legacy", **model: Any
) -> OpenAINetwork:
    values: dict[str, Any] = {"data.image_size": image_size, **_COMMON}
    for each in (*settings, {f"model.{name}": value for name, value in model.items()}):
        values |= each
    return OpenAINetwork(files, with_values(Config(), values), order)


def openai_networks() -> list[OpenAINetwork]:
    """Lists the published networks, those of improved-diffusion first."""
    large = (1, 1, 2, 2, 4, 4)
    sixteen = {"model.attention_resolutions": (16, 8)}
    return [
        _network(
            "cifar10_uncond_50M_500K.pt, cifar10_uncond_vlb_50M_500K.pt", 32, _IMPROVED, sixteen,
            channels=128, multipliers=(1, 2, 2, 2), dropout=0.3,
        ),
        _network(
            "imagenet64_uncond_100M_1500K.pt, imagenet64_uncond_vlb_100M_1500K.pt", 64, _IMPROVED, sixteen,
            channels=128, multipliers=(1, 2, 3, 4),
        ),
        _network(
            "imagenet64_cond_270M_250K.pt", 64, _IMPROVED, sixteen, _CLASSES,
            channels=192, multipliers=(1, 2, 3, 4), time_scale=1.0,
        ),
        _network(
            "lsun_uncond_100M_1200K_bs128.pt, lsun_uncond_100M_2400K_bs64.pt", 256,
            channels=128, multipliers=large, num_blocks=2, attention_resolutions=(16,),
        ),
        _network(
            "64x64_diffusion.pt", 64, _ADM, _WIDE_HEADS, _CLASSES, {"diffusion.schedule": "cosine"},
            channels=192, multipliers=(1, 2, 3, 4), num_blocks=3, dropout=0.1, order="new",
        ),
        _network("128x128_diffusion.pt", 128, _ADM, _CLASSES, multipliers=(1, 1, 2, 3, 4), num_heads=4),
        _network("256x256_diffusion.pt", 256, _ADM, _WIDE_HEADS, _CLASSES, multipliers=large),
        _network(
            "256x256_diffusion_uncond.pt, lsun_bedroom.pt, lsun_cat.pt, lsun_horse.pt, lsun_horse_nodropout.pt", 256,
            _ADM, _WIDE_HEADS, multipliers=large,
        ),
        # Its first level is half as wide as the embedding of time.
        _network(
            "512x512_diffusion.pt", 512, _ADM, _WIDE_HEADS, _CLASSES,
            channels=128, time_channels=256, multipliers=(1, 2, 2, 4, 4, 8, 8),
        ),
    ]  # fmt: skip


def recognise_openai(state: Mapping[Any, Any], source: str) -> OpenAINetwork | None:
    """Finds the published network that a state dict has the shapes of; None when it is none of them.

    Raises:
        UserError: it is of another kind of network.
    """
    for network in openai_networks():
        ours = flatten(network.config)
        stated = stated_by_state(state, source, network.config.data.image_shape[0])
        if all(ours[key] == value or _means_the_same(key, value, ours) for key, value in stated.items()):
            return network
    return None


def _means_the_same(key: str, value: Any, ours: Mapping[str, Any]) -> bool:
    return key == "model.attention_resolutions" and set(value) == set(ours[key])
