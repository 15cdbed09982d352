"""Our figures held against published ones: whether they may be compared at all, and whether they agree.

A figure agrees with a published one where their difference is at most a share of it that the table names
(:data:`~ddim_jax.tables.published_figures.TOLERANCES`). One that differs by more in the good direction is *better*,
which refutes nothing, though it is worth asking why; in the other, *worse*.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ddim_jax.measuring.figures import heading, higher_is_better
from ddim_jax.tables.lines import Line, format_figure
from ddim_jax.tables.published_figures import PublishedRow, PublishedTable

Word = Literal["within", "better", "worse"]


class Verdict(NamedTuple):
    """A figure of ours beside the published one.

    Attributes:
        figure: its name.
        ours: the figure; of several seeds their mean, or the least where that is what was published.
        published: what it is held against.
        tolerance: the largest difference that agrees.
        word: ``within`` the tolerance, ``better`` or ``worse``.
    """

    figure: str
    ours: float
    published: float
    tolerance: float
    word: Word

    def in_words(self) -> str:
        """Says it, e.g. ``FID 4.23 is within 0.21 of 4.16``.

        >>> Verdict("fid", 4.9, 4.16, 0.208, "worse").in_words()
        'FID 4.900 is worse by 0.74 than 4.16 (tolerance 0.21)'
        """
        ours, tolerance = f"{heading(self.figure)} {format_figure(self.ours)}", f"{self.tolerance:.2g}"
        if self.word == "within":
            return f"{ours} is within {tolerance} of {self.published:g}"
        difference = abs(self.ours - self.published)
        return f"{ours} is {self.word} by {difference:.2g} than {self.published:g} (tolerance {tolerance})"


def judge(figure: str, ours: float, published: float, tolerance: float) -> Verdict:
    """Holds a figure against a published one.

    Args:
        figure: its name.
        ours: what was measured.
        published: what it is held against.
        tolerance: the largest difference that agrees.
    """
    if abs(ours - published) <= tolerance:
        return Verdict(figure, ours, published, tolerance, "within")
    # Errors, which no extractor measures, are better when they are smaller.
    is_better = ours > published if higher_is_better(figure) else ours < published
    return Verdict(figure, ours, published, tolerance, "better" if is_better else "worse")


def verdicts_of(line: Line, row: PublishedRow, table: PublishedTable) -> list[Verdict]:
    """Holds a line of our table against the published row; figures that we did not measure are left out.

    Args:
        line: ours.
        row: what was published for its setting.
        table: that ``row`` is of.
    """
    found = []
    for name, published in row.figures.items():
        if name not in line.figures:
            continue
        ours = line.figures[name].mean
        if table.lowest_of > 1:
            values = [result.figures[name] for result in line.results]
            ours = max(values) if higher_is_better(name) else min(values)
        found.append(judge(name, ours, published, table.tolerances[name] * abs(published)))
    return found


def obstacles(
    table: PublishedTable,
    *,
    data_name: str,
    model: Mapping[str, Any],
    extractor: str,
    resize: str,
    num: int,
    reference: str,
    of_training_images: bool,
) -> list[str]:
    """Says why figures cannot be held against a table's; nothing where they can.

    Args:
        table: the table.
        data_name: ``data.name`` of the model.
        model: values by the config's keys.
        extractor: name of what measures, see ``eval.extractor``.
        resize: how it resizes images; empty where it takes them as they are.
        num: images measured.
        reference: what they are compared with, in words.
        of_training_images: whether these are all images that the model was trained on.
    """
    wanted = table.protocol
    found = []
    if table.data_names and data_name not in table.data_names:
        found.append(f"it is about data.name={table.data_names[0]}, the model was trained on '{data_name}'")
    if difference := table.differs_from(model):
        found.append(difference)
    if num != wanted.num:
        found.append(f"its figures are of eval.num={wanted.num} images, these of {num}")
    if (extractor, resize) != (wanted.extractor, wanted.resize):
        found.append(f"they are by {_measure(wanted.extractor, wanted.resize)}, these by {_measure(extractor, resize)}")
    if wanted.is_of_training_images != of_training_images:
        found.append(f"they compare with {wanted.reference}, these with {reference}")
    return found


def _measure(extractor: str, resize: str) -> str:
    return f"eval.extractor={extractor}" + (f" with eval.resize={resize}" if resize else "")
