"""Handwritten digits, 8x8 grey, bundled with scikit-learn: minutes on a laptop, no download.

    python -m ddim_jax.main --config=configs/digits.py --workdir=runs/digits

Aims at digits that a person can read, drawn with 10, 20 and 50 DDIM steps. Needs no accelerator and about 1 GB of
memory. Variants: ``edm`` (the process and losses of Karras et al. 2022), ``flow`` (rectified flow, Liu et al. 2023,
with times drawn as by Esser et al. 2024), for the same network; ``tiny`` (a trial run of seconds).
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config, recipes


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/digits.py:VARIANT``."""
    config = default_config()
    recipes.digits(config)
    return apply_variants(config, variant, {"edm": _edm, "flow": _flow})


def _edm(config: ConfigTree) -> None:
    # Mean and deviation of the pixels, so that images have variance 1; sigma_data is twice that, as pixels in [-1, 1]
    # have it.
    config.data.mean = (0.305,)
    config.data.std = (0.375,)
    config.diffusion.schedule = "edm"
    config.diffusion.sigma_data = 0.75
    config.diffusion.time_sampling = "lognormal"
    config.diffusion.time_mean = -1.2
    config.diffusion.time_std = 1.2
    config.sample.sampler = "edm"
    config.sample.spacing = "linspace"


def _flow(config: ConfigTree) -> None:
    config.data.mean = (0.305,)
    config.data.std = (0.375,)
    config.diffusion.schedule = "flow"
    config.diffusion.objective = "flow"
    config.diffusion.time_sampling = "logitnormal"
