"""Which checkpoint draws best: samples measured while training goes on, and the best state kept."""

import concurrent.futures
import json
from typing import Any

import numpy as np
from etils import epath

from ddim_jax import names, parallel
from ddim_jax.conditions import DataCondition
from ddim_jax.config import Config, Role, SampleConfig, deciding_values, keys_with
from ddim_jax.configured import Guide
from ddim_jax.errors import UserError
from ddim_jax.files import write_whole
from ddim_jax.measuring.extractor import Extractor
from ddim_jax.measuring.extractors import make_extractor
from ddim_jax.measuring.figures import METRICS, Figure, computed_by
from ddim_jax.measuring.measurement import Measurement
from ddim_jax.measuring.reference import reference_for, values_of
from ddim_jax.measuring.reference_file import Reference
from ddim_jax.models import Model
from ddim_jax.one_writer import Writing
from ddim_jax.records import read_if_sound
from ddim_jax.sampling.image_sampler import sampler_for
from ddim_jax.training.checkpoint import Checkpoints, select_weights
from ddim_jax.training.state import TrainState
from ddim_jax.workdir import best_dir, best_record_path
from ddim_jax.writers import MetricWriter, say

# Of what figures must share, what the records of earlier versions do not say.
_LATER = ("drawn_by", "computed_by", "reference_values")


class BestCheckpoint:
    """Measures ``train.measure_num`` samples on a schedule, and keeps the state with the best ``train.measure_metric``.

    The devices are held up for drawing the images and extracting their features alone: the figures, which take the
    host seconds of linear algebra, are computed beside the next training steps. Process 0 does all of this.

    The state goes to ``WORKDIR/best/STEP/``, what was measured to ``WORKDIR/best.json``.
    """

    def __init__(
        self,
        config: Config,
        model: Model,
        workdir: epath.PathLike,
        writing: Writing,
        condition: DataCondition | None = None,
        guide: Guide | None = None,
    ) -> None:
        """Gets extractor, reference and sampler ready, which may take a while.

        Args:
            config: the run.
            model: the network.
            workdir: where it is written.
            writing: what this job has that alone may write there.
            condition: what the samples are drawn from, where the network knows more than classes.
            guide: of ``sample.guide_workdir``.

        Raises:
            UserError: a setting of ``sample`` or ``eval`` that cannot be used, or weights that cannot be had.
        """
        train = config.train
        self._num = train.measure_num
        self._settings = config.eval
        self._sampler = sampler_for(config, model, self._num, guide)
        self._condition = condition
        self._ema = config.sample.ema
        self._drawn_by = deciding_values(config.sample, keys_with(SampleConfig, Role.PIXELS))
        if guide is not None:
            self._drawn_by["guide"] = guide.sha256
        self._extractor = make_extractor(config)
        self._reference = reference_for(config, self._extractor)
        figure = deciding_figure(train.measure_metric, self._extractor, self._reference)
        self._figure = figure.name_with(self._extractor.prefix)
        self._higher_is_better = bool(figure.higher_is_better)
        self._workdir = workdir
        self._writing = writing
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: tuple[int, TrainState, concurrent.futures.Future[dict[str, float]]] | None = None
        self._checkpoints = Checkpoints(best_dir(workdir), keep_last=1)
        self._measured = self._measured_before()

    def _measured_before(self) -> dict[str, float]:
        """Reads the figures of an earlier start of this run, by step; none if they cannot be compared with ours."""
        path = best_record_path(self._workdir)
        if not path.exists():
            return {}
        record = read_if_sound(path, {"best_step": int, "measured": dict})
        if record is None or not _are_figures(record["measured"]):
            say(f"{path} is damaged; the best checkpoint is looked for anew")
            return {}
        ours = json.loads(json.dumps(self._settings_record()))
        ours = {key: value for key, value in ours.items() if key in record or key not in _LATER}
        if any(record.get(key) != value for key, value in ours.items()):
            say(f"{path} holds figures of other settings; the best checkpoint is looked for anew")
            return {}
        measured = record["measured"]
        is_whole = str(record["best_step"]) in measured and record["best_step"] in self._checkpoints.steps()
        return measured if is_whole else {}

    def _settings_record(self) -> dict[str, Any]:
        """Returns what figures must share to be compared."""
        return {
            "figure": self._figure,
            "images": self._num,
            "extractor": self._extractor.provenance,
            "reference": self._reference.provenance,
            "drawn_by": self._drawn_by,
            "computed_by": computed_by(self._settings),
            "reference_values": None if self._reference.provenance else values_of(self._reference),
        }

    def measure_if_missing(self, step: int, state: TrainState, writer: MetricWriter) -> None:
        """Measures this state now, unless it has been."""
        if str(step) not in self._measured:
            self.measure(step, state, writer)
            self.collect(writer, wait=True)

    def measure(self, step: int, state: TrainState, writer: MetricWriter) -> None:
        """Draws images of this state; its figures follow with :meth:`collect`."""
        self.collect(writer, wait=True)
        kept: Any = parallel.host_copy(state)
        measurement = Measurement(self._extractor, self._settings, self._num)
        weights = select_weights(kept, self._ema)
        for indices, images in self._sampler.batches(weights, range(self._num), self._condition):
            measurement.update(indices, images)
        self._pending = (step, kept, self._pool.submit(measurement.figures, self._reference))

    def collect(self, writer: MetricWriter, wait: bool = False) -> None:
        """Writes the figures if they are ready, and the state if it is the best.

        Args:
            writer: where the figures go, as ``sample_FIGURE``.
            wait: wait for them.
        """
        if self._pending is None or not (wait or self._pending[2].done()):
            return
        (step, state, future), self._pending = self._pending, None
        figures = future.result()
        self._writing.check()
        writer.scalars(step, {f"sample_{name}": value for name, value in figures.items()})
        value = figures[self._figure]
        if not np.isfinite(value):
            say(f"step {step:,}: {self._figure} of the samples is {value}; it counts as not measured")
            return
        if not self._measured or self._better(value, self._best_value()):
            self._checkpoints.save(step, state)
            self._checkpoints.wait()
            say(f"step {step:,} has the best {self._figure} of {self._num:,} samples so far: {value:.4g}")
        self._measured[str(step)] = value
        best_step = next(int(step) for step, found in self._measured.items() if found == self._best_value())
        record = {"best_step": best_step, "measured": self._measured, **self._settings_record()}
        writer.flush()  # what the record counts as measured is written nowhere again
        write_whole(best_record_path(self._workdir), json.dumps(record, indent=2) + "\n")

    def close(self) -> None:
        """Gives up what is still being computed."""
        self._pool.shutdown(cancel_futures=True)
        self._checkpoints.close()

    def _best_value(self) -> float:
        values = list(self._measured.values())
        return max(values) if self._higher_is_better else min(values)

    def _better(self, value: float, other: float) -> bool:
        return value > other if self._higher_is_better else value < other


def _are_figures(measured: dict[str, Any]) -> bool:
    numbers = all(type(value) in (int, float) and np.isfinite(value) for value in measured.values())
    return numbers and all(step.isascii() and step.isdigit() for step in measured)


def check_metric(config: Config) -> None:
    """Refuses a metric that cannot say which checkpoint is better: before any data are opened.

    Raises:
        UserError: ``train.measure_metric`` is such a metric, and checkpoints are to be measured.
    """
    name = config.train.measure_metric
    if config.train.measure_every and names.lookup(METRICS, name, "metric").deciding is None:
        deciding = ", ".join(other for other, row in METRICS.items() if row.deciding)
        raise UserError(
            f"train.measure_metric={name}: none of its figures alone says which is better; choose from: {deciding}"
        )


def deciding_figure(name: str, extractor: Extractor, reference: Reference) -> Figure:
    """Returns the figure by which a metric says which checkpoint is better.

    Args:
        name: the metric's, one that :func:`check_metric` lets pass.
        extractor: what images are compared by.
        reference: what they are compared with.

    Raises:
        UserError: it cannot be had with this extractor and reference.
    """
    metric = names.lookup(METRICS, name, "metric")
    obstacle = metric.obstacle(extractor, reference)
    if metric.deciding is not None and not obstacle:
        return metric.deciding
    usable = [other for other, row in METRICS.items() if row.deciding and not row.obstacle(extractor, reference)]
    raise UserError(f"train.measure_metric={name}: {obstacle}; use {usable[0]}")
