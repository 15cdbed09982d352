"""The residual U-Net against a float64 transcription of Keras' example, and the state of its batch norms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ddim_jax import parallel
from ddim_jax.config import Config, DataConfig, DiffusionConfig, ModelConfig, TrainConfig
from ddim_jax.data.batches import Batch
from ddim_jax.models import build_model, parameter_count
from ddim_jax.models.residual_unet import BatchNorm, ResidualUNet, variance_embedding
from ddim_jax.training.state import init_state, make_optimizer
from ddim_jax.training.step import make_train_step

VARIANTS = {
    "bk": {"structure": "keras", "norm": "batch"},
    "bbno": {"structure": "ddim", "norm": "batch"},
    "bgano": {"structure": "ddim", "norm": "group"},
}
SMALL = dict(out_channels=3, channels=4, multipliers=(1, 2), num_blocks=1)
VARIANCE = jnp.array([0.1, 0.5, 0.999])

CONFIG = Config(
    data=DataConfig(image_size=8, channels=1, mean=(0.3,), std=(0.4,)),
    model=ModelConfig(
        name="residual_unet", channels=8, num_groups=4, multipliers=(1, 1), num_blocks=1, attention_resolutions=(),
        dropout=0.0,
    ),
    diffusion=DiffusionConfig(schedule="offset_cosine", num_levels=100, time_sampling="continuous", loss="mae"),
    train=TrainConfig(batch_size=16, steps=10, learning_rate=1e-3, ema_decay=0.9),
)  # fmt: skip


def images(n=3):
    """Not square, so that height and width cannot be confused unseen."""
    return jax.random.normal(jax.random.key(1), (n, 4, 6, 3))


def random_variables(model):
    """Random values for everything, the running variances around 1."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images(), VARIANCE)
    rng = np.random.default_rng(0)
    flat = traverse_util.flatten_dict(shapes, sep="/")
    for name, leaf in flat.items():
        base = float(name.endswith(("scale", "variance")))
        spread = np.prod(leaf.shape[:-1]) ** -0.5 if name.endswith("kernel") else 0.2
        flat[name] = jnp.asarray(base + spread * rng.uniform(-1, 1, leaf.shape), jnp.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def train_once(config, devices=1):
    """Three steps on one batch; returns the state and the losses."""
    mean_over_devices = parallel.mean_over_devices if devices > 1 else lambda tree: tree
    model = build_model(config, mean_over_devices)
    optimizer = make_optimizer(config.train, 10)
    state = init_state(config, model, optimizer)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)
    batch = Batch(pixels, np.zeros(16, np.int32), np.arange(16, dtype=np.int32))
    step = make_train_step(config, model, optimizer, mean_over_devices)
    if devices == 1:
        step = jax.jit(step)
    else:
        used = parallel.training_devices(16)
        assert len(used) == devices
        step, state = parallel.step_over_batch(step, used), parallel.replicate(state, used)
        batch = parallel.split_batch(batch, devices)
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    return parallel.host_copy(state), losses


# --- the equations, in float64 NumPy ---------------------------------------------------------------


def swish(x):
    return x / (1 + np.exp(-x))


def conv(x, p):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    return p["bias"] + sum(
        padded[:, i : i + height, j : j + width] @ p["kernel"][i, j] for i in range(3) for j in range(3)
    )


def keras_block(x, p, stats):
    normed = (x - stats["norm"]["mean"]) / np.sqrt(stats["norm"]["variance"] + 1e-3)
    h = conv(swish(conv(normed, p["conv_0"])), p["conv_1"])
    return h + (x @ p["shortcut"]["kernel"] + p["shortcut"]["bias"] if "shortcut" in p else x)


def doubled(x, axis):
    """Bilinear, pixel centres at half: each new pixel is 3/4 the nearer and 1/4 the farther old one."""
    first, last = np.take(x, [0], axis), np.take(x, [-1], axis)
    before = np.concatenate([first, np.delete(x, -1, axis)], axis)
    after = np.concatenate([np.delete(x, 0, axis), last], axis)
    both = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return both.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def keras_reference(variables, x, variance):
    """The network of ``SMALL``, layer after layer."""
    p, stats = variables["params"], variables["batch_stats"]
    phase = 2 * np.pi * variance[:, None] * np.array([1.0, 1000.0])
    embedding = np.concatenate([np.sin(phase), np.cos(phase)], axis=1)[:, None, None, :]
    stem = x @ p["conv_in"]["kernel"] + p["conv_in"]["bias"]
    x = np.concatenate([stem, np.broadcast_to(embedding, stem.shape)], axis=-1)
    skip = keras_block(x, p["down_0_block_0"], stats["down_0_block_0"])
    n, height, width, c = skip.shape
    pooled = skip.reshape(n, height // 2, 2, width // 2, 2, c).mean((2, 4))
    h = keras_block(pooled, p["mid_block_0"], stats["mid_block_0"])
    h = np.concatenate([doubled(doubled(h, 1), 2), skip], axis=-1)
    h = keras_block(h, p["up_0_block_0"], stats["up_0_block_0"])
    return h @ p["conv_out"]["kernel"] + p["conv_out"]["bias"]


def test_the_keras_network_equals_its_equations():
    model = ResidualUNet(**SMALL)
    variables = random_variables(model)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    expected = keras_reference(exact, np.asarray(images(), np.float64), np.asarray(VARIANCE, np.float64))
    actual = np.asarray(model.apply(variables, images(), VARIANCE))
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()


def keras_parameters(widths, depth, image_channels):
    """Counted layer by layer as the example builds them; batch norms have none to learn."""
    total, width = 0, widths[0]

    def dense(inputs, outputs, pixels=1):
        nonlocal total
        total += (inputs * pixels + 1) * outputs

    def block(inputs, outputs):
        dense(inputs, outputs, 9)
        dense(outputs, outputs, 9)
        if inputs != outputs:
            dense(inputs, outputs)

    dense(image_channels, width)
    inputs, skips = 2 * width, []
    for width in widths[:-1]:
        for _ in range(depth):
            block(inputs, width)
            skips.append(inputs := width)
    for _ in range(depth):
        block(inputs, widths[-1])
        inputs = widths[-1]
    for width in reversed(widths[:-1]):
        for _ in range(depth):
            block(inputs + skips.pop(), width)
            inputs = width
    dense(inputs, image_channels)
    return total


def test_the_network_of_the_example_has_its_size():
    model = ResidualUNet(out_channels=3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)), jnp.zeros(1))
    assert parameter_count(shapes["params"]) == keras_parameters((32, 64, 96, 128), 2, 3)


def test_the_variance_embedding_is_that_of_the_example():
    embedding = variance_embedding(jnp.array([0.0, 0.25]), 32)
    frequencies = np.exp(np.linspace(np.log(1.0), np.log(1000.0), 16))
    np.testing.assert_allclose(embedding[0], np.concatenate([np.zeros(16), np.ones(16)]), atol=1e-6)
    np.testing.assert_allclose(embedding[1, :16], np.sin(2 * np.pi * frequencies * 0.25), atol=2e-4)


def test_a_fresh_network_predicts_nothing():
    for variant in VARIANTS.values():
        model = ResidualUNet(**SMALL, num_groups=2, **variant)
        variables = model.init(jax.random.key(0), images(), VARIANCE)
        assert not np.any(model.apply(variables, images(), VARIANCE))


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_does_not_depend_on_its_batch_when_sampling(variant):
    model = ResidualUNet(**SMALL, num_groups=2, **VARIANTS[variant])
    variables = random_variables(model)
    together = model.apply(variables, images(), VARIANCE)
    alone = model.apply(variables, images()[1:2], VARIANCE[1:2])
    np.testing.assert_allclose(together[1], alone[0], atol=1e-5)


def test_the_level_reaches_every_variant():
    for variant in VARIANTS.values():
        model = ResidualUNet(**SMALL, num_groups=2, **variant)
        variables = random_variables(model)
        one, other = (model.apply(variables, images(), jnp.full(3, v)) for v in (0.3, 0.6))
        assert float(jnp.abs(one - other).mean()) > 1e-3


def test_labels_dropout_and_odd_sizes_are_refused():
    model = ResidualUNet(**SMALL)
    variables = random_variables(model)
    with pytest.raises(ValueError, match="neither labels nor dropout"):
        model.apply(variables, images(), VARIANCE, jnp.zeros(3, int))
    with pytest.raises(ValueError, match="divisible by 2"):
        model.apply(variables, jnp.zeros((1, 5, 4, 3)), VARIANCE[:1])


# --- batch norms -----------------------------------------------------------------------------------


def test_batch_norm_uses_the_batch_where_it_may_move_the_averages_and_them_elsewhere():
    norm = BatchNorm()
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (8, 4, 4, 2))
    variables = norm.init(jax.random.key(0), x)
    assert not np.any(variables["batch_stats"]["mean"])  # initialising does not count as a batch
    y, changed = norm.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, rtol=1e-3)
    np.testing.assert_allclose(changed["batch_stats"]["mean"], 0.01 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["variance"], 0.99 + 0.01 * x.var((0, 1, 2)), rtol=1e-5)
    moved = norm.apply({"batch_stats": {"mean": jnp.array([3.0, 3.0]), "variance": jnp.array([4.0, 4.0])}}, x)
    np.testing.assert_allclose(moved, (x - 3) / np.sqrt(4 + 1e-3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["bk", "bbno", pytest.param("bgano", marks=pytest.mark.slow)])
def test_eight_devices_train_like_one(variant):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **VARIANTS[variant]))
    (one, one_losses), (eight, eight_losses) = train_once(config), train_once(config, devices=8)
    np.testing.assert_allclose(one_losses, eight_losses, rtol=1e-4)
    statistics = jax.tree.leaves(one.batch_stats)
    assert bool(statistics) == (VARIANTS[variant]["norm"] == "batch")
    for a, b in zip(statistics, jax.tree.leaves(eight.batch_stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_averaged_weights_carry_averaged_statistics():
    state, _ = train_once(dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, ema_decay=0.0)))
    # With decay 0 the average is the newest value, of parameters and of statistics alike.
    for new, average in ((state.params, state.ema_params), (state.batch_stats, state.ema_batch_stats)):
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(average), strict=True):
            np.testing.assert_array_equal(a, b)
    state, _ = train_once(CONFIG)
    distance = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.batch_stats, state.ema_batch_stats)
    start = jax.tree.map(lambda a: np.abs(a - a.round()).max(), state.ema_batch_stats)  # they start at 0 and 1
    assert max(jax.tree.leaves(distance)) > 0
    assert max(jax.tree.leaves(start)) > 0


def test_remat_changes_nothing():
    plain, plain_losses = train_once(CONFIG)
    saving, saving_losses = train_once(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, remat=True)))
    np.testing.assert_allclose(plain_losses, saving_losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(plain.batch_stats), jax.tree.leaves(saving.batch_stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
