"""The rows of a table of measured images: which there are, and what was found.

A row is a checkpoint with settings of a sampler, or a set of images made elsewhere. Each is known by a name that holds
a hash of all that decides its images, so that a row is never taken for another, and is the same in every job.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from etils import epath

from ddim_jax.config import Config, Role, SampleConfig, deciding_values, keys_with, with_sample
from ddim_jax.diffusion.samplers import takes_eta
from ddim_jax.digests import digest_of_facts
from ddim_jax.errors import UserError, shown
from ddim_jax.names import SamplerName, Spacing, choices
from ddim_jax.records import Kinds, read_object
from ddim_jax.tables.published_figures import PUBLISHED

_IN_COLUMNS = ("sampler", "eta", "spacing", "clip", "steps", "seed")

# These would be silently passed over, since a row sets what they replace.
_REFUSED = {
    "levels": "eval.steps and eval.spacings",
    "sigmas": "eval.steps and eval.spacings",
    "coefficients": "eval.samplers and eval.spacings",
    "eta_per_step": "eval.etas",
    "checkpoint": "eval.checkpoints",
}


# What decides the images of a row; a preset and those refused are replaced by what the row sets.
_DECIDING = tuple(key for key in keys_with(SampleConfig, Role.PIXELS) if key not in ("preset", *_REFUSED))


@dataclasses.dataclass(frozen=True)
class Row:
    """A row to be measured.

    Attributes:
        columns: what the table says of it, by column, but for the seed; rows that differ in the seed alone are put
            together in one line.
        seed: of the images; None where they were made elsewhere.
        sample: how they are drawn; None likewise.
        identity: what decides the images, as JSON's types.
    """

    columns: dict[str, Any]
    seed: int | None
    sample: SampleConfig | None
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its files, e.g. ``step800-ddim-S10-eta0-quad-seed0-1a2b3c4d``."""
        digest = digest_of_facts(self.identity)[:8]
        if self.sample is None:
            return f"images-{_for_file(self.columns['images'])}-{digest}"
        sample = self.sample
        eta = f"-eta{sample.eta:g}" if takes_eta(sample.sampler) else ""
        return (
            f"step{self.columns['checkpoint']}-{sample.sampler}-S{sample.steps}{eta}-{sample.spacing}-"
            f"seed{sample.seed}-{digest}"
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """What was found for a row; a file of JSON holds it.

    Attributes:
        name: the row's.
        columns: the row's.
        seed: the row's.
        num: images measured.
        figures: by name, e.g. ``fid`` or ``pixels_frechet``.
        evaluations: network evaluations per image; None for images made elsewhere.
        sampling_seconds: time that drawing them took, without compilation; None likewise.
        seconds: time that the row took in all, interruptions left out.
        device: that did it.
        versions: of the packages that did it.
        deviations: of figures, by ``eval.bootstrap``; by name, none without it.
    """

    name: str
    columns: dict[str, Any]
    seed: int | None
    num: int
    figures: dict[str, float]
    evaluations: int | None
    sampling_seconds: float | None
    seconds: float
    device: str
    versions: dict[str, str]
    deviations: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """Returns the result as JSON, with a checksum."""
        values = dataclasses.asdict(self)
        if not self.deviations:
            del values["deviations"]
        return json.dumps({**values, _CHECKSUM: digest_of_facts(values)}, indent=2) + "\n"

    @classmethod
    def read(cls, path: epath.Path) -> Self:
        """Reads what :meth:`to_json` wrote.

        Raises:
            UserError: it is something else, or the result of a row of another name than the file.
        """
        remedy = "delete it to measure that row again"
        values = read_object(path, remedy, _KINDS_OF_RESULT)
        # Older versions wrote none.
        checksum = values.pop(_CHECKSUM, None)
        if checksum not in (None, digest_of_facts(values)):
            raise UserError(f"{path} cannot be used: its {_CHECKSUM} is not that of its values; {remedy}")
        if values.keys() - {"deviations"} != _KINDS_OF_RESULT.keys() or not _are_columns(values["columns"]):
            raise UserError(f"{path} cannot be used: not the result of a row; {remedy}")
        deviations = values.get("deviations", {})
        if not isinstance(deviations, dict):
            raise UserError(f"{path} cannot be used: its deviations are no numbers by name; {remedy}")
        if any(type(value) not in (int, float) for value in (*values["figures"].values(), *deviations.values())):
            raise UserError(f"{path} cannot be used: a figure is no number; {remedy}")
        if values["name"] != path.stem:
            raise UserError(f"{path} cannot be used: it is the result of {shown(values['name'])}; {remedy}")
        return cls(**values)


_CHECKSUM = "sha256"
_NUMBER = (int, float)
_NONE = type(None)
_KINDS_OF_RESULT: Kinds = {
    "name": str,
    "columns": dict,
    "seed": (int, _NONE),
    "num": int,
    "figures": dict,
    "evaluations": (int, _NONE),
    "sampling_seconds": (*_NUMBER, _NONE),
    "seconds": _NUMBER,
    "device": str,
    "versions": dict,
}
_KINDS_OF_COLUMNS: Kinds = {
    "checkpoint": int,
    "sampler": str,
    "eta": (*_NUMBER, _NONE),
    "spacing": str,
    "clip": str,
    "steps": int,
    "other": str,
}


def _are_columns(columns: dict[str, Any]) -> bool:
    """Whether a table can show a row of these columns: of images made elsewhere, or of a model's."""
    if columns.keys() == {"images"}:
        return isinstance(columns["images"], str)
    return (
        columns.keys() >= _KINDS_OF_COLUMNS.keys()
        and all(isinstance(columns[name], kind) for name, kind in _KINDS_OF_COLUMNS.items())
        and columns["sampler"] in choices(SamplerName)
        and columns["spacing"] in choices(Spacing)
    )


def model_rows(
    config: Config,
    checkpoints: Iterable[int],
    filled_in: Callable[[Config, int], Config] = lambda config, step: config,
    average_of: Callable[[int, float], dict[str, Any] | None] = lambda step, width: None,
    guide: str | None = None,
) -> list[Row]:
    """Makes the rows that ``config.eval`` asks for: by checkpoint, average, sampler, eta, spacing, S, seed.

    The sampler ``tuned`` has rows on the spacing ``tuned`` alone.

    Args:
        config: ``eval`` says which rows, ``sample`` what they have in common.
        checkpoints: steps.
        filled_in: puts the levels of the spacing ``tuned`` into a config, by the step of the checkpoint.
        average_of: what an average is made of, as JSON's types, by step and width; None for the usual one.
        guide: stands for the weights of the network that guides; None where none does.

    Raises:
        UserError: the model cannot be sampled so, or ``sample`` has settings that rows would pass over.
    """
    settings, sample = config.eval, config.sample
    for key, instead in _REFUSED.items():
        value = getattr(sample, key)
        if value not in ((), None):
            raise UserError(f"sample.{key}={value} says nothing to --mode=evaluate; use {instead}")
    if settings.preset:
        samplings = [row[:5] for row in PUBLISHED[settings.preset].rows]
    else:
        samplings = [
            (sampler, eta, spacing, sample.clip, steps)
            for sampler in settings.samplers
            for eta in (settings.etas if takes_eta(sampler) else (0.0,))
            for spacing in (settings.spacings or (sample.spacing,))
            for steps in settings.steps
            if sampler != "tuned" or spacing == "tuned"
        ]
        if "tuned" in settings.samplers and "tuned" not in (settings.spacings or (sample.spacing,)):
            raise UserError(
                f"eval.samplers={settings.samplers}: tuned has coefficients for the levels that were tuned with them; "
                "add tuned to eval.spacings"
            )
    rows = []
    averages = [
        (checkpoint, width, average_of(checkpoint, width))
        for checkpoint in checkpoints
        for width in (settings.ema_widths or (sample.ema_width,))
    ]
    for checkpoint, width, average in averages:
        for sampler, eta, spacing, clip, steps in samplings:
            if steps > config.diffusion.num_levels:
                where = f"eval.preset={settings.preset}" if settings.preset else f"eval.steps={settings.steps}"
                raise UserError(
                    f"{where}: {steps} steps, but the model has {config.diffusion.num_levels} noise levels; use fewer"
                )
            for seed in settings.seeds:
                drawn = with_sample(
                    config,
                    **{"preset": "", "sampler": sampler, "eta": eta, "spacing": spacing, "clip": clip},
                    **{"steps": steps, "seed": seed, "ema_width": width},
                )
                rows.append(_model_row(checkpoint, filled_in(drawn, checkpoint).sample, average, guide))
    # Asked for twice, measured once.
    return list({row.name: row for row in rows}.values())


def _model_row(checkpoint: int, sample: SampleConfig, average: dict[str, Any] | None, guide: str | None) -> Row:
    deciding = deciding_values(sample, _DECIDING)
    plain = dataclasses.asdict(SampleConfig())
    others = {key: value for key, value in deciding.items() if key not in _IN_COLUMNS and value != plain[key]}
    columns: dict[str, Any] = {"checkpoint": checkpoint}
    columns |= {key: deciding[key] for key in _IN_COLUMNS if key != "seed"}
    columns["eta"] = sample.eta if takes_eta(sample.sampler) else None
    columns["other"] = ", ".join(f"{key} {_in_words(value)}" for key, value in others.items())
    identity = {"checkpoint": checkpoint, "sample": deciding}
    if sample.spacing == "tuned":
        # Tuned again, they are other images.
        identity["tuned"] = {name: list(getattr(sample, name)) for name in ("levels", "sigmas", "coefficients")}
    if average is not None:
        identity["average"] = average
    if guide is not None:
        identity["guide"] = guide
    return Row(columns, sample.seed, sample, identity)


def images_row(name: str, identity: Mapping[str, Any]) -> Row:
    """Makes the row of images made elsewhere.

    Args:
        name: of the folder or file.
        identity: which images they are, as JSON's types.
    """
    return Row({"images": name}, None, None, {"images": dict(identity)})


def in_table_order(results: Iterable[Result]) -> list[Result]:
    """Puts results in the one order that tables have: images made elsewhere, then the order of :func:`model_rows`.

    Samplers and spacings come in the order of the config's lists.
    """

    def key(result: Result) -> tuple[Any, ...]:
        columns = result.columns
        if "images" in columns:
            return (0, columns["images"], result.name)
        return (
            *(1, columns["checkpoint"], choices(SamplerName).index(columns["sampler"]), columns["eta"] or 0.0),
            *(choices(Spacing).index(columns["spacing"]), columns["clip"], columns["other"]),
            *(columns["steps"], result.seed, result.name),
        )

    return sorted(results, key=key)


def _for_file(name: str) -> str:
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in name)[:60]


def _in_words(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
