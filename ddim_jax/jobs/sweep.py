"""``--mode=sweep``: the same noise under other numbers of steps and etas, to see what a knob does."""

from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.configured import picture_shape, pictures
from ddim_jax.errors import UserError
from ddim_jax.images import grid_bytes, save_png, table
from ddim_jax.memory import check_room
from ddim_jax.model_job import ModelJob, work_bar
from ddim_jax.sampling.image_sampler import image_indices
from ddim_jax.writers import say


def sweep(config: Config, workdir: epath.PathLike) -> None:
    """Draws ``sweep.png``; process 0 draws.

    It has a row for each of ``sweep.etas`` and ``sweep.samplers``, and a column for each of ``sweep.steps``.

    Raises:
        UserError: see :class:`~ddim_jax.model_job.ModelJob`.
    """
    if not parallel.is_main_process():
        return
    # What is tuned is so for a number of steps: the sweep's own.
    job = ModelJob.load(config, workdir, config.sweep.steps)
    settings, num_levels = job.config.sweep, job.config.diffusion.num_levels
    columns = [steps for steps in settings.steps if steps <= num_levels]
    if not columns:
        raise UserError(f"sweep.steps={settings.steps}: the model has {num_levels} levels; use fewer steps")
    indices = tuple(int(i) for i in image_indices(job.config, settings.num))
    rows = {f"eta {eta:g}": {"sampler": "ddim", "eta": eta} for eta in settings.etas}
    rows |= {sampler: {"sampler": sampler, "eta": 0.0} for sampler in settings.samplers}
    needed = 2 * grid_bytes(len(rows) * len(columns) * len(indices), picture_shape(job.config))
    check_room(needed, "sweep.num", settings.num, f"{len(rows)} x {len(columns)} cells of {len(indices)} images")
    cells = []
    with work_bar(len(rows) * sum(columns), "sweeping", "step") as bar:
        for row in rows.values():
            cells.append([])
            for steps in columns:
                images = job.pipe.sample(seed=job.config.sample.seed, indices=indices, steps=steps, preset="", **row)
                cells[-1].append(pictures(job.config, images))
                bar.update(steps)
    folder = job.folder("sweep", "ddim", settings)
    save_png(folder / "sweep.png", table(cells, list(rows), [f"S = {steps}" for steps in columns]))
    job.record(folder, "sweep", indices=indices)
    say(f"wrote {folder / 'sweep.png'}")
