"""Handwritten digits, 8x8 grey, bundled with scikit-learn: minutes on a laptop, no download.

    python -m ddim_jax.main --config=configs/digits.py --workdir=runs/digits

Aims at digits that a person can read, drawn with 10, 20 and 50 DDIM steps. Needs no accelerator and about 1 GB of
memory. Variants: ``edm`` (the process and losses of Karras et al. 2022), ``flow`` (rectified flow, Liu et al. 2023,
with times drawn as by Esser et al. 2024), for the same network; ``tiny`` (a trial run of seconds).
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/digits.py:VARIANT``."""
    config = default_config()

    config.data.source = "digits"
    config.data.image_size = 8
    config.data.channels = 1

    config.model.channels = 32
    config.model.num_groups = 8
    config.model.multipliers = (1, 2, 2)
    config.model.num_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.dropout = 0.0

    # The linear schedule drowns images as small as these too early, and spends most levels on noise (Nichol and
    # Dhariwal 2021, section 3.2). The cosine one ends in nearly pure noise, from which an image cannot be had by way
    # of eps, since their difference is divided by almost nothing: hence v.
    config.diffusion.schedule = "cosine"
    config.diffusion.objective = "v"

    config.train.batch_size = 128
    config.train.steps = 600
    config.train.learning_rate = 2e-3
    config.train.warmup_steps = 50
    config.train.lr_schedule = "cosine"
    config.train.ema_decay = 0.995
    config.train.ema_warmup = True
    config.train.checkpoint_every = 200
    config.train.log_every = 20
    config.train.sample_every = 200
    config.train.sample_num = 64
    config.train.final_sample_steps = (10, 20, 50)

    config.sample.steps = 20

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
