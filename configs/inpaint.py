"""Inpainting by a network that was trained for it: MNIST digits of which a part is missing.

    python -m ddim_jax.main --config=configs/inpaint.py --workdir=runs/inpaint

Boxes, halves and free strokes are taken away at random, for each image and step another one (``data.condition_masks``);
the network is given what is left, and where something is missing (as in Palette, Saharia et al. 2022). A model that was
not trained for this inpaints too (``--mode=edit --config.edit.task=inpaint``, RePaint), at many times the cost;
``docs/recipes.md`` compares the two. Then

    ... --mode=sample           digits of the data with other parts missing, drawn anew
    ... --mode=evaluate         how near they come to the truth: PSNR, SSIM

and from Python ``ddim_jax.load("runs/inpaint").restore(images, mask=mask)``.

Needs about 1 GB of memory, and an hour on two CPU cores. TFDS prepares MNIST; image files serve as well,
``--config.data.source=folder --config.data.path=DIR``. Variants (``configs/inpaint.py:VARIANT``): ``digits`` (8x8,
minutes on a laptop, no download), ``cifar10``, ``faces`` (CelebA at 64x64); ``tiny`` (a trial run of seconds).
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config, recipes


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/inpaint.py:VARIANT``."""
    config = default_config()
    recipes.mnist_restoration(config)
    config.data.condition = "mask"
    config.model.condition = ("image",)
    variants = {
        "digits": recipes.digits_restoration,
        "cifar10": recipes.cifar10_restoration,
        "faces": recipes.faces_restoration,
    }
    return apply_variants(config, variant, variants)
