"""DDPM++ and NCSN++: their published sizes, their filters and their promises. What they compute, tests/parity knows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ddim_jax.config import Config, ConfigError, DataConfig, DiffusionConfig, ModelConfig, TrainConfig, check
from ddim_jax.data.batches import Batch
from ddim_jax.models import build_model, parameter_count
from ddim_jax.models.song_unet import SongUNet, doubled, halved
from ddim_jax.training.state import init_state, make_optimizer
from ddim_jax.training.step import make_train_step

NCSNPP = dict(embedding="fourier", encoder="residual", resample_filter=(1, 3, 3, 1))
SMALL = dict(
    out_channels=3, channels=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,), num_classes=3,
    initialization="torch", dropout=0.5, augmentation_inputs=9, **NCSNPP,
)  # fmt: skip
TIME = jnp.array([0.0, 3.5, -1.0, 2.0])
LABEL = jnp.array([0, 3, 2, 1])
KEYS = jax.random.split(jax.random.key(5), 4)


def images():
    """Not square, so that height and width cannot be confused unseen."""
    return jax.random.normal(jax.random.key(1), (4, 8, 12, 3))


@pytest.fixture(scope="module")
def variables():
    return jax.jit(SongUNet(**SMALL).init)(jax.random.key(0), images(), TIME)


@functools.partial(jax.jit, static_argnums=0)
def apply_model(model, variables, *inputs):
    return model.apply(variables, *inputs)


def apply(variables, *inputs, **changes):
    return apply_model(SongUNet(**{**SMALL, **changes}), variables, *inputs)


def relative_error(actual, expected):
    expected = np.asarray(expected, np.float64)
    return np.max(np.abs(np.asarray(actual, np.float64) - expected)) / np.max(np.abs(expected))


# --- published sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "count"),
    [
        # EDM's on CIFAR-10, told of augmentations, and of ten classes.
        (dict(multipliers=(2, 2, 2), augmentation_inputs=9), 55_733_891),
        (dict(multipliers=(2, 2, 2), augmentation_inputs=9, num_classes=10), 55_733_891 + 11 * 128),
        # NCSN++ has twice the width of what tells the noise level, and two convolutions that bring in the image.
        (
            dict(multipliers=(2, 2, 2), augmentation_inputs=9, **NCSNPP),
            55_733_891 + 128 * 512 + 9 * 128 + (9 * 3 * 256 + 256) + (9 * 256 * 256 + 256),
        ),
    ],
)
def test_published_parameter_counts(model, count):
    config = Config(
        data=DataConfig(image_size=32), model=ModelConfig(name="song_unet", num_blocks=4, dropout=0.13, **model)
    )
    check(config)
    shapes = jax.eval_shape(build_model(config).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))
    assert parameter_count(shapes["params"]) == count


def test_build_model_takes_every_key():
    model = ModelConfig(
        name="song_unet", channels=64, multipliers=(1, 3), num_blocks=3, attention_resolutions=(4,), dropout=0.25,
        num_groups=16, num_classes=7, init="torch", dtype="bfloat16", remat=True, null_label=False, norm_eps=1e-5,
        head_channels=32, augmentation_inputs=5, **NCSNPP,
    )  # fmt: skip
    expected = SongUNet(
        1, 64, (1, 3), 3, (4,), 0.25, 16, 7, "torch", jnp.dtype("bfloat16"), True, 0, False, 1e-5, 32, "fourier",
        "residual", (1, 3, 3, 1), 5,
    )  # fmt: skip
    assert build_model(Config(data=DataConfig(channels=1), model=model)) == expected


@pytest.mark.parametrize("model", [{}, dict(embedding="positional", encoder="standard", resample_filter=(1, 1))])
def test_network_in_few_passes_computes_the_same(model):
    x = images()
    given = jax.jit(SongUNet(**{**SMALL, **model}).init)(jax.random.key(0), x, TIME)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(few_passes, given):
        network = SongUNet(**{**SMALL, **model}, few_passes=few_passes)
        value, pull_back = jax.vjp(lambda given: network.apply(given, x, TIME, dropout_keys=KEYS), given)
        return value, pull_back(jnp.cos(value))[0]

    (value, gradients), (wanted, expected) = value_and_gradients(True, given), value_and_gradients(False, given)
    assert relative_error(value, wanted) < 1e-5
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    for leaf, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(leaf - other)) < 1e-5 * largest


# --- filters ---------------------------------------------------------------------------------------


def test_boxes_are_means_and_repetition():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(halved(x, (1, 1)), x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4)), atol=1e-6)
    np.testing.assert_array_equal(doubled(x, (1, 1)), x.repeat(2, axis=1).repeat(2, axis=2))


@pytest.mark.parametrize("weights", [(1, 1), (1, 3, 3, 1), (1, 4, 7, 7, 4, 1)])
def test_doubling_is_halving_transposed(weights):
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    _, transposed = jax.vjp(lambda y: halved(y, weights), jnp.zeros((2, 8, 12, 3)))
    np.testing.assert_allclose(doubled(x, weights), 4 * transposed(jnp.asarray(x))[0], atol=1e-6)


@pytest.mark.parametrize("change", [halved, doubled])
def test_filters_leave_constants_alone_but_for_the_border(change):
    changed = change(jnp.full((1, 8, 8, 1), 3.0, jnp.bfloat16), (1, 3, 3, 1))
    assert changed.dtype == jnp.bfloat16
    assert np.all(np.asarray(changed, np.float32)[:, 1:-1, 1:-1] == 3)


# --- promises --------------------------------------------------------------------------------------


def test_an_example_depends_on_nothing_but_itself(variables):
    augmentation = jax.random.normal(jax.random.key(2), (4, 9))
    inputs = (images(), TIME, LABEL, KEYS, augmentation)
    whole = apply(variables, *inputs)
    order = jnp.array([2, 0, 3, 1])
    assert relative_error(apply(variables, *(each[order] for each in inputs)), whole[order]) < 1e-5
    assert relative_error(apply(variables, *(each[1:2] for each in inputs)), whole[1:2]) < 1e-5
    assert relative_error(apply(variables, images(), TIME, LABEL, KEYS[order], augmentation), whole) > 1e-3
    assert relative_error(apply(variables, images(), TIME, LABEL, KEYS), whole) > 1e-3


def test_what_is_not_given_means_none(variables):
    plain = apply(variables, images(), TIME)
    given = apply(variables, images(), TIME, jnp.full(4, 3), None, jnp.zeros((4, 9)))
    np.testing.assert_array_equal(plain, given)
    np.testing.assert_array_equal(plain, apply(variables, images(), TIME, None, KEYS, dropout=0.0))


def test_remat_changes_nothing(variables):
    def gradient(remat):
        def loss(params):
            out = SongUNet(**SMALL, remat=remat).apply({**variables, "params": params}, images(), TIME, LABEL, KEYS)
            return jnp.mean(out**2)

        return jax.jit(jax.grad(loss))(variables["params"])

    plain, remat = gradient(False), gradient(True)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), remat, plain)


def test_bfloat16_is_close_and_keeps_float32_parameters(variables):
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    full = apply(variables, images(), TIME, LABEL)
    half = apply(variables, images(), TIME, LABEL, dtype=jnp.bfloat16)
    assert half.dtype == jnp.float32
    assert 1e-4 < relative_error(half, full) < 5e-2


def test_a_fresh_network_returns_almost_zero_and_draws_attention_small():
    model = SongUNet(**{**SMALL, "initialization": "ddpm", "channels": 32})
    fresh = jax.jit(model.init)(jax.random.key(0), images(), TIME)
    assert np.max(np.abs(apply_model(model, fresh, images(), TIME))) < 1e-4
    kernels = traverse_util.flatten_dict(fresh["params"], sep="/")
    for name, variance in (("query", 0.1 / 64), ("proj_out", 1e-10 / 64)):
        kernel = np.asarray(kernels[f"mid_attention/{name}/kernel"])
        assert abs(kernel.var() / variance - 1) < 0.1, name
    frequencies = fresh["batch_stats"]["time_fourier"]["frequencies"]
    assert frequencies.shape == (32,)
    assert 8 < np.std(frequencies) < 24


def test_training_leaves_the_frequencies_alone():
    config = Config(
        data=DataConfig(image_size=8, channels=1),
        model=ModelConfig(
            name="song_unet", channels=8, multipliers=(1,), num_blocks=1, attention_resolutions=(), **NCSNPP
        ),
        diffusion=DiffusionConfig(num_levels=10),
        train=TrainConfig(batch_size=4, optimizer="adamw", weight_decay=0.5, learning_rate=0.1),
    )
    model, optimizer = build_model(config), make_optimizer(config.train, 10)
    fresh = init_state(config, model, optimizer)
    image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    batch = Batch(image, np.zeros(4, np.int32), np.arange(4, dtype=np.int32))
    state, metrics = jax.jit(make_train_step(config, model, optimizer))(fresh, batch)
    assert np.isfinite(metrics.loss)
    np.testing.assert_array_equal(*(each.batch_stats["time_fourier"]["frequencies"] for each in (state, fresh)))
    # The average of equal numbers is rounded.
    average = state.ema_batch_stats["time_fourier"]["frequencies"]
    np.testing.assert_allclose(average, fresh.batch_stats["time_fourier"]["frequencies"], rtol=3e-7)
    assert np.any(state.params["conv_in"]["kernel"] != fresh.params["conv_in"]["kernel"])


# --- mistakes --------------------------------------------------------------------------------------


def test_what_a_network_does_not_take_is_refused(variables):
    with pytest.raises(ValueError, match="divisible by 2"):
        apply(variables, images()[:, :7], TIME)
    with pytest.raises(ValueError, match="a label is needed"):
        apply(variables, images(), TIME, null_label=False)
    plain = {**SMALL, "num_classes": 0, "augmentation_inputs": 0}
    with pytest.raises(ValueError, match="unconditional"):
        apply(variables, images(), TIME, LABEL, **plain)
    with pytest.raises(ValueError, match="takes none"):
        apply(variables, images(), TIME, None, None, jnp.zeros((4, 9)), **plain)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (dict(name="unet", encoder="residual"), "model.encoder=residual: model.name=unet knows only 'standard'"),
        (dict(channels=30), "model.channels=30: model.name=song_unet needs a multiple of 4"),
        (dict(channels=100), "a norm of 100 channels would have 25 groups|a norm of 200 channels would have 32 groups"),
        (dict(resample_filter=(1, 2, 1)), "model.resample_filter=.1, 2, 1.: needs an even number"),
        (dict(time_cos_first=True), "model.time_cos_first=True: model.name=song_unet knows only False"),
    ],
)
def test_configs_that_make_no_network(model, message):
    with pytest.raises(ConfigError, match=message):
        check(Config(model=ModelConfig(**{"name": "song_unet", **model})))
