"""Description that our own exported files carry, so that whoever has the file needs nothing else."""

import dataclasses
import json
import pathlib
from typing import NamedTuple

from ddim_jax.config import TRAINED_GROUPS, Config, flatten, from_values, keys_of, with_values
from ddim_jax.errors import ConfigError, UserError
from ddim_jax.names import StoredDtype
from ddim_jax.records import parse_object

# The name under which files keep it.
KEY = "ddim_jax"
_VERSION = 1

# One average is in the file, of which no others can be made.
_OF_SNAPSHOTS = {"train.ema_widths": (), "sample.ema_width": 0.0}


class Description(NamedTuple):
    """Facts about exported weights.

    Attributes:
        config: config of the run, without the paths of the machine it ran on.
        step: number of training steps done.
        averaged: whether they are the moving averages.
        dtype: type in which they are stored.
        sha256: hash of the stored values, see :func:`~ddim_jax.digests.digest_of_arrays`.
    """

    config: Config
    step: int
    averaged: bool
    dtype: StoredDtype
    sha256: str

    def to_json(self) -> str:
        """Writes it as one line of JSON."""
        return json.dumps({"version": _VERSION, **self._asdict(), "config": dataclasses.asdict(self.config)})

    @classmethod
    def from_json(cls, text: str, source: str) -> "Description":
        """Reads what :meth:`to_json` wrote.

        Raises:
            UserError: it is something else, or a newer version wrote it.
        """
        try:
            values = parse_object(text)
            if values.pop("version") != _VERSION:
                raise UserError(f"{source} was written by a newer ddim_jax: update this one")
            values["config"] = from_values(values["config"])
            description = cls(**values)
            if type(description.step) is not int or description.step < 0:
                raise ValueError("not a step")
        except (ConfigError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise UserError(f"{source} has a description that cannot be used: {error}") from error
        return description


def shared_config(config: Config) -> Config:
    """Leaves out of a config what concerns only the machine that it was used on, one job there, or its snapshots."""
    kept = {group: getattr(config, group) for group in (*TRAINED_GROUPS, "sample")}
    defaults = flatten(Config())
    paths = {key: defaults[key] for key, known in keys_of(config) if known.is_path}
    return with_values(Config(**kept), {**paths, **_OF_SNAPSHOTS, "data.path": pathlib.Path(config.data.path).name})
