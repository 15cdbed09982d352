"""``--mode=stats``: statistics of real images, for figures to be compared with, in a file that says what it is."""

import json

from etils import epath

from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.errors import UserError
from ddim_jax.measuring.extractors import make_extractor
from ddim_jax.measuring.image_sets import ImageSet, open_image_set
from ddim_jax.measuring.reference import (
    has_statistics,
    measure_reference,
    provenance_digest,
    reference_images,
    reference_name,
    reference_provenance,
    remove_parts,
    same_provenance,
)
from ddim_jax.measuring.reference_file import read_reference, write_reference
from ddim_jax.one_writer import one_writer
from ddim_jax.writers import say


def stats(config: Config, workdir: epath.PathLike) -> epath.Path:
    """Measures ``eval.images``, else ``eval.reference``, else the training images, and writes ``eval.out``.

    A killed job goes on where it was. Each of P processes measures every P-th image.

    Args:
        config: the command line's config: ``data`` and ``eval``.
        workdir: where the file goes when ``eval.out`` is empty: ``stats/NAME.npz``. No model is needed.

    Returns:
        The file.

    Raises:
        UserError: images that cannot be read, a file in the way that holds other statistics, or another job that writes
            it.
    """
    settings = config.eval
    adm = settings.format == "adm"
    if adm and (settings.extractor, settings.resize) != ("inception", "tf1"):
        raise UserError("eval.format=adm: ADM's statistics are those of eval.extractor=inception with eval.resize=tf1")
    images = _images(config)
    extractor = make_extractor(config, spatial=adm)
    provenance = reference_provenance(images, extractor, settings)
    out = _out(config, workdir, reference_name(provenance))
    if parallel.is_main_process() and not settings.out:
        _remove_damaged(out)
    parallel.barrier("statistics looked at")
    if out.exists():
        _check_same(out, provenance)
        if parallel.is_main_process():
            say(f"{out} is there already")
    else:
        parts = out.with_name(f"{out.name}.{provenance_digest(provenance)[:8]}.parts")
        with one_writer(out.parent, out.name, str(out), "name another file by eval.out") as writing:
            reference = measure_reference(images, extractor, settings, parts, together=True)
            if parallel.is_main_process():
                writing.check()
                write_reference(out, reference, settings.format)
                remove_parts(parts)
                say(
                    f"wrote {out}, statistics of {reference.count:,} images; compare with them by "
                    "--config.eval.reference"
                )
    parallel.barrier("statistics written")
    if parallel.is_main_process():
        print(json.dumps(read_reference(out).provenance, indent=2))
    return out


def _images(config: Config) -> ImageSet:
    settings = config.eval
    if settings.images:
        return open_image_set(settings.images, config.data)
    if has_statistics(settings):
        raise UserError(f"eval.reference={settings.reference}: these are statistics already; name images")
    return reference_images(config)


def _out(config: Config, workdir: epath.PathLike, name: str) -> epath.Path:
    if not config.eval.out:
        suffix = "-adm" if config.eval.format == "adm" else ""
        return epath.Path(workdir) / "stats" / f"{name}{suffix}.npz"
    out = epath.Path(config.eval.out)
    if out.suffix != ".npz":
        raise UserError(f"eval.out={config.eval.out}: statistics are .npz files; give it that ending")
    return out


def _remove_damaged(out: epath.Path) -> None:
    """Removes statistics in a place of ours that cannot be read, so that they are measured again, and says so."""
    try:
        if out.exists():
            read_reference(out)
    except UserError as error:
        say(f"warning: {error}; the statistics are measured again")
        out.unlink(missing_ok=True)


def _check_same(out: epath.Path, provenance: dict[str, object]) -> None:
    if not same_provenance(read_reference(out).provenance, provenance):
        raise UserError(f"{out} holds other statistics; move it away, or name another file by eval.out")
