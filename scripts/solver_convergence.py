"""Measures how fast each solver converges, prints a table and draws it.

python scripts/solver_convergence.py --out convergence.png

The data are pixels drawn from a mixture of two normal distributions, whose noise is known in closed form, so that the
solver is the only source of error. Each solver follows the probability flow from pure noise to level 1 of the linear
schedule, in steps that are equal in log SNR; the error is the root mean square distance to the exact end of the flow. A
solver of order p draws a line of slope -p.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from scipy.integrate import solve_ivp

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from ddim_jax.diffusion.prediction import Prediction, Question
from ddim_jax.diffusion.samplers import make_sampler
from ddim_jax.diffusion.schedule import Schedule, make_schedule
from ddim_jax.names import SamplerName

SOLVERS: tuple[SamplerName, ...] = (
    *(
        "ddim",
        "heun",
        "flow_heun",
        "ab2",
        "ab3",
        "ab4",
        "deis2",
        "deis3",
        "plms",
        "ipndm",
        "dpmpp_2m",
        "unipc2",
        "unipc3",
    ),
)
WEIGHTS, MEANS, DEVIATION = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), 0.2
# The usual linear schedule in 200 times as many levels, so that steps can be as equal as one likes.
FINENESS = 200


def predict(x: jax.Array, row: Question) -> Prediction:
    """What a perfect network would answer."""
    variance = row.alpha_bar * DEVIATION**2 + 1 - row.alpha_bar
    logits = jnp.log(WEIGHTS) - (x[..., None] - jnp.sqrt(row.alpha_bar) * MEANS) ** 2 / (2 * variance)
    mean = jnp.sum(jax.nn.softmax(logits) * MEANS, -1)
    eps = jnp.sqrt(1 - row.alpha_bar) * (x - jnp.sqrt(row.alpha_bar) * mean) / variance
    return Prediction(x0=(x - jnp.sqrt(1 - row.alpha_bar) * eps) / jnp.sqrt(row.alpha_bar), eps=eps)


class Level:
    """A question about one noise level."""

    def __init__(self, alpha_bar: jax.Array) -> None:
        """Asks about the level with this alpha_bar."""
        self.time = 0.0
        self.alpha_bar = alpha_bar


def exact_flow(x: np.ndarray, alpha_bar: float, alpha_bar_next: float) -> np.ndarray:
    """Follows the probability flow (DDIM, eq. 14) by an adaptive solver of order 8, over log(sigma / alpha)."""

    @jax.jit
    def slope(log_sigma: jax.Array, y: jax.Array) -> jax.Array:
        sigma = jnp.exp(log_sigma)
        level = Level(1 / (1 + sigma**2))
        return sigma * predict(y * jnp.sqrt(level.alpha_bar), level).eps

    begin, end = (np.log(1 / value - 1) / 2 for value in (alpha_bar, alpha_bar_next))
    result = solve_ivp(slope, (begin, end), x / alpha_bar**0.5, method="DOP853", rtol=1e-12, atol=1e-13)
    return result.y[:, -1] * alpha_bar_next**0.5


def equal_pairs(schedule: Schedule, steps: int, end: int) -> np.ndarray:
    """Steps from the noisiest level to ``end``, equal in log SNR: [S, 2]."""
    wanted = np.linspace(schedule.log_snr[-1], schedule.log_snr[end], steps + 1)
    levels = schedule.num_levels - np.searchsorted(schedule.log_snr[::-1], wanted)
    return np.stack([levels[:-1], levels[1:]], axis=1)


def measure(
    name: SamplerName, schedule: Schedule, counts: list[int], x: np.ndarray, exact: np.ndarray
) -> tuple[list[int], list[float]]:
    """Network evaluations and errors of a solver for each number of steps."""
    evaluations, errors = [], []
    for steps in counts:
        sampler = make_sampler(name, schedule, equal_pairs(schedule, steps, end=FINENESS))
        result = jax.jit(lambda x, run=sampler.run: run(predict, x))(jnp.asarray(x))
        evaluations.append(sampler.evaluations)
        errors.append(float(np.sqrt(np.mean((np.asarray(result) - exact) ** 2))))
    return evaluations, errors


def main() -> None:
    """Prints the table and writes the plot."""
    parser = argparse.ArgumentParser(description="Measures the order of convergence of all solvers.")
    parser.add_argument("--out", type=pathlib.Path, help="picture to write, e.g. convergence.png")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 40, 80, 160, 320])
    arguments = parser.parse_args()

    jax.config.update("jax_enable_x64", True)
    schedule = make_schedule("linear", 1000 * FINENESS, 1e-4 / FINENESS, 0.02 / FINENESS)
    x = np.linspace(-2.5, 2.5, 100)
    exact = exact_flow(x, schedule.alpha_bar[-1], schedule.alpha_bar[FINENESS])
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    print("error after S steps" + "".join(f"{steps:>9}" for steps in arguments.steps) + "   order")
    for name in SOLVERS:
        evaluations, errors = measure(name, schedule, arguments.steps, x, exact)
        last = slice(-3, None)  # where the error is small enough to fall as theory says
        order = -np.polyfit(np.log(evaluations[last]), np.log(errors[last]), 1)[0]
        print(f"{name:<19}" + "".join(f"{error:9.1e}" for error in errors) + f"   {order:.2f}", flush=True)
        axes.loglog(evaluations, errors, marker=".", label=f"{name} ({order:.1f})")
    axes.set(xlabel="network evaluations", ylabel="error of a pixel", title="Solvers, with their measured order")
    axes.grid(alpha=0.3)
    axes.legend()
    if arguments.out:
        figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
