"""Runs the tutorials of docs/tutorials/ afresh, and checks that each notebook and its text say the same.

python scripts/run_notebooks.py                 # all of them, as CI does: nothing is written
python scripts/run_notebooks.py ddim_by_hand    # one
python scripts/run_notebooks.py --write         # runs them and stores the notebooks with their outputs

A tutorial is edited as NAME.py (jupytext's percent format); NAME.ipynb holds the same cells with their outputs, and is
made by --write. Each is run in a temporary folder, with the package of this checkout. Needs the extra ``tutorials``.
"""

import argparse
import base64
import os
import pathlib
import re
import sys
import tempfile
import time

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

ROOT = pathlib.Path(__file__).resolve().parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"

# What a clone can bear.
_LARGEST_PICTURE = 100_000
_LARGEST_NOTEBOOK = 800_000

_CELL_SECONDS = 600

_KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}

_PNG_IN_HTML = re.compile(r"data:image/png;base64,([\w+/=]+)")


def read_text(path: pathlib.Path) -> NotebookNode:
    """The notebook that a text stands for, without outputs; its cells are numbered, so that differences stay small."""
    notebook = jupytext.read(path)
    notebook.metadata = nbformat.from_dict(_KERNEL)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return notebook


def cells(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Kind and source of each cell."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def run(notebook: NotebookNode) -> None:
    """Runs all cells in a new process and an empty folder; the outputs are added to the notebook.

    Raises:
        CellExecutionError: a cell raised.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # On the CPU outputs are nearly the same everywhere.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=_CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute(env=environment)


def _raised_where(notebook: NotebookNode) -> str:
    """The traceback among the outputs, without colours."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    lines = [line for output in outputs if output.output_type == "error" for line in output.traceback]
    return re.sub(r"\x1b\[[\d;]*m", "", "\n".join(lines))


def tidy(notebook: NotebookNode) -> None:
    """Drops what would differ at each run or only fills the page: times, progress bars, logs."""
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]


def pictures(notebook: NotebookNode) -> list[bytes]:
    """All PNG files among the outputs."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            found += [data["image/png"]] if "image/png" in data else []
            found += _PNG_IN_HTML.findall(data.get("text/html", ""))
    return [base64.b64decode(each) for each in found]


def faults(path: pathlib.Path) -> list[str]:
    """What is wrong with a stored notebook, as seen without running it."""
    stored = path.with_suffix(".ipynb")
    remedy = f"python scripts/run_notebooks.py {path.stem} --write"
    if not stored.exists():
        return [f"{stored.name} is missing; make it by {remedy}"]
    notebook = nbformat.read(stored, as_version=4)
    found = []
    if cells(notebook) != cells(read_text(path)):
        found.append(f"{stored.name} has other cells than {path.name}; edit the text, then {remedy}")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not any(cell.outputs for cell in code):
        found.append(f"{stored.name} has no outputs; {remedy}")
    if any(output.output_type == "error" for cell in code for output in cell.outputs):
        found.append(f"{stored.name} shows an error; {remedy}")
    largest = max(map(len, pictures(notebook)), default=0)
    if largest > _LARGEST_PICTURE:
        found.append(f"{stored.name} has a picture of {largest:,} bytes; at most {_LARGEST_PICTURE:,}: lower its dpi")
    if stored.stat().st_size > _LARGEST_NOTEBOOK:
        found.append(f"{stored.name} has {stored.stat().st_size:,} bytes; at most {_LARGEST_NOTEBOOK:,}")
    return found


def main() -> int:
    """Runs what was asked for, and returns the exit status."""
    known = sorted(TUTORIALS.glob("*.py"))
    parser = argparse.ArgumentParser(description="Runs the tutorials of docs/tutorials/.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(path.stem for path in known)}")
    parser.add_argument("--write", action="store_true", help="store the notebooks with their outputs")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - {path.stem for path in known})
    if unknown:
        parser.error(f"no tutorial {', '.join(unknown)}; there are {', '.join(path.stem for path in known)}")

    found = []
    for path in [path for path in known if not arguments.names or path.stem in arguments.names]:
        started = time.perf_counter()
        notebook = read_text(path)
        wrong = []
        try:
            run(notebook)
        except CellExecutionError as error:
            wrong.append(f"{path.name}: a cell raised {error.ename}: {error.evalue}\n{_raised_where(notebook)}")
        else:
            if arguments.write:
                tidy(notebook)
                nbformat.write(notebook, path.with_suffix(".ipynb"))
            wrong += faults(path)
        print(f"{path.stem}: {'wrong' if wrong else 'ran'}, {time.perf_counter() - started:.0f} s", flush=True)
        found += wrong
    for each in found:
        print(f"run_notebooks.py: error: {each}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
