"""What a network is trained to predict, and what its answer means.

A noisy image is x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps. Whoever knows x and alpha_bar, and one of the clean
image x_0, the noise eps or the velocity (Salimans and Ho 2022, appendix D)

    v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0,

knows the other two. Rectified flow (Liu et al. 2023) asks for the velocity of the straight line from the image to the
noise, u = eps - x_0; as all of these are made of x_0 and eps alone, they are the same whichever way x_t is scaled. So
networks differ in what they are asked for; a row of ``OBJECTIVES`` says how the question is put in training, and how
the answer is read.

>>> rule = OBJECTIVES["v"]
>>> x0, eps = jnp.array(1.0), jnp.array(0.5)
>>> v = rule.target(x0, eps, 0.8, 0.6)  # alpha_bar = 0.64
>>> [round(float(value), 4) for value in rule.read(v, 0.8 * x0 + 0.6 * eps, 0.8, 0.6)]
[1.0, 0.5]
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Images [n, h, w, c], and numbers that multiply them: [n, 1, 1, 1], or scalars.
Images = jax.Array
Factor = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction(Sequence[jax.Array]):
    """What an image at some noise level is thought to be made of: the pair of x0 and eps, and what may stand beside it.

    Attributes:
        x0: the clean image, like x.
        eps: the noise, like x; of unit variance.
        fraction: where between the smallest variance of a step and the largest, in logarithms, the network wants it:
            0 is the posterior's, 1 is beta's (Nichol and Dhariwal 2021, eq. 15). Like x; None unless that was learned.
    """

    x0: jax.Array
    eps: jax.Array
    fraction: jax.Array | None = None

    def __len__(self) -> int:
        """The length of a pair, 2."""
        return 2

    def __getitem__(self, index: Any) -> Any:
        """x0 for 0, eps for 1."""
        return (self.x0, self.eps)[index]


class ObjectiveRule(NamedTuple):
    """What makes an objective: a row of ``OBJECTIVES``.

    With signal = sqrt(alpha_bar) and noise = sqrt(1 - alpha_bar):

    Attributes:
        target: from x_0, eps, signal and noise to what the network shall answer.
        read: from its answer, x, signal and noise to the clean image and the noise.
        min_snr: from alpha_bar and gamma to the weight min(SNR, gamma), SNR = alpha_bar / (1 - alpha_bar), of the error
            of the clean image, as a factor of the squared error of this target.
    """

    target: Callable[[Images, Images, Factor, Factor], Images]
    read: Callable[[Images, Images, Factor, Factor], Prediction]
    min_snr: Callable[[jax.Array, float], jax.Array]


OBJECTIVES: dict[str, ObjectiveRule] = {
    # Not defined at alpha_bar = 0, where x is all noise and the noise says nothing about the image; the others are.
    # |eps - ε̂|² = SNR |x_0 - x̂0|², hence the weight min(SNR, gamma) / SNR.
    "eps": ObjectiveRule(
        target=lambda x0, eps, signal, noise: eps,
        read=lambda output, x, signal, noise: Prediction(x0=(x - noise * output) / signal, eps=output),
        min_snr=lambda alpha_bar, gamma: jnp.minimum(1, gamma * (1 - alpha_bar) / alpha_bar),
    ),
    "x0": ObjectiveRule(
        target=lambda x0, eps, signal, noise: x0,
        read=lambda output, x, signal, noise: Prediction(x0=output, eps=(x - signal * output) / noise),
        min_snr=lambda alpha_bar, gamma: jnp.minimum(alpha_bar / (1 - alpha_bar), gamma),
    ),
    # |v - v̂|² = (SNR + 1) |x_0 - x̂0|², hence the weight min(SNR, gamma) / (SNR + 1).
    "v": ObjectiveRule(
        target=lambda x0, eps, signal, noise: signal * eps - noise * x0,
        read=lambda output, x, signal, noise: Prediction(
            x0=signal * x - noise * output, eps=noise * x + signal * output
        ),
        min_snr=lambda alpha_bar, gamma: jnp.minimum(alpha_bar, gamma * (1 - alpha_bar)),
    ),
    # x = signal x_0 + noise (u + x_0). |u - û|² = ((signal + noise) / noise)² |x_0 - x̂0|².
    "flow": ObjectiveRule(
        target=lambda x0, eps, signal, noise: eps - x0,
        read=lambda output, x, signal, noise: Prediction(
            x0=(x - noise * output) / (signal + noise), eps=(x + signal * output) / (signal + noise)
        ),
        min_snr=lambda alpha_bar, gamma: (
            jnp.minimum(alpha_bar, gamma * (1 - alpha_bar)) / (jnp.sqrt(alpha_bar) + jnp.sqrt(1 - alpha_bar)) ** 2
        ),
    ),
}
