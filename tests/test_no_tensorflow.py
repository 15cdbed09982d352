"""The program runs where neither TensorFlow nor PyTorch can be imported, and imports neither where they can."""

import io
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent

# Read by every Python process that has its folder on PYTHONPATH: the two cannot be found, installed or not.
SITECUSTOMIZE = """
import sys

class Hide:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in ("tensorflow", "torch")
        return None if hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name): return getattr(self.finder, name)

sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
"""

# Several commands in one process, since starting JAX and compiling take most of the time.
COMMANDS = """
import json, sys
from ddim_jax import main
statuses = [main.run(["ddim_jax", *arguments]) for arguments in json.loads(sys.argv[1])]
print("statuses", statuses)
print("imported", sorted({"tensorflow", "torch"} & set(sys.modules)))
"""

SMALL = (
    "--config.model.multipliers=(1,)",
    "--config.model.attention_resolutions=(8,)",
    "--config.train.steps=2",
    "--config.train.final_sample_steps=()",
)


def run(commands: list[list[str]], *paths: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))},
        capture_output=True,
        text=True,
        timeout=300,
    )


def command(workdir: pathlib.Path, *arguments: str) -> list[str]:
    return [f"--config={ROOT}/configs/digits.py:tiny", f"--workdir={workdir}", *SMALL, *arguments]


def square(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def prepare_squares(directory: pathlib.Path) -> None:
    """A TFDS data set of encoded images; preparing that needs no TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core import registered

    with registered.skip_registration():

        class DdimGreySquares(tfds.core.GeneratorBasedBuilder):
            """Ten squares."""

            VERSION = tfds.core.Version("1.0.0")

            def _info(self) -> Any:
                features = {"image": tfds.features.Image(shape=(8, 8, 3))}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                return {"train": self._generate_examples()}

            def _generate_examples(self) -> Iterator[tuple[int, dict[str, bytes]]]:
                for i in range(10):
                    yield i, {"image": square(20 * i)}

    DdimGreySquares(data_dir=str(directory), file_format="array_record").download_and_prepare()


@pytest.mark.slow
def test_everything_works_without_tensorflow_and_pytorch(tmp_path: pathlib.Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    (tmp_path / "images").mkdir()
    for level in range(10):
        (tmp_path / "images" / f"{level}.png").write_bytes(square(20 * level))
    prepare_squares(tmp_path / "tfds")
    tfds = ["--config.data.source=tfds", "--config.data.name=ddim_grey_squares", f"--config.data.dir={tmp_path}/tfds"]
    folder = ["--config.data.source=folder", f"--config.data.path={tmp_path}/images"]
    result = run(
        [
            command(tmp_path / "digits"),
            command(tmp_path / "folder", *folder),
            command(tmp_path / "tfds_run", *tfds),
            command(tmp_path / "tfds_run", *tfds, "--mode=sample"),
            command(tmp_path / "tfds_run", *tfds, "--mode=describe"),
            command(tmp_path / "none", *tfds, "--config.data.name=cifar10"),
        ],
        tmp_path / "site",
    )
    assert result.returncode == 0, result.stderr
    assert "statuses [0, 0, 0, 0, 0, 2]\n" in result.stdout, result.stderr
    assert "imported []\n" in result.stdout
    for name in ("digits", "folder", "tfds_run"):
        assert (tmp_path / name / "metrics.jsonl").read_text().count('"loss": ') == 2
        (events,) = (tmp_path / name / "tensorboard").iterdir()
        assert b"loss" in events.read_bytes()
    assert len(list((tmp_path / "tfds_run" / "sample").glob("*/0*.png"))) == 4
    (refusal,) = [line for line in result.stderr.splitlines() if line.startswith("ddim_jax: error: ")]
    assert "preparing it needs TensorFlow: pip install 'ddim_jax[tfds]'" in refusal
    assert refusal.rstrip().endswith("or read images by data.source=folder")
    assert not (tmp_path / "none").exists()


def test_they_are_really_hidden(tmp_path: pathlib.Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    for module in ("tensorflow", "torch.nn"):
        result = subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "ModuleNotFoundError" in result.stderr


def test_an_ordinary_run_imports_neither(tmp_path: pathlib.Path) -> None:
    result = run([command(tmp_path / "run"), command(tmp_path / "run", "--mode=sample")])
    assert "statuses [0, 0]\n" in result.stdout, result.stderr
    assert "imported []\n" in result.stdout
