"""Writes the images of MNIST's own files as PNG files, into a folder per class.

    python scripts/unpack_idx.py t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz data/mnist

makes ``data/mnist/7/00000.png`` and so on, which ``data.source=folder`` reads, labels included. Fashion-MNIST, KMNIST
and EMNIST come in the same format.
"""

import argparse
import gzip
import pathlib
import struct

import numpy as np
from PIL import Image


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Reads an IDX file of bytes, gzipped or not: two zero bytes, 8 for uint8, the rank, the sizes, the values."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        zeros, kind, rank = struct.unpack(">HBB", file.read(4))
        if zeros or kind != 8:
            raise SystemExit(f"{path} is not an IDX file of bytes")
        shape = struct.unpack(f">{rank}I", file.read(4 * rank))
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def main() -> None:
    """Reads both files and writes the images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=pathlib.Path, help="IDX file of images")
    parser.add_argument("labels", type=pathlib.Path, help="IDX file of their labels")
    parser.add_argument("out", type=pathlib.Path, help="folder to write")
    args = parser.parse_args()
    images, labels = read_idx(args.images), read_idx(args.labels)
    if len(images) != len(labels):
        raise SystemExit(f"{len(images)} images, but {len(labels)} labels: not of the same set")
    for label in np.unique(labels):
        (args.out / str(label)).mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(args.out / str(label) / f"{number:05d}.png")
    print(f"wrote {len(images):,} images to {args.out}")


if __name__ == "__main__":
    main()
