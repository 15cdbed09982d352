"""Odd values on the command line, as ``scripts/torture.py`` tries them; a few of each kind."""

import importlib
import pathlib
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
def test_odd_values_are_refused_in_a_line_or_come_to_work(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    torture = importlib.import_module("torture")
    outcomes = [torture.run_trial("odd_values", trial) for trial in torture.trials_of("odd_values", long=False)]
    assert len(outcomes) > 50
    assert [(outcome.name, outcome.broken) for outcome in outcomes if outcome.broken] == []
