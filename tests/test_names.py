"""The lists of names.py against whatever repeats them: mappings, config keys, messages, ``--help``, README and docs."""

import ast
import dataclasses
import importlib
import itertools
import pathlib
import re
import typing

import pytest

from ddim_jax import main, names
from ddim_jax.config import Config, schema
from ddim_jax.config.convert import flatten, with_values
from ddim_jax.config.presets import preset
from ddim_jax.diffusion.prediction import make_predict
from ddim_jax.diffusion.samplers import make_sampler
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels
from ddim_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

LISTS = {name: value for name, value in vars(names).items() if typing.get_origin(value) is typing.Literal}
CHOICES = {name: frozenset(names.choices(value)) for name, value in LISTS.items()}


def names_in(annotation):
    """The names that a key of this type may have, or its elements, without the empty one; none if it has no list."""
    if typing.get_origin(annotation) is typing.Literal:
        return frozenset(typing.get_args(annotation)) - {""}
    return frozenset().union(*map(names_in, typing.get_args(annotation)))


def closed_keys():
    """Keys of the config that take names, e.g. ``sample.sampler``, each with those that it takes."""
    keys = {}
    for group in dataclasses.fields(schema.Config):
        if dataclasses.is_dataclass(group.type):
            hints = typing.get_type_hints(group.type)
            keys |= {f"{group.name}.{key}": names_in(hint) for key, hint in hints.items()}
    return {key: found for key, found in keys.items() if found}


KEYS = closed_keys()

# --- names.py itself ----------------------------------------------------------------------------


def test_no_two_lists_are_the_same_and_no_name_stands_twice_in_one():
    assert len(LISTS) >= 30
    assert len(set(CHOICES.values())) == len(CHOICES)
    assert all(len(names.choices(value)) == len(CHOICES[name]) for name, value in LISTS.items())


def test_no_other_module_states_a_list_again():
    found = []
    for path in sorted((ROOT / "ddim_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if path.name != "names.py" and isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
                listed = frozenset(value.value for value in ast.walk(node.slice) if isinstance(value, ast.Constant))
                found += [f"{path.name}: {name}" for name, known in CHOICES.items() if listed - {""} == known]
    assert found == []


def test_a_name_can_be_added_from_outside(monkeypatch):
    monkeypatch.setattr(names, "_added", {})
    with pytest.raises(UserError, match="spacing 'mine' does not exist; choose from: uniform, "):
        names.check(names.Spacing, "mine", "spacing")
    names.add(names.Spacing, "mine")
    names.add(names.Spacing, "mine")
    names.check(names.Spacing, "mine", "spacing")
    assert names.choices(names.Spacing) == (*typing.get_args(names.Spacing), "mine")
    assert "mine" not in names.choices(names.SamplerName)


# --- the config ---------------------------------------------------------------------------------

# Modes are a flag's, and the encoder follows from the sampler.
NO_KEYS = {"Mode", "EncoderName"}


@pytest.mark.parametrize("name", [name for name in LISTS if name not in NO_KEYS])
def test_each_list_is_the_type_of_a_key(name):
    assert CHOICES[name] in KEYS.values()


@pytest.mark.parametrize("key", sorted(KEYS))
def test_no_key_has_a_list_of_its_own(key):
    assert any(KEYS[key] <= known for known in CHOICES.values())


# --- mappings -----------------------------------------------------------------------------------

MAPPINGS = [
    ("config.presets", "PRESETS", "PresetName"),
    ("models", "NETWORKS", "NetworkName"),
    ("diffusion.inversion", "ENCODERS", "EncoderName"),
    ("measuring.resize", "PROTOCOLS", "ResizeProtocol"),
    ("data.transforms", "CROPS", "Crop"),
    ("diffusion.spacing", "SPACINGS", "Spacing"),
    ("diffusion.objectives", "OBJECTIVES", "Objective"),
    ("diffusion.prediction", "CLIPS", "Clip"),
    ("diffusion.losses", "TIME_SAMPLINGS", "TimeSampling"),
    ("diffusion.losses", "LOSSES", "Loss"),
    ("diffusion.losses", "REDUCTIONS", "Reduction"),
    ("diffusion.samplers", "SAMPLERS", "SamplerName"),
    ("diffusion.schedule", "SCHEDULES", "ScheduleName"),
    ("measuring.figures", "METRICS", "MetricName"),
    ("measuring.extractors", "EXTRACTORS", "ExtractorName"),
    ("data.sources", "SOURCES", "DataSource"),
]


@pytest.mark.parametrize(("module", "mapping", "name"), MAPPINGS)
def test_each_name_that_stands_for_a_function_has_a_row(module, mapping, name):
    rows = getattr(importlib.import_module(f"ddim_jax.{module}"), mapping)
    assert set(rows) == set(typing.get_args(LISTS[name]))


def test_each_mode_has_a_job():
    for mode in names.choices(names.Mode):
        job = "import_weights" if mode == "import" else mode
        assert callable(getattr(importlib.import_module(f"ddim_jax.jobs.{job}"), job))


# --- messages and --help ------------------------------------------------------------------------


def told(message):
    """The names that a message offers."""
    listed = re.search(r"(?:choose from: |is not one of |should be one of <)([^<>;]+)", message)
    assert listed, message
    return {name.strip("'") for name in re.split(r"[,|]\s*", listed[1])} - {""}


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("SamplerName", lambda: make_sampler("nope", make_schedule("linear"), level_pairs([10, 1]))),
        ("ScheduleName", lambda: make_schedule("nope")),
        ("Spacing", lambda: sampling_levels("nope", 1000, 10)),
        ("Objective", lambda: make_predict(lambda x, time: x, "nope")),
        ("Clip", lambda: make_predict(lambda x, time: x, "eps", "nope")),
        ("PresetName", lambda: preset("nope")),
    ],
)
def test_the_mathematics_tells_its_names(name, ask):
    with pytest.raises(UserError, match="'nope' does not exist") as error:
        ask()
    assert told(str(error.value)) == CHOICES[name]


@pytest.mark.parametrize("key", sorted(KEYS))
def test_a_key_tells_its_names(key):
    wrong = ("nope",) if isinstance(flatten(Config())[key], tuple) else "nope"
    with pytest.raises(UserError, match="nope") as error:
        with_values(Config(), {key: wrong})
    assert told(str(error.value)) == KEYS[key]


def test_the_command_line_tells_the_modes(capsys):
    assert main.run(["main", f"--config={ROOT}/configs/digits.py", "--workdir=run", "--mode=nope"]) == 2
    assert told(capsys.readouterr().err) == CHOICES["Mode"]


def test_help_tells_each_mode_and_what_it_does(capsys):
    assert main.run(["main", "--help"]) == 0
    lines = capsys.readouterr().out.partition("of one):\n")[2].split("\n")
    told_modes = dict(line.split(maxsplit=1) for line in lines if line.strip())
    assert tuple(told_modes) == names.choices(names.Mode)
    assert all(len(what) > 10 and "--mode" not in what for what in told_modes.values())


# --- README and docs ----------------------------------------------------------------------------

# All names of these stand in a table: under their key, or for modes under that word.
COMPLETE = {
    "mode": "Mode",
    "data.source": "DataSource",
    "diffusion.schedule": "ScheduleName",
    "diffusion.objective": "Objective",
    "sample.sampler": "SamplerName",
    "sample.spacing": "Spacing",
    "sample.clip": "Clip",
    "sample.preset": "PresetName",
    "eval.preset": "TableName",
    "eval.extractor": "ExtractorName",
    "eval.resize": "ResizeProtocol",
    "eval.metrics": "MetricName",
}
KNOWN = KEYS | {key: CHOICES[name] for key, name in COMPLETE.items()}


def tables(text):
    """The tables of a page: head and rows, which are lists of cells."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines())
        yield head, rows


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def documented():
    """What tables say of each key that takes names: ``(page, key, names)``.

    A key that heads a column has the names there. A key in a cell of its own has them in the next one, where other keys
    may be mentioned too.
    """
    all_keys = set(flatten(Config()))
    for page in PAGES:
        for head, rows in tables(page.read_text()):
            if head[0].strip("`") in KNOWN:
                yield page.name, head[0].strip("`"), {name for row in rows for name in code(row[0])}
            for row in rows:
                for cell, following in itertools.pairwise(row):
                    if code(cell) == [cell.strip("`")] and cell.strip("`") in KNOWN:
                        yield page.name, cell.strip("`"), set(code(following)) - all_keys


@pytest.mark.parametrize("key", COMPLETE)
def test_the_tables_have_every_name(key):
    assert set().union(*(found for _, documented_key, found in documented() if documented_key == key)) == KNOWN[key]


def test_the_tables_have_no_name_that_does_not_exist():
    assert [(page, key, found - KNOWN[key]) for page, key, found in documented() if found - KNOWN[key]] == []
