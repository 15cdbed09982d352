"""Faces, or anything else, from any folder of images of any sizes, 64x64.

    python -m ddim_jax.main --config=configs/folder.py --config.data.path=DIR --workdir=runs/folder

Images are prepared once: the largest centred square, resized to ``data.image_size``, kept as one array in ddim_jax's
cache, with progress, and resumed where it was stopped; later runs start at once. Unreadable ones are left out and
counted. Then the DDIM paper's 64x64 network learns the noise on T = 1,000 levels, as in ``configs/celeba.py``, for
200,000 steps. No result is published for images of your own; the pictures to look at are

    ... --mode=sweep                       10, 100 and 1,000 steps at eta 0, 0.2, 0.5 and 1, all from the same noise
    ... --mode=edit                        real images noised to t = 100, and recovered
    ... --mode=trajectory                  noise becoming images

A smaller set wants ``data.flip`` and fewer steps. Memory for training at batch 128: see ``--mode=describe``;
``train.batch_size`` or ``train.accumulate`` lower it. Variants (``configs/folder.py:VARIANT``): ``bf16`` (compute in
bfloat16), ``tiny`` (a trial run of seconds).
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config, recipes


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/folder.py:VARIANT``."""
    config = default_config()

    config.data.source = "folder"
    config.data.image_size = 64
    config.data.channels = 3
    config.data.crop = "center"
    config.data.resize = "lanczos"
    config.data.flip = True
    config.data.cache = "disk"
    config.data.on_error = "skip"

    recipes.faces_64(config)

    config.train.steps = 200_000
    config.train.checkpoint_every = 1000
    config.train.sample_every = 1000
    config.train.sample_num = 64

    config.sample.steps = 100
    config.sweep.steps = (10, 100, 1000)
    config.sweep.etas = (0.0, 0.2, 0.5, 1.0)
    config.edit.task = "recover"
    config.edit.level = 100

    return apply_variants(config, variant, {"bf16": recipes.bf16})
