"""CIFAR-10, 32x32, unconditional: the network and recipe of DDPM, sampled as in the DDIM paper.

    python -m ddim_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

Follows DDPM's recipe (Ho et al. 2020, appendix B), whose checkpoint the DDIM paper samples from: 800,000 steps of batch
128, Adam at 2e-4 after a warm-up of 5,000 steps, dropout 0.1, horizontal flips, EMA 0.9999, loss averaged over pixels.
Published results for that checkpoint: FID 3.17 with 1,000 DDPM steps (``ddpm_large``), 4.16 with 100 and 4.67 with 50
DDIM steps on the quadratic subsequence (Song et al. 2021, table 1), which ``sample`` is set to.

The data set is prepared by TFDS on first use (needs the extra ``tfds``, once). Any folder of images serves as well:

    ... --config.data.source=folder --config.data.path=DIR

Memory for training at batch 128: see ``--mode=describe``.

Variants (``configs/cifar10.py:VARIANT``). Of the training:

- ``ddim_code``: the training code released with DDIM (loss summed over pixels, no warm-up), which its authors advise
  for sampling only;
- ``v``: v-prediction on Nichol and Dhariwal's cosine schedule, moved to zero terminal SNR (Lin et al. 2024), sampled
  with ``trailing`` levels, which begin at the noisiest;
- ``cond``: class-conditional, one label in ten dropped, sampled with classifier-free guidance;
- ``edm``: Karras et al. 2022: DDPM++ on their process, with augmentation that the network is told of. 35 evaluations of
  Heun; their FID is 1.97 (table 2, unconditional VP).
- ``flow``: the same network on rectified flow (Liu et al. 2023), times drawn as by Esser et al. 2024;
- ``vp`` and ``ve``: score SDE's networks and recipes, DDPM++ on the variance-preserving process and NCSN++ on the
  exploding one (Song et al. 2021); published with its own samplers: FID 2.55 and 2.38;
- ``bf16``: compute in bfloat16.

Of the sampling, for the checkpoint that all of them share: ``ddpm_large`` and ``ddpm_small`` (DDPM with the large and
the small variance: ``sample.steps`` 1000, 100, 50, 10), ``eta1`` (DDIM's code at eta = 1). And ``tiny`` (a trial run of
seconds).
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config, recipes


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/cifar10.py:VARIANT``."""
    config = default_config()
    recipes.cifar10(config)
    config.train.keep_every = 100_000

    config.sample.steps = 50
    config.sample.spacing = "quad"

    variants = {
        "ddim_code": recipes.ddim_code,
        "v": _v,
        "cond": _cond,
        "edm": _edm,
        "flow": _flow,
        "vp": recipes.score_sde_vp,
        "ve": recipes.score_sde_ve,
        "bf16": recipes.bf16,
        "ddpm_large": lambda config: _ddpm(config, "ddpm_large"),
        "ddpm_small": lambda config: _ddpm(config, "ddpm_small"),
        "eta1": _eta1,
    }
    return apply_variants(config, variant, variants)


def _v(config: ConfigTree) -> None:
    config.diffusion.objective = "v"
    config.diffusion.schedule = "cosine"
    config.diffusion.zero_terminal_snr = True
    config.sample.spacing = "trailing"


def _cond(config: ConfigTree) -> None:
    config.model.num_classes = 10
    config.train.label_dropout = 0.1
    config.sample.guidance_scale = 1.5


def _edm(config: ConfigTree) -> None:
    _ddpm_pp(config)
    config.diffusion.schedule = "edm"
    config.diffusion.objective = "v"
    config.diffusion.time_sampling = "lognormal"
    config.diffusion.time_mean = -1.2
    config.diffusion.time_std = 1.2
    config.sample.sampler = "edm"
    config.sample.spacing = "linspace"
    config.sample.steps = 18


def _flow(config: ConfigTree) -> None:
    _ddpm_pp(config)
    config.diffusion.schedule = "flow"
    config.diffusion.objective = "flow"
    config.diffusion.time_sampling = "logitnormal"
    config.sample.sampler = "flow_heun"
    config.sample.spacing = "uniform"
    config.sample.steps = 18


def _ddpm_pp(config: ConfigTree) -> None:
    """Karras et al. 2022, appendix F and table 7: their network, optimiser and augmentation; 200 million images."""
    config.data.flip = False  # the augmentation has flips
    config.data.std = (0.25,)  # variance about 1, their sigma_data of 0.5 for pixels in [-1, 1]
    config.model.name = "song_unet"
    config.model.multipliers = (2, 2, 2)
    config.model.num_blocks = 4
    config.model.dropout = 0.13
    config.model.augmentation_inputs = 9
    config.train.augment_probability = 0.12
    config.train.batch_size = 512
    config.train.steps = 390_625
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 19_531
    config.train.grad_clip = 0.0
    config.train.ema_decay = 0.99929  # a half-life of 500,000 images
    config.train.ema_warmup = True


def _ddpm(config: ConfigTree, sampler: str) -> None:
    config.sample.sampler = sampler
    config.sample.steps = 1000
    config.sample.spacing = "uniform"
    config.sample.clip = "rederive_eps"


def _eta1(config: ConfigTree) -> None:
    config.sample.eta = 1.0
