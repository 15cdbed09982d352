"""``--mode=sweep``: the same noise under other numbers of steps and etas, to see what a knob does."""

from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.errors import UserError
from ddim_jax.images import save_png, table
from ddim_jax.jobs.model_job import ModelJob
from ddim_jax.sampling.sampler import image_indices
from ddim_jax.writers import progress, say


def sweep(config: Config, workdir: epath.PathLike) -> None:
    """Draws ``sweep.png``: a row for each of ``sweep.etas``, a column for each of ``sweep.steps``; process 0 draws.

    Raises:
        UserError: see :class:`~ddim_jax.jobs.model_job.ModelJob`.
    """
    if not parallel.is_main_process():
        return
    job = ModelJob.load(config, workdir)
    settings, num_levels = job.config.sweep, job.config.diffusion.num_levels
    columns = [steps for steps in settings.steps if steps <= num_levels]
    if not columns:
        raise UserError(f"sweep.steps={settings.steps}: the model has {num_levels} levels; use fewer steps")
    indices = tuple(int(i) for i in image_indices(job.config)[: settings.num])
    cells = []
    with progress(len(settings.etas) * len(columns), "sweeping", "cell") as bar:
        for eta in settings.etas:
            cells.append([])
            for steps in columns:
                seed = job.config.sample.seed
                images = job.pipe.sample(seed=seed, indices=indices, sampler="ddim", steps=steps, eta=eta)
                cells[-1].append(images)
                bar.update()
    folder = job.folder("sweep", "ddim", settings)
    rows = [f"eta {eta:g}" for eta in settings.etas]
    save_png(folder / "sweep.png", table(cells, rows, [f"S = {steps}" for steps in columns]))
    job.record(folder, "sweep", indices=indices)
    say(f"wrote {folder / 'sweep.png'}")
