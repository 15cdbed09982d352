"""Recipes that several config files share: each sets the keys that its paper or project names, in place."""

from ddim_jax.config.tree import ConfigTree


def keras(config: ConfigTree) -> None:
    """Keras' DDIM example, but for the data: continuous time, the residual U-Net, mean absolute error, AdamW.

    The network and the times of its sampler, 1, 1 - 1/S ..., are the example's; its levels here are 1/T apart, with T =
    1000, so all S that divide 1,000 are exact.
    """
    config.data.mean = ()
    config.data.std = ()

    config.model.name = "residual_unet"
    config.model.structure = "keras"
    config.model.norm = "batch"
    config.model.channels = 32
    config.model.multipliers = (1, 2, 3, 4)
    config.model.num_blocks = 2
    config.model.num_groups = 8
    config.model.attention_resolutions = ()
    config.model.dropout = 0.0

    config.diffusion.schedule = "offset_cosine"
    config.diffusion.num_levels = 1000
    config.diffusion.time_sampling = "continuous"
    config.diffusion.loss = "mae"

    config.train.batch_size = 64
    config.train.optimizer = "adamw"
    config.train.learning_rate = 1e-3
    config.train.weight_decay = 1e-4
    config.train.grad_clip = 0.0
    config.train.ema_decay = 0.999

    config.sample.preset = "keras"
    config.sample.steps = 20
    config.trajectory.moments = 20


def bbno(config: ConfigTree) -> None:
    """After :func:`keras`: DDPM's blocks without attention, batch norms without scale and bias."""
    config.model.structure = "ddim"


def bgano(config: ConfigTree) -> None:
    """After :func:`keras`: as :func:`bbno`, with group norms that learn a scale and a bias."""
    config.model.structure = "ddim"
    config.model.norm = "group"


def ddpm_256(config: ConfigTree) -> None:
    """DDPM's network and training for 256x256 images (Ho et al. 2020, appendix B), but for the data.

    Learning rate and batch are those of its LSUN and CelebA-HQ runs; needs an accelerator of 80 GB, or
    ``train.accumulate``.
    """
    config.data.image_size = 256
    config.data.channels = 3
    config.data.flip = True

    config.model.channels = 128
    config.model.multipliers = (1, 1, 2, 2, 4, 4)
    config.model.num_blocks = 2
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.0

    config.diffusion.schedule = "linear"
    config.diffusion.num_levels = 1000

    config.train.batch_size = 64
    config.train.learning_rate = 2e-5
    config.train.warmup_steps = 5000
    config.train.grad_clip = 1.0
    config.train.ema_decay = 0.9999
    config.train.checkpoint_every = 5000
    config.train.keep_every = 100_000
    config.train.sample_every = 10_000
    config.train.sample_num = 16

    config.sample.steps = 50


def faces_64(config: ConfigTree) -> None:
    """The DDIM paper's network for CelebA at 64x64 and its training (``celeba.yml``), but for the data and the length.

    The loss is averaged over pixels after a warm-up, as in DDPM; :func:`ddim_code` undoes that.
    """
    config.model.channels = 128
    config.model.multipliers = (1, 2, 2, 2, 4)
    config.model.num_blocks = 2
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.1

    config.diffusion.schedule = "linear"
    config.diffusion.num_levels = 1000

    config.train.batch_size = 128
    config.train.learning_rate = 2e-4
    config.train.warmup_steps = 5000
    config.train.grad_clip = 1.0
    config.train.ema_decay = 0.9999


def score_sde_vp(config: ConfigTree) -> None:
    """DDPM++ on the continuous variance-preserving process, and its training (Song et al. 2021, appendices C and H)."""
    config.model.name = "song_unet"
    config.model.channels = 128
    config.model.multipliers = (1, 2, 2, 2)
    config.model.num_blocks = 4
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.1

    config.diffusion.schedule = "vp"
    config.diffusion.num_levels = 1000
    config.diffusion.time_sampling = "continuous"

    config.train.batch_size = 128
    config.train.steps = 1_300_000
    config.train.learning_rate = 2e-4
    config.train.warmup_steps = 5000
    config.train.grad_clip = 1.0
    config.train.ema_decay = 0.9999

    config.sample.sampler = "heun"
    config.sample.spacing = "karras"
    config.sample.steps = 18


def score_sde_ve(config: ConfigTree) -> None:
    """NCSN++ on the exploding process, likewise; its sigmas, 0.01 to 50, are of pixels in [0, 1], half of ours."""
    score_sde_vp(config)
    config.model.embedding = "fourier"
    config.model.encoder = "residual"
    config.model.resample_filter = (1, 3, 3, 1)
    config.diffusion.schedule = "ve"
    config.diffusion.sigma_min = 0.02
    config.diffusion.sigma_max = 100.0
    config.train.ema_decay = 0.999


def ddim_code(config: ConfigTree) -> None:
    """What DDIM's training code does otherwise than DDPM's: the loss is summed over pixels, and nothing warms up."""
    config.diffusion.reduction = "sum"
    config.train.warmup_steps = 0


def digits(config: ConfigTree) -> None:
    """Scikit-learn's 8x8 digits, a network for them, and its training: minutes on a laptop."""
    config.data.source = "digits"
    config.data.image_size = 8
    config.data.channels = 1

    config.model.channels = 32
    config.model.num_groups = 8
    config.model.multipliers = (1, 2, 2)
    config.model.num_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.dropout = 0.0

    # The linear schedule drowns images as small as these too early, and spends most levels on noise (Nichol and
    # Dhariwal 2021, section 3.2). The cosine one ends in nearly pure noise, from which an image cannot be had by way
    # of eps, since their difference is divided by almost nothing: hence v.
    config.diffusion.schedule = "cosine"
    config.diffusion.objective = "v"

    config.train.batch_size = 128
    config.train.steps = 600
    config.train.learning_rate = 2e-3
    config.train.warmup_steps = 50
    config.train.lr_schedule = "cosine"
    config.train.ema_decay = 0.995
    config.train.ema_warmup = True
    config.train.checkpoint_every = 200
    config.train.log_every = 20
    config.train.sample_every = 200
    config.train.sample_num = 64
    config.train.final_sample_steps = (10, 20, 50)

    config.sample.steps = 20


def digits_restoration(config: ConfigTree) -> None:
    """:func:`digits` for networks that are given a picture; measured on the last 297, without any download."""
    digits(config)
    config.data.split = "train[:1500]"
    config.data.validation = "train[1500:]"
    config.eval.metrics = ("fid", "psnr", "ssim")
    config.eval.extractor = "classifier"
    config.eval.num = 297


def mnist_restoration(config: ConfigTree) -> None:
    """MNIST at 28x28 for networks that are given a picture: narrow, v-prediction, an hour on two CPU cores."""
    digits_restoration(config)
    config.eval.num = 10_000
    config.data.source = "tfds"
    config.data.name = "mnist"
    config.data.split = "train"
    config.data.validation = "test"
    config.data.image_size = 28
    config.model.attention_resolutions = (7,)
    config.train.steps = 3000
    config.train.batch_size = 64
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 100
    config.train.checkpoint_every = 500
    config.train.sample_every = 500


def cifar10(config: ConfigTree) -> None:
    """CIFAR-10 from TFDS, the network of DDPM and DDIM for it, and DDPM's training (Ho et al. 2020, appendix B)."""
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
    config.train.log_every = 100
    config.train.sample_every = 5000


def cifar10_restoration(config: ConfigTree) -> None:
    """The same for networks that are given a picture, after any recipe: v-prediction, cosine schedule."""
    cifar10(config)
    config.data.validation = "test"
    config.model.num_groups = 32
    config.diffusion.schedule = "cosine"
    config.diffusion.objective = "v"
    config.train.steps = 200_000
    _restored_by_large_networks(config)


def celeba(config: ConfigTree) -> None:
    """CelebA from TFDS, 64x64 of the DDIM paper's crop, and how often a run on it writes and draws."""
    config.data.source = "tfds"
    config.data.name = "celeb_a"
    config.data.split = "train"
    config.data.validation = "validation"
    config.data.image_size = 64
    config.data.channels = 3
    config.data.crop = "celeba"
    config.data.resize = "bilinear"
    config.data.flip = True
    config.data.cache = "disk"

    config.train.checkpoint_every = 1000
    config.train.sample_every_epochs = 1.0
    config.train.sample_num = 64

    config.sample.steps = 50


def faces_restoration(config: ConfigTree) -> None:
    """CelebA at 64x64 for networks that are given a picture: :func:`celeba` and :func:`faces_64`, after any recipe."""
    celeba(config)
    faces_64(config)
    config.model.num_groups = 32
    config.diffusion.schedule = "linear"
    config.diffusion.objective = "eps"
    config.train.epochs = 100.0
    config.train.log_every = 100
    _restored_by_large_networks(config)


def _restored_by_large_networks(config: ConfigTree) -> None:
    """Undoes what is for small ones in :func:`digits`, and measures restored colour images."""
    config.train.lr_schedule = "constant"
    config.train.ema_warmup = False
    config.sample.steps = 50
    config.eval.metrics = ("fid", "psnr", "ssim")
    config.eval.extractor = "inception"
    config.eval.num = 10_000


def bf16(config: ConfigTree) -> None:
    """Computes in bfloat16; parameters, norms, softmax and loss stay float32."""
    config.model.dtype = "bfloat16"
