"""Where the images of a table's rows come from: a model's checkpoints, drawn, or a set made elsewhere."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.conditions import DataCondition
from ddim_jax.config import Config
from ddim_jax.configured import build_normalization, build_sampler
from ddim_jax.errors import UserError
from ddim_jax.measuring.figures import fields_needed
from ddim_jax.measuring.image_sets import ImageSet, open_image_set, spread_indices
from ddim_jax.measuring.perceptual import PerceptualDistance
from ddim_jax.measuring.wanted import Known, Wanted
from ddim_jax.models import build_model
from ddim_jax.sampling.condition_sets import Conditions, ConditionSet
from ddim_jax.sampling.conditions import enlarged
from ddim_jax.sampling.image_sampler import ImageSampler, batch_size_for, image_labels
from ddim_jax.sampling.tuned_steps import with_tuned
from ddim_jax.tables.rows import Row, images_row, model_rows
from ddim_jax.training.averages import Plan, averaged_variables, plan_average
from ddim_jax.training.checkpoint import Checkpoints, select_weights
from ddim_jax.training.checksums import digest_of_weights
from ddim_jax.training.guide import with_guide
from ddim_jax.training.state import TrainState, abstract_state, make_optimizer
from ddim_jax.workdir import best_dir, checkpoint_dir, config_for_job

# Read at a time, of a set made elsewhere.
_READ_AT_ONCE = 64


class RowBatch(NamedTuple):
    """Images of a row.

    Attributes:
        index: int64 [b].
        image: [b, h, w, c], of the data's type.
        seconds: that drawing them took; None where that is not known.
        wanted: what they should be, as far as it is known and needed.
    """

    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]
    image: np.ndarray
    seconds: float | None
    wanted: Wanted = Wanted()


class RowImages(Protocol):
    """Images of rows.

    Attributes:
        name: of the model or the set.
        rows: all rows asked for.
        num: images of each row.
        shape: of an image, [h, w, c].
        known: what batches say of what the images should be.
        drawn_from: says which conditions images are drawn from, as JSON's types; None where a class says it all.
    """

    name: str
    rows: list[Row]
    num: int
    shape: tuple[int, int, int]
    known: Known
    drawn_from: dict[str, Any] | None

    def batches(self, row: Row, indices: np.ndarray) -> Iterator[RowBatch]:
        """Yields the images of these indices, in this order."""
        ...

    def evaluations(self, row: Row) -> int | None:
        """Returns the network evaluations per image; None where no network is evaluated."""
        ...

    def weights(self) -> dict[str, Any]:
        """Says what draws the images, as JSON's types: by checkpoint, the SHA-256 of its weights; of a set, its own."""
        ...


def row_images(config: Config, workdir: epath.PathLike) -> tuple[Config, RowImages]:
    """Finds what is to be measured; returns the config of the job with it."""
    if config.eval.images:
        return config, _FoundImages(open_image_set(config.eval.images, config.data), config)
    config = config_for_job(workdir, config)
    return config, _ModelImages(config, workdir)


class _ModelImages:
    """Images of a model's checkpoints, drawn."""

    def __init__(self, config: Config, workdir: epath.PathLike) -> None:
        config, self._guide = with_guide(config)
        self.name = epath.Path(workdir).absolute().name
        self.num = config.eval.num
        self.shape = config.data.image_shape
        self._config = config
        self._conditions = ConditionSet.of(config)
        if self._conditions is not None:
            _check_num(config, self._conditions)
        fields = self._known_fields() & fields_needed(config.eval)
        self.known = Known(
            fields, build_normalization(config), _perceptual(config) if "truth" in fields else None, self.shape
        )
        self.drawn_from: dict[str, Any] | None = None
        if self._conditions is not None:
            self.drawn_from = {**self._conditions.identity(), "per_condition": config.sample.per_condition}
        self._model = build_model(config)
        self._like = abstract_state(config, self._model, make_optimizer(config.train, 1))
        self._workdir = workdir
        self._plans: dict[tuple[int, float], Plan] = {}
        self._loaded: tuple[tuple[int, float], Any] | None = None
        self._checkpoints = self._found(workdir)
        self.rows = model_rows(
            config,
            self._checkpoints,
            lambda config, step: with_tuned(
                config, workdir, step, self._guide, self._average_of(step, config.sample.ema_width)
            ),
            self._average_of,
            None if self._guide is None else self._guide.sha256,
        )
        self._batch_size = batch_size_for(config, -(-self.num // parallel.process_count()))
        self._samplers: list[ImageSampler] = []
        for row in self.rows:
            # Settings that cannot be used are refused before the first row is drawn.
            build_sampler(self._drawing(row))

    def _found(self, workdir: epath.PathLike) -> dict[int, epath.Path]:
        """Finds the checkpoints asked for; the latest is the newest that is whole, known once it has been read."""
        names = self._config.eval.checkpoints
        found = checkpoint_steps(workdir, names)
        if "latest" not in names:
            return found
        with Checkpoints(checkpoint_dir(workdir), read_only=True) as checkpoints:
            if not checkpoints.steps():
                return found
            latest, state = checkpoints.restore_newest(self._like, together=True)
        widths = self._config.eval.ema_widths or (self._config.sample.ema_width,)
        self._average_of(latest, widths[0])
        self._keep((latest, widths[0]), state)
        return checkpoint_steps(workdir, [str(latest) if name == "latest" else name for name in names])

    def _average_of(self, step: int, width: float) -> dict[str, Any] | None:
        """Plans the average of a row; returns what it is made of."""
        if not width:
            return None
        if (step, width) not in self._plans:
            self._plans[step, width] = plan_average(self._workdir, self._config, step, width)
        return self._plans[step, width].record

    def batches(self, row: Row, indices: np.ndarray) -> Iterator[RowBatch]:
        """Draws a batch at a time: not ahead, so that its time is that of drawing alone."""
        variables, sampler = self._variables(row), self._sampler(row)
        sampler.compile(variables)
        # What fits in memory for one sampler fits for the next.
        self._batch_size = dataclasses.replace(self._batch_size, size=sampler.batch_size)
        per_call = sampler.batch_size * len(parallel.local_devices())
        for start in range(0, len(indices), per_call):
            chosen = indices[start : start + per_call]
            conditions = None if self._conditions is None else self._conditions.read(chosen)
            started = time.perf_counter()
            images = sampler.draw(variables, chosen, None if conditions is None else conditions.told)
            yield RowBatch(chosen, images, time.perf_counter() - started, self._wanted(chosen, conditions))

    def _known_fields(self) -> frozenset[str]:
        known = {"label"} if "class" in self._config.model.kinds else set()
        if self._conditions is not None and self._conditions.has_truth:
            known.add("truth")
            if "image" in self._config.model.kinds and self._config.data.condition == "downsample":
                known.add("baseline")
        return frozenset(known)

    def _wanted(self, indices: np.ndarray, conditions: Conditions | None) -> Wanted:
        if conditions is None:
            conditions = Conditions(DataCondition(image_labels(self._config, indices)), None)
        known = {
            "truth": lambda: conditions.truth,
            "baseline": lambda: enlarged(self._config, conditions.told.picture),
            "label": lambda: conditions.told.label,
        }
        return Wanted(**{field: known[field]() for field in self.known.fields})

    def evaluations(self, row: Row) -> int:
        return build_sampler(self._drawing(row)).evaluations

    def weights(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for row in self.rows:
            assert row.sample is not None, "a row of a model"
            step, width = row.columns["checkpoint"], row.sample.ema_width
            name = f"{step}, ema_width {width:g}" if width else str(step)
            if name not in found:
                values = parallel.host_copy(self._variables(row))
                found[name] = {"sha256": digest_of_weights(values), "ema": self._config.sample.ema}
        if self._guide is not None:
            found["guide"] = {"step": self._guide.step, "sha256": self._guide.sha256}
        return found

    def _drawing(self, row: Row) -> Config:
        assert row.sample is not None, "a row of a model"
        return dataclasses.replace(self._config, sample=row.sample)

    def _sampler(self, row: Row) -> ImageSampler:
        """Returns the row's sampler; its program serves all rows, checkpoints and seeds that are but data to it."""
        drawing = self._drawing(row)
        for sampler in self._samplers:
            if sampler.may_draw(drawing.sample):
                return sampler.with_settings(drawing.sample)
        self._samplers.append(ImageSampler(drawing, self._model, self._batch_size, self._guide))
        return self._samplers[-1]

    def _variables(self, row: Row) -> Any:
        """Loads a row's weights to all devices of this process; those of one row are kept."""
        assert row.sample is not None, "a row of a model"
        which = row.columns["checkpoint"], row.sample.ema_width
        if self._loaded is None or self._loaded[0] != which:
            self._loaded = None
            with Checkpoints(self._checkpoints[which[0]], read_only=True) as checkpoints:
                state = checkpoints.restore(which[0], self._like)
            self._keep(which, state)
        assert self._loaded is not None, "just loaded"
        return self._loaded[1]

    def _keep(self, which: tuple[int, float], state: TrainState) -> None:
        """Puts the weights of a checkpoint, averaged with a width, on the devices."""
        plan = self._plans.get(which)
        variables = (
            select_weights(state, self._config.sample.ema)
            if plan is None
            else averaged_variables(self._workdir, self._config, state, plan)
        )
        self._loaded = (which, parallel.replicate(variables, parallel.local_devices()))


def _perceptual(config: Config) -> PerceptualDistance | None:
    settings = config.eval
    if "lpips" not in settings.metrics or not settings.lpips_path:
        return None
    return PerceptualDistance(settings.lpips_path, config.data.image_shape, settings.batch_size)


def _check_num(config: Config, conditions: ConditionSet) -> None:
    """Refuses more images than there are conditions to draw them from, before any is drawn."""
    most = len(conditions) * config.sample.per_condition
    if config.eval.num > most:
        raise UserError(
            f"eval.num={config.eval.num}: {conditions.name} holds {len(conditions):,} conditions to draw images from; "
            f"set eval.num to {most} or less, or draw more of each by sample.per_condition"
        )


def checkpoint_steps(workdir: epath.PathLike, names: Sequence[str]) -> dict[int, epath.Path]:
    """Finds the checkpoints that ``eval.checkpoints`` names: by step, oldest first, the folder that holds them.

    Args:
        workdir: with ``checkpoints/STEP/`` and, where a run kept its best one, ``best/STEP/``.
        names: ``all``, ``latest``, ``best``, or steps.

    Raises:
        UserError: there is no such checkpoint.
    """
    regular = _steps_in(checkpoint_dir(workdir))
    best = _steps_in(best_dir(workdir)) if "best" in names else []
    if not regular and not best:
        raise UserError(f"no checkpoint in workdir {workdir}: train there first, or name another --workdir")
    chosen: set[int] = set()
    for name in names:
        if name == "all":
            chosen |= set(regular)
        elif name == "latest":
            chosen |= set(regular[-1:])
        elif name == "best":
            if not best:
                raise UserError(f"eval.checkpoints: {workdir} keeps no best checkpoint; name latest, all or a step")
            chosen.add(best[-1])
        elif int(name) in regular:
            chosen.add(int(name))
        else:
            there = ", ".join(map(str, regular))
            raise UserError(f"eval.checkpoints: no checkpoint of step {name} in {workdir}; there are: {there}")
    return {step: checkpoint_dir(workdir) if step in regular else best_dir(workdir) for step in sorted(chosen)}


def _steps_in(directory: epath.Path) -> list[int]:
    if not directory.exists():
        return []
    with Checkpoints(directory, read_only=True) as checkpoints:
        return checkpoints.steps()


class _FoundImages:
    """Images made elsewhere: one row."""

    def __init__(self, images: ImageSet, config: Config) -> None:
        self.name = images.name
        self.num = min(config.eval.num, len(images))
        if self.num < 2:
            raise UserError(f"eval.images={images.name} holds {len(images)} image; 2 are needed at least")
        self.rows = [images_row(images.name, images.identity)]
        height, width, channels = images.load(np.zeros(1, np.int64)).image.shape[1:]
        self.shape = (height, width, channels)
        self.known = Known(normalization=build_normalization(config), shape=self.shape)
        self.drawn_from: dict[str, Any] | None = None
        self._images = images
        self._chosen = spread_indices(len(images), self.num)

    def batches(self, row: Row, indices: np.ndarray) -> Iterator[RowBatch]:
        del row
        for loaded in self._images.batches(self._chosen[indices], _READ_AT_ONCE):
            yield RowBatch(np.searchsorted(self._chosen, loaded.index), loaded.image, None)

    def evaluations(self, row: Row) -> None:
        del row

    def weights(self) -> dict[str, Any]:
        return {"images": self._images.identity}
