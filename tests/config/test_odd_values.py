"""Values that nobody means, of every key: refused in one line at once, or a config that can be written and read."""

import dataclasses
import json
import random
import time
import typing

import pytest

from ddim_jax.config import Config, ConfigError, flatten, from_json, from_values, keys_of, to_json, with_values
from ddim_jax.config.keys import Range

NUMBERS = (
    *(0, -1, 1, 2, 3, 1000, 2**31 - 1, 2**31, 2**63, -(2**63), 10**25, -(10**25), 10**5000, 0.5, -0.0, 1e-9, 5e-324),
    *(1e25, 1e308, -1e308, float("inf"), float("-inf"), float("nan")),
)
TEXTS = (
    *(
        "",
        " ",
        "x",
        "a\0b",
        "a\nb",
        "x" * 300,
        "x" * 5000,
        "~nosuchuser/x",
        "/dev/null",
        "../..",
        "gs://b/x",
        "http://h",
    ),
    *("\u202e", "\udcff", "\ud800", "%s{}", "9" * 4000, "train[:10%]"),
)
OTHERS = (None, True, False, {}, {"a": 1}, [], [[1]], [None], ["a"], b"x", object())


def odd_value(rng):
    """A number, a text, something else, or a list of those."""
    one = rng.choice((*NUMBERS, *TEXTS, *OTHERS))
    return rng.choice(([one], [one] * 3, [one] * 20_000)) if rng.random() < 0.3 else one


def outcome(make):
    """The config, or None where a line says why there is none; anything else is raised."""
    try:
        return make()
    except ConfigError as error:
        assert len(str(error)) < 1500
        return None


@pytest.mark.parametrize("seed", range(8))
def test_odd_values_are_refused_in_a_line_or_make_a_config(seed):
    rng = random.Random(seed)
    refused, started = 0, time.monotonic()
    keys = [key for key, _ in keys_of(Config)]
    for key in keys:
        value = odd_value(rng)
        config = outcome(lambda key=key, value=value: with_values(Config(), {key: value}))
        refused += config is None
        if config is not None:
            assert from_json(to_json(config)) == config
    assert len(keys) / 2 < refused < len(keys)
    assert time.monotonic() - started < 60


def test_odd_values_together():
    """Two at a time, as groups: what fits to its own range may not fit to another's."""
    rng = random.Random(0)
    numbers = {key: known.range for key, known in keys_of(Config) if known.range is not None}
    for _ in range(300):
        values = {}
        for key in rng.sample(sorted(numbers), 3):
            bound = rng.choice([bound for bound in numbers[key] if bound is not None])
            default = flatten(Config())[key]
            value = int(bound) if isinstance(default, int) else bound
            group, _, name = key.rpartition(".")
            value = [value] if isinstance(default, tuple) else value
            values.setdefault(group, {})[name] = value
        seed = values.pop("", {})
        config = outcome(lambda values=values, seed=seed: from_values({**values, **seed}))
        assert config is None or from_json(to_json(config)) == config


def test_every_number_has_bounds_and_every_default_is_inside():
    for key, known in keys_of(Config):
        value = flatten(Config())[key]
        group, _, name = key.rpartition(".")
        holder = getattr(Config(), group) if group else Config()
        annotation = next(field.type for field in dataclasses.fields(holder) if field.name == name)
        if {annotation, *typing.get_args(annotation)} & {int, float}:
            assert isinstance(known.range, Range), key
            assert known.range.at_most is not None or known.range.below is not None, key
            assert known.range.at_least is not None or known.range.above is not None, key
            if value is not None:
                assert all(map(known.range.holds, value if isinstance(value, tuple) else (value,))), key


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"data.threads": 10**25}, "data.threads=10000000000000000000000000: must lie in 1 ... 1024"),
        ({"data.prefetch": 10**25}, "data.prefetch=10000000000000000000000000: must lie in 1 ... 10,000"),
        ({"data.mean": (-1.0,)}, "data.mean=(-1.0,): must lie in 0 ... 1"),
        ({"data.std": (1e25,)}, "data.std=(1e+25,): must lie in 1e-06 ... 100"),
        ({"model.channels": -128}, "model.channels=-128: must lie in 1 ... 65,536"),
        ({"model.num_blocks": 10**25}, "model.num_blocks=10000000000000000000000000: must lie in 1 ... 256"),
        ({"model.multipliers": (1,) * 17}, "model.multipliers holds 17 values; 16 are the most"),
        (
            {"diffusion.beta_start": 0.9, "diffusion.beta_end": 0.1},
            "diffusion.beta_end=0.1: must be at least diffusion.beta_start=0.9",
        ),
        ({"train.batch_size": 10**9}, "train.batch_size=1000000000: must lie in 1 ... 1,048,576"),
        ({"train.sample_every_epochs": 1e-10}, "train.sample_every_epochs=1e-10: must be 0, or at least 1e-09"),
        ({"train.cpu_devices": 100_000}, "train.cpu_devices=100000: must lie in 0 ... 256"),
        ({"train.steps": 10**5000}, "train.steps=a number of 16,610 bits: must lie in 1 ... 2^31 - 1"),
        ({"interpolate.points": 10**9}, "interpolate.points=1000000000: must lie in 2 ... 100,000"),
        ({"interpolate.side": 10**6}, "interpolate.side=1000000: must lie in 2 ... 1000"),
        ({"eval.kid_subsets": 10**25}, "eval.kid_subsets=10000000000000000000000000: must lie in 1 ... 100,000"),
        ({"likelihood.probes": 10**25}, "likelihood.probes=10000000000000000000000000: must lie in 1 ... 10,000"),
        (
            {"eval.seeds": tuple(range(200)), "eval.steps": tuple(range(1, 201))},
            "the lists of eval make 40,000 rows; 10,000 are the most",
        ),
        (
            {"model.num_classes": 10_000, "sample.per_class": 1_000_000},
            "sample.per_class=1000000: image indices must stay below 2^31",
        ),
        ({"sample.indices": (*range(50_000), 7)}, "image 7 occurs more than once"),
        ({"data.path": "a\0b"}, "data.path='a\\x00b': holds a NUL character"),
        ({"data.path": "x" * 300}, "a part of it has 300 characters; 255 are the most"),
        ({"data.name": "x" * 5000}, "5,000 characters; 4,096 are the most"),
        ({"edit.mask": "~nosuchuser/mask.png"}, "there is no user 'nosuchuser' with a home folder"),
    ],
)
def test_lines(values, line):
    with pytest.raises(ConfigError) as raised:
        with_values(Config(), values)
    assert line in str(raised.value)


def test_betas_that_the_schedule_does_not_use_may_be_any():
    config = with_values(Config(), {"diffusion.schedule": "const", "diffusion.beta_end": 1e-5})
    assert config.diffusion.beta_start > config.diffusion.beta_end


def test_many_indices_are_checked_at_once():
    started = time.monotonic()
    with_values(Config(), {"sample.indices": tuple(range(100_000))})
    assert time.monotonic() - started < 5


def test_a_value_of_an_old_run_that_is_out_of_its_range_is_named():
    with pytest.raises(ConfigError, match=r"^data.threads=5000: must lie in 1 \.\.\. 1024$"):
        from_json(json.dumps({"data": {"threads": 5000}}))
