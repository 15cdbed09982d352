"""The typed configuration.

A config file (``configs/NAME.py``) starts from :func:`default_config`, an ``ml_collections.ConfigDict`` made from the
dataclasses of ``schema.py``, changes what it needs and returns it. :func:`from_config_dict` turns it, once, into the
frozen :class:`Config` that all other code uses. A mistake raises :class:`~ddim_jax.errors.ConfigError`, whose one line
names the key and the remedy.

- ``schema``: what every key means, its default, what it decides and its range; ``keys``: how that is stated and asked.
- ``checks``: which values can be used together.
- ``presets``: sampler settings of papers and projects by name.
- ``recipes``: what several config files share.
- ``shipped``: the config files that come with the package.
- ``tree``: the ConfigDict that users write, and variants such as ``tiny``.
- ``convert``: between the forms.
- ``documentation``: the schema in words.
"""

from ddim_jax.config import recipes
from ddim_jax.config.checks import check, check_new_network
from ddim_jax.config.convert import (
    beside_preset,
    check_key,
    differences,
    from_config_dict,
    from_json,
    from_values,
    to_json,
    with_sample,
    with_values,
)
from ddim_jax.config.keys import Role, check_path, deciding_values, flatten, keys_of, keys_with
from ddim_jax.config.schema import (
    TRAINED_GROUPS,
    Config,
    DataConfig,
    DescribeConfig,
    DiffusionConfig,
    DistillConfig,
    EditConfig,
    EvalConfig,
    InterpolateConfig,
    LikelihoodConfig,
    ModelConfig,
    ReconstructConfig,
    SampleConfig,
    SweepConfig,
    TrainConfig,
    TrajectoryConfig,
    TuneConfig,
    WeightsConfig,
)
from ddim_jax.config.shipped import shipped_configs
from ddim_jax.config.tree import ConfigTree, apply_variants, default_config, to_config_dict
from ddim_jax.errors import ConfigError

__all__ = [
    "TRAINED_GROUPS",
    "Config",
    "ConfigError",
    "ConfigTree",
    "DataConfig",
    "DescribeConfig",
    "DiffusionConfig",
    "DistillConfig",
    "EditConfig",
    "EvalConfig",
    "InterpolateConfig",
    "LikelihoodConfig",
    "ModelConfig",
    "ReconstructConfig",
    "Role",
    "SampleConfig",
    "SweepConfig",
    "TrainConfig",
    "TrajectoryConfig",
    "TuneConfig",
    "WeightsConfig",
    "apply_variants",
    "beside_preset",
    "check",
    "check_key",
    "check_new_network",
    "check_path",
    "deciding_values",
    "default_config",
    "differences",
    "flatten",
    "from_config_dict",
    "from_json",
    "from_values",
    "keys_of",
    "keys_with",
    "recipes",
    "shipped_configs",
    "to_config_dict",
    "to_json",
    "with_sample",
    "with_values",
]
