"""The check of published weights, on a tiny file of this machine."""

import pytest
from small import CONFIGS, tiny_config
from weight_files import state_dict, write_torch

from ddim_jax import main
from ddim_jax.names import SamplerName, choices
from ddim_jax.tables.published_figures import NUM_IMAGES
from ddim_jax.weights.published_files import PUBLISHED_WEIGHTS


@pytest.fixture(scope="module")
def script():
    import check_published

    return check_published


@pytest.fixture
def tiny(script, cache, tmp_path, monkeypatch):
    """A claim about a tiny network that draws digits."""
    config = tiny_config(CONFIGS / "digits.py")
    path = write_torch(tmp_path / "weights.pt", state_dict(config, "ddim"))
    claim = script.Claim(
        str(path), f"{CONFIGS}/digits.py:tiny", ("ddim", 0.0, "uniform", "none", 2), 1.0, "nobody",
        figure="pixels_frechet", options=("--config.eval.extractor=pixels", "--config.eval.batch_size=8"),
    )  # fmt: skip
    monkeypatch.setitem(script.CLAIMS, "tiny", claim)
    monkeypatch.setattr(script, "NUM_IMAGES", 80)
    return claim


@pytest.mark.slow
def test_figures_within_the_band_pass_and_others_do_not(script, tiny, tmp_path, monkeypatch, capsys):
    asked = ["tiny", f"--workdir={tmp_path}/run", "--num=80"]
    assert script.main(asked) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("pixels_frechet ")
    assert "; published 1 (nobody): NOT within 0.95 to 1.05" in line
    figure = float(line.split()[1].rstrip(";"))
    monkeypatch.setitem(script.CLAIMS, "tiny", tiny._replace(published=figure))
    # The import and the row are there already.
    assert script.main(asked) == 0
    assert f"published {figure:.4g} (nobody): within " in capsys.readouterr().out
    monkeypatch.setattr(script, "NUM_IMAGES", NUM_IMAGES)
    assert script.main(asked) == 0
    assert "not compared, since that is of 50,000 images, not of 80" in capsys.readouterr().out


def test_what_cannot_be_had_is_one_line(script, tiny, tmp_path, monkeypatch, capsys):
    assert script.main(["tiny", f"--workdir={tmp_path}/run", f"--weights={tmp_path}/absent.pt"]) == 2
    assert "absent.pt cannot be read: No such file" in capsys.readouterr().err
    monkeypatch.setitem(script.CLAIMS, "tiny", tiny._replace(config=""))
    assert script.main(["tiny", f"--workdir={tmp_path}/run", "--num=80"]) == 2
    assert "is none of the published networks: give the config" in capsys.readouterr().err


def test_claims(script, capsys):
    assert script.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(script.CLAIMS)
    for claim in script.CLAIMS.values():
        name = claim.weights.removeprefix("published:")
        assert claim.weights.startswith("hf:") or name in PUBLISHED_WEIGHTS
        assert not claim.config or (CONFIGS / f"{claim.config.partition(':')[0]}.py").exists()
    assert script.CLAIMS["ddim-cifar10-100"].published == 4.16
    assert script.CLAIMS["ddpm-church"].published == 7.89


def test_the_settings_of_claims_exist(script, tmp_path):
    known = [claim for claim in script.CLAIMS.values() if claim.row[0] in choices(SamplerName)]
    assert len(known) >= 20
    for claim in known:
        main.parse(["ddim_jax", "--config=cifar10", "--mode=evaluate", *script.settings_of(claim, tmp_path, 50_000)])


def test_the_document_has_all_names_and_their_bands(script):
    text = (CONFIGS.parent / "docs" / "published_weights.md").read_text()
    for name, row in PUBLISHED_WEIGHTS.items():
        known = "SHA-256" if row.sha256 else "MD5" if row.md5 else "none" if row.url else "by hand"
        assert f"\n| `{name}` | {row.network} | {known} | " in text
    for name, claim in script.CLAIMS.items():
        low, high = claim.band
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` | `{claim.weights}` |")]
        assert f"`{claim.row[0]}`" in line and f", S={claim.row[4]}, `{claim.row[2]}`" in line
        assert f" | {claim.published:.4g} | {low:.4g} to {high:.4g} | " in line
