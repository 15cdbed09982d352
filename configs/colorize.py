"""Colourisation: colours for grey pictures, CIFAR-10 at 32x32.

    python -m ddim_jax.main --config=configs/colorize.py --workdir=runs/colorize

The network is given the picture's luma (ITU-R BT.601) and draws all three channels (as in Palette, Saharia et al.
2022); many colourings of a picture are right, and each image index is one. Then

    ... --mode=sample --config.sample.condition_path=GREY --config.sample.per_condition=4

draws four colourings of each grey picture of a folder, and from Python
``ddim_jax.load("runs/colorize").restore(grey)``. No result is published for this size. Memory for
training at batch 128: see ``--mode=describe``.

Variants (``configs/colorize.py:VARIANT``): ``faces`` (CelebA at 64x64); ``tiny`` (a trial run of seconds).
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config, recipes


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/colorize.py:VARIANT``."""
    config = default_config()
    recipes.cifar10_restoration(config)
    config.data.condition = "grey"
    config.model.condition = ("image",)
    return apply_variants(config, variant, {"faces": recipes.faces_restoration})
