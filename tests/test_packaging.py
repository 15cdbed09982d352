"""What is built to be installed elsewhere: configs and command in the wheel, documents and tests in the sdist."""

import configparser
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("configs", "ddim_jax", "docs", "scripts", "tests")
FILES = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"),
    *("Dockerfile", ".dockerignore", "mkdocs.yml"),
)

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, made of a copy, since building writes beside the sources."""
    pytest.importorskip("setuptools", minversion="77.0.3")
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for kind in ("wheel", "sdist"):
        done = subprocess.run(
            [sys.executable, "-c", BUILD, kind, folder], cwd=source, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return wheel, sdist


def files(*folders):
    """All files of some folders of the checkout, by path."""
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in paths if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_the_wheel_has_all_of_the_package_and_the_configs(built):
    with zipfile.ZipFile(built[0]) as wheel:
        there = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert there == files("ddim_jax") | {f"ddim_jax/{path}" for path in files("configs")}


@pytest.mark.slow
def test_the_sdist_has_what_the_checkout_has(built):
    with tarfile.open(built[1]) as sdist:
        there = {name.partition("/")[2] for name in sdist.getnames()}
    assert files(*FOLDERS) | set(FILES) <= there


@pytest.mark.slow
def test_the_installed_command_finds_its_configs_outside_the_checkout(built, tmp_path):
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(tmp_path / "site")
    (entry_points,) = (tmp_path / "site").glob("*.dist-info/entry_points.txt")
    scripts = configparser.ConfigParser()
    scripts.read(entry_points)
    assert dict(scripts["console_scripts"]) == {"ddim_jax": "ddim_jax.main:command"}

    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-c", "import sys; from ddim_jax.main import command; sys.exit(command())", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
            capture_output=True,
            text=True,
            timeout=300,
        )

    trained = command("--config=digits:tiny", "--workdir=run", "--config.train.steps=1")
    assert trained.returncode == 0, trained.stderr
    assert "done: 1 steps" in trained.stderr
    described = command("--workdir=run", "--mode=describe")
    assert "train.steps = 1\n" in described.stdout, described.stderr
    refused = command("--config=configs/digits.py", "--workdir=other")
    assert refused.stderr == "ddim_jax: error: --config=configs/digits.py is not a file; did you mean digits?\n"
