"""``--mode=reconstruct``: encode real images to noise and decode them again (DDIM, section 5.4)."""

import dataclasses
import json

import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.configured import build_encoder, build_normalization, pictures
from ddim_jax.data.first_images import read_first_images
from ddim_jax.errors import UserError
from ddim_jax.files import write_whole
from ddim_jax.images import save_png, table
from ddim_jax.model_job import ModelJob, sampler_name, work_bar
from ddim_jax.pixels import Normalization
from ddim_jax.workdir import make_job_dir
from ddim_jax.writers import say

# Per-dimension mean squared error on CIFAR-10's test images, pixels in [0, 1] (Song et al. 2021, table 2).
PAPER_TABLE_2 = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}


def reconstruct(config: Config, workdir: epath.PathLike) -> None:
    """Reconstructs ``reconstruct.num`` images with each of ``reconstruct.steps`` numbers of steps.

    Writes ``errors.json``, prints the errors beside the paper's, and draws for each S a picture with the originals, the
    reconstructions and the differences between them. Process 0 does it.

    Raises:
        UserError: the images cannot be read, or see :class:`~ddim_jax.model_job.ModelJob`.
    """
    if not parallel.is_main_process():
        return
    job = ModelJob.load(config, workdir, config.reconstruct.steps)
    settings = job.config.reconstruct
    num_levels = job.config.diffusion.num_levels
    tried = [steps for steps in settings.steps if steps <= num_levels]
    if not tried:
        raise UserError(f"reconstruct.steps={settings.steps}: the model has {num_levels} levels; use fewer steps")
    real = read_first_images(job.config.data, settings.split, settings.path, settings.num, "reconstruct.path")
    labels = real.label if job.config.model.num_classes else None
    for steps in tried:
        # Refused before anything is written.
        build_encoder(job.with_steps(steps), settings.iterations)
    name = sampler_name(dataclasses.replace(job.config.sample, steps=tried[-1]))
    folder = job.folder("reconstruct", name, settings, make=False)

    errors = {}
    with work_bar(sum(tried), "reconstructing", "step") as bar:
        for steps in tried:
            latents = job.pipe.encode(real.image, iterations=settings.iterations, labels=labels, steps=steps)
            result = job.pipe.decode(latents, labels=labels, steps=steps, clip="none")
            make_job_dir(folder)
            errors[steps] = mean_squared_error(real.image, result, build_normalization(job.config))
            save_png(folder / f"steps_{steps:04d}.png", _picture(job.config, real.image, result, settings.shown))
            bar.update(steps)

    say(f"per-dimension mean squared error of {len(real.image)} images, pixels in [0, 1]")
    say(f"{'S':>5} {'here':>10} {'CIFAR-10 in the paper (table 2)':>34}")
    for steps, error in errors.items():
        published = f"{PAPER_TABLE_2[steps]:.4f}" if steps in PAPER_TABLE_2 else "-"
        say(f"{steps:5d} {error:10.5f} {published:>34}")
    write_whole(folder / "errors.json", json.dumps(errors, indent=2) + "\n")
    job.record(folder, "reconstruct", images=len(real.image), errors=errors)
    say(f"wrote {folder}")


def mean_squared_error(
    images: np.ndarray,
    others: np.ndarray,
    normalization: Normalization = Normalization(),  # noqa: B008 - immutable
) -> float:
    """Mean squared difference of images, over all pixels and channels, on the scale of [0, 1]."""
    differences = images.astype(np.float64) - others.astype(np.float64)
    if normalization.is_plain:
        return float(np.mean(differences**2) / 255**2)
    return float(np.mean((differences / normalization.span) ** 2))


def _picture(config: Config, originals: np.ndarray, results: np.ndarray, shown: int) -> np.ndarray:
    originals, results = (pictures(config, images[:shown]) for images in (originals, results))
    differences = np.abs(originals.astype(np.int16) - results.astype(np.int16)).astype(np.uint8)
    cells = [[image[None] for image in row] for row in (originals, results, differences)]
    return table(cells, ["original", "decoded", "difference"], [f"{i}" for i in range(len(originals))])
