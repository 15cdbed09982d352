"""The pictures that a training run draws on the way and at its end."""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.conditions import DataCondition
from ddim_jax.config import Config, Role, SampleConfig, deciding_values, keys_with
from ddim_jax.configured import Guide, pictures
from ddim_jax.data.batch_order import steps_for_epochs
from ddim_jax.data.reading import load_images
from ddim_jax.data.sources import Source
from ddim_jax.digests import digest_of_facts
from ddim_jax.images import as_rgb, grid, labelled_rows, png_note, png_shape, save_png
from ddim_jax.models import Model
from ddim_jax.sampling.conditions import condition_of_images
from ddim_jax.sampling.image_sampler import sampler_for
from ddim_jax.training.checkpoint import select_weights
from ddim_jax.training.groups import is_due
from ddim_jax.training.pixel_figures import PixelFigures, figures_of_data, pixel_figures
from ddim_jax.training.state import TrainState
from ddim_jax.workdir import sample_grid_path
from ddim_jax.writers import MetricWriter, say

# Images in a row of a picture that compares checkpoints.
_IN_A_ROW = 16


class TrainingPictures:
    """Grids of images drawn from fixed noise, so that successive pictures show the same images improving."""

    def __init__(
        self,
        config: Config,
        model: Model,
        workdir: epath.Path,
        total_steps: int,
        num_examples: int,
        condition: DataCondition | None = None,
        guide: Guide | None = None,
        of_data: PixelFigures | None = None,
    ) -> None:
        """Makes the samplers.

        Args:
            config: the run.
            model: the network.
            workdir: where it is written.
            total_steps: number of steps when it is done.
            num_examples: number of training images, which says how many steps an epoch has.
            condition: what the images are drawn from, where the network knows more than classes, see
                :func:`condition_of_examples`.
            guide: of ``sample.guide_workdir``.
            of_data: figures of the training images, which those of samples are written beside.

        Raises:
            UserError: settings of ``config.sample`` that cannot be used.
        """
        self._config = config
        self._workdir = workdir
        self._total_steps = total_steps
        self._num_examples = num_examples
        # Made now, though compiled when first used: a mistake in config.sample must not wait for the first picture.
        num = config.train.sample_num
        self._sampler = sampler_for(config, model, num, guide)
        self._condition = condition
        self._of_data = of_data
        self._guide = None if guide is None else guide.sha256
        # Whatever the number of steps, it is the same program.
        self._final_samplers = [
            self._sampler.with_settings(
                dataclasses.replace(config.sample, sampler="ddim", steps=steps, eta_per_step=())
            )
            for steps in config.train.final_sample_steps
        ]

    def due_after(self, steps: range) -> str | None:
        """What the name of the picture due after a group of steps ends with; None where none is."""
        train = self._config.train
        if train.sample_every_epochs:
            ends = (_epochs_at(self._config, self._num_examples, step) for step in reversed(steps))
            epochs = next((end for end in ends if end is not None), None)
            return None if epochs is None else f"_epoch_{epochs:04g}"
        return "" if is_due(train.sample_every, steps) and steps[-1] != self._total_steps else None

    def draw(self, step: int, state: TrainState, writer: MetricWriter, suffix: str = "") -> None:
        """Draws ``samples/step_NNNNNNNN{suffix}.png`` with the settings of ``config.sample``; process 0 alone."""
        if not parallel.is_main_process():
            return
        images = self._sampler.draw(self._weights(state), range(self._config.train.sample_num), self._condition)
        self._write_figures(step, images, writer)
        picture = grid(pictures(self._config, images))
        save_png(sample_grid_path(self._workdir, step, suffix), picture)
        writer.image(step, "samples", picture)

    def draw_if_missing(self, steps: range, state: TrainState, writer: MetricWriter) -> None:
        """Draws what was due after a group of steps, at which a run was stopped before it could."""
        suffix = self.due_after(steps)
        if suffix is not None and png_shape(sample_grid_path(self._workdir, steps[-1], suffix)) is None:
            self.draw(steps[-1], state, writer, suffix)

    def _write_figures(self, step: int, images: np.ndarray, writer: MetricWriter) -> None:
        """Writes the figures of images, before their picture: what is there is not drawn again."""
        of_data = {} if self._of_data is None else self._of_data.named("data")
        writer.scalars(step, {**pixel_figures(self._config, images).named("sample"), **of_data})

    def of_other_steps(self, steps: int, total_steps: int) -> Self:
        """The pictures of a part of the run: images in ``steps`` steps, until training step ``total_steps``."""
        other = copy.copy(self)
        other._total_steps = total_steps
        other._sampler = self._sampler.with_settings(dataclasses.replace(self._config.sample, steps=steps))
        return other

    def draw_rows(
        self,
        name: str,
        rows: Sequence[tuple[str, int, int]],
        restore: Callable[[int], TrainState],
        writer: MetricWriter,
    ) -> None:
        """Draws ``samples/NAME.png`` unless it is there: rows of images of the same noise, from several checkpoints.

        What is there of other settings is drawn anew.

        All processes of the run call this, since they restore a checkpoint together; process 0 draws.

        Args:
            name: of the picture.
            rows: of each what is said of it, the step of its checkpoint, and its sampling steps.
            restore: from step to state.
            writer: where it is shown, too.
        """
        path, note = self._rows_path(name), self._note([list(row) for row in rows])
        num = min(_IN_A_ROW, self._config.train.sample_num)
        condition = jax.tree.map(lambda x: x[:num], self._condition)
        drawn = []
        for label, step, steps in rows if parallel.value_of_main_process(not _is_drawn(path, note)) else ():
            state = restore(step)
            if parallel.is_main_process():
                sampler = self.of_other_steps(steps, step)._sampler
                drawn.append((label, pictures(self._config, sampler.draw(self._weights(state), range(num), condition))))
        if drawn:
            picture = labelled_rows(drawn, columns=num)
            save_png(path, picture, note)
            writer.image(rows[-1][1], name, as_rgb(picture))
        if parallel.is_main_process():
            say(f"wrote {path}")

    def remove_rows(self, name: str) -> None:
        """Removes what :meth:`draw_rows` has drawn before there was more to show."""
        self._rows_path(name).unlink(missing_ok=True)

    def _rows_path(self, name: str) -> epath.Path:
        return self._workdir / "samples" / f"{name}.png"

    def draw_final(self, state: TrainState, writer: MetricWriter) -> None:
        """Draws one picture with a grid for each of ``train.final_sample_steps``, and says where it is.

        Those that are there of the same settings are left as they are, and those of other steps.
        """
        step = int(parallel.host_copy(state.step))
        path = sample_grid_path(self._workdir, step)
        wanted = {
            sample_grid_path(self._workdir, step, f"_ddim_{sampler.config.sample.steps}")
            for sampler in self._final_samplers
        }
        num, note = self._config.train.sample_num, self._note(self._config.train.final_sample_steps)
        if self._final_samplers and not all(_is_drawn(each, note) for each in (path, *wanted)):
            weights = parallel.replicate(self._weights(state), parallel.local_devices())
            rows = []
            for sampler in self._final_samplers:
                steps = sampler.config.sample.steps
                drawn_images = sampler.draw(weights, range(num), self._condition)
                if sampler is self._final_samplers[-1]:
                    self._write_figures(step, drawn_images, writer)
                images = pictures(self._config, drawn_images)
                rows.append((f"DDIM, {sampler.evaluations} steps, eta {self._config.sample.eta:g}", images))
                save_png(sample_grid_path(self._workdir, step, f"_ddim_{steps}"), grid(images), note)
            picture = labelled_rows(rows, columns=max(1, min(16, num // 2)))
            save_png(path, picture, note)
            writer.image(step, "samples", as_rgb(picture))
        say(f"done: {step:,} steps")
        of_other_steps = {*path.parent.glob(f"{path.stem}_ddim_*.png")} - wanted
        for picture_path in sorted({*path.parent.glob(f"{path.stem}*.png")} - of_other_steps):
            say(f"wrote {picture_path}")

    def _note(self, shown: Any) -> str:
        """What stands for the settings of a picture."""
        facts = {
            "shown": shown,
            "sample": deciding_values(self._config.sample, keys_with(SampleConfig, Role.PIXELS)),
            "num": self._config.train.sample_num,
            "channels": self._config.data.shown_channels,
            "guide": self._guide,
        }
        return digest_of_facts(facts)

    def _weights(self, state: TrainState) -> Any:
        return select_weights(parallel.host_copy(state), self._config.sample.ema)


def _is_drawn(path: epath.Path, note: str) -> bool:
    """Whether a picture is there, whole and of these settings; those of earlier versions do not say of which."""
    return png_shape(path) is not None and png_note(path) in ("", note)


def data_figures_for(config: Config, source: Source) -> PixelFigures | None:
    """Figures of the training images, where this process draws pictures of samples.

    Raises:
        UserError: an image cannot be read.
    """
    train = config.train
    draws = train.sample_every or train.sample_every_epochs or train.final_sample_steps
    return figures_of_data(config, source) if draws and parallel.is_main_process() else None


def condition_of_examples(config: Config, source: Source, num: int) -> DataCondition | None:
    """What ``num`` images are drawn from, where the network knows more than classes: that of the source's first ones.

    Args:
        config: the run.
        source: the examples; they begin again where there are fewer.
        num: number of images.

    Raises:
        UserError: an example cannot be read, or has not what the network is told.
    """
    if all(kind == "class" for kind in config.model.kinds):
        return None
    images = load_images(source, config.data, np.arange(min(num, len(source))))
    rows = np.resize(np.arange(len(images.image)), num)
    return jax.tree.map(lambda x: x[rows], condition_of_images(config, images))


def _epochs_at(config: Config, num_examples: int, step: int) -> float | None:
    """How many epochs a step completes, if ``train.sample_every_epochs`` asks for a picture after it; else None."""
    every, batch_size = config.train.sample_every_epochs, config.train.batch_size

    def end(count: int) -> int:
        return steps_for_epochs(num_examples, batch_size, count * every)

    # The last picture that is due by then; floats may be one off.
    count = math.floor(step * batch_size / (num_examples * every)) + 1
    while count > 0 and end(count) > step:
        count -= 1
    return count * every if count > 0 and end(count) == step else None
