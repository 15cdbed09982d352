"""Faces by their attributes: CelebA at 64x64, drawn from the vector of its 40 annotations.

    python -m ddim_jax.main --config=configs/attributes.py --workdir=runs/attributes

CelebA says of each image whether 40 attributes (``Smiling``, ``Eyeglasses``, ``Young`` ...) hold: a vector of 40
numbers, 1 for yes and -1 for no, in the alphabetical order of their names. It goes through two layers beside the noise
level; a tenth of the vectors are left out in training, so that sampling can be guided. Then

    ... --mode=sample --config.sample.condition_path=WISHES.csv

draws a face for each row of 40 numbers, and from Python
``ddim_jax.load("runs/attributes").sample(16, condition=rows)``. Network and
training are those of ``configs/celeba.py``. No result is published for this. Memory for training at batch 128: see
``--mode=describe``.

The data come from TFDS (extra ``tfds``), or from a folder of images beside a table of the same 40 columns,
``--config.data.source=folder --config.data.path=DIR --config.data.vector=TABLE.csv``. Variants
(``configs/attributes.py:VARIANT``): ``bf16`` (compute in bfloat16), ``tiny`` (a trial run of seconds).
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config, recipes


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/attributes.py:VARIANT``."""
    config = default_config()
    recipes.celeba(config)
    recipes.faces_64(config)
    config.data.vector = "attributes"
    config.model.condition = ("vector",)
    config.model.vector_size = 40
    config.train.condition_dropout = (0.1,)
    config.train.epochs = 100.0
    config.sample.guidance_scale = 1.5
    return apply_variants(config, variant, {"bf16": recipes.bf16})
