"""``--mode=sample``: draw N images into ``WORKDIR/sample/NAME-HASH/``, resuming by missing index."""

import concurrent.futures
import contextlib
import dataclasses
import time
from typing import Any

import numpy as np
from etils import epath

from ddim_jax import files, parallel
from ddim_jax.config import Config, DataConfig
from ddim_jax.configured import build_sampler, pictures
from ddim_jax.errors import UserError
from ddim_jax.images import grid, labelled_lines, load_png, png_holds, png_note, png_shape, save_png
from ddim_jax.model_job import ModelJob, sampler_name
from ddim_jax.names import ImageFormat
from ddim_jax.npy import array_form, load_array, save_array
from ddim_jax.npz import NpzInParts
from ddim_jax.one_writer import Writing, one_writer
from ddim_jax.sampling.condition_pictures import picture_of_conditions
from ddim_jax.sampling.condition_sets import ConditionSet, draw_in_parts
from ddim_jax.sampling.image_sampler import ImageSampler, batch_size_for, image_indices, image_labels
from ddim_jax.sharded_map import BatchSize
from ddim_jax.workdir import is_name_of_image, make_job_dir
from ddim_jax.writers import progress, say

_GRID_IMAGES = 64

# Of images drawn from conditions, in a picture with a row for each of these.
_GRID_CONDITIONS = 12
_MOST_OF_A_CONDITION = 8


def sample(config: Config, workdir: epath.PathLike) -> epath.Path:
    """Runs the job.

    Exactly ``sample.num`` images of indices ``sample.start`` and up, or those of ``sample.indices``. Started again
    after a kill, it computes only what is missing. Each of P processes draws every P-th image.

    Args:
        config: the command line's config; its ``sample`` group counts, the model is the workdir's.
        workdir: a trained workdir.

    Returns:
        The folder written: images, ``grid.png``, ``run.json``.

    Raises:
        UserError: no checkpoint, settings that do not fit it, images that ``sample.format`` cannot hold, a folder that
            cannot be written or another job fills with an ``.npz``, or a batch that does not fit in memory.
    """
    job = ModelJob.load(config, workdir)
    config, settings = job.config, job.config.sample
    indices = image_indices(config)
    conditions = ConditionSet.of(config)
    if conditions is not None:
        conditions.numbers(indices)
    # Settings that cannot be used are refused before anything is written.
    build_sampler(config)
    if settings.format != "npz":
        file_ending(config.data, settings.format)
    folder = job.folder(
        "sample",
        f"{sampler_name(settings)}-n{len(indices)}",
        make=False,
        drawn_from=None if conditions is None else conditions.identity(),
    )
    sampler = ImageSampler(
        config, job.pipe.model, _batch_size(config, len(indices), job.recorded(folder)), job.pipe.guide
    )
    variables = parallel.replicate(job.pipe.variables, parallel.local_devices())
    if not folder.exists():
        # A batch that does not fit is refused before anything is written.
        sampler.compile(variables)
    make_job_dir(folder)
    with contextlib.ExitStack() as stack:
        writing = None
        # Jobs that write a file for each image may share the work, or do it twice.
        if settings.format == "npz":
            writing = stack.enter_context(one_writer(folder, "samples", str(folder), "draw with other settings"))
        _draw(job, folder, indices, conditions, sampler, variables, writing)
    return folder


def _draw(
    job: ModelJob,
    folder: epath.Path,
    indices: np.ndarray,
    conditions: ConditionSet | None,
    sampler: ImageSampler,
    variables: Any,
    writing: Writing | None,
) -> None:
    """Draws the images that are missing in the folder, and writes the rest of what it holds.

    Args:
        job: the model, and the config.
        folder: the job's.
        indices: of all images that there shall be.
        conditions: what they are drawn from; None where a class says it all.
        sampler: of the job.
        variables: in place on the devices.
        writing: what this job has that alone may write there; None where others may too.
    """
    config, pipe, settings = job.config, job.pipe, job.config.sample
    recorded = job.recorded(folder)
    store: ImageFiles | _NpzStore = (
        _NpzStore(folder, config.data.image_shape)
        if settings.format == "npz"
        else ImageFiles(folder, len(indices), config.data, settings.format)
    )
    present = store.present()
    # From here on files appear: all processes must have looked before.
    parallel.barrier("sample folder")

    mine = indices[parallel.process_index() :: parallel.process_count()]
    missing = np.setdiff1d(mine, present)
    computed = len(np.setdiff1d(indices, present))  # by all processes together
    if parallel.is_main_process():
        _announce(config, sampler, pipe.step, len(indices), len(indices) - computed)
    if len(missing):
        sampler.compile(variables)
        if parallel.is_main_process() and not recorded:
            job.record(folder, "sample", images_per_device=sampler.batch_size)
    started = time.perf_counter()
    bar = progress(len(mine), "sampling", "image", len(mine) - len(missing), parallel.is_main_process())
    with bar, concurrent.futures.ThreadPoolExecutor() as pool:
        # Files are written by the pool while the next batch is computed.
        unfinished: list[concurrent.futures.Future[None]] = []
        for batch_indices, images in draw_in_parts(sampler, variables, missing, conditions):
            if writing is not None:
                writing.check()
            unfinished = still_written(unfinished) + store.write(pool, batch_indices, images)
            bar.update(len(batch_indices))
        for future in unfinished:
            future.result()
    seconds = time.perf_counter() - started
    parallel.barrier("sampled")

    if writing is not None:
        writing.check()
    if parallel.is_main_process():
        store.finish(indices)
    is_new = computed > 0 or "images" not in recorded
    if parallel.is_main_process():
        _draw_grid(config, folder / "grid.png", indices, store, conditions, is_new)
    # A job that found all images in place leaves the record of the one that drew them.
    if parallel.is_main_process() and is_new:
        job.record(
            folder,
            "sample",
            sampling_seconds=round(seconds, 3),
            images=len(indices),
            images_computed=computed,
            images_per_device=sampler.batch_size,
            network_evaluations_per_image=sampler.evaluations,
        )
    if parallel.is_main_process():
        say(f"{len(indices):,} images are in {folder}, the first of them in {folder / 'grid.png'}")
    parallel.barrier("sample written")


def _draw_grid(
    config: Config,
    path: epath.Path,
    indices: np.ndarray,
    store: "ImageFiles | _NpzStore",
    conditions: ConditionSet | None,
    is_new: bool,
) -> None:
    """Draws the first images, unless none of them is new and the picture is there, of the channels asked for."""
    note = " ".join(map(str, config.data.shown_channels))
    if is_new or png_shape(path) is None or png_note(path) != note:
        shown = indices[: _grid_images(config, conditions)]
        save_png(path, _picture(config, shown, store.read(shown), conditions), note)


def still_written(started: list[concurrent.futures.Future[None]]) -> list[concurrent.futures.Future[None]]:
    """The files that are still being written.

    Raises:
        UserError: one cannot be written: no more need to be drawn.
    """
    for future in started:
        if future.done():
            future.result()
    return [future for future in started if not future.done()]


def _batch_size(config: Config, num: int, recorded: dict[str, Any]) -> BatchSize:
    """Images per device: from what the whole job needs, and as it began, so that a resumed job uses the same shape."""
    batch_size = batch_size_for(config, -(-num // parallel.process_count()))
    began = recorded.get("images_per_device")
    if batch_size.may_shrink and type(began) is int and 0 < began <= num:
        return dataclasses.replace(batch_size, size=began)
    return batch_size


def _shows_classes(config: Config) -> bool:
    settings = config.sample
    return settings.per_class > 0 and settings.label is None and not settings.indices


def _grid_images(config: Config, conditions: ConditionSet | None) -> int:
    """How many images are shown: as many of each class, where so many of each are drawn, or all of some conditions."""
    if conditions is not None:
        per_condition = min(config.sample.per_condition, _MOST_OF_A_CONDITION)
        return max(1, min(_GRID_CONDITIONS, _GRID_IMAGES // per_condition)) * config.sample.per_condition
    classes = config.model.num_classes
    if not _shows_classes(config) or classes > _GRID_IMAGES:
        return _GRID_IMAGES
    return classes * min(config.sample.per_class, _GRID_IMAGES // classes)


def _picture(config: Config, indices: np.ndarray, images: np.ndarray, conditions: ConditionSet | None) -> np.ndarray:
    """The first images as a grid; of ``sample.per_class``, a row for each class; or a row for each condition."""
    if conditions is not None:
        numbers = conditions.numbers(indices)
        # Indices may be any: of each condition as many are shown as of the one that has the fewest.
        unique, counts = np.unique(numbers, return_counts=True)
        count = min(int(counts.min()), _MOST_OF_A_CONDITION)
        places = np.stack([np.flatnonzero(numbers == number)[:count] for number in unique])
        first = indices[places[:, 0]]
        return picture_of_conditions(config, conditions.read(first), images[places], unique)
    images = pictures(config, images)
    if not _shows_classes(config):
        return grid(images)
    labels = image_labels(config, indices)
    return labelled_lines([(f"class {label}", images[labels == label]) for label in np.unique(labels)])


def _announce(config: Config, sampler: ImageSampler, step: int, num: int, present: int) -> None:
    settings, table = config.sample, sampler.sampler.table
    given = (settings.levels or settings.sigmas) and settings.spacing != "tuned"
    levels = "levels given" if given else settings.spacing.replace("_", " as ")
    repeated = sampler.sampler.steps - len(set(table.time.tolist()))
    if table.is_first_order and repeated:
        levels += f", {repeated} of them repeated"
    say(
        f"{num:,} images from the checkpoint of step {step:,} on {parallel.device_description()}: {settings.sampler}, "
        f"{sampler.sampler.steps} steps ({levels}), {sampler.evaluations} network evaluations each, first alpha_bar "
        f"{table.alpha_bar[0]:.3g}" + (f"; {present:,} are there already" if present else "")
    )


def file_ending(data: DataConfig, form: ImageFormat = "auto") -> str:
    """The ending of a file that holds one image, ``.png`` or ``.npy``.

    Raises:
        UserError: PNG is asked for, which cannot hold such images.
    """
    holds = png_holds(data.dtype, data.channels)
    if form == "png" and not holds:
        channels = f"{data.channels} channel{'s' if data.channels > 1 else ''}"
        raise UserError(
            f"sample.format=png: no PNG file holds images of {channels} and data.dtype={data.dtype} without loss; use "
            "auto or npy (a .npy for each image), or npz"
        )
    return ".png" if form != "npy" and holds else ".npy"


def save_image(path: epath.Path, image: np.ndarray) -> None:
    """Writes an image [h, w, c] to a file of the ending that :func:`file_ending` chose."""
    if path.suffix == ".png":
        save_png(path, image)
    else:
        save_array(path, image)


class ImageFiles:
    """``NNNNNN.png`` or ``.npy`` for each image, in sub-folders of 1,000 when there are more than 10,000."""

    def __init__(self, folder: epath.Path, num: int, data: DataConfig, form: ImageFormat = "auto") -> None:
        """Makes nothing yet.

        Args:
            folder: of the images.
            num: of images that there will be.
            data: says what they are.
            form: see :func:`file_ending`.

        Raises:
            UserError: it cannot hold them.
        """
        self._folder = folder
        self._nested = num > 10_000
        self._data = data
        self._ending = file_ending(data, form)
        self._made = False

    def _path(self, index: int) -> epath.Path:
        parent = self._folder / f"{index // 1000:03d}" if self._nested else self._folder
        return parent / f"{index:06d}{self._ending}"

    def present(self) -> np.ndarray:
        """Indices of the images that are there, whole, ascending; other files are passed over."""
        pattern = f"*/[0-9]*{self._ending}" if self._nested else f"[0-9]*{self._ending}"
        indices = sorted(int(path.stem) for path in self._folder.glob(pattern) if is_name_of_image(path.name))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            whole = pool.map(self._is_whole, indices)
            return np.array([i for i, is_whole in zip(indices, whole, strict=True) if is_whole], np.int64)

    def _is_whole(self, index: int) -> bool:
        path, shape, dtype = self._path(index), self._data.image_shape, self._data.dtype
        if self._ending == ".png":
            return png_shape(path, dtype) == shape
        return array_form(path) == (shape, np.dtype(dtype))

    def write(
        self, pool: concurrent.futures.Executor, indices: np.ndarray, images: np.ndarray
    ) -> list[concurrent.futures.Future[None]]:
        """Starts writing images [n, h, w, c]; the futures tell when each is there."""
        # Once only: a folder that is gone in the midst of the work was removed by somebody.
        if not self._made:
            files.make_folder(self._folder)
            self._made = True
        for parent in {self._path(int(i)).parent for i in indices} - {self._folder}:
            with files.writing(parent):
                parent.mkdir(exist_ok=True)
        return [pool.submit(save_image, self._path(int(i)), image) for i, image in zip(indices, images, strict=True)]

    def finish(self, indices: np.ndarray) -> None:
        """All is in place already."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images by index: [n, h, w, c]."""
        load = load_png if self._ending == ".png" else load_array
        return np.stack([load(self._path(int(i))) for i in indices])


class _NpzStore:
    """One ``samples.npz`` with ``arr_0`` [n, h, w, c] and ``index`` [n]."""

    def __init__(self, folder: epath.Path, shape: tuple[int, int, int]) -> None:
        self._file = NpzInParts(folder / "samples.npz", parallel.process_index(), {"arr_0": shape})

    def present(self) -> np.ndarray:
        return self._file.indices()

    def write(
        self, pool: concurrent.futures.Executor, indices: np.ndarray, images: np.ndarray
    ) -> list[concurrent.futures.Future[None]]:
        return [pool.submit(self._file.add, {"arr_0": images, "index": np.asarray(indices, np.int64)})]

    def finish(self, indices: np.ndarray) -> None:
        self._file.finish(indices)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self._file.load(indices)["arr_0"]
