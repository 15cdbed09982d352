"""What all jobs on a trained model share: loading it, naming the folder they write, and recording what was done."""

import dataclasses
import time
from typing import Any, Self

from etils import epath

from ddim_jax import parallel, pipeline
from ddim_jax.config import Config, Role, SampleConfig, keys_with
from ddim_jax.diffusion.samplers import takes_eta
from ddim_jax.pipeline import Pipeline
from ddim_jax.workdir import config_for_job, job_dir, read_run_record, write_run_record

# What decides the images of a job, beside the step of the checkpoint.
_DECIDING = keys_with(SampleConfig, Role.PIXELS, Role.SELECTION)


@dataclasses.dataclass(frozen=True)
class ModelJob:
    """A job on a trained model.

    Attributes:
        workdir: the trained workdir.
        config: what was trained, from there, and what is to be done, from the command line.
        pipe: the model, with that config.
        started: ``time.perf_counter`` when the job began.
    """

    workdir: epath.PathLike
    config: Config
    pipe: Pipeline
    started: float

    @classmethod
    def load(cls, config: Config, workdir: epath.PathLike) -> Self:
        """Loads the model.

        Raises:
            UserError: no checkpoint, or settings that the model cannot be used with.
        """
        started = time.perf_counter()
        config = config_for_job(workdir, config)
        pipe = pipeline.load(workdir, config.sample.checkpoint, config.sample.ema)
        return cls(workdir, config, dataclasses.replace(pipe, config=config), started)

    def folder(self, mode: str, name: str, settings: Any = None) -> epath.Path:
        """Makes ``WORKDIR/MODE/stepN-NAME-HASH``.

        Args:
            mode: the job's.
            name: the settings in short.
            settings: the job's own group of the config; with ``config.sample`` and the step it decides the results.
        """
        decides = {
            "checkpoint_step": self.pipe.step,
            "sample": {key: getattr(self.config.sample, key) for key in _DECIDING},
            "settings": None if settings is None else dataclasses.asdict(settings),
        }
        return job_dir(self.workdir, mode, f"step{self.pipe.step}-{name}", decides)

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
            device=parallel.device_description(),
            seconds=round(time.perf_counter() - self.started, 3),
            **facts,
        )


def sampler_name(sample: SampleConfig) -> str:
    """The sampler in short, for names of folders: e.g. ``ddim-S50-eta0``."""
    steps = len(sample.levels) or sample.steps
    noise = f"-eta{sample.eta:g}" if takes_eta(sample.sampler) and not sample.eta_per_step else ""
    return f"{sample.sampler}-S{steps}{noise}"
