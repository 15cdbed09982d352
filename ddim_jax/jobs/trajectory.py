"""``--mode=trajectory``: images on their way from noise, as strips, numbered pictures and an animation."""

import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.configured import build_sampler, picture_shape, pictures
from ddim_jax.images import grid, grid_bytes, save_gif, save_png, table
from ddim_jax.memory import check_room
from ddim_jax.model_job import ModelJob, sampler_name
from ddim_jax.pipeline import Trajectory
from ddim_jax.sampling.image_sampler import image_indices
from ddim_jax.writers import say


def trajectory(config: Config, workdir: epath.PathLike) -> None:
    """Draws ``trajectory.num`` images and keeps ``trajectory.moments`` moments of each.

    Writes ``x.png`` (the noisy image) and ``x0.png`` (the clean one predicted from it), both with a row per image and a
    column per moment, ``x_NN.png`` and ``x0_NN.png`` for each moment, and ``trajectory.gif``. Process 0 draws.

    Raises:
        UserError: see :class:`~ddim_jax.model_job.ModelJob`.
    """
    if not parallel.is_main_process():
        return
    job = ModelJob.load(config, workdir)
    settings = job.config.trajectory
    indices = image_indices(job.config, settings.num)
    sampler = build_sampler(job.config)
    moments = min(settings.moments, sampler.steps) + 1
    # Of both kinds, which all are in the animation.
    needed = 2 * grid_bytes(len(indices) * moments, picture_shape(job.config))
    check_room(needed, "trajectory.moments", settings.moments, f"{len(indices)} x {moments} pictures of each kind")
    way = job.pipe.trajectory(indices, settings.moments, progress=True)
    shown = Trajectory(way.steps, *(pictures(job.config, images) for images in (way.x, way.x0, way.final)))
    folder = job.folder("trajectory", sampler_name(job.config.sample), settings)

    titles = [f"step {step}" for step in shown.steps] + ["result"]
    rows = [f"{index}" for index in indices]
    for name, moments in (("x", shown.x), ("x0", shown.x0)):
        moments = np.concatenate([moments, shown.final[:, None]], axis=1)
        save_png(folder / f"{name}.png", table([[cell[None] for cell in row] for row in moments], rows, titles))
        for number in range(moments.shape[1]):
            save_png(folder / f"{name}_{number:02d}.png", grid(moments[:, number]))
    # Noisy image and prediction side by side.
    pairs = np.concatenate([shown.x, shown.x0], axis=3)
    last = np.concatenate([shown.final, shown.final], axis=2)[:, None]
    frames = np.swapaxes(np.concatenate([pairs, last], axis=1), 0, 1)
    save_gif(folder / "trajectory.gif", [grid(frame) for frame in frames], settings.frame_ms)
    job.record(
        folder, "trajectory", indices=indices.tolist(), steps_shown=shown.steps.tolist(),
        network_evaluations_per_image=sampler.evaluations,
    )  # fmt: skip
    say(f"wrote {folder / 'x.png'}, {folder / 'x0.png'} and {folder / 'trajectory.gif'}")
