"""``--mode=tune``: few steps tuned for a trained network, without training it, into ``WORKDIR/tuned/``."""

import contextlib
import dataclasses
import math
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from ddim_jax import parallel
from ddim_jax.config import Config, with_sample
from ddim_jax.configured import build_schedule, settings_of_levels
from ddim_jax.diffusion import tuning
from ddim_jax.diffusion.loop import padded
from ddim_jax.diffusion.prediction import Question
from ddim_jax.diffusion.samplers import make_sampler
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels
from ddim_jax.errors import UserError
from ddim_jax.memory import check_room
from ddim_jax.model_job import ModelJob, work_bar
from ddim_jax.names import SamplerName, Spacing
from ddim_jax.one_writer import one_writer
from ddim_jax.pipeline import Pipeline
from ddim_jax.sampling import programs
from ddim_jax.sampling.condition_sets import ConditionSet
from ddim_jax.sampling.image_sampler import batch_size_for, image_items
from ddim_jax.sampling.tuned_steps import TunedSteps, network_facts, read_tuned, tuned_path, write_tuned
from ddim_jax.sharded_map import ShardedMap
from ddim_jax.workdir import make_job_dir
from ddim_jax.writers import say

# What the tuned steps are compared with: each of these samplers on the best of these spacings.
_OTHERS: tuple[SamplerName, ...] = ("ddim", "dpmpp_2m", "unipc3")
_SPACINGS: tuple[Spacing, ...] = ("uniform", "trailing", "logsnr", "karras")


def tune(config: Config, workdir: epath.PathLike) -> None:
    """Tunes each of ``tune.steps`` numbers of steps, for ``sample.spacing=tuned`` and ``sample.sampler=tuned``.

    They are written as they are found; those of other numbers of steps that are there already stay. Prints how far from
    the fine trajectory they end, beside other samplers. Process 0 does it.

    Args:
        config: the command line's config; its ``tune`` group counts, and of ``sample`` what is done to predictions.
        workdir: a trained workdir.

    Raises:
        UserError: more steps than levels to choose from, images that memory does not hold, another job that tunes the
            same, or see :class:`~ddim_jax.model_job.ModelJob`.
    """
    if not parallel.is_main_process():
        return
    job = ModelJob.load(config, workdir, steps=())
    config, settings = job.config, job.config.tune
    schedule = build_schedule(config)
    levels = tuning.fine_levels(schedule, settings.fine_steps)
    if max(settings.steps) >= len(levels):
        raise UserError(
            f"tune.steps={settings.steps}: the fine trajectory of tune.fine_steps={settings.fine_steps} visits "
            f"{len(levels)} levels to choose from; tune fewer steps, or make it finer"
        )
    # The states and predictions that it keeps, and what is computed with them.
    values = settings.num * math.prod(config.data.image_shape)
    needed = values * (4 * (2 * len(levels) + 1) + 8 * 3 * (settings.order + 2))
    check_room(needed, "tune.num", settings.num, f"the states of so many images at {len(levels)} levels")

    facts = network_facts(config, job.pipe.step, job.pipe.guide, job.pipe.average)
    path = tuned_path(workdir, facts)
    network = _Network(job.pipe, config, settings.num)
    network.compile()
    make_job_dir(path.parent)
    fitted = settings.num // 2
    with contextlib.ExitStack() as stack:
        writing = stack.enter_context(one_writer(path.parent, path.stem, str(path), "tune with other settings"))
        tuned = _present(path)
        bar = stack.enter_context(work_bar(len(levels), "tuning", "evaluation"))
        denoise = network.denoise(slice(None), bar)
        fine = tuning.fine_trajectory(denoise, network.noise(), schedule, levels)
        bar.total += sum(
            steps * (len(tuning.level_lists(fine, steps)) + len(_OTHERS) * len(_SPACINGS)) for steps in settings.steps
        )
        for steps in dict.fromkeys(settings.steps):
            plan = tuning.tuned_steps(denoise, fine, schedule, steps, settings.order, fitted)
            tuned[steps] = TunedSteps(
                settings_of_levels(config, plan.levels),
                plan.coefficients.tolist(),
                plan.distance,
                _others(network.denoise(slice(fitted, None), bar), fine, schedule, steps, fitted),
                dataclasses.asdict(settings),
            )
            writing.check()
            write_tuned(path, facts, tuned)
    _tell({steps: tuned[steps] for steps in settings.steps}, settings.num - fitted)
    say(f"wrote {path}; draw by --config.sample.spacing=tuned, with --config.sample.sampler=tuned or another")


class _Network:
    """The network on the images to tune by."""

    def __init__(self, pipe: Pipeline, config: Config, num: int) -> None:
        self._config = with_sample(config, seed=config.tune.seed)
        indices = np.arange(num)
        conditions = ConditionSet.of(config)
        told = None
        if conditions is not None:
            # Fewer conditions than images begin again.
            told = conditions.load(indices % (len(conditions) * config.sample.per_condition))
        self._items = image_items(self._config, indices, told)
        devices = parallel.local_devices()
        self._variables = parallel.replicate(pipe.variables, devices)
        guide = pipe.guide
        self._guide = None if guide is None else parallel.replicate(guide.variables, devices)
        # Half of the images are asked about alone, too.
        program = programs.prediction_program(config, pipe.model, guide and guide.model)
        self._map = ShardedMap(program, batch_size_for(config, -(-num // 2)))
        self._draw = ShardedMap(programs.noise_program(config, pipe.model), batch_size_for(config, -(-num // 2)))

    def compile(self) -> None:
        """Compiles the program; a batch that does not fit is refused before anything is written."""
        row = tuning.asking(0.0, 0.5)
        self._map.compile(self._given(row), (np.zeros((1, *self._config.data.image_shape), np.float32), self._items))

    def noise(self) -> np.ndarray:
        """Draws what the images begin with."""
        return self._draw(self._given(tuning.asking(0.0, 0.5)), self._items).result

    def denoise(self, which: slice, bar: tqdm) -> tuning.Denoise:
        """Asks about some of the images."""
        items = jax.tree.map(lambda values: values[which], self._items)

        def ask(x: np.ndarray, row: Question) -> np.ndarray:
            given = self._given(tuning.asking(float(row.time), float(row.alpha_bar)))
            images = [
                programs.numbers_only(checked, items.index[where])
                for where, checked in self._map.chunks(given, (x.astype(np.float32), items))
            ]
            bar.update()
            return np.concatenate(images)

        return ask

    def _given(self, table: Any) -> programs.Given:
        return programs.Given(self._variables, padded(table), self._guide)


def _present(path: epath.Path) -> dict[int, TunedSteps]:
    """What has been tuned before."""
    if not path.exists():
        return {}
    try:
        return read_tuned(path)
    except UserError as error:
        say(f"{error}: it is replaced now")
        return {}


def _others(
    denoise: tuning.Denoise, fine: tuning.FineTrajectory, schedule: Schedule, steps: int, fitted: int
) -> dict[str, dict[str, Any]]:
    """How near other samplers come in as many steps, of the images that nothing was fitted to."""
    found = {}
    x, wanted = fine.x[0, fitted:], fine.x[-1, fitted:]
    for sampler in _OTHERS:
        distances = {}
        for spacing in _SPACINGS:
            pairs = level_pairs(sampling_levels(spacing, schedule.num_levels, steps, schedule))
            end = tuning.run(denoise, x, make_sampler(sampler, schedule, pairs).table)
            distances[spacing] = tuning.distance(end, wanted)
        best = min(distances, key=lambda spacing: distances[spacing])
        found[sampler] = {"distance": distances[best], "spacing": best}
    return found


def _tell(tuned: dict[int, TunedSteps], num: int) -> None:
    say(
        f"distance to the fine trajectory, of {num:,} images that nothing was fitted to (root mean square of pixels, "
        "mean of images)"
    )
    say(f"{'S':>5} {'tuned':>9} " + "".join(f"{sampler:>20}" for sampler in _OTHERS))
    for steps, each in tuned.items():
        others = (f"{found['distance']:.4f} {found['spacing']}" for found in each.others.values())
        say(f"{steps:5d} {each.distance:9.4f} " + "".join(f"{other:>20}" for other in others))
