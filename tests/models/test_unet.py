"""The U-Net against a float64 transcription of its equations, its published sizes and its promises."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ddim_jax.config import Config, DataConfig, ModelConfig
from ddim_jax.errors import UserError
from ddim_jax.jobs.describe import flops
from ddim_jax.models import NETWORKS, build_model, parameter_count, with_forward_mode
from ddim_jax.models.dropout import dropout_each, kept_each
from ddim_jax.models.flash_attention import flash_attention_width
from ddim_jax.models.group_norm import group_norm, norm_in_few_passes
from ddim_jax.models.initialization import INITIALIZATIONS, initializers
from ddim_jax.models.unet import ResidualBlock, UNet, time_embedding
from ddim_jax.names import Initialization, NetworkName, choices

# Every kind of layer, on two levels: attention below, none above; shortcuts and none; labels.
SMALL = dict(
    out_channels=3,
    channels=32,
    multipliers=(1, 2),
    num_blocks=1,
    attention_resolutions=(4,),
    num_classes=3,
    initialization="torch",  # no layer is zero, no bias either
)
TIME = jnp.array([0.0, 3.5, 500.0, 999.0])
# One level, for what takes long to compile.
FLAT = {**SMALL, "multipliers": (1,), "attention_resolutions": ()}
LABEL = jnp.array([0, 3, 2, 1])
KEYS = jax.random.split(jax.random.key(5), 4)


def small_images():
    """Not square, so that height and width cannot be confused unseen."""
    return jax.random.normal(jax.random.key(1), (4, 8, 12, 3))


@pytest.fixture(scope="module")
def params():
    """Random values for every parameter, those of the norms around the 1 and 0 that they start at."""
    return random_params(UNet(**SMALL))


@pytest.fixture(scope="module")
def flat_params():
    return random_params(UNet(**FLAT))


def random_params(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), small_images(), TIME)["params"]
    rng = np.random.default_rng(0)
    flat = traverse_util.flatten_dict(shapes, sep="/")
    for name, shape in flat.items():
        spread = 0.3 if "norm" in name else np.prod(shape.shape[:-1]) ** -0.5 if name.endswith("kernel") else 0.1
        flat[name] = jnp.asarray(name.endswith("scale") + spread * rng.standard_normal(shape.shape), jnp.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


@functools.partial(jax.jit, static_argnums=0)
def apply_model(model, params, *args):
    return model.apply({"params": params}, *args)


def apply(params, x, time, label=None, dropout_keys=None, **changes):
    return apply_model(UNet(**{**SMALL, **changes}), params, x, time, label, dropout_keys)


def apply_flat(params, x, time, label=None, dropout_keys=None, dropout=0.5):
    return apply_model(UNet(**FLAT, dropout=dropout), params, x, time, label, dropout_keys)


def relative_error(actual, expected):
    expected = np.asarray(expected, np.float64)
    return np.max(np.abs(np.asarray(actual, np.float64) - expected)) / np.max(np.abs(expected))


# --- the equations, in float64 NumPy ---------------------------------------------------------------


def swish(x):
    return x / (1 + np.exp(-x))


def norm_reference(x, p, groups=32):
    grouped = x.reshape(*x.shape[:3], groups, -1)
    mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
    variance = grouped.var(axis=(1, 2, 4), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape) * p["scale"] + p["bias"]


def dense_reference(x, p):
    return x @ p["kernel"] + p["bias"]


def conv_reference(x, p, before=1, stride=1):
    """3x3 convolution with ``before`` zeros above and to the left, one below and to the right."""
    padded = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    height, width = (padded.shape[1] - 3) // stride + 1, (padded.shape[2] - 3) // stride + 1
    out = np.zeros((x.shape[0], height, width, p["kernel"].shape[-1])) + p["bias"]
    for i in range(3):
        for j in range(3):
            out += padded[:, i : i + stride * height : stride, j : j + stride * width : stride] @ p["kernel"][i, j]
    return out


def block_reference(x, emb, p, resample=lambda x: x):
    h = conv_reference(resample(swish(norm_reference(x, p["norm_0"]))), p["conv_0"])
    told = dense_reference(swish(emb), p["time_dense"])[:, None, None]
    if told.shape[-1] == 2 * h.shape[-1]:
        scale, shift = told[..., : h.shape[-1]], told[..., h.shape[-1] :]
        h = norm_reference(h, p["norm_1"]) * (1 + scale) + shift
    else:
        h = norm_reference(h + told, p["norm_1"])
    h = conv_reference(swish(h), p["conv_1"])
    x = resample(x)
    return h + (dense_reference(x, p["shortcut"]) if "shortcut" in p else x)


def repeat_reference(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def halve_reference(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def attention_reference(x, p, heads=1):
    n, height, width, c = x.shape
    tokens = norm_reference(x, p["norm"]).reshape(n, height * width, c)
    q, k, v = (np.split(dense_reference(tokens, p[name]), heads, axis=-1) for name in ("query", "key", "value"))
    attended = []
    for head in range(heads):
        weights = np.exp(q[head] @ k[head].transpose(0, 2, 1) / np.sqrt(c // heads))
        weights /= weights.sum(axis=-1, keepdims=True)
        attended.append(weights @ v[head])
    return x + dense_reference(np.concatenate(attended, axis=-1), p["proj_out"]).reshape(x.shape)


def time_embedding_reference(time, width):
    half = width // 2
    phase = np.asarray(time, np.float64)[:, None] * 10000.0 ** (-np.arange(half) / (half - 1))
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=1)


def unet_reference(p, x, time, label, heads=1):
    """The network of ``SMALL``, layer after layer; what resamples is what the parameters are of."""

    def resampled(x, name, convolve, resample):
        return block_reference(x, emb, p[name], resample) if "conv_0" in p[name] else convolve(x, p[name])

    emb = dense_reference(time_embedding_reference(time, len(p["time_dense_0"]["kernel"])), p["time_dense_0"])
    emb = dense_reference(swish(emb), p["time_dense_1"]) + p["label_embed"]["embedding"][label]

    skip_0 = conv_reference(x, p["conv_in"])
    skip_1 = block_reference(skip_0, emb, p["down_0_block_0"])
    by_stride = functools.partial(conv_reference, before=0, stride=2)
    skip_2 = resampled(skip_1, "down_0_downsample", by_stride, halve_reference)
    skip_3 = attention_reference(block_reference(skip_2, emb, p["down_1_block_0"]), p["down_1_attention_0"], heads)

    h = block_reference(skip_3, emb, p["mid_block_0"])
    h = block_reference(attention_reference(h, p["mid_attention"], heads), emb, p["mid_block_1"])

    h = block_reference(np.concatenate([h, skip_3], axis=-1), emb, p["up_1_block_0"])
    h = attention_reference(h, p["up_1_attention_0"], heads)
    h = block_reference(np.concatenate([h, skip_2], axis=-1), emb, p["up_1_block_1"])
    h = attention_reference(h, p["up_1_attention_1"], heads)
    h = resampled(h, "up_1_upsample", lambda x, p: conv_reference(repeat_reference(x), p), repeat_reference)
    h = block_reference(np.concatenate([h, skip_1], axis=-1), emb, p["up_0_block_0"])
    h = block_reference(np.concatenate([h, skip_0], axis=-1), emb, p["up_0_block_1"])
    return conv_reference(swish(norm_reference(h, p["norm_out"])), p["conv_out"])


def test_network_equals_its_equations(params):
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    expected = unet_reference(exact, np.asarray(small_images(), np.float64), TIME, np.asarray(LABEL))
    actual = apply(params, small_images(), TIME, LABEL)
    assert actual.dtype == jnp.float32
    assert relative_error(actual, expected) < 2e-5


def test_openais_network_equals_its_equations():
    changes = {
        "scale_shift_norm": True,
        "resample_blocks": True,
        "num_heads": 4,
        "time_channels": 48,
        "out_channels": 6,
    }
    params = random_params(UNet(**{**SMALL, **changes}))
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    expected = unet_reference(exact, np.asarray(small_images(), np.float64), TIME / 4, np.asarray(LABEL), heads=4)
    actual = apply(params, small_images(), TIME, LABEL, **changes, time_scale=0.25)
    assert relative_error(actual, expected) < 2e-5
    rounded = apply(params, small_images(), TIME, LABEL, **changes, time_scale=0.25, dtype=jnp.bfloat16, remat=True)
    assert 1e-4 < relative_error(rounded, expected) < 0.1


# --- published sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "multipliers", "count", "gflop"),
    [
        ("CIFAR-10", 32, (1, 2, 2, 2), 35_746_307, 12.444),
        ("CelebA", 64, (1, 2, 2, 2, 4), 78_700_803, 48.101),
        ("LSUN", 256, (1, 1, 2, 2, 4, 4), 113_673_219, 497.03),
    ],
)
def test_published_parameter_counts_and_their_operations(name, size, multipliers, count, gflop):
    config = Config(data=DataConfig(image_size=size), model=ModelConfig(multipliers=multipliers))
    model = build_model(config)
    image, moment = jnp.zeros((1, size, size, 3)), jnp.zeros(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, moment)
    assert parameter_count(shapes) == count
    assert flops(jax.make_jaxpr(model.apply)(shapes, image, moment)) == pytest.approx(gflop * 1e9, rel=1e-4)
    attention_levels = {key.split("_")[1] for key in shapes["params"] if "_attention_" in key}
    assert attention_levels == {str((size // 16).bit_length() - 1)}


ADM_BLOCKS = {"resample_blocks": True, "attention_resolutions": (32, 16, 8), "head_channels": 64}
ADM = {"resample_blocks": True, "attention_resolutions": (32, 16, 8), "channels": 256, "num_blocks": 2}
ADM_CLASSES = {"num_classes": 1000, "null_label": False}


# Of OpenAI's code (improved- and guided-diffusion), all with learned variance. The papers round: 52.5 M (Nichol and
# Dhariwal 2021), 296 M, 422 M, 554 M and 559 M (Dhariwal and Nichol 2021, table 4 and its appendix).
@pytest.mark.parametrize(
    ("size", "changes", "count"),
    [
        (32, {"multipliers": (1, 2, 2, 2), "attention_resolutions": (16, 8), "num_heads": 4}, 52_546_438),
        (64, {**ADM_BLOCKS, "channels": 192, "multipliers": (1, 2, 3, 4), **ADM_CLASSES}, 295_904_454),
        (128, {**ADM, "num_heads": 4, "multipliers": (1, 1, 2, 3, 4), **ADM_CLASSES}, 421_529_606),
        (256, {**ADM, "head_channels": 64, "multipliers": (1, 1, 2, 2, 4, 4)}, 552_814_086),
        (256, {**ADM, "head_channels": 64, "multipliers": (1, 1, 2, 2, 4, 4), **ADM_CLASSES}, 553_838_086),
        (
            512,
            {**ADM, "head_channels": 64, "channels": 128, "time_channels": 256, "multipliers": (1, 2, 2, 4, 4, 8, 8)}
            | ADM_CLASSES,
            558_997_638,
        ),
    ],
)
def test_published_parameter_counts_of_openai(size, changes, count):
    fields = {"channels": 128, "num_blocks": 3, "scale_shift_norm": True, "learn_variance": True} | changes
    config = Config(data=DataConfig(image_size=size), model=ModelConfig(**fields))
    model = build_model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)), jnp.zeros(1))
    assert parameter_count(shapes) == count


def test_build_model_takes_every_key():
    model_config = ModelConfig(
        channels=64, multipliers=(1, 3), num_blocks=3, attention_resolutions=(4,), dropout=0.25, num_groups=16,
        num_classes=7, init="torch", dtype="bfloat16", remat=True,
    )  # fmt: skip
    expected = UNet(1, 64, (1, 3), 3, (4,), 0.25, 16, 7, "torch", jnp.dtype("bfloat16"), True)
    assert build_model(Config(data=DataConfig(channels=1), model=model_config)) == expected


# --- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e3])
def test_group_norm_is_exact_even_at_large_means(mean):
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((2, 16, 16, 64)) + mean).astype(np.float32)
    p = {"scale": rng.standard_normal(64).astype(np.float32), "bias": rng.standard_normal(64).astype(np.float32)}
    expected = norm_reference(x.astype(np.float64), p)
    ours = jax.jit(group_norm)(x, p["scale"], p["bias"])
    # A float32 near 1000 is itself rounded by 3e-5.
    assert relative_error(ours, expected) < 1e-6 + 1e-7 * mean
    if mean <= 1:
        flax = nn.GroupNorm(32, epsilon=1e-6).apply({"params": p}, x)
        assert relative_error(ours, flax) < 2e-6


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_group_norm_and_its_gradients_lose_no_digits(mean):
    """Of what float32 still tells of values of spread 1 around ``mean``."""
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((2, 16, 16, 64)) + mean).astype(np.float32)
    weight = rng.standard_normal(x.shape).astype(np.float32)
    one, zero = np.ones(64, np.float32), np.zeros(64, np.float32)
    value, pull_back = jax.vjp(jax.jit(group_norm), x, one, zero)
    actual = (value, *pull_back(jnp.asarray(weight)))

    def grouped(values):
        return values.astype(np.float64).reshape(2, 16, 16, 32, 2)

    def mean_of(values):
        return values.mean((1, 2, 4), keepdims=True)

    std = np.sqrt(mean_of(np.square(grouped(x) - mean_of(grouped(x)))) + 1e-6)
    normal, pulled = (grouped(x) - mean_of(grouped(x))) / std, grouped(weight)
    of_x = (pulled - mean_of(pulled) - normal * mean_of(pulled * normal)) / std
    of_scale, of_bias = ((pulled * factor).sum((0, 1, 2)).reshape(64) for factor in (normal, 1))
    # At 1e4 the mean itself is known to 5e-4 only.
    tolerance = 3e-6 if mean == 0 else 1e-3
    for ours, exact in zip(actual, (normal.reshape(x.shape), of_x.reshape(x.shape), of_scale, of_bias), strict=True):
        assert relative_error(ours, exact) < tolerance


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("swish", [False, True])
def test_norm_in_few_passes_and_its_gradients_are_those_of_its_parts(swish, offset):
    """Parts that groups do not respect, of an odd height."""
    rng = np.random.default_rng(7)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    parts, keys = (draw(4, 7, 8, 20), draw(4, 7, 8, 44) + 1), jax.random.split(jax.random.key(3), 4)
    added, scale, bias, weight = draw(4, 64) if offset else None, draw(64), draw(64), draw(4, 7, 8, 64)

    def few(parts, added, scale, bias):
        kept = kept_each(weight.shape, keys, 0.3)
        return norm_in_few_passes(32, 1e-6, swish, parts, added, scale, bias, kept)

    def many(parts, added, scale, bias):
        x = jnp.concatenate(parts, axis=-1)
        y = group_norm(x if added is None else x + added[:, None, None], scale, bias)
        return dropout_each(nn.swish(y) if swish else y, keys, 0.3)

    def value_and_gradients(function):
        value, pull_back = jax.vjp(function, parts, added, scale, bias)
        return jax.tree.leaves((value, pull_back(weight)))

    ours, expected = jax.jit(value_and_gradients, static_argnums=0)(few), value_and_gradients(many)
    assert len(ours) == len(expected) == 5 + offset
    for actual, wanted in zip(ours, expected, strict=True):
        assert relative_error(actual, wanted) < 3e-6


def test_network_in_few_passes_computes_the_same(params):
    """In float32, value and gradients with dropout: labels, shortcuts, attention, two levels."""
    x = small_images()
    weight = jax.random.normal(jax.random.key(2), x.shape)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(few_passes, params, x):
        model = UNet(**SMALL, dropout=0.3, few_passes=few_passes)
        value, pull_back = jax.vjp(lambda params, x: model.apply({"params": params}, x, TIME, LABEL, KEYS), params, x)
        return value, *pull_back(weight)

    ours, expected = value_and_gradients(True, params, x), value_and_gradients(False, params, x)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected[1]))
    for actual, wanted in zip(ours[::2], expected[::2], strict=True):
        assert relative_error(actual, wanted) < 1e-5
    for actual, wanted in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(expected[1]), strict=True):
        assert np.max(np.abs(actual - wanted)) < 1e-5 * largest


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_group_norm_of_bfloat16_is_exact_for_what_bfloat16_tells(mean):
    x = jnp.asarray(np.random.default_rng(6).standard_normal((2, 32, 32, 64)) + mean, jnp.bfloat16)
    p = {"scale": np.ones(64), "bias": np.zeros(64)}
    ours = jax.jit(group_norm)(x, p["scale"], p["bias"])
    assert ours.dtype == jnp.float32
    # Its own last bit is 4e-3 of the result at mean 0, 4e-2 at mean 30.
    assert relative_error(ours, norm_reference(np.asarray(x, np.float64), p)) < 1e-4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_group_norm_in_parts_is_that_of_the_whole(dtype):
    x = jax.random.normal(jax.random.key(7), (2, 8, 8, 96), dtype) + 1
    p = {"scale": np.ones(96), "bias": np.zeros(96)}
    parts = jnp.split(x, [40], axis=-1)  # a part may end within a group
    assert relative_error(group_norm(tuple(parts), **p), norm_reference(np.asarray(x, np.float64), p)) < 1e-5


def test_group_norm_of_a_large_image():
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((1, 256, 256, 32)) + 3).astype(np.float32)
    p = {"scale": np.ones(32), "bias": np.zeros(32)}
    assert relative_error(jax.jit(group_norm)(x, p["scale"], p["bias"]), norm_reference(x.astype(np.float64), p)) < 1e-5


def test_group_norm_of_a_constant_image_has_finite_gradients():
    x = jnp.full((1, 4, 4, 32), 7.0)
    value, grad = jax.value_and_grad(lambda x: jnp.sum(group_norm(x, jnp.ones(32), jnp.zeros(32)) ** 2))(x)
    assert value == 0
    assert np.all(np.isfinite(grad))


def test_group_norm_refuses_channels_that_groups_do_not_divide():
    with pytest.raises(ValueError, match="48 channels"):
        group_norm(jnp.zeros((1, 2, 2, 48)), jnp.ones(48), jnp.zeros(48))


def test_time_embedding():
    time = np.array([0.0, 1.0, 17.25, 999.0])
    actual = time_embedding(jnp.asarray(time), 128)
    # At time 999 half a unit in the last place of a float32 frequency is worth up to 1e-4.
    np.testing.assert_allclose(actual, time_embedding_reference(time, 128), atol=2e-4)
    np.testing.assert_array_equal(actual[0], np.repeat([0.0, 1.0], 64))


@pytest.mark.parametrize(
    ("capability", "dtype", "width"),
    [
        ("", "bfloat16", 0),
        ("9.0", "float32", 0),
        ("7.5", "bfloat16", 0),
        ("8.0", "bfloat16", 128),
        ("9.0", "bfloat16", 256),
        ("12.0", "float16", 128),
    ],
)
def test_flash_attention_where_cudnn_has_a_kernel(capability, dtype, width):
    assert flash_attention_width(capability, dtype) == width


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "few_passes"),
    [(None, "bfloat16", 0, False), ("9.0", "bfloat16", 256, True), ("9.0", "float32", 0, False)],
)
def test_forms_for_gpus_are_for_gpus_and_16_bits(capability, dtype, width, few_passes):
    model = build_model(Config(model=ModelConfig(dtype=dtype)), compute_capability=capability)
    assert (model.flash_width, model.few_passes) == (width, few_passes)
    plain = with_forward_mode(model)
    assert (plain.flash_width, plain.few_passes) == (0, False)
    assert plain == build_model(Config(model=ModelConfig(dtype=dtype)), compute_capability="")


# --- initialisation --------------------------------------------------------------------------------


def test_ddpm_initialization_starts_at_zero_output():
    model = UNet(**{**FLAT, "initialization": "ddpm"})
    params = jax.jit(model.init)(jax.random.key(0), small_images(), TIME)["params"]
    assert np.max(np.abs(apply_model(model, params, small_images(), TIME))) < 1e-4

    for name, value in traverse_util.flatten_dict(params, sep="/").items():
        *_, layer, kind = name.split("/")
        if kind == "kernel":
            fan_in, fan_out = np.prod(value.shape[:-1]), np.prod(value.shape[:-2]) * value.shape[-1]
            zero = layer in ("conv_1", "proj_out", "conv_out")
            bound = np.sqrt((1e-10 if zero else 1.0) * 6 / (fan_in + fan_out))
            assert_uniform(value, bound, name)
        elif kind == "bias":
            assert not np.any(value), name
        elif kind == "scale":
            assert np.all(value == 1), name
        else:
            assert name == "label_embed/embedding"
            assert abs(value.std() - 1) < 0.1


def test_torch_initialization_is_pytorchs_default():
    block = ResidualBlock(64, 0.0, 0, initialization="torch")
    params = jax.jit(block.init)(jax.random.key(0), jnp.zeros((1, 2, 2, 32)), jnp.zeros((1, 128)))["params"]
    for layer in ("conv_0", "conv_1", "time_dense", "shortcut"):
        bound = 1 / np.sqrt(np.prod(params[layer]["kernel"].shape[:-1]))
        assert_uniform(params[layer]["kernel"], bound, layer)
        assert_uniform(params[layer]["bias"], bound, layer)
        assert np.max(np.abs(params[layer]["bias"])) > 0.8 * bound


def assert_uniform(values, bound, name):
    values = np.asarray(values) / bound
    assert np.max(np.abs(values)) <= 1 + 1e-6, name
    if values.size > 1000:
        # Five standard errors of the mean and the variance of U(-1, 1), 1/3.
        assert abs(values.mean()) < 5 * np.sqrt(1 / 3 / values.size), name
        assert abs(values.var() - 1 / 3) < 5 * np.sqrt(4 / 45 / values.size), name


def test_unknown_initialization_is_refused():
    with pytest.raises(UserError, match=r"'kaiming' does not exist; choose from: ddpm, torch"):
        initializers("kaiming", 9, zero=False)


def test_every_name_has_its_function():
    assert tuple(INITIALIZATIONS) == choices(Initialization)
    assert tuple(NETWORKS) == choices(NetworkName)


# --- dropout ---------------------------------------------------------------------------------------


def test_dropout_keeps_the_mean_and_the_stated_share():
    x = jnp.ones((4, 64, 64, 8))
    dropped = np.asarray(dropout_each(x, KEYS, 0.1))
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.9], rtol=1e-6)
    assert abs((dropped == 0).mean() - 0.1) < 5 * np.sqrt(0.09 / dropped.size)
    assert all(np.any(dropped[0] != dropped[i]) for i in range(1, 4))


@pytest.mark.parametrize("shape", [(1, 64), (2, 2, 32), (5, 3, 32), (64,)])
def test_dropout_of_any_shape_draws_every_value_anew(shape):
    keys = jax.random.split(jax.random.key(1), 2000)
    kept = np.asarray(dropout_each(jnp.ones((2000, *shape)), keys, 0.5)).reshape(2000, -1) > 0
    share = np.corrcoef(kept, rowvar=False)[~np.eye(kept.shape[1], dtype=bool)]
    # Six standard errors for each of at most 480 x 480 pairs.
    assert np.max(np.abs(share)) < 6 / np.sqrt(2000)
    assert np.max(np.abs(kept.mean(0) - 0.5)) < 6 * 0.5 / np.sqrt(2000)


def test_dropout_in_bfloat16_scales_as_in_float32():
    kept = np.unique(np.asarray(dropout_each(jnp.full((4, 8, 8, 8), 0.9, jnp.bfloat16), KEYS, 0.1), np.float32))
    np.testing.assert_array_equal(kept, [0, np.float32(jnp.bfloat16(np.float32(jnp.bfloat16(0.9)) / 0.9))])


def test_dropout_of_an_example_does_not_depend_on_the_others(flat_params):
    x, order = small_images(), jnp.array([2, 0, 3, 1])
    whole = apply_flat(flat_params, x, TIME, LABEL, KEYS)
    shuffled = apply_flat(flat_params, x[order], TIME[order], LABEL[order], KEYS[order])
    alone = apply_flat(flat_params, x[1:2], TIME[1:2], LABEL[1:2], KEYS[1:2])
    assert relative_error(shuffled, whole[order]) < 1e-5
    assert relative_error(alone, whole[1:2]) < 1e-5
    assert relative_error(apply_flat(flat_params, x, TIME, LABEL, KEYS[order]), whole) > 0.05


def test_dropout_is_off_without_keys(flat_params):
    off = apply_flat(flat_params, small_images(), TIME, LABEL)
    np.testing.assert_array_equal(off, apply_flat(flat_params, small_images(), TIME, LABEL, KEYS, dropout=0.0))


def test_blocks_draw_different_masks():
    x, embedding = jax.random.normal(jax.random.key(0), (4, 4, 4, 32)), jnp.ones((4, 8))
    first, second = (ResidualBlock(32, 0.5, index, initialization="torch") for index in (0, 1))
    params = jax.jit(first.init)(jax.random.key(0), x, embedding)["params"]
    outputs = [apply_model(block, params, x, embedding, KEYS) for block in (first, second)]
    assert relative_error(*outputs) > 0.05


# --- equalities ------------------------------------------------------------------------------------


def test_an_example_does_not_depend_on_its_batch(params):
    whole = apply(params, small_images(), TIME, LABEL)
    for i in range(4):
        alone = apply(params, small_images()[i : i + 1], TIME[i : i + 1], LABEL[i : i + 1])
        assert relative_error(alone, whole[i : i + 1]) < 1e-5


def test_eight_devices_equal_one(flat_params):
    batch = [jnp.concatenate([a, a[::-1]]) for a in (small_images(), TIME, LABEL, KEYS)]
    one = apply_flat(flat_params, *batch)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("batch",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    eight = apply_flat(flat_params, *jax.device_put(batch, split))
    assert len(eight.sharding.device_set) == 8
    assert relative_error(eight, one) < 1e-5


def test_bfloat16_is_close_and_keeps_float32_parameters(params):
    fresh = jax.eval_shape(UNet(**SMALL, dtype=jnp.bfloat16).init, jax.random.key(0), small_images(), TIME)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    full = apply(params, small_images(), TIME, LABEL)
    half = apply(params, small_images(), TIME, LABEL, dtype=jnp.bfloat16)
    assert half.dtype == jnp.float32
    assert 1e-4 < relative_error(half, full) < 5e-2


def test_remat_changes_nothing(flat_params):
    def loss_and_gradient(remat):
        model = UNet(**FLAT, remat=remat)

        def loss(params):
            return jnp.mean(model.apply({"params": params}, small_images(), TIME, LABEL, KEYS) ** 2)

        return jax.jit(jax.value_and_grad(loss))(flat_params)

    (plain, plain_grad), (remat, remat_grad) = loss_and_gradient(False), loss_and_gradient(True)
    np.testing.assert_allclose(remat, plain, rtol=1e-5)
    # One scale for all leaves: the true gradient of some is zero (attention's key biases).
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(plain_grad))
    for expected, actual in zip(jax.tree.leaves(plain_grad), jax.tree.leaves(remat_grad), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * largest)


# --- labels and mistakes ---------------------------------------------------------------------------


def test_no_label_is_the_label_after_the_last(params):
    unlabelled = apply(params, small_images(), TIME)
    np.testing.assert_array_equal(unlabelled, apply(params, small_images(), TIME, jnp.full(4, 3)))
    assert relative_error(apply(params, small_images(), TIME, jnp.full(4, 2)), unlabelled) > 1e-3


def test_labels_outside_the_table_show(params):
    assert np.all(np.isnan(apply(params, small_images(), TIME, jnp.full(4, 4))))


def test_a_label_needs_a_conditional_network():
    model = UNet(**{**SMALL, "num_classes": 0})
    with pytest.raises(ValueError, match="unconditional"):
        jax.eval_shape(model.init, jax.random.key(0), small_images(), TIME, LABEL)


def test_sizes_that_do_not_halve_are_refused():
    with pytest.raises(ValueError, match="divisible by 2"):
        jax.eval_shape(UNet(**SMALL).init, jax.random.key(0), jnp.zeros((4, 9, 8, 3)), TIME)


def test_with_one_channel_a_group_the_network_would_not_know_the_time():
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 32)).astype(np.float32)
    told = {}
    for num_groups in (32, 8):
        block = ResidualBlock(32, 0.0, 0, num_groups, initialization="torch")
        embeddings = np.random.default_rng(1).normal(size=(2, 1, 16)).astype(np.float32)
        variables = block.init(jax.random.key(0), x, embeddings[0])
        one, other = (block.apply(variables, x, embedding) for embedding in embeddings)
        told[num_groups] = float(np.abs(one - other).max())
    assert told[32] < 1e-4 < 1e-2 < told[8]
