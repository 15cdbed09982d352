"""``--mode=average``: averages of any width of a trained run's weights, each as a file that can be shared."""

import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.digests import digest_of_arrays
from ddim_jax.errors import UserError
from ddim_jax.files import make_folder
from ddim_jax.jobs.export import write_once
from ddim_jax.training.averages import averaged_variables, plan_average
from ddim_jax.training.checkpoint import restore_trained
from ddim_jax.training.checksums import by_path
from ddim_jax.weights.description import Description, shared_config
from ddim_jax.weights.shapes import check_finite
from ddim_jax.workdir import config_for_job
from ddim_jax.writers import say


def average(config: Config, workdir: epath.PathLike) -> list[epath.Path]:
    """Writes ``WORKDIR/average/stepN-widthW.safetensors`` for each width asked for.

    These are the widths of ``eval.ema_widths``, or ``sample.ema_width``. The files are like those of ``--mode=export``,
    for ``ddim_jax.load_weights``, ``--mode=import`` and whoever has no snapshots. With these, all jobs on the workdir
    make the same weights themselves, where one of those keys asks for it. See ``training/averages.py``.

    Args:
        config: the command line's config; those keys and ``sample.checkpoint`` count.
        workdir: of a run with ``train.ema_widths``.

    Returns:
        The files.

    Raises:
        UserError: no width is named, the run has no snapshots that lead to it, no checkpoint, or another file is there.
    """
    config = config_for_job(workdir, config)
    widths = [width for width in (config.eval.ema_widths or (config.sample.ema_width,)) if width]
    if not widths:
        raise UserError(
            "--mode=average needs a width: add e.g. --config.sample.ema_width=0.08, or several, "
            "--config.eval.ema_widths='(0.05,0.1)'"
        )
    trained = restore_trained(workdir, config.sample.checkpoint, together=True)
    plans = [plan_average(workdir, trained.config, trained.step, width) for width in dict.fromkeys(widths)]
    folder = epath.Path(workdir) / "average"
    files = [folder / f"step{trained.step}-width{plan.record['width']:g}.safetensors" for plan in plans]
    if parallel.is_main_process():
        make_folder(folder)
        for plan, path in zip(plans, files, strict=True):
            variables = averaged_variables(workdir, trained.config, trained.state, plan)
            arrays = {name: np.asarray(leaf) for name, leaf in by_path(variables).items()}
            check_finite(arrays, "the snapshots")
            description = Description(shared_config(config), trained.step, True, "float32", digest_of_arrays(arrays))
            say(plan.in_words())
            write_once(path, "safetensors", arrays, description)
    parallel.barrier("averages")
    return files
