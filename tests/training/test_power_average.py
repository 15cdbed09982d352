"""Power-function averages: the profiles against integrals, and reconstruction against averages that were tracked."""

import doctest
import math

import jax
import numpy as np
import pytest
import scipy.integrate

from ddim_jax.training import power_average
from ddim_jax.training.power_average import (
    LARGEST_WIDTH,
    Profile,
    combine,
    gamma_of,
    inner_products,
    newest_share,
    width_of,
)

TRACKED = (0.05, 0.10)


def test_the_docstrings_are_true():
    assert doctest.testmod(power_average).failed == 0


@pytest.mark.parametrize("width", [0.001, 0.01, 0.05, 0.1, 0.2, 0.28])
def test_a_width_is_the_deviation_of_its_profile(width):
    gamma = gamma_of(width)
    # Moments of (gamma + 1) tau^gamma on (0, 1).
    first, second = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert math.sqrt(second - first**2) == pytest.approx(width, rel=1e-6)
    assert width_of(gamma) == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize("width", [0, -0.1, LARGEST_WIDTH, 0.5, math.nan])
def test_other_widths_are_none(width):
    with pytest.raises(ValueError, match="must lie between"):
        gamma_of(width)


def test_inner_products_are_integrals():
    profiles = [Profile(70, 0.3), Profile(100, 6.9), Profile(100, 17.0), Profile(260, 6.9)]

    def density(profile, tau):
        step, gamma = profile
        return (gamma + 1) * tau**gamma / step ** (gamma + 1)

    found = inner_products(profiles, profiles)
    for i, one in enumerate(profiles):
        for j, other in enumerate(profiles):
            end = min(one.step, other.step)
            product = scipy.integrate.quad(lambda tau, a=one, b=other: density(a, tau) * density(b, tau), 0, end)[0]
            assert found[i, j] == pytest.approx(product, rel=1e-9)


@pytest.mark.parametrize("width", [0.02, 0.1, 0.28])
def test_what_is_tracked_has_the_profile(width):
    """A step's share in the end is the integral of the profile over it."""
    steps, gamma = 50, gamma_of(width)
    average = np.zeros(steps)
    for step in range(1, steps + 1):
        average += newest_share(gamma, np.float64(step)) * (np.eye(steps)[step - 1] - average)
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)
    np.testing.assert_allclose(average, np.diff(edges), rtol=1e-12, atol=1e-15)


def test_the_share_keeps_its_digits_in_float32():
    for step in (1, 2, 1000, 10**6, 10**7):
        exact = newest_share(6.94, np.float64(step))
        assert float(jax.jit(lambda t: newest_share(6.94, t))(np.float32(step))) == pytest.approx(exact, rel=1e-6)


def tracked(trajectory, widths, dtype=np.float64):
    """Averages after each step, [steps, widths, ...]."""
    averages = np.zeros((len(widths), *trajectory.shape[1:]), dtype)
    found = []
    for step, theta in enumerate(trajectory, start=1):
        for average, width in zip(averages, widths, strict=True):
            average += dtype(newest_share(gamma_of(width), np.float64(step))) * (theta.astype(dtype) - average)
        found.append(averages.copy())
    return np.stack(found)


def trajectories(steps):
    """Weights that settle, swing, walk at random, and jump about a value, beside one that never moves."""
    rng = np.random.default_rng(0)
    time = np.arange(1, steps + 1) / steps
    return np.stack(
        [
            1 - np.exp(-5 * time),
            np.sin(12 * time),
            np.cumsum(rng.standard_normal(steps)) / math.sqrt(steps),
            3 + rng.standard_normal(steps),
            np.full(steps, -2.0),
        ],
        axis=1,
    )


@pytest.mark.parametrize("every", [20, 50, 200])
@pytest.mark.parametrize("width", [0.03, 0.07, 0.15, 0.25])
def test_a_reconstructed_average_is_as_near_as_predicted(every, width):
    steps = 1000
    theta = trajectories(steps)
    averages = tracked(theta, TRACKED)
    exact = tracked(theta, (width,))[-1, 0]
    moments = range(every, steps + 1, every)
    wanted = Profile(steps, gamma_of(width))
    found = combine([Profile(step, gamma_of(each)) for step in moments for each in TRACKED], wanted)
    made = found.weights @ averages[[step - 1 for step in moments]].reshape(-1, theta.shape[1])
    size = found.error * math.sqrt(inner_products([wanted], [wanted])[0, 0])
    bound = size * np.sqrt(((theta - theta.mean(axis=0)) ** 2).sum(axis=0))
    assert np.all(np.abs(made - exact) <= bound + 1e-9)
    assert made[-1] == pytest.approx(-2, abs=1e-9)
    if every == 20:
        np.testing.assert_allclose(made, exact, atol=0.02)


def test_more_snapshots_are_nearer():
    """The error falls with about the third power of the interval, where it is small."""
    wanted = Profile(4800, gamma_of(0.07))

    def error(every):
        steps = range(every, 4801, every)
        return combine([Profile(step, gamma_of(width)) for step in steps for width in TRACKED], wanted).error

    errors = [error(every) for every in (400, 200, 100)]
    assert errors[0] < 0.02
    assert 3 < errors[0] / errors[1] < 10 and 3 < errors[1] / errors[2] < 10


def test_weights_are_those_of_the_paper_where_snapshots_abound():
    """Karras et al. 2024, algorithm 2, without a condition on the sum."""
    profiles = [Profile(step, gamma_of(width)) for step in range(100, 3201, 100) for width in TRACKED]
    wanted = Profile(3200, gamma_of(0.12))
    t, gamma = np.asarray(profiles, np.float64).T

    def product(t_a, gamma_a, t_b, gamma_b):
        ratio = (t_a / t_b) ** np.where(t_a < t_b, gamma_b, -gamma_a)
        return (gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))

    a = product(t[:, None], gamma[:, None], t[None], gamma[None])
    expected = np.linalg.solve(a, product(t, gamma, *wanted))
    np.testing.assert_allclose(combine(profiles, wanted).weights, expected, atol=1e-3)
    assert expected.sum() == pytest.approx(1, abs=1e-4)


def test_float32_averages_come_out_to_rounding():
    theta = trajectories(1000)
    averages = tracked(theta, TRACKED, np.float32)
    moments = range(20, 1001, 20)
    found = combine([Profile(s, gamma_of(w)) for s in moments for w in TRACKED], Profile(1000, gamma_of(0.08)))
    in_float64 = tracked(theta, TRACKED)
    pick = [step - 1 for step in moments]
    made, exact = (found.weights @ each[pick].reshape(-1, 5) for each in (averages, in_float64))
    np.testing.assert_allclose(made, exact, atol=3e-6)


def test_a_snapshot_of_the_width_is_taken_as_it_is():
    profiles = [Profile(step, gamma_of(width)) for step in (10, 20) for width in TRACKED]
    found = combine(profiles, profiles[3])
    assert found.weights.tolist() == [0, 0, 0, 1] and found.error == 0
