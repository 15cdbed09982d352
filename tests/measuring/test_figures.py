"""The rows of metrics: each says all there is to know of one, so that a row is all that a new one needs."""

import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import names
from ddim_jax.config import Config, EvalConfig, with_values
from ddim_jax.errors import UserError
from ddim_jax.measuring.accumulators import ACCUMULATORS
from ddim_jax.measuring.extractor import Extractor, FeatureProgram, Features
from ddim_jax.measuring.feature_sums import FeatureSums
from ddim_jax.measuring.figures import METRICS, Counts, Figure, Metric, chosen_metrics, computed_by, heading
from ddim_jax.measuring.measurement import Measurement
from ddim_jax.measuring.reference_file import Reference
from ddim_jax.metrics.inception_score import InceptionSums
from ddim_jax.metrics.moments import Moments
from ddim_jax.tables.lines import columns, comparison, lines
from ddim_jax.tables.rows import Result
from ddim_jax.training.best import check_metric, deciding_figure

NUM, DIMENSION, CLASSES = 12, 4, 3
SETTINGS = EvalConfig(metrics=("fid", "is"), is_splits=2, features_kept=5)
NOWHERE = Reference(np.zeros(DIMENSION), np.eye(DIMENSION), 9, None, {})


def extractor(prefix="inception", classes=CLASSES, spatial=False):
    """Four pixels as features, the first as logits."""

    def function(_, images):
        pixels = images.reshape(len(images), -1) / 255
        wide = jnp.tile(pixels, (1, 506))[:, :2023]
        return Features(pixels, pixels[:, :classes] if classes else None, wide if spatial else None)

    return Extractor(prefix, {"name": prefix}, FeatureProgram(function, (), 2), DIMENSION, classes, spatial)


def pictures():
    return np.random.default_rng(0).integers(0, 256, (NUM, 2, 2, 1), np.uint8)


# --- rows ---------------------------------------------------------------------------------------


def test_rows_are_those_that_a_config_may_name():
    assert tuple(METRICS) == names.choices(names.MetricName)
    keys = {field.name for field in dataclasses.fields(EvalConfig)}
    for metric in METRICS.values():
        assert set(metric.accumulators) <= set(ACCUMULATORS) and set(metric.settings) <= keys
        assert sum(figure.decides for figure in metric.figures) <= 1
    figures = [figure.name for metric in METRICS.values() for figure in metric.figures]
    assert len(set(figures)) == len(figures)


def test_settings_that_decide_are_those_of_all_metrics():
    expected = {"is_splits": 2, "kid_subsets": 100, "kid_subset_size": 1000, "neighbours": 3, "features_kept": 5}
    assert computed_by(SETTINGS) == expected
    assert computed_by(dataclasses.replace(SETTINGS, metrics=("kid",))) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(("fid", "FID"), ("is_std", "IS, std of splits"), ("kid_mean", "KID"), ("recall", "recall")),
        *(("pixels_frechet", "pixels Fréchet distance"), ("classifier_score_std", "classifier score std")),
        ("pixels_pca_kernel_distance_mean", "pixels pca kernel distance mean"),
        *(("cmmd", "CMMD"), ("dinov2_gaussian_distance", "dinov2 gaussian distance"), ("coverage", "coverage")),
        *(("dinov2_frechet", "dinov2 Fréchet distance"), ("clip_vitb32_density", "clip vitb32 density")),
    ],
)
def test_headings(name, words):
    assert heading(name) == words


def test_each_distance_has_its_name_with_its_own_extractor():
    fid, cmmd = METRICS["fid"].figures[0], METRICS["cmmd"].figures[0]
    assert [fid.name_with(prefix) for prefix in ("inception", "clip")] == ["fid", "clip_frechet"]
    assert [cmmd.name_with(prefix) for prefix in ("clip", "inception")] == ["cmmd", "inception_gaussian_distance"]


def test_what_is_too_few_and_what_says_nothing():
    counts = Counts(images=50, kept=3, dimension=50)
    fid, precision_recall = METRICS["fid"], METRICS["precision_recall"]
    assert "50 images are no more than the 50 features" in fid.caution(counts, SETTINGS)
    assert fid.caution(counts._replace(images=51), SETTINGS) == "" == fid.too_few(counts, SETTINGS)
    assert precision_recall.too_few(counts, SETTINGS).startswith("eval.neighbours=3: ")
    assert precision_recall.too_few(counts._replace(kept=4), SETTINGS) == ""
    assert "leave density_coverage out" in METRICS["density_coverage"].too_few(counts, SETTINGS)


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("is", 0, r"^train\.measure_metric=is: eval\.extractor=pixels has no classes; use fid$"),
        ("kid", 0, r"^train\.measure_metric=kid: the reference has no features of single images; use fid$"),
        ("precision_recall", 0, "has no features of single images; use fid"),
        ("sfid", 0, "metric 'sfid' does not exist; did you mean 'fid'"),
    ],
)
def test_metrics_that_cannot_decide(name, classes, message):
    with pytest.raises(UserError, match=message):
        deciding_figure(name, extractor("pixels", classes), NOWHERE)


def test_two_shares_do_not_say_which_checkpoint_is_better():
    reference = NOWHERE._replace(features=np.zeros((9, DIMENSION), np.float32))
    message = (
        "measure_metric=precision_recall: none of its figures alone says which is better; choose from: fid, is, kid"
    )
    with pytest.raises(UserError, match=message):
        check_metric(with_values(Config(), {"train.measure_every": 5, "train.measure_metric": "precision_recall"}))
    assert [deciding_figure(name, extractor(), reference).name for name in ("fid", "is", "kid")] == [
        "fid",
        "is_mean",
        "kid_mean",
    ]


# --- a metric from outside ----------------------------------------------------------------------


def brightness(sums, reference, settings):
    """How much brighter images are than the reference's."""
    return [float(sums.sums["moments"].mean.mean() - reference.mean.mean()), float(settings.components)]


BRIGHTNESS = Metric(
    figures=(
        Figure("brightness", "brightness", "Brightness", higher_is_better=True, decides=True),
        Figure("brightness_setting", "brightness_setting", "Setting"),
    ),
    compute=brightness,
    words=("brightness",),
    accumulators=("moments",),
    too_few=lambda counts, settings: "eval.num: take more" if counts.images < 3 else "",
)


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setattr(names, "_added", {})
    names.add(names.MetricName, "brightness")
    monkeypatch.setitem(METRICS, "brightness", BRIGHTNESS)


def test_a_metric_from_outside_is_one_row(added):
    assert "brightness" in names.choices(names.MetricName)
    settings = dataclasses.replace(SETTINGS, metrics=("brightness", "fid"), components=7)
    found = {}
    for prefix in ("inception", "pixels"):
        measurement = Measurement(extractor(prefix), settings, NUM)
        measurement.update(np.arange(NUM), pictures())
        found[prefix] = measurement.figures(NOWHERE)
    assert list(found["inception"]) == ["fid", "brightness", "brightness_setting"]
    assert list(found["pixels"]) == ["pixels_frechet", "pixels_brightness", "pixels_brightness_setting"]
    assert found["inception"]["brightness"] == pytest.approx(pictures().mean() / 255, rel=1e-6)
    assert found["pixels"]["pixels_brightness_setting"] == 7
    assert deciding_figure("brightness", extractor(), NOWHERE) is BRIGHTNESS.figures[0]
    assert [metric.too_few(Counts(2, 2, 4), settings) for metric in chosen_metrics(settings)] == [
        "",
        "eval.num: take more",
    ]
    result = Result("a", {"images": "a"}, None, NUM, found["pixels"], None, None, 1.0, "1 x cpu", {})
    table = lines([result], comparison("", {"name": "pixels"}, NUM, "", True))
    assert [column.heading for column in columns(table)][1:4] == [
        "pixels Fréchet distance",
        "pixels brightness",
        "pixels brightness setting",
    ]


def test_without_its_row_a_metric_is_refused():
    with pytest.raises(UserError, match="metric 'brightness' does not exist; choose from: fid, fid_infinity, is, kid"):
        Measurement(extractor(), dataclasses.replace(SETTINGS, metrics=("brightness",)), NUM)


# --- files --------------------------------------------------------------------------------------

# What the versions before wrote. Half-measured sets of theirs are read by these names.
ALWAYS = {"seen", "kept_index", "kept", "waiting_index", "waiting.features"}
MOMENTS = {"moments.count", "moments.mean", "moments.scatter"}
CLASSES_OF = {"classes.split_of", "classes.count", "classes.probabilities", "classes.negative_entropy"}
SPATIAL = {"spatial.count", "spatial.mean", "spatial.scatter", "waiting.spatial"}


def test_names_of_arrays_stay():
    def saved(metrics, **changes):
        return set(Measurement(extractor(**changes), dataclasses.replace(SETTINGS, metrics=metrics), NUM).to_arrays())

    assert saved(("fid",)) == saved(("kid", "precision_recall")) == ALWAYS | MOMENTS
    assert saved(("is",)) == saved(("fid", "is")) == ALWAYS | MOMENTS | CLASSES_OF | {"waiting.logits"}
    assert saved(("fid", "is"), classes=0) == ALWAYS | MOMENTS
    reference = FeatureSums.empty(extractor(spatial=True), NUM, SETTINGS, ("moments", "spatial"))
    assert set(reference.to_arrays()) == ALWAYS | MOMENTS | SPATIAL


def test_a_half_measured_set_of_the_version_before_is_read():
    """Eight of twelve images: six in the sums, two that wait."""
    features = pictures().reshape(NUM, -1).astype(np.float32) / np.float32(255)
    logits = features[:, :CLASSES]
    split_of = InceptionSums.empty(NUM, CLASSES, 2).split_of
    p = np.exp(logits[:6].astype(float)) / np.exp(logits[:6].astype(float)).sum(1, keepdims=True)
    in_split = (split_of[:6] == np.arange(2)[:, None]).astype(float)
    kept_index = np.array([0, 2, 4, 7, 9])
    centred = features[:6] - features[:6].astype(float).mean(0)
    file = io.BytesIO()
    np.savez(
        file,
        **{
            "seen": np.arange(NUM) < 8,
            "kept_index": kept_index,
            "kept": features[kept_index] * (kept_index < 8)[:, None],
            "waiting_index": np.array([6, 7]),
            "moments.count": np.asarray(6, np.int64),
            "moments.mean": features[:6].astype(float).mean(0),
            "moments.scatter": centred.T @ centred,
            "classes.split_of": split_of,
            "classes.count": in_split.sum(1).astype(np.int64),
            "classes.probabilities": in_split @ p,
            "classes.negative_entropy": in_split @ (p * np.log(p)).sum(1),
            "waiting.features": features[6:8],
            "waiting.logits": logits[6:8],
        },
    )
    file.seek(0)
    settings = dataclasses.replace(SETTINGS, metrics=("fid", "is", "kid"), kid_subsets=3)
    with np.load(file) as arrays:
        resumed = Measurement.from_arrays(extractor(), settings, dict(arrays))
    np.testing.assert_array_equal(resumed.missing, [8, 9, 10, 11])
    resumed.update(resumed.missing, pictures()[8:])
    whole = Measurement(extractor(), settings, NUM)
    whole.update(np.arange(NUM), pictures())
    real = np.random.default_rng(1).normal(size=(20, DIMENSION)).astype(np.float32)
    moments = Moments.empty(DIMENSION).update(real)
    reference = Reference(moments.mean, moments.covariance, 20, real, {})
    expected = whole.figures(reference)
    assert list(expected) == ["fid", "is_mean", "is_std", "kid_mean", "kid_std"]
    assert resumed.figures(reference) == pytest.approx(expected, rel=1e-5)
