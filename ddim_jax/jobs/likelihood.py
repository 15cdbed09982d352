"""``--mode=likelihood``: how probable real images are under a trained model, in bits per dimension."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.conditions import DataCondition
from ddim_jax.config import Config, LikelihoodConfig
from ddim_jax.data.first_images import digest_of_images, read_first_images
from ddim_jax.data.reading import Images
from ddim_jax.errors import UserError
from ddim_jax.files import write_whole
from ddim_jax.memory import check_room
from ddim_jax.model_job import ModelJob
from ddim_jax.npz import NpzInParts
from ddim_jax.one_writer import one_writer
from ddim_jax.sampling.conditions import condition_of_images
from ddim_jax.sampling.image_sampler import batch_size_for
from ddim_jax.sampling.likelihood_programs import likelihood_program, network_evaluations
from ddim_jax.sampling.programs import Items
from ddim_jax.sharded_map import ShardedMap
from ddim_jax.workdir import make_job_dir
from ddim_jax.writers import progress, say


def likelihood(config: Config, workdir: epath.PathLike) -> epath.Path:
    """Measures the images that ``config.likelihood`` names.

    The value of an image depends on the model, ``sample.seed`` and the image's place in the data alone. Values are
    saved as they come: started again after a kill, the job computes only what is missing. Each of P processes takes
    every P-th image.

    Args:
        config: the command line's config; its ``likelihood`` group counts, and of ``sample`` the seed, checkpoint, ema,
            batch size and precision.
        workdir: a trained workdir.

    Returns:
        The folder written: ``likelihood.json``, ``likelihood.npz`` (each image's values, with ``index``), ``run.json``.

    Raises:
        UserError: images that cannot be read or have not the network's classes, settings that the schedule has no
            levels for, values that are not finite, another job that measures the same, or see
            :class:`~ddim_jax.model_job.ModelJob`.
    """
    job = ModelJob.load(config, workdir)
    config, pipe, settings = job.config, job.pipe, job.config.likelihood
    if settings.method == "ode" and settings.divergence == "hutchinson":
        # What the network's first convolution makes of an image, once for each probe.
        height, width, _ = config.data.image_shape
        needed = 4 * settings.probes * height * width * config.model.channels
        check_room(needed, "likelihood.probes", settings.probes, "so many probes of one image")
    program = likelihood_program(config, pipe.model)
    real = read_first_images(config.data, settings.split, settings.path, settings.num or sys.maxsize, "likelihood.path")
    _check_classes(real, config.model.num_classes)
    num = len(real.image)
    told = condition_of_images(config, real)
    name = f"{_method_name(settings)}-n{num}"
    folder = job.folder("likelihood", name, settings, make=False, images=digest_of_images(real))
    run = ShardedMap(program, batch_size_for(config, -(-num // parallel.process_count())))
    variables = parallel.replicate(pipe.variables, parallel.local_devices())
    if not folder.exists():
        # A batch that does not fit is refused before anything is written.
        first = Items(np.zeros(1, np.int32), real.index[:1].astype(np.int32), _rows(told, np.arange(1)))
        run.compile(variables, (real.image[:1], first))
    make_job_dir(folder)
    with one_writer(folder, "likelihood", str(folder), "measure with other settings") as writing:
        store = NpzInParts(folder / "likelihood.npz", parallel.process_index())
        present = store.indices()
        # From here on files appear: all processes must have looked before.
        parallel.barrier("likelihood folder")

        mine = np.arange(parallel.process_index(), num, parallel.process_count())
        missing = mine[~np.isin(real.index[mine], present)]
        computed = int(np.count_nonzero(~np.isin(real.index, present)))  # by all processes together
        seeds = np.full(len(missing), config.sample.seed, np.int32)
        items = Items(seeds, real.index[missing].astype(np.int32), _rows(told, missing))
        started = time.perf_counter()
        with progress(len(mine), "measuring", "image", len(mine) - len(missing), parallel.is_main_process()) as bar:
            for where, values in run.chunks(variables, (real.image[missing], items)):
                writing.check()
                indices = real.index[missing[where]]
                _check_finite(indices, values["bits_per_dim"])
                store.add({"index": indices, **values})
                bar.update(len(indices))
        seconds = time.perf_counter() - started
        parallel.barrier("measured")

        if parallel.is_main_process():
            writing.check()
            values = store.finish(real.index)
            result = {"method": settings.method, "images": num, **summary(values)}
            told = json.dumps(result, indent=2) + "\n"
            path = folder / "likelihood.json"
            if not path.exists() or path.read_bytes() != told.encode():
                write_whole(path, told)
            if computed or not job.recorded(folder):
                job.record(
                    folder,
                    "likelihood",
                    measuring_seconds=round(seconds, 3),
                    images=num,
                    images_computed=computed,
                    network_evaluations_per_image=network_evaluations(config),
                )
            say(f"{_in_words(result)}; wrote {folder}")
        parallel.barrier("likelihood written")
    return folder


def summary(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means over images.

    Args:
        values: ``bits_per_dim`` [n], and the terms that it is the sum of.

    Returns:
        ``bits_per_dim``, its ``standard_error`` as an estimate for the images' distribution (None for one image), and
        the means of the ``terms``.
    """
    bits = values["bits_per_dim"].astype(np.float64)
    error = float(np.std(bits, ddof=1) / np.sqrt(len(bits))) if len(bits) > 1 else None
    terms = {
        name: float(np.mean(of_images, dtype=np.float64))
        for name, of_images in values.items()
        if name not in ("index", "bits_per_dim")
    }
    return {"bits_per_dim": float(np.mean(bits)), "standard_error": error, "terms": terms}


def _rows(condition: DataCondition, rows: np.ndarray) -> DataCondition:
    return jax.tree.map(lambda x: x[rows], condition)


def _check_classes(real: Images, num_classes: int) -> None:
    wrong = np.flatnonzero((real.label < 0) | (real.label >= num_classes)) if num_classes else []
    if len(wrong):
        raise UserError(
            f"image {real.index[wrong[0]]} is of class {real.label[wrong[0]]}, but the model has classes 0 to "
            f"{num_classes - 1}; likelihood.path must have the sub-folders of the training images"
        )


def _check_finite(indices: np.ndarray, bits: np.ndarray) -> None:
    wrong = np.flatnonzero(~np.isfinite(bits))
    if len(wrong):
        raise UserError(
            f"the bits per dimension of image {indices[wrong[0]]} are {bits[wrong[0]]}: the network gives numbers that "
            "are not finite, or with method 'ode' the flow leaves the range of floats; try another sample.checkpoint, "
            "or more likelihood.steps"
        )


def _method_name(settings: LikelihoodConfig) -> str:
    if settings.method == "bound":
        levels = f"-K{settings.levels_per_image}" if settings.levels_per_image else ""
        return f"bound-{settings.variance}{levels}"
    return f"ode-S{settings.steps}-{settings.divergence}"


def _in_words(result: Mapping[str, Any]) -> str:
    error = "" if result["standard_error"] is None else f" ± {result['standard_error']:.4f}"
    what = "variational bound" if result["method"] == "bound" else "probability flow"
    terms = ", ".join(f"{name} {value:.4f}" for name, value in result["terms"].items())
    return (
        f"{result['bits_per_dim']:.4f}{error} bits per dimension of {result['images']:,} images, {what}"
        f"{f' ({terms})' if terms else ''}"
    )
