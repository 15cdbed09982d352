"""``--mode=export``: write a model's weights for diffusers, or as one file for sharing."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.configured import build_schedule
from ddim_jax.digests import digest_of_arrays
from ddim_jax.errors import UserError
from ddim_jax.files import writing
from ddim_jax.model_job import ModelJob
from ddim_jax.names import StoredDtype, WeightsFormat
from ddim_jax.one_writer import one_writer
from ddim_jax.pipeline import Pipeline
from ddim_jax.weights.description import Description, shared_config
from ddim_jax.weights.diffusers_config import not_in_scheduler
from ddim_jax.weights.export_formats import EXPORT_FORMATS, read_description
from ddim_jax.weights.forms import COST_OF_RAW_WEIGHTS
from ddim_jax.weights.shapes import check_finite
from ddim_jax.writers import say

# Noisy images through the network, to see what rounding its weights does to its output.
_TRIED_IMAGES = 4


def export(config: Config, workdir: epath.PathLike) -> epath.Path:
    """Writes the weights in the form ``weights.format``.

    - ``diffusers``: a folder that ``diffusers.DDIMPipeline.from_pretrained`` loads. By the sampler ``ddim`` in steps
      that divide the levels, of ``uniform`` or ``trailing`` spacing, it draws the images that we draw, to rounding,
      from the same noise. A warning tells of each setting of ``sample`` that is not in the folder, and which argument
      of the pipeline gives it back.
    - ``npz``, ``safetensors``: one file with our names and layout, and the config in it.

    All of them can be imported again; stored as float32 they come back bit by bit.

    Args:
        config: the command line's config; its ``weights`` group, ``sample.checkpoint`` and
            ``sample.ema_width`` count.
        workdir: a trained workdir.

    Returns:
        The folder or file.

    Raises:
        UserError: no checkpoint, weights that are not finite, a network or schedule that diffusers cannot express,
            values that the dtype cannot hold, another export in the way, or another job that writes it.
    """
    settings = config.weights
    if config.sample.ema_width and not settings.ema:
        raise UserError("weights.ema=false asks for the raw parameters, which have no sample.ema_width; use one")
    loading = dataclasses.replace(config, sample=dataclasses.replace(config.sample, ema=settings.ema))
    job = ModelJob.load(loading, workdir)
    pipe = job.pipe
    if not settings.ema and parallel.is_main_process():
        say(f"warning: exporting the raw weights, as weights.ema=false asks; {COST_OF_RAW_WEIGHTS}")
    exact = {name: np.asarray(value) for name, value in traverse_util.flatten_dict(pipe.variables, sep="/").items()}
    stored = _rounded(exact, settings.dtype)
    sha256 = digest_of_arrays(stored)
    description = Description(shared_config(job.config), pipe.step, settings.ema, settings.dtype, sha256)
    out = _out(job.config, workdir, pipe.step)
    if parallel.is_main_process():
        write_once(out, settings.format, stored, description)
        if settings.format == "diffusers":
            for difference in not_in_scheduler(job.config):
                say(f"warning: {difference}")
        if settings.dtype != "float32":
            _report_rounding(pipe, exact, stored)
    parallel.barrier("exported")
    return out


def _out(config: Config, workdir: epath.PathLike, step: int) -> epath.Path:
    """Chooses the file or folder to write; by default its name tells all exports of one run apart."""
    settings = config.weights
    form = EXPORT_FORMATS[settings.format]
    if not settings.out:
        width = config.sample.ema_width
        which = f"width{width:g}" if width else "ema" if settings.ema else "raw"
        return epath.Path(workdir) / "export" / f"step{step}-{which}-{settings.dtype}{form.ending}"
    out = epath.Path(settings.out)
    if not form.is_folder and out.suffix != form.ending:
        raise UserError(f"weights.out={settings.out}: a file of weights.format={settings.format} ends in {form.ending}")
    return out


def write_once(
    out: epath.Path, weights_format: WeightsFormat, stored: Mapping[str, np.ndarray], description: Description
) -> None:
    """Writes the file or folder, unless it is there.

    Args:
        out: where to.
        weights_format: in which form.
        stored: arrays by their paths.
        description: what they are.

    Raises:
        UserError: something else is there, it cannot be written, or another job writes it.
    """
    if _is_there(out, description):
        return
    with one_writer(out.parent, out.name, str(out), "name another place by weights.out"):
        if _is_there(out, description):  # another job has written it meanwhile
            return
        with writing(out):
            EXPORT_FORMATS[weights_format].write(out, stored, description)
    megabytes = sum(value.nbytes for value in stored.values()) / 1e6
    say(f"wrote {out}: {len(stored):,} arrays, {megabytes:,.1f} MB, step {description.step:,}")


def _is_there(out: epath.Path, description: Description) -> bool:
    if not out.exists():
        return False
    if read_description(out) != description:
        raise UserError(
            f"{out} exists and is another model's, or something else, or damaged: delete it, or name another place by "
            "weights.out"
        )
    say(f"{out} is there already")
    return True


# --- rounding -----------------------------------------------------------------------------------


def _rounded(arrays: Mapping[str, np.ndarray], dtype: StoredDtype) -> dict[str, np.ndarray]:
    check_finite(arrays, "the checkpoint")
    with np.errstate(over="ignore"):
        rounded = {name: array.astype(jnp.dtype(dtype)) for name, array in arrays.items()}
    too_large = [name for name, array in rounded.items() if not np.isfinite(array).all()]
    if too_large:
        raise UserError(f"weights.dtype={dtype} cannot hold the values of {too_large[0]}: choose bfloat16 or float32")
    return rounded


class _Rounding(NamedTuple):
    """Relative errors of the values of arrays."""

    largest: float
    mean: float


def _rounding(exact: Mapping[str, np.ndarray], stored: Mapping[str, np.ndarray]) -> _Rounding:
    largest, total, count = 0.0, 0.0, 0
    for name, array in exact.items():
        nonzero = array[array != 0].astype(np.float64)
        error = np.abs(stored[name][array != 0].astype(np.float64) / nonzero - 1)
        largest = max(largest, error.max(initial=0.0))
        total, count = total + error.sum(), count + error.size
    return _Rounding(float(largest), float(total / max(count, 1)))


def _report_rounding(pipe: Pipeline, exact: Mapping[str, np.ndarray], stored: Mapping[str, np.ndarray]) -> None:
    rounding = _rounding(exact, stored)
    expected = _output(pipe, exact)
    error = np.abs(_output(pipe, {name: array.astype(np.float32) for name, array in stored.items()}) - expected)
    dtype = next(iter(stored.values())).dtype
    say(
        f"rounding to {dtype} changes the weights by {rounding.mean:.2g} of their value in the mean, "
        f"{rounding.largest:.2g} at most; the network's output by {error.mean() / np.abs(expected).mean():.2g} of its "
        f"mean size in the mean, {error.max() / np.abs(expected).max():.2g} of its largest value at most"
    )


def _output(pipe: Pipeline, flat: Mapping[str, np.ndarray]) -> np.ndarray:
    """Network's output for pure noise, told to be images at levels from 1 to T."""
    config = pipe.config
    schedule = build_schedule(config)
    noise = np.random.default_rng(0).standard_normal((_TRIED_IMAGES, *config.data.image_shape))
    levels = np.linspace(1, schedule.num_levels, _TRIED_IMAGES).round().astype(np.int64)
    inputs = [jnp.asarray(noise, jnp.float32), jnp.asarray(schedule.time_input(levels), jnp.float32)]
    if config.model.num_classes:
        inputs.append(jnp.arange(_TRIED_IMAGES) % config.model.num_classes)
    variables = traverse_util.unflatten_dict(dict(flat), sep="/")
    return np.asarray(jax.jit(pipe.model.apply)(variables, *inputs), np.float64)
