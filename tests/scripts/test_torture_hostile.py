"""Signals, addresses and hostile files of ``scripts/torture.py``: a few of each."""

import importlib
import pathlib
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def torture():
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("torture")
    sys.path.remove(str(SCRIPTS))


@pytest.mark.slow
# A terminal and signals that are not ignored need a fork, of which JAX warns; the child runs another program at once.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["processes", "hostile_files"])
def test_what_is_promised_holds(torture, kind):
    outcomes = [torture.run_trial(kind, trial) for trial in torture.trials_of(kind, long=False)]
    assert [outcome for outcome in outcomes if outcome.broken] == []


def test_there_are_many_hostile_files(torture):
    names = [trial.name for trial in torture.trials_of("hostile_files", long=True)]
    assert len(names) == len(set(names)) >= 150
    assert len(torture.trials_of("hostile_files", long=False)) == 15
