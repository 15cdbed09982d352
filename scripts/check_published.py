"""Imports published weights, draws 50,000 images with them, and holds their FID against the published one.

    python scripts/check_published.py ddim-cifar10-100 --workdir=runs/check

Ends with status 0 where the figure is within the band, 1 where it is not, 2 where it could not be had. A run that was
killed goes on where it was. ``--list`` prints the claims; what follows ``--`` goes to the job that measures, e.g.
``-- --config.eval.batch_size=16``.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ddim_jax import main as program
from ddim_jax.config import WeightsConfig
from ddim_jax.errors import UserError
from ddim_jax.jobs.import_weights import import_weights
from ddim_jax.tables.published_figures import NUM_IMAGES, PUBLISHED, TOLERANCES, published_row
from ddim_jax.weights.forms import read_weights
from ddim_jax.weights.origins import fetched
from ddim_jax.workdir import config_path

# To each side of a published figure.
BAND = TOLERANCES["fid"]

_PESSER = "https://github.com/pesser/pytorch_diffusion, measured with torch-fidelity"
_EDM_STATISTICS = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs"
_GUIDED = "https://github.com/openai/guided-diffusion, table in its README"
_GUIDED_STATISTICS = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/lsun"
# The images that a row of DDPM's is drawn by: all levels, the large variance, clipped.
_DDPM_LARGE = ("ddpm_large", 0.0, "uniform", "rederive_eps", 1000)


class Claim(NamedTuple):
    """Published figure of published weights.

    Attributes:
        weights: where they are, as ``weights.path`` has it.
        config: name of the config file; empty for what the weights say of themselves.
        row: sampler, eta, spacing, clip and S.
        published: the figure.
        source: who published it.
        reference: statistics to compare with, as ``weights.path`` has it; empty for the training images.
        figure: name of the figure.
        options: further flags of ``--mode=evaluate``.
    """

    weights: str
    config: str
    row: tuple[str, float, str, str, int]
    published: float
    source: str
    reference: str = ""
    figure: str = "fid"
    options: tuple[str, ...] = ()

    @property
    def band(self) -> tuple[float, float]:
        """The least and the largest figure that agree with the published one."""
        return self.published * (1 - BAND), self.published * (1 + BAND)


def _of_tables() -> dict[str, Claim]:
    """Makes the claims whose figures stand in the tables of papers, which ``eval.preset`` has."""
    models = {
        "ddim-cifar10": ("ema-cifar10", "cifar10", "cifar10", "quad_published"),
        "ddim-celeba": ("ddim-celeba", "celeba", "celeb_a", "uniform_published"),
        "ddim-bedroom": ("ema-lsun-bedroom", "lsun", "lsun/bedroom", "uniform_published"),
        "ddim-church": ("ema-lsun-church", "lsun:church", "lsun/church_outdoor", "uniform_published"),
    }
    rows = {
        f"{name}-{steps}": (weights, config, data, ("ddim", 0.0, spacing, "none", steps))
        for name, (weights, config, data, spacing) in models.items()
        for steps in (10, 20, 50, 100)
    }
    small = ("ddpm_small", 0.0, "uniform", "rederive_eps", 1000)
    rows["ddpm-bedroom"] = ("ema-lsun-bedroom", "lsun", "lsun/bedroom", small)
    rows["ddpm-church"] = ("ema-lsun-church", "lsun:church", "lsun/church_outdoor", small)
    claims = {}
    for name, (weights, config, data, row) in rows.items():
        found = published_row(data, *row)
        assert found is not None, name
        claims[name] = Claim(f"published:{weights}", config, row, found.figures["fid"], found.source)
    return claims


CLAIMS: dict[str, Claim] = {
    # The hub's repository has DDPM's weights without averaging, as "cifar10" has.
    "google-ddpm-cifar10": Claim("hf:google/ddpm-cifar10-32", "cifar10", _DDPM_LARGE, 12.13775, _PESSER),
    "ddpm-cifar10": Claim("published:ema-cifar10", "cifar10", _DDPM_LARGE, 3.21213, _PESSER),
    "ddpm-cifar10-raw": Claim("published:cifar10", "cifar10", _DDPM_LARGE, 12.13775, _PESSER),
    **_of_tables(),
    **{
        f"edm-cifar10-{name}": Claim(
            f"published:edm-cifar10-32x32-{name}-vp",
            "",
            row[:5],
            row.figures["fid"],
            row.source,
            f"{_EDM_STATISTICS}/cifar10-32x32.npz",
        )
        for name, row in (("uncond", PUBLISHED["edm-cifar10"].rows[0]), ("cond", PUBLISHED["edm-cifar10-cond"].rows[0]))
    },
    **{
        f"openai-lsun-{name}": Claim(
            f"published:openai-lsun-{name}",
            "",
            ("ddpm_learned", 0.0, "uniform", "rederive_eps", 1000),
            fid,
            _GUIDED,
            f"{_GUIDED_STATISTICS}/{name}/VIRTUAL_lsun_{name}256.npz",
        )
        for name, fid in (("bedroom", 1.90), ("cat", 5.57), ("horse", 2.57))
    },
}


def check(claim: Claim, workdir: pathlib.Path, num: int, options: Sequence[str]) -> int:
    """Imports, measures and compares; returns the exit status.

    Args:
        claim: what is to be checked.
        workdir: where it is imported to, and measured.
        num: number of images.
        options: further flags of ``--mode=evaluate``.
    """
    status = _import(claim, workdir)
    if status:
        return status
    reference = []
    if claim.reference:
        found = fetched(claim.reference)
        reference = [f"--config.eval.reference={found.path if found else claim.reference}"]
    status = program.run(
        [
            "check_published",
            "--mode=evaluate",
            *settings_of(claim, workdir, num),
            *reference,
            *claim.options,
            *options,
        ]
    )
    if status:
        return status
    figure = _measured(workdir, claim)
    low, high = claim.band
    is_within = low <= figure <= high
    about = f"{claim.figure} {figure:.4g}; published {claim.published:.4g} ({claim.source})"
    if num != NUM_IMAGES:
        print(f"{about}: not compared, since that is of {NUM_IMAGES:,} images, not of {num:,}")
        return 0
    print(f"{about}: {'within' if is_within else 'NOT within'} {low:.4g} to {high:.4g}")
    return 0 if is_within else 1


def settings_of(claim: Claim, workdir: pathlib.Path, num: int) -> list[str]:
    """The flags that make the images of a claim."""
    sampler, eta, spacing, clip, steps = claim.row
    return [
        f"--workdir={workdir}",
        f"--config.eval.samplers=('{sampler}',)",
        f"--config.eval.etas=({eta},)",
        f"--config.eval.spacings=('{spacing}',)",
        f"--config.eval.steps=({steps},)",
        f"--config.sample.clip={clip}",
        f"--config.eval.num={num}",
        "--config.eval.metrics=('fid',)",
    ]


def _import(claim: Claim, workdir: pathlib.Path) -> int:
    if claim.config:
        return program.run(
            [
                "check_published",
                "--mode=import",
                f"--workdir={workdir}",
                f"--config={claim.config}",
                f"--config.weights.path={claim.weights}",
            ]
        )
    if not config_path(workdir).exists():
        stated = read_weights(claim.weights).config
        import_weights(dataclasses.replace(stated, weights=WeightsConfig(path=claim.weights)), workdir)
    return 0


def _measured(workdir: pathlib.Path, claim: Claim) -> float:
    """Reads the figure out of the table that was written last."""
    tables = sorted((workdir / "evaluate").glob("*/table.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(tables):
        for line in json.loads(path.read_text())["lines"]:
            if _row_of(line) == claim.row and claim.figure in line["figures"]:
                return line["figures"][claim.figure]["mean"]
    raise UserError(f"no table in {workdir / 'evaluate'} has the row {claim.row}: see what the job said")


def _row_of(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line.get(name) if name != "eta" else float(line.get(name) or 0) for name in _COLUMNS)


_COLUMNS = ("sampler", "eta", "spacing", "clip", "steps")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(description="Holds the FID of published weights against the published figure.")
    parser.add_argument("name", nargs="?", choices=CLAIMS, metavar="NAME", help="which claim, see --list")
    parser.add_argument("--list", action="store_true", help="print the claims")
    parser.add_argument("--workdir", help="where to import to and measure; runs/published/NAME unless given")
    parser.add_argument("--weights", help="another copy of the weights: a file, a folder, hf:OWNER/NAME or an address")
    parser.add_argument("--num", type=int, default=NUM_IMAGES, help="number of images; figures are of 50,000")
    parser.add_argument("options", nargs="*", help="flags of --mode=evaluate, after --")
    given = parser.parse_args(argv)
    if given.list or given.name is None:
        for name, claim in CLAIMS.items():
            low, high = claim.band
            print(f"{name:24} {claim.figure} {claim.published:<8g} {low:.4g} to {high:.4g}  {claim.weights}")
        return 0 if given.list else 2
    claim = CLAIMS[given.name]
    if given.weights:
        claim = claim._replace(weights=given.weights)
    try:
        return check(claim, pathlib.Path(given.workdir or f"runs/published/{given.name}"), given.num, given.options)
    except UserError as error:
        print(f"check_published: error: {error}", file=sys.stderr)
        return error.status


if __name__ == "__main__":
    sys.exit(main())
