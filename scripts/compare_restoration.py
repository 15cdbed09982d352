"""What a network trained for a task makes of it, beside interpolation and RePaint: PSNR, SSIM, time.

    python scripts/compare_restoration.py runs/superres --num 256 --out superres.png
    python scripts/compare_restoration.py runs/inpaint --num 256 --repaint mnist-unconditional --out inpaint.png

For the first images of ``data.validation``: what the network draws once; the mean of several draws, which has the
higher PSNR and shows the blur that it pays for that; what is there already (bicubic interpolation of a smaller picture;
of a picture with a part missing, the rest and a grey part); and RePaint by an unconditional model. With ``--recognise``
a classifier trained on the data set counts those that it takes for the class of the truth. The picture has a row for
each of these.
"""

import argparse
import time

import numpy as np

import ddim_jax
from ddim_jax.conditions import DataCondition
from ddim_jax.config import with_values
from ddim_jax.configured import build_normalization, build_task
from ddim_jax.data.prepared import open_images
from ddim_jax.data.reading import load_images
from ddim_jax.images import save_png, table
from ddim_jax.measuring.classifier import classifier_for
from ddim_jax.metrics import psnr, ssim
from ddim_jax.pipeline import Pipeline
from ddim_jax.sampling.condition_pictures import given_pictures
from ddim_jax.sampling.condition_sets import ConditionSet
from ddim_jax.sampling.conditions import enlarged

_SHOWN = 10


def main() -> None:
    """Prints the table and writes the picture."""
    parser = argparse.ArgumentParser(description="Compares restorations with interpolation and RePaint.")
    parser.add_argument("workdir", help="of a network with data.condition")
    parser.add_argument("--num", type=int, default=256, help="images")
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps")
    parser.add_argument("--draws", type=int, default=8, help="draws whose mean is taken")
    parser.add_argument("--repaint", default="", help="workdir or name of an unconditional model, to inpaint with")
    parser.add_argument("--resamplings", type=int, default=5, help="of RePaint")
    parser.add_argument("--recognise", action="store_true", help="count what a classifier takes for the right class")
    parser.add_argument("--out", default="restoration.png", help="picture")
    arguments = parser.parse_args()

    pipe = ddim_jax.load(arguments.workdir)
    conditions = ConditionSet(with_values(pipe.config, {"sample.per_condition": 1}))
    indices = np.arange(arguments.num)
    told, truth = conditions.read(indices)
    assert truth is not None, "the data's own conditions"
    found: dict[str, tuple[np.ndarray, float]] = {}

    started = time.perf_counter()
    condition = {"picture": told.picture, "label": told.label if pipe.config.model.num_classes else None}
    condition = {key: value for key, value in condition.items() if value is not None}
    draws = [
        pipe.sample(arguments.num, seed=seed, steps=arguments.steps, condition=condition)
        for seed in range(arguments.draws)
    ]
    seconds = time.perf_counter() - started
    found[f"drawn, {arguments.steps} steps"] = draws[0], seconds / arguments.draws
    mean = np.mean(np.asarray(draws, np.float64), axis=0)
    found[f"mean of {arguments.draws} draws"] = _as_values(mean, pipe), seconds
    found["what is given"] = enlarged(pipe.config, told.picture[..., : pipe.config.data.channels]), 0.0
    if arguments.repaint:
        other = ddim_jax.load(arguments.repaint)
        known = np.asarray(told.picture)[..., -1] > 0.5
        started = time.perf_counter()
        painted = other.inpaint(
            truth, known, steps=arguments.steps, resamplings=arguments.resamplings, jump=arguments.steps // 10 or 1,
            eta=1.0,
        )  # fmt: skip
        found[f"RePaint, {arguments.resamplings} resamplings"] = painted, time.perf_counter() - started
    _print_table(pipe, found, truth, arguments)
    _draw(pipe, told, found, truth, arguments.out)


def _as_values(images: np.ndarray, pipe: Pipeline) -> np.ndarray:
    dtype = pipe.config.data.dtype
    return images.astype(np.float32) if dtype == "float32" else np.floor(images + 0.5).astype(dtype)


def _print_table(
    pipe: Pipeline, found: dict[str, tuple[np.ndarray, float]], truth: np.ndarray, arguments: argparse.Namespace
) -> None:
    normalization = build_normalization(pipe.config)
    data_range = float(np.max(normalization.high) - np.min(normalization.low))
    data = pipe.config.data
    recognised = {}
    if arguments.recognise:
        classifier = classifier_for(data)
        labels = load_images(open_images(data, data.validation or None), data, np.arange(arguments.num)).label
        recognised = {
            name: f" {np.mean(classifier(images).logits.argmax(axis=1) == labels):.1%} |"
            for name, images in {**{name: images for name, (images, _) in found.items()}, "the truth": truth}.items()
        }
    print(f"| {arguments.num} images | PSNR | SSIM | seconds |" + (" right class |" if recognised else ""))
    print("|---|---:|---:|---:|" + ("---:|" if recognised else ""))
    for name, (images, seconds) in found.items():
        figures = psnr(images, truth, data_range).mean(), ssim(images, truth, data_range).mean()
        print(f"| {name} | {figures[0]:.2f} dB | {figures[1]:.3f} | {seconds:.1f} |{recognised.get(name, '')}")
    if recognised:
        print(f"| the truth | | | |{recognised['the truth']}")


def _draw(
    pipe: Pipeline, told: DataCondition, found: dict[str, tuple[np.ndarray, float]], truth: np.ndarray, out: str
) -> None:
    task = build_task(pipe.config)
    assert task is not None, "a network that is given pictures"
    shown = {"given": given_pictures(pipe.config, task, np.asarray(told.picture[:_SHOWN]))}
    shown |= {name: pipe.pictures(images[:_SHOWN]) for name, (images, _) in found.items() if name != "what is given"}
    if pipe.config.data.condition == "downsample":
        shown["bicubic"] = pipe.pictures(found["what is given"][0][:_SHOWN])
    shown["truth"] = pipe.pictures(truth[:_SHOWN])
    cells = [[images[row][None] for row in range(_SHOWN)] for images in shown.values()]
    save_png(out, table(cells, list(shown), [""] * _SHOWN))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
