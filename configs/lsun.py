"""LSUN at 256x256, bedrooms unless a variant says otherwise: DDPM's network and recipe, sampled as in the DDIM paper.

    python -m ddim_jax.main --config=configs/lsun.py --workdir=runs/bedroom
    python -m ddim_jax.main --config=configs/lsun.py:church --workdir=runs/church

Follows DDPM's recipe, whose checkpoints the DDIM paper samples from: 113,673,219 parameters, batch 64, Adam at 2e-5
after a warm-up of 5,000 steps, no dropout, gradients clipped at 1, EMA 0.9999, horizontal flips as in its scripts (none
for cats). Steps are those of the released checkpoints: 2,388,000 for bedrooms, 4,432,000 for churches, 1,761,000 for
cats. Images: the shorter side 256, then the centred square; we cut the square first, which gives the same pixels but
for rounding at the border. Published FID (Song et al. 2021, table 3) with 10, 20, 50, 100 DDIM steps: bedrooms 16.95,
8.89, 6.75, 6.62; churches 19.45, 12.47, 10.84, 10.58; uniform subsequences, which ``sample`` is set to.

TFDS prepares the data on first use (extra ``tfds``, once). A folder of images serves as well:

    ... --config.data.source=folder --config.data.path=DIR

A batch of 64 wants 80 GB of memory or several devices; ``--mode=describe`` says how much, ``train.accumulate`` lowers
it.

Variants (``configs/lsun.py:VARIANT``): ``church``, ``cat``; ``ddim_code`` (DDIM's training code: EMA 0.999, no
clipping, no warm-up, loss summed over pixels); ``bf16`` (compute in bfloat16); ``tiny`` (a trial run of seconds).
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config, recipes


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/lsun.py:VARIANT``."""
    config = default_config()
    recipes.ddpm_256(config)

    config.data.source = "tfds"
    config.data.name = "lsun/bedroom"
    config.data.crop = "center"
    config.data.resize = "lanczos"
    config.data.cache = "none"

    config.train.steps = 2_388_000

    variants = {"church": _church, "cat": _cat, "ddim_code": _ddim_code, "bf16": recipes.bf16}
    return apply_variants(config, variant, variants)


def _church(config: ConfigTree) -> None:
    config.data.name = "lsun/church_outdoor"
    config.train.steps = 4_432_000


def _cat(config: ConfigTree) -> None:
    config.data.name = "lsun/cat"
    config.data.flip = False
    config.train.steps = 1_761_000


def _ddim_code(config: ConfigTree) -> None:
    recipes.ddim_code(config)
    config.train.ema_decay = 0.999
    config.train.grad_clip = 0.0
