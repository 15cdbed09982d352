"""What a config is made into, and configs whose parts do not go together."""

import dataclasses

import numpy as np
import pytest

from ddim_jax.config import Config, DiffusionConfig, ModelConfig
from ddim_jax.configured import build_sampler, build_schedule
from ddim_jax.diffusion.samplers import SAMPLERS
from ddim_jax.errors import ConfigError
from ddim_jax.names import SamplerName, choices


def config_with(**groups):
    return dataclasses.replace(Config(), **groups)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"diffusion": DiffusionConfig(schedule="jsd")},
            r"diffusion.objective=eps: the jsd schedule ends at alpha_bar = 0.*use x0 or v",
        ),
        (
            {"diffusion": DiffusionConfig(zero_terminal_snr=True)},
            r"diffusion.objective=eps: diffusion.zero_terminal_snr ends at alpha_bar = 0.*use x0 or v",
        ),
        (
            # 1e-4 ** 10 is 1e-40.
            {"diffusion": DiffusionConfig(schedule="const", beta_end=0.9999, num_levels=12)},
            r"diffusion.objective=eps: the const schedule falls to alpha_bar = 1e-48 \(below 1.2e-38, float32's "
            r"smallest, from level 10 on\).*lower diffusion.beta_end",
        ),
        (
            {"diffusion": DiffusionConfig(schedule="linear", beta_end=0.9)},
            r"diffusion.objective=eps: the linear schedule falls to",
        ),
        (
            {"diffusion": DiffusionConfig(time_sampling="continuous")},
            "diffusion.time_sampling=continuous: only diffusion.schedule=offset_cosine or edm or flow or vp or ve has",
        ),
        (
            {"diffusion": DiffusionConfig(schedule="offset_cosine", time_sampling="lognormal")},
            "time_sampling=lognormal: only diffusion.schedule=edm or flow or vp or ve has a level for any noise; use",
        ),
        (
            {"diffusion": DiffusionConfig(schedule="flow")},
            "diffusion.objective=eps: the flow schedule ends at alpha_bar = 0",
        ),
        (
            {"model": ModelConfig(name="residual_unet")},
            r"diffusion.schedule=linear: model.name=residual_unet is told .* which offset_cosine alone tells; use that",
        ),
    ],
)
def test_a_schedule_that_does_not_go_with_the_rest_is_one_line(groups, message):
    with pytest.raises(ConfigError, match=message):
        build_schedule(config_with(**groups))


@pytest.mark.parametrize("objective", ["x0", "v"])
def test_other_objectives_can_use_schedules_that_end_in_noise(objective):
    schedule = build_schedule(config_with(diffusion=DiffusionConfig(schedule="jsd", objective=objective)))
    assert schedule.ends_in_noise
    assert schedule.alpha_bar[-1] == 0


@pytest.mark.parametrize("name", choices(SamplerName))
def test_eta_is_an_error_where_it_would_be_passed_over(name):
    sample = dataclasses.replace(Config().sample, sampler=name, steps=5, eta=0.5)
    if SAMPLERS[name].eta != "zero":
        model = dataclasses.replace(Config().model, learn_variance=True)
        sampler = build_sampler(config_with(sample=sample, model=model))
        assert np.count_nonzero(sampler.table.noise) == 4
    else:
        with pytest.raises(ConfigError, match=f"sample.eta=0.5: sample.sampler={name} adds no noise: set it to 0"):
            build_sampler(config_with(sample=sample))


def test_what_needs_a_learned_variance_says_so_of_other_networks():
    sample = dataclasses.replace(Config().sample, sampler="ddpm_learned", steps=5)
    message = "sample.sampler=ddpm_learned: model.learn_variance=False: this network predicts no variance"
    with pytest.raises(ConfigError, match=message):
        build_sampler(config_with(sample=sample))
