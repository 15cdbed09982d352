"""The examples of docs/adding.md run, one after the other, and their tests pass."""

import importlib
import pathlib
import re

import pytest

from ddim_jax import names

GUIDE = (pathlib.Path(__file__).parent.parent / "docs" / "adding.md").read_text()
EXAMPLES = "\n".join(re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL))
TESTS = re.findall(r"^def (test_\w+)", EXAMPLES, re.MULTILINE)

MAPPINGS = [
    *(("diffusion.samplers", "SAMPLERS"), ("diffusion.schedule", "SCHEDULES"), ("diffusion.spacing", "SPACINGS")),
    *(("measuring.figures", "METRICS"), ("measuring.extractors", "EXTRACTORS"), ("data.sources", "SOURCES")),
]


@pytest.fixture(scope="module")
def examples():
    """What the examples define; the names and rows that they add are gone afterwards."""
    mappings = [getattr(importlib.import_module(f"ddim_jax.{module}"), name) for module, name in MAPPINGS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names, "_added", {})
        before = [dict(rows) for rows in mappings]
        defined = {}
        exec(compile(EXAMPLES, "docs/adding.md", "exec"), defined)
        yield defined
    for rows, kept in zip(mappings, before, strict=True):
        rows.clear()
        rows.update(kept)


def test_each_example_has_a_test():
    assert len(TESTS) == GUIDE.count("```python") == 6


@pytest.mark.parametrize("name", TESTS)
def test_the_example_does_what_it_says(examples, name):
    examples[name]()
