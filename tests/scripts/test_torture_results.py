"""A few faults of what runs leave behind, each held against what is promised; scripts/torture.py makes many more."""

import importlib

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["damaged_results", "small_files", "kills_of_jobs"])
def test_promises_hold(kind, cache):
    torture = importlib.import_module("torture")
    trials = torture.trials_of(kind, long=False)
    assert 4 <= len(trials) <= 20
    broken = {trial.name: outcome.broken for trial in trials if (outcome := torture.run_trial(kind, trial)).broken}
    assert not broken


@pytest.mark.parametrize(("kind", "least"), [("damaged_results", 60), ("small_files", 60), ("kills_of_jobs", 60)])
def test_a_long_run_has_many_trials_of_names_of_their_own(kind, least):
    names = [trial.name for trial in importlib.import_module("torture").trials_of(kind, long=True)]
    assert len(set(names)) == len(names) >= least
