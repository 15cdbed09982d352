"""Lays claims side by side: what several people measured of the same rows, and what was published.

    python scripts/compare_claims.py mine/claim.json theirs/claim.json

A claim is written by ``--mode=evaluate --config.eval.check=true``; name the file or its folder. Figures of different
numbers of images, extractors, references or metrics are not comparable, and refused with what differs (status 2).
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ddim_jax.errors import UserError
from ddim_jax.measuring.figures import heading
from ddim_jax.tables.claim_file import Claim
from ddim_jax.tables.lines import format_figure

_NOTHING = "-"


def compared(claims: Mapping[str, Claim]) -> str:
    """Returns the claims as a Markdown table: a row for each setting and figure, a column for each claim.

    Args:
        claims: by what their columns are called.

    Raises:
        UserError: they do not compare.
    """
    (first, *others) = claims.items()
    for name, claim in others:
        different = first[1].differs_from(claim)
        if different:
            raise UserError(f"{first[0]} and {name} do not compare: {'; '.join(different)}")
    settings = dict.fromkeys(_setting(row) for claim in claims.values() for row in claim.rows)
    lines = [["setting", "figure", "published", *claims], ["---", "---", *["---:"] * (1 + len(claims))]]
    for setting in settings:
        rows = {name: _row(claim, setting) for name, claim in claims.items()}
        figures = dict.fromkeys(name for row in rows.values() for name in row.get("figures", {}))
        published = {
            name: value for row in rows.values() for name, value in row.get("published", {}).get("figures", {}).items()
        }
        for figure in figures:
            value = published.get(figure)
            known = _NOTHING if value is None else f"{value:g}"
            lines.append([setting, heading(figure), known, *(_cell(row, figure) for row in rows.values())])
        rates = [row.get("images_per_second") for row in rows.values()]
        if any(rates):
            cells = [_NOTHING if rate is None else f"{rate:,.1f}" for rate in rates]
            lines.append([setting, "images/s", _NOTHING, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def origins(claims: Mapping[str, Claim]) -> str:
    """Says of each claim what made it: weights, device and versions, a line each."""
    found = []
    for name, claim in claims.items():
        seeds = [seed for row in claim.rows for seed in row["seeds"]]
        devices = ", ".join(dict.fromkeys(seed["device"] for seed in seeds))
        versions = ", ".join(
            dict.fromkeys(f"{package} {version}" for seed in seeds for package, version in seed["versions"].items())
        )
        weights = ", ".join(f"{step}: {said.get('sha256', said)!s:.12}" for step, said in claim.weights.items())
        holds = "holds" if claim.holds else "does not hold"
        found.append(f"{name}: {holds}; made {claim.made} on {devices}; weights {weights}; {versions}")
    return "\n".join(found)


def _setting(row: Mapping[str, Any]) -> str:
    columns = row["columns"]
    if "sampler" not in columns:
        return str(columns)
    eta = "" if columns["eta"] is None else f" eta {columns['eta']:g}"
    other = f", {columns['other']}" if columns["other"] else ""
    return f"{columns['sampler']}{eta}, {columns['spacing']}, {columns['clip']}, S = {columns['steps']}{other}"


def _row(claim: Claim, setting: str) -> dict[str, Any]:
    return next((row for row in claim.rows if _setting(row) == setting), {})


def _cell(row: Mapping[str, Any], figure: str) -> str:
    found = row.get("figures", {}).get(figure)
    if found is None:
        return _NOTHING
    spread = "" if found["spread"] is None else f" ± {found['spread']:.2g}"
    word = next((verdict["word"] for verdict in row["verdicts"] if verdict["figure"] == figure), "")
    return f"{format_figure(found['mean'])}{spread}" + (f" ({word})" if word else "")


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Short names that tell the files apart: the first part, from the end, in which they all differ."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = [path.parts[-depth] if depth <= len(path.parts) else str(path) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Lays claims side by side.")
    parser.add_argument("claims", nargs="+", type=pathlib.Path, help="claim.json, or folders that hold one")
    paths = parser.parse_args(arguments).claims
    if len(set(paths)) < len(paths):
        raise UserError("a claim is named twice; name each once")
    claims = {name: Claim.read(path) for name, path in zip(_names(paths), paths, strict=True)}
    print(compared(claims), origins(claims), sep="\n\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"compare_claims.py: error: {error}", file=sys.stderr)
        sys.exit(error.status)
