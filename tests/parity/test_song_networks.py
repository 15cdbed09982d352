"""DDPM++ and NCSN++ against PyTorch: files in the forms of EDM and of score SDE, and what the networks in them compute.

No small package holds these networks. The reference here is written from the papers' equations (Song et al. 2021,
appendix H; Karras et al. 2022, appendix F), on arrays of the names and shapes that the published files have. By hand it
was held against NVIDIA's physicsnemo, whose ``SongUNet`` returned the same to 1e-7 with the same arrays.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from diffusers.models.downsampling import FirDownsample2D
from diffusers.models.upsampling import FirUpsample2D

from ddim_jax.config import Config, DataConfig, ModelConfig
from ddim_jax.models import build_model
from ddim_jax.models.song_unet import doubled, halved
from ddim_jax.weights.song_names import edm_shapes, from_edm, from_score_sde, negated, score_sde_shapes, told_less

DDPMPP = dict(
    name="song_unet", channels=8, multipliers=(1, 2, 2), num_blocks=2, attention_resolutions=(4,), dropout=0.0,
)  # fmt: skip
NCSNPP = {**DDPMPP, "embedding": "fourier", "encoder": "residual", "resample_filter": (1, 3, 3, 1)}
SIZE = 8
TIME = np.array([0.3, -1.7, 2.0])


def config_of(model):
    return Config(data=DataConfig(image_size=SIZE), model=ModelConfig(**model))


def random_state(shapes, seed=0):
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in shapes.items():
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 1
        is_scale = name.endswith("weight") and len(shape) == 1
        state[name] = (is_scale + rng.normal(size=shape) * (0.3 if len(shape) == 1 else fan_in**-0.5)).astype(
            np.float32
        )
    return state


def images(n=3):
    return np.random.default_rng(1).normal(size=(n, 3, SIZE, SIZE)).astype(np.float32)


# --- the equations ---------------------------------------------------------------------------------


class Reference:
    """The network on arrays of EDM's names."""

    def __init__(self, state, config):
        self.state = {name: torch.tensor(value, dtype=torch.float64) for name, value in state.items()}
        self.model, self.size = config.model, config.data.image_size
        taps = torch.tensor(self.model.resample_filter, dtype=torch.float64)
        self.filter = torch.outer(taps, taps) / taps.sum() ** 2

    def layer(self, x, name):
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        if weight.ndim == 2:
            return functional.linear(x, weight, bias)
        return functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def norm(self, x, name):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return functional.group_norm(x, min(32, x.shape[1] // 4), weight, bias, eps=1e-6)

    def filtered(self, x, up=False):
        c, k = x.shape[1], len(self.filter)
        kernel = self.filter.expand(c, 1, k, k)
        if up:
            return functional.conv_transpose2d(x, 4 * kernel, stride=2, padding=k // 2 - 1, groups=c)
        return functional.conv2d(x, kernel, stride=2, padding=k // 2 - 1, groups=c)

    def resampled(self, x, name):
        if name.endswith(("_down", "_up")):
            return self.filtered(x, up=name.endswith("_up"))
        return x

    def block(self, x, told, name):
        h = self.resampled(functional.silu(self.norm(x, f"{name}.norm0")), name)
        h = self.layer(h, f"{name}.conv0") + self.layer(told, f"{name}.affine")[:, :, None, None]
        h = self.layer(functional.silu(self.norm(h, f"{name}.norm1")), f"{name}.conv1")
        x = self.resampled(x, name)
        if f"{name}.skip.weight" in self.state:
            x = self.layer(x, f"{name}.skip")
        x = (x + h) / 2**0.5
        return self.attention(x, name) if f"{name}.qkv.weight" in self.state else x

    def attention(self, x, name):
        n, c, height, width = x.shape
        head = self.model.head_channels or c
        # Of each head's channels, q, k and v take turns.
        qkv = self.layer(self.norm(x, f"{name}.norm2"), f"{name}.qkv").reshape(n, c // head, head, 3, height * width)
        query, key, value = qkv.permute(3, 0, 1, 2, 4)
        share = torch.softmax(torch.einsum("bhcq,bhck->bhqk", query, key) / head**0.5, dim=-1)
        attended = torch.einsum("bhqk,bhck->bhcq", share, value).reshape(x.shape)
        return (x + self.layer(attended, f"{name}.proj")) / 2**0.5

    def pyramid(self, x, name):
        """The filter at full resolution, then a convolution of stride 2."""
        c, k = x.shape[1], len(self.filter)
        smooth = functional.conv2d(x, self.filter.expand(c, 1, k, k), padding=(k - 2 + 2 + 1) // 2, groups=c)
        return functional.conv2d(smooth, self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride=2)

    def told(self, time, label, augmentation):
        if self.model.embedding == "fourier":
            phase = time[:, None] * 2 * np.pi * self.state["map_noise.freqs"]
        else:
            half = self.model.channels // 2
            phase = time[:, None] * torch.tensor(10000.0 ** (-np.arange(half) / (half - 1)))
        embedding = torch.cat([phase.sin(), phase.cos()], dim=1)
        if label is not None:
            embedding = embedding + self.layer(label * self.model.num_classes**0.5, "map_label")
        if augmentation is not None:
            embedding = embedding + self.layer(augmentation, "map_augment")
        return functional.silu(self.layer(functional.silu(self.layer(embedding, "map_layer0")), "map_layer1"))

    def __call__(self, x, time, label=None, augmentation=None):
        as_tensor = lambda value: None if value is None else torch.tensor(value, dtype=torch.float64)  # noqa: E731
        x, time, label, augmentation = map(as_tensor, (x, time, label, augmentation))
        told, levels, blocks = self.told(time, label, augmentation), len(self.model.multipliers), self.model.num_blocks
        sizes = [f"{self.size >> level}x{self.size >> level}" for level in range(levels)]
        aux, skips = x, []
        for level, size in enumerate(sizes):
            if level == 0:
                x = self.layer(x, f"enc.{size}_conv")
            else:
                x = self.block(x, told, f"enc.{size}_down")
                if self.model.encoder == "residual":
                    x = aux = (x + self.pyramid(aux, f"enc.{size}_aux_residual")) / 2**0.5
            skips.append(x)
            for i in range(blocks):
                x = self.block(x, told, f"enc.{size}_block{i}")
                skips.append(x)
        for i in range(2):
            x = self.block(x, told, f"dec.{sizes[-1]}_in{i}")
        for level in reversed(range(levels)):
            if level < levels - 1:
                x = self.block(x, told, f"dec.{sizes[level]}_up")
            for i in range(blocks + 1):
                x = self.block(torch.cat([x, skips.pop()], dim=1), told, f"dec.{sizes[level]}_block{i}")
        assert not skips
        x = functional.silu(self.norm(x, f"dec.{sizes[0]}_aux_norm"))
        return self.layer(x, f"dec.{sizes[0]}_aux_conv").numpy()


def ours(config, variables, x, time, *inputs):
    model = build_model(config)
    out = jax.jit(model.apply)(variables, jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.asarray(time, jnp.float32), *inputs)
    return np.asarray(out, np.float64).transpose(0, 3, 1, 2)


def assert_close(actual, expected, tolerance=3e-5):
    assert np.max(np.abs(actual - expected)) < tolerance * np.max(np.abs(expected))


# --- tests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        DDPMPP,
        NCSNPP,
        {**DDPMPP, "encoder": "residual", "multipliers": (1, 2), "head_channels": 4},
    ],
    ids=["ddpmpp", "ncsnpp", "pyramid-of-boxes-and-heads"],
)
def test_networks_compute_what_their_equations_say(model):
    config = config_of({**model, "num_classes": 3, "augmentation_inputs": 9})
    state = random_state(edm_shapes(config))
    variables = from_edm(state, config, "file")
    label = np.array([2, 0, 1])
    augmentation = np.random.default_rng(2).normal(size=(3, 9)).astype(np.float32)
    reference = Reference(state, config)
    expected = reference(images(), TIME, np.eye(3)[label], augmentation)
    assert_close(ours(config, variables, images(), TIME, jnp.asarray(label), None, jnp.asarray(augmentation)), expected)
    # No label, and no augmentation.
    expected = reference(images(), TIME, np.zeros((3, 3)), np.zeros((3, 9)))
    assert_close(ours(config, variables, images(), TIME), expected)


def to_score_sde(state, config):
    """The same network with score SDE's names: modules in the order in which they run, attention beside its block."""
    model, levels = config.model, len(config.model.multipliers)
    sizes = [f"{SIZE >> level}x{SIZE >> level}" for level in range(levels)]
    order = ["map_noise"] if model.embedding == "fourier" else []
    order += ["map_layer0", "map_layer1", f"enc.{sizes[0]}_conv"]
    for level, size in enumerate(sizes):
        if level > 0:
            order += [f"enc.{size}_down", *([f"enc.{size}_aux_residual"] if model.encoder == "residual" else [])]
        order += [f"enc.{size}_block{i}" for i in range(model.num_blocks)]
    order += [f"dec.{sizes[-1]}_in0", f"dec.{sizes[-1]}_in1"]
    for level in reversed(range(levels)):
        order += [f"dec.{sizes[level]}_up"] if level < levels - 1 else []
        order += [f"dec.{sizes[level]}_block{i}" for i in range(model.num_blocks + 1)]
    order += [f"dec.{sizes[0]}_aux_norm", f"dec.{sizes[0]}_aux_conv"]

    layers = [("norm0", "GroupNorm_0"), ("conv0", "Conv_0"), ("affine", "Dense_0"), ("norm1", "GroupNorm_1")]
    layers += [("conv1", "Conv_1"), ("skip", "Conv_2")]
    named, number = {}, 0
    for name in order:
        if name == "map_noise":
            named["all_modules.0.W"] = state["map_noise.freqs"]
        elif f"{name}.norm0.weight" in state:
            for theirs, layer in layers:
                for kind in ("weight", "bias"):
                    if f"{name}.{theirs}.{kind}" in state:
                        named[f"all_modules.{number}.{layer}.{kind}"] = state[f"{name}.{theirs}.{kind}"]
            if f"{name}.qkv.weight" in state:
                number += 1
                for kind in ("weight", "bias"):
                    named[f"all_modules.{number}.GroupNorm_0.{kind}"] = state[f"{name}.norm2.{kind}"]
                for i in range(3):
                    named[f"all_modules.{number}.NIN_{i}.W"] = state[f"{name}.qkv.weight"][i::3, :, 0, 0].T
                    named[f"all_modules.{number}.NIN_{i}.b"] = state[f"{name}.qkv.bias"][i::3]
                named[f"all_modules.{number}.NIN_3.W"] = state[f"{name}.proj.weight"][:, :, 0, 0].T
                named[f"all_modules.{number}.NIN_3.b"] = state[f"{name}.proj.bias"]
        else:
            middle = ".Conv2d_0" if name.endswith("_aux_residual") else ""
            for kind in ("weight", "bias"):
                named[f"all_modules.{number}{middle}.{kind}"] = state[f"{name}.{kind}"]
        number += 1
    return named


@pytest.mark.parametrize("model", [DDPMPP, NCSNPP], ids=["ddpmpp", "ncsnpp"])
def test_score_sdes_names_are_those_of_the_same_network(model):
    config = config_of(model)
    state = random_state(edm_shapes(config))
    renamed = to_score_sde(state, config)
    assert {name: value.shape for name, value in renamed.items()} == score_sde_shapes(config)
    jax.tree.map(
        np.testing.assert_array_equal, from_score_sde(renamed, config, "file"), from_edm(state, config, "file")
    )


def test_a_shift_of_the_time_and_a_sign_are_folded_into_the_weights():
    config = config_of({**NCSNPP, "num_classes": 3, "augmentation_inputs": 9})
    state = random_state(edm_shapes(config))
    state["map_noise.freqs"] *= 5
    variables = negated(told_less(from_edm(state, config, "file"), np.log(2)))
    augmentation = np.random.default_rng(2).normal(size=(3, 9)).astype(np.float32)
    expected = -Reference(state, config)(images(), TIME - np.log(2), np.eye(3)[[0, 1, 2]], augmentation)
    label = jnp.arange(3)
    assert_close(ours(config, variables, images(), TIME, label, None, jnp.asarray(augmentation)), expected)


def test_filters_are_those_of_diffusers():
    """Which has them of score SDE's code."""
    x = torch.tensor(images(), dtype=torch.float32)
    whole = np.asarray(x).transpose(0, 2, 3, 1)
    down = FirDownsample2D(3, 3, use_conv=False)(x).numpy().transpose(0, 2, 3, 1)
    up = FirUpsample2D(3, 3, use_conv=False)(x).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(halved(whole, (1, 3, 3, 1)), down, atol=1e-6)
    np.testing.assert_allclose(doubled(whole, (1, 3, 3, 1)), up, atol=1e-6)


def test_the_pyramid_is_that_of_diffusers():
    config = config_of(NCSNPP)
    layer = FirDownsample2D(3, 8, use_conv=True)
    state = {"x.weight": layer.Conv2d_0.weight.detach().numpy(), "x.bias": layer.Conv2d_0.bias.detach().numpy()}
    x = torch.tensor(images())
    expected = layer(x).detach().numpy()
    assert_close(Reference(state, config).pyramid(x.double(), "x").numpy(), expected, 1e-5)
