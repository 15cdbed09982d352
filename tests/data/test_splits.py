"""Splits of sources that have but one: the strings of TFDS with TFDS's meaning, and one line for what is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddim_jax.config import DataConfig
from ddim_jax.data.prepared import open_images, open_validation
from ddim_jax.data.reading import load_images
from ddim_jax.data.sources import DigitsSource, FolderSource
from ddim_jax.data.splits import split_indices
from ddim_jax.errors import UserError


def save(path: Path, level: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)


def levels(source: Any) -> list[int]:
    return [int(source[i].image[0, 0, 0]) for i in range(len(source))]


# --- the strings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(12)),
        ("train[:5]", range(5)),
        ("train[5:]", range(5, 12)),
        ("train[3:1_0]", range(3, 10)),
        ("train[-2:]", range(10, 12)),
        ("train[:50%]", range(6)),
        ("train[:90%]", range(11)),  # 10.8
        ("train[90%:]", range(11, 12)),
        ("train[:12.5%]", range(2)),  # 1.5, to the even neighbour
        ("train[-25%:]", range(9, 12)),
        ("train[10:50%]", range(1, 6)),  # both are percentages
        ("train[8:]+train[:2]", [8, 9, 10, 11, 0, 1]),
        ("train[:2] + train[1:3]", [0, 1, 1, 2]),
        ("train[5:5]+train[:1]", [0]),
    ],
)
def test_selection(split: str, expected: Any) -> None:
    np.testing.assert_array_equal(split_indices(split, 12, "it"), list(expected))


@settings(deadline=None, derandomize=True)
@given(num=st.integers(1, 300), percent=st.decimals(0, 100, places=1))
def test_adjoining_slices_are_a_partition(num: int, percent: Any) -> None:
    joined = split_indices(f"train[:{percent}%]+train[{percent}%:]", num, "it")
    np.testing.assert_array_equal(joined, np.arange(num))


_BOUNDS = st.one_of(
    st.just(""), st.integers(-40, 40).map(str), st.integers(-110, 110).map("{}%".format), st.just("33.3%")
)
_PARTS = st.one_of(
    st.sampled_from(["train", "test", "train[5%]", "train[:]"]),
    st.tuples(_BOUNDS, _BOUNDS).map("train[{0[0]}:{0[1]}]".format),
)


@settings(deadline=None, derandomize=True)
@given(num=st.integers(1, 40), parts=st.lists(_PARTS, min_size=1, max_size=3))
def test_the_meaning_is_that_of_tfds(num: int, parts: list[str]) -> None:
    """The same examples where TFDS accepts a string; refused where it refuses, or selects nothing."""
    tfds = pytest.importorskip("tensorflow_datasets")
    split = "+".join(parts)
    info = tfds.core.SplitInfo(name="train", shard_lengths=[num], num_bytes=0)
    try:
        pieces = tfds.core.ReadInstruction.from_spec(split).to_absolute({"train": info})
        expected = [i for piece in pieces for i in range(num)[slice(piece.from_, piece.to)]]
    except (ValueError, AssertionError):
        expected = []
    if expected:
        np.testing.assert_array_equal(split_indices(split, num, "it"), expected)
    else:
        with pytest.raises(UserError):
            split_indices(split, num, "it")


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        ("test", "split 'test': flat has one split, train; take a slice of it, such as train[:90%]"),
        ("train+test[:5]", "split 'train+test[:5]': flat has one split, train; take a slice of it"),
        ("train[:90", "split 'train[:90' cannot be understood; write train, a slice such as train[:90%]"),
        ("train[7]", "split 'train[7]' cannot be understood; "),
        ("train[:]", "split 'train[:]' cannot be understood; "),
        ("train[:1.5]", "split 'train[:1.5]' cannot be understood; "),
        ("train[:2shard]", "split 'train[:2shard]' cannot be understood; "),
        ("", "split '' cannot be understood; "),
        ("train+", "split 'train+' cannot be understood; "),
        ("train[:0]", "split 'train[:0]' selects none of the 1,200 images of flat"),
        ("train[9:3]", "split 'train[9:3]' selects none of the 1,200 images of flat"),
        ("train[:1201]", "split 'train[:1201]' reaches beyond the 1,200 images of flat"),
        ("train[:101%]", "split 'train[:101%]' reaches beyond the 1,200 images of flat"),
    ],
)
def test_mistakes_are_one_line(split: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        split_indices(split, 1200, "flat")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


# --- the sources --------------------------------------------------------------------------------


def test_digits() -> None:
    whole = DigitsSource()
    part = DigitsSource("train[-3:]+train[:2]")
    assert len(part) == 5
    assert part.num_classes == 10
    for index, original in enumerate([1794, 1795, 1796, 0, 1]):
        np.testing.assert_array_equal(part[index].image, whole[original].image)
        assert part[index].label == whole[original].label
    with pytest.raises(IndexError):
        part[5]


def test_a_slice_of_a_folder_keeps_files_and_classes(tmp_path: Path) -> None:
    for level in range(10):
        save(tmp_path / "abc"[level // 4] / f"{level}.png", level)
    part = FolderSource(str(tmp_path), split="train[5:]")
    assert levels(part) == [5, 6, 7, 8, 9]
    # Numbered as in the whole folder, though class a is not in the slice.
    assert [part[i].label for i in range(5)] == [1, 1, 1, 2, 2]
    assert part.num_classes == 3
    assert part.where(0) == str(tmp_path / "b" / "5.png")


def test_identity_of_a_folder(tmp_path: Path) -> None:
    for level in range(4):
        save(tmp_path / "here" / "b" / f"{level}.png", level)

    def identity(split: str = "train", path: Path = tmp_path / "here") -> dict[str, str | int]:
        return FolderSource(str(path), split=split).identity()

    whole, last = identity(), identity("train[3:]")
    assert whole == identity("train[:4]")
    assert whole != identity("train[:3]")
    (tmp_path / "here").rename(tmp_path / "there")
    assert whole == identity(path=tmp_path / "there")
    (tmp_path / "there").rename(tmp_path / "here")
    # Another class is there now: the last file is the same, its label is not.
    save(tmp_path / "here" / "a" / "0.png", 0)
    assert last != identity("train[4:]")
    save(tmp_path / "here" / "b" / "3.png", 3)
    assert identity("train[4:]") != identity("train[3:4]")


def test_validation_images(tmp_path: Path) -> None:
    for level in range(10):
        save(tmp_path / f"{level}.png", level)
    config = DataConfig(source="folder", path=str(tmp_path), split="train[:80%]", validation="train[80%:]")
    validation = open_validation(config)
    assert validation is not None
    assert levels(validation) == [8, 9]
    assert levels(open_images(config)) == list(range(8))
    assert levels(open_images(config, "train[:2]")) == [0, 1]
    assert open_validation(DataConfig()) is None


def test_celeba_partitions(tmp_path: Path) -> None:
    """Files named as in CelebA's archive, with its sizes: a slice is a partition, the crop that of DDIM's code."""
    generator = np.random.default_rng(0)
    for number in range(1, 21):
        pixels = generator.integers(0, 256, (12, 10, 3), np.uint8)
        image = Image.fromarray(pixels).resize((178, 218), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{number:06d}.jpg", quality=95)
    config = DataConfig(
        source="folder",
        path=str(tmp_path),
        split="train[:16]",
        validation="train[16:18]",
        crop="celeba",
        resize="bilinear",
        image_size=64,
        cache="disk",
        cache_dir=str(tmp_path / ".cache"),
    )
    train, validation, test = open_images(config), open_validation(config), open_images(config, "train[18:]")
    assert validation is not None
    for source, numbers in ((train, range(1, 17)), (validation, (17, 18)), (test, (19, 20))):
        assert [Path(source.where(i)).name for i in range(len(source))] == [f"{number:06d}.jpg" for number in numbers]
        images = load_images(source, config, range(len(source)))
        for image, number in zip(images.image, numbers, strict=True):
            with Image.open(tmp_path / f"{number:06d}.jpg") as original:
                expected = original.crop((25, 57, 153, 185)).resize((64, 64), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(image, np.asarray(expected))
