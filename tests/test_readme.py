"""The README's quick start is what CI runs."""

import importlib.util
import pathlib
import shlex

import pytest

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
