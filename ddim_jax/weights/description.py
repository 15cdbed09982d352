"""What our own exported files say about themselves, so that whoever has the file needs nothing else."""

import dataclasses
import json
import pathlib
from typing import Literal, NamedTuple

from ddim_jax.config import TRAINED_GROUPS, Config, flatten, from_json, keys_of, with_values
from ddim_jax.errors import ConfigError, UserError

# The name under which files keep it.
KEY = "ddim_jax"
_VERSION = 1

StoredDtype = Literal["float32", "bfloat16", "float16"]


class Description(NamedTuple):
    """All that is known of exported weights.

    Attributes:
        config: of the run, without the paths of the machine it ran on.
        step: training steps done.
        averaged: whether they are the moving averages.
        dtype: what they are stored in.
        sha256: of the stored values, see :func:`~ddim_jax.digests.digest_of_arrays`.
    """

    config: Config
    step: int
    averaged: bool
    dtype: StoredDtype
    sha256: str

    def to_json(self) -> str:
        """As one line."""
        return json.dumps({"version": _VERSION, **self._asdict(), "config": dataclasses.asdict(self.config)})

    @classmethod
    def from_json(cls, text: str, source: str) -> "Description":
        """Reads what :meth:`to_json` wrote.

        Raises:
            UserError: it is something else, or a newer version wrote it.
        """
        try:
            values = json.loads(text)
            if values.pop("version") != _VERSION:
                raise UserError(f"{source} was written by a newer ddim_jax: update this one")
            values["config"] = from_json(json.dumps(values["config"]))
            description = cls(**values)
            if type(description.step) is not int or description.step < 0:
                raise ValueError("not a step")
        except (ConfigError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise UserError(f"{source} has a description that cannot be used: {error}") from error
        return description


def shared_config(config: Config) -> Config:
    """The config without what only the machine knows that it was made on, or that was asked of one job there."""
    kept = {group: getattr(config, group) for group in (*TRAINED_GROUPS, "sample")}
    defaults = flatten(Config())
    paths = {key: defaults[key] for key, known in keys_of(config) if known.is_path}
    return with_values(Config(**kept), {**paths, "data.path": pathlib.Path(config.data.path).name})
