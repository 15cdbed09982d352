"""What every key means, and its default."""

import dataclasses
import types
import typing
from typing import Any, Literal

Sampler = Literal[
    "ddim", "ddpm_small", "ddpm_large", "heun", "ab2", "ab3", "ab4", "plms", "dpmpp_2m", "unipc2", "unipc3"
]
Spacing = Literal["uniform", "quad", "uniform_published", "quad_published", "trailing", "linspace", "logsnr", "karras"]

SAMPLERS: tuple[str, ...] = typing.get_args(Sampler)
SPACINGS: tuple[str, ...] = typing.get_args(Spacing)
METRICS = ("fid", "is", "kid", "precision_recall")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are prepared.

    Attributes:
        source: ``digits`` (bundled with scikit-learn, no download), ``folder`` (a tree of image
            files) or ``tfds`` (a TensorFlow Datasets name).
        name: TFDS name, e.g. ``cifar10``; for the other sources only a label.
        split: which images, e.g. ``train``, ``train[:90%]`` or ``train+validation``; ``digits`` and ``folder`` have one
            split, ``train``, and its slices.
        validation: split of the images whose loss ``train.validate_every`` watches; empty for none.
        dir: TFDS data directory; empty means TFDS's own default.
        path: root of the ``folder`` source; its first-level sub-folders are the classes.
        image_size: side of the square images that the network sees, in pixels.
        channels: 1 (grey) or 3 (RGB).
        crop: ``none`` (images must be square already), ``center`` (largest centred square) or
            ``celeba`` (rows 57:185, columns 25:153 of 178x218 pixels: the DDIM paper's crop).
        resize: filter used when the cropped image is not ``image_size`` wide; ``none`` refuses
            such an image.
        flip: mirror each image left to right with probability 1/2.
        mean: what is subtracted from pixels in [0, 1], one value or one per channel; empty for the mean of the data,
            which is measured when training starts and kept in the workdir.
        std: what they are divided by then, likewise; mean = std = 0.5 gives floats in [-1, 1].
        cache: where training keeps decoded images: ``device``, in the memory of each device, ``host``, in that of the
            process, ``none``, which reads them again each epoch; ``auto`` is ``device`` on a GPU or TPU and ``host`` on
            a CPU while they need less than ``cache_limit_gib``, else ``none``; ``disk`` prepares them once and keeps
            them in ``cache_dir``, for this and later runs. The same batches come out of all of them.
        cache_limit_gib: memory that ``auto`` may use, in GiB; of a device's it takes no more than a tenth.
        cache_dir: folder of ``disk``; empty for ddim_jax's cache (``$DDIM_JAX_CACHE`` or ``~/.cache/ddim_jax``).
        threads: reader threads per process.
        prefetch: batches prepared ahead.
        on_error: ``fail`` stops at the first unreadable image; ``skip`` counts it, and puts the next
            readable one in its place.
    """

    source: Literal["digits", "folder", "tfds"] = "digits"
    name: str = ""
    split: str = "train"
    validation: str = ""
    dir: str = ""
    path: str = ""
    image_size: int = 32
    channels: int = 3
    crop: Literal["none", "center", "celeba"] = "none"
    resize: Literal["none", "bilinear", "bicubic", "lanczos", "box"] = "none"
    flip: bool = False
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    cache: Literal["auto", "device", "host", "disk", "none"] = "auto"
    cache_limit_gib: float = 2.0
    cache_dir: str = ""
    threads: int = 4
    prefetch: int = 4
    on_error: Literal["fail", "skip"] = "fail"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that the network sees."""
        return (self.image_size, self.image_size, self.channels)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        name: ``unet``, the U-Net of DDPM and DDIM; ``residual_unet``, that of Keras' DDIM example and its kin, see
            ``models/residual_unet.py``.
        structure: of ``residual_unet``: ``keras`` or ``ddim``.
        norm: of ``residual_unet``: ``batch`` (without scale and bias) or ``group`` (with them).
        channels: width of the first level.
        multipliers: width of each level in units of ``channels``; each level but the last halves
            the resolution.
        num_blocks: residual blocks per level on the way down (one more on the way up).
        attention_resolutions: resolutions, in pixels, at which each block is followed by
            self-attention.
        dropout: dropout rate inside the residual blocks.
        num_groups: groups of the group norms, 32 as published; narrower networks need fewer.
        num_classes: 0 for an unconditional network, else the number of labels.
        init: ``ddpm`` (the initialisation of the published CIFAR-10 and LSUN checkpoints) or
            ``torch`` (PyTorch's default, as in DDIM's code).
        dtype: dtype of activations; parameters, norms, softmax and loss stay float32.
        remat: recompute activations of each block in the backward pass to save memory.
    """

    name: Literal["unet", "residual_unet"] = "unet"
    structure: Literal["keras", "ddim"] = "keras"
    norm: Literal["batch", "group"] = "batch"
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    num_groups: int = 32
    num_classes: int = 0
    init: Literal["ddpm", "torch"] = "ddpm"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The forward process and the training objective.

    Attributes:
        schedule: noise schedule, see ``diffusion/schedule.py``.
        num_levels: number of noise levels T.
        beta_start: first beta of the linear, quad, const and sigmoid schedules.
        beta_end: last beta of those.
        zero_terminal_snr: move the schedule so that alpha_bar is 0 at level T (Lin et al. 2024); for x0 and v.
        objective: what the network predicts: the noise, the clean image, or v.
        loss: ``mse`` or ``mae``.
        reduction: over the values of an image; ``mean`` as in DDPM, ``sum`` as in DDIM's code.
        time_sampling: how noise levels are drawn; ``antithetic`` pairs level t with T + 1 - t; ``continuous`` draws
            times between levels too, for ``offset_cosine``.
        min_snr_gamma: weight losses by min(SNR, gamma) (Hang et al. 2023, who use 5); 0 weights none.
    """

    schedule: Literal["linear", "quad", "const", "jsd", "sigmoid", "cosine", "offset_cosine"] = "linear"
    num_levels: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False
    objective: Literal["eps", "x0", "v"] = "eps"
    loss: Literal["mse", "mae"] = "mse"
    reduction: Literal["mean", "sum"] = "mean"
    time_sampling: Literal["antithetic", "uniform", "stratified", "continuous"] = "antithetic"
    min_snr_gamma: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation, and what a training run writes.

    Attributes:
        batch_size: images per step over all devices of all hosts.
        steps: optimiser steps.
        epochs: passes over the data; replaces ``steps`` when it is not 0.
        steps_per_call: training steps that the devices do at a time without hearing from the host. A group of them
            ends at each multiple of this number of steps: checkpoints, pictures and the like, due inside a group, come
            at its end. Differs from 1 by rounding.
        accumulate: split the batch into this many parts, one after the other, to save memory; the
            gradient stays that of the whole batch.
        optimizer: ``adam`` or ``adamw``.
        learning_rate: peak learning rate.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        lr_schedule: after the warm-up, ``constant`` or ``cosine`` decay to 0 at the last step.
        adam_b1: Adam's first decay.
        adam_b2: Adam's second decay.
        adam_eps: Adam's epsilon.
        weight_decay: AdamW's decoupled decay.
        grad_clip: largest global norm of the gradient; 0 turns clipping off.
        label_dropout: share of the labels replaced by "none" in training, which classifier-free guidance needs.
        ema_decay: decay of the moving average of the parameters.
        ema_warmup: use min(ema_decay, (1 + step) / (10 + step)).
        ema_on_host: keep the moving average in the host's memory, not the devices'. Each step then waits for its
            parameters to be fetched.
        checkpoint_every: steps between checkpoints.
        keep_last: newest checkpoints kept.
        keep_every: also keep every checkpoint whose step is a multiple of this; 0 keeps no others.
        log_every: steps between lines of ``metrics.jsonl``; a line may follow its step by fewer than that.
        sample_every: steps between sample grids; 0 draws them at the end only.
        sample_every_epochs: passes over the data between sample grids; replaces ``sample_every`` when it is not 0.
        validate_every: steps between measurements of the loss on ``data.validation``; 0 measures none.
        sample_num: images in a sample grid.
        measure_every: steps between measurements of the samples' quality, by ``eval.extractor`` and against
            ``eval.reference``; the best state is kept. 0 measures none.
        measure_num: samples measured.
        measure_metric: ``fid``, ``kid`` or ``is``: what decides which is best.
        final_sample_steps: numbers of DDIM steps of the grids drawn when training ends.
        tensorboard: also write TensorBoard event files.
        deterministic: on GPU, ask XLA for kernels whose results do not vary from run to run.
        cpu_devices: devices that the cores of a CPU are shared among, in all jobs; 0 makes one of each core, 8 at most,
            2 for networks wider than 64 channels. The operations of a small network keep one core busy.
            ``JAX_NUM_CPU_DEVICES``, if set, decides instead.
        compilation_cache: folder where all jobs keep compiled programs for later runs; ``auto`` is in ddim_jax's cache
            (see ``data.cache_dir``), empty keeps none. ``JAX_COMPILATION_CACHE_DIR``, if set, decides instead.
        overwrite: set another run's files in the workdir aside and start anew.
    """

    batch_size: int = 128
    steps: int = 800_000
    epochs: float = 0.0
    steps_per_call: int = 1
    accumulate: int = 1
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 2e-4
    warmup_steps: int = 0
    lr_schedule: Literal["constant", "cosine"] = "constant"
    adam_b1: float = 0.9
    adam_b2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    label_dropout: float = 0.0
    ema_decay: float = 0.9999
    ema_warmup: bool = False
    ema_on_host: bool = False
    checkpoint_every: int = 5000
    keep_last: int = 2
    keep_every: int = 0
    log_every: int = 100
    sample_every: int = 5000
    sample_every_epochs: float = 0.0
    validate_every: int = 0
    measure_every: int = 0
    measure_num: int = 5000
    measure_metric: Literal["fid", "kid", "is"] = "fid"
    sample_num: int = 64
    final_sample_steps: tuple[int, ...] = (10, 20, 50)
    tensorboard: bool = True
    deterministic: bool = False
    cpu_devices: int = 0
    compilation_cache: str = "auto"
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How images are drawn, by ``--mode=sample`` and wherever else a model draws.

    Attributes:
        num: number of images.
        start: index of the first image; image i depends on ``seed`` and i alone.
        indices: draw these images instead of ``start`` ... ``start + num - 1``.
        per_class: with a class-conditional network, draw this many images of each class instead of ``num``.
        seed: seed of the images.
        preset: settings of a paper or project by name, see ``config/presets.py``; replaces ``sampler``, ``spacing``,
            ``clip`` and ``eta``.
        sampler: ``ddim``; ``ddpm_small`` (posterior variance, DDIM's eta = 1) or ``ddpm_large`` (variance beta, the
            DDIM paper's sigma-hat on a subsequence); or a fast deterministic solver, see ``diffusion/samplers.py``.
        steps: steps S; network evaluations too, but for ``heun`` (2 S - 1) and ``plms`` (S + 1).
        eta: DDIM's stochasticity; 0 is deterministic, 1 is DDPM's posterior variance.
        eta_per_step: an eta for each step, first (noisiest) step first; replaces ``eta``.
        spacing: the subsequence of levels, see ``diffusion/spacing.py``.
        levels: the subsequence itself, noisiest first, in 1 ... T; replaces ``steps`` and ``spacing``.
        clip: what is done to the predicted clean image, see ``diffusion/prediction.py``.
        threshold_percentile: of ``dynamic_threshold``, in percent.
        threshold_limit: largest threshold of ``dynamic_threshold``.
        label: class to draw with a class-conditional network; all classes in turn when unset.
        guidance_scale: classifier-free guidance w: 1 none, larger ones exaggerate the class, see
            ``diffusion/guidance.py``. The network must have been trained with ``train.label_dropout``.
        guidance_levels: the lowest and highest level at which to guide; all when empty.
        ema: use the moving average of the parameters (published results all do).
        checkpoint: step of the checkpoint to use; the newest when unset.
        batch_size: images per device at a time; 0 takes as many as its free memory holds, in reason.
        format: ``png`` files or one ``npz``.
        precision: of matrix products and convolutions, JAX's names. GPUs and TPUs round float32 operands by default;
            at ``highest`` images do not depend on the batch size and the number of devices there either.
    """

    num: int = 64
    start: int = 0
    indices: tuple[int, ...] = ()
    per_class: int = 0
    seed: int = 0
    preset: Literal["", "ddim-paper-cifar10", "ddim-paper-celeba", "ddpm", "openai", "diffusers", "keras"] = ""
    sampler: Sampler = "ddim"
    steps: int = 50
    eta: float = 0.0
    eta_per_step: tuple[float, ...] = ()
    spacing: Spacing = "uniform"
    levels: tuple[int, ...] = ()
    clip: Literal["none", "keep_eps", "rederive_eps", "dynamic_threshold"] = "none"
    threshold_percentile: float = 99.5
    threshold_limit: float = 1e6
    label: int | None = None
    guidance_scale: float = 1.0
    guidance_levels: tuple[int, ...] = ()
    ema: bool = True
    checkpoint: int | None = None
    batch_size: int = 0
    format: Literal["png", "npz"] = "png"
    precision: Literal["default", "high", "highest"] = "default"


@dataclasses.dataclass(frozen=True)
class TrajectoryConfig:
    """``--mode=trajectory``: images on their way from noise.

    Attributes:
        num: images shown, one row each; the first of those that ``sample`` asks for.
        moments: moments shown, one column each, evenly spaced over the steps.
        frame_ms: time of a frame of the animation, in milliseconds.
    """

    num: int = 8
    moments: int = 10
    frame_ms: int = 200


@dataclasses.dataclass(frozen=True)
class InterpolateConfig:
    """``--mode=interpolate``: images between images, by interpolating the noise they are drawn from.

    Attributes:
        first: indices of the images at the left end of each row.
        second: indices of those at the right end, as many.
        points: images in a row, both ends included.
        corners: indices of the four corners of a square grid, top left, top right, bottom left, bottom right; no grid
            when empty.
        side: images along a side of that grid.
    """

    first: tuple[int, ...] = (0, 2, 4, 6)
    second: tuple[int, ...] = (1, 3, 5, 7)
    points: int = 11
    corners: tuple[int, ...] = (0, 1, 2, 3)
    side: int = 8


@dataclasses.dataclass(frozen=True)
class ReconstructConfig:
    """``--mode=reconstruct``: encode real images to noise and decode them.

    Attributes:
        num: images used, the first of the data.
        split: TFDS split to take them from; that of the training when empty.
        path: folder to take them from; that of the training when empty.
        steps: numbers of steps S tried; S to encode and S to decode.
        iterations: 0 encodes explicitly, as the paper; k > 0 implicitly, by k evaluations a step.
        shown: images in the picture.
    """

    num: int = 64
    split: str = ""
    path: str = ""
    steps: tuple[int, ...] = (10, 20, 50, 100, 200, 500, 1000)
    iterations: int = 0
    shown: int = 8


@dataclasses.dataclass(frozen=True)
class EditConfig:
    """``--mode=edit``: change real images.

    Attributes:
        task: ``recover`` noises images to a level and denoises them (SDEdit, when the images are not of the training
            data's kind); ``inpaint`` draws anew what a mask leaves out (RePaint).
        level: noise level that ``recover`` goes to, in 1 ... T.
        num: images used, the first of the data.
        split: TFDS split to take them from; that of the training when empty.
        path: folder, or one image file, to take them from; that of the training when empty.
        mask: image file of the size of the images, for ``inpaint``: white is kept, black is drawn anew.
        resamplings: times that ``inpaint`` goes over each stretch of ``jump`` steps; more harmonise better.
        jump: steps of such a stretch.
    """

    task: Literal["recover", "inpaint"] = "recover"
    level: int = 100
    num: int = 8
    split: str = ""
    path: str = ""
    mask: str = ""
    resamplings: int = 10
    jump: int = 10


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """``--mode=sweep``: the same noise under other settings.

    Attributes:
        etas: rows, with ``ddim``.
        samplers: further rows, e.g. ``ddpm_large``; clipped as ``sample.clip`` says.
        steps: columns.
        num: images in each cell.
    """

    etas: tuple[float, ...] = (0.0, 0.2, 0.5, 1.0)
    samplers: tuple[Sampler, ...] = ()
    steps: tuple[int, ...] = (10, 20, 50, 100, 1000)
    num: int = 4


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig:
    """``--mode=likelihood``: how probable real images are, in bits per dimension.

    Attributes:
        method: ``bound``, the variational bound of DDPM, or ``ode``, the density along the probability-flow ODE.
        num: images used, the first of the data; 0 for all.
        split: split to take them from; that of the training when empty.
        path: folder to take them from; that of the training when empty.
        steps: steps of ``ode``.
        probes: random directions by which ``hutchinson`` estimates a divergence.
        divergence: ``hutchinson`` or ``exact``, whose cost grows with the number of pixels.
        variance: of the reverse process in ``bound``: ``small`` (posterior variance) or ``large`` (beta).
        levels_per_image: levels at which ``bound`` is evaluated for each image, an unbiased estimate; 0 for all.
    """

    method: Literal["bound", "ode"] = "bound"
    num: int = 0
    split: str = ""
    path: str = ""
    steps: int = 100
    probes: int = 1
    divergence: Literal["hutchinson", "exact"] = "hutchinson"
    variance: Literal["small", "large"] = "small"
    levels_per_image: int = 0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """``--mode=evaluate``: how good images are, measured; and ``--mode=stats``: what they are compared with.

    A table has a row for each checkpoint, sampler (with its eta), spacing, number of steps and seed; all rows share the
    extractor, the reference and the number of images, without which figures cannot be compared.

    Attributes:
        preset: the rows of a published table, see ``tables/published_figures.py``; replaces ``samplers``, ``etas``,
            ``spacings`` and ``steps``. ``ddim-table1`` and ``ddim-table3`` are the parts that are about ``data.name``.
        num: images per row.
        checkpoints: steps of checkpoints, or ``latest``, ``best``, ``all``.
        samplers: see ``sample.sampler``.
        etas: of the sampler ``ddim``.
        spacings: see ``sample.spacing``; that one when empty.
        steps: numbers of steps S.
        seeds: of the images; several give mean and spread.
        images: folder or ``.npz`` of images to measure instead of a model's.
        reference: folder, ``.npz`` of images, or ``.npz`` of statistics to compare with; the training images when
            empty.
        reference_split: split of the data to compare with; that of the training when empty.
        reference_num: images of the reference used, evenly spread; 0 for all.
        extractor: ``inception`` (that of FID), ``pixels``, ``pixels_pca`` (their principal components) or
            ``classifier`` (trained on the data set itself). Only figures with ``inception`` are called FID, IS, KID.
        inception_path: weights of ``inception``; downloaded once when empty.
        resize: how images become 299x299 for ``inception``: ``tf1`` (torch-fidelity, TTUR), ``pytorch`` (pytorch-fid)
            or ``clean`` (clean-fid).
        metrics: which of ``fid``, ``is``, ``kid``, ``precision_recall`` are computed.
        is_splits: splits of the inception score; 10 as usual, 1 as in DDPM's paper.
        kid_subsets: random subsets of KID.
        kid_subset_size: images in each.
        neighbours: k of precision and recall.
        features_kept: images whose features are kept, evenly spread, for KID and precision and recall.
        components: principal components of ``pixels_pca``.
        keep_images: also write each row's images, as PNG files.
        batch_size: images per device at a time, through the extractor.
        out: file that ``--mode=stats`` writes, ``WORKDIR/stats/NAME.npz`` when empty; it measures ``images`` or
            ``reference`` if given, else the data.
        format: of that file: ``ddim_jax`` (also read by pytorch-fid and EDM), or ``adm`` (guided-diffusion's).
    """

    preset: Literal[
        "", "ddim-table1", "ddim-table1-cifar10", "ddim-table1-celeba", "ddim-table3", "ddim-table3-bedroom",
        "ddim-table3-church", "ddpm-ddim", "step-times",
    ] = ""  # fmt: skip
    num: int = 50_000
    checkpoints: tuple[str, ...] = ("latest",)
    samplers: tuple[str, ...] = ("ddim",)
    etas: tuple[float, ...] = (0.0,)
    spacings: tuple[str, ...] = ()
    steps: tuple[int, ...] = (10, 20, 50, 100)
    seeds: tuple[int, ...] = (0,)
    images: str = ""
    reference: str = ""
    reference_split: str = ""
    reference_num: int = 0
    extractor: Literal["inception", "pixels", "pixels_pca", "classifier"] = "inception"
    inception_path: str = ""
    resize: Literal["tf1", "pytorch", "clean"] = "tf1"
    metrics: tuple[str, ...] = ("fid", "is", "kid", "precision_recall")
    is_splits: int = 10
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    neighbours: int = 3
    features_kept: int = 10_000
    components: int = 64
    keep_images: bool = False
    batch_size: int = 64
    out: str = ""
    format: Literal["ddim_jax", "adm"] = "ddim_jax"


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """``--mode=import``: other projects' checkpoints; ``--mode=export``: ours, for them and for sharing.

    Attributes:
        path: file or folder to import.
        ema: take the moving averages, where a file has both them and the raw weights.
        format: what to export: a ``diffusers`` folder, or one file, ``npz`` or ``safetensors``.
        dtype: of the exported weights; the shorter ones halve their size, and round them.
        out: folder or file to export to; in the workdir when empty.
    """

    path: str = ""
    ema: bool = True
    format: Literal["diffusers", "npz", "safetensors"] = "diffusers"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    out: str = ""


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. ``seed`` decides initialisation, order, noise: everything random in training."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    trajectory: TrajectoryConfig = TrajectoryConfig()
    interpolate: InterpolateConfig = InterpolateConfig()
    reconstruct: ReconstructConfig = ReconstructConfig()
    edit: EditConfig = EditConfig()
    sweep: SweepConfig = SweepConfig()
    likelihood: LikelihoodConfig = LikelihoodConfig()
    eval: EvalConfig = EvalConfig()
    weights: WeightsConfig = WeightsConfig()
    seed: int = 0


def without_none(annotation: Any) -> Any:
    """The type T of a key annotated ``T`` or ``T | None``."""
    if typing.get_origin(annotation) is types.UnionType:
        return next(arm for arm in typing.get_args(annotation) if arm is not types.NoneType)
    return annotation
