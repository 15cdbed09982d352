"""Claims side by side."""

import pytest

from ddim_jax.errors import UserError
from ddim_jax.tables.claim_file import FILE_NAME, Claim

ROW = {
    "columns": {"sampler": "ddim", "eta": 0.0, "spacing": "uniform", "clip": "none", "steps": 10, "other": ""},
    "seeds": [{"seed": 0, "device": "1 x cpu", "versions": {"jax": "1"}}],
    "figures": {"fid": {"mean": 13.5, "spread": None}},
    "images_per_second": 100.0,
    "published": {"figures": {"fid": 13.36}},
    "verdicts": [{"figure": "fid", "word": "within"}],
}


def claim(fid, num=50_000, word="within"):
    row = {**ROW, "figures": {"fid": {"mean": fid, "spread": 0.25}}, "verdicts": [{"figure": "fid", "word": word}]}
    return Claim("t", "x", word != "worse", "2026-01-01", {}, {"8": {"sha256": "ab" * 32}}, {"num": num}, [row])


@pytest.fixture
def script():
    import compare_claims

    return compare_claims


@pytest.fixture
def files(tmp_path):
    def write(**claims):
        for name, one in claims.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / FILE_NAME).write_text(one.to_json())
        return [str(tmp_path / name / FILE_NAME) for name in claims]

    return write


def test_a_table_has_a_column_for_each_claim(script, files, capsys):
    script.main(files(ours=claim(13.5), theirs=claim(15.0, word="worse")))
    table, said = capsys.readouterr().out.split("\n\n")
    assert table.splitlines()[0] == "| setting | figure | published | ours | theirs |"
    assert "| 13.36 | 13.50 ± 0.25 (within) | 15.00 ± 0.25 (worse) |" in table
    assert "| images/s | - | 100.0 | 100.0 |" in table
    assert "ours: holds; made 2026-01-01 on 1 x cpu; weights 8: abababababab; jax 1" in said
    assert "theirs: does not hold" in said


def test_figures_of_other_numbers_of_images_are_refused(script, files):
    with pytest.raises(UserError, match="ours and theirs do not compare: num: 50000 and 10000"):
        script.main(files(ours=claim(13.5), theirs=claim(15.0, num=10_000)))


def test_a_claim_named_twice_is_refused(script, files):
    (path,) = files(ours=claim(13.5))
    with pytest.raises(UserError, match="named twice"):
        script.main([path, path])
