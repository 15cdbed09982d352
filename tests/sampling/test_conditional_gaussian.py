"""Conditional Gaussians, x | c ~ N(A c + b, s^2), whose denoiser is known: networks, guidance, autoguidance."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.conditions import DataCondition
from ddim_jax.config import Config, DataConfig, DiffusionConfig, ModelConfig, SampleConfig, TrainConfig
from ddim_jax.configured import Guide, build_predict, build_sampler, build_schedule
from ddim_jax.data.batches import Batch
from ddim_jax.sampling.conditions import network_condition
from ddim_jax.training.state import init_state, make_optimizer
from ddim_jax.training.step import make_train_step

MATRIX, OFFSET, DEVIATION = np.array([0.8, -0.5]), 0.3, 0.5

# Values in -4 ... 4 are the network's floats as they are.
CONFIG = Config(
    data=DataConfig(image_size=1, channels=1, dtype="float32", range=(-4.0, 4.0), std=(0.125,), vector="c"),
    model=ModelConfig(
        channels=16, num_groups=8, multipliers=(1,), attention_resolutions=(), condition=("vector",), vector_size=2
    ),
    train=TrainConfig(condition_dropout=(0.1,)),
    sample=SampleConfig(sampler="dpmpp_2m", steps=200, spacing="trailing", clip="none"),
)
SCHEDULE = build_schedule(CONFIG)
VECTOR = np.float32([[1.0, 0.0], [0.0, 1.0], [-1.0, 2.0]])


def gain(alpha_bar, deviation):
    """The noise is this much of what an image is off its mean."""
    return np.sqrt(1 - alpha_bar) / (alpha_bar * deviation**2 + 1 - alpha_bar)


class Exact:
    """The denoiser of N(mean(told), deviation^2), called as networks are."""

    def __init__(self, deviation=DEVIATION, none_deviation=DEVIATION):
        self._deviations = none_deviation, deviation

    def apply(self, variables, x, time, label=None, *, vector):
        del variables, label
        alpha_bar = jnp.asarray(SCHEDULE.alpha_bar)[time.astype(int) + 1]
        mean = vector[:, :2] @ MATRIX + OFFSET
        deviation = jnp.where(vector[:, 2] > 0, self._deviations[1], self._deviations[0])
        slope = jnp.sqrt(1 - alpha_bar) / (alpha_bar * deviation**2 + 1 - alpha_bar)
        return (slope * (x[:, 0, 0, 0] - jnp.sqrt(alpha_bar) * mean)).reshape(x.shape)


def drawn(scale, model, guide=None, x=None):
    """The images of noise x under the exact network."""
    with jax.enable_x64(True):
        config = dataclasses.replace(CONFIG, sample=dataclasses.replace(CONFIG.sample, guidance_scale=scale))
        given = DataCondition(np.zeros(len(VECTOR), np.int32), jnp.asarray(VECTOR, jnp.float64))
        predict = build_predict(config, model, {}, network_condition(config, given), "none", guide)
        x = jnp.zeros((len(VECTOR), 1, 1, 1)) if x is None else jnp.asarray(x)
        return np.asarray(build_sampler(config).run(predict, x))[:, 0, 0, 0]


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_moves_the_mean_by_its_scale(scale):
    """Noise of zero becomes the mean. "None" is N(b, s^2) here, so that guidance w has the mean b + w A c."""
    np.testing.assert_allclose(drawn(scale, Exact()), OFFSET + scale * (VECTOR @ MATRIX), atol=0.02)


def contraction(deviation):
    """Of distances to the mean, in units of the clean image, from the noisiest level to none."""
    alpha_bar = SCHEDULE.alpha_bar[-1]
    return deviation / np.sqrt(deviation**2 + (1 - alpha_bar) / alpha_bar) / np.sqrt(alpha_bar)


@pytest.mark.parametrize("by_guide", [False, True])
def test_guidance_sharpens_by_the_known_amount(by_guide):
    """A guide of the same mean and a larger deviation.

    For y = x / sqrt(alpha_bar) and noise to signal sigma the flow is dy / dsigma = sigma (w y / (s^2 + sigma^2) +
    (1 - w) y / (g^2 + sigma^2)), of which y = (s^2 + sigma^2)^(w/2) (g^2 + sigma^2)^((1 - w)/2) is the solution.
    """
    scale, other = 2.0, 0.9
    with_mean = np.linspace(0.5, 1, 3).reshape(3, 1, 1, 1)
    if by_guide:
        model, guide = Exact(), Guide(Exact(deviation=other), {})
    else:
        model, guide = Exact(none_deviation=other), None
    far, near = (drawn(scale, model, guide, start) for start in (with_mean, np.zeros((3, 1, 1, 1))))
    expected = with_mean[:, 0, 0, 0] * contraction(DEVIATION) ** scale * contraction(other) ** (1 - scale)
    np.testing.assert_allclose(far - near, expected, rtol=0.01)
    assert np.all(far - near < 0.9 * contraction(DEVIATION) * with_mean[:, 0, 0, 0])


def test_a_guide_of_the_same_network_changes_nothing_and_scale_1_does_not_ask_it():
    np.testing.assert_allclose(drawn(3.0, Exact(), Guide(Exact(), {})), drawn(1.0, Exact()), atol=1e-9)

    class Silent:
        def apply(self, *_, **__):
            raise AssertionError("asked")

    drawn(1.0, Exact(), Guide(Silent(), {}))


def test_what_training_never_dropped_stays_in_guidance():
    """Two kinds, of which the class alone was dropped: the vector is told in both predictions."""
    seen = []

    class Watching(Exact):
        def apply(self, variables, x, time, label=None, *, vector):
            seen.append((label, vector))
            return super().apply(variables, x, time, label, vector=vector)

    model = dataclasses.replace(CONFIG.model, num_classes=4, condition=("class", "vector"))
    train = TrainConfig(condition_dropout=(0.1, 0.0))
    sample = dataclasses.replace(CONFIG.sample, guidance_scale=2.0)
    config = dataclasses.replace(CONFIG, model=model, train=train, sample=sample)
    given = DataCondition(np.int32([0, 1, 2]), VECTOR)
    predict = build_predict(config, Watching(), {}, network_condition(config, given), "none")
    row = build_sampler(config).table
    predict(jnp.zeros((3, 1, 1, 1)), jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], row))
    label, vector = seen[0]
    np.testing.assert_array_equal(label, [0, 1, 2, 4, 4, 4])
    np.testing.assert_array_equal(vector[:3], vector[3:])


class Linear(nn.Module):
    """A network that is linear in image and vector, with coefficients of its own at each level."""

    levels: int

    @nn.compact
    def __call__(self, x, time, label=None, dropout_keys=None, vector=None):
        del label, dropout_keys
        told = jnp.zeros((len(x), 3)) if vector is None else vector
        inputs = jnp.concatenate([x[:, 0, 0], told], axis=1)
        table = self.param("table", nn.initializers.zeros, (self.levels, 4))
        return jnp.sum(inputs * table[time.astype(int)], axis=1).reshape(x.shape)


def test_a_linear_network_learns_the_exact_denoiser():
    levels, size = 5, 2000
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(CONFIG.model, dropout=0.0),
        diffusion=DiffusionConfig(num_levels=levels, beta_start=0.1, beta_end=0.4),
        train=TrainConfig(batch_size=size, steps=400, learning_rate=0.05, lr_schedule="cosine", ema_decay=0.9),
    )
    model, optimizer = Linear(levels), make_optimizer(config.train, config.train.steps)
    step = jax.jit(make_train_step(config, model, optimizer))
    state = init_state(config, model, optimizer)
    random = np.random.default_rng(0)
    for _ in range(config.train.steps):
        vector = random.normal(size=(size, 2))
        image = vector @ MATRIX + OFFSET + DEVIATION * random.normal(size=size)
        batch = Batch(
            image.reshape(size, 1, 1, 1).astype(np.float32),
            np.zeros(size, np.int32),
            np.arange(size, dtype=np.int32),
            vector.astype(np.float32),
        )
        state, _ = step(state, batch)
    alpha_bar = build_schedule(config).alpha_bar[1:]
    slope = gain(alpha_bar, DEVIATION)
    to_mean = -slope * np.sqrt(alpha_bar)
    expected = np.stack([slope, *(to_mean * value for value in (*MATRIX, OFFSET))], axis=1)
    np.testing.assert_allclose(state.params["table"], expected, atol=0.02)
