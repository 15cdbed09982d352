"""Draws the pictures of ``docs/mathematics.md`` by the code that they explain.

python scripts/explain.py --out docs/images

The data are points of the plane around eight centres on a circle. What a perfect network would answer is known in
closed form, so that the pictures show samplers and nothing else.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from ddim_jax import diffusion
from ddim_jax.diffusion.prediction import Prediction, Question
from ddim_jax.names import ScheduleName

SHOWN_SCHEDULES: tuple[ScheduleName, ...] = ("linear", "quad", "const", "jsd", "sigmoid", "cosine")
ANGLES = np.arange(8) * 2 * np.pi / 8
CENTRES = 1.3 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)
DEVIATION = 0.12
EDGE = 2.6
COLOUR = "tab:blue"
POINTS_FOLLOWED = 6


def predict(x: jax.Array, row: Question) -> Prediction:
    """What a perfect network would answer; ``x`` is [n, 1, 1, 2]."""
    variance = row.alpha_bar * DEVIATION**2 + 1 - row.alpha_bar
    away = x[..., None, :] - jnp.sqrt(row.alpha_bar) * CENTRES
    likely = jax.nn.softmax(-jnp.sum(away**2, -1) / (2 * variance))
    eps = jnp.sqrt(1 - row.alpha_bar) * jnp.sum(likely[..., None] * away, -2) / variance
    return Prediction(x0=(x - jnp.sqrt(1 - row.alpha_bar) * eps) / jnp.sqrt(row.alpha_bar), eps=eps)


def drawn(points: int, steps: int, eta: float) -> np.ndarray:
    """Points on their way from noise: [steps + 1, points, 2], noise first; the same noise for any steps and eta."""
    schedule = diffusion.make_schedule("linear")
    levels = diffusion.sampling_levels("quad", schedule.num_levels, steps)
    keys = diffusion.image_keys(seed=1, index=jnp.arange(points))
    sampler = diffusion.make_sampler("ddim", schedule, diffusion.level_pairs(levels), eta=eta)
    end, kept = sampler.run_keeping(predict, diffusion.initial_noise(keys, (1, 1, 2)), range(steps), keys)
    return np.concatenate([kept.x, end[None]])[:, :, 0, 0, :]


def show_density(axes: Axes) -> None:
    """The density of the data as a grey ground."""
    line = np.linspace(-EDGE, EDGE, 200)
    grid = np.stack(np.meshgrid(line, line), axis=-1)
    distances = np.sum((grid[..., None, :] - CENTRES) ** 2, -1)
    density = np.sum(np.exp(-distances / (2 * DEVIATION**2)), -1)
    axes.imshow(density, extent=(-EDGE, EDGE, -EDGE, EDGE), origin="lower", cmap="Greys", vmax=1.2 * density.max())
    axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[])


def draw_schedules(path: pathlib.Path) -> None:
    """What is left of the image, and log signal to noise, for several schedules."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name in SHOWN_SCHEDULES:
        # A schedule that ends in pure noise has log SNR minus infinity there.
        alpha_bar = diffusion.make_schedule(name).alpha_bar[1:-1]
        level = np.arange(1, len(alpha_bar) + 1)
        left.plot(level, np.sqrt(alpha_bar), label=name)
        right.plot(level, np.log(alpha_bar / (1 - alpha_bar)), label=name)
    left.set(xlabel="level", ylabel=r"share of the image, $\sqrt{\bar\alpha}$")
    right.set(xlabel="level", ylabel=r"$\log\,\bar\alpha\,/\,(1-\bar\alpha)$")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def draw_trajectories(path: pathlib.Path) -> None:
    """The ways of a few points under DDIM and DDPM."""
    figure, both = plt.subplots(1, 2, figsize=(9, 4.7), layout="constrained")
    for axes, eta, title in zip(both, (0.0, 1.0), ("DDIM, eta = 0", "DDPM, eta = 1"), strict=True):
        way = drawn(points=POINTS_FOLLOWED, steps=100, eta=eta)
        show_density(axes)
        axes.plot(way[:, :, 0], way[:, :, 1], linewidth=0.9)
        axes.scatter(*way[0].T, s=14, facecolors="white", edgecolors="black", zorder=3)
        axes.scatter(*way[-1].T, s=14, color="black", zorder=3)
        axes.set_title(title)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def draw_steps(path: pathlib.Path) -> None:
    """Where points end after few and many steps, and how far from the nearest centre they are."""
    counts = (5, 10, 20)
    figure, rows = plt.subplots(2, len(counts), figsize=(9, 6.3), layout="constrained")
    for row, eta, name in zip(rows, (0.0, 1.0), ("DDIM", "DDPM"), strict=True):
        for axes, steps in zip(row, counts, strict=True):
            points = drawn(points=1000, steps=steps, eta=eta)[-1]
            away = np.min(np.linalg.norm(points[:, None] - CENTRES, axis=-1), axis=1)
            show_density(axes)
            axes.scatter(*points.T, s=2, color=COLOUR, alpha=0.6)
            axes.set_title(f"{name}, {steps} steps: {np.sqrt(np.mean(away**2) / 2):.3f}")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Writes the three pictures."""
    parser = argparse.ArgumentParser(description="Draws the pictures of docs/mathematics.md.")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the pictures")
    folder = parser.parse_args().out
    draw_schedules(folder / "schedules.png")
    draw_trajectories(folder / "trajectories.png")
    draw_steps(folder / "steps.png")


if __name__ == "__main__":
    main()
