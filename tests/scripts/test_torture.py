"""The frame of scripts/torture.py; its trials are tests of their own, by kind."""

import pathlib
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def torture(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import torture

    yield torture
    for name in [name for name in sys.modules if name == "torture" or name.split(".")[0] == "faults"]:
        del sys.modules[name]


def test_each_kind_has_a_few_trials_and_many(torture):
    assert {path.stem for path in (SCRIPTS / "faults").glob("*.py")} >= set(torture.KINDS)
    for kind in ("kills", "small_files", "hostile_files"):
        short, long = torture.trials_of(kind, long=False), torture.trials_of(kind, long=True)
        assert 0 < len(short) < len(long)
        assert len({trial.name for trial in long}) == len(long)


def test_a_broken_promise_is_told_and_the_others_go_on(torture, monkeypatch, capsys, tmp_path):
    from faults.trial import Trial, expect

    def raises(folder):
        raise RuntimeError("a mistake of the trial")

    trials = [
        Trial("kept", lambda folder: expect(folder.is_dir(), "no folder")),
        Trial("broken", lambda folder: expect(False, "it was lost")),
        Trial("wrong", raises),
    ]
    monkeypatch.setattr(torture, "trials_of", lambda kind, long: trials)
    assert torture.main(["--only=kills", f"--json={tmp_path / 'torture.json'}"]) == 1
    said = capsys.readouterr().out
    assert "kills: kept: held (" in said and "kills: broken: BROKEN: it was lost (" in said
    assert "RuntimeError: a mistake of the trial" in said
    assert "| kills | 3 | 1 | 0 |" in said
    assert (tmp_path / "torture.json").read_text().count('"kind": "kills"') == 3
    monkeypatch.setattr(torture, "trials_of", lambda kind, long: trials[:1])
    assert torture.main(["--only=kills"]) == 0
    with pytest.raises(SystemExit):
        torture.main(["--only=nothing"])
    assert "there is no kind 'nothing'; choose from kills, " in capsys.readouterr().err
