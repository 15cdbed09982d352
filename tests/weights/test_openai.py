"""Files of OpenAI's code: what their shapes say, which are published, and what is refused.

That the networks compute the same is tested against PyTorch, in ``tests/parity/test_openai_unet.py``.
"""

import math

import numpy as np
import pytest
from weight_files import random_params, small_config, write_torch

from ddim_jax.config import flatten
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.errors import UserError
from ddim_jax.weights.forms import read_weights
from ddim_jax.weights.openai_names import _places, from_openai, stated_by_state
from ddim_jax.weights.openai_networks import openai_networks, recognise_openai
from ddim_jax.weights.shapes import variable_shapes

# In millions, and how they are rounded. Nichol and Dhariwal 2021: 52.5 for CIFAR-10, 120 and 270 for ImageNet 64; that
# of LSUN is DDPM's network. Dhariwal and Nichol 2021: 296, 422, 554 and 559 with classes, 552.8 without.
COUNTS = ((52.5, 1), (120, -1), (270, -1), (113.7, 1), (296, 0), (422, 0), (554, 0), (552.8, 1), (559, 0))
BLOCKS = {"model__num_groups": 32, "model__channels": 32, "model__multipliers": (1, 2)}
OPENAI = {
    **BLOCKS, "model__time_freq_shift": 0, "model__time_cos_first": True, "model__downsample_padding": 1,
    "model__norm_eps": 1e-5, "model__null_label": False, "model__num_heads": 2, "model__scale_shift_norm": True,
}  # fmt: skip
ADM = {**OPENAI, "model__resample_blocks": True, "model__learn_variance": True, "model__num_classes": 3}


def openai_shapes(config):
    """Arrays of no memory with the names and shapes that a network has in OpenAI's code."""
    nothing = np.float32(0)
    return {place.name: np.broadcast_to(nothing, place.shape(shape)) for place, shape in _places(config).values()}


def openai_state(config, seed=0):
    """Random values; in ``qkv`` the rows of query, key and value in the order of our arrays, one after the other."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(value.shape).astype(np.float32) for name, value in openai_shapes(config).items()}


@pytest.mark.slow
@pytest.mark.parametrize(("network", "count"), [*zip(openai_networks(), COUNTS, strict=True)])
def test_published_networks_are_recognised_and_have_the_published_size(network, count):
    size = sum(math.prod(shape) for shape in variable_shapes(network.config).values())
    millions, digits = count
    assert round(size / 1e6, digits) == millions
    assert recognise_openai(openai_shapes(network.config), "file.pt") == network


def test_names_are_those_of_a_published_file():
    """Of CIFAR-10's network: four blocks a level with the one that halves, attention at 16 and 8."""
    shapes = {name: value.shape for name, value in openai_shapes(openai_networks()[0].config).items()}
    assert shapes["input_blocks.0.0.weight"] == (128, 3, 3, 3)
    assert shapes["input_blocks.4.0.op.weight"] == (128, 128, 3, 3)
    assert shapes["input_blocks.5.0.skip_connection.weight"] == (256, 128, 1, 1)
    assert shapes["input_blocks.5.1.qkv.weight"] == (768, 256, 1)
    assert shapes["middle_block.2.emb_layers.1.weight"] == (512, 512)
    assert shapes["output_blocks.3.1.conv.weight"] == (256, 256, 3, 3)
    assert shapes["output_blocks.7.2.conv.weight"] == (256, 256, 3, 3)
    assert shapes["output_blocks.15.0.in_layers.0.weight"] == (256,)
    assert shapes["out.2.weight"] == (6, 128, 3, 3)
    assert "output_blocks.15.1.qkv.weight" not in shapes


@pytest.mark.parametrize(
    "changes",
    [
        OPENAI,
        ADM,
        {**OPENAI, "model__scale_shift_norm": False, "model__num_heads": 0},
        {**ADM, "model__multipliers": (1,), "model__resample_blocks": False, "model__attention_resolutions": ()},
        {**ADM, "model__time_channels": 64, "model__num_blocks": 3, "model__attention_resolutions": (8, 4)},
        {**ADM, "data__channels": 1, "model__num_classes": 3, "model__null_label": True},
    ],
)
def test_shapes_say_what_the_network_is(changes):
    config = small_config(**changes)
    stated = stated_by_state(openai_shapes(config), "file.pt", 8, config.model.null_label)
    ours = flatten(config)
    assert stated.keys() > {"model.channels", "model.num_blocks", "model.scale_shift_norm", "model.learn_variance"}
    for key, value in stated.items():
        assert (set(value) if key == "model.attention_resolutions" else value) == (
            set(ours[key]) if key == "model.attention_resolutions" else ours[key]
        ), key


def test_the_orders_of_queries_keys_and_values():
    """Written out for one array: two heads of 32 channels."""
    config = small_config(**OPENAI)
    state = openai_state(config)
    qkv, bias = state["middle_block.1.qkv.weight"][:, :, 0], state["middle_block.1.qkv.bias"]
    new, legacy = (from_openai(state, config, order, "")["mid_attention"] for order in ("new", "legacy"))
    rows = np.arange(192)
    for part, name in enumerate(("query", "key", "value")):
        of_part = rows[64 * part : 64 * (part + 1)]
        np.testing.assert_array_equal(new[name]["kernel"], qkv[of_part].T)
        np.testing.assert_array_equal(new[name]["bias"], bias[of_part])
        of_heads = np.concatenate([rows[96 * head + 32 * part :][:32] for head in range(2)])
        np.testing.assert_array_equal(legacy[name]["kernel"], qkv[of_heads].T)
        np.testing.assert_array_equal(legacy[name]["bias"], bias[of_heads])


def test_a_file_is_read_with_the_config_that_it_was_trained_with(tmp_path):
    config = small_config(**ADM)
    path = write_torch(tmp_path / "ema_0.9999_500000.pt", openai_state(config))
    weights = read_weights(path, config)
    assert weights.averaged is None
    kernel = weights.variables["params"]["down_0_downsample"]["conv_0"]["kernel"]
    np.testing.assert_array_equal(
        kernel, openai_state(config)["input_blocks.2.0.in_layers.2.weight"].transpose(2, 3, 1, 0)
    )
    assert kernel.shape == random_params(config)["down_0_downsample"]["conv_0"]["kernel"].shape


def test_a_config_that_the_shapes_contradict_is_told_what_to_pass(tmp_path):
    path = write_torch(tmp_path / "model.pt", openai_state(small_config(**ADM)))
    wrong = small_config(**{**ADM, "model__resample_blocks": False, "model__num_classes": 0})
    with pytest.raises(UserError) as refused:
        read_weights(path, wrong)
    message = str(refused.value)
    assert "\n" not in message
    assert "model.resample_blocks (there True, here False)" in message
    assert "--config.model.num_classes=3 --config.model.resample_blocks=True" in message


def test_other_networks_of_that_code_need_a_config(tmp_path):
    path = write_torch(tmp_path / "model.pt", openai_state(small_config(**ADM)))
    with pytest.raises(UserError, match="none of OpenAI's published networks: give the config"):
        read_weights(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {k: v for k, v in state.items() if "output" not in k}, "is a classifier of guided-diffusion"),
        (
            lambda state: state | {"input_blocks.0.0.weight": np.zeros((32, 6, 3, 3), np.float32)},
            "makes 6 channels of 6: it is an upsampler",
        ),
        (
            lambda state: {k: v for k, v in state.items() if "output_blocks.3" not in k},
            r"not a whole U-Net of it \(at output_blocks\)",
        ),
        (
            lambda state: {k: v for k, v in state.items() if k != "input_blocks.1.0.out_layers.0.weight"},
            r"not a whole U-Net of it \(at 'input_blocks.1.0.out_layers.0.weight'\)",
        ),
        (
            lambda state: state | {"output_blocks.0.0.extra.weight": np.zeros(3, np.float32)},
            r"output_blocks.0.0.extra.weight \(there \(3,\), here none\)",
        ),
        (
            lambda state: state | {"out.0.bias": np.full(32, np.nan, np.float32)},
            "values that are not finite in norm_out/bias",
        ),
    ],
)
def test_what_is_no_network_of_ours_is_one_clear_line(change, message, tmp_path):
    config = small_config(**ADM)
    path = write_torch(tmp_path / "model.pt", change(openai_state(config)))
    with pytest.raises(UserError, match=message) as refused:
        read_weights(path, config)
    assert "\n" not in str(refused.value)


def test_what_no_array_shows_is_said_of_published_shapes(tmp_path, capsys, monkeypatch):
    """A published network made small: settings of its file that a config has otherwise are warned of."""
    published = openai_networks()[4]
    small = small_config(**ADM, diffusion__schedule="cosine")
    monkeypatch.setattr("ddim_jax.weights.openai_networks.openai_networks", lambda: [published._replace(config=small)])
    state = openai_state(small)
    path = write_torch(tmp_path / "64x64_diffusion.pt", state)
    found = read_weights(path)
    assert found.config == small
    expected = from_openai(state, small, "new", "")  # the published file's order
    np.testing.assert_array_equal(
        found.variables["params"]["mid_attention"]["key"]["kernel"], expected["mid_attention"]["key"]["kernel"]
    )
    assert "is the network of 64x64_diffusion.pt" in capsys.readouterr().err
    read_weights(path, small_config(**{**ADM, "model__num_heads": 4}))
    said = capsys.readouterr().err
    assert "pass --config.model.num_heads=2 --config.diffusion.schedule=cosine" in said


def test_published_schedules():
    """T levels of cosine or linear noise; 4,000 levels are told on the scale of 1,000."""
    for network in openai_networks():
        diffusion, scale = network.config.diffusion, network.config.model.time_scale
        told = scale * make_schedule(diffusion.schedule, diffusion.num_levels).time_input(diffusion.num_levels)
        assert told == (999.75 if scale != 1 else diffusion.num_levels - 1)
