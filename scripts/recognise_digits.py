"""Counts how many drawn digits a classifier recognises, and prints a table for each model, sampler and number of steps.

python scripts/recognise_digits.py runs/mnist --data DIR
python scripts/recognise_digits.py runs/digits --data digits --steps 10 20 --samplers ddim ddpm_small

The classifier is trained on the real images first (a minute; the result is kept in ddim_jax's cache). DIR has a
sub-folder for each class; ``digits`` are those of configs/digits.py. An image counts as recognised if the classifier
gives one class more than 95 %. That says whether digits are readable; the entropy of the classes says whether all of
them are drawn: log2(10) = 3.32 bits if equally often. It is no measure of quality beyond that.

The classifier sees images at its own size. Models that draw another size (28x28 digits at 32x32) have their images
resized to it by Pillow's bilinear filter, and colours made grey.
"""

import argparse
import sys
import time
from typing import NamedTuple

import numpy as np
import scipy.special
from PIL import Image

import ddim_jax
from ddim_jax.config import DataConfig
from ddim_jax.data.sources import open_source
from ddim_jax.errors import UserError
from ddim_jax.measuring.classifier import ClassifierExtractor, classifier_for, labelled_images


class Recognition(NamedTuple):
    """What a classifier says of a set of images.

    Attributes:
        recognised: share of the images with a class of more than the confidence asked for.
        entropy: entropy of the most probable classes, in bits.
        rarest: share of the rarest class.
        most_frequent: share of the most frequent class.
    """

    recognised: float
    entropy: float
    rarest: float
    most_frequent: float


def recognise(classifier: ClassifierExtractor, images: np.ndarray, confidence: float) -> Recognition:
    """Classifies images uint8 [n, h, w, 1], of the classifier's size."""
    probabilities = scipy.special.softmax(np.asarray(classifier(images).logits, np.float64), axis=1)
    shares = np.bincount(probabilities.argmax(axis=1), minlength=classifier.num_classes) / len(images)
    return Recognition(
        recognised=float(np.mean(probabilities.max(axis=1) > confidence)),
        entropy=float(scipy.special.entr(shares).sum() / np.log(2)),
        rarest=float(shares.min()),
        most_frequent=float(shares.max()),
    )


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Images uint8 [n, h, w, c] → grey, [n, side, side, 1]."""
    pictures = [Image.fromarray(image.squeeze()).convert("L") for image in images]
    if images.shape[1:3] != (side, side):
        pictures = [picture.resize((side, side), Image.Resampling.BILINEAR) for picture in pictures]
    return np.stack([np.asarray(picture) for picture in pictures])[..., None]


def real_images(data: str) -> DataConfig:
    """The labelled images at their own size: a folder, or ``digits``."""
    if data == "digits":
        return DataConfig(image_size=8, channels=1)
    folder = DataConfig(source="folder", path=data)
    side = open_source(folder)[0].image.shape[0]
    return DataConfig(source="folder", path=data, image_size=side, channels=1)


def row(name: str, sampler: str, steps: str, found: Recognition, seconds: str) -> str:
    """A line of the table."""
    shares = f"{found.rarest:.1%} | {found.most_frequent:.1%}"
    return f"| {name} | {sampler} | {steps} | {found.recognised:.1%} | {found.entropy:.2f} | {shares} | {seconds} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Counts how many drawn digits a classifier recognises.")
    parser.add_argument("workdirs", nargs="+", help="trained models")
    parser.add_argument(
        "--data", required=True, help="real images: a folder with a sub-folder for each class, or digits"
    )
    parser.add_argument("--num", type=int, default=1000, help="images drawn for each row")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50, 100])
    parser.add_argument("--samplers", nargs="+", default=["ddim", "ddpm_small"], help="see sample.sampler; eta is 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--confidence", type=float, default=0.95)
    arguments = parser.parse_args()

    data = real_images(arguments.data)
    classifier = classifier_for(data)
    _, held_out = labelled_images(open_source(data), data)
    side = data.image_shape[0]
    print(
        f"The classifier, for {side}x{side} grey images, is right on {classifier.accuracy:.2%} of "
        f"{len(held_out.image):,} real images that it has not seen. Recognised: one class has more than "
        f"{arguments.confidence:.0%}. Entropy: of the {classifier.num_classes} classes, at most "
        f"{np.log2(classifier.num_classes):.2f} bits. Seconds: of {arguments.num:,} images, compilation included.\n"
    )
    print("| model | sampler | S | recognised | entropy | rarest class | most frequent | seconds |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    print(row("real images", "", "", recognise(classifier, held_out.image, arguments.confidence), ""), flush=True)
    for workdir in arguments.workdirs:
        pipe = ddim_jax.load(workdir)
        for sampler in arguments.samplers:
            for steps in arguments.steps:
                started = time.perf_counter()
                images = pipe.sample(
                    arguments.num, seed=arguments.seed, steps=steps, eta=0.0, sampler=sampler, preset=""
                )
                seconds = f"{time.perf_counter() - started:.1f}"
                found = recognise(classifier, resized(images, side), arguments.confidence)
                print(row(workdir, sampler, str(steps), found, seconds), flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"recognise_digits.py: error: {error}")
