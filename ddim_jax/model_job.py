"""What all jobs on a trained model share: loading it, naming the folder they write, and recording what was done."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import jax
from etils import epath
from tqdm import tqdm

from ddim_jax import parallel, pipeline
from ddim_jax.config import Config, Role, SampleConfig, deciding_values, keys_with, with_sample
from ddim_jax.diffusion.samplers import takes_eta
from ddim_jax.pipeline import Pipeline
from ddim_jax.sampling.tuned_steps import FILLED_IN, with_tuned
from ddim_jax.workdir import config_for_job, job_dir, read_run_record, write_run_record
from ddim_jax.writers import progress

# What decides the images of a job, beside the step of the checkpoint.
_DECIDING = keys_with(SampleConfig, Role.PIXELS, Role.SELECTION)

# JAX tells that a program has been translated for XLA, and that XLA is done with it.
_COMPILATION_BEGINS = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILATION_ENDS = "/jax/core/compile/backend_compile_duration"
# Of translating a program that is told of: single operations, of which there are many, take less.
_LEAST_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class ModelJob:
    """A job on a trained model.

    Attributes:
        workdir: the trained workdir.
        config: what was trained, from there, and what is to be done, from the command line.
        pipe: the model, with that config.
        started: ``time.perf_counter`` when the job began.
        tuned: what ``sample.spacing=tuned`` means for each S of a job that draws with several.
    """

    workdir: epath.PathLike
    config: Config
    pipe: Pipeline
    started: float
    tuned: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, config: Config, workdir: epath.PathLike, steps: Sequence[int] | None = None) -> Self:
        """Loads the model.

        Args:
            config: the command line's config.
            workdir: a trained workdir.
            steps: numbers of steps that the job draws with, see :meth:`with_steps`; None for that of ``config.sample``.

        Raises:
            UserError: no checkpoint, or settings that the model cannot be used with.
        """
        started = time.perf_counter()
        config = config_for_job(workdir, config)
        which = {"ema": config.sample.ema, "ema_width": config.sample.ema_width}
        pipe = pipeline.load(workdir, config.sample.checkpoint, **which)
        if config.sample.checkpoint is None:
            # The newest that is whole; another process may have found another.
            chosen = parallel.value_of_main_process(pipe.step)
            if chosen != pipe.step:
                pipe = pipeline.load(workdir, chosen, **which)
        pipe = dataclasses.replace(pipe, config=config)
        if pipe.guide is not None and config.sample.guide_checkpoint is None:
            # The newest one now, by which images and so their folder are decided.
            config = with_sample(config, guide_checkpoint=parallel.value_of_main_process(pipe.guide.step))
            pipe = dataclasses.replace(pipe, config=config)
        if steps is None:
            config = with_tuned(config, workdir, pipe.step, pipe.guide, pipe.average)
            return cls(workdir, config, dataclasses.replace(pipe, config=config), started)
        job = cls(workdir, config, pipe, started)
        if config.sample.spacing != "tuned":
            return job
        possible = [each for each in steps if each <= config.diffusion.num_levels]
        filled_in = {str(each): job.with_steps(each, sampler="tuned").sample for each in possible}
        tuned = {each: deciding_values(sample, FILLED_IN) for each, sample in filled_in.items()}
        return dataclasses.replace(job, tuned=tuned)

    def with_steps(self, steps: int, **settings: Any) -> Config:
        """The config with another number of steps, and other settings of ``sample``.

        Raises:
            UserError: see :func:`~ddim_jax.config.with_sample` and
                :func:`~ddim_jax.sampling.tuned_steps.with_tuned`.
        """
        config = with_sample(self.config, steps=steps, **settings)
        return with_tuned(config, self.workdir, self.pipe.step, self.pipe.guide, self.pipe.average)

    def folder(
        self,
        mode: str,
        name: str,
        settings: Any = None,
        make: bool = True,
        drawn_from: Any = None,
        images: str | None = None,
    ) -> epath.Path:
        """``WORKDIR/MODE/stepN-NAME-HASH``.

        Args:
            mode: the job's.
            name: the settings in short.
            settings: the job's own group of the config; with ``config.sample`` and the step it decides the results.
            make: see :func:`~ddim_jax.workdir.job_dir`.
            drawn_from: says which conditions images are drawn from; None where a class says it all.
            images: stands for the real images that the job reads, see
                :func:`~ddim_jax.data.first_images.digest_of_images`; None where it reads none.
        """
        decides = {
            "checkpoint_step": self.pipe.step,
            "sample": deciding_values(self.config.sample, _DECIDING),
            "settings": None if settings is None else deciding_values(settings),
        }
        if self.pipe.average is not None:
            decides["average"] = self.pipe.average
        if self.pipe.guide is not None:
            decides["guide"] = self.pipe.guide.sha256
        if drawn_from is not None:
            decides["drawn_from"] = drawn_from
        if images is not None:
            decides["images"] = images
        if self.tuned:
            decides["tuned"] = self.tuned
        return job_dir(self.workdir, mode, f"step{self.pipe.step}-{name}", decides, make)

    def recorded(self, folder: epath.Path) -> dict[str, Any]:
        """What ``run.json`` says of an earlier start of this job; nothing if there is none."""
        return read_run_record(folder)

    def record(self, folder: epath.Path, mode: str, **facts: Any) -> None:
        """Writes ``run.json``."""
        write_run_record(
            folder,
            self.config,
            mode=mode,
            seed=self.config.sample.seed,
            checkpoint_step=self.pipe.step,
            **({} if self.pipe.average is None else {"average": self.pipe.average}),
            device=parallel.device_description(),
            seconds=round(time.perf_counter() - self.started, 3),
            **facts,
        )


def sampler_name(sample: SampleConfig) -> str:
    """The sampler in short, for names of folders: e.g. ``ddim-S50-eta0``."""
    steps = len(sample.sigmas) or len(sample.levels) or sample.steps
    noise = f"-eta{sample.eta:g}" if takes_eta(sample.sampler) and not sample.eta_per_step else ""
    return f"{sample.sampler}-S{steps}{noise}"


@contextlib.contextmanager
def work_bar(total: int, description: str, unit: str) -> Iterator[tqdm]:
    """A progress bar that says so while XLA compiles: for the first images that is most of the time."""

    def listen(event: str, duration_secs: float, **facts: Any) -> None:
        del facts
        if event == _COMPILATION_BEGINS and duration_secs >= _LEAST_SECONDS:
            _describe(bar, f"{description} (compiling)")
        elif event == _COMPILATION_ENDS:
            _describe(bar, description)

    with progress(total, description, unit) as bar:
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield bar
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)


def _describe(bar: tqdm, description: str) -> None:
    if bar.desc != description:
        bar.set_description_str(description)  # the other method adds the colon that the bar's form has
