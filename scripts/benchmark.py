"""Measures the speed and memory of everything, beside other projects if wanted, and prints a table.

    python scripts/benchmark.py --config=configs/cifar10.py:bf16 --batch 256 --peers --json speed.json

Each task runs several times after a first run, which compiles and warms up; the table has the medians. Programs that do
the same task take turns, A B A B ..., so that a machine which slows down slows all of them; with ``--apart`` each in a
process of its own, as its users start it, which on a CPU is the fair way. What compiling took ahead
of time, and the first run, stand apart. TFLOP/s count convolutions and matrix products by hand, the backward pass as
two forward ones; the share is of the devices' data sheet, or of ``--peak``.

The subjects:

- ``startup``: from the command to the first training step, with an empty and with a filled compilation cache;
- ``memory``: peaks of training and of sampling in more and more steps;
- ``train``: the training step, as the training job runs it;
- ``sample``: trajectories of DDIM;
- ``forward``: the network alone;
- ``convolution``: 3x3 convolutions in Winograd's form beside XLA's, by which the network chooses on a CPU;
- ``inception``, ``frechet``: what takes the time of an evaluation;
- ``data``: batches, by each way to keep images, against what training consumes;
- ``checkpoint``: how long a save holds up training.

``--peers`` needs the extra ``parity``: diffusers' network, eager and by ``torch.compile``; torch-fidelity's Inception;
SciPy's matrix square root. Two peers are on no index: give checkouts of github.com/ermongroup/ddim (``--ddim-code``)
and github.com/yang-song/score_sde (``--score-sde``). PyTorch uses one GPU: give us no more either
(``CUDA_VISIBLE_DEVICES=0``).

On a CPU all programs use all cores that they may, and PyTorch's threads sleep while they wait for one another, unless
``OMP_WAIT_POLICY`` says otherwise: spinning, they spoil the comparison where other work runs on the same cores. The
processor time tells what each program needs even there.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags
from benchmarks import convolutions, evaluation, networks, processes, profiling, rows, storage, training
from benchmarks.apart import Turn, measure_apart, turn_of
from benchmarks.machine import describe_machine, known_peak
from benchmarks.peers import Peers, peer_names
from benchmarks.rows import OURS, Row, note
from benchmarks.setting import Setting
from ml_collections import config_flags

from ddim_jax import parallel
from ddim_jax.config import Config, from_config_dict
from ddim_jax.errors import UserError
from ddim_jax.huge_pages import restart_with_huge_pages
from ddim_jax.main import cpu_devices

_REPOSITORY = pathlib.Path(__file__).parent.parent

# In the order in which they run: the first two need processes of their own.
SUBJECTS = (
    *("startup", "memory", "train", "sample", "forward", "convolution", "inception", "frechet", "data", "checkpoint"),
)

# Those that programs can do in processes of their own.
_APART = ("train", "sample", "forward", "inception")


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and those of the config."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="--config=FILE[:VARIANTS] and --config.GROUP.KEY=VALUE choose the network (configs/cifar10.py)",
        allow_abbrev=False,
    )
    parser.add_argument("--only", default=",".join(SUBJECTS), help="subjects, with commas between them (%(default)s)")
    parser.add_argument(
        "--peers",
        nargs="*",
        metavar="NAME",
        help="run other projects' programs beside ours: all, or those of the table",
    )
    parser.add_argument(
        "--apart", action="store_true", help="each program in a process of its own, as its users run it"
    )
    parser.add_argument("--serve", metavar="PROGRAM", default="", help=argparse.SUPPRESS)
    parser.add_argument("--ddim-code", type=pathlib.Path, metavar="DIR", help="checkout of ermongroup/ddim")
    parser.add_argument("--score-sde", type=pathlib.Path, metavar="DIR", help="checkout of yang-song/score_sde")
    parser.add_argument("--batch", type=int, default=16, help="images at a time, over all devices (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (%(default)s)")
    parser.add_argument(
        "--calls", type=int, default=0, help="training steps and forward passes in a repeat (1 on a CPU, else 20)"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[10], help="numbers of DDIM steps (%(default)s)")
    parser.add_argument(
        "--images", type=pathlib.Path, metavar="DIR", help="images to train on; random ones if not given"
    )
    parser.add_argument("--dimension", type=int, default=2048, help="features of the distance (%(default)s)")
    parser.add_argument("--peak", type=float, metavar="TFLOP/s", help="of a device, instead of its data sheet's")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="file for all that was measured")
    parser.add_argument("--profile", type=pathlib.Path, metavar="DIR", help="traces of one more repeat of each of ours")
    options, rest = parser.parse_known_args(arguments)
    unknown = [argument for argument in rest if not argument.startswith("--config")]
    wrong = set(options.only.split(",")) - set(SUBJECTS)
    if unknown or wrong:
        parser.error(f"unknown: {', '.join([*unknown, *sorted(wrong)])}")
    if not any(argument.split("=")[0] == "--config" for argument in rest):
        rest.insert(0, f"--config={_REPOSITORY / 'configs' / 'cifar10.py'}")
    return options, rest


def _read_config(config_flags_given: Sequence[str], batch: int) -> Config:
    own = flags.FlagValues()
    argv = ["benchmark.py", *config_flags_given, f"--config.train.batch_size={batch}"]
    config_flags.DEFINE_config_file("config", flag_values=own, sys_argv=argv)
    own(argv)
    return from_config_dict(own.config)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes the file."""
    options, config_arguments = _parse(arguments)
    if options.serve == OURS:
        restart_with_huge_pages(pathlib.Path(__file__).stem)
    try:
        config = _read_config(config_arguments, options.batch)
        with tempfile.TemporaryDirectory() as made:
            _measure(options, config_arguments, config, options.images or pathlib.Path(made))
    except UserError as error:
        sys.exit(f"benchmark: error: {error}")


def _measure(options: argparse.Namespace, config_arguments: list[str], config: Config, images: pathlib.Path) -> None:
    chosen = [subject for subject in SUBJECTS if subject in options.only.split(",")]
    if options.images is None and {"startup", "memory", "train", "data"} & set(chosen):
        storage.make_pictures(images, config.data.image_shape[0], config.data.channels)
    setting = Setting(
        storage.from_folder(config, images),
        tuple(config_arguments),
        options.repeats,
        options.calls,
        tuple(options.steps),
        options.profile,
        turn_of(options.serve) if options.serve else Turn((OURS, *options.peers) if options.peers else ()),
    )
    found: dict[str, list[Row]] = {}
    # Before JAX and PyTorch have taken the devices.
    for subject, measure in {"startup": processes.measure_startup, "memory": processes.measure_memory}.items():
        if subject in chosen:
            found[subject] = measure(setting)

            _write(options, {}, found)
    if options.apart:
        # While this process has no device of its own.
        for subject in filter(chosen.__contains__, _APART):
            found[subject] = measure_apart(_commands(subject, options, config_arguments, images))

    parallel.share_cpu(cpu_devices(config, parallel.usable_cores()))
    peers = None
    if options.peers is not None and options.serve != OURS:
        # So that both find room on one GPU.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        peers = _peers(options)
    machine = {**describe_machine(), "config": config_arguments}
    if peers is not None:
        machine["pytorch"] = peers.description
    note(f"JAX on {machine['device']}")
    measures: dict[str, Callable[[], list[Row]]] = {
        "train": lambda: training.measure_train(setting, peers),
        "sample": lambda: networks.measure_sample(setting, peers),
        "forward": lambda: networks.measure_forward(setting, peers),
        "convolution": lambda: convolutions.measure_convolutions(setting),
        "inception": lambda: evaluation.measure_inception(setting, peers),
        "frechet": lambda: evaluation.measure_frechet(setting, peers, options.dimension),
        "data": lambda: storage.measure_data(setting, next(iter(found.get("train", [])), None)),
        "checkpoint": lambda: storage.measure_checkpoint(setting),
    }
    for subject, measure in measures.items():
        if subject in chosen and subject not in found:
            found[subject] = measure()
            # A run that is cut short leaves what it found.
            _write(options, machine, found)
            jax.clear_caches()
    _write(options, machine, found)
    if not options.serve:
        _print(options, machine, found, _peak(options, setting))


def _commands(
    subject: str, options: argparse.Namespace, config_arguments: Sequence[str], images: pathlib.Path
) -> dict[str, list[str]]:
    """The commands that measure one subject, for each program."""
    names = [OURS]
    if options.peers is not None:
        names += peer_names(subject, options.ddim_code is not None, options.score_sde is not None)
        names = [name for name in names if name in (OURS, *options.peers) or not options.peers]
    command = [sys.executable, __file__, *config_arguments, "--only", subject, "--images", str(images)]
    command += ["--batch", str(options.batch), "--repeats", str(options.repeats), "--calls", str(options.calls)]
    command += ["--steps", *map(str, options.steps)]
    for flag, value in {"--ddim-code": options.ddim_code, "--score-sde": options.score_sde}.items():
        command += [] if value is None else [flag, str(value)]
    ours = [*command, "--profile", str(options.profile)] if options.profile else command
    return {name: ours if name == OURS else [*command, "--peers"] for name in names}


def _peers(options: argparse.Namespace) -> Peers:
    try:
        peers = Peers(options.ddim_code, options.score_sde)
    except ImportError as error:
        raise UserError("--peers needs PyTorch: pip install 'ddim_jax[parity]'") from error
    if jax.default_backend() != "cpu" and jax.device_count() > 1:
        raise UserError(f"--peers with {jax.device_count()} devices: PyTorch uses one here; set CUDA_VISIBLE_DEVICES=0")
    return peers


def _peak(options: argparse.Namespace, setting: Setting) -> float | None:
    """TFLOP/s of all devices together, if known."""
    devices = setting.devices
    peak = options.peak or known_peak(devices[0].device_kind, setting.config.model.dtype)
    return None if peak is None else peak * len(devices)


def _write(options: argparse.Namespace, machine: dict[str, Any], found: dict[str, list[Row]]) -> None:
    if options.json is None:
        return
    settings = {name: str(value) if isinstance(value, pathlib.Path) else value for name, value in vars(options).items()}
    by_subject = {subject: [rows.as_json(row) for row in found_rows] for subject, found_rows in found.items()}
    options.json.write_text(json.dumps({**machine, "settings": settings, "subjects": by_subject}, indent=2) + "\n")


def _print(
    options: argparse.Namespace, machine: dict[str, Any], found: dict[str, list[Row]], peak: float | None
) -> None:
    all_rows = [row for found_rows in found.values() for row in found_rows]
    pytorch = f"; PyTorch on {machine['pytorch']}" if "pytorch" in machine else ""
    print(
        f"JAX on {machine['device']}{pytorch}; {machine['processor']}; batch {options.batch}; {options.repeats} repeats"
    )
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()), end="\n\n")
    print(rows.markdown(all_rows, peak))
    for row in all_rows:
        if "operations" in row.details:
            print("\n" + profiling.markdown(row.task, row.details["operations"]))


if __name__ == "__main__":
    main()
