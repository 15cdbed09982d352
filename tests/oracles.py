"""Distributions whose denoiser is known in closed form: what a perfectly trained network would answer.

They have the signature of a sampler's ``predict``. Powers instead of ``sqrt`` let the Gaussian work on NumPy and JAX
arrays alike.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from ddim_jax.diffusion.prediction import Prediction, Question
from ddim_jax.diffusion.table import SamplerTable


class Gaussian(NamedTuple):
    """Images whose pixels are independent draws from N(mean, deviation²)."""

    mean: float
    deviation: float

    def marginal(self, alpha_bar: Any) -> tuple[Any, Any]:
        """Mean and variance of a pixel at a noise level."""
        return alpha_bar**0.5 * self.mean, alpha_bar * self.deviation**2 + 1 - alpha_bar

    def predict(self, x: Any, row: Question) -> Prediction:
        """E[x_0 | x] and E[eps | x]."""
        mean, variance = self.marginal(row.alpha_bar)
        eps = (1 - row.alpha_bar) ** 0.5 * (x - mean) / variance
        return Prediction(x0=(x - (1 - row.alpha_bar) ** 0.5 * eps) / row.alpha_bar**0.5, eps=eps)

    def flow(self, x: Any, alpha_bar: Any, alpha_bar_next: Any) -> Any:
        """Where the probability-flow ODE, the limit of DDIM with many steps, takes x: it keeps the z-score."""
        (mean, variance), (mean_next, variance_next) = self.marginal(alpha_bar), self.marginal(alpha_bar_next)
        return mean_next + (variance_next / variance) ** 0.5 * (x - mean)

    def sampler_moments(self, table: SamplerTable) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance [S] of a pixel after each step, started at N(0, 1), by the sampler's linear recursion.

        The denoiser is linear in x, so a sampler's pixels stay Gaussian.
        """
        mean, variance, moments = 0.0, 1.0, []
        for alpha_bar, a, b, c in zip(table.alpha_bar, table.of_x0, table.of_eps, table.noise, strict=True):
            level_mean, level_variance = self.marginal(alpha_bar)
            # x̂0 = mean + x0_slope (x - level_mean),    ε̂ = eps_slope (x - level_mean)
            x0_slope = alpha_bar**0.5 * self.deviation**2 / level_variance
            eps_slope = (1 - alpha_bar) ** 0.5 / level_variance
            slope = a * x0_slope + b * eps_slope
            mean = a * self.mean + slope * (mean - level_mean)
            variance = slope**2 * variance + c**2
            moments.append((mean, variance))
        means, variances = np.transpose(moments)
        return means, variances


class GaussianMixture(NamedTuple):
    """Images N(means[k], deviation² I) with probability weights[k]; means [k, h, w, c]."""

    weights: Any
    means: Any
    deviation: float

    def _component_logits(self, x: jax.Array, alpha_bar: Any) -> jax.Array:
        variance = alpha_bar * self.deviation**2 + 1 - alpha_bar
        offsets = x[:, None] - alpha_bar**0.5 * jnp.asarray(self.means, x.dtype)
        return jnp.log(jnp.asarray(self.weights, x.dtype)) - jnp.sum(offsets**2, (2, 3, 4)) / (2 * variance)

    def log_density(self, x: jax.Array, alpha_bar: Any) -> jax.Array:
        """Log density of noisy images [n] at a noise level, up to a constant."""
        return jax.nn.logsumexp(self._component_logits(x, alpha_bar), axis=1)

    def predict(self, x: jax.Array, row: Question) -> Prediction:
        """E[x_0 | x] and E[eps | x]: each component's, weighted by how probable x makes it."""
        alpha_bar = row.alpha_bar
        responsibility = jax.nn.softmax(self._component_logits(x, alpha_bar), axis=1)
        variance = alpha_bar * self.deviation**2 + 1 - alpha_bar
        expected_mean = jnp.einsum("nk,khwc->nhwc", responsibility, jnp.asarray(self.means, x.dtype))
        eps = (1 - alpha_bar) ** 0.5 * (x - alpha_bar**0.5 * expected_mean) / variance
        return Prediction(x0=(x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5, eps=eps)


class Mixture1D(NamedTuple):
    """Images whose pixels are independent draws from a mixture of N(means[k], deviation²)."""

    weights: Any
    means: Any
    deviation: float

    def predict(self, x: Any, row: Any, xp: Any = jnp) -> Prediction:
        """E[x_0 | x] and E[eps | x] of each pixel; in NumPy with ``xp=np``."""
        weights, means = (xp.asarray(values, x.dtype) for values in (self.weights, self.means))
        variance = row.alpha_bar * self.deviation**2 + 1 - row.alpha_bar
        logits = xp.log(weights) - (x[..., None] - row.alpha_bar**0.5 * means) ** 2 / (2 * variance)
        responsibility = xp.exp(logits - logits.max(-1, keepdims=True))
        expected_mean = (responsibility * means).sum(-1) / responsibility.sum(-1)
        eps = (1 - row.alpha_bar) ** 0.5 * (x - row.alpha_bar**0.5 * expected_mean) / variance
        return Prediction(x0=(x - (1 - row.alpha_bar) ** 0.5 * eps) / row.alpha_bar**0.5, eps=eps)

    def flow(self, x: np.ndarray, alpha_bar: float, alpha_bar_next: float) -> np.ndarray:
        """Where the probability-flow ODE takes x, by numerical integration with relative errors of about 1e-12.

        In y = x / sqrt(alpha_bar) and sigma = sqrt(1 / alpha_bar - 1) it is dy = eps dsigma (DDIM, eq. 14); here over
        log sigma.
        """

        def slope(log_sigma: float, y: np.ndarray) -> np.ndarray:
            sigma = np.exp(log_sigma)
            row = SimpleNamespace(alpha_bar=1 / (1 + sigma**2))
            return sigma * self.predict(y * row.alpha_bar**0.5, row, np).eps

        begin, end = (np.log(1 / value - 1) / 2 for value in (alpha_bar, alpha_bar_next))
        y = np.ravel(x) / alpha_bar**0.5
        result = solve_ivp(slope, (begin, end), y, method="DOP853", rtol=1e-12, atol=1e-13)
        return result.y[:, -1].reshape(x.shape) * alpha_bar_next**0.5
