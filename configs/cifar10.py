"""CIFAR-10, 32x32, unconditional: the network and recipe of DDPM, sampled as in the DDIM paper.

    python -m ddim_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

Follows DDPM's recipe (Ho et al. 2020, appendix B), whose checkpoint the DDIM paper samples from: 800,000 steps of batch
128, Adam at 2e-4 after a warm-up of 5,000 steps, dropout 0.1, horizontal flips, EMA 0.9999, loss averaged over pixels.
Published results for that checkpoint: FID 3.17 with 1,000 DDPM steps (``ddpm_large``), 4.16 with 100 and 4.67 with 50
DDIM steps on the quadratic subsequence (Song et al. 2021, table 1), which ``sample`` is set to.

The data set is prepared by TFDS on first use (needs the extra ``tfds``, once). Any folder of images serves as well:

    ... --config.data.source=folder --config.data.path=DIR

Memory for training at batch 128: see ``--mode=describe``.

Variants (``configs/cifar10.py:VARIANT``): ``ddim_code`` follows the training code released with DDIM instead (loss
summed over pixels, no warm-up), which its authors advise for sampling only; ``bf16`` computes in bfloat16; ``tiny``
(a trial run of seconds).
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/cifar10.py:VARIANT``."""
    config = default_config()

    config.data.source = "tfds"
    config.data.name = "cifar10"
    config.data.split = "train"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.flip = True

    config.model.channels = 128
    config.model.multipliers = (1, 2, 2, 2)
    config.model.num_blocks = 2
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.1

    config.diffusion.schedule = "linear"
    config.diffusion.num_levels = 1000

    config.train.batch_size = 128
    config.train.steps = 800_000
    config.train.learning_rate = 2e-4
    config.train.warmup_steps = 5000
    config.train.grad_clip = 1.0
    config.train.ema_decay = 0.9999
    config.train.checkpoint_every = 5000
    config.train.keep_every = 100_000
    config.train.log_every = 100
    config.train.sample_every = 5000

    config.sample.steps = 50
    config.sample.spacing = "quad"

    return apply_variants(config, variant, {"ddim_code": _ddim_code, "bf16": _bf16})


def _ddim_code(config: ConfigTree) -> None:
    config.diffusion.reduction = "sum"
    config.train.warmup_steps = 0


def _bf16(config: ConfigTree) -> None:
    config.model.dtype = "bfloat16"
