"""Sampler settings that papers and projects use, by name.

They differ in small ways that change results; the comments say where each is written down.
"""

from typing import NamedTuple

from ddim_jax.errors import UserError


class Preset(NamedTuple):
    """Settings of a sampler; the number of steps stays free, and so does the schedule that the model was trained on.

    Attributes:
        sampler: see :func:`~ddim_jax.diffusion.samplers.make_sampler`.
        spacing: see :func:`~ddim_jax.diffusion.spacing.sampling_levels`.
        clip: see :func:`~ddim_jax.diffusion.prediction.make_predict`.
        eta: of ``ddim``.
    """

    sampler: str
    spacing: str
    clip: str
    eta: float = 0.0


PRESETS = {
    # DDIM, appendix D.2 and its code: quadratic subsequences for CIFAR-10, uniform ones elsewhere, no clipping. "As
    # published" means the lists of the code, with repeats, and with more than S levels where S does not divide T.
    "ddim-paper-cifar10": Preset("ddim", "quad_published", "none"),
    "ddim-paper-celeba": Preset("ddim", "uniform_published", "none"),
    # DDPM, algorithm 2 with sigma² = beta, and clipping as in its code. It uses all levels: steps = T.
    "ddpm": Preset("ddpm_large", "uniform", "rederive_eps"),
    # improved-diffusion's and guided-diffusion's defaults ("fixed large" if the variance is not learned), respaced to S
    # levels ("timestep_respacing S").
    "openai": Preset("ddpm_large", "openai", "rederive_eps"),
    # DDIMScheduler's defaults: "leading" levels, which for S that divide T are the uniform ones, and a clipped x0
    # beside the eps as predicted.
    "diffusers": Preset("ddim", "uniform", "keep_eps"),
    # Keras' DDIM example: times 1, 1 - 1/S ... on its own schedule, ``offset_cosine``, with S that divide T.
    "keras": Preset("ddim", "trailing", "none"),
}


# Published tables that are about several data sets: which part is meant, by ``data.name``; the first for any other.
TABLES = {
    "ddim-table1": {
        "cifar10": "ddim-table1-cifar10",
        "celeb_a": "ddim-table1-celeba",
        "celeba": "ddim-table1-celeba",
    },
    "ddim-table3": {
        "lsun/bedroom": "ddim-table3-bedroom",
        "lsun/church_outdoor": "ddim-table3-church",
    },
}


def table_for(name: str, data_name: str) -> str:
    """The table that ``eval.preset`` names, its part chosen by the data where it has several."""
    parts = TABLES.get(name)
    return name if parts is None else parts.get(data_name, next(iter(parts.values())))


def preset(name: str) -> Preset:
    """Settings by name.

    Raises:
        UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"preset '{name}' does not exist; choose from: {', '.join(PRESETS)}")
    return PRESETS[name]
