"""Measures the speed of evaluation beside other projects' code for the same figures, and prints a table.

    python scripts/benchmark_evaluation.py --json speed.json

It needs the extra ``parity``. Two things take the time of an evaluation: the Inception network, here with random
weights that torch-fidelity and pytorch-fid (where it is installed) are given too, and, once for each figure, the
Fréchet distance, which other codes find by a matrix square root. The programs take turns, so that a machine which slows
down slows all of them; the first round warms up and does not count.

All programs use all cores that they may. While other work runs on these, threads that wait for one another spoil the
comparison: ``taskset -c 0 python scripts/benchmark_evaluation.py`` keeps to one core, and the processor time tells what
each program needs.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg

from ddim_jax.evaluation.extractors import inception_extractor
from ddim_jax.metrics.frechet import frechet_distance
from ddim_jax.metrics.moments import Gaussian, Moments
from ddim_jax.weights.inception import torch_shapes

PACKAGES = ("ddim_jax", "jax", "numpy", "scipy", "torch", "torch-fidelity", "pytorch-fid")
# What pytorch-fid adds to the variances where the square root fails.
OFFSET = 1e-6


class Row(NamedTuple):
    """One program's times.

    Attributes:
        task: what was done.
        program: by whom.
        seconds: of each repeat; empty if the program cannot run here.
        processor_seconds: of each repeat, of all threads together.
        images: in each repeat; 0 where it is not about images.
        remark: how far the result is from ours, or why there is none.
    """

    task: str
    program: str
    seconds: list[float]
    processor_seconds: list[float]
    images: int = 0
    remark: str = ""


class Times(NamedTuple):
    """Seconds and processor seconds of each repeat, and the last result."""

    seconds: list[float]
    processor_seconds: list[float]
    result: Any


def take_turns(programs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Times]:
    """Runs A B A B ..., once more than ``repeats``: the first round compiles and warms up."""
    found: dict[str, Times] = {name: Times([], [], None) for name in programs}
    for turn in range(repeats + 1):
        for name, run in programs.items():
            start, processor_start = time.perf_counter(), time.process_time()
            result = run()
            processor_seconds, seconds = time.process_time() - processor_start, time.perf_counter() - start
            if turn:
                found[name].seconds.append(seconds)
                found[name].processor_seconds.append(processor_seconds)
            found[name] = found[name]._replace(result=result)
    return found


# --- the network --------------------------------------------------------------------------------


def random_state() -> dict[str, np.ndarray]:
    """Weights by PyTorch's names under which signals neither vanish nor explode."""
    rng = np.random.default_rng(0)
    state = {}
    for name, shape in torch_shapes().items():
        if name.endswith("running_var"):
            state[name] = rng.uniform(0.5, 1.5, shape)
        else:
            spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
            state[name] = float(name.endswith("bn.weight")) + spread * rng.standard_normal(shape)
    return {name: array.astype(np.float32) for name, array in state.items()}


def repair_torchvision(torch: Any) -> Any:
    """Lets a torchvision be imported that was built for another PyTorch.

    It fails since its compiled part lacks operators. Nothing here calls them: it is enough to declare them.

    Returns:
        What has to be kept for as long as torchvision is used.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    while True:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            arguments = "Tensor dets, Tensor scores, float iou_threshold" if missing[1] == "nms" else "Tensor values"
            library.define(f"{missing[1]}({arguments}) -> Tensor")
        else:
            return library


def fidelity_network(file: pathlib.Path) -> Callable[[Any], Any]:
    """torch-fidelity's: uint8 [n, 3, h, w] → [n, 2048]."""
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    network = module.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"], str(file))
    return lambda images: network(images)[0]


def pytorch_fid_network(torch: Any, file: pathlib.Path) -> Callable[[Any], Any]:
    """pytorch-fid's, which has another resizing and no logits: uint8 [n, 3, h, w] → [n, 2048]."""
    module: Any = importlib.import_module("pytorch_fid.inception")
    # It would fetch the published weights.
    module.load_state_dict_from_url = lambda *_, **__: torch.load(file)
    network = module.InceptionV3([3]).eval()
    return lambda images: network(images.float() / 255)[0][:, :, 0, 0]


def measure_networks(torch: Any, batch: int, repeats: int) -> list[Row]:
    """From uint8 32x32 images to features in NumPy arrays, resizing included."""
    task = "Inception features"
    images = np.random.default_rng(1).integers(0, 256, (batch, 32, 32, 3), np.uint8)
    planes = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    left_out = []
    with tempfile.TemporaryDirectory() as folder:
        # Converted weights are kept there too.
        os.environ["DDIM_JAX_CACHE"] = folder
        file = pathlib.Path(folder) / "random.pth"
        torch.save({name: torch.tensor(array) for name, array in random_state().items()}, file)
        extractor = inception_extractor(str(file), "tf1", -(-batch // jax.local_device_count()))
        programs: dict[str, Callable[[], Any]] = {"ddim_jax": lambda: extractor(images).features}
        for name, build in {
            "torch-fidelity": lambda: fidelity_network(file),
            "pytorch-fid": lambda: pytorch_fid_network(torch, file),
        }.items():
            try:
                network = build()
            except (ImportError, RuntimeError) as error:
                left_out.append(Row(task, name, [], [], remark=str(error).splitlines()[0]))
            else:
                programs[name] = lambda network=network: network(planes).numpy()
    with torch.no_grad():
        found = take_turns(programs, repeats)
    ours = found["ddim_jax"].result
    remarks = {"pytorch-fid": "other resizing, no logits"}
    if "torch-fidelity" in found:
        error = np.abs(found["torch-fidelity"].result - ours).max() / ours.std()
        remarks["torch-fidelity"] = f"features differ by {error:.0e} of their spread at most"
    rows = [
        Row(task, name, times.seconds, times.processor_seconds, batch, remarks.get(name, ""))
        for name, times in found.items()
    ]
    return rows + left_out


# --- the distance -------------------------------------------------------------------------------


def random_gaussian(num: int, dimension: int, seed: int) -> Gaussian:
    """Fitted to features that are correlated, and differ in their variances as Inception's do."""
    rng = np.random.default_rng(seed)
    scales = np.geomspace(1, 1e-2, dimension)
    features = rng.standard_normal((num, dimension)) * scales
    return Moments.empty(dimension).update(features + np.roll(features, seed + 1, axis=1)).gaussian()


def distance_by_square_root(a: Gaussian, b: Gaussian) -> float:
    """The formula as most codes compute it: |mean_a - mean_b|² + tr(A + B - 2 (A B)^½)."""
    with warnings.catch_warnings():
        # That of a singular matrix has none, or many.
        warnings.simplefilter("ignore")
        root: Any = scipy.linalg.sqrtm(a.covariance @ b.covariance)
        if not np.isfinite(root).all():
            offset = OFFSET * np.eye(len(a.mean))
            root = scipy.linalg.sqrtm((a.covariance + offset) @ (b.covariance + offset))
    difference = a.mean - b.mean
    return float(difference @ difference + np.trace(a.covariance + b.covariance) - 2 * np.trace(root.real))


def measure_distances(num: int, dimension: int, repeats: int) -> list[Row]:
    """Between two sets of ``num`` features, whose covariances have full rank if there are more than ``dimension``."""
    task = f"Fréchet distance, d = {dimension:,}, N = {num:,}"
    a, b = random_gaussian(num, dimension, 0), random_gaussian(num, dimension, 1)
    programs = {
        "ddim_jax": lambda: frechet_distance(a, b),
        "scipy.linalg.sqrtm": lambda: distance_by_square_root(a, b),
    }
    found = take_turns(programs, repeats)
    ours, theirs = (times.result for times in found.values())
    remarks = (f"{ours:.8g}", f"{theirs:.8g}, differs by {abs(theirs / ours - 1):.0e}")
    return [
        Row(task, name, times.seconds, times.processor_seconds, remark=remark)
        for (name, times), remark in zip(found.items(), remarks, strict=True)
    ]


# --- the table ----------------------------------------------------------------------------------


def usable_cores() -> int:
    """Cores that this process may use: fewer than there are under ``taskset``, which not all systems have."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(torch: Any) -> dict[str, Any]:
    """Device, threads and versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "jax_device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        "torch_device": f"cpu, threads: {torch.get_num_threads()}",
        "processor": f"{platform.machine()}, {usable_cores()} of {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **versions},
    }


def print_head() -> None:
    """Begins a Markdown table."""
    print("| task | program | median | fastest - slowest | time / ours | processor time | / ours | |")
    print("|---|---|---|---|---|---|---|---|", flush=True)


def print_rows(rows: list[Row]) -> None:
    """Writes the rows of one task; what is relative to ours is above 1 where ours is the shorter time."""
    ours = rows[0]
    for row in rows:
        cells = ["-"] * 5
        if row.seconds:
            median, processor = statistics.median(row.seconds), statistics.median(row.processor_seconds)
            cells = [
                f"{row.images / median:.2f} images/s" if row.images else f"{median:.3g} s",
                f"{min(row.seconds):.3g} - {max(row.seconds):.3g} s",
                f"{median / statistics.median(ours.seconds):.2f}",
                f"{processor:.3g} s",
                f"{processor / statistics.median(ours.processor_seconds):.2f}",
            ]
        print("|", " | ".join([row.task, row.program, *cells, row.remark]), "|", flush=True)


def main() -> None:
    """Measures, prints, and writes the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=32, help="images per call of the network (%(default)s)")
    parser.add_argument("--dimension", type=int, default=2048, help="features of the distance (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (%(default)s)")
    parser.add_argument("--json", type=pathlib.Path, help="file for all that was measured")
    args = parser.parse_args()

    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        parser.error("needs PyTorch: pip install 'ddim_jax[parity]'")
    torch.set_num_threads(usable_cores())
    library = repair_torchvision(torch)
    described = machine(torch)
    print(f"JAX on {described['jax_device']}; PyTorch on {described['torch_device']}; {described['processor']}")
    print(", ".join(f"{name} {version}" for name, version in described["versions"].items()), end="\n\n", flush=True)
    print_head()
    rows = measure_networks(torch, args.batch, args.repeats)
    del library
    print_rows(rows)
    # More images than features, as it should be, and too few.
    for num in (2 * args.dimension, min(1000, args.dimension // 2)):
        distances = measure_distances(num, args.dimension, args.repeats)
        print_rows(distances)
        rows += distances
    if args.json:
        settings = {"batch": args.batch, "dimension": args.dimension, "repeats": args.repeats}
        record = {**described, **settings, "rows": [row._asdict() for row in rows]}
        args.json.write_text(json.dumps(record, indent=2) + "\n")
        print(f"wrote {args.json}")


if __name__ == "__main__":
    main()
