"""CelebA-HQ at 256x256: DDPM's network and recipe.

    python -m ddim_jax.main --config=configs/celebahq.py --config.data.path=DIR --workdir=runs/celebahq

Follows DDPM's recipe (Ho et al. 2020, appendix B): 113,673,219 parameters, batch 64, Adam at 2e-5 after a warm-up of
5,000 steps, no dropout, gradients clipped at 1, EMA 0.9999, horizontal flips; 500,000 steps. Neither paper gives a FID
for it; DDPM shows samples.

DIR holds the 30,000 images, of any size: they are cut to the centred square and resized once, and kept in ddim_jax's
cache. TFDS prepares them too, from files that have to be downloaded by hand:

    ... --config.data.source=tfds --config.data.name=celeb_a_hq/256

A batch of 64 wants 80 GB of memory or several devices; ``--mode=describe`` says how much, ``train.accumulate`` lowers
it. Variants (``configs/celebahq.py:VARIANT``): ``bf16`` (compute in bfloat16), ``tiny`` (a trial run of seconds).
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config, recipes


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/celebahq.py:VARIANT``."""
    config = default_config()
    recipes.ddpm_256(config)

    config.data.source = "folder"
    config.data.name = "celebahq"
    config.data.crop = "center"
    config.data.resize = "lanczos"
    config.data.cache = "disk"

    config.train.steps = 500_000

    return apply_variants(config, variant, {"bf16": recipes.bf16})
