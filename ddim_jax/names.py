"""Every closed list of names, once: what a config may say, and what the mathematics knows.

A list is a ``Literal``, so that type checkers know each of its values, and :func:`choices` tells them to programs.
Where a name stands for a function, one mapping beside the functions does the rest, e.g. ``SAMPLERS`` in
``diffusion/samplers.py``: :func:`lookup` finds an entry, and a test holds each mapping against its list.

To add a name of one's own from outside the package, call :func:`add` and put a row into the mapping.
"""

import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from ddim_jax.errors import UserError

# --- jobs ---------------------------------------------------------------------------------------

Mode = Literal[
    "train", "distill", "sample", "trajectory", "interpolate", "reconstruct", "edit", "sweep",
    "evaluate", "stats", "likelihood", "tune", "average", "import", "export", "describe",
]  # fmt: skip

# --- data ---------------------------------------------------------------------------------------

DataSource = Literal["digits", "folder", "tfds", "array", "parquet"]
Crop = Literal["none", "center", "celeba"]
ResizeFilter = Literal["none", "bilinear", "bicubic", "lanczos", "box"]
ImageCache = Literal["auto", "device", "host", "disk", "none"]
OnError = Literal["fail", "skip"]
PixelType = Literal["uint8", "uint16", "float32"]

# --- conditions ---------------------------------------------------------------------------------

ConditionKind = Literal["class", "vector", "image"]
# What an image is drawn from, made from the image itself; or "paired", which is a picture of its own.
ConditionTask = Literal["downsample", "grey", "mask", "blur", "noise", "paired"]
MaskKind = Literal["box", "half", "strokes"]

# --- networks -----------------------------------------------------------------------------------

NetworkName = Literal["unet", "residual_unet", "song_unet"]
Structure = Literal["keras", "ddim"]
Norm = Literal["batch", "group"]
TimeEmbedding = Literal["positional", "fourier"]
Encoder = Literal["standard", "residual"]
Initialization = Literal["ddpm", "torch"]
ActivationDtype = Literal["float32", "bfloat16"]

# --- the process and its training ---------------------------------------------------------------

ScheduleName = Literal[
    "linear", "quad", "const", "jsd", "sigmoid", "cosine", "offset_cosine", "edm", "flow", "vp", "ve"
]
Objective = Literal["eps", "x0", "v", "flow"]
Loss = Literal["mse", "mae"]
Reduction = Literal["mean", "sum"]
TimeSampling = Literal["antithetic", "uniform", "stratified", "continuous", "lognormal", "logitnormal"]
Optimizer = Literal["adam", "adamw"]
LearningRateSchedule = Literal["constant", "cosine", "linear"]
DistillMethod = Literal["progressive", "consistency", "easy_consistency"]
DistillWeight = Literal["truncated_snr", "snr_plus_one"]

# --- sampling -----------------------------------------------------------------------------------

SamplerName = Literal[
    "ddim", "ddpm_small", "ddpm_large", "ddpm_learned",
    "heun", "ab2", "ab3", "ab4", "plms", "dpmpp_2m", "unipc2", "unipc3",
    "ipndm", "deis2", "deis3", "deis4", "flow_heun", "edm", "edm_euler", "dpmpp_2m_sde", "dpmpp_3m_sde",
    "euler_ancestral", "consistency", "tuned",
]  # fmt: skip
EncoderName = Literal["ddim", "heun"]
Spacing = Literal[
    "uniform", "quad", "uniform_published", "quad_published", "trailing", "linspace", "openai", "logsnr", "karras",
    "tuned",
]  # fmt: skip
Clip = Literal["none", "keep_eps", "rederive_eps", "dynamic_threshold"]
PresetName = Literal["ddim-paper-cifar10", "ddim-paper-celeba", "ddpm", "openai", "diffusers", "keras"]
Precision = Literal["default", "high", "highest"]
ImageFormat = Literal["auto", "png", "npy", "npz"]
EditTask = Literal["recover", "inpaint"]

# --- measuring ----------------------------------------------------------------------------------

MetricName = Literal[
    "fid", "fid_infinity", "is", "kid", "cmmd", "precision_recall", "density_coverage", "psnr", "ssim", "lpips",
    "accuracy", "memorization",
]  # fmt: skip
ExtractorName = Literal[
    "inception", "dinov2", "dinov2_vitb14", "dinov2_vits14", "clip", "clip_vitb32", "pixels", "pixels_pca", "classifier"
]
ResizeProtocol = Literal["tf1", "pytorch", "clean"]
TableName = Literal[
    "ddim-table1", "ddim-table1-cifar10", "ddim-table1-celeba",
    "ddim-table3", "ddim-table3-bedroom", "ddim-table3-church",
    "ddpm-ddim", "ddpm", "improved-diffusion", "guided-diffusion-64", "edm-cifar10", "edm-cifar10-cond", "step-times",
]  # fmt: skip
StatisticsFormat = Literal["ddim_jax", "adm"]
LikelihoodMethod = Literal["bound", "ode"]
Divergence = Literal["hutchinson", "exact"]
Variance = Literal["small", "large", "learned"]

# --- weights ------------------------------------------------------------------------------------

WeightsFormat = Literal["diffusers", "npz", "safetensors"]
StoredDtype = Literal["float32", "bfloat16", "float16"]
SnapshotDtype = Literal["float32", "float16"]
QkvOrder = Literal["auto", "legacy", "new"]

# ------------------------------------------------------------------------------------------------

# Names that programs outside the package have added, by list.
_added: dict[Any, tuple[str, ...]] = {}

Entry = TypeVar("Entry")


def choices(names: Any) -> tuple[str, ...]:
    """The names of a list, in its order, and those that were added to it.

    >>> choices(Objective)
    ('eps', 'x0', 'v', 'flow')

    Args:
        names: one of the ``Literal`` types of this file.
    """
    return (*typing.get_args(names), *_added.get(names, ()))


def add(names: Any, name: str) -> None:
    """Adds a name to a list, so that configs and command lines may use it.

    The mapping of that list needs a row of this name too; ``docs/adding.md`` has examples.

    Args:
        names: one of the ``Literal`` types of this file.
        name: the new one; nothing happens if it is there already.
    """
    if name not in choices(names):
        _added[names] = (*_added.get(names, ()), name)


def lookup(entries: Mapping[str, Entry], name: str, what: str) -> Entry:
    """The entry of a mapping by name.

    >>> lookup({"linear": 1, "cosine": 2}, "cosine", "schedule")
    2

    Args:
        entries: by name.
        name: of the entry wanted.
        what: the kind of thing, for the message.

    Raises:
        UserError: there is none of that name; the message names all.
    """
    if name not in entries:
        raise unknown(what, name, entries)
    return entries[name]


def check(names: Any, name: str, what: str) -> None:
    """Checks that a list has a name.

    Args:
        names: one of the ``Literal`` types of this file.
        name: the one to look for.
        what: the kind of thing, for the message.

    Raises:
        UserError: it has not.
    """
    if name not in choices(names):
        raise unknown(what, name, choices(names))


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """The error about a name that does not exist; its message names all that do.

    >>> print(unknown("schedule", "cosin", ["linear", "cosine"]))
    schedule 'cosin' does not exist; did you mean 'cosine'? choose from: linear, cosine
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return UserError(f"{what} '{name}' does not exist; {hint}choose from: {', '.join(known)}")
