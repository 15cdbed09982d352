"""The pages of the site that are not files of ``docs/``: written from the schema, the package and the documents.

Nothing here knows the program that builds the site: pages are Markdown by path, so that tests can read them.
"""

import ast
import base64
import json
import pathlib
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from ddim_jax.config.documentation import GROUPS_OF_MODES, about_group, documented_keys, groups
from ddim_jax.names import Mode, choices

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"

# Documents beside docs/ that are pages of the site, and the name of the page.
DOCUMENTS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    # The cards of the models in the package.
    **{str(path.relative_to(ROOT)): f"models/{path.name}" for path in (ROOT / "ddim_jax" / "pretrained").glob("*.md")},
}

# What is shown better by a generated page than by its source, and the folder of the pages themselves.
SHOWN_BY = {
    "ddim_jax/config/schema.py": "reference/config/index.md",
    "ddim_jax/diffusion/__init__.py": "reference/api/diffusion.md",
    "docs": "index.md",
}

# The order of reading of the mathematics; what is not named follows by name.
READ_FIRST = {
    "diffusion": (
        *("schedule", "objectives", "losses", "prediction", "spacing", "table", "loop"),
        *("ddim", "solvers", "sde_solvers", "samplers"),
    )
}

# Packages of the reference, and what their page is called.
PACKAGES = {
    "diffusion": "The mathematics",
    "conditions": "Conditions",
    "metrics": "Metrics",
    "data": "Data",
    "models": "Networks",
    "sampling": "Sampling",
    "training": "Training",
    "measuring": "Measuring",
    "weights": "Weights of other projects",
    "config": "Config",
    "tables": "Tables",
    "jobs": "Jobs",
}

# Jobs whose file is not called like the mode, which is a word of Python.
JOB_FILES = {"import": "import_weights"}

_LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".json": "json", ".yml": "yaml"}
_LINK = re.compile(r"(\]\()([^)\s#]*)((?:#[^)\s]*)?\))")


def generated() -> dict[str, str]:
    """All generated pages but those of source files: Markdown by the path below the site's root."""
    pages = {page: (ROOT / document).read_text() for document, page in DOCUMENTS.items()}
    pages |= config_pages()
    pages["reference/modes.md"] = modes_page()
    pages |= api_pages()
    return pages


# --- the config ---------------------------------------------------------------------------------


def config_pages() -> dict[str, str]:
    """A page for each group of the config, and one that lists them."""
    pages = {}
    lines = ["# Config keys", ""]
    lines += ["Every key can be set on the command line, `--config.GROUP.KEY=VALUE`, and in a config file. These pages"]
    lines += ["are written from the schema; `--mode=MODE --help` prints the same for the keys of a mode.", ""]
    lines += ["| group | what | keys |", "|---|---|---|"]
    for group in groups():
        keys = documented_keys(group)
        pages[f"reference/config/{group}.md"] = config_page(group)
        lines.append(f"| [`{group}`]({group}.md) | {about_group(group)} | {len(keys)} |")
    lines += ["", "Beside them stands `seed`, `--config.seed=0`, from which all random numbers of training follow."]
    return {"reference/config/index.md": "\n".join(lines) + "\n", **pages}


def config_page(group: str) -> str:
    """The keys of a group, each under a heading of its own."""
    lines = ["---", "search:", "  boost: 2", "---", "", f"# `{group}`", "", about_group(group), ""]
    modes = [mode for mode, of_mode in GROUPS_OF_MODES.items() if group in of_mode]
    if modes:
        lines += ["Read by " + ", ".join(f"[`{mode}`](../modes.md#{mode})" for mode in modes) + ".", ""]
    for known in documented_keys(group):
        facts = [f"{_choices_as_code(known.kind)}", f"default `{known.default}`"]
        facts += [known.bounds] if known.bounds else []
        lines += [f"## `{known.name}` {{ #{known.name} }}", ""]
        lines += ['<p class="key-facts" markdown="span">' + " · ".join(facts) + "</p>", ""]
        lines += [known.text[:1].upper() + known.text[1:], ""]
    return "\n".join(lines)


def _choices_as_code(kind: str) -> str:
    """A type, with names to choose from as code.

    >>> _choices_as_code("a | b, or empty"), _choices_as_code("int")
    ('`a` | `b`, or empty', 'int')
    """
    if " | " not in kind:
        return kind
    return " | ".join(re.sub(r"^((?:list of: )?)([\w.-]+)", r"\1`\2`", part) for part in kind.split(" | "))


def modes_page() -> str:
    """What each mode does, as the file of its job says."""
    lines = ["# Modes", "", "`python -m ddim_jax.main --mode=MODE --workdir=DIR`; a mode is a file of"]
    lines += ["`ddim_jax/jobs/`, and these are their first lines. The [command line](../commands.md) has a table.", ""]
    for mode in choices(Mode):
        path = ROOT / "ddim_jax" / "jobs" / f"{JOB_FILES.get(mode, mode)}.py"
        text = _plain(_docstring(path)).split("\n\n")
        first = re.sub(r"^`+--mode=\w+`+:\s*", "", text[0])
        lines += [f"## `{mode}` {{ #{mode} }}", "", first[:1].upper() + first[1:], "", *("\n\n".join(text[1:]), "")]
        of_mode = GROUPS_OF_MODES.get(mode, ())
        if of_mode:
            lines += ["Keys: " + ", ".join(f"[`{group}`](config/{group}.md)" for group in of_mode) + ".", ""]
    return "\n".join(lines)


def _docstring(path: pathlib.Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def _plain(text: str) -> str:
    """A docstring without references, for pages on which they cannot be followed."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda match: f"`{match[1].rpartition('.')[2]}`", text)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE).replace("``", "`")


# --- Python -------------------------------------------------------------------------------------


def modules_of(package: str) -> list[str]:
    """The modules of a package, by their dotted names, in the order of reading."""
    folder = ROOT / "ddim_jax" / package
    found = ["/".join(path.relative_to(folder).with_suffix("").parts) for path in folder.rglob("*.py")]
    names = [name.removesuffix("/__init__").replace("/", ".") for name in found if name != "__init__"]
    first = READ_FIRST.get(package, ())
    rest = sorted(name for name in names if name not in first and not name.rpartition(".")[2].startswith("_"))
    return [f"ddim_jax.{package}.{name}" for name in (*first, *rest)]


def api_pages() -> dict[str, str]:
    """The reference of the Python API: the pipeline, then a page for each package."""
    pipeline = ["# Python", "", "What `import ddim_jax` offers.", ""]
    for name in ("pipeline.load", "from_arrays.train", "pipeline.Pipeline", "pipeline.load_weights", "pipeline.show"):
        offered = f"ddim_jax.{name.rpartition('.')[2]}"
        pipeline += [f"::: ddim_jax.{name}", "    options:", "      heading_level: 2", f"      heading: {offered}", ""]
    pipeline += ["## What is under it", "", "| package | what |", "|---|---|"]
    pages = {}
    for package, title in PACKAGES.items():
        first = _plain(_docstring(ROOT / "ddim_jax" / package / "__init__.py")).split("\n")[0]
        pipeline.append(f"| [`ddim_jax.{package}`]({package}.md) | {first} |")
        lines = [f"# {title}: `ddim_jax.{package}`", ""]
        for name in (f"ddim_jax.{package}", *modules_of(package)):
            options = [f"      members: {_defined(package)}"] if name == f"ddim_jax.{package}" else []
            if name == "ddim_jax.config.schema":  # the keys have pages of their own
                options = ["      show_signature: false", "      show_docstring_attributes: false"]
            lines += [f"::: {name}", "    options:", "      heading_level: 2", *options, ""]
        pages[f"reference/api/{package}.md"] = "\n".join(lines)
    pipeline.append("| [other modules](modules.md) | files, devices, random numbers, whatever is shared |")
    lines = ["# Other modules: `ddim_jax`", ""]
    for path in sorted((ROOT / "ddim_jax").glob("*.py")):
        # What these two offer is on the first page.
        if not path.stem.startswith("_") and path.stem not in ("pipeline", "from_arrays"):
            lines += [f"::: ddim_jax.{path.stem}", "    options:", "      heading_level: 2", ""]
    pages["reference/api/modules.md"] = "\n".join(lines)
    return {"reference/api/index.md": "\n".join(pipeline) + "\n", **pages}


def _defined(package: str) -> list[str]:
    """What a package defines in its own file, beside what it takes from its modules."""
    tree = ast.parse((ROOT / "ddim_jax" / package / "__init__.py").read_text())
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [name for name in defined if not name.startswith("_")]


# --- notebooks ----------------------------------------------------------------------------------


def notebooks() -> list[pathlib.Path]:
    """The notebooks of ``docs/tutorials/``, in the order in which its first page names them."""
    first = (DOCS / "tutorials" / "index.md").read_text()
    return sorted((DOCS / "tutorials").glob("*.ipynb"), key=lambda path: first.find(path.name))


def notebook_page(path: pathlib.Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by the path that the page has them by."""
    lines: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
        elif cell["cell_type"] == "code" and source.strip():
            lines += [_fenced(source, "python"), ""]
            for output in _joined(cell["outputs"]):
                lines += [_shown(output, path.stem, pictures), ""]
    return "\n".join(lines), pictures


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs in which what was printed in several calls is one."""
    joined: list[dict[str, Any]] = []
    for output in outputs:
        if output.get("name") == "stderr":  # bars that show how far a call is
            continue
        if joined and output.get("name") == "stdout" == joined[-1].get("name"):
            joined[-1] = {**joined[-1], "text": [*joined[-1]["text"], *output["text"]]}
        else:
            joined.append(output)
    return joined


def _shown(output: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> str:
    """What a cell printed or showed."""
    data = output.get("data", {})
    for kind, suffix in (("image/png", "png"), ("image/jpeg", "jpg")):
        if kind in data:
            name = f"{stem}_{len(pictures)}.{suffix}"
            pictures[name] = base64.b64decode("".join(data[kind]))
            return f"![Output of the cell above]({name})"
    if "text/html" in data:
        return f'<div class="output">{"".join(data["text/html"])}</div>'
    text = "".join(output.get("text", data.get("text/plain", "")))
    # Nobody copies it, and the button would lie upon it.
    return "" if not text.strip() else _fenced(text.rstrip(), "{ .text .no-copy }")


# --- links --------------------------------------------------------------------------------------


def origin_of(page: str) -> str:
    """The file of the repository that a page is made of, from whose place its links are meant."""
    documents = {of_site: document for document, of_site in DOCUMENTS.items()}
    return documents.get(page, f"docs/{page}")


def relinked(text: str, page: str) -> str:
    """Turns links to files of the repository into links to pages of the site.

    >>> relinked("[a](../CONTRIBUTING.md#rules)", "own_data.md"), relinked("[b](docs/own_data.md)", "index.md")
    ('[a](contributing.md#rules)', '[b](own_data.md)')
    """

    def replace(match: re.Match[str]) -> str:
        begin, target, end = match.groups()
        if not target or ":" in target:
            return match[0]
        return begin + posixpath.relpath(_site_path(target, page), posixpath.dirname(page) or ".") + end

    return _outside_fences(text, lambda part: _LINK.sub(replace, part))


def keys_linked(text: str, page: str) -> str:
    """Makes each config key that stands as code a link to its entry, but for headings, and links that there are.

    >>> keys_linked("`sample.eta` and `sample.nothing`", "gallery.md")
    '[`sample.eta`](reference/config/sample.md#sample.eta) and `sample.nothing`'
    """
    known = {key.name for group in groups() for key in documented_keys(group)}
    to_root = posixpath.relpath(".", posixpath.dirname(page) or ".")

    def replace(match: re.Match[str]) -> str:
        key = match[1]
        target = posixpath.normpath(f"{to_root}/reference/config/{key.partition('.')[0]}.md")
        return f"[`{key}`]({target}#{key})" if key in known else match[0]

    def change(part: str) -> str:
        lines = part.split("\n")
        return "\n".join(
            line if line.startswith(("#", "    ")) else re.sub(r"(?<![\[`])`(\w+\.\w+)`(?![\]`])", replace, line)
            for line in lines
        )

    return _outside_fences(text, change)


def sources_linked(text: str, page: str) -> Iterator[str]:
    """The files of the repository that are no pages of their own, and to which a page links."""
    found: list[str] = []
    _outside_fences(text, lambda part: found.extend(target for _, target, _ in _LINK.findall(part)) or part)
    for target in found:
        path = _site_path(target, page) if target and ":" not in target else ""
        source = path.removeprefix("source/").removesuffix(".md")
        if path.startswith("source/") and (ROOT / source).exists():
            yield source


def source_page(path: str) -> str:
    """A file of the repository, or the list of a folder, as a page."""
    file = ROOT / path
    if file.is_dir():
        text = "\n".join(sorted(item.name for item in file.iterdir() if not item.name.startswith(("_", "."))))
    else:
        text = file.read_text()
    # The place of contents, which it has none of, is for its long lines.
    front = f"---\ntitle: {path}\nhide:\n  - toc\nsearch:\n  exclude: true\n---\n\n"
    return f"{front}# `{path}`\n\n{_fenced(text, _LANGUAGES.get(file.suffix, 'text'))}\n"


def _site_path(target: str, page: str) -> str:
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin_of(page)), target))
    known = {**DOCUMENTS, **SHOWN_BY}
    if path in known:
        return known[path]
    if path.endswith(".ipynb"):
        path = f"{path.removesuffix('.ipynb')}.md"  # the page that is made of the notebook
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _outside_fences(text: str, change: Any) -> str:
    parts = re.split(r"(^(`{3,}).*?^\2\s*$)", text, flags=re.MULTILINE | re.DOTALL)
    # Each fence is two parts, itself and its ticks.
    return "".join(change(part) if i % 3 == 0 else part for i, part in enumerate(parts) if i % 3 != 2)
