"""Small files of ours with anything in them: they are made again, or named in one line, and never a stack trace."""

import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from ddim_jax.claims import Claims
from ddim_jax.config import DataConfig
from ddim_jax.data.prepared import open_images
from ddim_jax.data.transforms import ImageError
from ddim_jax.npz import load_arrays, save_arrays
from ddim_jax.writers import MetricWriter
from faults.in_process import call, contents, expect_same, in_process, train_again, trained
from faults.trial import Result, Trial, expect, expect_one_line, expect_success


def _of_other_types(data: bytes) -> bytes:
    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: change(part) for name, part in value.items()}
        return [value] if isinstance(value, str) else "1"

    # Of files with an object on each line, the first.
    return json.dumps(change(json.JSONDecoder().raw_decode(data.decode().strip())[0])).encode()


# What a disk, a kill or a hand has made of the bytes.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) * 2 // 3],
    "nothing but NUL": lambda data: bytes(len(data)),
    "bytes that are no text": lambda data: b"\xff\xfe\xfd" + data[3:],
    "a list": lambda data: b"[1, 2, 3]\n",
    "a number": lambda data: b"7\n",
    "deeply nested": lambda data: b'{"a":' * 100_000,
    "nested 500 deep": lambda data: b'{"config":' * 500 + b"1" + b"}" * 500,
    "a number of 5,000 digits": lambda data: data.rstrip()[:-1] + b', "more": ' + b"1" * 5000 + b"}\n",
    "no keys": lambda data: b"{}\n",
    "values of other types": _of_other_types,
    "half a character": lambda data: b'{"\\ud800": "\\udfff"}\n',
    "another program's": lambda data: b'{"version": 3, "cells": [{"cell_type": "code"}]}\n',
}

_SAMPLE = ("--mode=sample", "--config.sample.num=5", "--config.sample.steps=2")
_EVALUATE = (
    *("--mode=evaluate", "--config.eval.num=8", "--config.eval.extractor=pixels", "--config.eval.steps=(2,)"),
    *("--config.eval.samplers=('ddim',)", "--config.eval.etas=(0.0,)", "--config.eval.metrics=('fid',)"),
)
_LIKELIHOOD = ("--mode=likelihood", "--config.likelihood.num=3", "--config.likelihood.levels_per_image=2")


def trials(long: bool) -> Iterator[Trial]:
    """Yields every file with every damage, or ten of these pairs."""
    pairs = list(itertools.product(_FILES, DAMAGES))
    for file, damage in pairs if long else pairs[:: len(pairs) // 10][:10]:
        yield Trial(f"{file}: {damage}", functools.partial(_FILES[file], DAMAGES[damage]))


def _spoil(path: pathlib.Path, damage: Callable[[bytes], bytes]) -> None:
    path.write_bytes(damage(path.read_bytes()))


def _named(result: Result, *words: str) -> None:
    """Checks that the command did without the file, or refused it in one line."""
    if result.status:
        expect_one_line(result, *words)
    else:
        expect_success(result)


def _config(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    workdir = trained(folder)
    _spoil(workdir / "config.json", damage)
    expect_one_line(in_process(f"--workdir={workdir}", *_SAMPLE), "config.json")


def _config_named(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    workdir = trained(folder)
    _spoil(workdir / "config.json", damage)
    config = f"--config={workdir / 'config.json'}"
    expect_one_line(in_process(config, f"--workdir={folder / 'new'}"), "config.json")
    expect(not (folder / "new").exists(), "a refused run has written something")


def _config_trained(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    workdir = trained(folder)
    _spoil(workdir / "config.json", damage)
    before = contents(workdir)
    expect_one_line(train_again(workdir), "config.json")
    expect_same(contents(workdir), before)


def _metrics(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    lines = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n{"step": 3, "loss": 0.125}\n'
    path = folder / "metrics.jsonl"
    path.write_bytes(lines.splitlines(keepends=True)[0] + damage(lines) + b"\n")

    def resume() -> None:
        with MetricWriter(folder, resume_step=2, tensorboard=False) as writer:
            writer.scalars(3, {"loss": 1.0})

    expect_success(call(resume))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    expect(records[0] == {"step": 1, "loss": 0.5}, "a sound line before the damage is gone")
    expect(records[-1] == {"step": 3, "loss": 1.0}, "the new line is not there")


def _metrics_of_run(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    workdir = trained(folder)
    _spoil(workdir / "metrics.jsonl", damage)
    expect_success(train_again(workdir))


def _best(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    workdir = trained(folder)
    _spoil(workdir / "best.json", damage)
    expect_success(train_again(workdir))
    record = json.loads((workdir / "best.json").read_text())
    expect("best_step" in record and "2" in record["measured"], "the last step was not measured again")


def _run_record(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    workdir = trained(folder, *_SAMPLE)
    (path,) = workdir.glob("sample/*/run.json")
    before = contents(workdir / "sample", "run.json")
    _spoil(path, damage)
    expect_success(in_process(f"--workdir={workdir}", *_SAMPLE))
    expect_same(contents(workdir / "sample", "run.json"), before)
    expect(json.loads(path.read_text())["mode"] == "sample", "run.json was not written again")


def _claim(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    holder = b'{"host": "elsewhere", "pid": 4711, "token": "0123456789abcdef"}'
    for name in ("row.claim-0", "row.claim-copy", "row.claim-\xb2"):
        (folder / name).write_bytes(damage(holder))

    def take_over() -> None:
        claims = Claims(folder, touch_seconds=0.01, dead_after_seconds=0.05)
        claims.wait(["row"])
        claims.holder("row")
        claim = claims.take("row")
        expect(claim is not None, "a claim that nobody touches was not taken over")
        if claim is not None:
            with claim:
                pass

    expect_success(call(take_over))


def _row(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    workdir = trained(folder, *_EVALUATE)
    (path,) = workdir.glob("evaluate/*/rows/*.json")
    figures = json.loads(path.read_text())["figures"]
    _spoil(path, damage)
    (path.with_stem(f"{path.stem} copy")).write_bytes(path.read_bytes())
    expect_success(in_process(f"--workdir={workdir}", *_EVALUATE))
    expect(json.loads(path.read_text())["figures"] == figures, "the row has other figures than before")


def _unusable(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    for index in range(4):
        Image.fromarray(np.full((8, 8), 60 * index, np.uint8)).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes(b"no image")
    data = DataConfig(
        source="folder", path=str(folder), image_size=8, channels=1, cache="disk", on_error="skip",
        cache_dir=str(folder / ".cache"),
    )  # fmt: skip
    open_images(data)
    (path,) = (folder / ".cache").glob("*/unusable.jsonl")
    _spoil(path, damage)

    def use() -> None:
        source = open_images(data)
        expect(len(source) == 4, "the images are not those before")
        try:
            source[2]
        except ImageError:
            return
        expect(False, "an unusable image counts as usable")

    expect_success(call(use))


def _exported(folder: pathlib.Path, form: str) -> pathlib.Path:
    workdir = trained(folder, "--mode=export", f"--config.weights.format={form}")
    (out,) = (workdir / "export").iterdir()
    return out


def _import(path: pathlib.Path, folder: pathlib.Path) -> Result:
    return in_process(
        *_config_of_import(folder), f"--workdir={folder / 'new'}", "--mode=import", f"--config.weights.path={path}"
    )


def _config_of_import(folder: pathlib.Path) -> tuple[str, ...]:
    return (f"--config={folder / 'run' / 'config.json'}",)


def _diffusers(name: str, damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    out = _exported(folder, "diffusers")
    _spoil(out / name, damage)
    result = _import(out, folder)
    _named(result, pathlib.PurePath(name).name)
    expect(result.status == 0 or not (folder / "new").exists(), "a refused import has written something")


def _import_record(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    out = _exported(folder, "npz")
    expect_success(_import(out, folder))
    _spoil(folder / "new" / "import" / "run.json", damage)
    before = contents(folder / "new" / "checkpoints")
    _named(_import(out, folder), "holds a run already")
    expect_same(contents(folder / "new" / "checkpoints"), before)


def _text_in_npz(file: str, name: str, damage: Callable[[bytes], bytes]) -> str:
    arrays = load_arrays(file)
    text = damage(str(arrays[name]).encode()).decode(errors="replace")
    save_arrays(file, {**arrays, name: np.array(text)})
    return text


def _description(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    out = _exported(folder, "npz")
    _text_in_npz(str(out), "text:ddim_jax", damage)
    expect_one_line(_import(out, folder), out.name)


def _provenance(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    workdir = trained(folder)
    out = folder / "statistics.npz"
    stats = ("--mode=stats", "--config.eval.extractor=pixels", f"--config.eval.out={out}")
    expect_success(in_process(f"--workdir={workdir}", *stats))
    _text_in_npz(str(out), "provenance", damage)
    _named(in_process(f"--workdir={workdir}", *_EVALUATE, f"--config.eval.reference={out}"), out.name)


def _likelihood(damage: Callable[[bytes], bytes], folder: pathlib.Path) -> None:
    workdir = trained(folder, *_LIKELIHOOD)
    (path,) = workdir.glob("likelihood/*/likelihood.json")
    before = path.read_bytes()
    _spoil(path, damage)
    expect_success(in_process(f"--workdir={workdir}", *_LIKELIHOOD))
    expect(path.read_bytes() == before, "likelihood.json is not as before")


_FILES: dict[str, Callable[[Callable[[bytes], bytes], pathlib.Path], None]] = {
    "config.json of a run that is sampled": _config,
    "config.json of a run that is trained on": _config_trained,
    "config.json named by --config": _config_named,
    "metrics.jsonl": _metrics,
    "metrics.jsonl of a whole run": _metrics_of_run,
    "best.json": _best,
    "run.json of images": _run_record,
    "run.json of an import": _import_record,
    "a claim": _claim,
    "a row": _row,
    "unusable.jsonl": _unusable,
    "likelihood.json": _likelihood,
    "config.json of diffusers": functools.partial(_diffusers, "unet/config.json"),
    "scheduler_config.json": functools.partial(_diffusers, "scheduler/scheduler_config.json"),
    "model_index.json": functools.partial(_diffusers, "model_index.json"),
    "the description in exported weights": _description,
    "the provenance in statistics": _provenance,
}
