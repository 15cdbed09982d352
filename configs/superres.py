"""Super-resolution: pictures drawn from smaller ones, 8x8 digits from 4x4 in minutes on a laptop.

    python -m ddim_jax.main --config=configs/superres.py --workdir=runs/superres

The smaller picture is enlarged by bicubic interpolation and given to the network as further channels of its input, as
in SR3 (Saharia et al. 2021). Where that is blurred, the network draws what images of this kind have there: each draw is
another one, and all of them become the given picture again when they are made small. Then

    ... --mode=sample --config.sample.condition_path=SMALL      images of pictures of your own, 4x4 here
    ... --mode=evaluate                                         PSNR and SSIM beside bicubic interpolation's

and from Python ``ddim_jax.load("runs/superres").upscale(small)``.

Needs about 1 GB of memory; the variants for CIFAR-10 and faces an accelerator, see ``--mode=describe``.

Variants (``configs/superres.py:VARIANT``): ``mnist`` (7x7 to 28x28), ``cifar10`` (8x8 to 32x32), ``faces`` (16x16 to
64x64, the first of SR3's tasks on CelebA; its published figures are for 8 times as large images), from TFDS or, with
``--config.data.source=folder --config.data.path=DIR``, from image files; ``tiny`` (a trial run of seconds).
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config, recipes


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/superres.py:VARIANT``."""
    config = default_config()
    recipes.digits_restoration(config)
    config.data.condition = "downsample"
    config.data.condition_factor = 2
    config.model.condition = ("image",)
    return apply_variants(config, variant, {"mnist": _mnist, "cifar10": _cifar10, "faces": _faces})


def _mnist(config: ConfigTree) -> None:
    recipes.mnist_restoration(config)
    config.data.condition_factor = 4


def _cifar10(config: ConfigTree) -> None:
    recipes.cifar10_restoration(config)
    config.data.condition_factor = 4


def _faces(config: ConfigTree) -> None:
    recipes.faces_restoration(config)
    config.data.condition_factor = 4
    # Pictures of other cameras are less perfect than shrunk ones: a little noise on them makes the network bear that.
    config.data.condition_augmentation = 0.2
