"""What takes the time of an evaluation: features of images by Inception, and the Fréchet distance between two sets."""

import importlib
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import jax
import numpy as np
import scipy.linalg

from benchmarks import torch_peers
from benchmarks.peers import PYTORCH_FID, TORCH_FIDELITY, Peers
from benchmarks.rows import OURS, Program, Row, Task, take_turns, with_details, with_remark
from benchmarks.setting import Setting
from ddim_jax.measuring import extractors
from ddim_jax.metrics.frechet import frechet_distance
from ddim_jax.metrics.moments import Gaussian, Moments
from ddim_jax.weights.inception import InceptionWeights, convert_state, inception_state_shapes

_MANY_IMAGES = 50_000
# What pytorch-fid adds to the variances where the square root fails.
_OFFSET = 1e-6


# --- the network --------------------------------------------------------------------------------


def measure_inception(setting: Setting, peers: Peers | None) -> list[Row]:
    """The way from uint8 32x32 images to features in NumPy arrays, resizing included.

    The weights are random, and the same for torch-fidelity and pytorch-fid, where these are installed.
    """
    state = _random_state()
    images = np.random.default_rng(1).integers(0, 256, (setting.batch, 32, 32, 3), np.uint8)
    programs: dict[str, Callable[[], Program]] = {OURS: lambda: _inception_program(state, images)}
    with tempfile.TemporaryDirectory() as folder:
        if peers is not None:
            file = pathlib.Path(folder) / "random.pth"
            peers.torch.save({name: peers.torch.tensor(array) for name, array in state.items()}, file)
            programs |= _torch_programs(peers.torch, file, images)
        turns = setting.compare(Task("Inception features", setting.batch), programs)
    return [_with_agreement(row, turns.results) for row in turns.rows]


def _inception_program(state: Mapping[str, np.ndarray], images: np.ndarray) -> Program:
    weights = InceptionWeights(convert_state(state, "random weights"), "random")
    per_device = -(-len(images) // jax.local_device_count())
    with mock.patch.object(extractors, "inception_variables", lambda path: weights):
        extractor = extractors.inception_extractor("", "tf1", per_device)
    return Program(lambda: extractor(images).features)


def _random_state() -> dict[str, np.ndarray]:
    """Weights by PyTorch's names under which signals neither vanish nor explode."""
    rng = np.random.default_rng(0)
    state = {}
    for name, shape in inception_state_shapes().items():
        if name.endswith("running_var"):
            state[name] = rng.uniform(0.5, 1.5, shape)
        else:
            spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
            state[name] = float(name.endswith("bn.weight")) + spread * rng.standard_normal(shape)
    return {name: array.astype(np.float32) for name, array in state.items()}


def _torch_programs(torch: Any, file: pathlib.Path, images: np.ndarray) -> dict[str, Callable[[], Program]]:
    """Makers of programs that bring uint8 images to the device, and features back."""
    planes = torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    device = torch_peers.torch_device(torch)

    def fidelity() -> Program:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        network = module.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"], str(file)).to(device)

        def run() -> np.ndarray:
            with torch.no_grad():
                return network(planes.to(device))[0].cpu().numpy()

        return Program(run)

    def pytorch_fid() -> Program:
        module: Any = importlib.import_module("pytorch_fid.inception")
        # It would fetch the published weights.
        module.load_state_dict_from_url = lambda *_, **__: torch.load(file)
        network = module.InceptionV3([3]).eval().to(device)

        def run() -> np.ndarray:
            with torch.no_grad():
                return network(planes.to(device).float() / 255)[0][:, :, 0, 0].cpu().numpy()

        return Program(run)

    return {TORCH_FIDELITY: fidelity, PYTORCH_FID: pytorch_fid}


def _with_agreement(row: Row, results: Mapping[str, np.ndarray]) -> Row:
    """Says how long an evaluation takes, and how far a peer's features are from ours."""
    if not row.values:
        return row
    seconds = _MANY_IMAGES / row.images_per_second
    row = with_remark(row, f"{_MANY_IMAGES:,} images in {seconds:,.0f} s")
    row = with_details(row, seconds_for_50000_images=seconds)
    if row.program == PYTORCH_FID:
        return with_remark(row, "another resizing, no logits")
    ours = results.get(OURS)
    if row.program == OURS or ours is None:
        return row
    error = np.abs(results[row.program] - ours).max() / ours.std()
    return with_remark(row, f"features differ by {error:.0e} of their spread at most")


# --- the distance -------------------------------------------------------------------------------


def measure_frechet(setting: Setting, peers: Peers | None, dimension: int) -> list[Row]:
    """Between two sets of features: of more images than features, as it should be, and of too few."""
    rows = []
    for num in (2 * dimension, min(1000, dimension // 2)):
        a, b = _random_gaussian(num, dimension, 0), _random_gaussian(num, dimension, 1)
        functions: dict[str, Callable[[Gaussian, Gaussian], float]] = {OURS: frechet_distance}
        if peers is not None:
            functions["scipy.linalg.sqrtm"] = _distance_by_square_root
        programs = {
            name: lambda function=function, a=a, b=b: Program(lambda: function(a, b))
            for name, function in functions.items()
        }
        turns = take_turns(Task(f"Fréchet distance, d = {dimension:,}, N = {num:,}"), programs, setting.repeats)
        for row in turns.rows:
            found, ours = turns.results.get(row.program), turns.results[OURS]
            if found is not None:
                row = with_remark(row, f"{found:.8g}")
            if found is not None and row.program != OURS:
                row = with_remark(row, f"differs by {abs(found / ours - 1):.0e}")
            rows.append(row)
    return rows


def _random_gaussian(num: int, dimension: int, seed: int) -> Gaussian:
    """Fitted to features that are correlated, and differ in their variances as Inception's do."""
    rng = np.random.default_rng(seed)
    scales = np.geomspace(1, 1e-2, dimension)
    features = rng.standard_normal((num, dimension)) * scales
    return Moments.empty(dimension).update(features + np.roll(features, seed + 1, axis=1)).gaussian()


def _distance_by_square_root(a: Gaussian, b: Gaussian) -> float:
    """The formula as most codes compute it: |mean_a - mean_b|² + tr(A + B - 2 (A B)^½)."""
    with warnings.catch_warnings():
        # That of a singular matrix has none, or many.
        warnings.simplefilter("ignore")
        root: Any = scipy.linalg.sqrtm(a.covariance @ b.covariance)
        if not np.isfinite(root).all():
            offset = _OFFSET * np.eye(len(a.mean))
            root = scipy.linalg.sqrtm((a.covariance + offset) @ (b.covariance + offset))
    difference = a.mean - b.mean
    return float(difference @ difference + np.trace(a.covariance + b.covariance) - 2 * np.trace(root.real))
