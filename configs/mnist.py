"""MNIST by epochs, 28x28 grey: six epochs, and after each a picture of what the model draws.

    python -m ddim_jax.main --config=configs/mnist.py --workdir=runs/mnist

Six epochs of the 60,000 training images in batches of 128 are 2,813 steps. The network is DDPM's, narrow and without
dropout: 1,112,801 parameters, an hour or two on two CPU cores, minutes on a GPU; 1 GB of memory. Digits are clearly
readable then; ``docs/recipes.md`` has pictures, and how many of them a classifier recognises.

Other sets are a flag away, e.g. ``--config.data.name=fashion_mnist`` (TFDS) or, from image files in folders,

    ... --config.data.source=folder --config.data.path=DIR

Widths and depths of a network made of stages of given widths, e.g. 64, 128, 256 with two blocks each, are
``model.channels=64``, ``model.multipliers='(1, 2, 4)'`` and ``model.num_blocks=2``.

Variants (``configs/mnist.py:VARIANT``): ``bk``, ``bbno`` and ``bgano`` are the three networks of ``configs/flowers.py``
with its recipe, at 32x32; ``cond`` is class-conditional, for guidance; ``small`` is the network and recipe of the
bundled model ``mnist-small``, class-conditional too: 1,806,529 parameters, 5,000 steps; ``tiny`` (a trial run of
seconds).
"""

from ddim_jax.config import ConfigTree, apply_variants, default_config, recipes


def get_config(variant: str | None = None) -> ConfigTree:
    """The config; ``variant`` is what follows the colon in ``configs/mnist.py:VARIANT``."""
    config = default_config()

    config.data.source = "tfds"
    config.data.name = "mnist"
    config.data.image_size = 28
    config.data.channels = 1

    config.model.channels = 32
    config.model.num_groups = 8
    config.model.multipliers = (1, 2, 2)
    config.model.num_blocks = 1
    config.model.attention_resolutions = (7,)
    config.model.dropout = 0.0

    config.diffusion.num_levels = 1000

    config.train.batch_size = 128
    config.train.epochs = 6.0
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 100
    config.train.lr_schedule = "cosine"
    config.train.ema_decay = 0.995
    config.train.ema_warmup = True
    config.train.checkpoint_every = 200
    config.train.log_every = 20
    config.train.sample_every_epochs = 1.0
    config.train.sample_num = 64

    config.sample.steps = 50
    # Most pixels lie at an end of their range: clipping there keeps the noise of a young network away. The noise has to
    # be derived anew: kept as predicted, as in diffusers, many steps of it eat the digits up.
    config.sample.clip = "rederive_eps"

    return apply_variants(config, variant, {"bk": _bk, "bbno": _bbno, "bgano": _bgano, "cond": _cond, "small": _small})


def _bk(config: ConfigTree) -> None:
    recipes.keras(config)
    config.data.image_size = 32
    config.data.resize = "bilinear"
    config.model.channels = 16
    config.sample.clip = "none"
    config.train.warmup_steps = 0
    config.train.lr_schedule = "constant"


def _bbno(config: ConfigTree) -> None:
    _bk(config)
    recipes.bbno(config)


def _bgano(config: ConfigTree) -> None:
    _bk(config)
    recipes.bgano(config)


def _cond(config: ConfigTree) -> None:
    config.model.num_classes = 10
    config.train.label_dropout = 0.1
    config.sample.guidance_scale = 2.0


def _small(config: ConfigTree) -> None:
    _cond(config)
    config.model.multipliers = (1, 2, 3)
    # As for configs/digits.py: the linear schedule spends most of its levels on noise.
    config.diffusion.schedule = "cosine"
    config.diffusion.objective = "v"
    config.train.epochs = 0.0
    config.train.steps = 5000
    config.train.ema_decay = 0.999
    config.train.sample_every_epochs = 0.0
    config.train.sample_every = 1000
    config.train.checkpoint_every = 500
