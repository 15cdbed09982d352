"""The README's quick start is what CI runs, its layers are those that CI checks, and what documents name exists."""

import importlib.util
import pathlib
import re
import shlex
import tomllib

import pytest

from ddim_jax import main
from ddim_jax.config import Config, flatten
from ddim_jax.errors import UserError
from ddim_jax.names import Mode, choices

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"


def load_script():
    spec = importlib.util.spec_from_file_location("readme_commands", ROOT / "scripts" / "readme_commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()

TEXT = """# Title

## Before
```sh
not this
```

## Quick start
Train:
```sh
python -m ddim_jax.main --config=a --workdir=b
```
In Python:
```python
import ddim_jax
```
Test:

```sh
pytest
```

## After
```sh
nor this
```
"""


def test_the_two_commands_are_found():
    assert SCRIPT.quick_start_commands(TEXT) == {
        "train": "python -m ddim_jax.main --config=a --workdir=b",
        "test": "pytest",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Title\n", "no section 'Quick start'"),
        (TEXT.replace("pytest", "cd x\npytest"), "2 sh blocks of one line each"),
        (TEXT.replace("```sh\npytest\n```\n", ""), "2 sh blocks of one line each"),
        (TEXT.replace("## After", "### After"), "2 sh blocks of one line each"),
    ],
)
def test_a_section_of_another_form_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        SCRIPT.quick_start_commands(text)


@pytest.mark.skipif(not README.exists(), reason="no README.md")
def test_the_readmes_commands_exist():
    commands = SCRIPT.quick_start_commands(README.read_text())
    train = shlex.split(commands["train"])
    assert "ddim_jax.main" in train
    (config,) = [word.removeprefix("--config=") for word in train if word.startswith("--config=")]
    assert (ROOT / config.split(":")[0]).is_file()
    assert "pytest" in shlex.split(commands["test"])


def test_the_readme_says_on_which_versions_of_python_it_was_tried():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert project["requires-python"] == f">={versions[0]}"
    said = re.search(r"^Python (3\.\d+) or newer .*?\n\n", README.read_text(), re.MULTILINE | re.DOTALL)
    assert said[1] == versions[0]
    assert sorted(set(re.findall(r"\b3\.\d+\b", said[0]))) == versions


def test_the_table_of_layers_is_the_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [set(layer.split(" | ")) for layer in next(c for c in contracts if c["type"] == "layers")["layers"]]
    section = (ROOT / "docs" / "architecture.md").read_text().split("| what | owns |")[1].split("\n\n")[0]
    rows = [set(re.findall(r"`(\w+)(?:\.py|/)`", line.split(" | ")[0])) for line in section.splitlines()[2:]]
    assert rows == layers
    modules = {path.stem for path in (ROOT / "ddim_jax").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "ddim_jax").glob("*/__init__.py")}
    assert set().union(*rows) == modules | packages


# A file that a document tells how to write, and its mode.
NOT_YET = {"jobs/count.py"}
# A folder of a workdir.
OF_WORKDIRS = {"best/"}
NOT_YET_MODES = {"count"}


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
)
def test_paths_in_documents_exist(page):
    text = (ROOT / page).read_text()
    assert re.findall(r"@[A-Z]+@", text) == []  # what was to be filled in
    links = set(re.findall(r"\]\(([^)#:]+)[)#]", text))
    files = set(re.findall(r"`((?:[a-z_]+/)*\w+\.(?:py|sh)|(?:[a-z_]+/)+)`", text)) - NOT_YET - OF_WORKDIRS
    folders = (ROOT, ROOT / "ddim_jax", ROOT / "ddim_jax" / "diffusion", ROOT / "scripts", ROOT / "tests")
    assert [link for link in sorted(links) if not ((ROOT / page).parent / link).exists()] == []
    assert [file for file in sorted(files) if not any((folder / file).exists() for folder in folders)] == []


# --- commands -----------------------------------------------------------------------------------

PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        *(README, ROOT / "CONTRIBUTING.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "configs").glob("*.py"),
        *(ROOT / "ddim_jax" / "pretrained").glob("*.md"),
    )
)

KEYS = set(flatten(Config()))
GROUPS = {key.split(".")[0] for key in KEYS}
# Of all keys, where the form of a command is explained.
ANY = "a.b"

QUOTES = "\"'"


@pytest.mark.parametrize("page", PAGES)
def test_keys_modes_and_configs_of_commands_exist(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"--(?:no)?config\.([\w.]*\w)", text)) - {ANY}
    assert named - KEYS - GROUPS == set()
    quoted = set(re.findall(r"`((?:" + "|".join(GROUPS) + r")\.[a-z_]\w*)\b(?!\.py|\.md|\()", text))
    assert {key for key in quoted if not key.endswith((".py", ".md"))} - KEYS == set()
    assert set(re.findall(r"--mode=([a-z]\w*)", text)) - set(choices(Mode)) - NOT_YET_MODES == set()
    for config in sorted(set(re.findall(r"--config=(configs/[a-z0-9]\w*\.py(?::[\w,]+)?)", text))):
        main.parse(["ddim_jax", f"--config={ROOT / config}", "--mode=describe"])


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/adding.md"])
def test_values_in_commands_can_be_used(page):
    """As far as their types and names go; what suits one network does not suit another."""
    form = r"""--config\.([\w.]*\w)=("[^"\n]+"|'[^'\n]+'|\([^)\n]*\)|[^\s"'`)\];,|]+)"""
    for key, value in sorted(set(re.findall(form, (ROOT / page).read_text()))):
        flag = f"--config.{key}={value.strip(QUOTES)}"
        if key != ANY:
            try:
                main.parse(["ddim_jax", f"--config={ROOT}/configs/digits.py", "--mode=describe", flag])
            except UserError as error:
                assert not str(error).startswith((f"{key}: ", f"{key}[")), flag
