"""CelebA, 64x64: the network and the crop of the DDIM paper, trained by epochs, with a picture after each.

    python -m ddim_jax.main --config=configs/celeba.py --workdir=runs/celeba

The crop is rows 57:185 and columns 25:153 of the aligned images, then 64x64 bilinear; other crops give other FIDs. The
network has 78,700,803 parameters. Batch 128, Adam at 2e-4, dropout 0.1, horizontal flips, gradients clipped at 1 and
EMA 0.9999 are those of DDIM's ``celeba.yml``; the loss is averaged over pixels, after a warm-up of 5,000 steps, as
DDPM's. 100 epochs of 162,770 images are 127,165 steps. Published for the authors' own checkpoint, trained on this crop:
FID 17.33, 13.73, 9.17, 6.53 with 10, 20, 50, 100 DDIM steps (Song et al. 2021, table 1), uniform subsequences, which
``sample`` is set to.

TFDS prepares the data on first use (extra ``tfds``, once). The unzipped archive serves as well, whose files are
numbered in the official order: 162,770 for training, 19,867 for validation, 19,962 for tests:

    ... --config.data.source=folder --config.data.path=img_align_celeba --config.data.split='train[:162770]' \
        --config.data.validation='train[162770:182637]'

Memory for training at batch 128: see ``--mode=describe``.

Variants (``configs/celeba.py:VARIANT``): ``ddim_code`` (loss summed over pixels, no warm-up: DDIM's training code to
the letter), ``bf16`` (compute in bfloat16), ``tiny`` (a trial run of seconds).
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config, recipes


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/celeba.py:VARIANT``."""
    config = default_config()
    recipes.celeba(config)
    recipes.faces_64(config)

    config.train.epochs = 100.0

    config.sample.preset = "ddim-paper-celeba"

    return apply_variants(config, variant, {"ddim_code": recipes.ddim_code, "bf16": recipes.bf16})
