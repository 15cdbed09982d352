"""``claim.json``: a table with all that it rests on, to be handed to others and compared with theirs.

It holds the figures of each row and seed, verdicts on them, and hashes of weights, config, extractor and reference. Two
claims compare where these say that the same thing was measured in the same way; what made the images may differ: that
is what is compared.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from etils import epath

from ddim_jax.digests import digest_of_facts
from ddim_jax.errors import UserError
from ddim_jax.records import Kinds, read_object
from ddim_jax.tables.lines import Line
from ddim_jax.tables.published_figures import PublishedRow
from ddim_jax.tables.verdicts import Verdict

FILE_NAME = "claim.json"

_FORMAT = "ddim_jax claim, version 1"
_CHECKSUM = "sha256"
_KINDS: Kinds = {
    "format": str,
    "title": str,
    "table": str,
    "holds": bool,
    "made": str,
    "config": dict,
    "config_sha256": str,
    "weights": dict,
    "measured": dict,
    "rows": list,
}
_KINDS_OF_ROW: Kinds = {"columns": dict, "seeds": list, "figures": dict, "published": dict, "verdicts": list}


class CheckedLine(NamedTuple):
    """A line of a table, and what was found of it.

    Attributes:
        line: the line.
        published: the row that it was held against; None where nothing was published for its setting.
        verdicts: on its figures.
    """

    line: Line
    published: PublishedRow | None
    verdicts: list[Verdict]

    @property
    def holds(self) -> bool:
        """Whether no figure is worse than it should be."""
        return all(verdict.word != "worse" for verdict in self.verdicts)


class Claim(NamedTuple):
    """What a file says.

    Attributes:
        title: of the table.
        table: name of the published one, see ``eval.preset``; or empty.
        holds: whether no figure is worse than it should be.
        made: when, as ISO 8601 has it, in UTC.
        config: the job's, values by key.
        weights: by checkpoint, where they are from and their SHA-256.
        measured: what rows share: number of images, extractor, reference and metrics, with their hashes.
        rows: what was found for each line.
    """

    title: str
    table: str
    holds: bool
    made: str
    config: Mapping[str, Any]
    weights: Mapping[str, Any]
    measured: Mapping[str, Any]
    rows: list[dict[str, Any]]

    @classmethod
    def of(
        cls,
        title: str,
        table: str,
        checked: Sequence[CheckedLine],
        *,
        config: Mapping[str, Any],
        weights: Mapping[str, Any],
        measured: Mapping[str, Any],
    ) -> Self:
        """Puts a claim together from lines that were checked; for the rest see the class."""
        made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        holds = all(one.holds for one in checked)
        return cls(title, table, holds, made, config, weights, measured, [_row(one) for one in checked])

    def to_json(self) -> str:
        """Returns the file's content, with a checksum."""
        # As JSON reads it back: what was a tuple is a list there, and the checksum is of that.
        values = json.loads(
            json.dumps({"format": _FORMAT, **self._asdict(), "config_sha256": digest_of_facts(_plain(self.config))})
        )
        return json.dumps({**values, _CHECKSUM: digest_of_facts(values)}, indent=2) + "\n"

    @classmethod
    def read(cls, path: epath.PathLike) -> Self:
        """Reads a file.

        Args:
            path: of the file, or its folder.

        Raises:
            UserError: there is none, or it is something else, or was changed.
        """
        file = epath.Path(path)
        file = file / FILE_NAME if file.is_dir() else file
        remedy = "make it again by --mode=evaluate --config.eval.check=true"
        if not file.exists():
            raise UserError(f"{file} does not exist: {remedy}")
        values = read_object(file, remedy, _KINDS)
        checksum = values.pop(_CHECKSUM, None)
        if values["format"] != _FORMAT:
            raise UserError(f"{file} cannot be used: its format is '{values['format']}', not '{_FORMAT}'; {remedy}")
        if checksum != digest_of_facts(values):
            raise UserError(f"{file} cannot be used: it was changed after it was made, its {_CHECKSUM} says; {remedy}")
        return cls(**{name: values[name] for name in cls._fields})

    def differs_from(self, other: "Claim") -> list[str]:
        """Says what was measured otherwise in another claim; nothing where figures compare.

        Versions of packages decide nothing, and are not looked at.
        """
        found = []
        for name in dict.fromkeys((*self.measured, *other.measured)):
            ours, theirs = (_without_versions(one.measured.get(name)) for one in (self, other))
            if ours != theirs:
                found.append(f"{name}: {_shown(ours)} and {_shown(theirs)}")
        return found


def _row(checked: CheckedLine) -> dict[str, Any]:
    line, published = checked.line, checked.published
    seconds = line.sampling_seconds
    num = line.results[0].num
    return {
        "columns": line.columns,
        "seeds": [
            {
                "seed": result.seed,
                "figures": result.figures,
                "sampling_seconds": result.sampling_seconds,
                "seconds": result.seconds,
                "device": result.device,
                "versions": result.versions,
            }
            for result in line.results
        ],
        "figures": {name: one._asdict() for name, one in line.figures.items()},
        "network_evaluations": line.evaluations,
        "images_per_second": None if not seconds else num / seconds,
        "published": {} if published is None else {"figures": dict(published.figures), "source": published.source},
        "verdicts": [verdict._asdict() for verdict in checked.verdicts],
    }


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values))


def _without_versions(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_versions(inner) for key, inner in value.items() if key != "ddim_jax"}
    return value


def _shown(value: Any, most: int = 100) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= most else f"{text[: most - 10]}... ({digest_of_facts(value)[:8]})"
