"""Every package that is imported is declared in pyproject.toml, and every declared one is imported."""

import ast
import pathlib
import re
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Where a package is imported under another name than it is installed by.
INSTALLED_AS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "griffe": "griffelib",
    "importlinter": "import-linter",
    "ml_collections": "ml-collections",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "tensorboardX": "tensorboardx",
    "tensorflow": "tensorflow-cpu",
}


def declared(requirements):
    """The packages of a list of requirements, in lower case, with "-"; without ddim_jax itself."""
    found = {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in requirements}
    return found - {"ddim-jax"}


def imported(*folders):
    """The packages that some folders import, as they are installed; not those that the folders hold."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    scripts = [ROOT / "scripts", *(path for path in (ROOT / "scripts").rglob("*") if path.is_dir())]
    own = {"ddim_jax"} | {path.stem for path in [*files, *scripts, *(ROOT / "scripts").rglob("*.py")]}
    return {INSTALLED_AS.get(name, name).lower().replace("_", "-") for name in found - own - sys.stdlib_module_names}


def test_the_package_imports_what_it_declares_and_nothing_else():
    # TensorFlow is imported while a TFDS data set is prepared, huggingface_hub while weights are fetched from there.
    extras = {"tensorflow-cpu": "tfds", "huggingface-hub": "hub"}
    assert imported("ddim_jax", "configs") == declared(PROJECT["dependencies"]) | extras.keys()
    for package, extra in extras.items():
        assert package in declared(PROJECT["optional-dependencies"][extra])


@pytest.mark.parametrize(
    ("folder", "extras"), [("scripts", ("docs", "tutorials")), ("tests", ("test", "parity", "hub"))]
)
def test_scripts_and_tests_import_what_is_declared(folder, extras):
    further = [requirement for extra in extras for requirement in PROJECT["optional-dependencies"][extra]]
    assert imported(folder) <= declared([*PROJECT["dependencies"], *further])


def test_each_dependency_has_a_lower_bound():
    every = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [requirement for group in every for requirement in group if not requirement.startswith("ddim_jax")]
    assert [requirement for requirement in requirements if ">=" not in requirement] == []
