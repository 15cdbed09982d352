"""What every key means, its default, what it decides and which values it can have."""

import dataclasses
import types
import typing
from typing import Any, Literal

from ddim_jax.config.keys import LARGEST_INDEX, Role, key
from ddim_jax.names import (
    ActivationDtype,
    Clip,
    ConditionKind,
    ConditionTask,
    Crop,
    DataSource,
    DistillMethod,
    DistillWeight,
    Divergence,
    EditTask,
    Encoder,
    ExtractorName,
    ImageCache,
    ImageFormat,
    Initialization,
    LearningRateSchedule,
    LikelihoodMethod,
    Loss,
    MaskKind,
    MetricName,
    NetworkName,
    Norm,
    Objective,
    OnError,
    Optimizer,
    PixelType,
    Precision,
    PresetName,
    QkvOrder,
    Reduction,
    ResizeFilter,
    ResizeProtocol,
    SamplerName,
    ScheduleName,
    SnapshotDtype,
    Spacing,
    StatisticsFormat,
    StoredDtype,
    Structure,
    TableName,
    TimeEmbedding,
    TimeSampling,
    Variance,
    WeightsFormat,
)

# Bounds that nobody with a purpose meets. They keep slips of the hand, such as 10^9 for 10^3, from taking all memory or
# all time; whether this machine can hold what is in them, an estimate says before a job begins.
LARGEST_SIDE = 2**14  # in pixels
LARGEST_WIDTH = 2**16  # channels of a network; the largest known have some thousands
LARGEST_LEVEL = 100_000  # published models have up to 4,000 levels; tables of steps are made row by row
LARGEST_BATCH = 2**20
NEVER = 10**12  # of intervals: larger than any step

# Widths of power-function averages: narrower ones are the newest weights, and 0.289 is the mean of all steps.
NARROWEST_AVERAGE = 0.001
WIDEST_AVERAGE = 0.28

# What a network is told of an image's augmentation, see ``training/augmentation.py``.
AUGMENTATION_INPUTS = 9


def height_and_width(size: int | tuple[int, ...]) -> tuple[int, int]:
    """Height and width, of which one number stands for both.

    >>> height_and_width(32), height_and_width((128, 64))
    ((32, 32), (128, 64))
    """
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are prepared.

    Attributes:
        source: ``digits`` (bundled with scikit-learn, no download), ``folder`` (a tree of image files), ``tfds`` (a
            TensorFlow Datasets name), ``array`` (a ``.npy`` or ``.npz`` file) or ``parquet`` (a folder of such files).
        name: TFDS name, e.g. ``cifar10``; for the other sources only a label.
        split: which images, e.g. ``train``, ``train[:90%]`` or ``train+validation``; sources other than ``tfds`` have
            one split, ``train``, and its slices.
        validation: split of the images whose loss ``train.validate_every`` watches; empty for none.
        dir: TFDS data directory; empty means TFDS's own default.
        path: folder of the sources ``folder``, whose first-level sub-folders are the classes, and ``parquet``; file of
            ``array``.
        image_size: height and width of the images that the network sees, in pixels; one number for squares.
        channels: of the images: 1 (grey), 3 (RGB), 4 (RGB with alpha), or any other number.
        dtype: type of the images' values: ``uint8``, ``uint16`` or ``float32``; samples have it too.
        range: the lowest and the highest value of the images, or of each channel, one pair after the other. Empty for
            all that integers can hold; of floats it is measured then, when training starts, and kept in the workdir.
        pad: let the network enlarge images whose sides its levels cannot halve, by zeros at the bottom and at the
            right, and cut its output back.
        shown_channels: channels that pictures for people show, one as grey or three as colours; empty for all of
            images of 1, 3 or 4 (with alpha over a checkerboard), else the first, or the first three.
        condition: what a network with ``model.condition=image`` is given of an image: ``downsample`` (smaller by
            ``condition_factor``), ``grey``, ``mask`` (a part is missing), ``blur``, ``noise``; or ``paired``, another
            picture that the data have beside each image. See ``conditions/tasks.py``.
        condition_factor: of ``downsample``: how many times smaller the picture is that is given.
        condition_masks: of ``mask``: which kinds of parts are missing, one of them drawn for each image.
        condition_blur: of ``blur``: standard deviation of the Gaussian filter, in pixels.
        condition_noise: of ``noise``: standard deviation of what is added, for pixels in [0, 1].
        condition_augmentation: largest noise level, in [0, 1], that training adds to the picture that is given, and
            tells the network; so that it copes with pictures less perfect than the data (Ho et al. 2022).
        condition_path: of ``paired``: the folder or array of these pictures, where they are not beside the images.
        condition_size: of ``paired``: height and width of these pictures; 0 for those of the images.
        condition_channels: of ``paired``: their channels; 0 for as many as the images have.
        vector: of a network with ``model.condition=vector``, where the vectors are: a TFDS feature, the name of an
            array in the ``.npz`` of the images, or a ``.npy`` or ``.csv`` file with a row for each image.
        labels: of the source ``array``: where the classes are, likewise; empty for ``labels`` in the ``.npz``.
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

    source: DataSource = key("digits", Role.TRAINING)
    name: str = key("", Role.TRAINING)
    split: str = key("train", Role.TRAINING)
    validation: str = key("", Role.PROGRESS)
    dir: str = key("", Role.MACHINE, is_path=True)
    path: str = key("", Role.MACHINE, is_path=True)
    image_size: int | tuple[int, ...] = key(32, Role.NETWORK, at_least=1, at_most=LARGEST_SIDE, longest=2)
    channels: int = key(3, Role.NETWORK, at_least=1, at_most=LARGEST_WIDTH)
    dtype: PixelType = key("uint8", Role.NETWORK, is_later=True)
    range: tuple[float, ...] = key(
        (), Role.NETWORK, at_least=-1e30, at_most=1e30, longest=2 * LARGEST_WIDTH, is_later=True
    )
    pad: bool = key(False, Role.NETWORK, is_later=True)
    shown_channels: tuple[int, ...] = key(
        (), Role.PROGRESS, at_least=0, at_most=LARGEST_WIDTH, longest=3, is_later=True
    )
    condition: Literal[""] | ConditionTask = key("", Role.NETWORK, is_later=True)
    condition_factor: int = key(4, Role.NETWORK, at_least=2, at_most=LARGEST_SIDE, is_later=True)
    condition_masks: tuple[MaskKind, ...] = key(
        ("box", "half", "strokes"), Role.TRAINING, is_filled=True, is_later=True
    )
    condition_blur: float = key(1.5, Role.NETWORK, above=0, at_most=1000, is_later=True)
    condition_noise: float = key(0.2, Role.NETWORK, above=0, at_most=1000, is_later=True)
    condition_augmentation: float = key(0.0, Role.NETWORK, at_least=0, at_most=1, is_later=True)
    condition_path: str = key("", Role.MACHINE, is_path=True, is_later=True)
    condition_size: int | tuple[int, ...] = key(
        0, Role.NETWORK, at_least=0, at_most=LARGEST_SIDE, longest=2, is_later=True
    )
    condition_channels: int = key(0, Role.NETWORK, at_least=0, at_most=LARGEST_WIDTH, is_later=True)
    vector: str = key("", Role.TRAINING, is_later=True)
    labels: str = key("", Role.TRAINING, is_later=True)
    crop: Crop = key("none", Role.TRAINING)
    resize: ResizeFilter = key("none", Role.TRAINING)
    flip: bool = key(False, Role.TRAINING)
    mean: tuple[float, ...] = key((0.5,), Role.NETWORK, at_least=0, at_most=1)
    std: tuple[float, ...] = key((0.5,), Role.NETWORK, at_least=1e-6, at_most=100)
    cache: ImageCache = key("auto", Role.MACHINE)
    cache_limit_gib: float = key(2.0, Role.MACHINE, at_least=0, at_most=1e9)
    cache_dir: str = key("", Role.MACHINE, is_path=True)
    threads: int = key(4, Role.MACHINE, at_least=1, at_most=1024)
    prefetch: int = key(4, Role.MACHINE, at_least=1, at_most=10_000)
    on_error: OnError = key("fail", Role.TRAINING)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that the network sees."""
        return (*height_and_width(self.image_size), self.channels)

    @property
    def paired_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the pictures that ``condition=paired`` puts beside the images."""
        size = height_and_width(self.condition_size or self.image_size)
        return (*size, self.condition_channels or self.channels)

    @property
    def picture_channels(self) -> int:
        """Channels of the picture of ``condition``, as ``conditions/tasks.py`` makes it; 0 where there is none."""
        of_task = {"": 0, "grey": 1, "mask": self.channels + 1, "paired": self.paired_shape[2]}
        return of_task.get(self.condition, self.channels)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        name: ``unet``, the U-Net of DDPM and DDIM; ``residual_unet``, that of Keras' DDIM example and its kin, see
            ``models/residual_unet.py``; ``song_unet``, DDPM++ and NCSN++ of score SDE and EDM, see
            ``models/song_unet.py``.
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
        condition: what the network is told of an image beside its noise level: ``class``, the label (which
            ``num_classes`` alone says, too); ``vector``, the numbers of ``data.vector``; ``image``, the picture of
            ``data.condition``. Several may be combined.
        vector_size: length of the vectors.
        null_label: of a class-conditional network: whether it has one label more, which means "no label".
        time_freq_shift: 1, or 0 as in diffusers' training script and OpenAI's code: the frequencies that tell the noise
            level are 10000^(-k / (half - shift)).
        time_cos_first: put the cosines of the noise level before the sines, as those do.
        downsample_padding: 0 puts zeros right and below an image before its resolution is halved, 1 on all sides.
        norm_eps: what group norms add to the variance; 1e-5 is PyTorch's default.
        head_channels: width of an attention head; 0 for one head of all channels.
        embedding: of ``song_unet``: noise levels are told by sines at fixed frequencies (``positional``) or random ones
            (``fourier``).
        encoder: of ``song_unet``: ``standard``, or ``residual``, in which the image enters at each resolution.
        resample_filter: of ``song_unet``: weights of the pixels, an even number of them, by which resolutions are
            changed: (1, 1) for DDPM++, (1, 3, 3, 1) for NCSN++.
        augmentation_inputs: of ``song_unet``: length of what it is told of an image's augmentation: 0 for nothing, 9
            for those of ``train.augment_probability``.
        num_heads: number of attention heads, whatever their width; 0 for what ``head_channels`` says.
        scale_shift_norm: tell the blocks of noise level and label by a scale and a shift after their second norm, as
            OpenAI's networks do.
        resample_blocks: halve and double the resolution by residual blocks, not by convolutions, as OpenAI's ADM does.
        learn_variance: predict the variance of a step as well (Nichol and Dhariwal 2021), in as many channels more, for
            ``sample.sampler=ddpm_learned`` and ``likelihood.variance=learned``; all else looks at the first half.
        time_channels: width of the embedding of the noise level, where it is not ``channels``; 0 for that.
        time_scale: what the noise level is multiplied by before it is embedded; 0.25 in OpenAI's networks of 4,000
            levels.
        init: ``ddpm`` (the initialisation of the published CIFAR-10 and LSUN checkpoints) or
            ``torch`` (PyTorch's default, as in DDIM's code).
        dtype: dtype of activations; parameters, norms, softmax and loss stay float32.
        remat: recompute activations of each block in the backward pass to save memory.
    """

    name: NetworkName = key("unet", Role.NETWORK)
    structure: Structure = key("keras", Role.NETWORK)
    norm: Norm = key("batch", Role.NETWORK)
    channels: int = key(128, Role.NETWORK, at_least=1, at_most=LARGEST_WIDTH)
    multipliers: tuple[int, ...] = key((1, 2, 2, 2), Role.NETWORK, at_least=1, at_most=1024, longest=16, is_filled=True)
    num_blocks: int = key(2, Role.NETWORK, at_least=1, at_most=256)
    attention_resolutions: tuple[int, ...] = key((16,), Role.NETWORK, at_least=1, at_most=LARGEST_SIDE, longest=16)
    dropout: float = key(0.1, Role.TRAINING, at_least=0, below=1)
    num_groups: int = key(32, Role.NETWORK, at_least=1, at_most=LARGEST_WIDTH)
    num_classes: int = key(0, Role.NETWORK, at_least=0, at_most=10_000_000)
    condition: tuple[ConditionKind, ...] = key((), Role.NETWORK, is_later=True)
    vector_size: int = key(0, Role.NETWORK, at_least=0, at_most=LARGEST_WIDTH, is_later=True)
    null_label: bool = key(True, Role.NETWORK)
    time_freq_shift: int = key(1, Role.NETWORK, at_least=0, at_most=1)
    time_cos_first: bool = key(False, Role.NETWORK)
    downsample_padding: int = key(0, Role.NETWORK, at_least=0, at_most=1)
    norm_eps: float = key(1e-6, Role.NETWORK, above=0, at_most=1)
    head_channels: int = key(0, Role.NETWORK, at_least=0, at_most=LARGEST_WIDTH)
    embedding: TimeEmbedding = key("positional", Role.NETWORK)
    encoder: Encoder = key("standard", Role.NETWORK)
    resample_filter: tuple[int, ...] = key((1, 1), Role.NETWORK, at_least=1, at_most=1000, longest=16, is_filled=True)
    augmentation_inputs: int = key(0, Role.NETWORK, at_least=0, at_most=1000)
    num_heads: int = key(0, Role.NETWORK, at_least=0, at_most=LARGEST_WIDTH)
    scale_shift_norm: bool = key(False, Role.NETWORK)
    resample_blocks: bool = key(False, Role.NETWORK)
    learn_variance: bool = key(False, Role.NETWORK)
    time_channels: int = key(0, Role.NETWORK, at_least=0, at_most=LARGEST_WIDTH)
    time_scale: float = key(1.0, Role.NETWORK, above=0, at_most=1e6)
    init: Initialization = key("ddpm", Role.TRAINING)
    dtype: ActivationDtype = key("float32", Role.TRAINING)
    remat: bool = key(False, Role.TRAINING)

    @property
    def kinds(self) -> tuple[ConditionKind, ...]:
        """What the network is told beside the noise level: ``condition``, and classes where there are some."""
        if self.num_classes and "class" not in self.condition:
            return ("class", *self.condition)
        return self.condition


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The forward process and the training objective.

    Attributes:
        schedule: noise schedule, see ``diffusion/schedule.py``.
        num_levels: number of noise levels T.
        beta_start: first beta of the linear, quad, const and sigmoid schedules.
        beta_end: last beta of those.
        zero_terminal_snr: move the schedule so that alpha_bar is 0 at level T (Lin et al. 2024); for x0 and v.
        sigma_min: noise at level 1 of the schedules edm and ve; for ve, score SDE has 0.01.
        sigma_max: noise at level T of those; for ve 50.
        sigma_data: standard deviation of the images in whose units edm's sigmas are, for pixels in [-1, 1];
            ``data.std`` should be half of it, so that the network's images have variance 1.
        objective: what the network predicts: the noise, the clean image, v, or rectified flow's velocity.
        loss: ``mse`` or ``mae``.
        reduction: over the values of an image; ``mean`` as in DDPM, ``sum`` as in DDIM's code.
        time_sampling: how noise levels are drawn, see ``diffusion/losses.py``; ``antithetic`` pairs level t with
            T + 1 - t; ``continuous`` draws times between levels too, for continuous schedules; ``lognormal`` is EDM's,
            ``logitnormal`` that of rectified flows.
        time_mean: mean of the normal distribution of the last two; EDM has -1.2.
        time_std: its standard deviation; EDM has 1.2.
        min_snr_gamma: weight losses by min(SNR, gamma) (Hang et al. 2023, who use 5); 0 weights none.
        vlb_weight: of networks with ``model.learn_variance``: weight of the variational bound, in bits per dimension,
            beside the loss, from which the variance is learned (Nichol and Dhariwal 2021, whose lambda this is).
    """

    schedule: ScheduleName = key("linear", Role.NETWORK)
    num_levels: int = key(1000, Role.NETWORK, at_least=1, at_most=LARGEST_LEVEL)
    beta_start: float = key(1e-4, Role.NETWORK, above=0, below=1)
    beta_end: float = key(0.02, Role.NETWORK, above=0, below=1)
    zero_terminal_snr: bool = key(False, Role.NETWORK)
    sigma_min: float = key(0.002, Role.NETWORK, above=0, at_most=1e6)
    sigma_max: float = key(80.0, Role.NETWORK, above=0, at_most=1e6)
    sigma_data: float = key(0.5, Role.NETWORK, above=0, at_most=1e6)
    objective: Objective = key("eps", Role.NETWORK)
    loss: Loss = key("mse", Role.TRAINING)
    reduction: Reduction = key("mean", Role.TRAINING)
    time_sampling: TimeSampling = key("antithetic", Role.TRAINING)
    time_mean: float = key(0.0, Role.TRAINING, at_least=-100, at_most=100)
    time_std: float = key(1.0, Role.TRAINING, above=0, at_most=100)
    min_snr_gamma: float = key(0.0, Role.TRAINING, at_least=0, at_most=1e9)
    vlb_weight: float = key(0.001, Role.TRAINING, at_least=0, at_most=1e9)


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
        lr_schedule: after the warm-up, ``constant``, or decay to 0 at the last step, ``cosine`` or ``linear``.
        adam_b1: Adam's first decay.
        adam_b2: Adam's second decay.
        adam_eps: Adam's epsilon.
        weight_decay: AdamW's decoupled decay.
        grad_clip: largest global norm of the gradient; 0 turns clipping off.
        label_dropout: share of the labels replaced by "none" in training, which classifier-free guidance needs.
        condition_dropout: share of the conditions replaced by "none" in training, a rate for each of
            ``model.condition``, in its order; empty for none, but ``label_dropout``.
        augment_probability: with which images are turned, moved and the like, of which the network is told, see
            ``training/augmentation.py``; Karras et al. 2022 use 0.12 on CIFAR-10, beside ``data.flip=False``. 0
            augments nothing.
        ema_decay: decay of the moving average of the parameters.
        ema_warmup: use min(ema_decay, (1 + step) / (10 + step)).
        ema_on_host: keep the moving averages in the host's memory, not the devices'. Each step then waits for its
            parameters to be fetched.
        ema_widths: widths of power-function averages (Karras et al. 2024) that are kept beside the moving average, e.g.
            (0.05, 0.10), and of which snapshots are taken: from these an average of any width can be had afterwards,
            see ``sample.ema_width`` and ``training/power_average.py``. Each takes as much memory as the parameters.
        ema_snapshot_every: steps between snapshots, ``WORKDIR/averages/``, which stay when checkpoints are deleted; 0
            for ``checkpoint_every``. The more there are, the wider the range of widths that can be had.
        ema_snapshot_dtype: type of the values in snapshots; ``float16`` halves the files and rounds by 1/2048 of a
            value at most, more for those below 6e-5.
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
        init_from: weights that a new run begins with, at step 0 and with everything else its own (fine-tuning): a
            workdir, whose newest checkpoint is taken, its ``WORKDIR/best`` or ``WORKDIR/checkpoints/STEP``; a file or
            folder that ``--mode=import`` reads; ``hf:OWNER/NAME``, ``hf:OWNER/NAME@REVISION`` or ``published:NAME``,
            see ``weights.path``; or a model that comes with the package, ``mnist-small``. The network must be the same
            but for ``model.num_classes``. It is read once: a resumed run does not need it.
        deterministic: on GPU, ask XLA for kernels whose results do not vary from run to run.
        cpu_devices: devices that the cores of a CPU are shared among, in all jobs; 0 makes one of each core, 8 at most,
            2 for networks wider than 64 channels. The operations of a small network keep one core busy.
            ``JAX_NUM_CPU_DEVICES``, if set, decides instead.
        compilation_cache: folder where all jobs keep compiled programs for later runs; ``auto`` is in ddim_jax's cache
            (see ``data.cache_dir``), empty keeps none. ``JAX_COMPILATION_CACHE_DIR``, if set, decides instead. One
            that others can write is not used.
        overwrite: set another run's files in the workdir aside and start anew.
    """

    batch_size: int = key(128, Role.TRAINING, at_least=1, at_most=LARGEST_BATCH)
    steps: int = key(800_000, Role.PROGRESS, at_least=1, at_most=LARGEST_INDEX)
    epochs: float = key(0.0, Role.PROGRESS, at_least=0, at_most=1e9)
    steps_per_call: int = key(1, Role.TRAINING, at_least=1, at_most=100_000)
    accumulate: int = key(1, Role.TRAINING, at_least=1, at_most=LARGEST_BATCH)
    optimizer: Optimizer = key("adam", Role.TRAINING)
    # One that is too high is told by its loss.
    learning_rate: float = key(2e-4, Role.TRAINING, above=0, at_most=1e30)
    warmup_steps: int = key(0, Role.TRAINING, at_least=0, at_most=LARGEST_INDEX)
    lr_schedule: LearningRateSchedule = key("constant", Role.TRAINING)
    adam_b1: float = key(0.9, Role.TRAINING, at_least=0, below=1)
    adam_b2: float = key(0.999, Role.TRAINING, at_least=0, below=1)
    adam_eps: float = key(1e-8, Role.TRAINING, above=0, at_most=1000)
    weight_decay: float = key(0.0, Role.TRAINING, at_least=0, at_most=1000)
    grad_clip: float = key(1.0, Role.TRAINING, at_least=0, at_most=1e30)
    label_dropout: float = key(0.0, Role.TRAINING, at_least=0, below=1)
    condition_dropout: tuple[float, ...] = key((), Role.TRAINING, at_least=0, below=1, longest=3, is_later=True)
    augment_probability: float = key(0.0, Role.TRAINING, at_least=0, at_most=1)
    ema_decay: float = key(0.9999, Role.TRAINING, at_least=0, below=1)
    ema_warmup: bool = key(False, Role.TRAINING)
    ema_on_host: bool = key(False, Role.MACHINE)
    ema_widths: tuple[float, ...] = key(
        (), Role.TRAINING, at_least=NARROWEST_AVERAGE, at_most=WIDEST_AVERAGE, longest=4, is_later=True
    )
    ema_snapshot_every: int = key(0, Role.PROGRESS, at_least=0, at_most=NEVER, is_later=True)
    ema_snapshot_dtype: SnapshotDtype = key("float32", Role.PROGRESS, is_later=True)
    checkpoint_every: int = key(5000, Role.PROGRESS, at_least=1, at_most=NEVER)
    keep_last: int = key(2, Role.PROGRESS, at_least=1, at_most=NEVER)
    keep_every: int = key(0, Role.PROGRESS, at_least=0, at_most=NEVER)
    log_every: int = key(100, Role.PROGRESS, at_least=1, at_most=NEVER)
    sample_every: int = key(5000, Role.PROGRESS, at_least=0, at_most=NEVER)
    sample_every_epochs: float = key(0.0, Role.PROGRESS, at_least=0, at_most=1e9)
    validate_every: int = key(0, Role.PROGRESS, at_least=0, at_most=NEVER)
    measure_every: int = key(0, Role.PROGRESS, at_least=0, at_most=NEVER)
    measure_num: int = key(5000, Role.PROGRESS, at_least=2, at_most=LARGEST_INDEX)
    measure_metric: MetricName = key("fid", Role.PROGRESS)
    sample_num: int = key(64, Role.PROGRESS, at_least=1, at_most=1_000_000)
    final_sample_steps: tuple[int, ...] = key((10, 20, 50), Role.PROGRESS, at_least=1, at_most=LARGEST_LEVEL)
    tensorboard: bool = key(True, Role.PROGRESS)
    init_from: str = key("", Role.TRAINING, is_path=True)
    deterministic: bool = key(False, Role.TRAINING)
    cpu_devices: int = key(0, Role.MACHINE, at_least=0, at_most=256)
    compilation_cache: str = key("auto", Role.MACHINE, is_path=True)
    overwrite: bool = key(False, Role.PROGRESS)


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """``--mode=distill``: a student that draws in few steps what its teacher draws in many.

    The student's ``train`` group is the teacher's but for what is said here; see ``training/students.py``.

    Attributes:
        teacher: the workdir that is distilled, or its ``WORKDIR/best`` or ``WORKDIR/checkpoints/STEP``. It is read when
            the student begins; from then on the student's workdir has what it needs.
        teacher_step: step of the teacher's checkpoint. The job fills it in, as the next two.
        teacher_sha256: hash of the teacher's weights.
        teacher_objective: what the teacher predicts.
        method: ``progressive`` (Salimans and Ho 2022): each round halves the steps; ``consistency`` (Song et al. 2023):
            any two points of the teacher's path lead to the same image; ``easy_consistency`` (Geng et al. 2024): the
            same without asking the teacher, whose weights the student begins with.
        objective: what the student predicts: ``v``, ``x0`` or ``flow``; the teacher's when empty, but v for one that
            predicts eps (or x0, but for ``progressive``). Where it is another than the teacher's, a round more, before
            the others, teaches that.
        guidance_scale: at which the teacher is guided, for good: the student knows no other; its own
            ``sample.guidance_scale`` when unset.
        guidance_levels: the lowest and highest level at which it is guided; all when empty. Where ``guidance_scale`` is
            unset, its own ``sample.guidance_levels``.
        first_steps: steps S of the teacher that the first round halves.
        rounds: of ``progressive``: halvings, so that the student draws in ``first_steps`` / 2^``rounds`` steps; of the
            others: stages, in each of which two points that are compared lie half as far apart.
        updates: training steps in a round; 0 for half as many as the teacher was trained, 50,000 at most.
        learning_rate: at the beginning of a round, from where it falls to 0 in a straight line (``consistency``: at the
            end of the last round); 0 for the teacher's.
        ema_decay: decay of the moving average of the student's weights, within a round.
        weight: of ``progressive``: weight of the squared error of the image, ``truncated_snr``, max(SNR, 1), or
            ``snr_plus_one``.
        noise_mean: of the other methods: mean of the log of the noise that is compared at, in the units of ``sigmas``.
        noise_std: its standard deviation.
        huber: of those: the c in sqrt(|difference|² + c²) - c; 0 for 0.00054 sqrt(number of values), of images in
            [-1, 1].
        measure_num: images that are drawn of each round, in its number of steps, and measured as ``eval`` says, into
            one table of ``--mode=evaluate``; 0 for none.
    """

    teacher: str = key("", Role.TRAINING, is_path=True)
    teacher_step: int | None = key(None, Role.TRAINING, at_least=0, at_most=LARGEST_INDEX)
    teacher_sha256: str = key("", Role.TRAINING)
    teacher_objective: Literal[""] | Objective = key("", Role.TRAINING)
    method: DistillMethod = key("progressive", Role.TRAINING)
    objective: Literal[""] | Objective = key("", Role.TRAINING)
    guidance_scale: float | None = key(None, Role.TRAINING, at_least=-10_000, at_most=10_000)
    guidance_levels: tuple[int, ...] = key((), Role.TRAINING, at_least=1, at_most=LARGEST_LEVEL, longest=2)
    first_steps: int = key(64, Role.TRAINING, at_least=1, at_most=LARGEST_LEVEL)
    rounds: int = key(4, Role.PROGRESS, at_least=1, at_most=16)
    updates: int = key(0, Role.TRAINING, at_least=0, at_most=LARGEST_INDEX)
    learning_rate: float = key(0.0, Role.TRAINING, at_least=0, at_most=1e30)
    ema_decay: float = key(0.99, Role.TRAINING, at_least=0, below=1)
    weight: DistillWeight = key("truncated_snr", Role.TRAINING)
    noise_mean: float = key(-1.1, Role.TRAINING, at_least=-100, at_most=100)
    noise_std: float = key(2.0, Role.TRAINING, above=0, at_most=100)
    huber: float = key(0.0, Role.TRAINING, at_least=0, at_most=1e9)
    measure_num: int = key(5000, Role.PROGRESS, at_least=0, at_most=LARGEST_INDEX)

    @property
    def is_progressive(self) -> bool:
        """Whether each round halves the steps of the one before."""
        return self.method == "progressive"


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How images are drawn, by ``--mode=sample`` and wherever else a model draws.

    Attributes:
        num: number of images.
        start: index of the first image; image i depends on ``seed`` and i alone.
        indices: draw these images instead of ``start`` ... ``start + num - 1``.
        per_class: with a class-conditional network, draw this many images of each class instead of ``num``.
        seed: seed of the images.
        preset: settings of a paper or project by name, see ``config/presets.py``: those of ``sampler``, ``spacing``,
            ``clip`` and ``eta``, without ``eta_per_step`` and ``levels``. What the command line or a call from Python
            gives of these beside a preset wins, and the log says so; a preset given there wins over the config file's
            values. Within a config file nobody knows which was meant: a value that is neither the default nor the
            preset's is refused. These keys say what is done; the preset's name, where it came from.
        sampler: ``ddim``; ``ddpm_small`` (posterior variance, DDIM's eta = 1), ``ddpm_large`` (variance beta, the
            DDIM paper's sigma-hat on a subsequence) or ``ddpm_learned`` (that of a network with
            ``model.learn_variance``); or a fast deterministic solver, see ``diffusion/samplers.py``.
        steps: steps S; network evaluations too, but for ``heun`` (2 S - 1) and ``plms`` (S + 1).
        eta: DDIM's stochasticity; 0 is deterministic, 1 is DDPM's posterior variance.
        eta_per_step: an eta for each step, first (noisiest) step first; replaces ``eta``.
        churn: of the samplers edm and edm_euler: noise added before each step, S_churn of Karras et al. 2022.
        churn_min: the least noise at which that is done, S_tmin, in the units of ``sigmas``.
        churn_max: the largest, S_tmax; from 1e9 on there is none.
        churn_noise: deviation of what is added, S_noise.
        spacing: the subsequence of levels, see ``diffusion/spacing.py``; ``tuned`` is what ``--mode=tune`` has found.
        levels: the subsequence itself, noisiest first, in 1 ... T; replaces ``steps`` and ``spacing``.
        sigmas: the subsequence by its noise, largest first: noise to signal, in the units of ``diffusion.sigma_data``
            with the schedule edm; replaces ``steps`` and ``spacing``, for schedules with real levels.
        coefficients: of the sampler ``tuned``, for each step as many, see ``diffusion/tuning.py``; they, and ``levels``
            or ``sigmas`` with them, are filled in from the workdir where ``spacing`` is ``tuned``.
        clip: what is done to the predicted clean image, see ``diffusion/prediction.py``.
        threshold_percentile: of ``dynamic_threshold``, in percent.
        threshold_limit: largest threshold of ``dynamic_threshold``.
        label: class to draw with a class-conditional network; all classes in turn when unset.
        guidance_scale: classifier-free guidance w: 1 none, larger ones exaggerate the class, see
            ``diffusion/guidance.py``. The network must have been trained with ``train.label_dropout``.
        guidance_levels: the lowest and highest level at which to guide; all when empty.
        guide_workdir: workdir of another network, smaller or trained less, from whose prediction ``guidance_scale``
            leads away (autoguidance, Karras et al. 2024), instead of from that without condition.
        guide_checkpoint: step of its checkpoint; the newest when unset.
        condition_path: what to draw images from, for networks with ``model.condition``: a folder, an array or a table,
            see ``jobs/sample.py``; the images of ``data.validation``, or of the data, when empty.
        condition_augmentation: noise level, in [0, 1], added to the pictures that images are drawn from, and told the
            network; see ``data.condition_augmentation``.
        per_condition: images drawn from each condition.
        ema: use the moving average of the parameters (published results all do).
        ema_width: instead of that of ``train.ema_decay`` use an average of this width, reconstructed from the snapshots
            of a run with ``train.ema_widths``, see ``training/power_average.py``; 0 for that of ``train.ema_decay``. It
            is for jobs on a trained model: pictures and figures of a run under way, and ``guide_workdir``, have that.
        checkpoint: step of the checkpoint to use; the newest when unset.
        batch_size: images per device at a time; 0 takes as many as its free memory holds, in reason.
        format: a file for each image, ``png`` or ``npy``, or one ``npz`` of all. ``auto`` is ``png`` where that holds
            the values (uint8 of 1, 3 or 4 channels, uint16 of one), else ``npy``.
        precision: of matrix products and convolutions, JAX's names. GPUs and TPUs round float32 operands by default;
            at ``highest`` images do not depend on the batch size and the number of devices there either.
    """

    num: int = key(64, Role.SELECTION, at_least=1, at_most=LARGEST_INDEX + 1)
    start: int = key(0, Role.SELECTION, at_least=0, at_most=LARGEST_INDEX)
    indices: tuple[int, ...] = key((), Role.SELECTION, at_least=0, at_most=LARGEST_INDEX, longest=10_000_000)
    per_class: int = key(0, Role.SELECTION, at_least=0, at_most=LARGEST_INDEX)
    seed: int = key(0, Role.PIXELS, at_least=0, at_most=LARGEST_INDEX, is_traced=True)
    preset: Literal[""] | PresetName = key("", Role.PIXELS, is_traced=True)
    sampler: SamplerName = key("ddim", Role.PIXELS, is_traced=True)
    steps: int = key(50, Role.PIXELS, at_least=1, at_most=LARGEST_LEVEL, is_traced=True)
    eta: float = key(0.0, Role.PIXELS, at_least=0, at_most=1000, is_traced=True)
    eta_per_step: tuple[float, ...] = key(
        (), Role.PIXELS, at_least=0, at_most=1000, longest=LARGEST_LEVEL, is_traced=True
    )
    churn: float = key(0.0, Role.PIXELS, at_least=0, at_most=1e6, is_traced=True, is_later=True)
    churn_min: float = key(0.0, Role.PIXELS, at_least=0, at_most=1e9, is_traced=True, is_later=True)
    churn_max: float = key(1e9, Role.PIXELS, at_least=0, at_most=1e9, is_traced=True, is_later=True)
    churn_noise: float = key(1.0, Role.PIXELS, at_least=0, at_most=100, is_traced=True, is_later=True)
    spacing: Spacing = key("uniform", Role.PIXELS, is_traced=True)
    levels: tuple[int, ...] = key(
        (), Role.PIXELS, at_least=0, at_most=LARGEST_INDEX, longest=LARGEST_LEVEL, is_traced=True
    )
    sigmas: tuple[float, ...] = key(
        (), Role.PIXELS, above=0, at_most=1e9, longest=LARGEST_LEVEL, is_traced=True, is_later=True
    )
    coefficients: tuple[float, ...] = key(
        (), Role.PIXELS, at_least=-1e9, at_most=1e9, longest=10 * LARGEST_LEVEL, is_traced=True, is_later=True
    )
    clip: Clip = key("none", Role.PIXELS)
    threshold_percentile: float = key(99.5, Role.PIXELS, above=0, at_most=100)
    threshold_limit: float = key(1e6, Role.PIXELS, at_least=1, at_most=1e30)
    label: int | None = key(None, Role.PIXELS, at_least=0, at_most=LARGEST_INDEX, is_traced=True)
    guidance_scale: float = key(1.0, Role.PIXELS, at_least=-10_000, at_most=10_000)
    guidance_levels: tuple[int, ...] = key((), Role.PIXELS, at_least=1, at_most=LARGEST_LEVEL, longest=2)
    guide_workdir: str = key("", Role.PIXELS, is_path=True, is_later=True)
    guide_checkpoint: int | None = key(None, Role.PIXELS, at_least=0, at_most=LARGEST_INDEX, is_later=True)
    condition_path: str = key("", Role.PIXELS, is_path=True, is_traced=True, is_later=True)
    condition_augmentation: float = key(0.0, Role.PIXELS, at_least=0, at_most=1, is_later=True)
    per_condition: int = key(1, Role.SELECTION, at_least=1, at_most=LARGEST_INDEX, is_later=True)
    ema: bool = key(True, Role.PIXELS)
    ema_width: float = key(0.0, Role.PIXELS, at_least=0, at_most=WIDEST_AVERAGE, is_traced=True, is_later=True)
    checkpoint: int | None = key(None, Role.WEIGHTS, at_least=0, at_most=LARGEST_INDEX)
    batch_size: int = key(0, Role.MACHINE, at_least=0, at_most=LARGEST_BATCH)
    format: ImageFormat = key("auto", Role.STORAGE)
    precision: Precision = key("default", Role.PIXELS)


@dataclasses.dataclass(frozen=True)
class TrajectoryConfig:
    """``--mode=trajectory``: images on their way from noise.

    Attributes:
        num: images shown, one row each; the first of those that ``sample`` asks for.
        moments: moments shown, one column each, evenly spaced over the steps.
        frame_ms: time of a frame of the animation, in milliseconds.
    """

    num: int = key(8, Role.RESULT, at_least=1, at_most=100_000)
    moments: int = key(10, Role.RESULT, at_least=1, at_most=LARGEST_LEVEL)
    frame_ms: int = key(200, Role.RESULT, at_least=1, at_most=655_350)


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

    first: tuple[int, ...] = key((0, 2, 4, 6), Role.RESULT, at_least=0, at_most=LARGEST_INDEX, is_filled=True)
    second: tuple[int, ...] = key((1, 3, 5, 7), Role.RESULT, at_least=0, at_most=LARGEST_INDEX)
    points: int = key(11, Role.RESULT, at_least=2, at_most=100_000)
    corners: tuple[int, ...] = key((0, 1, 2, 3), Role.RESULT, at_least=0, at_most=LARGEST_INDEX, longest=4)
    side: int = key(8, Role.RESULT, at_least=2, at_most=1000)


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
        check: hold the errors against those of DDIM's table 2, and end with exit status 1 where one is larger.
    """

    num: int = key(64, Role.RESULT, at_least=1, at_most=LARGEST_INDEX)
    split: str = key("", Role.RESULT)
    path: str = key("", Role.RESULT, is_path=True)
    steps: tuple[int, ...] = key(
        (10, 20, 50, 100, 200, 500, 1000), Role.RESULT, at_least=1, at_most=LARGEST_LEVEL, is_filled=True
    )
    iterations: int = key(0, Role.RESULT, at_least=0, at_most=10_000)
    shown: int = key(8, Role.RESULT, at_least=1, at_most=1_000_000)
    check: bool = key(False, Role.STORAGE, is_later=True)


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

    task: EditTask = key("recover", Role.RESULT)
    level: int = key(100, Role.RESULT, at_least=1, at_most=LARGEST_LEVEL)
    num: int = key(8, Role.RESULT, at_least=1, at_most=LARGEST_INDEX)
    split: str = key("", Role.RESULT)
    path: str = key("", Role.RESULT, is_path=True)
    mask: str = key("", Role.RESULT, is_path=True)
    resamplings: int = key(10, Role.RESULT, at_least=1, at_most=100_000)
    jump: int = key(10, Role.RESULT, at_least=1, at_most=LARGEST_INDEX)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """``--mode=sweep``: the same noise under other settings.

    Attributes:
        etas: rows, with ``ddim``.
        samplers: further rows, e.g. ``ddpm_large``; clipped as ``sample.clip`` says.
        steps: columns.
        num: images in each cell.
    """

    etas: tuple[float, ...] = key((0.0, 0.2, 0.5, 1.0), Role.RESULT, at_least=0, at_most=1000, is_filled=True)
    samplers: tuple[SamplerName, ...] = key((), Role.RESULT)
    steps: tuple[int, ...] = key(
        (10, 20, 50, 100, 1000), Role.RESULT, at_least=1, at_most=LARGEST_LEVEL, is_filled=True
    )
    num: int = key(4, Role.RESULT, at_least=1, at_most=100_000)


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
        variance: of the reverse process in ``bound``: ``small`` (posterior variance), ``large`` (beta), or ``learned``,
            what a network with ``model.learn_variance`` predicts.
        levels_per_image: levels at which ``bound`` is evaluated for each image, an unbiased estimate; 0 for all.
    """

    method: LikelihoodMethod = key("bound", Role.RESULT)
    num: int = key(0, Role.RESULT, at_least=0, at_most=LARGEST_INDEX)
    split: str = key("", Role.RESULT)
    path: str = key("", Role.RESULT, is_path=True)
    steps: int = key(100, Role.RESULT, at_least=1, at_most=LARGEST_LEVEL)
    probes: int = key(1, Role.RESULT, at_least=1, at_most=10_000)
    divergence: Divergence = key("hutchinson", Role.RESULT)
    variance: Variance = key("small", Role.RESULT)
    levels_per_image: int = key(0, Role.RESULT, at_least=0, at_most=LARGEST_LEVEL)


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """``--mode=tune``: few steps tuned for the network, see ``diffusion/tuning.py``.

    Attributes:
        steps: numbers of steps S, each of which is tuned for itself.
        num: images drawn to tune by; the first half is fitted to, the other decides.
        fine_steps: steps of the fine trajectory that they are to come near; levels are chosen among those that it
            visits.
        seed: of these images; not one that images are measured with, which would flatter what is tuned.
        order: predictions that a step is made of, the newest and those before it.
    """

    steps: tuple[int, ...] = key((5, 6, 8, 10), Role.RESULT, at_least=1, at_most=1000, is_filled=True, longest=100)
    num: int = key(128, Role.RESULT, at_least=2, at_most=1_000_000)
    fine_steps: int = key(100, Role.RESULT, at_least=2, at_most=10_000)
    seed: int = key(1_000_000_007, Role.RESULT, at_least=0, at_most=LARGEST_INDEX)
    order: int = key(4, Role.RESULT, at_least=1, at_most=8)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """``--mode=evaluate``: how good images are, measured; and ``--mode=stats``: what they are compared with.

    A table has a row for each checkpoint, sampler (with its eta), spacing, number of steps and seed; all rows share the
    extractor, the reference and the number of images, without which figures cannot be compared.

    Attributes:
        preset: the rows of a published table, see ``tables/published_figures.py``; replaces ``samplers``, ``etas``,
            ``spacings`` and ``steps``, which are refused beside it on the command line. ``ddim-table1`` and
            ``ddim-table3`` are the parts that are about ``data.name``.
        check: hold the figures against those of ``preset``: end with a verdict on each row, exit status 1 where one is
            worse by more than the table's tolerance, and ``claim.json``, which says all that they rest on.
        num: images per row.
        checkpoints: steps of checkpoints, or ``latest``, ``best``, ``all``.
        samplers: see ``sample.sampler``.
        etas: of the sampler ``ddim``.
        spacings: see ``sample.spacing``; that one when empty.
        steps: numbers of steps S.
        seeds: of the images; several give mean and spread.
        ema_widths: see ``sample.ema_width``, e.g. (0, 0.02, 0.05, 0.1); that one when empty. Those that
            ``--mode=average`` writes.
        images: folder or ``.npz`` of images to measure instead of a model's.
        reference: folder, ``.npz`` of images, or ``.npz`` of statistics to compare with; the training images when
            empty.
        reference_split: split of the data to compare with; that of the training when empty.
        reference_num: images of the reference used, evenly spread; 0 for all.
        extractor: ``inception`` (that of FID), ``dinov2`` (ViT-L/14; smaller ones are ``dinov2_vitb14`` and
            ``dinov2_vits14``), ``clip`` (ViT-L/14 at 336 pixels, that of CMMD; ``clip_vitb32`` is a smaller one),
            ``pixels``, ``pixels_pca`` (their principal components) or ``classifier`` (trained on the data set itself).
            Only figures with ``inception`` are called FID, IS, KID.
        extractor_path: weights of ``dinov2`` and ``clip`` of any size; downloaded once when empty.
        inception_path: weights of ``inception``; downloaded once when empty.
        resize: how images become 299x299 for ``inception``: ``tf1`` (torch-fidelity, TTUR), ``pytorch`` (pytorch-fid)
            or ``clean`` (clean-fid).
        metrics: which of ``fid``, ``is``, ``kid``, ``cmmd``, ``precision_recall`` and ``density_coverage`` are
            computed; and, of images drawn from conditions, ``psnr``, ``ssim`` and ``lpips`` to the truth, where that is
            known, and ``accuracy``, the share that ``classifier`` takes for the class asked for. ``fid_infinity`` is
            FID extrapolated to infinitely many images; ``memorization`` says whether images are those of the training,
            see ``metrics/memorization.py``.
        lpips_path: weights of ``lpips``, the state dict of ``lpips.LPIPS(net="vgg")`` as ``torch.save`` writes it.
        is_splits: splits of the inception score; 10 as usual, 1 as in DDPM's paper.
        kid_subsets: random subsets of KID.
        kid_subset_size: images in each.
        neighbours: k of precision and recall, and of density and coverage.
        features_kept: images whose features are kept, evenly spread, for KID, CMMD, precision, recall, density and
            coverage.
        components: principal components of ``pixels_pca``.
        bootstrap: times that a row's images are drawn again from themselves, with replacement; figures that can be
            computed so (``fid``, ``memorization`` and means over images) get the standard deviation as ±. 0 for none;
            20 are enough to see its size, 200 for two digits.
        keep_images: also write each row's images, as PNG files.
        batch_size: images per device at a time, through the extractor.
        out: file that ``--mode=stats`` writes, ``WORKDIR/stats/NAME.npz`` when empty; it measures ``images`` or
            ``reference`` if given, else the data.
        format: of that file: ``ddim_jax`` (also read by pytorch-fid and EDM), or ``adm`` (guided-diffusion's).
    """

    preset: Literal[""] | TableName = key("", Role.SELECTION)
    check: bool = key(False, Role.STORAGE, is_later=True)
    num: int = key(50_000, Role.RESULT, at_least=2, at_most=LARGEST_INDEX + 1)
    checkpoints: tuple[str, ...] = key(("latest",), Role.SELECTION, is_filled=True)
    samplers: tuple[SamplerName, ...] = key(("ddim",), Role.SELECTION, is_filled=True)
    etas: tuple[float, ...] = key((0.0,), Role.SELECTION, at_least=0, at_most=1000, is_filled=True)
    spacings: tuple[Spacing, ...] = key((), Role.SELECTION)
    steps: tuple[int, ...] = key((10, 20, 50, 100), Role.SELECTION, at_least=1, at_most=LARGEST_LEVEL, is_filled=True)
    seeds: tuple[int, ...] = key((0,), Role.SELECTION, at_least=0, at_most=LARGEST_INDEX, is_filled=True)
    ema_widths: tuple[float, ...] = key((), Role.SELECTION, at_least=0, at_most=WIDEST_AVERAGE, is_later=True)
    images: str = key("", Role.RESULT, is_path=True)
    reference: str = key("", Role.RESULT, is_path=True)
    reference_split: str = key("", Role.RESULT)
    reference_num: int = key(0, Role.RESULT, at_least=0, at_most=LARGEST_INDEX)
    extractor: ExtractorName = key("inception", Role.RESULT)
    extractor_path: str = key("", Role.RESULT, is_path=True, is_later=True)
    inception_path: str = key("", Role.RESULT, is_path=True)
    resize: ResizeProtocol = key("tf1", Role.RESULT)
    metrics: tuple[MetricName, ...] = key(("fid", "is", "kid", "precision_recall"), Role.RESULT, is_filled=True)
    lpips_path: str = key("", Role.RESULT, is_path=True, is_later=True)
    is_splits: int = key(10, Role.RESULT, at_least=1, at_most=1_000_000)
    kid_subsets: int = key(100, Role.RESULT, at_least=1, at_most=100_000)
    kid_subset_size: int = key(1000, Role.RESULT, at_least=2, at_most=LARGEST_INDEX)
    neighbours: int = key(3, Role.RESULT, at_least=1, at_most=LARGEST_INDEX)
    features_kept: int = key(10_000, Role.RESULT, at_least=2, at_most=LARGEST_INDEX)
    components: int = key(64, Role.RESULT, at_least=1, at_most=1_000_000)
    bootstrap: int = key(0, Role.RESULT, at_least=0, at_most=100_000)
    keep_images: bool = key(False, Role.STORAGE)
    batch_size: int = key(64, Role.MACHINE, at_least=1, at_most=LARGEST_BATCH)
    out: str = key("", Role.STORAGE, is_path=True)
    format: StatisticsFormat = key("ddim_jax", Role.STORAGE)


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """``--mode=import``: other projects' checkpoints; ``--mode=export``: ours, for them and for sharing.

    Attributes:
        path: file or folder to import; or ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION`` of the Hugging Face hub,
            ``published:NAME`` (``weights/published_files.py``), or an address, ``https://...`` or
            ``https://...#sha256=HASH``.
        ema: take the moving averages, where a file has both them and the raw weights.
        qkv_order: how a file of OpenAI's code has queries, keys and values in one array: ``new`` if it was trained with
            ``--use_new_attention_order True``, else ``legacy``; ``auto`` is that of the published network of the same
            shapes, and ``legacy`` for any other.
        format: what to export: a ``diffusers`` folder, or one file, ``npz`` or ``safetensors``.
        dtype: of the exported weights; the shorter ones halve their size, and round them.
        out: folder or file to export to; in the workdir when empty.
    """

    path: str = key("", Role.RESULT, is_path=True)
    ema: bool = key(True, Role.WEIGHTS)
    qkv_order: QkvOrder = key("auto", Role.RESULT)
    format: WeightsFormat = key("diffusers", Role.STORAGE)
    dtype: StoredDtype = key("float32", Role.STORAGE)
    out: str = key("", Role.STORAGE, is_path=True)


@dataclasses.dataclass(frozen=True)
class DescribeConfig:
    """``--mode=describe``: what a run is, needs and costs.

    Attributes:
        tables: print the parameters of each block and the row of each sampling step, too.
    """

    tables: bool = key(False, Role.STORAGE)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. ``seed`` decides initialisation, order, noise: everything random in training."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()
    sample: SampleConfig = SampleConfig()
    trajectory: TrajectoryConfig = TrajectoryConfig()
    interpolate: InterpolateConfig = InterpolateConfig()
    reconstruct: ReconstructConfig = ReconstructConfig()
    edit: EditConfig = EditConfig()
    sweep: SweepConfig = SweepConfig()
    likelihood: LikelihoodConfig = LikelihoodConfig()
    tune: TuneConfig = TuneConfig()
    eval: EvalConfig = EvalConfig()
    weights: WeightsConfig = WeightsConfig()
    describe: DescribeConfig = DescribeConfig()
    seed: int = key(0, Role.TRAINING, at_least=0, at_most=LARGEST_INDEX)

    @property
    def network_sides(self) -> tuple[int, int]:
        """Height and width that the network computes with: the images', enlarged by ``data.pad`` to what it can halve.

        >>> Config(data=DataConfig(image_size=(28, 20)), model=ModelConfig(multipliers=(1, 2, 2, 2))).network_sides
        (32, 24)
        """
        factor = 2 ** (len(self.model.multipliers) - 1)
        height, width = (-(-side // factor) * factor for side in self.data.image_shape[:2])
        return height, width

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The heights, in pixels, of the network's levels."""
        return tuple(self.network_sides[0] // 2**level for level in range(len(self.model.multipliers)))

    @property
    def attends(self) -> list[bool]:
        """Whether the blocks of each level are followed by attention."""
        return [resolution in self.model.attention_resolutions for resolution in self.resolutions]

    @property
    def condition_dropout(self) -> dict[ConditionKind, float]:
        """The share of each kind of condition that training replaces by "none"."""
        rates = dict(zip(self.model.condition, self.train.condition_dropout, strict=False))
        rates.setdefault("class", self.train.label_dropout)
        return {kind: rates.get(kind, 0.0) for kind in self.model.kinds}

    @property
    def droppable(self) -> tuple[ConditionKind, ...]:
        """The kinds that guidance leads towards, and the network can do without: those that training dropped.

        Whether it dropped labels is not known of others' networks, so that a class counts where nothing else does.
        """
        model = self.model
        rates = self.condition_dropout
        if not model.null_label:
            rates.pop("class", None)
        dropped: tuple[ConditionKind, ...] = tuple(kind for kind in rates if rates[kind] > 0)
        of_class: tuple[ConditionKind, ...] = ("class",) if "class" in rates else ()
        return dropped or of_class


# The groups of what a model is and how it was trained; all others say what a job is to do.
TRAINED_GROUPS = ("data", "model", "diffusion", "train", "distill", "seed")


def is_one_or_several(annotation: Any) -> bool:
    """Whether a key is annotated ``T | tuple[T, ...]``: one value, or a list of them."""
    return any(typing.get_origin(arm) is tuple for arm in typing.get_args(annotation))


def without_none(annotation: Any) -> Any:
    """The type T of a key annotated ``T`` or ``T | None``."""
    arms = [arm for arm in typing.get_args(annotation) if arm is not types.NoneType]
    return arms[0] if typing.get_origin(annotation) is types.UnionType and len(arms) == 1 else annotation
