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


def group_ending_at(step: int, size: int) -> range:
    """The group of steps that ends with this one, see :func:`step_groups`.

    >>> list(group_ending_at(8, 4)), list(group_ending_at(10, 4))
    ([5, 6, 7, 8], [9, 10])
    """
    return range(step - (step - 1) % size, step + 1)


def is_due(every: int, steps: range) -> bool:
    """Whether a multiple of ``every`` is among the steps; never for 0."""
    return every > 0 and steps[-1] // every > (steps[0] - 1) // every
