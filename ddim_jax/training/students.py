"""What a student's run is (``--mode=distill``): its config, made of its teacher's, and its rounds."""

import dataclasses
from collections.abc import Collection
from typing import NamedTuple

from ddim_jax.config import Config, ConfigError, DistillConfig, flatten, with_values
from ddim_jax.diffusion.samplers import SAMPLERS
from ddim_jax.errors import UserError
from ddim_jax.names import Objective, lookup
from ddim_jax.training.teacher import Teacher
from ddim_jax.weights.agreement import deciding_values, differences

# Salimans and Ho's updates in a round, on CIFAR-10.
_MOST_UPDATES = 50_000

# Subsequences of these levels are among each other's: every other level of S steps is one of S / 2.
SPACING = "trailing"

# What distill says of a student, so that these say nothing. How the teacher is sampled may be said, see check_teaches.
_IN_STEPS = "distill.first_steps and distill.rounds"
_MEASURED = "distill.measure_num, or --mode=evaluate when the student is there"
_REPLACED = {
    "train.steps": "distill.updates and distill.rounds",
    "train.epochs": "distill.updates and distill.rounds",
    "train.learning_rate": "distill.learning_rate",
    "train.warmup_steps": "distill.learning_rate",
    "train.lr_schedule": "distill.learning_rate",
    "train.ema_decay": "distill.ema_decay",
    "train.ema_warmup": "distill.ema_decay",
    "train.ema_widths": "distill.ema_decay",
    "train.keep_every": "distill.updates",
    "train.init_from": "distill.teacher",
    "train.validate_every": "distill.measure_num",
    "train.measure_every": "distill.measure_num",
    "diffusion.objective": "distill.objective",
    "sample.guidance_scale": "distill.guidance_scale",
    "sample.guidance_levels": "distill.guidance_levels",
    "sample.steps": _IN_STEPS,
    "sample.spacing": _IN_STEPS,
    "sample.levels": _IN_STEPS,
    "sample.sigmas": _IN_STEPS,
    "sample.coefficients": _IN_STEPS,
    "train.augment_probability": "a run of --mode=train for that",
    "train.final_sample_steps": "train.sample_every",
    "eval.preset": _MEASURED,
    "eval.samplers": _MEASURED,
    "eval.etas": _MEASURED,
    "eval.spacings": _MEASURED,
    "eval.steps": _MEASURED,
    "eval.ema_widths": _MEASURED,
    "sample.ema_width": "as distill.teacher an import of what --mode=average writes",
    "eval.images": _MEASURED,
    "distill.teacher_sha256": "distill.teacher alone; the job fills it in",
    "distill.teacher_objective": "distill.teacher alone; the job fills it in",
}

# Of the data; the teacher's where the config leaves them open.
_STATISTICS = ("data.mean", "data.std", "data.range")

# What a student's config says of its teacher, or takes from it, unless it is given.
_SETTLED = ("teacher_step", "teacher_sha256", "teacher_objective", "objective", "updates", "learning_rate")


class Round(NamedTuple):
    """A part of a student's training.

    Attributes:
        number: 1, 2 ...; 0 for one in which the student learns to predict something else than its teacher.
        begins: number of training steps done before it.
        ends: and after it.
        steps: network evaluations that the student draws an image in afterwards.
    """

    number: int
    begins: int
    ends: int
    steps: int


def rounds_of(config: Config) -> list[Round]:
    """The rounds of a student's run, whose config is settled."""
    distill = config.distill
    numbers = range(0 if converts(distill) else 1, distill.rounds + 1)
    steps = [distill.first_steps >> number if distill.is_progressive else config.sample.steps for number in numbers]
    return [
        Round(number, place * distill.updates, (place + 1) * distill.updates, count)
        for place, (number, count) in enumerate(zip(numbers, steps, strict=True))
    ]


def converts(distill: DistillConfig) -> bool:
    """Whether the student predicts something else than its teacher, and has to learn that first."""
    return distill.teacher_objective != distill.objective


def check_given(given: Collection[str]) -> None:
    """Refuses keys on the command line that would be passed over.

    Args:
        given: dotted keys.

    Raises:
        ConfigError: one of them says nothing to ``--mode=distill``.
    """
    for key, instead in _REPLACED.items():
        if key in given:
            raise ConfigError(f"{key} says nothing to --mode=distill; use {instead}")


def check_teaches(config: Config) -> None:
    """Checks that a teacher's sampler makes the same image of the same noise, which is what a student learns.

    Raises:
        ConfigError: it adds noise, is guided by another network, or clips so that its steps are not DDIM's.
    """
    sample = config.sample
    if config.distill.is_progressive and sample.clip == "keep_eps":
        raise ConfigError(
            "sample.clip=keep_eps: the noise that it keeps is not that of the clipped image, so that two of the "
            "teacher's steps are none of DDIM's; use rederive_eps or none"
        )
    adds = (
        lookup(SAMPLERS, sample.sampler, "sampler").eta == "implied"
        or sample.eta != 0
        or any(sample.eta_per_step)
        or sample.churn != 0
    )
    if adds:
        raise ConfigError(
            f"sample.sampler={sample.sampler}, eta {sample.eta:g}: a student learns where its teacher's steps lead, "
            "and this sampler adds noise to them; add --config.sample.sampler=ddim --config.sample.eta=0"
        )
    if sample.guide_workdir and sample.guidance_scale != 1:
        raise ConfigError(
            f"sample.guide_workdir={sample.guide_workdir}: a teacher can be guided by its own conditions, not by "
            "another network; leave it out"
        )


def settled_config(config: Config, teacher: Teacher) -> Config:
    """The student's config: the teacher's network and data, with what is left open filled in, for few steps.

    Args:
        config: what was asked for; ``data``, ``model`` and ``diffusion`` should be the teacher's.
        teacher: the teacher.

    Raises:
        UserError: it is a teacher of another network or data, or one that cannot teach this.
    """
    if config.distill.method == "easy_consistency" and config.distill.guidance_scale is None:
        of_run = config.sample.guidance_scale
        if of_run != 1:
            raise ConfigError(
                f"distill.method=easy_consistency: the teacher is guided at {of_run:g}, but never asked, so that this "
                "cannot be learned; use consistency, or --config.distill.guidance_scale=1"
            )
    _check_is_no_student(config, teacher)
    of_teacher = deciding_values(teacher.config)
    left_open = {key: of_teacher[key] for key in _STATISTICS if not flatten(config)[key]}
    config = with_values(config, left_open)
    stated = {key: value for key, value in of_teacher.items() if key != "diffusion.objective"}
    ours = flatten(config)
    if different := differences(config, stated):
        listed = ", ".join(f"{key} (there {value!r}, here {ours[key]!r})" for key, value in different.items())
        raise UserError(
            f"distill.teacher={config.distill.teacher} is another network than the config's: {listed}; leave --config "
            "out to take the teacher's"
        )
    if not config.distill.teacher_sha256:  # else it is a student's, and so is ``sample``
        check_teaches(config)
    distill, of_run = config.distill, teacher.config
    objective = distill.objective or _objective_for(config, of_run.diffusion.objective)
    scale, levels = distill.guidance_scale, distill.guidance_levels
    if scale is None:
        scale, levels = config.sample.guidance_scale, config.sample.guidance_levels
    trained = teacher.step or of_run.train.steps
    distill = dataclasses.replace(
        distill,
        teacher_step=teacher.step,
        teacher_sha256=teacher.sha256,
        teacher_objective=of_run.diffusion.objective,
        objective=objective,
        guidance_scale=float(scale),
        guidance_levels=levels,
        updates=distill.updates or max(1, min(_MOST_UPDATES, trained // 2)),
        learning_rate=distill.learning_rate or of_run.train.learning_rate,
    )
    return student_config(dataclasses.replace(config, distill=distill))


def _check_is_no_student(config: Config, teacher: Teacher) -> None:
    """Refuses to ask a student for what it has never learned: more steps than it makes, or steps at all.

    Raises:
        UserError: it is such a student.
    """
    learned, distill = teacher.config.distill, config.distill
    if not learned.teacher:
        return
    named = f"distill.teacher={distill.teacher} is a student itself"
    if not learned.is_progressive:
        if distill.method != "easy_consistency":
            raise UserError(
                f"{named}, which leads to images at once, not by steps that another could learn; name its own teacher, "
                "or use distill.method=easy_consistency"
            )
        return
    steps = [round_.steps for round_ in rounds_of(teacher.config) if round_.ends <= teacher.step]
    if distill.is_progressive and steps and distill.first_steps > steps[-1]:
        raise UserError(
            f"{named}, which draws in {steps[-1]} steps: distill.first_steps={distill.first_steps} asks it for steps "
            f"that it has not learned; use {steps[-1]}, with distill.rounds to match, or name its own teacher"
        )


def resumed_config(config: Config, begun: Config) -> Config:
    """The config of a student that has begun, without its teacher: what is left open is what it has begun with.

    Args:
        config: what was asked for.
        begun: of the student's run.
    """
    if not config.distill.teacher_sha256:
        ours, settled = config.distill, begun.distill
        filled = {name: getattr(ours, name) or getattr(settled, name) for name in _SETTLED}
        if ours.guidance_scale is None:
            filled |= {"guidance_scale": settled.guidance_scale, "guidance_levels": settled.guidance_levels}
        data = {key: flatten(begun)[key] for key in _STATISTICS if not flatten(config)[key]}
        config = with_values(dataclasses.replace(config, distill=dataclasses.replace(ours, **filled)), data)
    return student_config(config)


def student_config(config: Config) -> Config:
    """A config whose ``distill`` is settled, with all that follows from that."""
    distill = config.distill
    steps = distill.first_steps >> distill.rounds if distill.is_progressive else 2
    sampler = "ddim" if distill.is_progressive else "consistency"
    values = {
        "diffusion.objective": distill.objective,
        # The teacher's targets are not random, and the student should not be.
        "model.dropout": 0.0 if distill.is_progressive else config.model.dropout,
        "train.steps": distill.updates * len(rounds_of(config)),
        "train.epochs": 0.0,
        "train.learning_rate": distill.learning_rate,
        "train.warmup_steps": 0,
        "train.lr_schedule": "linear",
        "train.ema_decay": distill.ema_decay,
        "train.ema_warmup": False,
        "train.ema_widths": (),
        "train.keep_every": distill.updates,
        "train.init_from": "",
        "train.validate_every": 0,
        "train.measure_every": 0,
        "train.augment_probability": 0.0,
        "train.final_sample_steps": (),
        "sample.preset": "",
        "sample.sampler": sampler,
        "sample.steps": steps,
        "sample.spacing": SPACING,
        "sample.eta": 0.0,
        "sample.eta_per_step": (),
        "sample.churn": 0.0,
        "sample.levels": (),
        "sample.sigmas": (),
        "sample.coefficients": (),
        "sample.guidance_scale": 1.0,
        "sample.guidance_levels": (),
        "sample.ema_width": 0.0,
        "eval.ema_widths": (),
        "eval.preset": "",
        "eval.samplers": (sampler,),
        "eval.etas": (0.0,),
        "eval.spacings": (),
        "eval.steps": (steps,) if distill.is_progressive else (1, 2, 4),
    }
    return with_values(config, values)


def _objective_for(config: Config, of_teacher: Objective) -> Objective:
    """What a student predicts where nobody says: what its teacher does, if that can be."""
    cannot = ("eps",) if config.distill.is_progressive else ("eps", "x0")
    return "v" if of_teacher in cannot else of_teacher


def described(distill: DistillConfig) -> str:
    """What a student was distilled from, in a line."""
    told = [f"distilled from {distill.teacher}"]
    if distill.teacher_step:
        told.append(f"step {distill.teacher_step:,}")
    told.append(f"sha256 {distill.teacher_sha256[:12]}")
    if distill.guidance_scale not in (None, 1):
        low_and_high = "".join(f" to {level}" for level in distill.guidance_levels).removeprefix(" to ")
        told.append(f"guided at {distill.guidance_scale:g}" + (f" (levels {low_and_high})" if low_and_high else ""))
    first = f"one to predict {distill.objective}, then " if converts(distill) else ""
    how = f"{distill.method}, {first}{distill.rounds} rounds of {distill.updates:,} steps"
    if distill.is_progressive:
        how += f", {distill.first_steps} steps become {distill.first_steps >> distill.rounds}"
    return f"{', '.join(told)}: {how}"
