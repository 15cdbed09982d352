"""One of each, added from outside the package: a run that trains, draws and is measured by nothing but such."""

import json

import numpy as np
import pytest
from small import plain_digits

from ddim_jax import names
from ddim_jax.config import Config, ConfigError, with_values
from ddim_jax.data.sources import SOURCES, Example, Source
from ddim_jax.diffusion.ddim import ddim_table
from ddim_jax.diffusion.samplers import SAMPLERS, SamplerRule
from ddim_jax.diffusion.schedule import SCHEDULES, ScheduleRule
from ddim_jax.diffusion.spacing import SPACINGS, SpacingRule
from ddim_jax.jobs.evaluate import evaluate
from ddim_jax.jobs.sample import sample
from ddim_jax.jobs.train import train
from ddim_jax.measuring.extractor import Extractor, FeatureProgram, Features
from ddim_jax.measuring.extractors import EXTRACTORS
from ddim_jax.measuring.figures import METRICS, Figure, Metric


class Stripes(Source):
    """Images whose row i % 8 is white."""

    name, num_classes = "stripes", 0

    def __len__(self):
        return 32

    def __getitem__(self, index):
        image = np.zeros((8, 8, 1), np.uint8)
        image[index % 8] = 255
        return Example(image, 0)

    def identity(self):
        return {"source": "stripes"}


def straight(num_levels, beta_start, beta_end):
    return 1 - np.arange(1, num_levels + 1) / (num_levels + 1)


def half(schedule, pairs):
    """DDIM half way between deterministic and DDPM."""
    return ddim_table(schedule, pairs, eta=0.5)


def every_other(num_levels, steps, schedule=None):
    return np.arange(num_levels, 0, -2)[:steps]


def row_means(config, spatial):
    program = FeatureProgram(lambda _, images: Features((images / 255).mean((2, 3))), (), config.eval.batch_size)
    return Extractor("row_means", {"name": "row_means"}, program, dimension=config.data.image_size)


def brightness(sums, reference, settings):
    return [float(sums.sums["moments"].mean.mean() - reference.mean.mean())]


@pytest.fixture
def added(monkeypatch):
    """Adds all of them, for one test."""
    monkeypatch.setattr(names, "_added", {})
    figures = (Figure("brightness", "brightness", "brightness", higher_is_better=False),)
    rows = [
        (names.DataSource, SOURCES, "stripes", lambda config: Stripes()),
        (names.ScheduleName, SCHEDULES, "straight", ScheduleRule(straight)),
        (names.SamplerName, SAMPLERS, "half", SamplerRule(half, eta="implied")),
        (names.Spacing, SPACINGS, "every_other", SpacingRule(every_other)),
        (names.ExtractorName, EXTRACTORS, "row_means", row_means),
        (
            names.MetricName,
            METRICS,
            "brightness",
            Metric(figures, brightness, words=("brightness",), accumulators=("moments",)),
        ),
    ]
    for list_of_names, mapping, name, row in rows:
        names.add(list_of_names, name)
        monkeypatch.setitem(mapping, name, row)


@pytest.mark.slow
def test_a_run_of_nothing_but_additions(added, tmp_path):
    config = with_values(
        plain_digits(),
        {
            "data.source": "stripes",
            "diffusion.schedule": "straight",
            "train.final_sample_steps": (),
            "sample.sampler": "half",
            "sample.spacing": "every_other",
            "sample.steps": 5,
            "sample.num": 3,
            "eval.samplers": ("half", "ddim"),
            "eval.steps": (5,),
            "eval.num": 8,
            "eval.extractor": "row_means",
            "eval.metrics": ("brightness",),
        },
    )
    train(config, tmp_path)
    folder = sample(config, tmp_path)
    assert folder.name.startswith("step2-half-S5-n3-")
    assert len(list(folder.glob("0*.png"))) == 3
    table = evaluate(config, tmp_path)
    lines = json.loads((table / "table.json").read_text())["lines"]
    assert [line["sampler"] for line in lines] == ["ddim", "half"]
    assert all(-1 < line["figures"]["row_means_brightness"]["mean"] < 1 for line in lines)
    # What was written says what made it.
    assert json.loads((tmp_path / "config.json").read_text())["diffusion"]["schedule"] == "straight"


def test_without_them_they_are_names_that_do_not_exist():
    for key, name in (("data.source", "stripes"), ("diffusion.schedule", "straight"), ("sample.sampler", "half")):
        with pytest.raises(ConfigError, match=f"{key}: '{name}' is not one of"):
            with_values(Config(), {key: name})
