"""Our U-Net against diffusers' ``UNet2DModel`` set up as the published network, with equal random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from unet_weights import to_diffusers

from ddim_jax.models.unet import UNet

pytestmark = pytest.mark.parity

NETWORKS = {
    "small": dict(size=8, channels=32, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,)),
    "labels": dict(size=8, channels=32, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,), num_classes=5),
    "cifar10": dict(size=32, channels=64, multipliers=(1, 2, 2, 2), attention_resolutions=(16,)),
    "celeba": dict(size=64, channels=32, multipliers=(1, 2, 2, 2, 4), attention_resolutions=(16,)),
    "lsun": dict(size=64, channels=32, multipliers=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,)),
    "scale and shift": dict(
        size=16, channels=32, multipliers=(1, 2), num_blocks=1, attention_resolutions=(8,), scale_shift_norm=True
    ),
    "adm": dict(
        size=16, channels=32, multipliers=(1, 2, 2), num_blocks=1, attention_resolutions=(8, 4), scale_shift_norm=True,
        resample_blocks=True, head_channels=16, out_channels=6, num_classes=5, norm_eps=1e-5, time_freq_shift=0,
        time_cos_first=True,
    ),
}  # fmt: skip


def build_ours(size, **fields):
    """Our network, and random parameters under which every layer matters."""
    model = UNet(**{"out_channels": 3, **fields})
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)), jnp.zeros(1))["params"]
    rng = np.random.default_rng(0)
    flat = traverse_util.flatten_dict(shapes, sep="/")
    for name, shape in flat.items():
        spread = np.prod(shape.shape[:-1]) ** -0.5 if name.endswith("kernel") else 0.1
        flat[name] = jnp.asarray(name.endswith("scale") + spread * rng.standard_normal(shape.shape), jnp.float32)
    return model, traverse_util.unflatten_dict(flat, sep="/")


def build_theirs(model, size, params):
    """Their network with the same parameters."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    attends = [size // 2**level in model.attention_resolutions for level in range(len(model.multipliers))]
    down, up = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if model.resample_blocks else ("DownBlock2D", "UpBlock2D")
    )
    sample_type = "resnet" if model.resample_blocks else "conv"
    theirs = diffusers.UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=model.out_channels,
        block_out_channels=[model.channels * multiplier for multiplier in model.multipliers],
        layers_per_block=model.num_blocks,
        down_block_types=["AttnDownBlock2D" if attention else down for attention in attends],
        up_block_types=["AttnUpBlock2D" if attention else up for attention in reversed(attends)],
        downsample_type=sample_type,
        upsample_type=sample_type,
        resnet_time_scale_shift="scale_shift" if model.scale_shift_norm else "default",
        attn_norm_num_groups=model.num_groups if model.scale_shift_norm else None,
        attention_head_dim=model.head_channels or None,
        norm_eps=model.norm_eps,
        downsample_padding=0,
        flip_sin_to_cos=model.time_cos_first,
        freq_shift=model.time_freq_shift,
        num_class_embeds=model.num_classes + 1 if model.num_classes else None,
    )
    state = to_diffusers(params, len(model.multipliers))
    theirs.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=True)
    return theirs.eval()


def inputs(size, num_classes=0):
    x = np.random.default_rng(1).standard_normal((2, size, size, 3)).astype(np.float32)
    return x, np.array([7.0, 903.0], np.float32), np.array([1, 4]) if num_classes else None


def relative_error(actual, expected):
    return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal(name):
    torch = pytest.importorskip("torch")
    fields = NETWORKS[name]
    model, params = build_ours(**fields)
    theirs = build_theirs(model, fields["size"], params)
    x, time, label = inputs(fields["size"], model.num_classes)

    ours = jax.jit(model.apply)({"params": params}, x, time, label)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(time), None if label is None else torch.tensor(label)
        ).sample.numpy()
    error = relative_error(np.asarray(ours), expected.transpose(0, 2, 3, 1))
    assert error < 2e-5


def test_gradients_equal():
    torch = pytest.importorskip("torch")
    fields = NETWORKS["labels"]
    model, params = build_ours(**fields)
    theirs = build_theirs(model, fields["size"], params)
    x, time, label = inputs(fields["size"], model.num_classes)

    def loss(params, x):
        return jnp.mean((model.apply({"params": params}, x, time, label) - 1) ** 2)

    ours, ours_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    theirs_x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    torch.mean((theirs(theirs_x, torch.tensor(time), torch.tensor(label)).sample - 1) ** 2).backward()
    expected = {name: value.grad.numpy() for name, value in theirs.named_parameters()}

    # One scale for all: some true gradients are zero (attention's key biases) and only rounding remains of them.
    largest = max(np.max(np.abs(value)) for value in expected.values())
    ours = to_diffusers(ours, len(model.multipliers))
    assert ours.keys() == expected.keys()
    error = max(np.max(np.abs(ours[name] - expected[name])) for name in expected) / largest
    assert error < 2e-5
    assert relative_error(np.asarray(ours_x), theirs_x.grad.numpy().transpose(0, 2, 3, 1)) < 1e-4
