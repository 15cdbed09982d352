"""Which noise levels a fast sampler visits: the subsequence tau of the DDIM paper (section 4.2).

A network trained on T levels may be sampled on any S of them. The paper takes them ``uniform``, or ``quad`` (closer
together at low noise), which it uses for CIFAR-10; its tables name S, but its code does not always make S levels. So
each spacing exists twice: as it was meant, and as it was published.
"""

import numpy as np

from ddim_jax.errors import UserError


def sampling_levels(spacing: str, num_levels: int, steps: int) -> np.ndarray:
    """Returns the levels to visit, noisiest first: int64, each in 1 ... T.

    With i = 0 ... S - 1 and levels less one, as the DDIM paper's code counts them:

    - ``uniform``: floor(i T / S).
    - ``quad``: floor(0.8 T (i / (S - 1))²); where low ones coincide, each is moved up to the next free one.
    - ``uniform_published``: 0, T // S, 2 (T // S) ... below T, to the letter. These are more than S unless S divides T:
      of T = 1000, 600 "steps" make 1000 network evaluations.
    - ``quad_published``: as ``quad``, but equal ones stay. Each costs an evaluation that moves nothing; of T = 1000,
      100 steps hold 4 of them.

    ``uniform`` and ``quad`` give exactly S distinct levels, the published ones wherever those are S distinct levels.
    The one exception is S = 1. There the published list is level 1 alone, which would take pure noise for an almost
    clean image. One step has to start at the top: at level T for ``uniform``, and at 0.8 T for ``quad``, where all
    its other lists start.

    Args:
        spacing: one of the four.
        num_levels: T.
        steps: S, from 1 to T.

    Raises:
        UserError: an unknown spacing, or steps outside 1 ... T.
    """
    if not 1 <= steps <= num_levels:
        raise UserError(f"steps={steps}: choose from 1 to {num_levels}, the number of noise levels")
    times = _times(spacing, num_levels, steps)
    return times[::-1] + 1


def _times(spacing: str, num_levels: int, steps: int) -> np.ndarray:
    """Levels less one, ascending."""
    if spacing == "uniform_published":
        return np.arange(0, num_levels, num_levels // steps)
    if spacing == "quad_published":
        return _quadratic(num_levels, steps)
    if spacing == "uniform":
        return np.arange(steps) * num_levels // steps if steps > 1 else np.array([num_levels - 1])
    if spacing == "quad":
        if steps == 1:
            return _quadratic(num_levels, 2)[-1:]
        # The largest t with t_i >= t_{i-1} + 1 for all i, as a running maximum of t_i - i.
        order = np.arange(steps)
        return np.maximum.accumulate(_quadratic(num_levels, steps) - order) + order
    raise UserError(
        f"spacing '{spacing}' does not exist; choose from: uniform, quad, uniform_published, quad_published"
    )


def _quadratic(num_levels: int, steps: int) -> np.ndarray:
    return (np.linspace(0, np.sqrt(num_levels * 0.8), steps) ** 2).astype(np.int64)


def level_pairs(levels: np.ndarray) -> np.ndarray:
    """Pairs each level with the one that the step from it leads to: int64 [S, 2], the last one to level 0.

    Steps are explicit pairs, so that no sampler computes "the previous timestep" by itself, a common source of
    errors when S does not divide T.
    """
    return np.stack([levels, np.append(levels[1:], 0)], axis=1)
