"""The site of ``docs/``: each page is found from the navigation, each config key and mode from the reference."""

import importlib.util
import pathlib
import re
import sys

import pytest

from ddim_jax.config import Config, flatten
from ddim_jax.names import Mode, choices

ROOT = pathlib.Path(__file__).parent.parent
WEBSITE = ROOT / "scripts" / "website"


def load(name):
    spec = importlib.util.spec_from_file_location(name, WEBSITE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


pages = load("pages")
breakable = load("wrapping").breakable
GENERATED = pages.generated()
SETTINGS = (ROOT / "mkdocs.yml").read_text()
NAVIGATION = re.findall(r"^ +- (?:[^:\n]+: )?([\w/]+\.md)$", SETTINGS.partition("\nnav:\n")[2], re.MULTILINE)


def test_each_page_of_docs_stands_once_in_the_navigation():
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(set(NAVIGATION)) == sorted(NAVIGATION)
    assert written <= set(NAVIGATION)
    assert set(NAVIGATION) - written <= set(GENERATED)


def test_each_config_key_has_an_entry_with_its_meaning():
    text = "\n".join(page for path, page in GENERATED.items() if path.startswith("reference/config/"))
    entries = dict(re.findall(r"^## `([\w.]+)` \{[^}]*\}\n\n<p[^\n]*</p>\n\n(\S[^\n]+)$", text, re.MULTILINE))
    assert set(entries) == set(flatten(Config())) - {"seed"}
    assert "`seed`" in GENERATED["reference/config/index.md"]


def test_each_mode_has_an_entry():
    assert re.findall(r"^## `(\w+)`", GENERATED["reference/modes.md"], re.MULTILINE) == list(choices(Mode))


def test_each_module_is_in_the_reference_of_python():
    text = "\n".join(page for path, page in GENERATED.items() if path.startswith("reference/api/"))
    documented = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    for path in (ROOT / "ddim_jax").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__") and not parts[-1].startswith("_"):
            name = ".".join(parts)
            assert any(known == name or known.startswith(f"{name}.") for known in documented), name


@pytest.mark.parametrize("package", pages.READ_FIRST)
def test_the_order_of_reading_names_modules_that_exist(package):
    for name in pages.READ_FIRST[package]:
        assert (ROOT / "ddim_jax" / package / f"{name}.py").is_file()


@pytest.mark.parametrize(
    ("text", "page", "expected"),
    [
        ("[a](docs/own_data.md#from-files)", "index.md", "[a](own_data.md#from-files)"),
        ("[a](../README.md)", "own_data.md", "[a](index.md)"),
        ("[a](../../ddim_jax/names.py)", "tutorials/index.md", "[a](../source/ddim_jax/names.py.md)"),
        ("[a](b.ipynb#c)", "tutorials/index.md", "[a](b.md#c)"),
        ("[a](docs/tutorials/b.ipynb)", "index.md", "[a](tutorials/b.md)"),
        ("![a](images/a.png)", "gallery.md", "![a](images/a.png)"),
        ("[a](#here) [b](https://example.org/c)", "gallery.md", "[a](#here) [b](https://example.org/c)"),
        ("```\n[a](../README.md)\n```\n", "own_data.md", "```\n[a](../README.md)\n```\n"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(text, page, expected):
    assert pages.relinked(text, page) == expected


def test_config_keys_become_links_to_their_entries():
    text = "## `sample.eta`\n`sample.eta`, [`sample.eta`](x.md), `sample.other`\n\n    `sample.eta`\n"
    linked = "[`sample.eta`](../reference/config/sample.md#sample.eta)"
    assert pages.keys_linked(text, "tutorials/a.md") == text.replace("\n`sample.eta`", f"\n{linked}", 1)


def test_a_source_file_is_a_page_where_something_links_to_it():
    text = "[a](../ddim_jax/names.py) [b](own_data.md) [c](../no_such_file.py)"
    assert list(pages.sources_linked(text, "gallery.md")) == ["ddim_jax/names.py"]
    assert "\n```python\n" in pages.source_page("ddim_jax/names.py")


def test_a_notebook_becomes_text_code_and_pictures(tmp_path):
    path = tmp_path / "first.ipynb"
    picture = {"data": {"image/png": "aGVsbG8="}, "output_type": "display_data"}
    printed = {"name": "stdout", "output_type": "stream", "text": ["1\n", "2\n"]}
    more = {"name": "stdout", "output_type": "stream", "text": ["3\n"]}
    bar = {"name": "stderr", "output_type": "stream", "text": ["50%"]}
    cells = [
        {"cell_type": "markdown", "source": ["# First\n", "text"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [printed, bar, more, picture]},
    ]
    path.write_text(pages.json.dumps({"cells": cells}))
    text, pictures = pages.notebook_page(path)
    assert [line for line in text.split("\n") if line] == [
        *("# First", "text", "```python", "print(1)", "```", "```{ .text .no-copy }", "1", "2", "3", "```"),
        "![Output of the cell above](first_0.png)",
    ]
    assert pictures == {"first_0.png": b"hello"}


def test_notebooks_stand_in_the_order_of_their_first_page():
    first = (ROOT / "docs" / "tutorials" / "index.md").read_text()
    assert [path.name for path in pages.notebooks()] == re.findall(r"\]\((\w+\.ipynb)\)", first)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("--mode=sample", ["--mode=sample"]),
        ("a-b &lt;c-d&gt;", ["a-b", "&lt;c-d&gt;"]),
        ("--config.sample.guidance_scale=0.02", ["--config.", "sample.", "guidance_scale=", "0.02"]),
        ("published:score-sde-1e-3-continuous", ["published:", "score-", "sde-", "1e-3-", "continuous"]),
    ],
)
def test_inline_code_is_broken_between_its_words_and_parts(text, parts):
    made = breakable(f"<p><code>{text}</code></p>")
    assert [part for part in re.split(r"<[^>]*>|\s+", made) if part] == parts
    assert re.sub(r"</?(?:span|wbr)[^>]*>", "", made) == f"<p><code>{text}</code></p>"


def test_a_module_in_a_heading_is_broken_between_its_words():
    heading = '<h2><span class="doc doc-module-name">a.b_c</span></h2>'
    assert breakable(heading) == heading.replace("a.b_c", "a.<wbr>b_<wbr>c")


def test_blocks_of_code_and_code_with_links_stay_as_they_are():
    text = '<pre><code>--a</code></pre><code><a href="x">--b</a></code><code>name_of_a_function</code>'
    assert breakable(text) == text


def test_docstrings_become_markdown():
    pytest.importorskip("griffe")
    as_markdown = load("docstrings").as_markdown
    assert as_markdown("See :func:`a` and :class:`b`::", {"a": "x.a"}.get) == "See [`a`][x.a] and `b`:"
    assert as_markdown("It is\n\n>>> 1 + 1\n2\n\nas said.", {}.get).split("\n") == [
        *("It is", "", "", "```pycon", ">>> 1 + 1", "2", "```", "", "as said."),
    ]


def test_nothing_is_fetched_from_elsewhere():
    assert "\n  font: false\n" in SETTINGS
    assert "http" not in re.sub(r"^#.*$", "", SETTINGS, flags=re.MULTILINE)


# --- the container ------------------------------------------------------------------------------

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_what_the_dockerfile_copies_exists_and_is_sent():
    copied = [
        word.rstrip("/") for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    ]
    assert {"pyproject.toml", "ddim_jax", "configs"} <= set(copied)
    assert [path for path in copied if not (ROOT / path).exists()] == []
    sent = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sorted(sent) == sorted(copied)


def test_the_container_has_all_that_the_package_is_built_from():
    project = (ROOT / "pyproject.toml").read_text()
    needed = {*re.findall(r'^readme = "(.+)"$', project, re.MULTILINE), "LICENSE", "setup.py", "pyproject.toml"}
    assert needed <= set(re.split(r"\s+", DOCKERFILE))


def test_the_extras_of_the_containers_exist():
    extras = re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE + (ROOT / "docs" / "install.md").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert extras
    assert [name for extra in extras for name in extra.split(",") if f"\n{name} = [" not in project] == []
