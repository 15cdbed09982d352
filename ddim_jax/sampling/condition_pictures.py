"""Pictures of conditions beside the images that were drawn from them."""

import numpy as np

from ddim_jax.conditions.tasks import Task
from ddim_jax.config import Config
from ddim_jax.configured import build_task, pictures
from ddim_jax.images import as_rgb, table
from ddim_jax.pixels import Normalization, to_pictures
from ddim_jax.sampling.condition_sets import Conditions

# Of an unknown pixel, in [0, 1]: neither black nor white, of which most pictures are full.
_UNKNOWN = 0.6

# What is given is in [0, 1], whatever the images' values are.
_UNIT = Normalization(dtype="float32", high=(1.0,))


def picture_of_conditions(
    config: Config, conditions: Conditions, images: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
    """A row for each condition: what was given, what was drawn from it, and the truth where that is known.

    Args:
        config: the run.
        conditions: n of them.
        images: [n, k, h, w, c] of the data's type, k drawn from each.
        numbers: int [n], of the conditions.

    Returns:
        uint8 [height, width, 3].
    """
    told, truth = conditions
    drawn = pictures(config, images)
    count = drawn.shape[1]
    columns = ["drawn"] + [""] * (count - 1)
    cells = [[drawn[row, k][None] for k in range(count)] for row in range(len(drawn))]
    if told.picture is not None:
        task = build_task(config)
        assert task is not None, "something was given"
        given = given_pictures(config, task, told.picture)
        columns = ["given", *columns]
        cells = [[given[row][None], *cells[row]] for row in range(len(drawn))]
        if truth is not None:
            whole = pictures(config, truth)
            columns = [*columns, "truth"]
            cells = [[*cells[row], whole[row][None]] for row in range(len(drawn))]
    colours = any(cell.shape[-1] == 3 for row in cells for cell in row)
    if colours:
        cells = [[as_rgb(cell) for cell in row] for row in cells]
    titles = [str(number) for number in numbers]
    if "class" in config.model.kinds:
        titles = [f"{title}: class {label}" for title, label in zip(titles, told.label, strict=True)]
    return table(cells, titles, columns)


def given_pictures(config: Config, task: Task, given: np.ndarray) -> np.ndarray:
    """What a network was given, as people can see it, as large as its images: uint8 [n, h, w, 1 or 3].

    Args:
        config: the run.
        task: made ``given``.
        given: float32 [n, *task.shape] in [0, 1].
    """
    channels = task.shape[2]
    if config.data.condition == "mask":
        channels -= 1
        known = given[..., channels:]
        given = known * given[..., :channels] + (1 - known) * _UNKNOWN
    # Channels of another number are others than those of the images.
    shown = config.data.shown_channels if channels == config.data.channels else ()
    pixels = to_pictures(given, _UNIT, shown)
    # Each pixel stays a square: interpolated ones would look better than what was given.
    height, width, _ = config.data.image_shape
    rows = np.arange(height) * task.shape[0] // height
    places = np.arange(width) * task.shape[1] // width
    return pixels[:, rows][:, :, places]
