"""Draws the same images with one network in the coordinates of EDM, of rectified flow and of DDPM.

    python scripts/one_process.py WORKDIR --out one_process.png

WORKDIR holds a model on the schedule ``edm``, such as ``configs/digits.py:edm``. Each row of the picture is a loop
written as in its paper, with x_t as it has it; all visit the same amounts of noise, and ask the same network. The table
says how far the rows differ.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ddim_jax
from ddim_jax.conditions import Condition
from ddim_jax.configured import build_normalization, build_predict, build_schedule
from ddim_jax.diffusion import image_keys, initial_noise, sampling_levels
from ddim_jax.images import labelled_rows, save_png
from ddim_jax.pipeline import Pipeline
from ddim_jax.pixels import to_pixels

# Of noise to signal -> the clean image: of x_0 + sigma eps, as Karras et al. have it.
Denoise = Callable[[jax.Array, float], jax.Array]


class Row(NamedTuple):
    """What the network is asked: see ``diffusion/prediction.py``."""

    time: jax.Array
    alpha_bar: jax.Array


def edm(denoise: Denoise, noise: jax.Array, sigmas: np.ndarray) -> jax.Array:
    """Karras et al. 2022, algorithm 1 without its correction: y = x_0 + sigma eps, dy = (y - D) / sigma dsigma."""
    y = noise * np.sqrt(1 + sigmas[0] ** 2)
    for sigma, sigma_next in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        y = y + (sigma_next - sigma) * (y - denoise(y, sigma)) / sigma
    return y


def flow(denoise: Denoise, noise: jax.Array, sigmas: np.ndarray) -> jax.Array:
    """Liu et al. 2023: z = (1 - t) x_0 + t eps, dz = u dt, u = eps - x_0; sigma = t / (1 - t)."""
    times = sigmas / (1 + sigmas)
    z = noise * np.hypot(1 - times[0], times[0])
    for t, t_next in zip(times, [*times[1:], 0.0], strict=True):
        x0 = denoise(z / (1 - t), t / (1 - t))
        z = z + (t_next - t) * (z - x0) / t
    return z


def ddim(denoise: Denoise, noise: jax.Array, sigmas: np.ndarray) -> jax.Array:
    """Song et al. 2021, eq. 12 with sigma_t = 0: x = sqrt(alpha) x_0 + sqrt(1 - alpha) eps."""
    alphas = 1 / (1 + sigmas**2)
    x = noise
    for alpha, alpha_next in zip(alphas, [*alphas[1:], 1.0], strict=True):
        x0 = denoise(x / np.sqrt(alpha), np.sqrt(1 / alpha - 1))
        eps = (x - np.sqrt(alpha) * x0) / np.sqrt(1 - alpha)
        x = np.sqrt(alpha_next) * x0 + np.sqrt(1 - alpha_next) * eps
    return x


def denoiser(pipe: Pipeline, count: int) -> Denoise:
    """The network as a function of x_0 + sigma eps."""
    schedule = build_schedule(pipe.config)
    predict = build_predict(pipe.config, pipe.model, pipe.variables, Condition(), clip="none")

    @jax.jit
    def ask(x: jax.Array, time: jax.Array, alpha_bar: jax.Array) -> jax.Array:
        row = Row(time, alpha_bar)
        return predict(x, row).x0

    def denoise(y: jax.Array, sigma: float) -> jax.Array:
        level = schedule.level_at(np.asarray(-2 * np.log(sigma)))
        return ask(y / np.sqrt(1 + sigma**2), schedule.time_input(level), 1 / (1 + sigma**2))

    return denoise


def main() -> None:
    """Loads, draws, compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workdir", help="of a model on the schedule edm")
    parser.add_argument("--out", default="one_process.png", help="picture to write (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps (%(default)s)")
    parser.add_argument("--num", type=int, default=10, help="images (%(default)s)")
    args = parser.parse_args()

    pipe = ddim_jax.load(args.workdir)
    schedule = build_schedule(pipe.config)
    if not schedule.has_real_levels:
        parser.error(f"the model in {args.workdir} is on the schedule {schedule.name}, which has whole levels only")
    levels = sampling_levels("karras", schedule.num_levels, args.steps, schedule)
    sigmas = np.exp(-schedule.log_snr_at(levels) / 2)
    noise = initial_noise(image_keys(0, jnp.arange(args.num)), pipe.config.data.image_shape)
    denoise, normalization = denoiser(pipe, args.num), build_normalization(pipe.config)
    rows = {
        name: loop(denoise, noise, sigmas) for name, loop in (("EDM", edm), ("rectified flow", flow), ("DDIM", ddim))
    }
    first = rows["EDM"]
    for name, images in rows.items():
        pixels = np.asarray(to_pixels(images, normalization)), np.asarray(to_pixels(first, normalization))
        different = np.mean(pixels[0] != pixels[1])
        print(f"{name}: largest difference {float(jnp.abs(images - first).max()):.1e}, {different:.2%} of the bytes")
    drawn = {name: np.asarray(to_pixels(images, normalization)) for name, images in rows.items()}
    drawn["ddim_jax"] = pipe.sample(args.num, sampler="ddim", spacing="karras", steps=args.steps)
    save_png(args.out, labelled_rows(list(drawn.items()), columns=args.num))


if __name__ == "__main__":
    main()
