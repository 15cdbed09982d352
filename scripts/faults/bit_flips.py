"""A bit flips in a file that a run has written: checkpoints, prepared images, statistics, exported weights.

Promised: it is noticed, and a line names what is damaged; or what is read is, bit by bit, what was written. Who asked
for no checkpoint in particular gets the newest one that is whole, and training sets the damaged one aside.
"""

import atexit
import contextlib
import functools
import io
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ddim_jax.config import Config, WeightsConfig, with_values
from ddim_jax.data.prepared import PreparedSource, open_images
from ddim_jax.errors import UserError
from ddim_jax.images import save_png
from ddim_jax.jobs.export import export
from ddim_jax.measuring.reference_file import Reference, read_reference, write_reference
from ddim_jax.training.checkpoint import Checkpoints, restore_trained, state_shapes
from ddim_jax.weights.forms import read_weights
from ddim_jax.workdir import best_dir, checkpoint_dir, read_config
from faults.trial import TINY, Trial, command, expect, expect_success

_STEPS = (1, 2)
_IMAGES = 24


class _Made(NamedTuple):
    """What is damaged, in copies.

    Attributes:
        folder: with ``run``, ``images``, ``prepared``, ``statistics.npz``, ``weights.npz``, ``weights.safetensors``.
        config: of the run.
    """

    folder: pathlib.Path
    config: Config


@functools.cache
def _made() -> _Made:
    """Trains, prepares, measures and exports, once for all trials."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="torture-bits-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    workdir = folder / "run"
    steps = (f"--config.train.steps={_STEPS[-1]}", "--config.train.checkpoint_every=1", "--config.train.keep_last=2")
    expect_success(command(f"--workdir={workdir}", *TINY, *steps))
    config = read_config(workdir)
    with Checkpoints(best_dir(workdir), keep_last=1) as checkpoints:
        checkpoints.save(_STEPS[-1], restore_trained(workdir).state)

    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(_IMAGES):
        save_png(folder / "images" / f"{number:02d}.png", rng.integers(0, 256, (12, 12, 3), np.uint8))
    open_images(_data(folder, config).data)
    covariance = np.cov(rng.standard_normal((8, 100)))
    features = rng.standard_normal((20, 8), np.float32)
    reference = Reference(rng.standard_normal(8), covariance, 100, features, {"name": "made", "count": 100})
    write_reference(folder / "statistics.npz", reference)
    for form in ("npz", "safetensors"):
        weights = WeightsConfig(format=form, out=str(folder / f"weights.{form}"))
        export(Config(**{**_groups(config), "weights": weights}), workdir)
    return _Made(folder, config)


def _groups(config: Config) -> dict[str, Any]:
    return {"data": config.data, "model": config.model, "diffusion": config.diffusion, "sample": config.sample}


def _data(folder: pathlib.Path, config: Config) -> Config:
    """The config with the images of a folder, prepared beside them."""
    source = {"data.source": "folder", "data.path": str(folder / "images"), "data.split": "train"}
    kept = {"data.cache": "disk", "data.cache_dir": str(folder / "prepared")}
    return with_values(config, {**source, **kept, "data.crop": "center", "data.resize": "bilinear"})


def _flip(path: pathlib.Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def _same(one: Any, other: Any) -> bool:
    """Whether two trees of arrays are equal, bit by bit."""
    (ones, form), (others, other_form) = jax.tree.flatten(one), jax.tree.flatten(other)
    pairs = zip(map(np.asarray, ones), map(np.asarray, others), strict=False)
    return form == other_form and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in pairs
    )


class _Attempt(NamedTuple):
    """What reading something gave.

    Attributes:
        value: that was read; None where it was refused.
        told: lines on standard error, and the refusal.
    """

    value: Any
    told: str


def _attempt(read: Callable[[], Any]) -> _Attempt:
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            value = read()
    except UserError as error:
        expect("\n" not in str(error), f"more than one line: {error}")
        return _Attempt(None, f"{told.getvalue()}{error}")
    return _Attempt(value, told.getvalue())


def _expect_named_or_same(attempt: _Attempt, name: object, whole: Any) -> None:
    if attempt.value is None:
        expect(str(name) in attempt.told, f"{name} is not named: {attempt.told}")
    else:
        expect(_same(attempt.value, whole), "something else was read than was written")


# --- checkpoints --------------------------------------------------------------------------------


@functools.cache
def _whole(step: int) -> Any:
    """The state of a step, which nobody has damaged."""
    return restore_trained(_made().folder / "run", step).state


def _checkpoint_trial(file: pathlib.Path, place: int, folder: pathlib.Path) -> None:
    """Reads as jobs do, by the step's name, and as training does."""
    made = _made()
    workdir = shutil.copytree(made.folder / "run", folder / "run")
    damaged = checkpoint_dir(workdir) / str(_STEPS[-1])
    _flip(pathlib.Path(damaged) / file, place)
    before, newest = map(_whole, _STEPS)

    _expect_named_or_same(_attempt(lambda: restore_trained(workdir, _STEPS[-1]).state), damaged, newest)
    job = _attempt(lambda: restore_trained(workdir)[1:])
    with Checkpoints(checkpoint_dir(workdir)) as checkpoints:
        run = _attempt(lambda: checkpoints.restore_newest(state_shapes(made.config))[::-1])
    for attempt in (job, run):
        expect(attempt.value is not None, f"nothing was read: {attempt.told}")
        state, step = attempt.value
        expect(_same(state, newest if step == _STEPS[-1] else before), f"step {step} is not what was written")
        expect(step == _STEPS[-1] or str(damaged) in attempt.told, f"{damaged} is not named: {attempt.told}")
    aside = (checkpoint_dir(workdir) / f"{_STEPS[-1]}.damaged").exists()
    expect(aside == (run.value[1] != _STEPS[-1]), "what is damaged, and nothing else, is set aside")


def _best_trial(file: pathlib.Path, place: int, folder: pathlib.Path) -> None:
    made = _made()
    workdir = shutil.copytree(made.folder / "run", folder / "run")
    damaged = best_dir(workdir) / str(_STEPS[-1])
    _flip(pathlib.Path(damaged) / file, place)
    attempt = _attempt(lambda: restore_trained(workdir, "best").state)
    _expect_named_or_same(attempt, damaged, _whole(_STEPS[-1]))


# --- other files --------------------------------------------------------------------------------


def _prepared_trial(file: pathlib.Path, place: int, folder: pathlib.Path) -> None:
    """Opens and reads all images; those that are damaged are prepared again."""
    made = _made()
    copy = folder / "made"
    for name in ("images", "prepared"):
        shutil.copytree(made.folder / name, copy / name)
    (prepared,) = (copy / "prepared").iterdir()
    whole = _all_rows(made.folder, made.config)
    _flip(prepared / file, place)
    _expect_named_or_same(_attempt(lambda: _all_rows(copy, made.config)), prepared, whole)


def _all_rows(folder: pathlib.Path, config: Config) -> Any:
    source = open_images(_data(folder, config).data)
    assert isinstance(source, PreparedSource)
    return source.usable, *source.rows(source.usable)[:2]


def _statistics_trial(file: pathlib.Path, place: int, folder: pathlib.Path) -> None:
    whole = read_reference(_made().folder / file)
    path = pathlib.Path(shutil.copy(_made().folder / file, folder))
    _flip(path, place)
    _expect_named_or_same(_attempt(lambda: read_reference(path)), path, whole)


def _export_trial(file: pathlib.Path, place: int, folder: pathlib.Path) -> None:
    def weights(path: pathlib.Path) -> Any:
        found = read_weights(path)
        return found.variables, str(found.config), found.step, found.averaged

    with contextlib.redirect_stderr(io.StringIO()):
        *whole, of_config, step, averaged = weights(_made().folder / file)
    path = pathlib.Path(shutil.copy(_made().folder / file, folder))
    _flip(path, place)
    attempt = _attempt(lambda: weights(path))
    if attempt.value is not None:
        expect(attempt.value[1:] == (of_config, step, averaged), "the description is another")
        attempt = attempt._replace(value=[attempt.value[0]])
    _expect_named_or_same(attempt, path, whole)


# --- which --------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """A kind of files.

    Attributes:
        name: in the names of trials.
        root: folder of all of them, of those made.
        files: names of patterns there; the first file found of the first one stands for all in the short run.
        trial: flips a bit of a file, and looks at what comes of it.
        places: in each file, in the long run.
    """

    name: str
    root: str
    files: tuple[str, ...]
    trial: Callable[[pathlib.Path, int, pathlib.Path], None]
    places: int


_KINDS = (
    _Kind("checkpoint", f"run/checkpoints/{_STEPS[-1]}", ("default/**/d/*", "**/*"), _checkpoint_trial, 3),
    _Kind("checksums", f"run/checkpoints/{_STEPS[-1]}", ("default/checksums.json",), _checkpoint_trial, 3),
    _Kind("best", f"run/best/{_STEPS[-1]}", ("default/**/d/*", "default/*.json"), _best_trial, 2),
    _Kind("prepared", "prepared/*", ("images.npy", "*"), _prepared_trial, 4),
    _Kind("statistics", "", ("statistics.npz",), _statistics_trial, 8),
    _Kind("exported", "", ("weights.safetensors", "weights.npz"), _export_trial, 8),
)


def _files(kind: _Kind) -> list[pathlib.Path]:
    """The files of a kind, relative to their root; the largest of the first pattern first."""
    (root,) = _made().folder.glob(kind.root) if kind.root else (_made().folder,)
    found: list[pathlib.Path] = []
    for pattern in kind.files:
        matching = [path for path in root.glob(pattern) if path.is_file() and path.stat().st_size]
        found += sorted(matching, key=lambda path: (-path.stat().st_size, path))
    return [path.relative_to(root) for path in dict.fromkeys(found)]


def _size(kind: _Kind, file: pathlib.Path) -> int:
    (root,) = _made().folder.glob(kind.root) if kind.root else (_made().folder,)
    return (root / file).stat().st_size


def trials(long: bool) -> Iterator[Trial]:
    """Yields a trial for each place: several in each file, or one of each kind of files."""
    for kind in _KINDS:
        for file in _files(kind) if long else _files(kind)[:1]:
            bits = 8 * _size(kind, file)
            rng = np.random.default_rng(len(str(file)))
            # The beginning, where the form is said, and others.
            places = [3, *rng.integers(0, bits, kind.places - 1)] if long else [bits // 2 + 5]
            for place in map(int, places):
                name = f"{kind.name}, {file}, bit {place:,} of {bits:,}"
                yield Trial(name, functools.partial(kind.trial, file, place))
