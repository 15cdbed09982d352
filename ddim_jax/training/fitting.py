"""Whether a training batch fits into the devices' memory, and which one would."""

import contextlib
import math
from collections.abc import Iterator

from ddim_jax.config import Config
from ddim_jax.configured import image_bytes, picture_shape
from ddim_jax.errors import UserError, shown
from ddim_jax.images import grid_bytes
from ddim_jax.memory import ProgramMemory, check_room, in_words, is_out_of_memory, largest_fitting_batch


def check_could_fit(config: Config, num_devices: int, free: int | None) -> None:
    """Refuses what cannot fit by far, before data are opened and programs compiled, which may take all memory and time.

    These are bounds from below, of a few of the arrays that there are. XLA's plan of the compiled step tells the rest,
    see :func:`explaining_out_of_memory`.

    Args:
        config: the run.
        num_devices: number of devices that share the batch.
        free: bytes free on each; None where not known.

    Raises:
        UserError: it cannot.
    """
    model, train, shape = config.model, config.train, config.data.image_shape
    widths = [model.channels * multiplier for multiplier in model.multipliers]
    # A 3x3 convolution of each block at least, and an embedding of the classes.
    num_params = sum(9 * model.num_blocks * width**2 for width in widths) + model.num_classes * model.channels
    # The parameters, Adam's two moments, and the averages.
    state = (3 + (0 if train.ema_on_host else len(train.ema_widths))) * 4 * num_params
    if free is not None and state > free:
        raise UserError(
            f"model.channels={model.channels}, model.multipliers={shown(model.multipliers)}, "
            f"model.num_blocks={model.num_blocks}, model.num_classes={model.num_classes}: the parameters and their "
            f"optimiser need {in_words(state)} per device or more, {in_words(free)} are free; choose a smaller model"
        )
    share = train.batch_size // (num_devices * train.accumulate)
    # What the first convolution makes of the images.
    activations = share * math.prod(shape[:2]) * model.channels * (4 if model.dtype == "float32" else 2)
    if free is not None and activations > free:
        fitting = (free // (activations // share)) * num_devices * train.accumulate
        raise UserError(refusal_line(train.batch_size, share, activations, free, fitting).replace(" fits", " may fit"))
    images = train.batch_size * image_bytes(config)
    group = train.steps_per_call if train.epochs else min(train.steps_per_call, train.steps)
    check_room(images * group, "train.steps_per_call", train.steps_per_call, "the images of so many steps")
    check_room(images * config.data.prefetch, "data.prefetch", config.data.prefetch, "so many batches")
    needed = grid_bytes(train.sample_num, picture_shape(config))
    check_room(needed, "train.sample_num", train.sample_num, "so many images of a sample grid")


@contextlib.contextmanager
def explaining_out_of_memory(
    config: Config, num_params: int, num_devices: int, needed: ProgramMemory | None, free: int | None
) -> Iterator[None]:
    """Refuses a batch that cannot fit before the first step, and says which one fits if a step fails for that reason.

    Args:
        config: the run.
        num_params: number of parameters of the network.
        num_devices: number of devices that share the batch.
        needed: memory of the compiled step on each of them; None where not known, as ``free``.
        free: bytes free on each before anything was put there.

    Raises:
        UserError: the batch does not fit.
    """
    batch_size = config.train.batch_size
    parts = num_devices * config.train.accumulate

    def refusal(fitting: int) -> UserError:
        total = None if needed is None else needed.total
        return UserError(refusal_line(batch_size, batch_size // parts, total, free, fitting))

    known = 0 if needed is None or free is None else largest_batch(config, num_params, num_devices, needed, free)
    if needed is not None and free is not None and needed.total > free:
        raise refusal(known)
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # What was thought to fit did not: a step's activations are not all that a device holds.
        raise refusal(min(known or batch_size, batch_size // 2) // parts * parts) from error


def largest_batch(config: Config, num_params: int, num_devices: int, needed: ProgramMemory, free: int) -> int:
    """The largest ``train.batch_size`` that fits, if memory for activations grows with the batch; 0 if none does.

    Args:
        config: the run, whose batch size ``needed`` is about.
        num_params: number of parameters of the network, which have a gradient each.
        num_devices: number of devices that share the batch.
        needed: memory of the compiled program on each device.
        free: bytes free on each device.
    """
    gradients = 4 * num_params
    return largest_fitting_batch(
        config.train.batch_size,
        needed.arguments + gradients,
        max(0, needed.beside_arguments - gradients),
        free,
        multiple_of=num_devices * config.train.accumulate,
    )


def refusal_line(batch_size: int, per_device: int, needed: int | None, free: int | None, fitting: int) -> str:
    """The line that says that a training batch does not fit, and what does.

    >>> refusal_line(512, 512, needed=98 * 10**9, free=76 * 10**9, fitting=384)
    'train.batch_size=512 (512 images per device) needs 91.3 GiB per device, 70.8 GiB are free; train.batch_size=384 fits, or the same in more parts (train.accumulate)'

    Args:
        batch_size: ``train.batch_size``.
        per_device: images of it that a device takes at once.
        needed: bytes needed per device; None where not known, as ``free``.
        free: bytes free per device.
        fitting: the largest ``train.batch_size`` that fits; 0 if none.
    """  # noqa: E501 - the line is one line
    there = "" if free is None else f", {in_words(free)} are free"
    remedy = (
        f"train.batch_size={fitting} fits, or the same in more parts (train.accumulate)"
        if fitting
        else "no batch size fits: choose a smaller model or more memory"
    )
    return (
        f"train.batch_size={batch_size} ({per_device} images per device) "
        + ("is too much for a device's memory" if needed is None else f"needs {in_words(needed)} per device")
        + f"{there}; {remedy}"
    )
