"""Numbers of single images beside what they should be."""

import dataclasses

import numpy as np
import pytest

from ddim_jax.config import EvalConfig
from ddim_jax.errors import UserError
from ddim_jax.measuring.accumulators import ImageValues
from ddim_jax.measuring.extractors import pixels_extractor
from ddim_jax.measuring.figures import METRICS, check_known, fields_needed
from ddim_jax.measuring.measurement import Measurement
from ddim_jax.measuring.perceptual import PerceptualDistance
from ddim_jax.measuring.reference_file import Reference
from ddim_jax.measuring.wanted import COMPARISONS, Known, Wanted
from ddim_jax.metrics import psnr, ssim
from ddim_jax.pixels import Normalization

NUM, SHAPE = 7, (8, 8, 1)
SETTINGS = dataclasses.replace(EvalConfig(), metrics=("psnr", "ssim"), features_kept=5)
KNOWN = Known(frozenset({"truth"}))
NOWHERE = Reference(np.zeros(64), np.eye(64), None, None, {})


def images(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (NUM, *SHAPE), np.uint8)


def measured(*parts, known=KNOWN, **changes):
    measurement = Measurement(pixels_extractor(SHAPE, 4), dataclasses.replace(SETTINGS, **changes), NUM, known)
    for part in parts:
        measurement.update(part, images()[part], Wanted(truth=images(1)[part]))
    return measurement


def test_the_order_of_images_and_machines_does_not_matter():
    whole = measured(np.arange(NUM)).figures(NOWHERE)
    assert whole == {
        "psnr": pytest.approx(psnr(images(), images(1), 255).mean(), rel=1e-12),
        "ssim": pytest.approx(ssim(images(), images(1), 255).mean(), rel=1e-12),
    }
    assert measured(np.array([6, 0, 3]), np.array([5, 4, 1, 2])).figures(NOWHERE) == whole
    one, other = measured(np.array([6, 0, 3])), measured(np.array([5, 4, 1, 2]))
    one.merge(other)
    assert one.figures(NOWHERE) == whole


def test_sums_are_read_again_to_the_bit():
    one = measured(np.array([6, 0, 3]))
    arrays = one.to_arrays()
    assert {"psnr.values", "waiting.psnr", "ssim.values", "waiting.ssim"} <= set(arrays)
    assert measured().fits(arrays) and not measured(known=Known()).fits(arrays)
    again = Measurement.from_arrays(pixels_extractor(SHAPE, 4), SETTINGS, arrays, KNOWN)
    rest = np.array([5, 4, 1, 2])
    again.update(rest, images()[rest], Wanted(truth=images(1)[rest]))
    assert again.figures(NOWHERE) == measured(np.arange(NUM)).figures(NOWHERE)


def test_an_image_that_is_its_truth_counts_as_100_db():
    measurement = measured(metrics=("psnr",))
    measurement.update(np.arange(NUM), images(), Wanted(truth=images()))
    assert measurement.figures(NOWHERE) == {"psnr": 100.0}


def test_the_range_is_that_of_the_data():
    normalization = Normalization(dtype="float32", low=(-2.0,), high=(6.0,))
    extractor = pixels_extractor(SHAPE, 4, normalization)
    values, truth = (np.float32(images(seed) / 255 * 8 - 2) for seed in (0, 1))
    measurement = Measurement(extractor, SETTINGS, NUM, Known(frozenset({"truth"}), normalization))
    measurement.update(np.arange(NUM), values, Wanted(truth=truth))
    expected = measured(np.arange(NUM)).figures(NOWHERE)
    assert measurement.figures(NOWHERE) == pytest.approx(expected, rel=1e-5)


def test_values_are_those_of_their_images():
    sums = ImageValues(np.zeros(3)).update(np.array([[2.0], [5.0]]), np.array([2, 0]))
    assert sums.values.tolist() == [5.0, 0.0, 2.0]


def test_metrics_say_what_they_need():
    assert fields_needed(SETTINGS) == {"truth", "baseline"}
    assert fields_needed(dataclasses.replace(SETTINGS, metrics=("accuracy", "fid"))) == {"label"}
    assert fields_needed(EvalConfig()) == frozenset()
    for row in COMPARISONS.values():
        assert set(row.needs) <= set(Wanted._fields)


def test_figures_of_pixels_are_called_the_same_with_all_extractors():
    assert [figure.name_with("pixels") for figure in METRICS["psnr"].figures] == ["psnr", "bicubic_psnr"]
    assert METRICS["ssim"].figures[0].heading_with("classifier") == "SSIM"


def test_what_is_not_known_is_refused():
    with pytest.raises(UserError, match="no psnr, since what these images should be is not known; leave it out"):
        check_known(SETTINGS, pixels_extractor(SHAPE, 4), Known())
    check_known(SETTINGS, pixels_extractor(SHAPE, 4), KNOWN)


def squared(images, others):
    """Stands for LPIPS."""
    return ((images - others) ** 2).mean(axis=(1, 2, 3))


def test_a_network_may_compare_images():
    both = Known(frozenset({"truth", "baseline"}), perceptual=squared)
    measurement = measured(known=both, metrics=("lpips",))
    measurement.update(np.arange(NUM), images(), Wanted(truth=images(1), baseline=images(2)))
    distances = [((images(seed) / 255 - images(1) / 255) ** 2).mean() for seed in (0, 2)]
    assert measurement.figures(NOWHERE) == pytest.approx({"lpips": distances[0], "bicubic_lpips": distances[1]})


def test_without_weights_a_network_is_left_out():
    settings = dataclasses.replace(SETTINGS, metrics=("psnr", "lpips"))
    check_known(settings, pixels_extractor(SHAPE, 4), KNOWN)
    assert set(measured(np.arange(NUM), metrics=settings.metrics).figures(NOWHERE)) == {"psnr"}
    with pytest.raises(UserError, match="no lpips, since what these images should be is not known"):
        check_known(dataclasses.replace(SETTINGS, metrics=("lpips",)), pixels_extractor(SHAPE, 4), Known())


def test_images_that_the_network_does_not_take():
    with pytest.raises(UserError, match="no lpips of images of 8x8 with 1 channels: its network takes"):
        PerceptualDistance("absent.pth", SHAPE, 4)
    with pytest.raises(UserError, match=r"eval\.lpips_path='absent\.pth' does not exist"):
        PerceptualDistance("absent.pth", (16, 16, 3), 4)
