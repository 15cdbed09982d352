"""Statistics of pixels against NumPy in float64, and their independence of order, threads and cache."""

import dataclasses
import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddim_jax.config import DataConfig
from ddim_jax.data.prepared import open_images
from ddim_jax.data.reading import load_images
from ddim_jax.data.sources import DigitsSource, Example, FolderSource, Source
from ddim_jax.data.statistics import pixel_statistics
from ddim_jax.data.transforms import ImageError
from ddim_jax.errors import UserError


class Coloured(Source):
    """Random images whose channels differ in brightness, in a given order; some are bad."""

    name = "coloured"
    num_classes = 0

    def __init__(self, order: np.ndarray, bad: tuple[int, ...] = ()) -> None:
        self.order, self.bad = order, bad

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Example:
        number = int(self.order[index])
        if number in self.bad:
            raise ImageError("the image is bad")
        image = np.random.default_rng(number).integers((0, 50, 200), (256, 100, 256), (4, 4, 3))
        return Example(image.astype(np.uint8), 0)


CONFIG = DataConfig(image_size=4, channels=3, threads=2)


def test_equals_numpy_and_the_exact_value() -> None:
    source = Coloured(np.arange(700))
    mean, std = pixel_statistics(source, CONFIG, progress=False)
    pixels = load_images(source, CONFIG, range(700)).image.reshape(-1, 3)
    np.testing.assert_allclose(mean, (pixels / 255).mean(0), rtol=1e-13)
    np.testing.assert_allclose(std, (pixels / 255).std(0), rtol=1e-12)
    for channel in range(3):
        values = [int(v) for v in pixels[:, channel]]
        exact_mean = Fraction(sum(values), 255 * len(values))
        exact_variance = Fraction(sum(v * v for v in values), 255**2 * len(values)) - exact_mean**2
        assert mean[channel] == float(exact_mean)
        assert std[channel] == pytest.approx(float(exact_variance) ** 0.5, rel=4e-16)


def test_order_and_threads_do_not_show() -> None:
    expected = pixel_statistics(Coloured(np.arange(600)), CONFIG, progress=False)
    shuffled = Coloured(np.random.default_rng(0).permutation(600))
    for threads in (1, 5):
        assert pixel_statistics(shuffled, dataclasses.replace(CONFIG, threads=threads), progress=False) == expected


def test_digits_are_normalised_by_them() -> None:
    config = DataConfig(image_size=8, channels=1)
    source = DigitsSource()
    (mean,), (std,) = pixel_statistics(source, config)
    pixels = load_images(source, config, range(len(source))).image / 255
    normalised = (pixels - mean) / std
    assert abs(normalised.mean()) < 1e-12
    assert abs(normalised.std() - 1) < 1e-12


def test_unusable_images_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    skip = dataclasses.replace(CONFIG, on_error="skip")
    with caplog.at_level(logging.WARNING, "ddim_jax.data.reading"):
        found = pixel_statistics(Coloured(np.arange(300), bad=(7, 299)), skip, progress=False)
    assert "left out 2 of 300 images; the first: coloured, example 7: the image is bad" in caplog.text
    assert found == pixel_statistics(Coloured(np.delete(np.arange(300), [7, 299])), CONFIG, progress=False)
    with pytest.raises(ImageError, match="coloured, example 7: the image is bad"):
        pixel_statistics(Coloured(np.arange(300), bad=(7,)), CONFIG, progress=False)
    with pytest.raises(ImageError, match="none of 3 images can be used; the first: coloured, example 0"):
        pixel_statistics(Coloured(np.arange(3), bad=(0, 1, 2)), skip, progress=False)


def test_the_same_from_prepared_images(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(12):
        size = generator.integers(10, 40, 2)
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    config = DataConfig(
        source="folder",
        path=str(tmp_path),
        crop="center",
        resize="box",
        image_size=8,
        on_error="skip",
        cache="disk",
        cache_dir=str(tmp_path / ".cache"),
    )
    expected = pixel_statistics(FolderSource(str(tmp_path)), config)
    assert pixel_statistics(open_images(config), config) == expected


def test_a_constant_channel_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (8, 9, 7)).save(tmp_path / "b.png")
    with pytest.raises(
        UserError, match=r"channel 1 of flat is the same in all pixels, .*; set data\.mean and data\.std"
    ):
        pixel_statistics(FolderSource(str(tmp_path), "flat"), CONFIG, progress=False)
