"""The layout of a workdir, and the rules by which runs share one.

::

    WORKDIR/config.json            the resolved config of the training run
    WORKDIR/checkpoints/STEP/      Orbax checkpoints; STEP.damaged is one that training found damaged and set aside
    WORKDIR/averages/STEP.safetensors   snapshots of ``train.ema_widths``, see ``training/averages.py``
    WORKDIR/best/STEP/, best.json  the checkpoint whose samples were measured best, and all figures
    WORKDIR/metrics.jsonl          one JSON object a line, with ``step``
    WORKDIR/tensorboard/           TensorBoard event files
    WORKDIR/samples/step_NNNNNNNN.png   grids drawn while training
    WORKDIR/samples/rounds.png     of a student (``--mode=distill``): the same noise drawn by each round
    WORKDIR/run.claim-K            while a job trains or imports there, see ``one_writer.py``
    WORKDIR/tuned/stepN-HASH.json  steps tuned for the network, see ``sampling/tuned_steps.py``
    WORKDIR/MODE/NAME-HASH/        what each later job wrote, with ``run.json``
"""

import dataclasses
import datetime
import errno
import importlib.metadata
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from ddim_jax.claims import is_claim
from ddim_jax.config import (
    TRAINED_GROUPS,
    Config,
    ConfigError,
    DataConfig,
    Role,
    differences,
    flatten,
    from_values,
    keys_with,
    to_json,
    with_values,
)
from ddim_jax.digests import digest_of_facts
from ddim_jax.errors import UserError, shown
from ddim_jax.files import make_folder, remove_left_over, write_whole, writing
from ddim_jax.records import read_if_sound, read_object
from ddim_jax.version import __version__

# What a run is resumed with, and what the command line of a job must not contradict.
_BINDING = set(keys_with(Config, Role.NETWORK, Role.TRAINING))


def config_path(workdir: epath.PathLike) -> epath.Path:
    """``WORKDIR/config.json``."""
    return epath.Path(workdir) / "config.json"


def checkpoint_dir(workdir: epath.PathLike) -> epath.Path:
    """``WORKDIR/checkpoints``."""
    return epath.Path(workdir) / "checkpoints"


def averages_dir(workdir: epath.PathLike) -> epath.Path:
    """``WORKDIR/averages``."""
    return epath.Path(workdir) / "averages"


def best_dir(workdir: epath.PathLike) -> epath.Path:
    """``WORKDIR/best``."""
    return epath.Path(workdir) / "best"


def best_record_path(workdir: epath.PathLike) -> epath.Path:
    """``WORKDIR/best.json``."""
    return epath.Path(workdir) / "best.json"


def run_in(workdir: epath.PathLike) -> tuple[epath.PathLike, str, str, str]:
    """What :func:`~ddim_jax.one_writer.one_writer` is told of the run in a workdir, which one job writes at a time."""
    return workdir, "run", f"workdir {os.fspath(workdir)}", "name another --workdir"


def sample_grid_path(workdir: epath.PathLike, step: int, suffix: str = "") -> epath.Path:
    """``WORKDIR/samples/step_NNNNNNNN.png``."""
    return epath.Path(workdir) / "samples" / f"step_{step:08d}{suffix}.png"


def read_config(workdir: epath.PathLike) -> Config:
    """Reads the config that the workdir was trained with.

    Raises:
        UserError: the workdir has none, or it cannot be read.
    """
    path = config_path(workdir)
    if not path.exists():
        raise UserError(f"no config.json in workdir {workdir}: train there first, or name another --workdir")
    return config_of_file(path, "put a copy of it back, or name another --workdir")


def config_of_file(path: epath.Path, remedy: str) -> Config:
    """Reads a config that a run has written.

    Args:
        path: the file.
        remedy: what to do where it cannot be used.

    Raises:
        UserError: it cannot.
    """
    values = read_object(path, remedy, dict.fromkeys(_DESCRIBING, dict))
    try:
        return from_values(values)
    except ConfigError as error:
        raise UserError(f"{path} cannot be used: {error}; {remedy}") from error


def is_resumed(workdir: epath.PathLike, config: Config) -> bool:
    """Whether training with ``config`` goes on with a run in the workdir.

    Returns:
        False where there is none, or where ``train.overwrite`` sets it aside.

    Raises:
        UserError: there is one of another config.
    """
    if not config_path(workdir).exists():
        return False
    changed = _binding_differences(read_config(workdir), config, TRAINED_GROUPS)
    if changed and not config.train.overwrite:
        raise UserError(
            f"workdir {workdir} holds a run of another config: {_list_changes(changed, 'there', 'now')}; "
            "choose another --workdir, or set that run aside and start anew with --config.train.overwrite=true"
        )
    return not changed


def check_writable(workdir: epath.PathLike) -> None:
    """Checks that a folder of this machine can be made and written, as far as can be told without trying.

    Raises:
        UserError: it cannot.
    """
    if "://" in os.fspath(workdir):
        return
    path = pathlib.Path(workdir).absolute()
    there = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    number = errno.ENOTDIR if not there.is_dir() else 0 if os.access(there, os.W_OK | os.X_OK) else errno.EACCES
    if number:
        raise UserError(f"workdir {workdir} cannot be written: {there}: {os.strerror(number)}")


def prepare_for_training(workdir: epath.PathLike, config: Config, write: bool = True) -> None:
    """Makes the workdir, or checks that a run there may be resumed with ``config``, and writes ``config.json``.

    With ``train.overwrite`` another config's run is not deleted but moved to ``WORKDIR/replaced-TIME/``.

    Args:
        workdir: the folder.
        config: the run to start or resume.
        write: False on all processes but the first, which only check.

    Raises:
        UserError: the folder cannot be written, or holds a run of another config.
    """
    workdir = epath.Path(workdir)
    replaces = not is_resumed(workdir, config) and config_path(workdir).exists()
    if write:
        make_folder(workdir, f"workdir {workdir}")
        with writing(f"workdir {workdir}"):
            if replaces:
                _set_aside(workdir)
            (workdir / "samples").mkdir(exist_ok=True)
        for folder in (workdir, workdir / "samples"):
            remove_left_over(folder)
        write_whole(config_path(workdir), to_json(config))


def changes_to_run(workdir: epath.PathLike, config: Config) -> dict[str, tuple[Any, Any]]:
    """Keys by which a config contradicts the run in a workdir, as ``{key: (there, now)}``; none without a run."""
    if not config_path(workdir).exists():
        return {}
    return _binding_differences(read_config(workdir), config, TRAINED_GROUPS)


_STATISTICS = ("data.mean", "data.std", "data.range")

# The groups that a command line may repeat for a job, as they were in training. Of the others (``train``, ``seed``) a
# job makes no use.
_DESCRIBING = ("data", "model", "diffusion")


def measured_statistics(workdir: epath.PathLike, config: Config) -> DataConfig | None:
    """The data of a run in this workdir, if they are those of a config but for what it leaves to be measured.

    Mean, standard deviation and range of them are what that run has measured. Of one that is set aside nothing is taken
    over: its images may have been others, since where they lie does not count.
    """
    if not config_path(workdir).exists() or (config.train.overwrite and not is_resumed(workdir, config)):
        return None
    trained = read_config(workdir)
    changed = _binding_differences(trained, config, ("data",)).keys() - set(_left_open(config.data))
    return None if changed else trained.data


def _left_open(data: DataConfig) -> tuple[str, ...]:
    """The statistics that are measured, since a config does not say them; the range is so for floats alone."""
    statistics = _STATISTICS[:2] if not data.mean else ()
    return (*statistics, _STATISTICS[2]) if data.dtype == "float32" and not data.range else statistics


def binding_values(workdir: epath.PathLike, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a job takes from the trained workdir whatever its config file says: by dotted key, what was trained.

    Args:
        workdir: the trained workdir.
        given: keys that the command line sets one by one, with their values, e.g. ``{"model.channels": 64}``.

    Raises:
        UserError: the workdir has no config, or a key that is given contradicts it. That the config file differs is no
            contradiction: nobody has said it of this run.
    """
    trained = flatten(read_config(workdir))
    binding = {key: trained[key] for key in trained if key in _BINDING and key.split(".")[0] in TRAINED_GROUPS}
    # How many rounds binds no run, but must go together with what does.
    binding["distill.rounds"] = trained["distill.rounds"]
    changed = {
        key: (binding[key], value)
        for key, value in given.items()
        if key in binding and key.split(".")[0] in _DESCRIBING and binding[key] != value
    }
    # Left empty, they are measured: so were the workdir's.
    for key in _STATISTICS:
        if key in changed and not given[key] and (key != "data.range" or trained["data.dtype"] == "float32"):
            del changed[key]
    if changed:
        raise UserError(
            f"the command line contradicts what workdir {workdir} was trained with: "
            f"{_list_changes(changed, 'trained', 'command line')}; leave these out, or name another --workdir"
        )
    return binding


def config_for_job(workdir: epath.PathLike, config: Config) -> Config:
    """The config of a job on a trained workdir.

    What was trained (``data``, ``model``, ``diffusion``, ``train``, ``seed``) comes from the workdir, what is to be
    done (all other groups) from ``config``. See :func:`binding_values` for what the command line may say. Which
    channels pictures show is ``config``'s to say, too.

    Raises:
        UserError: the workdir has no config, or one that does not go together with what is to be done.
    """
    trained = read_config(workdir)
    shown = config.data.shown_channels or trained.data.shown_channels
    job = dataclasses.replace(config, **{group: getattr(trained, group) for group in TRAINED_GROUPS})
    return with_values(job, {"data.shown_channels": shown} if shown else {})


def _binding_differences(trained: Config, config: Config, groups: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    """Keys of some groups that must not differ, but do, as ``{key: (trained, config's)}``.

    Statistics of the data that the config leaves open contradict nothing.
    """
    binding = _BINDING.difference(_left_open(config.data))
    return {key: values for key, values in differences(trained, config, groups).items() if key in binding}


def _list_changes(changed: Mapping[str, tuple[Any, Any]], old_name: str, new_name: str) -> str:
    told = [f"{key} ({old_name} {shown(old)}, {new_name} {shown(new)})" for key, (old, new) in changed.items()]
    more = f" and {len(told) - 6} more" if len(told) > 6 else ""
    return ", ".join(told[:6]) + more


def _set_aside(workdir: epath.Path) -> None:
    target = workdir / f"replaced-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}"
    target.mkdir()
    for entry in list(workdir.iterdir()):
        # What says that this job has the workdir stays where other jobs look for it.
        if not entry.name.startswith("replaced-") and not is_claim(entry.name):
            entry.rename(target / entry.name)


# --- later jobs ---------------------------------------------------------------------------------


def job_dir(workdir: epath.PathLike, mode: str, name: str, decides: Mapping[str, Any], make: bool = True) -> epath.Path:
    """The folder of a job: ``WORKDIR/MODE/NAME-HASH``.

    Args:
        workdir: the trained workdir.
        mode: e.g. ``sample``.
        name: short description for people.
        decides: all that decides the results (checkpoint step, settings, seed). Its hash is part of the name, so that
            a resumed job can never mix results of two settings.
        make: whether to make it; a job that may still be refused makes it later, by :func:`make_job_dir`.

    Raises:
        UserError: the folder cannot be made.
    """
    folder = epath.Path(workdir) / mode / f"{name}-{digest_of_facts(decides)[:8]}"
    if make:
        make_job_dir(folder)
    return folder


def make_job_dir(folder: epath.Path) -> None:
    """Makes the folder of a job, if it is not there.

    Raises:
        UserError: it cannot be made.
    """
    make_folder(folder)
    remove_left_over(folder)


def write_run_record(folder: epath.Path, config: Config, **facts: Any) -> None:
    """Writes ``run.json``: the config, the versions, and the job's own facts (device, seconds, evaluations ...)."""
    record = {
        **facts,
        "versions": versions(),
        "config": flatten(config),
    }
    write_whole(folder / "run.json", json.dumps(record, indent=2) + "\n")


def read_run_record(folder: epath.PathLike) -> dict[str, Any]:
    """What ``run.json`` of a job's folder says; empty if there is none, or it is damaged or another program's."""
    return read_if_sound(epath.Path(folder) / "run.json", {"mode": str, "versions": dict, "config": dict}) or {}


def summary_pictures(folder: epath.PathLike, names: Iterable[str]) -> set[str]:
    """Which pictures in a folder sum up others, such as ``grid.png``: in one that a job wrote, those without a number.

    Args:
        folder: any folder; ``run.json`` says whether a job wrote it.
        names: of the pictures in it.
    """
    if "mode" not in read_run_record(folder):
        return set()
    return {name for name in names if not is_name_of_image(name)}


def is_name_of_image(name: str) -> bool:
    """Whether a job gives an image this name: ``000007.png``, but not its copy ``000007 copy.png`` or ``7.png``."""
    is_form = bool(re.fullmatch(r"\d{6,}\.(png|npy)", name, re.ASCII))
    return is_form and f"{int(name[:-4]):06d}{name[-4:]}" == name


def versions() -> dict[str, str]:
    """The versions of this package and of those that decide its numbers."""
    return {"ddim_jax": __version__, **{name: _version(name) for name in ("jax", "jaxlib", "flax", "numpy")}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
