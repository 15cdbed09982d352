"""The smallest model that draws digits, for tests of what can be done with one."""

import importlib.util
import pathlib

from ddim_jax.config import Config, from_config_dict


def small_digits() -> Config:
    """Two steps on digits, with PyTorch's initialisation: after two steps DDPM's has hardly left zero."""
    path = pathlib.Path(__file__).parent.parent / "configs" / "digits.py"
    spec = importlib.util.spec_from_file_location("digits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("tiny")
    with config.unlocked():
        config.model.multipliers = (1,)
        config.model.attention_resolutions = (8,)
        config.model.init = "torch"
        config.train.steps = 2
        config.train.checkpoint_every = 1
        config.train.final_sample_steps = ()
    return from_config_dict(config)
