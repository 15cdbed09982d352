"""Images prepared on disk: the same bytes after any number of kills, the same batches as every other cache."""

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddim_jax.config import DataConfig
from ddim_jax.data import prepared
from ddim_jax.data.batch_order import BatchOrder
from ddim_jax.data.batches import Batch, train_batches
from ddim_jax.data.prepared import PreparedSource, open_images, prepare_on_disk
from ddim_jax.data.reading import load_images, read_example
from ddim_jax.data.sources import Example, FolderSource, Source, open_source
from ddim_jax.data.transforms import ImageError, prepare_image
from ddim_jax.errors import UserError, WriteError

NUM = 26
BAD = (0, 7, 8, 25)
ARRAYS = ("images.npy", "labels.npy", "checksums.npy", "states.npy")


def save_mixed(folder: Path, bad: tuple[int, ...] = ()) -> Path:
    """Images of all sizes, formats and colour modes in three classes; some are no images."""
    generator = np.random.default_rng(0)
    for number in range(NUM):
        path = folder / "abc"[number // 10] / f"{number:02d}.{('png', 'jpg', 'webp', 'bmp')[number % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number in bad:
            path.write_bytes(b"" if number % 2 else b"not an image")
            continue
        pixels = generator.integers(0, 256, (*generator.integers(9, 60, 2), 3), np.uint8)
        Image.fromarray(pixels).convert("L" if number % 5 == 0 else "RGB").save(path)
    return folder


def config_of(folder: Path, **keys: Any) -> DataConfig:
    return DataConfig(
        **{
            "source": "folder",
            "path": str(folder),
            "crop": "center",
            "resize": "bicubic",
            "image_size": 12,
            "flip": True,
            "cache": "disk",
            "cache_dir": str(folder.parent / "cache"),
            "threads": 2,
            **keys,
        }
    )


def folders(config: DataConfig) -> list[Path]:
    """What is in the cache, without what was given up half made, and claims."""
    found = sorted(Path(config.cache_dir).iterdir())
    return [path for path in found if path.is_dir() and not path.name.endswith(".partial")]


def contents(config: DataConfig) -> dict[str, bytes]:
    (folder,) = folders(config)
    return {name: (folder / name).read_bytes() for name in ARRAYS}


def take(source: Source, config: DataConfig, num: int = 12, start_step: int = 0, **keys: Any) -> list[Batch]:
    order = BatchOrder(seed=1, batch_size=8, **keys)
    with contextlib.closing(train_batches(source, config, order, start_step)) as batches:
        return list(itertools.islice(batches, num))


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one[:3], other[:3], strict=True):
            assert a.dtype == b.dtype
            assert type(a) is type(b)
            np.testing.assert_array_equal(a, b)


# --- what is stored -----------------------------------------------------------------------------


def test_folder_of_mixed_images(tmp_path: Path) -> None:
    config = config_of(save_mixed(tmp_path / "images"))
    source = open_images(config)
    original = FolderSource(config.path)
    assert isinstance(source, PreparedSource)
    assert source.prepared
    assert source.images.shape == (NUM, 12, 12, 3)
    assert (source.images.dtype, source.labels.dtype) == (np.uint8, np.int32)
    assert source.num_classes == 3
    for index in range(NUM):
        image, label = original[index][:2]
        example = read_example(source, index, config)
        np.testing.assert_array_equal(example.image, prepare_image(image, config))
        assert example.label == label
        assert source.where(index) == original.where(index)
    np.testing.assert_array_equal(source.usable, np.arange(NUM))
    (folder,) = folders(config)
    assert source.describe() == f"images: {NUM} images, 3 classes, prepared in {folder}"
    assert json.loads((folder / "info.json").read_text())["crop"] == "center"
    # What a caller does to an example is done to a copy.
    source[3].image[:] = 0
    np.testing.assert_array_equal(source[3].image, prepare_image(original[3].image, config))
    for index in (-1, NUM):
        with pytest.raises(IndexError):
            source[index]


def test_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run decodes nothing; another preparation, another slice or a changed file is another folder."""
    config = config_of(save_mixed(tmp_path / "images"))
    first = take(open_images(config), config)
    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "__getitem__", lambda *_: pytest.fail("an image was read again"))
        assert_equal(take(open_images(config), config), first)
        moved = tmp_path / "moved" / "images"
        shutil.copytree(tmp_path / "images", moved)  # keeps the times
        open_images(dataclasses.replace(config, path=str(moved), threads=1, flip=False))
    assert len(folders(config)) == 1
    for count, change in enumerate(
        [
            {"crop": "none", "on_error": "skip"},
            {"resize": "box"},
            {"image_size": 8},
            {"channels": 1},
            {"split": "train[:5]"},
        ]
    ):
        with contextlib.suppress(ImageError):  # None is square.
            open_images(dataclasses.replace(config, **change))
        assert len(folders(config)) == count + 2
    shutil.copy(tmp_path / "images" / "a" / "01.jpg", tmp_path / "images" / "a" / "05.jpg")
    open_images(config)
    assert len(folders(config)) == 7


def test_the_default_folder_is_the_cache_of_ddim_jax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / "home"))
    config = config_of(tmp_path / "unused", source="digits", image_size=8, channels=1, cache_dir="")
    source = open_images(config)
    (folder,) = (tmp_path / "home" / "prepared").iterdir()
    assert folder.name.startswith("digits-")
    np.testing.assert_array_equal(source[17].image, open_source(config)[17].image)


def test_names_make_safe_folders(tmp_path: Path) -> None:
    config = config_of(save_mixed(tmp_path / "images"), name="my images/../of: 2026")
    assert open_images(config).name == "my images/../of: 2026"
    assert folders(config)[0].name.startswith("my_images_.._of_2026-")


def test_a_source_without_identity_is_refused(tmp_path: Path) -> None:
    class Anonymous(Source):
        name = "anonymous"
        num_classes = 0

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Example:
            return Example(np.zeros((12, 12, 3), np.uint8), 0)

    with pytest.raises(NotImplementedError, match=r"Anonymous has no identity\(\)"):
        prepare_on_disk(Anonymous(), config_of(tmp_path / "images"))


# --- the same batches in every cache mode -------------------------------------------------------


@pytest.mark.parametrize("bad", [(), BAD, tuple(range(1, NUM))])
def test_cache_modes_are_equal(tmp_path: Path, bad: tuple[int, ...]) -> None:
    config = config_of(save_mixed(tmp_path / "images", bad), on_error="skip" if bad else "fail")
    results = []
    for cache in ("none", "host", "disk"):
        keys = dataclasses.replace(config, cache=cache)
        source = open_images(keys)
        assert isinstance(source, PreparedSource) == (cache == "disk")
        results.append([*take(source, keys), *take(source, keys, 2, start_step=10**6)])
        shares = [take(source, keys, 4, process_index=index, process_count=2) for index in range(2)]
        joined = [
            Batch(*map(np.concatenate, zip(*(part[:3] for part in parts), strict=True)))
            for parts in zip(*shares, strict=True)
        ]
        assert_equal(joined, results[-1][:4])
        results[-1][0].image[:] = 0  # a copy: no later batch may show it
        assert_equal(take(source, keys)[1:], results[-1][1:12])
    assert_equal(results[0][1:], results[1][1:])
    assert_equal(results[0][1:], results[2][1:])


def test_a_prepared_source_is_read_into_memory_if_that_is_asked_for(tmp_path: Path) -> None:
    config = config_of(save_mixed(tmp_path / "images", BAD), on_error="skip")
    source = open_images(config)
    assert_equal(take(source, dataclasses.replace(config, cache="host")), take(source, config))


def test_unusable_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(save_mixed(tmp_path / "images", BAD), on_error="skip")
    with caplog.at_level(logging.WARNING, "ddim_jax.data.reading"):
        source = open_images(config)
    first = f"{tmp_path}/images/a/00.png: not a PNG, JPEG, WebP, BMP, GIF or TIFF image"
    assert f"left out 4 of 26 images; the first: {first}" in caplog.text
    assert isinstance(source, PreparedSource)
    assert len(source) == NUM
    np.testing.assert_array_equal(source.usable, [i for i in range(NUM) if i not in BAD])
    kept = load_images(source, config, range(NUM))
    np.testing.assert_array_equal(kept.index, source.usable)
    lines = (folders(config)[0] / "unusable.jsonl").read_text().split("\n")
    assert {json.loads(line)["where"] for line in lines if line} == {source.where(i) for i in BAD}
    # The same line as without the cache, prepared just now or before.
    for cache in ("none", "disk"):
        with pytest.raises(ImageError) as caught:
            read_example(open_images(dataclasses.replace(config, cache=cache)), 7, config)
        assert str(caught.value) == f"{tmp_path}/images/a/07.bmp: the file is empty"
    fail = dataclasses.replace(config, on_error="fail")
    for keys in (fail, dataclasses.replace(fail, cache_dir=str(tmp_path / "other"))):
        with pytest.raises(ImageError) as caught:
            open_images(keys)
        assert str(caught.value) == first


def test_nothing_but_unusable_images(tmp_path: Path) -> None:
    config = config_of(save_mixed(tmp_path / "images", tuple(range(NUM))), on_error="skip")
    for _ in range(2):
        with pytest.raises(ImageError, match=r"none of 26 images can be used; the first: .*00\.png: not a PNG"):
            open_images(config)


# --- kills, and company -------------------------------------------------------------------------

# Prepares a folder in chunks of two images; at the k-th call of a function it sends itself a signal. The function
# ``torn`` is _write_rows, whose k-th call writes one row of two before the signal. The main thread takes note of SIGINT
# while the others wait.
PROGRAM = """
import itertools, os, pathlib, signal, sys, time
from ddim_jax.config import DataConfig
from ddim_jax.data import prepared

# A shell that starts its commands in the background has them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
config, name, k, sent = sys.argv[1:]
prepared._CHUNK = 2
calls = itertools.count(1)

def watched(module, attribute, before=lambda *_: None):
    original = getattr(module, attribute)
    def function(*arguments):
        if next(calls) == int(k):
            before(original, *arguments)
            os.kill(os.getpid(), getattr(signal, sent))
            time.sleep(1)
        return original(*arguments)
    setattr(module, attribute, function)

if name == "created":
    watched(os, "rename")
elif name == "read":
    watched(prepared, "read_example")
elif name == "flushed":
    watched(prepared, "_to_disk")
elif name == "reasons":
    watched(prepared, "_add_reasons", lambda _, folder, *__: (folder / "unusable.jsonl").open("a").write('{"index": 7'))
elif name == "torn":
    watched(prepared, "_write_rows", lambda write, path, start, rows: write(path, start, rows[:1]))
prepared.open_images(eval(config))
"""


def program(config: DataConfig, name: str = "", k: int = 0, sent: str = "SIGKILL") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, repr(config), name, str(k), sent], stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> int:
    try:
        _, errors = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode <= 0, errors.decode()
    return process.returncode


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[DataConfig, dict[str, bytes]]:
    """A config of a folder with unusable images, and the files of an uninterrupted preparation elsewhere."""
    config = config_of(save_mixed(tmp_path / "images", BAD), on_error="skip")
    whole = dataclasses.replace(config, cache_dir=str(tmp_path / "whole"))
    open_images(whole)
    return config, contents(whole)


def test_killed_at_any_moment(mixed: tuple[DataConfig, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill after kill, and the result is that of one run; in between, what is marked done is there."""
    config, expected = mixed
    reference = open_images(dataclasses.replace(config, cache_dir=str(Path(config.cache_dir).parent / "whole")))
    assert isinstance(reference, PreparedSource)
    states_seen = []
    moments = [
        ("created", 1, "SIGKILL"),
        ("read", 1, "SIGKILL"),
        ("torn", 1, "SIGKILL"),  # pixels
        ("reasons", 1, "SIGKILL"),
        ("flushed", 2, "SIGKILL"),
        ("flushed", 5, "SIGKILL"),
        ("torn", 3, "SIGKILL"),
        ("torn", 6, "SIGKILL"),
        ("read", 3, "SIGTERM"),
        ("read", 3, "SIGINT"),
    ]
    for name, k, sent in moments:
        threads = 1 if sent == "SIGINT" else 2
        status = finish(program(dataclasses.replace(config, threads=threads), name, k, sent))
        assert status == -getattr(signal, sent)
        states = np.zeros(NUM, np.uint8)
        for folder in folders(config):
            states = np.load(folder / "states.npy")
            images, labels = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
            done = states == 1
            np.testing.assert_array_equal(images[done], reference.images[done])
            np.testing.assert_array_equal(labels[done], reference.labels[done])
            assert set(np.flatnonzero(states == 2)) <= set(BAD)
        states_seen.append(int(np.count_nonzero(states)))
    assert states_seen == sorted(states_seen)
    assert 0 < states_seen[-1] < NUM  # They were kills in the middle.
    read: list[int] = []
    original = FolderSource.__getitem__
    monkeypatch.setattr(FolderSource, "__getitem__", lambda self, i: (read.append(i), original(self, i))[1])
    monkeypatch.setattr(prepared, "_CHUNK", 2)
    source = open_images(config)
    assert contents(config) == expected
    assert len(read) <= NUM - states_seen[-1] + 1  # the rest, and what shares a chunk with a torn state
    for index in BAD:
        with pytest.raises(ImageError, match=r"not a PNG|the file is empty"):
            source[index]


def test_two_programs_at_once(mixed: tuple[DataConfig, dict[str, bytes]]) -> None:
    config, expected = mixed
    both = [program(config), program(config)]
    assert [finish(process) for process in both] == [0, 0]
    assert contents(config) == expected
    assert list(Path(config.cache_dir).iterdir()) == folders(config)


def test_made_by_another_program_meanwhile(
    mixed: tuple[DataConfig, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one makes and fills the folder between our look for it and our turn."""
    config, expected = mixed
    turn = prepared.one_writer

    def late(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr(prepared, "one_writer", turn)
        open_images(config)
        return turn(*arguments, **more)

    monkeypatch.setattr(prepared, "one_writer", late)
    open_images(config)
    assert contents(config) == expected
    assert list(Path(config.cache_dir).iterdir()) == folders(config)


# --- disks that do not play along ---------------------------------------------------------------


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    config = config_of(save_mixed(tmp_path / "images"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written: Not a directory; .*data\.cache_dir") as caught:
        open_images(dataclasses.replace(config, cache_dir=str(tmp_path / "file" / "cache")))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"data\.cache_dir='gs://bucket/cache': name a folder of this machine"):
        open_images(dataclasses.replace(config, cache_dir="gs://bucket/cache"))


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(save_mixed(tmp_path / "images"))
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
        with pytest.raises(UserError, match=r"GiB more, but .* GiB are free; make space, set data\.cache_dir"):
            open_images(config)
    # A disk that fills up on the way.
    writes = itertools.count()
    to_disk = prepared._to_disk

    def full(file: Any) -> None:
        if next(writes) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        to_disk(file)

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "_to_disk", full)
        patch.setattr(prepared, "_CHUNK", 3)
        with pytest.raises(WriteError, match=r"No space left on device; .* set data\.cache_dir .* is kept") as caught:
            open_images(config)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(load_images(open_images(config), config, range(NUM)).index, range(NUM))


@pytest.mark.parametrize("name", ["images", "labels", "states"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "gone", "nothing but NUL", "another array", "objects"])
def test_a_damaged_folder_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, name: str
) -> None:
    config = config_of(save_mixed(tmp_path / "images"))
    open_images(config)
    (folder,) = folders(config)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    path = folder / f"{name}.npy"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "nothing but NUL":
        path.write_bytes(bytes(path.stat().st_size))
    elif damage == "another array":
        np.save(path, np.full(3, 7))
    elif damage == "objects":
        np.save(path, np.array([{}] * NUM), allow_pickle=True)
    else:
        path.unlink()
    open_images(config)
    assert re.search(rf"warning: .*{name}\.npy .*; the images are prepared again", capsys.readouterr().err)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["images", "labels", "checksums"])
def test_an_image_that_has_changed_on_the_disk_is_prepared_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Also after it was opened; whichever of the three files has changed."""
    config = config_of(save_mixed(tmp_path / "images"))
    source = open_images(config)
    whole = load_images(source, config, range(NUM))
    path = folders(config)[0] / f"{name}.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for opened in (source, open_images(config)) if name != "labels" else (open_images(config),):
        assert isinstance(opened, PreparedSource)
        images, labels = opened.rows(np.arange(NUM))[:2]
        np.testing.assert_array_equal(images, whole.image)
        np.testing.assert_array_equal(labels, whole.label)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert f"{path.parent}: image {NUM - 1} is damaged; it is prepared again from " in line
    assert path.read_bytes() == content


def test_a_damaged_image_that_cannot_be_prepared_again_is_named(tmp_path: Path) -> None:
    config = config_of(save_mixed(tmp_path / "images"))
    source = open_images(config)
    path = folders(config)[0] / "images.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    Path(source.where(NUM - 1)).write_bytes(b"")
    with pytest.raises(ImageError, match=r"what was prepared of it in .* is damaged, and it cannot be again"):
        source[NUM - 1]


def test_states_that_have_changed_are_done_again(tmp_path: Path) -> None:
    """None of them hides an image: neither a state that there is not, nor one without a reason, nor one too early."""
    config = config_of(save_mixed(tmp_path / "images"))
    whole = load_images(open_images(config), config, range(NUM))
    folder = folders(config)[0]
    states = np.load(folder / "states.npy", mmap_mode="r+")
    for value in (0, 2, 3, 65):
        states[NUM - 1] = value
        states.flush()
        found = load_images(open_images(config), config, range(NUM))
        np.testing.assert_array_equal(found.index, whole.index)
        np.testing.assert_array_equal(found.image, whole.image)
    for name in ("images", "labels", "checksums"):
        array = np.load(folder / f"{name}.npy", mmap_mode="r+")
        array[3] = 0
        array.flush()
    np.testing.assert_array_equal(load_images(open_images(config), config, range(NUM)).image, whole.image)


def test_a_folder_of_an_earlier_version_is_read_and_finished(tmp_path: Path) -> None:
    config = config_of(save_mixed(tmp_path / "images"))
    whole = load_images(open_images(config), config, range(NUM))
    folder = folders(config)[0]
    (folder / "checksums.npy").unlink()
    states = np.load(folder / "states.npy", mmap_mode="r+")
    states[2:9] = 0
    states.flush()
    np.testing.assert_array_equal(load_images(open_images(config), config, range(NUM)).image, whole.image)
    assert not (folder / "checksums.npy").exists()


@pytest.mark.parametrize("name", ["images", "labels", "checksums", "states"])
def test_a_header_that_has_changed_is_noticed_or_does_nothing(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(save_mixed(tmp_path / "images"))
    whole = load_images(open_images(config), config, range(NUM))
    path = folders(config)[0] / f"{name}.npy"
    content = path.read_bytes()
    noticed = 0
    for place in range(0, np.load(path, mmap_mode="r").offset, 2):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        source = open_images(config)
        assert isinstance(source, PreparedSource)
        noticed += "the images are prepared again" in capsys.readouterr().err
        np.testing.assert_array_equal(source.rows(np.arange(NUM))[0], whole.image)
    assert noticed > 20


@pytest.mark.parametrize("name", ["images", "labels"])
@pytest.mark.parametrize("size", [0, 100, 200])
def test_a_damaged_folder_with_images_still_to_do(tmp_path: Path, size: int, name: str) -> None:
    config = config_of(save_mixed(tmp_path / "images"))
    open_images(config)
    folder = folders(config)[0]
    states = np.load(folder / "states.npy", mmap_mode="r+")
    states[2:] = 0
    states.flush()
    whole = (folder / f"{name}.npy").read_bytes()
    (folder / f"{name}.npy").write_bytes(whole[:size])
    open_images(config)
    assert (folder / f"{name}.npy").read_bytes() == whole


def test_lines_of_others_among_the_reasons(tmp_path: Path) -> None:
    config = config_of(save_mixed(tmp_path / "images", bad=(3,)), on_error="skip")
    source = open_images(config)
    path = folders(config)[0] / "unusable.jsonl"
    others = (b"\xff\xfe\n", b"[]\n", b'{"index": [3], "reason": "odd"}\n', b'{"index": 3}\n', b"[" * 10_000 + b"\n")
    path.write_bytes(b"".join(others) + path.read_bytes() + b"".join(others))
    with pytest.raises(ImageError, match=r"cannot identify|cut short|empty|not a"):
        open_images(config)[3]
    assert len(source) == NUM


def test_a_file_that_vanishes_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even under skip, as in every cache mode: what is there is no property of an image."""
    config = config_of(save_mixed(tmp_path / "images"), on_error="skip")
    identity = FolderSource.identity

    def then_remove(self: FolderSource) -> dict[str, str | int]:
        found = identity(self)
        os.remove(self.where(5))
        return found

    monkeypatch.setattr(FolderSource, "identity", then_remove)
    with pytest.raises(UserError, match=r"05\.jpg: cannot be opened: No such file") as caught:
        open_images(config)
    assert not isinstance(caught.value, ImageError)


# --- data sets as they are published ------------------------------------------------------------


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TFDS data set like oxford_flowers102: JPEGs of many sizes, three splits, the largest for tests."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class DdimTinyFlowers(tfds.core.GeneratorBasedBuilder):
        """Encoded, so TensorFlow is not needed."""

        VERSION = tfds.core.Version("2.1.1")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(num_classes=102),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            sizes = {"train": 10, "validation": 10, "test": 61}
            return {split: self._generate_examples(split, num) for split, num in sizes.items()}

        def _generate_examples(self, split: str, num: int) -> Iterator[tuple[int, dict[str, Any]]]:
            generator = np.random.default_rng(num + len(split))
            for i in range(num):
                file = io.BytesIO()
                size = generator.integers(50, 90, 2)
                Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(file, "JPEG")
                yield i, {"image": file.getvalue(), "label": int(generator.integers(102)), "file_name": f"{i}.jpg"}

    directory = str(tmp_path_factory.mktemp("tfds"))
    DdimTinyFlowers(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory


def test_flowers(flowers: str, tmp_path: Path) -> None:
    """80% of each split, as Keras' DDIM example takes them."""
    split = "train[:80%]+validation[:80%]+test[:80%]"
    config = config_of(
        tmp_path / "unused", source="tfds", name="ddim_tiny_flowers", dir=flowers, split=split, image_size=16
    )
    source = open_images(config)
    assert len(source) == 8 + 8 + 49
    assert source.num_classes == 102
    plain = dataclasses.replace(config, cache="none")
    parts = [open_source(dataclasses.replace(plain, split=part)) for part in split.split("+")]
    expected = [read_example(part, index, plain) for part in parts for index in range(len(part))]
    images = load_images(source, config, range(len(source)))
    np.testing.assert_array_equal(images.image, [example.image for example in expected])
    np.testing.assert_array_equal(images.label, [example.label for example in expected])
    assert_equal(take(source, config), take(open_images(plain), plain))
    open_images(config, "test[80%:]")
    assert len(folders(config)) == 2
    infos = [json.loads((folder / "info.json").read_text())["source"] for folder in folders(config)]
    assert {info["split"] for info in infos} == {split, "test[80%:]"}
    assert {info["name"] for info in infos} == {"ddim_tiny_flowers/2.1.1"}


@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(512, 384), (384, 640)])
def test_lsun(tmp_path: Path, resize: Any, size: tuple[int, int]) -> None:
    """LSUN is published as: shorter side resized, then the centre cropped. Ours crops first: the same square."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "room.jpg", quality=95)
    config = config_of(tmp_path / "images", resize=resize, image_size=96)
    ours = open_images(config)[0].image.astype(int)
    with Image.open(tmp_path / "images" / "room.jpg") as original:
        whole = original.resize((size[0] // 4, size[1] // 4), Image.Resampling[resize.upper()])
    left, top = (whole.width - 96) // 2, (whole.height - 96) // 2
    published = np.asarray(whole.crop((left, top, left + 96, top + 96))).astype(int)
    np.testing.assert_array_equal(ours[3:-3, 3:-3], published[3:-3, 3:-3])
    assert np.abs(ours - published).mean() < 0.1  # The border lacks what lies beyond the square.
