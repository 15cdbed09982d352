"""What a student learns in a training step, and what it begins a round with."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddim_jax.config import Config, with_values
from ddim_jax.configured import build_normalization, build_predict, build_schedule
from ddim_jax.diffusion import losses
from ddim_jax.diffusion.consistency import ask, consistency_loss, draw_pairs, huber_constant
from ddim_jax.diffusion.distillation import (
    TwoSteps,
    distillation_loss,
    draw_steps,
    padded_to,
    rows_of,
    single_steps,
    target_image,
    two_steps,
)
from ddim_jax.diffusion.objectives import Prediction
from ddim_jax.diffusion.prediction import Question, per_image, to_prediction
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels
from ddim_jax.models import Model
from ddim_jax.pixels import to_float
from ddim_jax.random_streams import Stream, example_keys, normal_each, root_key
from ddim_jax.training.conditions import batch_condition, undropped_condition
from ddim_jax.training.state import TrainState, fresh_optimizer_state
from ddim_jax.training.step import BatchLosses, Losses, Network
from ddim_jax.training.students import SPACING, Round


class Lesson(NamedTuple):
    """What a round's training steps are given beside their batches: data of the program, the same for all of them.

    Attributes:
        teacher: the teacher's variables; None where it is not asked.
        number: of the progressive method: steps that the student has; of the others: the stage, from 0.
        steps: of the progressive method: which of the teacher's steps are learned as one; padded to the same rows in
            all rounds. Else None.
    """

    teacher: Any
    number: Any
    steps: TwoSteps | None


def lesson_of(config: Config, round_: Round, teacher: Any) -> Lesson:
    """The lesson of a round.

    Args:
        config: the student's.
        round_: the round.
        teacher: variables of the network that it learns from; None where it is not asked.
    """
    if round_.number and not config.distill.is_progressive:
        return Lesson(teacher, np.int32(round_.number - 1), None)
    schedule = build_schedule(config)
    levels = sampling_levels(SPACING, schedule.num_levels, teacher_steps(config, round_), schedule)
    steps = (two_steps if round_.number else single_steps)(schedule, level_pairs(levels))
    rows = config.distill.first_steps if config.distill.is_progressive else len(steps.time)
    of_program = TwoSteps(*(column.astype(np.float32) for column in padded_to(steps, rows)))
    return Lesson(teacher, np.int32(len(steps.time)), of_program)


# At so many levels a student of consistency learns first to predict something else.
_LEVELS_OF_CONVERSION = 1000


def teacher_steps(config: Config, round_: Round) -> int:
    """Steps of the teacher of a round."""
    if not config.distill.is_progressive:
        return min(_LEVELS_OF_CONVERSION, config.diffusion.num_levels)
    return config.distill.first_steps >> max(0, round_.number - 1)


def teacher_config(config: Config, round_: Round) -> Config:
    """How the teacher of a round predicts: ``distill.teacher``, guided, in the first; the student in those after it.

    In consistency distillation the first teacher is that of all rounds.
    """
    if round_.begins and config.distill.is_progressive:
        return config
    distill = config.distill
    told = {
        "diffusion.objective": distill.teacher_objective,
        "sample.guidance_scale": distill.guidance_scale,
        "sample.guidance_levels": distill.guidance_levels,
        "distill.guidance_scale": 1.0,  # which no config has beside that of sample
    }
    return with_values(config, told)


def begin_round(state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
    """The state that a round of progressive distillation begins with: the averages of the one before, and nothing else.

    Optimiser, learning rate and averages start anew, as in Salimans and Ho's algorithm 2, where each student begins as
    a copy of its teacher.
    """
    return dataclasses.replace(
        state,
        params=state.ema_params,
        batch_stats=state.ema_batch_stats,
        opt_state=fresh_optimizer_state(optimizer, state.ema_params, 0),
    )


def optimizer_steps(config: Config) -> int:
    """Training steps that the learning rate takes to fall to 0."""
    return config.distill.updates if config.distill.is_progressive else config.train.steps


def step_in_schedule(config: Config, done: Any) -> Any:
    """Steps of that, from steps of the run."""
    return done % config.distill.updates if config.distill.is_progressive else done


def same_program(config: Config, one: Round, other: Round) -> bool:
    """Whether the program of one round serves another."""
    if bool(one.number) != bool(other.number):
        return False
    return not config.distill.is_progressive or teacher_config(config, one) == teacher_config(config, other)


def losses_of_round(config: Config, model: Model, round_: Round) -> BatchLosses:
    """What a round learns, of a batch, a step and a :class:`Lesson`."""
    return (progressive_losses if config.distill.is_progressive or not round_.number else consistency_losses)(
        config, model, round_
    )


def progressive_losses(config: Config, model: Model, round_: Round) -> BatchLosses:
    """Builds the losses of a round of progressive distillation, of a batch, a step and a :class:`Lesson`.

    The program of a round serves those after it, where they have the same kind of teacher.
    """
    distill = config.distill
    of_teacher = teacher_config(config, round_)
    example = _Examples(config)

    def batch_losses(network: Network, batch: Any, step: jax.Array, lesson: Lesson) -> tuple[Losses, Any]:
        key = jax.random.fold_in(root_key(config.seed, Stream.TIME), step)
        assert lesson.steps is not None, "of this method"
        which = draw_steps(key, batch.index, config.train.batch_size, lesson.number)
        row = rows_of(lesson.steps, which)
        x0, eps = example.image_and_noise(batch, step)
        x = losses.diffuse(x0, eps, row.alpha_bar)
        condition = example.condition(batch, step)
        teacher = build_predict(of_teacher, model, lesson.teacher, condition, config.sample.clip, times_differ=True)
        target = target_image(teacher, x, row, is_single=not round_.number)
        prediction, extra = example.ask(network, x, row.time, row.alpha_bar, condition)
        loss = distillation_loss(prediction, target, row.alpha_bar, distill.weight)
        quartile = 3 - 4 * which // lesson.number  # the first step is the noisiest
        return Losses(loss, losses.example_loss(prediction.x0, x0, config.diffusion.loss), quartile), extra

    return batch_losses


def consistency_losses(config: Config, model: Model, round_: Round) -> BatchLosses:
    """Builds the losses of consistency distillation, or easy consistency tuning, which has no teacher.

    One program serves all rounds, which differ in how far the compared points are apart.
    """
    distill = config.distill
    # By what images in [-1, 1] were divided.
    sigma_data = 2 * float(np.mean(config.data.std))
    of_teacher = teacher_config(config, round_)
    example, schedule = _Examples(config), build_schedule(config)
    # Of the log of noise to signal.
    between = losses.normal_quantile(
        np.array([0.25, 0.5, 0.75]), distill.noise_mean - math.log(sigma_data), distill.noise_std
    )
    c = distill.huber or huber_constant(math.prod(config.data.image_shape), sigma_data)

    def batch_losses(network: Network, batch: Any, step: jax.Array, lesson: Lesson) -> tuple[Losses, Any]:
        key = jax.random.fold_in(root_key(config.seed, Stream.TIME), step)
        pairs = draw_pairs(schedule, key, batch.index, lesson.number, sigma_data, distill.noise_mean, distill.noise_std)
        x0, eps = example.image_and_noise(batch, step)
        condition = example.condition(batch, step)
        answers = []

        def student(x: jax.Array, asked: Question) -> Prediction:
            answers.append(example.ask(network, x, asked.time, asked.alpha_bar, condition))
            return answers[-1][0]

        teacher = None
        if lesson.teacher is not None:
            clip = config.sample.clip
            teacher = build_predict(of_teacher, model, lesson.teacher, condition, clip, times_differ=True)
        loss = consistency_loss(student, x0, eps, *ask(schedule, pairs), pairs.gap, c, teacher)
        prediction, extra = answers[-1]  # about the noisier of the two
        alpha_bar, _ = schedule.at(pairs.level)
        quartile = losses.quartile_of((jnp.log1p(-alpha_bar) - jnp.log(alpha_bar)) / 2, between)
        return Losses(loss, losses.example_loss(prediction.x0, x0, config.diffusion.loss), quartile), extra

    return batch_losses


class _Examples:
    """What all methods do with a batch."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._schedule: Schedule = build_schedule(config)
        self._normalization = build_normalization(config)

    def image_and_noise(self, batch: Any, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The clean images, as the network sees them, and the noise that is added to them."""
        x0 = to_float(batch.image, self._normalization)
        keys = example_keys(self._config.seed, Stream.NOISE, step, batch.index)
        return x0, normal_each(keys, 0, x0.shape[1:], x0.dtype)

    def condition(self, batch: Any, step: jax.Array) -> Any:
        """What they are drawn from; none is left out where guidance towards it is what is learned."""
        of_batch = batch_condition if self._config.distill.guidance_scale == 1 else undropped_condition
        return of_batch(self._config, batch, step)

    def ask(
        self, network: Network, x: jax.Array, time: jax.Array, alpha_bar: jax.Array, condition: Any
    ) -> tuple[Prediction, Any]:
        """The student's prediction, and what else its network returns."""
        output, extra = network(self._schedule.network_input(x, per_image(alpha_bar, x)), time, condition)
        mean = output[..., : x.shape[-1]].astype(x.dtype)  # beyond these it says something of the variance
        return to_prediction(mean, x, alpha_bar, self._config.diffusion.objective), extra
