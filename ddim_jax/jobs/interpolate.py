"""``--mode=interpolate``: images between images, along arcs between their noises."""

import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.configured import build_sampler, drawing_bytes, picture_shape, pictures
from ddim_jax.images import grid, grid_bytes, save_png
from ddim_jax.memory import check_room
from ddim_jax.model_job import ModelJob, sampler_name
from ddim_jax.writers import say


def interpolate(config: Config, workdir: epath.PathLike) -> None:
    """Draws ``pairs.png``, a row per pair of images, and ``square.png``, the images between four corners.

    Process 0 draws.

    Raises:
        UserError: see :class:`~ddim_jax.model_job.ModelJob`.
    """
    if not parallel.is_main_process():
        return
    job = ModelJob.load(config, workdir)
    settings = job.config.interpolate
    sampler = build_sampler(job.config)
    counts = {"points": len(settings.first) * settings.points, "side": settings.side**2 if settings.corners else 0}
    for key, count in counts.items():
        needed = count * drawing_bytes(job.config) + grid_bytes(count, picture_shape(job.config))
        check_room(needed, f"interpolate.{key}", getattr(settings, key), f"{count:,} images")
    pairs = job.pipe.interpolate(settings.first, settings.second, settings.points, progress=True)
    folder = job.folder("interpolate", sampler_name(job.config.sample), settings)
    save_png(folder / "pairs.png", grid(_shown(job.config, pairs), columns=settings.points))
    say(f"wrote {folder / 'pairs.png'}")
    if settings.corners:
        square = job.pipe.interpolate_grid(settings.corners, settings.side, progress=True)
        save_png(folder / "square.png", grid(_shown(job.config, square), columns=settings.side))
        say(f"wrote {folder / 'square.png'}")
    job.record(folder, "interpolate", network_evaluations_per_image=sampler.evaluations)


def _shown(config: Config, images: np.ndarray) -> np.ndarray:
    """Pictures of images [..., h, w, c], one after the other."""
    return pictures(config, images.reshape(-1, *images.shape[-3:]))
