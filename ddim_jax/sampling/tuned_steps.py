"""Steps tuned for a network, in its workdir: ``WORKDIR/tuned/stepN-HASH.json``, and settings made of them.

The hash stands for the network as it is sampled: its checkpoint and what is done to its predictions. A config with
``sample.spacing=tuned`` says which S; :func:`with_tuned` fills in the levels and, for ``sample.sampler=tuned``, the
coefficients, so that whoever draws, and whoever names a folder, needs the config alone.
"""

import dataclasses
import json
import os
import shlex
from collections.abc import Mapping
from typing import Any

from etils import epath

from ddim_jax.config import Config, Role, SampleConfig, deciding_values, keys_of, with_sample
from ddim_jax.configured import Guide
from ddim_jax.digests import digest_of_facts
from ddim_jax.errors import ConfigError, UserError
from ddim_jax.files import write_whole
from ddim_jax.records import Kinds, RecordError, parse_object, read_object
from ddim_jax.workdir import versions

# What is filled in.
FILLED_IN = ("levels", "sigmas", "coefficients")

# What decides the network as it is sampled: all that is part of a compiled program, the class and the
# average; but for rounding.
_NETWORK = tuple(
    name
    for name, known in keys_of(SampleConfig)
    if known.role is Role.PIXELS and (not known.is_traced or name in ("label", "ema_width")) and name != "precision"
)

# Settings that say which of what is tuned is meant; where one of them is another, all has to be filled in anew.
CHOOSING = frozenset({"preset", "sampler", "spacing", "steps", *_NETWORK})

_CHECKSUM = "sha256"
_KINDS: Kinds = {"network": dict, "steps": dict}
_KINDS_OF_STEPS: Kinds = {"coefficients": list, "distance": (int, float), "others": dict, "tuned_with": dict}
_REMEDY = "run --mode=tune again, which replaces it"


@dataclasses.dataclass(frozen=True)
class TunedSteps:
    """S steps.

    Attributes:
        levels: as keys of ``config.sample``: ``levels``, or ``sigmas`` where levels are real.
        coefficients: of the sampler ``tuned``, a list for each step.
        distance: to the fine trajectory, of images that nothing was fitted to, see
            :class:`~ddim_jax.diffusion.tuning.Plan`.
        others: of other samplers, by name: ``distance``, and ``spacing``, their best one.
        tuned_with: the group ``tune`` of the config.
    """

    levels: Mapping[str, list[Any]]
    coefficients: list[list[float]]
    distance: float
    others: Mapping[str, Mapping[str, Any]]
    tuned_with: Mapping[str, Any]


def network_facts(
    config: Config, step: int, guide: Guide | None = None, average: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What decides the network as it is sampled, as JSON's types.

    Args:
        config: ``sample`` counts.
        step: of the checkpoint.
        guide: of ``sample.guide_workdir``; None without one.
        average: what weights of a width are made of; None for the usual ones.
    """
    # Without guidance nobody asks the guide.
    guide = None if config.sample.guidance_scale == 1 else guide
    sample = dataclasses.replace(config.sample, guide_checkpoint=None if guide is None else guide.step)
    facts: dict[str, Any] = {"checkpoint_step": step, "sample": deciding_values(sample, _NETWORK)}
    if guide is not None:
        facts["guide"] = guide.sha256
    if average is not None:
        facts["average"] = dict(average)
    return facts


def tuned_path(workdir: epath.PathLike, facts: Mapping[str, Any]) -> epath.Path:
    """``WORKDIR/tuned/stepN-HASH.json`` of a network with these :func:`network_facts`."""
    name = f"step{facts['checkpoint_step']}-{digest_of_facts(facts)[:8]}.json"
    return epath.Path(workdir) / "tuned" / name


def write_tuned(path: epath.Path, facts: Mapping[str, Any], tuned: Mapping[int, TunedSteps]) -> None:
    """Writes the file, whole.

    Args:
        path: of the file, in a folder that exists.
        facts: of the network.
        tuned: by S.
    """
    steps = {str(count): _as_json(tuned[count]) for count in sorted(tuned)}
    # As it will be read.
    values = json.loads(json.dumps({"network": dict(facts), "steps": steps, "versions": versions()}))
    write_whole(path, json.dumps({**values, _CHECKSUM: digest_of_facts(values)}, indent=1) + "\n")


def read_tuned(path: epath.Path) -> dict[int, TunedSteps]:
    """Reads what :func:`write_tuned` wrote, by S.

    Raises:
        UserError: it is something else, or damaged.
    """
    values = read_object(path, _REMEDY, _KINDS)
    if values.pop(_CHECKSUM, None) != digest_of_facts(values):
        raise UserError(f"{path} cannot be used: its {_CHECKSUM} is not that of its values; {_REMEDY}")
    try:
        return {int(steps): _from_json(each) for steps, each in values["steps"].items()}
    except (RecordError, ValueError) as error:
        raise UserError(f"{path} cannot be used: {error}; {_REMEDY}") from error


def with_tuned(
    config: Config,
    workdir: epath.PathLike | None,
    step: int,
    guide: Guide | None = None,
    average: Mapping[str, Any] | None = None,
) -> Config:
    """The config with the levels of ``sample.spacing=tuned`` in it; as it is with another spacing, or where they are.

    Args:
        config: the run.
        workdir: of the network; None where it has none.
        step: of its checkpoint.
        guide: see :func:`network_facts`.
        average: likewise.

    Raises:
        UserError: nothing is tuned for this network as it is sampled, or not for so many steps, or the file is damaged.
    """
    sample = config.sample
    if sample.spacing != "tuned" or sample.levels or sample.sigmas:
        return config
    if workdir is None:
        raise UserError(
            "spacing=tuned: steps are tuned for the network of a workdir, and this one is in none; put it into one by "
            "--mode=import, run --mode=tune there and load that workdir"
        )
    facts = network_facts(config, step, guide, average)
    path = tuned_path(workdir, facts)
    if sample.label is not None and not path.exists():
        # What serves all classes serves each of them.
        path = tuned_path(workdir, network_facts(with_sample(config, label=None), step, guide, average))
    if not path.exists():
        raise UserError(
            f"sample.spacing=tuned: nothing is tuned for step {step} of {os.fspath(workdir)} as it is sampled here; "
            f"run {_command(workdir, facts, sample.steps)}"
        )
    tuned = read_tuned(path)
    if sample.steps not in tuned:
        raise UserError(
            f"sample.steps={sample.steps}: nothing is tuned for so many steps in {path}, which has "
            f"{', '.join(map(str, tuned))}; choose one of these, or run {_command(workdir, facts, sample.steps)}"
        )
    found = tuned[sample.steps]
    coefficients = [number for of_step in found.coefficients for number in of_step]
    try:
        return with_sample(
            config, **found.levels, **({"coefficients": coefficients} if sample.sampler == "tuned" else {})
        )
    except ConfigError as error:
        raise UserError(f"{path} cannot be used: {error}; {_REMEDY}") from error


def _command(workdir: epath.PathLike, facts: Mapping[str, Any], steps: int) -> str:
    """What tunes steps for a network that is sampled so."""
    plain = SampleConfig()
    flags = [f"--workdir={os.fspath(workdir)}", "--mode=tune", f"--config.tune.steps={steps}"]
    flags += [
        f"--config.sample.{name}={value}" for name, value in facts["sample"].items() if value != getattr(plain, name)
    ]
    return shlex.join(["ddim_jax", *flags, f"--config.sample.checkpoint={facts['checkpoint_step']}"])


def _as_json(tuned: TunedSteps) -> dict[str, Any]:
    values = dataclasses.asdict(tuned)
    return {**values.pop("levels"), **values}


def _from_json(values: Any) -> TunedSteps:
    values = parse_object(json.dumps(values), _KINDS_OF_STEPS)
    levels = {name: values[name] for name in ("levels", "sigmas") if isinstance(values.get(name), list)}
    of_steps = values["coefficients"]
    if len(levels) != 1 or not all(isinstance(of_step, list) for of_step in of_steps):
        raise RecordError("not a list of levels with the coefficients of each")
    if len({len(of_step) for of_step in of_steps}) != 1 or len(of_steps) != len(next(iter(levels.values()))):
        raise RecordError("its coefficients are not those of its levels")
    return TunedSteps(levels, **{name: values[name] for name in _KINDS_OF_STEPS})
