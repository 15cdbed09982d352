"""Batches: a function of (seed, step) alone, whatever the processes, the cache or the threads."""

import contextlib
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from ddim_jax.config import ConfigError, DataConfig
from ddim_jax.data.batch_order import BatchOrder, epoch_order, steps_for_epochs
from ddim_jax.data.batches import Batch, train_batches
from ddim_jax.data.reading import load_images
from ddim_jax.data.sources import Example, FolderSource, Source
from ddim_jax.data.transforms import ImageError


class Numbered(Source):
    """Example i is the number i written into the pixels of an asymmetric image; some are bad."""

    name = "numbered"
    num_classes = 1000

    def __init__(self, num: int, bad: tuple[int, ...] = ()) -> None:
        self.num, self.bad = num, bad
        self.reads = 0

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Example:
        self.reads += 1
        if index in self.bad:
            raise ImageError("the image is bad")
        return Example(np.array([[[index], [200]], [[index], [200]]], np.uint8), index)


CONFIG = DataConfig(image_size=2, channels=1, cache="host", threads=2)
CACHES: list[Any] = ["host", "none", "auto"]


def take(num: int, source: Source, config: DataConfig = CONFIG, start_step: int = 0, **keys: Any) -> list[Batch]:
    order = BatchOrder(**{"seed": 1, "batch_size": 8, **keys})
    with contextlib.closing(train_batches(source, config, order, start_step)) as batches:
        return list(itertools.islice(batches, num))


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_shapes_and_types() -> None:
    (batch,) = take(1, Numbered(20))
    assert batch.image.shape == (8, 2, 2, 1)
    assert (batch.image.dtype, batch.label.dtype, batch.index.dtype) == (np.uint8, np.int32, np.int32)
    np.testing.assert_array_equal(batch.index, np.arange(8))
    np.testing.assert_array_equal(batch.image[:, 0, 0, 0], batch.label)


@pytest.mark.parametrize(("num", "batch_size"), [(20, 8), (16, 8), (5, 8), (3, 8), (100, 7)])
def test_each_example_once_per_epoch(num: int, batch_size: int) -> None:
    steps = -(-4 * num // batch_size)
    labels = np.concatenate([batch.label for batch in take(steps, Numbered(num), batch_size=batch_size)])
    epochs = labels[: 4 * num].reshape(4, num)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num), (4, 1)))
    if num > 10:
        assert len({tuple(epoch) for epoch in epochs}) == 4  # each epoch has an order of its own


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("start_step", [1, 3, 11])
def test_step_k_depends_on_seed_and_k_alone(cache: Any, start_step: int) -> None:
    config = dataclasses.replace(CONFIG, cache=cache, flip=True)
    whole = take(14, Numbered(20), config)
    assert_equal(take(14 - start_step, Numbered(20), config, start_step=start_step), whole[start_step:])


def test_other_seeds_give_other_orders() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_far_steps_are_immediate() -> None:
    """Resuming at step 10^9 must not walk there; the indices stay exact."""
    indices = BatchOrder(seed=0, batch_size=128).examples(10**9, 50_000)
    epoch, place = divmod(10**9 * 128, 50_000)
    np.testing.assert_array_equal(indices, epoch_order(0, epoch, 50_000)[place : place + 128])


@pytest.mark.parametrize("flip", [False, True])
def test_cache_modes_are_equal(flip: bool) -> None:
    results = [take(9, Numbered(20), dataclasses.replace(CONFIG, cache=cache, flip=flip)) for cache in CACHES]
    assert_equal(results[0], results[1])
    assert_equal(results[0], results[2])


def test_threads_and_prefetch_change_nothing() -> None:
    config = dataclasses.replace(CONFIG, cache="none")
    many = dataclasses.replace(config, threads=7, prefetch=3)
    one = dataclasses.replace(config, threads=1, prefetch=1)
    assert_equal(take(9, Numbered(20), many), take(9, Numbered(20), one))


def test_cache_limit_decides_auto() -> None:
    small = Numbered(20)
    take(10, small, dataclasses.replace(CONFIG, cache="auto"))
    assert small.reads == 20  # each image once
    large = Numbered(20)
    take(10, large, dataclasses.replace(CONFIG, cache="auto", cache_limit_gib=79 / 2**30))
    assert large.reads >= 80  # 20 images of 4 bytes are 80 bytes, one too many: read at each use


@pytest.mark.parametrize("cache", CACHES[:2])
@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_global_batch(cache: Any, process_count: int) -> None:
    config = dataclasses.replace(CONFIG, cache=cache, flip=True)
    shares = [
        take(6, Numbered(20), config, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    joined = [jax.tree.map(lambda *each: np.concatenate(each), *parts) for parts in zip(*shares, strict=True)]
    assert_equal(joined, take(6, Numbered(20), config))


def test_batch_must_divide_by_processes() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size=9 must be divisible by 2, the number of processes"):
        BatchOrder(seed=0, batch_size=9, process_count=2)
    with pytest.raises(ValueError, match="process_index"):
        BatchOrder(seed=0, batch_size=8, process_index=2, process_count=2)


def test_flips_mirror_left_to_right() -> None:
    straight = take(5, Numbered(20))
    flipped = take(5, Numbered(20), dataclasses.replace(CONFIG, flip=True))
    for step, (before, after) in enumerate(zip(straight, flipped, strict=True)):
        mirrored = BatchOrder(seed=1, batch_size=8).flips(step)[:, None, None, None]
        np.testing.assert_array_equal(after.image, np.where(mirrored, before.image[:, :, ::-1], before.image))


def test_flips_are_fair_and_fresh() -> None:
    drawn = np.stack([BatchOrder(seed=0, batch_size=128).flips(step) for step in range(100)])
    assert abs(drawn.mean() - 0.5) < 4 * 0.5 / np.sqrt(drawn.size)
    assert len(np.unique(drawn, axis=0)) == 100


def test_flipping_leaves_the_cache_alone() -> None:
    """A batch is a copy: what is done to it must not show up an epoch later."""
    config = dataclasses.replace(CONFIG, flip=True)
    with contextlib.closing(train_batches(Numbered(4), config, BatchOrder(seed=0, batch_size=4))) as batches:
        for batch in itertools.islice(batches, 20):
            assert {int(v) for v in batch.image.min(axis=(1, 2, 3))} == {0, 1, 2, 3}
            batch.image[:] = 255


# --- unreadable images --------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES[:2])
def test_a_bad_image_ends_the_run(cache: Any) -> None:
    config = dataclasses.replace(CONFIG, cache=cache)
    with pytest.raises(ImageError) as caught:
        take(3, Numbered(20, bad=(13,)), config)
    assert str(caught.value) == "numbered, example 13: the image is bad"


@pytest.mark.parametrize("bad", [(13,), (0, 4, 5, 6), (18, 19), (0, 19), tuple(range(19))])
def test_skipping_is_deterministic(bad: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    config = dataclasses.replace(CONFIG, on_error="skip")
    reference = [batch.label for batch in take(6, Numbered(20))]
    good = [i for i in range(20) if i not in bad]
    with caplog.at_level(logging.WARNING, "ddim_jax.data.reading"):
        cached = take(6, Numbered(20, bad), config)
    assert f"left out {len(bad)} of 20 images; the first: numbered, example {bad[0]}: the image is bad" in caplog.text
    # The next good one in the source's order takes the place, the first after the last.
    for batch, labels in zip(cached, reference, strict=True):
        expected = [next((g for g in good if g >= label), good[0]) for label in labels]
        np.testing.assert_array_equal(batch.label, expected)
        np.testing.assert_array_equal(batch.image[:, 0, 0, 0], expected)
    uncached = dataclasses.replace(config, cache="none")
    assert_equal(take(6, Numbered(20, bad), uncached), cached)
    assert_equal(take(2, Numbered(20, bad), uncached, start_step=4), cached[4:])


def test_skipped_images_are_counted_without_cache(caplog: pytest.LogCaptureFixture) -> None:
    config = dataclasses.replace(CONFIG, cache="none", on_error="skip", threads=1, prefetch=1)
    with caplog.at_level(logging.WARNING, "ddim_jax.data.batches"):
        take(20, Numbered(20, bad=(3, 7)), config)
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(lines) == 2  # once each, not once an epoch
    assert lines[1].startswith("left out an image, 2 so far: numbered, example ")


@pytest.mark.parametrize("cache", CACHES[:2])
def test_nothing_but_bad_images(cache: Any) -> None:
    config = dataclasses.replace(CONFIG, cache=cache, on_error="skip")
    with pytest.raises(ImageError, match="none of "):
        take(1, Numbered(20, bad=tuple(range(20))), config)


def test_folder_errors_name_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    Image.new("RGB", (9, 9)).save(tmp_path / "c.png")
    Image.new("RGB", (8, 9)).save(tmp_path / "d.png")
    config = DataConfig(source="folder", path=str(tmp_path), image_size=8)
    source = FolderSource(str(tmp_path))
    for index, reason in (
        (1, "the file is empty"),
        (2, "9x9 pixels after data.crop=none"),
        (3, "8x9 pixels, not square"),
    ):
        with pytest.raises(ImageError, match=f"{'abcd'[index]}.png: .*{reason}"):
            load_images(source, config, [index])
    kept = load_images(source, dataclasses.replace(config, on_error="skip"), range(4))
    np.testing.assert_array_equal(kept.index, [0])


# --- reading in order, threads, epochs ----------------------------------------------------------


def test_load_images_keeps_the_order() -> None:
    indices = [*range(99, 0, -2), 5, 5]
    images = load_images(Numbered(100), CONFIG, indices)
    np.testing.assert_array_equal(images.label, indices)
    np.testing.assert_array_equal(images.index, indices)
    np.testing.assert_array_equal(images.image[:, 0, 0, 0], indices)
    assert load_images(Numbered(100), CONFIG, []).image.shape == (0, 2, 2, 1)


def test_load_images_leaves_bad_ones_out() -> None:
    config = dataclasses.replace(CONFIG, on_error="skip")
    images = load_images(Numbered(10, bad=(3, 8)), config, [9, 8, 3, 2])
    np.testing.assert_array_equal(images.label, [9, 2])
    np.testing.assert_array_equal(images.index, [9, 2])


def reader_threads() -> Iterator[threading.Thread]:
    return (thread for thread in threading.enumerate() if thread.name.startswith("grain"))


def test_closing_stops_the_threads() -> None:
    batches = train_batches(Numbered(20), dataclasses.replace(CONFIG, cache="none"), BatchOrder(seed=0, batch_size=8))
    next(batches)
    assert any(reader_threads())
    batches.close()
    deadline = time.monotonic() + 10
    while any(reader_threads()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(reader_threads())


@pytest.mark.parametrize(
    ("num", "batch_size", "epochs", "steps"),
    [(50_000, 128, 1, 391), (50_000, 128, 10, 3907), (10, 1, 1.1, 11), (100, 10, 0.05, 1), (7, 7, 3, 3)],
)
def test_steps_for_epochs(num: int, batch_size: int, epochs: float, steps: int) -> None:
    assert steps_for_epochs(num, batch_size, epochs) == steps
