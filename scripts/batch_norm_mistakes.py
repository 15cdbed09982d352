"""Shows what becomes of a network with batch norms whose state is handled wrongly.

    python scripts/batch_norm_mistakes.py WORKDIR --data DIR --out mistakes.png

WORKDIR holds a trained residual U-Net with batch norms (``configs/flowers.py``, ``configs/mnist.py:bk``), DIR images of
its data's kind. Each row of the picture, and of the printed table, has the state that a port of Keras' example easily
ends up with. Two mistakes are not shown, since they are made in training: PyTorch's ``momentum`` is Keras' 1 -
momentum, so that 0.99 there makes the running averages follow single batches, and its eps is 1e-5 instead of 1e-3.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ddim_jax
from ddim_jax.conditions import Condition
from ddim_jax.config import Config
from ddim_jax.configured import build_schedule
from ddim_jax.data.first_images import read_first_images
from ddim_jax.diffusion.losses import draw_levels
from ddim_jax.images import labelled_rows, save_png
from ddim_jax.pipeline import Pipeline
from ddim_jax.random_streams import Stream, fold_in_each, root_key
from ddim_jax.training.step import make_example_losses


class TrainingMode:
    """A network left in training mode: its norms divide by the statistics of the batch."""

    def __init__(self, model: Any) -> None:
        """Wraps a network."""
        self._model = model

    def apply(self, variables: Any, *args: Any) -> jax.Array:
        """The output alone; the moved averages are dropped."""
        return self._model.apply(variables, *args, mutable=["batch_stats"])[0]


def noise_loss(pipe: Pipeline, images: np.ndarray) -> float:
    """Mean loss on real images, at noise levels spread over all times."""
    config: Config = pipe.config
    numbers = jnp.arange(len(images))
    key = root_key(config.seed, Stream.VALIDATION)
    level = draw_levels("continuous", build_schedule(config), key, numbers, len(images))

    def network(x: jax.Array, time: jax.Array, condition: Condition) -> tuple[Any, None]:
        del condition
        return pipe.model.apply(pipe.variables, x, time), None

    losses = make_example_losses(config)
    measure = jax.jit(lambda images: losses(network, images, Condition(), level, noise_keys)[0].loss)
    noise_keys = fold_in_each(jax.random.fold_in(key, 1), numbers)
    return float(jnp.mean(measure(images)))


def main() -> None:
    """Loads, measures, draws."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workdir", help="of a trained residual U-Net with batch norms")
    parser.add_argument("--data", required=True, help="folder of real images")
    parser.add_argument("--out", default="mistakes.png", help="picture to write (%(default)s)")
    parser.add_argument("--num", type=int, default=256, help="real images (%(default)s)")
    parser.add_argument("--shown", type=int, default=10, help="samples per row (%(default)s)")
    args = parser.parse_args()

    right = ddim_jax.load(args.workdir)
    raw = ddim_jax.load(args.workdir, ema=False)
    averaged, running = right.variables["batch_stats"], raw.variables["batch_stats"]
    if not averaged:
        parser.error(f"the network in {args.workdir} has no batch norms")
    initial = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.full_like(leaf, float("variance" in jax.tree_util.keystr(path))), averaged
    )

    def with_statistics(statistics: Any) -> Pipeline:
        return dataclasses.replace(right, variables={"params": right.params, "batch_stats": statistics}, _compiled={})

    range_instead = dataclasses.replace(right.config.data, mean=(0.5,), std=(0.5,))
    states = {
        "averaged weights, averaged statistics: right": right,
        "averaged weights, newest running statistics": with_statistics(running),
        "averaged weights, statistics as initialised: only parameters were averaged": with_statistics(initial),
        "training mode left on while sampling": dataclasses.replace(
            right, model=TrainingMode(right.model), _compiled={}
        ),
        "pixels scaled to [-1, 1] instead of by mean and deviation": dataclasses.replace(
            right, config=dataclasses.replace(right.config, data=range_instead), _compiled={}
        ),
    }
    images = read_first_images(right.config.data, "", args.data, args.num, "--data").image
    rows = []
    print("| state | noise loss |\n|---|---|")
    for name, pipe in states.items():
        rows.append((name, pipe.sample(args.shown)))
        print(f"| {name} | {noise_loss(pipe, images):.4f} |")
    save_png(args.out, labelled_rows(rows, columns=args.shown))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
