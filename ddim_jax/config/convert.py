"""From what users write, or a workdir keeps, to the typed config and back; and what differs between two."""

import dataclasses
import difflib
import json
import math
import os
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from ddim_jax import records
from ddim_jax.config.checks import check
from ddim_jax.config.keys import check_name, flatten, keys_of
from ddim_jax.config.presets import preset, table_for
from ddim_jax.config.schema import Config, SampleConfig, is_one_or_several, without_none
from ddim_jax.config.tree import ConfigTree
from ddim_jax.errors import ConfigError, shown


def from_config_dict(config: ConfigTree, given: Collection[str] = ()) -> Config:
    """Makes the typed config, applies ``sample.preset``, and checks every value.

    Args:
        config: what the config file returned, with the values of the command line in it.
        given: the dotted keys that the command line gave. A preset does not replace these.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or range, or keys that contradict
            each other.
    """
    built = _build(Config, config.to_dict(), "")
    if "sample.preset" not in given:
        _check_beside_preset(built, given)
    _check_beside_table(built, given)
    return _finish(_with_preset(built, given))


def from_values(values: Any) -> Config:
    """Makes the typed config of dictionaries and lists, such as JSON keeps; same errors as :func:`from_config_dict`.

    Args:
        values: the groups by name, each with its values by name. A preset replaces none of them: in what
            :func:`to_json` wrote, it has been applied already.
    """
    built = _build(Config, values, "")
    return _finish(_with_preset(built, [f"sample.{name}" for name in values.get("sample", ())]))


def from_json(text: str | bytes) -> Config:
    """Reads what :func:`to_json` wrote; same errors as :func:`from_config_dict`."""
    try:
        values = records.parse(text)
    except records.RecordError as error:
        raise ConfigError(f"not a JSON config: {error}") from error
    return from_values(values)


def to_json(config: Config) -> str:
    """The resolved config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def check_key(key: str) -> None:
    """Checks that a dotted key exists.

    Raises:
        ConfigError: it does not; the message names the most similar one.
    """
    known = flatten(Config())
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        siblings = [name for name in known if name.split(".")[0] == key.split(".")[0]] or list(known)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(siblings)}"
        raise ConfigError(f"config key '{key}' does not exist; {hint}")


def differences(old: Config, new: Config, groups: tuple[str, ...] | None = None) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, as ``{key: (old, new)}``; only those of ``groups`` when given."""
    before, after = flatten(old), flatten(new)
    return {
        key: (before[key], after[key])
        for key in before
        if before[key] != after[key] and (groups is None or key.split(".")[0] in groups)
    }


def _build(cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix.rstrip('.') or 'config'}: expected a group of keys, got {shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            check_key(f"{prefix}{name}")
    built = {}
    for name, value in values.items():
        annotation = fields[name].type
        if dataclasses.is_dataclass(annotation):
            built[name] = _build(annotation, value, f"{prefix}{name}.")
        else:
            built[name] = _convert(annotation, value, f"{prefix}{name}")
    return cls(**built)


def _convert(annotation: Any, value: Any, key: str) -> Any:
    if check_name(annotation, value, key):
        return value
    if is_one_or_several(annotation):
        several = isinstance(value, (list, tuple))
        return _convert(typing.get_args(annotation)[int(several)], value, key)
    if typing.get_origin(annotation) is types.UnionType:
        if value is None:
            return None
        return _convert(without_none(annotation), value, key)
    if typing.get_origin(annotation) is tuple:
        inner = typing.get_args(annotation)[0]
        if inner is str and isinstance(value, (str, int)):
            value = [value]  # as the command line reads it: eval.checkpoints=600 is a list of one
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key}: expected a list, got {shown(value)}")
        if inner is str:
            value = [_as_text(e, key) if isinstance(e, int) and not isinstance(e, bool) else e for e in value]
        return tuple(_convert(inner, element, f"{key}[{i}]") for i, element in enumerate(value))
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{key}={shown(value)}: too large for a number") from error
    if not isinstance(value, annotation) or (annotation is not bool and isinstance(value, bool)):
        raise ConfigError(f"{key}: expected {annotation.__name__}, got {shown(value)} ({type(value).__name__})")
    if annotation is float and not math.isfinite(value):
        raise ConfigError(f"{key}: {value} is not a finite number")
    return value


def _as_text(number: int, key: str) -> str:
    try:
        return str(number)
    except ValueError as error:  # Python writes no number of thousands of digits
        raise ConfigError(f"{key}={shown(number)}: too large for a name") from error


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with other values, converted and checked like those that users write.

    Args:
        config: the rest.
        values: by dotted key, e.g. ``{"sample.steps": 20}``; lists, tuples and NumPy's numbers are understood. They
            replace what the config's own preset says, and of a preset among them they keep what it does not say alone.

    Raises:
        ConfigError: a key that does not exist, or a value that cannot be used.
    """
    for key, value in values.items():
        check_key(key)
        group, _, name = key.rpartition(".")
        holder = getattr(config, group) if group else config
        annotation = next(field.type for field in dataclasses.fields(holder) if field.name == name)
        holder = dataclasses.replace(holder, **{name: _convert(annotation, _plain(value), key)})
        config = dataclasses.replace(config, **{group: holder}) if group else holder
    return _finish(_with_preset(config, values) if "sample.preset" in values else config)


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's."""
    if isinstance(value, (list, tuple)):
        return [_plain(element) for element in value]
    return value.tolist() if hasattr(value, "tolist") else value


def with_sample(config: Config, **settings: Any) -> Config:
    """The config with other values in its ``sample`` group, see :func:`with_values`."""
    return with_values(config, {f"sample.{name}": value for name, value in settings.items()})


def beside_preset(config: Config, given: Collection[str]) -> dict[str, tuple[Any, Any]]:
    """Keys given beside ``sample.preset`` that differ from what it says, as ``{key: (the preset's value, ours)}``.

    Args:
        config: with the preset.
        given: the dotted keys to look at.
    """
    ours = flatten(config)
    return {
        key: (value, ours[key])
        for key, value in _values_of_preset(config.sample).items()
        if key in given and ours[key] != value
    }


def _values_of_preset(sample: SampleConfig) -> dict[str, Any]:
    """What the preset says, by dotted key; nothing where none is named."""
    if not sample.preset:
        return {}
    values = {**preset(sample.preset)._asdict(), "eta_per_step": (), "levels": ()}
    return {f"sample.{name}": value for name, value in values.items()}


def _check_beside_preset(config: Config, given: Collection[str]) -> None:
    """Refuses a config file's value that its preset would replace without a word."""
    defaults = flatten(Config())
    for key, (value, ours) in beside_preset(config, defaults.keys() - set(given)).items():
        if ours != defaults[key]:
            raise ConfigError(
                f"{key}={ours!r} stands beside sample.preset={config.sample.preset}, which says {value!r}; leave one "
                f"of them out of the config file, or pass the one that you mean on the command line"
            )


# What the rows of a published table say themselves: of ``eval``, and what they set of ``sample``.
_OF_TABLE = ("eval.samplers", "eval.etas", "eval.spacings", "eval.steps")
_OF_ROWS = ("sample.preset", "sample.sampler", "sample.eta", "sample.spacing", "sample.clip", "sample.steps")


def _check_beside_table(config: Config, given: Collection[str]) -> None:
    """Refuses what is given beside ``eval.preset``, whose rows would replace it without a word."""
    if not config.eval.preset:
        return
    # A table that is not given now, but e.g. in a run's config, is none of the business of other jobs.
    replaced = _OF_TABLE + (_OF_ROWS if "eval.preset" in given else ())
    for key in (key for key in replaced if key in given):
        raise ConfigError(
            f"{key}={flatten(config)[key]!r} is given beside eval.preset={config.eval.preset}, whose rows say that "
            f"themselves; leave it out, or the table (--config.eval.preset=)"
        )


def _with_preset(config: Config, given: Collection[str]) -> Config:
    """Applies the preset of ``sample``, if one is named, to all of its keys that were not given beside it."""
    values = {key: value for key, value in _values_of_preset(config.sample).items() if key not in given}
    sample = dataclasses.replace(config.sample, **{key.removeprefix("sample."): value for key, value in values.items()})
    return dataclasses.replace(config, sample=sample)


def _finish(config: Config) -> Config:
    """Expands ``~`` in paths, names the part of a table that ``eval.preset`` means, and checks everything."""
    config = _with_home(config)
    table = table_for(config.eval.preset, config.data.name)
    if table != config.eval.preset:
        config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, preset=table))
    check(config)
    return config


def _with_home(config: Config) -> Config:
    """The config with the user's home folder in place of a ``~`` at the beginning of a path, as a shell has it.

    A shell leaves ``--config.data.path=~/images`` as it is.
    """
    for dotted, known in keys_of(Config):
        if known.is_path:
            group, _, name = dotted.partition(".")
            holder = getattr(config, group)
            path = getattr(holder, name)
            if path.startswith("~"):
                config = dataclasses.replace(
                    config, **{group: dataclasses.replace(holder, **{name: os.path.expanduser(path)})}
                )
    return config
