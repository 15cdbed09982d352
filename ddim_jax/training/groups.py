"""Groups of steps that are dispatched together (``train.steps_per_call``), and what is due in them."""

from collections.abc import Iterator


def step_groups(start: int, total: int, size: int) -> Iterator[range]:
    """The steps after ``start`` up to ``total``, numbered from 1, in groups that are dispatched together.

    Groups end at multiples of ``size``, wherever a run begins, so that a resumed one makes the same groups.
    """
    while start < total:
        end = min(total, start - start % size + size)
        yield range(start + 1, end + 1)
        start = end


def is_due(every: int, steps: range) -> bool:
    """Whether a multiple of ``every`` is among the steps; never for 0."""
    return every > 0 and steps[-1] // every > (steps[0] - 1) // every
