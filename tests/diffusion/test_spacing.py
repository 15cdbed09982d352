import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.diffusion.spacing import SPACINGS, explicit_levels, level_pairs, sampling_levels
from ddim_jax.errors import UserError


def published(spacing, num_levels, steps):
    """The DDIM paper's code in plain Python: time inputs, ascending."""
    if spacing == "uniform":
        return list(range(0, num_levels, num_levels // steps))
    return [int(t) for t in np.linspace(0, np.sqrt(num_levels * 0.8), steps) ** 2]


# All but the one that a workdir knows.
KNOWN = [name for name in SPACINGS if name != "tuned"]


@st.composite
def levels_and_steps(draw):
    num_levels = draw(st.integers(1, 2000))
    return num_levels, draw(st.integers(1, num_levels))


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(levels_and_steps(), st.sampled_from(["uniform", "quad"]))
@hypothesis.example((1000, 1000), "quad")
@hypothesis.example((2, 2), "quad")
@hypothesis.example((1, 1), "uniform")
def test_exactly_the_steps_asked_for_and_the_published_ones_where_possible(case, spacing):
    num_levels, steps = case
    levels = sampling_levels(spacing, num_levels, steps)
    assert levels.dtype == np.int64
    assert len(levels) == steps
    assert np.all(np.diff(levels) < 0)
    assert levels[-1] >= 1
    assert levels[0] <= num_levels
    as_published = published(spacing, num_levels, steps)
    if steps > 1 and len(set(as_published)) == len(as_published) == steps:
        assert list(levels[::-1] - 1) == as_published


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(levels_and_steps(), st.sampled_from(["uniform", "quad"]))
def test_published_lists_are_published_to_the_letter(case, spacing):
    num_levels, steps = case
    levels = sampling_levels(f"{spacing}_published", num_levels, steps)
    assert list(levels[::-1] - 1) == published(spacing, num_levels, steps)


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(levels_and_steps())
def test_quad_moves_coinciding_levels_up_and_leaves_the_others(case):
    num_levels, steps = case
    hypothesis.assume(steps > 1)
    times = sampling_levels("quad", num_levels, steps)[::-1] - 1
    wanted = published("quad", num_levels, steps)
    free = -1
    for time, want in zip(times, wanted, strict=True):
        assert time == max(want, free + 1)
        free = time


@pytest.mark.parametrize(
    ("steps", "evaluations"),
    [
        *((7, 8), (15, 16), (30, 31), (60, 63), (64, 67), (75, 77), (128, 143)),
        *((300, 334), (400, 500), (600, 1000), (750, 1000)),
        *((10, 10), (20, 20), (50, 50), (100, 100), (1000, 1000)),
    ],
)
def test_counts_of_the_published_uniform_lists(steps, evaluations):
    assert len(sampling_levels("uniform_published", 1000, steps)) == evaluations
    assert len(sampling_levels("uniform", 1000, steps)) == steps


@pytest.mark.parametrize(
    ("steps", "duplicates"), [(10, 0), (20, 0), (50, 1), (100, 4), (200, 13), (500, 78), (1000, 312)]
)
def test_duplicates_of_the_published_quad_lists(steps, duplicates):
    levels = sampling_levels("quad_published", 1000, steps)
    assert len(levels) == steps
    assert steps - len(np.unique(levels)) == duplicates
    assert levels[0] == 801


def test_paper_examples():
    assert list(sampling_levels("uniform", 1000, 10)) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert list(sampling_levels("quad", 1000, 10)) == [801, 633, 484, 356, 247, 159, 89, 40, 10, 1]


@pytest.mark.parametrize("spacing", ["uniform", "quad"])
def test_as_many_steps_as_levels_visit_them_all(spacing):
    np.testing.assert_array_equal(sampling_levels(spacing, 1000, 1000), np.arange(1000, 0, -1))


def test_one_step_starts_at_the_top_except_as_published():
    assert list(sampling_levels("uniform", 1000, 1)) == [1000]
    assert list(sampling_levels("quad", 1000, 1)) == [801]
    assert list(sampling_levels("uniform_published", 1000, 1)) == [1]
    assert list(sampling_levels("quad_published", 1000, 1)) == [1]


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 30, 600, 999, 1000])
def test_diffusers_definitions(steps):
    trailing = np.round(np.arange(1000, 0, -1000 / steps)).astype(int) - 1
    assert list(sampling_levels("trailing", 1000, steps) - 1) == list(trailing[:steps])
    linspace = np.linspace(0, 999, steps).round()[::-1] if steps > 1 else [999]
    assert list(sampling_levels("linspace", 1000, steps) - 1) == list(linspace)


def space_timesteps(num_timesteps, section_count):
    """improved-diffusion's and guided-diffusion's rule for one section, in plain Python."""
    frac_stride = (num_timesteps - 1) / (section_count - 1)
    cur_idx, taken = 0.0, []
    for _ in range(section_count):
        taken.append(round(cur_idx))
        cur_idx += frac_stride
    return taken


def test_openai_respacing():
    differ = 0
    for steps in range(2, 1001):
        times = space_timesteps(1000, steps)
        assert list(sampling_levels("openai", 1000, steps)[::-1] - 1) == times
        differ += times != list(sampling_levels("linspace", 1000, steps)[::-1] - 1)
    assert differ == 278
    assert 499 in sampling_levels("openai", 1000, 21) - 1
    assert 500 in sampling_levels("linspace", 1000, 21) - 1


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(levels_and_steps(), st.sampled_from(KNOWN), st.sampled_from(["linear", "cosine", "jsd"]))
@hypothesis.example((1000, 1000), "karras", "linear")
@hypothesis.example((1000, 999), "logsnr", "cosine")
@hypothesis.example((1, 1), "logsnr", "jsd")
@hypothesis.example((2, 2), "karras", "jsd")
def test_all_spacings_give_levels_that_fall_and_all_but_the_published_ones_exactly_as_many_as_asked(
    case, spacing, name
):
    num_levels, steps = case
    hypothesis.assume(not (name == "jsd" and num_levels == 1 and spacing in ("logsnr", "karras")))
    levels = sampling_levels(spacing, num_levels, steps, make_schedule(name, num_levels))
    assert levels.dtype == np.int64
    assert levels[0] <= num_levels
    assert levels[-1] >= 1
    if not spacing.endswith("published"):
        assert len(levels) == steps
        assert np.all(np.diff(levels) < 0)


def test_spacings_by_noise_are_even_where_there_are_levels_enough():
    schedule = make_schedule("linear", 100_000, 1e-6, 2e-4)
    log_snr = schedule.log_snr[sampling_levels("logsnr", 100_000, 12, schedule)]
    np.testing.assert_allclose(log_snr, np.linspace(schedule.log_snr[-1], schedule.log_snr[1], 12), atol=0.05)
    root = np.exp(-schedule.log_snr[sampling_levels("karras", 100_000, 12, schedule)] / 14)
    expected = np.exp(-np.array([schedule.log_snr[-1], schedule.log_snr[1]]) / 14)
    np.testing.assert_allclose(root, np.linspace(*expected, 12), atol=1e-3)


def test_spacings_by_noise_span_all_levels_and_karras_has_more_noise():
    linear = make_schedule("linear")
    logsnr, karras = (sampling_levels(spacing, 1000, 10, linear) for spacing in ("logsnr", "karras"))
    for levels in (logsnr, karras):
        assert (levels[0], levels[-1]) == (1000, 1)
    for spacing in ("logsnr", "karras"):
        assert list(sampling_levels(spacing, 1000, 1, linear)) == [1000]
    assert np.all(karras[1:-1] > logsnr[1:-1])


def test_pure_noise_is_no_place_to_begin_even_steps_of_log_snr():
    levels = sampling_levels("logsnr", 1000, 10, make_schedule("jsd"))
    assert levels[0] == 999


@pytest.mark.parametrize("spacing", ["logsnr", "karras"])
def test_spacings_by_noise_need_the_schedule(spacing):
    with pytest.raises(ValueError, match="needs the schedule"):
        sampling_levels(spacing, 1000, 10)


def test_explicit_levels():
    assert explicit_levels([1000, 500, 1], 1000).dtype == np.int64
    assert list(explicit_levels((7,), 1000)) == [7]


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(st.lists(st.integers(-2, 12), max_size=5))
@hypothesis.example([5.5])
def test_wrong_lists_of_levels_are_explained_in_one_line(levels):
    right = levels and all(1 <= level <= 10 for level in levels) and sorted(set(levels), reverse=True) == levels
    if right and levels != [5.5]:
        assert list(explicit_levels(levels, 10)) == levels
    else:
        with pytest.raises(UserError, match="level") as caught:
            explicit_levels(levels, 10)
        assert "\n" not in str(caught.value)


def test_pairs_chain_down_to_the_clean_image():
    np.testing.assert_array_equal(level_pairs(np.array([901, 601, 601, 1])), [[901, 601], [601, 601], [601, 1], [1, 0]])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("uniform", 1000, 0), "from 1 to 1000"),
        (("quad_published", 1000, 1001), "from 1 to 1000"),
        (("linear", 1000, 10), "choose from: uniform"),
    ],
)
def test_mistakes_are_explained_in_one_line(arguments, word):
    with pytest.raises(UserError, match=word) as caught:
        sampling_levels(*arguments)
    assert "\n" not in str(caught.value)
