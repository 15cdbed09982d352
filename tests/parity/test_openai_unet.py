"""Our U-Net with a file of OpenAI's form, against a PyTorch network that runs it.

No package holds their network: ``openai_unet.py`` is an independent one, written from the papers' equations with the
names and shapes of their state dicts.
"""

import jax
import numpy as np
import pytest

from ddim_jax.config import Config, with_values
from ddim_jax.models import build_model
from ddim_jax.weights.forms import read_weights

pytestmark = pytest.mark.parity

THEIRS = {
    "data.image_size": 16,
    "model.time_freq_shift": 0,
    "model.time_cos_first": True,
    "model.downsample_padding": 1,
    "model.norm_eps": 1e-5,
    "model.null_label": False,
}
# Their network's settings, ours, and the order of qkv.
NETWORKS = {
    "improved": (
        dict(channels=32, multipliers=(1, 2, 2), num_blocks=2, attention=(8, 4), heads=lambda _: 4, time_scale=0.25),
        {
            "model.channels": 32, "model.multipliers": (1, 2, 2), "model.num_blocks": 2, "model.num_heads": 4,
            "model.attention_resolutions": (8, 4), "model.scale_shift_norm": True, "model.learn_variance": True,
            "model.time_scale": 0.25, "diffusion.num_levels": 4000,
        },
    ),
    "lsun": (
        dict(channels=32, multipliers=(1, 1, 2), num_blocks=1, attention=(8,), heads=lambda _: 1, scale_shift=False),
        {
            "model.channels": 32, "model.multipliers": (1, 1, 2), "model.num_blocks": 1,
            "model.attention_resolutions": (8,), "model.learn_variance": True,
        },
    ),
    "adm": (
        dict(channels=32, multipliers=(1, 2), num_blocks=2, attention=(16, 8), heads=lambda width: width // 16,
             order="new", resample_blocks=True, classes=5),
        {
            "model.channels": 32, "model.multipliers": (1, 2), "model.num_blocks": 2, "model.head_channels": 16,
            "model.attention_resolutions": (16, 8), "model.scale_shift_norm": True, "model.learn_variance": True,
            "model.resample_blocks": True, "model.num_classes": 5, "weights.qkv_order": "new",
        },
    ),
    "adm, half a width": (
        dict(channels=64, multipliers=(0.5, 1), num_blocks=1, attention=(8,), heads=lambda width: width // 16,
             resample_blocks=True, learned=False),
        {
            "model.channels": 32, "model.time_channels": 64, "model.multipliers": (1, 2), "model.num_blocks": 1,
            "model.head_channels": 16, "model.attention_resolutions": (8,), "model.scale_shift_norm": True,
            "model.resample_blocks": True,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal(name, tmp_path):
    torch = pytest.importorskip("torch")
    from openai_unet import OpenAIUNet, randomize

    fields, settings = NETWORKS[name]
    theirs = randomize(OpenAIUNet(16, **fields))
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    config = with_values(Config(), THEIRS | settings)
    weights = read_weights(tmp_path / "model.pt", config)

    rng = np.random.default_rng(1)
    x, time = rng.standard_normal((2, 16, 16, 3)).astype(np.float32), np.array([7.0, 903.0], np.float32)
    label = np.array([1, 4]) if config.model.num_classes else None
    ours = np.asarray(jax.jit(build_model(config).apply)(weights.variables, x, time, label))
    with torch.no_grad():
        expected = theirs(
            torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(time), None if label is None else torch.tensor(label)
        ).numpy()
    expected = expected.transpose(0, 2, 3, 1)
    assert ours.shape == expected.shape == (2, 16, 16, 6 if config.model.learn_variance else 3)
    assert np.max(np.abs(ours - expected)) / np.max(np.abs(expected)) < 2e-5
