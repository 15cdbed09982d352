"""The one form that all samplers have, run by one loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.diffusion import make_encoder, make_predict, make_sampler, make_schedule
from ddim_jax.diffusion.spacing import level_pairs, sampling_levels
from ddim_jax.diffusion.table import SamplerTable, as_data, sample, sample_keeping, sample_padded
from ddim_jax.names import SamplerName, choices
from ddim_jax.random_streams import image_keys, normal_each

LINEAR = make_schedule("linear")
LEVELS = sampling_levels("uniform", 1000, 6)
SHAPE = (4, 4, 2)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def toy_network(x, time):
    return 0.8 * x - 0.3 * x**3 / (1 + x**2) + time.reshape(-1, 1, 1, 1) / 4000


def network_with_variance(x, time):
    return jnp.concatenate([toy_network(x, time), jnp.sin(3 * x)], axis=-1)


PREDICT = make_predict(network_with_variance, "eps", "keep_eps", learn_variance=True)


def start(num=2):
    keys = image_keys(3, jnp.arange(num))
    return keys, normal_each(keys, 0, SHAPE, jnp.float64)


def plain_loop(x, table, keys):
    """The loop of the docstring, with every term, in Python."""
    memory = []
    for r in range(len(table.time)):
        row = SamplerTable(*(column[r] for column in table))
        prediction = PREDICT(x, row)
        x0, eps = prediction
        memory = [row.of_x * x + row.of_x0 * x0 + row.of_eps * eps, *memory][: table.weights.shape[1]]
        x = x + sum(c * q for c, q in zip(row.correction, memory, strict=False))
        x = row.keep * x + sum(w * q for w, q in zip(row.weights, memory, strict=False))
        z = normal_each(keys, r + 1, SHAPE, jnp.float64)
        for most in row.log_range:
            z = z * jnp.exp(prediction.fraction * most / 2)
        x = x + row.noise * z
    return x


# Of a sampler that has coefficients for its steps: keep and three weights each.
FITTED = np.random.default_rng(0).uniform(-0.5, 0.8, 4 * len(LEVELS))
TABLES = {
    name: make_sampler(name, LINEAR, level_pairs(LEVELS), coefficients=FITTED).table for name in choices(SamplerName)
}
TABLES["ddim, eta 0.7"] = make_sampler("ddim", LINEAR, level_pairs(LEVELS), 0.7).table
TABLES["encoding"] = make_encoder("ddim", LINEAR, LEVELS).table
TABLES["encoding by heun"] = make_encoder("heun", LINEAR, LEVELS).table
TABLES["implicit encoding"] = make_encoder("ddim", LINEAR, LEVELS, iterations=3).table


@pytest.mark.parametrize("name", TABLES)
def test_the_loop_is_the_one_of_its_docstring(name):
    keys, x = start()
    np.testing.assert_allclose(sample(PREDICT, x, TABLES[name], keys), plain_loop(x, TABLES[name], keys), rtol=1e-11)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_may_be_data_of_a_compiled_program(name):
    keys, x = start()
    result = jax.jit(lambda table: sample(PREDICT, x, table, keys))(TABLES[name])
    np.testing.assert_allclose(result, sample(PREDICT, x, TABLES[name], keys), rtol=1e-11)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_may_be_padded_data(name):
    """In float32, which padded tables are for."""
    keys = image_keys(3, jnp.arange(2))
    x = normal_each(keys, 0, SHAPE, jnp.float32)
    expected, states = jax.jit(lambda x: sample_keeping(PREDICT, x, TABLES[name], [0, 4], keys))(x)
    result, kept = jax.jit(lambda x, data: sample_padded(PREDICT, x, data, keys))(x, as_data(TABLES[name], [0, 4]))
    np.testing.assert_allclose(result, expected, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), kept, states)


def test_one_program_serves_any_steps_eta_and_spacing():
    keys = image_keys(3, jnp.arange(2))
    x = normal_each(keys, 0, SHAPE, jnp.float32)
    traced = []
    run = jax.jit(lambda x, data: traced.append(1) or sample_padded(PREDICT, x, data, keys)[0])
    for spacing, steps, eta in (("uniform", 6, 0.0), ("uniform", 50, 0.0), ("quad", 7, 1.0), ("uniform", 1000, 0.3)):
        table = make_sampler("ddim", LINEAR, level_pairs(sampling_levels(spacing, 1000, steps)), eta).table
        np.testing.assert_allclose(run(x, as_data(table)), sample(PREDICT, x, table, keys), atol=2e-5)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ddim", 1), ("ddim, eta 0.7", 1), ("ddpm_large", 1), ("encoding", 1), ("heun", 2), ("ab4", 4), ("unipc3", 4)],
)
def test_no_more_is_carried_than_is_remembered(name, expected, monkeypatch):
    keys, x = start()
    scan, carried = jax.lax.scan, []

    def watched(body, carry, *rows, **options):
        carried.append(sum(leaf.shape == x.shape for leaf in jax.tree.leaves(carry)))
        return scan(body, carry, *rows, **options)

    monkeypatch.setattr(jax.lax, "scan", watched)
    jax.make_jaxpr(lambda x: sample(PREDICT, x, TABLES[name], keys))(x)
    assert carried == [expected]


def test_the_table_says_of_itself_what_it_is():
    first_order = {name for name, table in TABLES.items() if table.is_first_order}
    ddpm = {"ddpm_small", "ddpm_large", "ddpm_learned", "euler_ancestral", "consistency"}
    assert first_order == {"ddim", "ddim, eta 0.7", "edm_euler", "encoding"} | ddpm
    stochastic = {name for name, table in TABLES.items() if table.is_stochastic}
    assert stochastic == {"ddim, eta 0.7", "dpmpp_2m_sde", "dpmpp_3m_sde"} | ddpm
