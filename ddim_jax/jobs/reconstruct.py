"""``--mode=reconstruct``: encode real images to noise and decode them again (DDIM, section 5.4)."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config, flatten
from ddim_jax.configured import build_encoder, build_normalization, pictures
from ddim_jax.data.first_images import digest_of_images, read_first_images
from ddim_jax.errors import RefutedError, UserError
from ddim_jax.files import write_whole
from ddim_jax.images import save_png, table
from ddim_jax.model_job import ModelJob, sampler_name, work_bar
from ddim_jax.pixels import Normalization
from ddim_jax.tables.published_figures import DDIM_TABLE_2, DDIM_TABLE_2_IMAGES, PUBLISHED
from ddim_jax.tables.verdicts import Verdict, judge
from ddim_jax.workdir import make_job_dir
from ddim_jax.writers import say


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
    if settings.check:
        _check_can_be_held(job.config, tried)
    real = read_first_images(job.config.data, settings.split, settings.path, settings.num, "reconstruct.path")
    labels = real.label if job.config.model.num_classes else None
    for steps in tried:
        # Refused before anything is written.
        build_encoder(job.with_steps(steps), settings.iterations)
    name = sampler_name(dataclasses.replace(job.config.sample, steps=tried[-1]))
    folder = job.folder("reconstruct", name, settings, make=False, images=digest_of_images(real))

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
        published = f"{DDIM_TABLE_2[steps][0]:.4f}" if steps in DDIM_TABLE_2 else "-"
        say(f"{steps:5d} {error:10.5f} {published:>34}")
    write_whole(folder / "errors.json", json.dumps(errors, indent=2) + "\n")
    job.record(folder, "reconstruct", images=len(real.image), errors=errors)
    say(f"wrote {folder}")
    if settings.check:
        verdicts = {steps: _verdict(steps, error) for steps, error in errors.items()}
        for steps, verdict in verdicts.items():
            say(f"S = {steps}: {verdict.in_words()}")
        if any(verdict.word == "worse" for verdict in verdicts.values()):
            raise RefutedError(f"errors are worse than those of DDIM's table 2: see the verdicts above, and {folder}")


def _check_can_be_held(config: Config, steps: Sequence[int]) -> None:
    """Refuses ``reconstruct.check`` where errors could not be held against DDIM's table 2.

    Raises:
        UserError: of other images or another model.
    """
    settings = config.reconstruct
    name, split, num = DDIM_TABLE_2_IMAGES
    found = []
    if settings.path or (config.data.name, settings.split, settings.num) != (name, split, num):
        found.append(f"its errors are of {name}, reconstruct.split={split}, reconstruct.num={num}, without a path")
    if difference := PUBLISHED["ddim-table1-cifar10"].differs_from(flatten(config)):
        found.append(difference)
    if not set(steps) <= DDIM_TABLE_2.keys():
        found.append(f"it has reconstruct.steps of {', '.join(map(str, DDIM_TABLE_2))}")
    if found:
        raise UserError(f"reconstruct.check cannot hold these errors against DDIM's table 2: {'; '.join(found)}")


def _verdict(steps: int, error: float) -> Verdict:
    """Holds an error against the paper's, which is rounded: to half a unit of its last digit, and a tenth."""
    published, unit = DDIM_TABLE_2[steps]
    return judge("reconstruction_error", error, published, unit / 2 + published / 10)


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
