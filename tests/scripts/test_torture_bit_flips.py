"""Bits that flip in what a run has written, by ``scripts/torture.py``: one in each kind of files."""

import importlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path():
    sys.path.insert(0, str(ROOT / "scripts"))
    yield
    sys.path.remove(str(ROOT / "scripts"))


@pytest.mark.slow
# Orbax leaves coroutines unfinished, of arrays that it was reading beside a damaged one.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_promised_of_flipped_bits_holds():
    torture = importlib.import_module("torture")
    outcomes = [torture.run_trial("bit_flips", trial) for trial in torture.trials_of("bit_flips", long=False)]
    assert len(outcomes) == 6
    assert [outcome for outcome in outcomes if outcome.broken] == []
