"""The smallest models that draw digits, for tests of what can be done with one."""

import dataclasses
import importlib.util
import json
import pathlib

from ddim_jax.config import Config, from_config_dict

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = ROOT / "configs"

# The smallest network that has all kinds of layers.
SMALL = {"model__multipliers": (1,), "model__attention_resolutions": (8,), "train__steps": 2}
DIGITS = (
    f"--config={CONFIGS}/digits.py:tiny",
    *(f"--config.{key.replace('__', '.')}={value}" for key, value in SMALL.items()),
)


def config_module(path):
    """A config file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_config(path):
    """The file's ``tiny`` variant."""
    return from_config_dict(config_module(path).get_config("tiny"))


def plain_digits(**changes) -> Config:
    """What ``DIGITS`` asks for on the command line."""
    return changed(tiny_config(CONFIGS / "digits.py"), **SMALL, **changes)


def small_digits() -> Config:
    """Two steps on digits, with PyTorch's initialisation: after two steps DDPM's has hardly left zero."""
    return plain_digits(model__init="torch", train__checkpoint_every=1, train__final_sample_steps=())


def changed(config: Config, **changes) -> Config:
    """The config with other values, e.g. ``train__steps=5``."""
    for dotted, value in changes.items():
        group, _, key = dotted.partition("__")
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{key: value})})
    return config


def metrics(workdir) -> list[dict]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
