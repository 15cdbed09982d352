"""Results that a disk has damaged, and strangers among them: a name is no proof, and the rest is made again."""

import functools
import io
import json
import pathlib
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from ddim_jax.config import DataConfig
from ddim_jax.data.prepared import open_images
from ddim_jax.npz import load_arrays, save_arrays
from faults.in_process import call, contents, expect_same, in_process, trained
from faults.trial import Trial, expect, expect_success

Damage = Callable[[bytes], bytes]


def _with_bit_flipped(data: bytes, place: float) -> bytes:
    at = int(place * (len(data) - 1))
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


# What a disk or a crash has made of the bytes.
_DAMAGES: dict[str, Damage] = {
    "empty": lambda data: b"",
    "cut by a byte": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "nothing but NUL": lambda data: bytes(len(data)),
    "NUL to its end": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "a bit flipped in the first half": functools.partial(_with_bit_flipped, place=0.4),
    "a bit flipped in the second half": functools.partial(_with_bit_flipped, place=0.7),
    "another file": lambda data: b"<html>404 not found</html>" * 9,
}

_SAMPLE = ("--mode=sample", "--config.sample.num=7", "--config.sample.steps=2", "--config.sample.batch_size=2")
_SAMPLE_NPZ = (*_SAMPLE, "--config.sample.format=npz")
_EVALUATE = (
    *("--mode=evaluate", "--config.eval.num=8", "--config.eval.extractor=pixels", "--config.eval.steps=(2,)"),
    *("--config.eval.samplers=('ddim',)", "--config.eval.etas=(0.0,)", "--config.eval.metrics=('fid',)"),
    "--config.eval.keep_images=true",
)
_LIKELIHOOD = ("--mode=likelihood", "--config.likelihood.num=5", "--config.likelihood.levels_per_image=2")
_STATS = ("--mode=stats", "--config.eval.extractor=pixels", "--config.data.split=train[:50]")

# Say when and how fast something was made.
_RECORDS = ("run.json",)


def trials(long: bool) -> Iterator[Trial]:
    """Yields every kind of result with every damage, and strangers of every kind; or a few of these."""
    damaged = [
        Trial(f"{kind}: {damage}", functools.partial(work, _DAMAGES[damage]))
        for kind, work in _KINDS.items()
        for damage in _DAMAGES
    ]
    strangers = [Trial(name, work) for name, work in _STRANGERS.items()]
    yield from [*damaged, *strangers] if long else [*damaged[::10], *strangers[::6]]


def _again(
    job: tuple[str, ...], spoil: Callable[[pathlib.Path], object], folder: pathlib.Path, *ignored: str
) -> pathlib.Path:
    """Spoils the results of a job, gives the command again, and checks that all is there as before."""
    workdir = trained(folder, *job)
    results = next(path for path in (workdir / job[0].removeprefix("--mode=")).iterdir())
    results = results if results.is_dir() else results.parent
    before = contents(results, *_RECORDS)
    spoil(results)
    expect_success(in_process(f"--workdir={workdir}", *job))
    after = contents(results, *_RECORDS)
    expect_same({name: data for name, data in after.items() if pathlib.PurePath(name).name not in ignored}, before)
    return results


def _spoil(pattern: str, damage: Damage, results: pathlib.Path) -> None:
    for path in sorted(results.glob(pattern))[1:3] or results.glob(pattern):
        path.write_bytes(damage(path.read_bytes()))


def _image(damage: Damage, folder: pathlib.Path) -> None:
    _again(_SAMPLE, functools.partial(_spoil, "0*.png", damage), folder)


def _grid(damage: Damage, folder: pathlib.Path) -> None:
    _again(_SAMPLE, functools.partial(_spoil, "grid.png", damage), folder)


def _kept_image(damage: Damage, folder: pathlib.Path) -> None:
    _again(_EVALUATE, functools.partial(_spoil, "images/*/0*.png", damage), folder)


def _row(damage: Damage, folder: pathlib.Path) -> None:
    workdir = trained(folder, *_EVALUATE)
    (path,) = workdir.glob("evaluate/*/rows/*.json")
    row = path.read_bytes()
    path.write_bytes(damaged := damage(row))
    expect_success(in_process(f"--workdir={workdir}", *_EVALUATE))
    # Without the end of its last line a row is whole.
    expect(path.read_bytes() != damaged or damaged == row.strip(), "the row was left damaged")
    figures = [json.loads(text)["figures"] for text in (row, path.read_bytes())]
    expect(figures[0] == figures[1], f"the figures are {figures[1]} and not {figures[0]}")


def _whole_npz(job: tuple[str, ...], name: str, damage: Damage, folder: pathlib.Path) -> None:
    workdir = trained(folder, *job)
    (path,) = workdir.glob(f"*/*/{name}")
    before = load_arrays(path)
    path.write_bytes(damage(path.read_bytes()))
    expect_success(in_process(f"--workdir={workdir}", *job))
    _expect_same_arrays(load_arrays(path), before)


def _expect_same_arrays(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    expect(found.keys() == expected.keys(), f"arrays {sorted(found)} and not {sorted(expected)}")
    wrong = [name for name in expected if not np.array_equal(found[name], expected[name])]
    expect(not wrong, f"other values than before: {', '.join(wrong)}")


def _in_parts(job: tuple[str, ...], name: str, spoil: Callable[[pathlib.Path], object], folder: pathlib.Path) -> None:
    """Takes the result apart as a killed job leaves it, spoils the parts, and gives the command again."""
    workdir = trained(folder, *job)
    (path,) = workdir.glob(f"*/*/{name}")
    before = load_arrays(path)
    for start in range(0, len(before["index"]), 2):
        part = {key: values[start : start + 2] for key, values in before.items()}
        save_arrays(path.parent / "parts" / f"{part['index'][0]:06d}-0.npz", part)
    path.unlink()
    spoil(path.parent / "parts")
    expect_success(in_process(f"--workdir={workdir}", *job))
    _expect_same_arrays(load_arrays(path), before)
    expect(not (path.parent / "parts").exists(), "parts/ is still there")


def _part(job: tuple[str, ...], name: str, damage: Damage, folder: pathlib.Path) -> None:
    _in_parts(job, name, functools.partial(_spoil, "*.npz", damage), folder)


def _statistics(damage: Damage, folder: pathlib.Path) -> None:
    workdir = trained(folder, *_STATS)
    (path,) = (workdir / "stats").iterdir()
    before = load_arrays(path)
    path.write_bytes(damage(path.read_bytes()))
    expect_success(in_process(f"--workdir={workdir}", *_STATS))
    _expect_same_arrays(load_arrays(path), before)


def _prepared(name: str, damage: Damage, folder: pathlib.Path) -> None:
    for index in range(6):
        Image.fromarray(np.full((8, 8), 40 * index, np.uint8)).save(folder / f"{index}.png")
    cache = folder / ".cache"
    data = DataConfig(
        source="folder", path=str(folder), image_size=8, channels=1, cache="disk", cache_dir=str(cache)
    )  # fmt: skip
    open_images(data)
    before = contents(cache)
    (path,) = cache.glob(f"*/{name}")
    path.write_bytes(damage(path.read_bytes()))

    def use() -> None:
        source = open_images(data)
        # What is damaged within an image is found out when that is read.
        for index in range(len(source)):
            expect(bool(np.all(source[index].image == 40 * index)), f"image {index} has other pixels than before")

    expect_success(call(use))
    expect_same(contents(cache), before)


_NPZ = {"samples.npz": _SAMPLE_NPZ, "likelihood.npz": _LIKELIHOOD}
_KINDS: dict[str, Callable[[Damage, pathlib.Path], None]] = {
    "images": _image,
    "grid.png": _grid,
    "kept images": _kept_image,
    "a row": _row,
    **{name: functools.partial(_whole_npz, job, name) for name, job in _NPZ.items()},
    **{f"parts of {name}": functools.partial(_part, job, name) for name, job in _NPZ.items()},
    "statistics": _statistics,
    **{name: functools.partial(_prepared, name) for name in ("labels.npy", "states.npy", "images.npy")},
}


# --- strangers ----------------------------------------------------------------------------------


def _copy_of_image(name: str, folder: pathlib.Path) -> None:
    _again(_SAMPLE, lambda results: shutil.copy(results / "000003.png", results / name), folder, name)


def _twin_of_missing_image(name: str, folder: pathlib.Path) -> None:
    _again(_SAMPLE, lambda results: (results / "000003.png").rename(results / name), folder, name)


def _overwritten_image(make: Callable[[], bytes], folder: pathlib.Path) -> None:
    def overwrite(results: pathlib.Path) -> None:
        (results / "000003.png").write_bytes(make())

    _again(_SAMPLE, overwrite, folder)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _png_of_parts(packed: bytes) -> bytes:
    """A PNG of 8x8 grey pixels, whose parts have the right checksums, whatever the pixels are."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")]
    whole = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def _stranger_among_parts(
    name: str, make: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], folder: pathlib.Path
) -> None:
    def add(parts: pathlib.Path) -> None:
        first = load_arrays(sorted(parts.iterdir())[0])
        save_arrays(parts / name, make(first))

    _in_parts(_SAMPLE_NPZ, "samples.npz", add, folder)


def _among_rows(folder: pathlib.Path) -> None:
    workdir = trained(folder, *_EVALUATE)
    (row,) = workdir.glob("evaluate/*/rows/*.json")
    (table,) = workdir.glob("evaluate/*/table.csv")
    before = table.read_bytes()
    shutil.copy(row, row.with_stem(f"{row.stem} copy"))
    (row.parent / "notes.json").write_text("{}")
    (row.parent / "notes.txt").write_text("mine")
    result = in_process(f"--workdir={workdir}", *_EVALUATE)
    expect_success(result)
    expect(table.read_bytes() == before, "a copy of a row has changed the table")
    expect(" copy.json" in result.output, "the copy was not named")


_STRANGERS: dict[str, Callable[[pathlib.Path], None]] = {
    **{f"beside images: {name}": functools.partial(_copy_of_image, name) for name in (
        "000003 copy.png", "0000003.png", "3.png", "000009x.png", "-00001.png",
        "\u0663" * 6 + ".png",
    )},
    **{f"instead of an image: {name}": functools.partial(_twin_of_missing_image, name) for name in (
        "000003 copy.png", "0000003.png", "3.png",
    )},
    "an image of another size": functools.partial(_overwritten_image, lambda: _png(Image.new("L", (9, 8)))),
    "an image in colour": functools.partial(_overwritten_image, lambda: _png(Image.new("RGB", (8, 8)))),
    "an image with a palette": functools.partial(_overwritten_image, lambda: _png(Image.new("P", (8, 8)))),
    "an image of 16 bits": functools.partial(_overwritten_image, lambda: _png(Image.new("I;16", (8, 8)))),
    "a GIF by the name of a PNG": functools.partial(_overwritten_image, lambda: b"GIF89a" + bytes(40)),
    "pixels that are cut, with a checksum": functools.partial(
        _overwritten_image, lambda: _png_of_parts(zlib.compress(bytes(30)))
    ),
    "pixels that are no zlib, with a checksum": functools.partial(
        _overwritten_image, lambda: _png_of_parts(bytes(72))
    ),
    "no pixels, with a checksum": functools.partial(_overwritten_image, lambda: _png_of_parts(b"")),
    "a gigabyte of pixels": functools.partial(
        _overwritten_image, lambda: _png_of_parts(zlib.compress(bytes(2**30), 9))
    ),
    "a part twice, by another process": functools.partial(
        _stranger_among_parts, "000000-1.npz", lambda part: part
    ),
    "a part that overlaps": functools.partial(
        _stranger_among_parts, "000001-1.npz", lambda part: {key: values[1:] for key, values in part.items()}
    ),
    "a part with images that nobody asked for": functools.partial(
        _stranger_among_parts, "000900-0.npz", lambda part: {**part, "index": part["index"] + 900}
    ),
    "a part with negative numbers": functools.partial(
        _stranger_among_parts, "000901-0.npz", lambda part: {**part, "index": -1 - part["index"]}
    ),
    "a part without images": functools.partial(
        _stranger_among_parts, "000902-0.npz", lambda part: {"index": part["index"]}
    ),
    "a part with images of another size": functools.partial(
        _stranger_among_parts, "000000-0a.npz", lambda part: {**part, "arr_0": part["arr_0"][:, 1:]}
    ),
    "a part of another size by a name of ours": functools.partial(
        _stranger_among_parts, "000000-2.npz", lambda part: {**part, "arr_0": part["arr_0"][:, 1:]}
    ),
    "a part with fewer images than numbers": functools.partial(
        _stranger_among_parts, "000000-3.npz", lambda part: {**part, "arr_0": part["arr_0"][1:]}
    ),
    "a part with words for numbers": functools.partial(
        _stranger_among_parts, "000000-4.npz", lambda part: {**part, "index": part["index"].astype(str)}
    ),
    "a copy of a row, and notes": _among_rows,
}  # fmt: skip
