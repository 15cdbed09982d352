"""``--mode=edit``: change real images: recover them from noise, or draw a part of them anew."""

import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.configured import pictures
from ddim_jax.data.first_images import digest_of_images, read_first_images
from ddim_jax.data.transforms import decode_image
from ddim_jax.errors import UserError
from ddim_jax.files import check_kind, read_file
from ddim_jax.images import as_rgb, grid, save_png, table
from ddim_jax.jobs.sample import file_ending, save_image
from ddim_jax.model_job import ModelJob, sampler_name
from ddim_jax.writers import say


def edit(config: Config, workdir: epath.PathLike) -> None:
    """Runs ``edit.task`` on real images.

    Writes a picture with a row per image: original, noised (or masked), and result; and each result as a file of its
    own, a PNG or, where that cannot hold it, a ``.npy``. Process 0 does it.

    Raises:
        UserError: images or a mask that cannot be used, a level that does not exist, or see
            :class:`~ddim_jax.model_job.ModelJob`.
    """
    if not parallel.is_main_process():
        return
    job = ModelJob.load(config, workdir)
    settings = job.config.edit
    real = read_first_images(job.config.data, settings.split, settings.path, settings.num, "edit.path")
    labels = real.label if job.config.model.num_classes else None

    if settings.task == "recover":
        noised, result = job.pipe.recover(real.image, settings.level, labels=labels, progress=True)
        between = pictures(job.config, noised)
        titles = ["original", f"noised, t={settings.level}", "recovered"]
        name, digest = f"recover-t{settings.level}", digest_of_images(real)
    else:
        mask = read_mask(settings.mask, job.config.data.image_shape[:2])
        result = job.pipe.inpaint(
            real.image, mask, resamplings=settings.resamplings, jump=settings.jump, labels=labels, progress=True
        )
        between = np.where(mask[..., None], pictures(job.config, real.image), np.uint8(128))
        titles = ["original", "known part", "inpainted"]
        name, digest = "inpaint", digest_of_images(real, mask=mask)
    folder = job.folder("edit", f"{name}-{sampler_name(job.config.sample)}", settings, images=digest)
    shown = pictures(job.config, result)
    rows = [
        [image[None] for image in row] for row in zip(pictures(job.config, real.image), between, shown, strict=True)
    ]
    save_png(folder / f"{settings.task}.png", table(rows, [f"{i}" for i in real.index], titles))
    ending = file_ending(job.config.data)
    for index, image in zip(real.index, result, strict=True):
        save_image(folder / f"{index:06d}{ending}", image)
    save_png(folder / "grid.png", as_rgb(grid(shown)))
    job.record(folder, "edit", images=len(result))
    say(f"wrote {folder / f'{settings.task}.png'}")


def read_mask(path: str, size: tuple[int, int]) -> np.ndarray:
    """Reads a mask: bool [height, width], True (white) where an image is kept.

    Raises:
        UserError: no path, not an image, another size, or a mask that leaves nothing to draw.
    """
    if not path:
        raise UserError("edit.mask: name the image file of the mask; white is kept, black is drawn anew")
    try:
        check_kind(path)
        if not epath.Path(path).is_file():
            raise UserError("there is no such file")
        pixels = decode_image(read_file(path))
    except OSError as error:
        raise UserError(f"edit.mask: {path} cannot be opened: {error.strerror or error}") from error
    except UserError as error:
        raise UserError(f"edit.mask: {path} cannot be used: {str(error).removeprefix(f'{path} ')}") from error
    if pixels.shape[:2] != size:
        height, width = pixels.shape[:2]
        raise UserError(
            f"edit.mask: {path} is {width}x{height}, but the model's images are {size[1]}x{size[0]}; resize it"
        )
    mask = pixels.mean(axis=-1) >= 128
    if mask.all():
        raise UserError(f"edit.mask: {path} is all white, which leaves nothing to draw; paint that black")
    return mask
