import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.errors import UserError

BETAS = ("linear", "quad", "const", "jsd", "sigmoid", "cosine")
NAMES = (*BETAS, "offset_cosine")


def plain_betas(name, T, start, end):
    """The definitions, one value at a time."""
    betas = []
    for t in range(1, T + 1):
        u = (t - 1) / (T - 1)
        if name == "linear":
            betas.append(start + u * (end - start))
        elif name == "quad":
            betas.append((start**0.5 + u * (end**0.5 - start**0.5)) ** 2)
        elif name == "const":
            betas.append(end)
        elif name == "jsd":
            betas.append(1 / (T - t + 1))
        elif name == "sigmoid":
            betas.append(start + (end - start) / (1 + np.exp(-(-6 + 12 * u))))
        else:

            def f(v):
                return np.cos((v + 0.008) / 1.008 * np.pi / 2) ** 2

            betas.append(min(1 - f(t / T) / f((t - 1) / T), 0.999))
    return betas


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("num_levels", [10, 1000])
def test_schedules_follow_their_definitions(name, num_levels):
    schedule = make_schedule(name, num_levels, 1e-4, 0.02)
    expected = [1.0]
    for beta in plain_betas(name, num_levels, 1e-4, 0.02):
        expected.append(expected[-1] * (1 - beta))
    assert schedule.alpha_bar.dtype == np.float64
    assert schedule.num_levels == num_levels
    np.testing.assert_allclose(schedule.alpha_bar, expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_levels", [1, 2, 1000])
def test_level_0_is_clean_and_noise_only_grows(name, num_levels):
    alpha_bar = make_schedule(name, num_levels).alpha_bar
    assert alpha_bar[0] == 1
    assert np.all(np.diff(alpha_bar) < 0)
    assert np.all(alpha_bar >= 0)


def test_published_end_of_the_linear_schedule():
    assert make_schedule("linear").alpha_bar[-1] == pytest.approx(4.0358e-5, rel=1e-5)


def test_jsd_falls_in_a_straight_line_to_exactly_zero():
    alpha_bar = make_schedule("jsd", 1000).alpha_bar
    assert alpha_bar[-1] == 0
    np.testing.assert_allclose(alpha_bar, 1 - np.arange(1001) / 1000, atol=1e-13)


def test_cosine_is_the_squared_cosine_until_beta_is_cut():
    alpha_bar = make_schedule("cosine", 1000).alpha_bar
    angle = (np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2
    np.testing.assert_allclose(alpha_bar[:-1], (np.cos(angle) ** 2 / np.cos(angle[0]) ** 2)[:-1], rtol=1e-9)
    assert alpha_bar[-1] == pytest.approx(alpha_bar[-2] * 0.001)


@pytest.mark.parametrize("num_levels", [1, 10, 1000])
def test_offset_cosine_is_keras_schedule_at_equal_times(num_levels):
    schedule = make_schedule("offset_cosine", num_levels)
    time = np.arange(1, num_levels + 1) / num_levels
    angle = np.arccos(0.95) + time * (np.arccos(0.02) - np.arccos(0.95))
    np.testing.assert_allclose(schedule.alpha_bar, [1, *np.cos(angle) ** 2], rtol=1e-12)
    assert schedule.alpha_bar[-1] == pytest.approx(0.02**2)
    levels = np.arange(1, num_levels + 1)
    np.testing.assert_allclose(schedule.time_input(levels), np.sin(angle) ** 2, rtol=1e-12)
    told = jax.jit(schedule.time_input)(jnp.asarray(levels))
    np.testing.assert_allclose(told, np.sin(angle) ** 2, rtol=1e-6)


def test_beta_and_log_snr_restate_alpha_bar():
    schedule = make_schedule("linear", 1000, 1e-4, 0.02)
    np.testing.assert_allclose(schedule.beta, np.linspace(1e-4, 0.02, 1000), rtol=1e-10)
    snr = np.exp(schedule.log_snr[1:])
    np.testing.assert_allclose(snr / (1 + snr), schedule.alpha_bar[1:], rtol=1e-12)
    assert schedule.log_snr[0] == np.inf
    assert make_schedule("jsd").log_snr[-1] == -np.inf


def test_networks_are_told_the_level_less_one():
    schedule = make_schedule("linear")
    np.testing.assert_array_equal(schedule.time_input(np.array([1, 1000])), [0, 999])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("liner",), "choose from: linear"),
        (("linear", 0), "at least 1"),
        (("linear", 10, 0.0, 0.02), "between 0 and 1"),
        (("quad", 10, -0.1, 0.02), "between 0 and 1"),
        (("const", 10, 1e-4, 1.0), "between 0 and 1"),
    ],
)
def test_mistakes_are_explained_in_one_line(arguments, word):
    with pytest.raises(UserError, match=word) as caught:
        make_schedule(*arguments)
    assert "\n" not in str(caught.value)


# --- between the levels, and no signal at the end -----------------------------------------------------


def test_continuous_time_agrees_with_the_levels_and_fills_the_gaps():
    schedule = make_schedule("offset_cosine", 50)
    levels = np.arange(1, 51)
    whole, told = schedule.at(jnp.asarray(levels))
    real, real_told = schedule.at(jnp.asarray(levels, jnp.float32))
    np.testing.assert_allclose(whole, schedule.alpha_bar[1:], rtol=1e-6)
    np.testing.assert_allclose(real, schedule.alpha_bar[1:], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(told, schedule.times[1:], rtol=1e-6)
    np.testing.assert_allclose(real_told, 1 - real, rtol=1e-6)
    between = float(schedule.at(jnp.array([10.5]))[0][0])
    assert schedule.alpha_bar[11] < between < schedule.alpha_bar[10]
    # Keras: signal rate cos(angle), the angle linear in time from acos(0.95) to acos(0.02)
    assert between**0.5 == pytest.approx(np.cos(np.arccos(0.95) * 0.79 + np.arccos(0.02) * 0.21), rel=1e-5)


def test_only_the_continuous_schedule_has_levels_between():
    with pytest.raises(UserError, match="no levels between its levels; choose from: offset_cosine"):
        make_schedule("linear").at(jnp.array([1.5]))


@pytest.mark.parametrize("name", ["linear", "quad", "cosine", "sigmoid", "offset_cosine"])
def test_zero_terminal_snr_moves_the_end_and_keeps_the_beginning(name):
    plain, moved = make_schedule(name), make_schedule(name, zero_terminal_snr=True)
    assert moved.alpha_bar[-1] == 0
    assert moved.alpha_bar[1] == pytest.approx(plain.alpha_bar[1], rel=1e-12)
    assert np.all(np.diff(moved.alpha_bar) < 0)
    # sqrt(alpha_bar) is shifted and scaled: its differences keep their proportions
    before, after = np.diff(np.sqrt(plain.alpha_bar[1:])), np.diff(np.sqrt(moved.alpha_bar[1:]))
    np.testing.assert_allclose(after / after.sum(), before / before.sum(), rtol=1e-6, atol=1e-12)
    if plain.tells_variance:
        np.testing.assert_allclose(moved.times, 1 - moved.alpha_bar)


@pytest.mark.parametrize(
    ("name", "largest"), [("linear", 1e-6), ("quad", 1e-6), ("sigmoid", 1e-6), ("jsd", 6e-6), ("const", 2e-5)]
)
def test_how_far_the_float32_alpha_bar_of_the_published_code_is_from_ours(name, largest):
    """As the docstring says; "jsd" but for its last level, which is 0."""
    betas = {
        "linear": np.linspace(1e-4, 0.02, 1000),
        "quad": np.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2,
        "sigmoid": 1 / (np.exp(-np.linspace(-6, 6, 1000)) + 1) * (0.02 - 1e-4) + 1e-4,
        "jsd": 1 / np.linspace(1000, 1, 1000),
        "const": np.full(1000, 0.02),
    }[name][:999]
    published = np.cumprod(np.float32(1) - betas.astype(np.float32), dtype=np.float32)
    error = np.abs(published / make_schedule(name, 1000).alpha_bar[1:1000] - 1).max()
    assert largest / 2 < error < largest
