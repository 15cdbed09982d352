"""Sampler settings that papers and projects use, by name.

They differ in small ways that change results; the comments say where each is written down.
"""

from typing import NamedTuple

from ddim_jax.errors import UserError


class Preset(NamedTuple):
    """Settings of a sampler; the number of steps stays free, and so does the schedule that the model was trained on.

    Attributes:
        sampler: see :func:`~ddim_jax.diffusion.samplers.make_sampler`.
        spacing: see :func:`~ddim_jax.diffusion.timesteps.sampling_levels`.
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
    "openai": Preset("ddpm_large", "linspace", "rederive_eps"),
    # DDIMScheduler's defaults: "leading" levels, which for S that divide T are the uniform ones, and a clipped x0
    # beside the eps as predicted.
    "diffusers": Preset("ddim", "uniform", "keep_eps"),
    # Keras' DDIM example: times 1, 1 - 1/S ... on its own schedule, ``offset_cosine``, with S that divide T.
    "keras": Preset("ddim", "trailing", "none"),
}


def preset(name: str) -> Preset:
    """Settings by name.

    Raises:
        UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"preset '{name}' does not exist; choose from: {', '.join(PRESETS)}")
    return PRESETS[name]
