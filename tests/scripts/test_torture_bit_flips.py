"""Bits that flip in what a run has written, by ``scripts/torture.py``: one in each kind of files."""

import importlib

import pytest


@pytest.mark.slow
# Orbax leaves coroutines unfinished, of arrays that it was reading beside a damaged one.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_promised_of_flipped_bits_holds():
    torture = importlib.import_module("torture")
    outcomes = [torture.run_trial("bit_flips", trial) for trial in torture.trials_of("bit_flips", long=False)]
    assert len(outcomes) == 6
    assert [outcome for outcome in outcomes if outcome.broken] == []
