"""The tutorials of docs/tutorials/: notebooks and texts agree, are listed, and what runs them sees what is wrong.

That each of them runs is what ``scripts/run_notebooks.py`` itself tells.
"""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
TEXTS = sorted(TUTORIALS.glob("*.py"))
SCRIPT = ROOT / "scripts" / "run_notebooks.py"

GOOD = "# %% [markdown]\n# # A title\n\n# %%\nimport ddim_jax\n\nprint(ddim_jax.__version__)\n"
BAD = GOOD + "\n# %%\n1 / 0\n"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("jupytext", reason="needs the extra tutorials")
    pytest.importorskip("nbclient", reason="needs the extra tutorials")
    spec = importlib.util.spec_from_file_location("run_notebooks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_index_lists_the_tutorials():
    listed = re.findall(r"\]\((\w+)\.ipynb\)", (TUTORIALS / "index.md").read_text())
    assert sorted(listed) == [path.stem for path in TEXTS]
    assert len(TEXTS) == 4


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_link_leads_to_a_file(path):
    for target in re.findall(r"\]\(([\w./]+)\)", path.read_text()):
        assert (TUTORIALS / target).exists(), target


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_stored_notebook_has_the_cells_of_its_text_and_small_outputs(script, path):
    assert script.faults(path) == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_tutorial_begins_with_what_it_shows_and_needs(script, path):
    first = script.read_text(path).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "**What it shows.**" in first.source
    assert "**What it needs.**" in first.source


@pytest.fixture
def folder(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "TUTORIALS", tmp_path)
    return tmp_path


def run(script, monkeypatch, *given):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *given])
    return script.main()


@pytest.mark.slow
def test_a_notebook_is_stored_and_checked(script, folder, monkeypatch, capsys):
    (folder / "a.py").write_text(GOOD)
    assert run(script, monkeypatch) == 1
    assert "a.ipynb is missing; make it by python scripts/run_notebooks.py a --write" in capsys.readouterr().err
    assert run(script, monkeypatch, "--write") == 0
    stored = (folder / "a.ipynb").read_text()
    assert run(script, monkeypatch) == 0
    assert (folder / "a.ipynb").read_text() == stored
    (folder / "a.py").write_text(GOOD.replace("A title", "Another title"))
    assert script.faults(folder / "a.py") == [
        "a.ipynb has other cells than a.py; edit the text, then python scripts/run_notebooks.py a --write"
    ]


@pytest.mark.slow
def test_a_cell_that_raises_is_told_and_nothing_stored(script, folder, monkeypatch, capsys):
    (folder / "a.py").write_text(BAD)
    assert run(script, monkeypatch, "--write") == 1
    assert "a.py: a cell raised ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert not (folder / "a.ipynb").exists()


@pytest.mark.slow
def test_an_unknown_tutorial_is_a_usage_error(script):
    result = subprocess.run(
        [sys.executable, SCRIPT, "b"], capture_output=True, text=True, check=False, env={**os.environ}, timeout=120
    )
    assert result.returncode == 2
    assert "no tutorial b; there are ddim_by_hand" in result.stderr
