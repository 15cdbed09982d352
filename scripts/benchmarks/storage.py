"""What stands between the disk and the training step: batches of images, and checkpoints."""

import dataclasses
import itertools
import pathlib
import tempfile
import time
import typing
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks.rows import OURS, Program, Row, Task, note, take_turns, with_remark
from benchmarks.setting import Setting
from ddim_jax import parallel
from ddim_jax.config import Config, DataConfig
from ddim_jax.data.batch_order import BatchOrder
from ddim_jax.data.batches import train_batches
from ddim_jax.data.on_device import read_device_images, train_selections
from ddim_jax.data.prepared import open_images
from ddim_jax.images import save_png
from ddim_jax.models import build_model
from ddim_jax.training.checkpoint import Checkpoints
from ddim_jax.training.state import TrainState, init_state, make_optimizer

# Enough that no cache of a processor holds them all.
_MADE_IMAGES = 1024
# Pixels of the made pictures' coarsest structure: noise alone would not compress, and so be slow to read.
_COARSE_SIDE = 8


def make_pictures(folder: pathlib.Path, side: int, channels: int) -> None:
    """Writes random pictures, the same each time, as PNG files of the size that the network sees."""
    rng = np.random.default_rng(0)
    for number in range(_MADE_IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (_COARSE_SIDE, _COARSE_SIDE, 3), np.uint8))
        picture = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int32)
        noisy = np.clip(picture + rng.integers(-4, 5, picture.shape), 0, 255).astype(np.uint8)
        save_png(folder / f"{number:06d}.png", noisy[..., :channels])


def from_folder(config: Config, folder: pathlib.Path) -> Config:
    """The config, reading its images from a folder; those of another size are cropped and resized."""
    data = config.data
    changed = dataclasses.replace(
        data,
        source="folder",
        path=str(folder),
        split="train",
        crop="center" if data.crop == "none" else data.crop,
        resize="bilinear" if data.resize == "none" else data.resize,
        # Those of the data would be measured first; any cost the same.
        mean=data.mean or (0.5,),
        std=data.std or (0.5,),
    )
    return dataclasses.replace(config, data=changed)


# --- batches ------------------------------------------------------------------------------------


def measure_data(setting: Setting, train_row: Row | None) -> list[Row]:
    """Batches for the training step, by each way to keep images; the first run reads what is kept.

    Args:
        setting: what to measure with.
        train_row: our training step's, whose consumption the rates are compared with.
    """
    rows = []
    modes = typing.get_args(typing.get_type_hints(DataConfig)["cache"])
    for mode in modes:
        if mode == "auto":
            continue
        with tempfile.TemporaryDirectory() as cache_dir:
            data = dataclasses.replace(setting.config.data, cache=mode, cache_dir=cache_dir)
            rows += _measure_batches(setting, data, train_row)
    return rows


def _measure_batches(setting: Setting, data: DataConfig, train_row: Row | None) -> list[Row]:
    # As much as all pictures at once, so that all threads have something to do.
    count = max(4, -(-_MADE_IMAGES // setting.batch))
    batches: Iterator[Any] | None = None

    def run() -> None:
        nonlocal batches
        if batches is None:
            batches = _open_batches(setting, data)
        for _ in itertools.islice(batches, count):
            pass

    task = Task(f"data, cache = {data.cache}", count * setting.batch)
    (row,) = take_turns(task, {OURS: lambda: Program(run)}, setting.repeats).rows
    if hasattr(batches, "close"):
        batches.close()  # pyright: ignore
    if data.cache == "device":
        row = with_remark(row, "the host's part: which images")
    if train_row is not None:
        times = row.images_per_second / train_row.images_per_second
        row = with_remark(row, f"{times:,.{0 if times > 10 else 1}f} times what training consumes")
    return [row]


def _open_batches(setting: Setting, data: DataConfig) -> Iterator[Any]:
    source = open_images(data)
    order = BatchOrder(setting.config.seed, setting.batch)
    if data.cache == "device":
        _, row_of = read_device_images(source, data)
        return train_selections(row_of, data, order)
    return iter(train_batches(source, data, order))


# --- checkpoints --------------------------------------------------------------------------------


def _like_trained(state: TrainState) -> TrainState:
    """The state with random values: zeros, and averages that equal the parameters, would be compressed away."""
    rng = np.random.default_rng(0)

    def drawn(leaf: Any) -> np.ndarray:
        floats = np.issubdtype(leaf.dtype, np.floating)
        return rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype) if floats else np.asarray(leaf)

    return jax.tree.map(drawn, state)


def measure_checkpoint(setting: Setting) -> list[Row]:
    """How long saving holds up the training loop, and how long writing goes on in the background."""
    task = "checkpoint"
    note(task)
    config = setting.config
    optimizer = make_optimizer(config.train, config.train.steps)
    state = _like_trained(init_state(config, build_model(config), optimizer))
    state = parallel.replicate(state, setting.devices)
    stalls, writes, stall_processor, write_processor = [], [], [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep_last=1) as checkpoints:
        for step in range(1, setting.repeats + 2):
            start, processor_start = time.perf_counter(), time.process_time()
            checkpoints.save(step, state)
            returned, processor_returned = time.perf_counter(), time.process_time()
            checkpoints.wait()
            stalls.append(returned - start)
            writes.append(time.perf_counter() - returned)
            stall_processor.append(processor_returned - processor_start)
            write_processor.append(time.process_time() - processor_returned)
        size = sum(file.stat().st_size for file in pathlib.Path(folder).rglob("*") if file.is_file())
    remark = f"{size / 2**20:,.0f} MiB"
    stall = Row(
        f"{task}, call to return",
        OURS,
        stalls[1:],
        processor_seconds=stall_processor[1:],
        first_seconds=stalls[0],
        remark=remark,
        details={"bytes": size},
    )
    write = Row(
        f"{task}, written in the background",
        OURS,
        writes[1:],
        processor_seconds=write_processor[1:],
        first_seconds=writes[0],
        remark=f"{size / 2**20 / (stall.median + writes[1]):,.0f} MiB/s" if size else "",
    )
    return [stall, write]
