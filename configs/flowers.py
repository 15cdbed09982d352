"""Oxford Flowers 102, 64x64: the DDIM example of Keras, in continuous time.

    python -m ddim_jax.main --config=configs/flowers.py --workdir=runs/flowers

The example's recipe: t uniform in [0, 1], the offset cosine schedule between signal rates 0.95 and 0.02, the residual
U-Net (widths 32, 64, 96, 128, two blocks each) told the variance of the noise, mean absolute error of the noise, AdamW
at 1e-3 with weight decay 1e-4 and epsilon 1e-7, EMA 0.999 over parameters and batch statistics, images normalised by
the mean and variance of the training set, 80% of all three splits to train on and 20% to validate. The example repeats
its data five times per epoch, so its 50 epochs are 250 here. Keras adds Adam's epsilon to the root of the moments as
they are, Optax to that of the bias-corrected ones: at step t Keras' 1e-7 is Optax's 1e-7 / sqrt(1 - 0.999^t), 3.2e-6 at
the first step, 1.3e-7 at the 1,000th, 1.03e-7 at the 3,000th of 25,000. What it tends to, 1e-7, is used throughout.
There is no published FID; its author reports a KID of 0.282 with the mean absolute error, by a measure of his own
(Keras' Inception at 75x75).

The images are prepared by TFDS on first use (needs the extra ``tfds``, once), and kept at 64x64 in ddim_jax's cache.
Every 2,500 steps the KID of 1,000 samples to the validation images is measured, and the best state kept; the weights of
Inception are downloaded once for it (``--config.train.measure_every=0`` does without). Memory for training: see
``--mode=describe``.

    ... --mode=trajectory --config.trajectory.moments=20      the predicted image at each of 20 DDIM steps
    ... --mode=sample --config.sample.steps=50                DDIM with 50 steps; 100 likewise
    ... --mode=sample --config.sample.preset= --config.sample.sampler=ddpm_small --config.sample.steps=1000     DDPM

Variants (``configs/flowers.py:VARIANT``), of the network: ``bk`` (the example's, the default), ``bbno`` (DDPM's blocks
without attention, batch norms without scale and bias, the noise level once at the top) and ``bgano`` (the same with
group norms, which learn both); ``tiny`` (a trial run of seconds). See ``ddim_jax/models/residual_unet.py``.
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config, recipes


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/flowers.py:VARIANT``."""
    config = default_config()
    recipes.keras(config)

    config.data.source = "tfds"
    config.data.name = "oxford_flowers102"
    config.data.split = "train[:80%]+validation[:80%]+test[:80%]"
    config.data.validation = "train[80%:]+validation[80%:]+test[80%:]"
    config.data.image_size = 64
    config.data.channels = 3
    config.data.crop = "center"
    config.data.resize = "bilinear"  # Pillow's is antialiased
    config.data.cache = "disk"

    config.train.adam_eps = 1e-7
    config.train.epochs = 250.0
    config.train.checkpoint_every = 500
    config.train.validate_every = 500
    config.train.measure_every = 2500
    config.train.measure_metric = "kid"
    config.train.measure_num = 1000
    config.eval.metrics = ("fid", "kid")
    config.eval.reference_split = config.data.validation
    config.train.sample_every_epochs = 5.0
    config.train.sample_num = 32
    config.train.final_sample_steps = (5, 20, 100)

    return apply_variants(
        config, variant, {"bk": lambda config: None, "bbno": recipes.bbno, "bgano": recipes.bgano}
    )  # fmt: skip
