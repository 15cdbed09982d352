"""``--mode=evaluate``: the table of a paper from one command, into ``WORKDIR/evaluate/NAME-HASH/``.

A row is a checkpoint, a sampler, a subsequence, S and a seed; its images go from the sampler to the extractor without
touching the disk. Rows that are measured stay: asked for more, the job adds to the same table. It may be killed at any
moment, and several such jobs may fill one table, each taking the next row that nobody has.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config, EvalConfig, flatten
from ddim_jax.configured import build_normalization, pictures
from ddim_jax.errors import RefutedError, UserError
from ddim_jax.files import write_whole
from ddim_jax.jobs.sample import ImageFiles, still_written
from ddim_jax.measuring.extractor import Extractor
from ddim_jax.measuring.extractors import make_extractor
from ddim_jax.measuring.figures import Counts, check_known, chosen_metrics, computed_by, heading
from ddim_jax.measuring.measurement import Measurement
from ddim_jax.measuring.reference import reference_for, values_of
from ddim_jax.measuring.reference_file import Reference
from ddim_jax.measuring.training_images import TrainingImages, training_facts, training_images
from ddim_jax.measuring.wanted import NO_WEIGHTS, Known
from ddim_jax.memory import check_room
from ddim_jax.metrics.memorization import Neighbours
from ddim_jax.tables.claim_file import FILE_NAME, CheckedLine, Claim
from ddim_jax.tables.folder import TableFolder
from ddim_jax.tables.lines import Comparison, comparison, format_figure, lines, sampler_label
from ddim_jax.tables.neighbours import Strip, make_strip, nearest_samples
from ddim_jax.tables.published_figures import PUBLISHED
from ddim_jax.tables.row_images import RowImages, row_images
from ddim_jax.tables.row_progress import RowProgress
from ddim_jax.tables.rows import Result, Row
from ddim_jax.tables.verdicts import obstacles, verdicts_of
from ddim_jax.workdir import job_dir, versions, write_run_record
from ddim_jax.writers import progress, say

# How much of a killed job's work may be lost.
_SAVE_EVERY_SECONDS = 60


def evaluate(config: Config, workdir: epath.PathLike) -> epath.Path:
    """Runs the job.

    Each of P processes draws and measures every P-th image of a row. Several jobs, each of one or more processes, share
    the rows: one that finds no more rows free ends, and says which rows others are still working on; the last of them
    completes the table. Rows of jobs that died are taken over.

    Args:
        config: the command line's config; its ``eval`` group says which rows, ``sample`` what they have in common.
            ``data``, ``model`` and ``diffusion`` are the workdir's, unless ``eval.images`` are measured.
        workdir: a trained workdir; with ``eval.images`` just where results go.

    Returns:
        The folder of the table: ``report.html``, ``table.md``, ``table.csv``, ``table.json``, ``quality.png``,
        ``run.json``, and ``rows/`` with what was found for each row.

    Raises:
        UserError: no checkpoint, rows that the model cannot be sampled for, images or a
            reference that cannot be read, a reference of another extractor, or metrics
            that need more than is known of the images.
    """
    started = time.perf_counter()
    if "://" in os.fspath(workdir):
        raise UserError(f"--mode=evaluate cannot share rows in {workdir}: use a workdir on a file system, or a copy")
    config, source = row_images(config, workdir)
    settings = config.eval
    extractor = make_extractor(config)
    _check_memory(settings, source.num, extractor.dimension)
    # Asks for as many splits as it can have, before anything takes long.
    Measurement(extractor, settings, source.num, source.known)
    check_known(settings, extractor, source.known)
    reference = reference_for(config, extractor)
    searched = {}
    if _needs_training(settings):
        searched = {"training": training_facts(config)}
        reference = reference._replace(training=_training_images(config, extractor, source))
    counts = _counts(settings, extractor, source.num, reference)
    _check_counts(settings, counts)
    compared = _comparison(config, extractor, source.num)
    if settings.check:
        _check_can_be_held(config, extractor, source)
    shared = _shared_settings(settings, extractor, reference, source.num) | searched
    if source.drawn_from is not None:
        shared["drawn_from"] = source.drawn_from
    if source.known.perceptual is not None:
        shared["lpips"] = {"weights_sha256": source.known.perceptual.sha256}
    # Packages' versions are told, but decide nothing.
    decides = {**shared, "reference": {k: v for k, v in shared["reference"].items() if k != "ddim_jax"}}
    folder = job_dir(workdir, "evaluate", f"{extractor.name}-n{source.num}", decides)
    title = f"{source.name}: {source.num:,} images, by {extractor.name}"
    table = TableFolder(folder, title, {**shared, "data": dataclasses.asdict(config.data)}, compared)
    notes = _notes(config, extractor, reference, compared, counts)
    if "lpips" in settings.metrics and source.known.perceptual is None:
        notes.append(f"LPIPS is left out: {NO_WEIGHTS}.")
    if parallel.is_main_process():
        for note in notes:
            say(note)
        table.remove_damaged(source.rows)
        _announce(source, table)
    # From here on files appear: all processes must have looked before.
    parallel.barrier("evaluate folder")

    if settings.keep_images:
        share = np.arange(parallel.process_index(), source.num, parallel.process_count())
        for row in source.rows:
            # Of rows that were measured without keeping images there is no folder.
            if table.has(row) and (table.folder / "images" / row.name).exists():
                _complete_images(row, source, _image_store(row, source, config, table), share)
    measured = 0
    with contextlib.closing(_turns(source.rows, table)) as turns:
        while (place := parallel.value_of_main_process(next(turns, -1))) >= 0:
            row = source.rows[place]
            result = _measure(row, source, extractor, reference, config, table)
            measured += 1
            if result is not None:
                left = [other for other in source.rows if not table.has(other)]
                table.write(_with_missing(notes, len(left)))
                _tell(result, left, source)
    if parallel.is_main_process():
        left = sum(not table.has(row) for row in source.rows)
        table.write(_with_missing(notes, left))
        _record(table, config, started, measured, source)
        say(f"the table is {folder / 'table.md'}, with pictures {folder / 'report.html'}")
    claim = _claim(config, source, table, title, shared, compared) if settings.check else None
    parallel.barrier("evaluate written")
    if claim is not None and not claim.holds:
        raise RefutedError(f"figures are worse than published ones: see the verdicts above, and {folder / FILE_NAME}")
    return folder


def check_ahead(config: Config) -> None:
    """Checks that ``eval.num`` images of a model can be measured, before there is a model.

    Raises:
        UserError: they cannot, see :func:`evaluate`; or the extractor or the reference cannot be had.
    """
    settings, extractor = config.eval, make_extractor(config)
    known = Known(normalization=build_normalization(config))
    Measurement(extractor, settings, settings.num, known)
    _check_counts(settings, _counts(settings, extractor, settings.num, reference_for(config, extractor)))


# --- a row --------------------------------------------------------------------------------------


def _measure(
    row: Row, source: RowImages, extractor: Extractor, reference: Reference, config: Config, table: TableFolder
) -> Result | None:
    """Draws and measures a row, going on from where a killed job stopped; process 0 returns the result."""
    settings = config.eval
    process, process_count = parallel.process_index(), parallel.process_count()
    partial = table.partial_path(row, process, process_count)
    state = RowProgress.resume(partial, extractor, settings, source.num, source.known)
    mine = np.arange(process, source.num, process_count)
    todo = np.intersect1d(mine, state.measurement.missing)
    store = _image_store(row, source, config, table) if settings.keep_images else None
    if store is not None:
        _complete_images(row, source, store, np.setdiff1d(mine, todo))
    before, started = state.seconds, time.perf_counter()
    saved = time.monotonic()
    bar = progress(len(mine), row.name, "image", len(mine) - len(todo), parallel.is_main_process())
    with bar, concurrent.futures.ThreadPoolExecutor() as pool:
        writing: list[concurrent.futures.Future[None]] = []
        for batch in source.batches(row, todo):
            state.add(batch)
            if store is not None:
                writing = still_written(writing) + store.write(pool, batch.index, batch.image)
            bar.update(len(batch.index))
            if time.monotonic() - saved > _SAVE_EVERY_SECONDS:
                # What counts as measured must be on the disk.
                _finish(writing)
                state.seconds = before + time.perf_counter() - started
                state.save(partial)
                saved = time.monotonic()
        _finish(writing)
    state.seconds = before + time.perf_counter() - started
    if process_count > 1 or (len(todo) and state.measurement.is_slow):
        state.save(partial)
    if process_count > 1:
        parallel.barrier("row measured")
        if process == 0:
            for other in range(1, process_count):
                path = table.partial_path(row, other, process_count)
                state.merge(RowProgress.load(path, extractor, settings, source.known))
    result = None
    if process == 0:
        started = time.perf_counter()
        figures, deviations = state.measurement.figures(reference), state.measurement.deviations(reference)
        result = Result(
            name=row.name,
            columns=row.columns,
            seed=row.seed,
            num=source.num,
            figures=figures,
            evaluations=source.evaluations(row),
            sampling_seconds=state.sampling_seconds,
            seconds=state.seconds + time.perf_counter() - started,
            device=parallel.device_description(),
            versions=versions(),
            deviations=deviations,
        )
        strips = _strips(row, source, state.measurement.neighbours(reference), reference, extractor, config)
        # Another job may have taken this one for dead, and been faster.
        if not table.has(row):
            table.add(result, pictures(config, state.first_images()), strips)
        table.remove_partials(row)
    parallel.barrier("row written")
    return result


def _training_images(config: Config, extractor: Extractor, source: RowImages) -> TrainingImages:
    """Returns the training images, among which copies of the measured ones are looked for.

    Raises:
        UserError: they cannot be read, or have another size.
    """
    if source.shape != config.data.image_shape:
        raise UserError(
            f"eval.metrics: memorization compares pixels, but the images are {list(source.shape)} and those of the "
            f"training {list(config.data.image_shape)} (data.image_size, data.channels); leave it out, or resize them"
        )
    return training_images(config, extractor)


def _strips(
    row: Row,
    source: RowImages,
    found: Mapping[str, Neighbours],
    reference: Reference,
    extractor: Extractor,
    config: Config,
) -> list[Strip]:
    """Shows the samples that are nearest to the training images, drawn once more, beside these."""
    chosen_by = {space: nearest_samples(of_space) for space, of_space in found.items()}
    if not chosen_by:
        return []
    index = np.unique(np.concatenate(list(chosen_by.values())))
    drawn = pictures(config, np.concatenate([batch.image for batch in source.batches(row, index)]))
    strips = []
    for space, of_space in found.items():
        assert reference.training is not None, "they are near to the training images"
        chosen = chosen_by[space]
        images = drawn[np.searchsorted(index, chosen)]
        rows = of_space.index[chosen]
        training = pictures(config, reference.training.load(rows.ravel()))
        words = f"by {extractor.prefix.replace('_', ' ')} features" if space == "features" else "by pixels"
        strips.append(
            make_strip(
                f"Samples nearest to the training images {words}, with distances",
                *(of_space, chosen, images, training.reshape(*rows.shape, *training.shape[1:])),
            )
        )
    return strips


def _image_store(row: Row, source: RowImages, config: Config, table: TableFolder) -> ImageFiles:
    height, width, channels = source.shape
    data = dataclasses.replace(config.data, image_size=(height, width), channels=channels)
    return ImageFiles(table.folder / "images" / row.name, source.num, data)


def _complete_images(row: Row, source: RowImages, store: ImageFiles, indices: np.ndarray) -> None:
    """Draws kept images again that are measured, but are not there any more or not whole."""
    lost = np.setdiff1d(indices, store.present())
    if not len(lost):
        return
    say(f"{row.name}: {len(lost):,} kept images are damaged or gone, and drawn again")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for batch in source.batches(row, lost):
            _finish(store.write(pool, batch.index, batch.image))


def _finish(writing: list[concurrent.futures.Future[None]]) -> None:
    while writing:
        writing.pop().result()


# --- whose turn ---------------------------------------------------------------------------------


def _turns(rows: Sequence[Row], table: TableFolder) -> Generator[int]:
    """Yields places of rows to measure, each claimed until the next one is asked for; for process 0 alone."""
    if not parallel.is_main_process():
        return
    while True:
        for place, row in enumerate(rows):
            if table.has(row):
                continue
            claim = table.claims.take(row.name)
            if claim is None:
                continue
            with claim:
                if not table.has(row):
                    yield place
        left = [row.name for row in rows if not table.has(row)]
        if not left:
            return
        table.claims.wait(left)
        if all(table.claims.state(name) == "alive" for name in left):
            others = ", ".join(f"{name} by {table.claims.holder(name)}" for name in left[:4])
            more = f" and {len(left) - 4} more" if len(left) > 4 else ""
            say(f"rows that other jobs are working on: {others}{more}; they will complete the table")
            return


# --- held against published figures -------------------------------------------------------------


def _check_can_be_held(config: Config, extractor: Extractor, source: RowImages) -> None:
    """Refuses ``eval.check`` where figures could not be held against published ones, before they are measured.

    Raises:
        UserError: no published table is asked for, or something is measured otherwise than there.
    """
    settings = config.eval
    if settings.images or not settings.preset:
        given = f"eval.images={settings.images}" if settings.images else "eval.preset is empty"
        tables = ", ".join(name for name, table in PUBLISHED.items() if any(row.figures for row in table.rows))
        raise UserError(f"eval.check holds a model's figures against a published table, but {given}; one of: {tables}")
    table = PUBLISHED[settings.preset]
    if not any(row.figures for row in table.rows):
        raise UserError(f"eval.check: nothing was published of the rows of eval.preset={settings.preset}")
    reference, is_training_set = _reference_in_words(config)
    found = obstacles(
        table,
        data_name=config.data.name,
        model=flatten(config),
        extractor=extractor.prefix,
        resize=str(extractor.provenance.get("protocol", "")),
        num=source.num,
        reference=reference,
        # Which images a file is of cannot be known; that it is there can.
        of_training_images=is_training_set and (table.protocol.is_of_training_images or not settings.reference),
    )
    if found:
        raise UserError(f"eval.check cannot hold these figures against '{settings.preset}': {'; '.join(found)}")


def _claim(
    config: Config,
    source: RowImages,
    table: TableFolder,
    title: str,
    shared: dict[str, Any],
    compared: Comparison,
) -> Claim | None:
    """Gives a verdict on each row asked for, and writes them with all that they rest on; process 0 does it.

    Where other jobs are still measuring rows, it is left to them.
    """
    if not parallel.is_main_process():
        return None
    if not all(table.has(row) for row in source.rows):
        say("there are no verdicts yet: the job that measures the last row gives them")
        return None
    asked = {row.name for row in source.rows}
    found = lines([result for result in table.results() if result.name in asked], compared)
    published = PUBLISHED[config.eval.preset]
    checked = []
    for line in found:
        row = compared.row_for(line.columns)
        row = row if row in published.rows else None
        checked.append(CheckedLine(line, row, [] if row is None else verdicts_of(line, row, published)))
        for verdict in checked[-1].verdicts:
            say(f"{sampler_label(line)}, S = {line.columns['steps']}: {verdict.in_words()}")
        if not checked[-1].verdicts:
            why = "nothing was published of it" if row is None or not row.figures else "its figures were not measured"
            say(f"{sampler_label(line)}, S = {line.columns['steps']}: no verdict, {why}")
    if published.lowest_of > len(config.eval.seeds):
        say(f"published is the least of {published.lowest_of} seeds; here are {len(config.eval.seeds)} (eval.seeds)")
    claim = Claim.of(
        title, config.eval.preset, checked, config=flatten(config), weights=source.weights(), measured=shared
    )
    write_whole(table.folder / FILE_NAME, claim.to_json())
    say(f"all that the verdicts rest on is in {table.folder / FILE_NAME}")
    return claim


# --- what is told -------------------------------------------------------------------------------


def _shared_settings(settings: EvalConfig, extractor: Extractor, reference: Reference, num: int) -> dict[str, Any]:
    """Returns all that rows must share to be compared."""
    return {
        "num": num,
        "extractor": extractor.provenance,
        "reference": reference.provenance or values_of(reference),
        "metrics": {"names": sorted(settings.metrics), **computed_by(settings)},
    }


def _reference_in_words(config: Config) -> tuple[str, bool]:
    """What figures compare with, and whether that is, or may be, all images of the training."""
    settings = config.eval
    other_split = settings.reference_split not in ("", config.data.split)
    if settings.reference:
        reference = settings.reference
    elif settings.reference_num:
        reference = f"{settings.reference_num:,} images"
    elif other_split:
        reference = f"the split '{settings.reference_split}'"
    else:
        reference = "the training images"
    return reference, bool(settings.reference) or not (other_split or settings.reference_num)


def _comparison(config: Config, extractor: Extractor, num: int) -> Comparison:
    settings = config.eval
    reference, is_training_set = _reference_in_words(config)
    data_name = "" if settings.images else config.data.name
    found = comparison(data_name, extractor.provenance, num, reference, is_training_set)
    return found._replace(preset=settings.preset, model=flatten(config))


def _counts(settings: EvalConfig, extractor: Extractor, num: int, reference: Reference) -> Counts:
    kept = min(num, settings.features_kept)
    if reference.features is not None:
        kept = min(kept, len(reference.features))
    return Counts(num, kept, extractor.dimension)


def _needs_training(settings: EvalConfig) -> bool:
    return any(metric.needs_training for metric in chosen_metrics(settings))


def _check_counts(settings: EvalConfig, counts: Counts) -> None:
    """Refuses what could not be computed in the end, before it is drawn."""
    for metric in chosen_metrics(settings):
        refusal = metric.too_few(counts, settings)
        if refusal:
            raise UserError(refusal)


def _check_memory(settings: EvalConfig, num: int, dimension: int) -> None:
    """Refuses what memory cannot hold, before anything is measured."""
    check_room(num * 64, "eval.num", settings.num, "lists of so many images")
    kept = min(num, settings.features_kept)
    check_room(4 * kept * dimension, "eval.features_kept", settings.features_kept, "the features kept")
    if "kid" in settings.metrics:
        size = min(settings.kid_subset_size, kept)
        # Inner products of all with all, thrice, as float64.
        check_room(3 * 8 * size**2, "eval.kid_subset_size", settings.kid_subset_size, "products of a subset")


def _notes(
    config: Config, extractor: Extractor, reference: Reference, compared: Comparison, counts: Counts
) -> list[str]:
    """Returns what is to be known of the figures."""
    settings = config.eval
    count = "an unknown number of" if reference.count is None else f"{reference.count:,}"
    where = settings.reference or reference.provenance.get("name", "the training data")
    notes = [f"Compared with {count} images of {where}, by {extractor.name}."]
    notes += filter(None, (metric.caution(counts, settings) for metric in chosen_metrics(settings)))
    preset = PUBLISHED.get(settings.preset)
    is_other = preset is not None and bool(preset.data_names) and config.data.name not in preset.data_names
    if preset is not None and is_other and not settings.images:
        notes.append(
            f"Published figures of '{preset.title}' are for {preset.data_names[0]}; this model was trained on "
            f"{config.data.name or config.data.source}, so they are left out."
        )
    known = {name for one in PUBLISHED.values() for name in one.data_names}
    is_awaited = compared.data_name in known or (preset is not None and bool(preset.data_names))
    if compared.obstacle and is_awaited and not is_other:
        notes.append(f"Published figures are left out: {compared.obstacle}.")
    if settings.reference and compared.data_name in known and not compared.obstacle:
        notes.append(
            f"Published figures compare with all training images; whether {settings.reference} are these is not known."
        )
    if settings.keep_images:
        notes.append("Images are kept for rows that were measured with eval.keep_images.")
    return notes


def _with_missing(notes: Sequence[str], left: int) -> list[str]:
    return [*notes, f"{left} of the rows asked for are not measured yet."] if left else list(notes)


def _announce(source: RowImages, table: TableFolder) -> None:
    present = sum(table.has(row) for row in source.rows)
    there = f"; {present} are there already" if present else ""
    say(
        f"{_rows_in_words(len(source.rows))} of {source.num:,} images each on {parallel.device_description()}{there}; "
        f"results go to {table.folder}"
    )


def _rows_in_words(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _tell(result: Result, left: Sequence[Row], source: RowImages) -> None:
    figures = ", ".join(f"{heading(name)} {format_figure(value)}" for name, value in result.figures.items())
    # Time goes with the evaluations of the network, which rows differ in.
    evaluations = sum(source.evaluations(row) or 0 for row in left)
    time_left = f", about {result.seconds / result.evaluations * evaluations:,.0f} s" if result.evaluations else ""
    rest = f"{_rows_in_words(len(left))} left{time_left}" if left else "all rows are measured"
    say(f"{result.name}: {figures} ({result.seconds:,.1f} s); {rest}")


def _record(table: TableFolder, config: Config, started: float, measured: int, source: RowImages) -> None:
    """Writes ``run.json``; of jobs that end at the same time, one does."""
    claim = table.claims.take("run.json")
    if claim is None:
        return
    with claim:
        write_run_record(
            table.folder,
            config,
            mode="evaluate",
            seeds=config.eval.seeds,
            checkpoint_steps=sorted({row.columns["checkpoint"] for row in source.rows if row.sample is not None}),
            device=parallel.device_description(),
            seconds=round(time.perf_counter() - started, 3),
            images=source.num,
            rows=[row.name for row in source.rows],
            rows_measured=measured,
            network_evaluations_per_image={row.name: source.evaluations(row) for row in source.rows},
        )
