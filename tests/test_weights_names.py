"""Other projects' names and layouts of the U-Net's parameters."""

import re

import jax
import numpy as np
import pytest
from weight_files import random_params, small_config, state_dict

from ddim_jax.errors import UserError
from ddim_jax.weights.published import published_networks
from ddim_jax.weights.unet_names import from_torch, to_torch, torch_name, torch_shapes, with_plain_names

NAMINGS = ("ddim", "diffusers")
COUNTS = (35_746_307, 78_700_803, 113_673_219)


class DdimModule:
    """Names and shapes in the order in which DDIM's code makes its modules, apart from ours."""

    def __init__(self, image_size, ch, ch_mult, num_res_blocks, attn_resolutions, channels=3):
        self.shapes = {}
        temb_ch = 4 * ch
        self.linear("temb.dense.0", ch, temb_ch)
        self.linear("temb.dense.1", temb_ch, temb_ch)
        self.conv("conv_in", channels, ch)
        in_ch_mult = (1, *ch_mult)
        resolution, last = image_size, len(ch_mult) - 1
        for level in range(last + 1):
            block_in, block_out = ch * in_ch_mult[level], ch * ch_mult[level]
            for block in range(num_res_blocks):
                self.block(f"down.{level}.block.{block}", block_in, block_out, temb_ch)
                block_in = block_out
                if resolution in attn_resolutions:
                    self.attention(f"down.{level}.attn.{block}", block_in)
            if level != last:
                self.conv(f"down.{level}.downsample.conv", block_in, block_in)
                resolution //= 2
        self.block("mid.block_1", block_in, block_in, temb_ch)
        self.attention("mid.attn_1", block_in)
        self.block("mid.block_2", block_in, block_in, temb_ch)
        for level in range(last, -1, -1):
            block_out = skip_in = ch * ch_mult[level]
            for block in range(num_res_blocks + 1):
                if block == num_res_blocks:
                    skip_in = ch * in_ch_mult[level]
                self.block(f"up.{level}.block.{block}", block_in + skip_in, block_out, temb_ch)
                block_in = block_out
                if resolution in attn_resolutions:
                    self.attention(f"up.{level}.attn.{block}", block_in)
            if level != 0:
                self.conv(f"up.{level}.upsample.conv", block_in, block_in)
                resolution *= 2
        self.norm("norm_out", block_in)
        self.conv("conv_out", block_in, channels)

    def add(self, name, weight, bias):
        self.shapes[f"{name}.weight"], self.shapes[f"{name}.bias"] = weight, (bias,)

    def linear(self, name, inputs, outputs):
        self.add(name, (outputs, inputs), outputs)

    def conv(self, name, inputs, outputs, side=3):
        self.add(name, (outputs, inputs, side, side), outputs)

    def norm(self, name, width):
        self.add(name, (width,), width)

    def block(self, name, inputs, outputs, temb_ch):
        self.norm(f"{name}.norm1", inputs)
        self.conv(f"{name}.conv1", inputs, outputs)
        self.linear(f"{name}.temb_proj", temb_ch, outputs)
        self.norm(f"{name}.norm2", outputs)
        self.conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            self.conv(f"{name}.nin_shortcut", inputs, outputs, side=1)

    def attention(self, name, width):
        self.norm(f"{name}.norm", width)
        for layer in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{layer}", width, width, side=1)


@pytest.mark.parametrize(("index", "count"), list(enumerate(COUNTS)))
def test_published_networks_have_exactly_the_arrays_of_ddims_code(index, count):
    config = published_networks()[index].config
    model = config.model
    theirs = DdimModule(
        config.data.image_size, model.channels, model.multipliers, model.num_blocks, model.attention_resolutions
    ).shapes
    assert torch_shapes(config, "ddim") == theirs
    assert sum(int(np.prod(shape)) for shape in theirs.values()) == count


def converted_name(name, num_levels):
    """The name in diffusers of an array of DDIM's code, by the rules of the script that converts such checkpoints."""
    top = {"temb.dense.0": "time_embedding.linear_1", "temb.dense.1": "time_embedding.linear_2"}
    top |= {"norm_out": "conv_norm_out", "conv_in": "conv_in", "conv_out": "conv_out"}
    module, _, kind = name.rpartition(".")
    if module in top:
        return f"{top[module]}.{kind}"
    if "attn" in name:
        name = re.sub(r"\.(q|k|v)\.", lambda m: {"q": ".query.", "k": ".key.", "v": ".value."}[m[1]], name)
        name = name.replace("proj_out", "proj_attn").replace("norm", "group_norm")
        name = name.replace("mid.attn_1", "mid_block.attentions.0").replace(".attn.", ".attentions.")
    name = name.replace("mid.block_1", "mid_block.resnets.0").replace("mid.block_2", "mid_block.resnets.1")
    name = name.replace(".block.", ".resnets.").replace("nin_shortcut", "conv_shortcut")
    name = name.replace("temb_proj", "time_emb_proj")
    name = name.replace("downsample.conv", "downsamplers.0.conv").replace("upsample.conv", "upsamplers.0.conv")
    name = re.sub(r"^down\.", "down_blocks.", name)
    return re.sub(r"^up\.(\d+)", lambda m: f"up_blocks.{num_levels - 1 - int(m[1])}", name)


@pytest.mark.parametrize("index", range(3))
def test_the_two_namings_agree_with_diffusers_converter(index):
    config = published_networks()[index].config
    num_levels = len(config.model.multipliers)
    ddim, diffusers = (torch_shapes(config, naming) for naming in NAMINGS)
    # The converter wrote the names of its time, which are renamed when read.
    renamed = with_plain_names({converted_name(name, num_levels): name for name in ddim})
    assert renamed.keys() == diffusers.keys()
    for theirs, name in renamed.items():
        squeezed = tuple(n for n in ddim[name] if n > 1) if "attentions" in theirs else ddim[name]
        assert squeezed == diffusers[theirs]


@pytest.mark.parametrize("naming", NAMINGS)
def test_there_and_back_is_the_identity_and_names_are_distinct(naming):
    config = small_config(model__num_classes=3 if naming == "diffusers" else 0)
    params = random_params(config)
    state = to_torch(params, naming, 2)
    assert len(state) == len(jax.tree.leaves(params))
    back = from_torch(state, config, naming, "a file")
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_layouts_by_value():
    params = random_params(small_config())
    for naming in NAMINGS:
        state = to_torch(params, naming, 2)

        def theirs(name, state=state, naming=naming):
            return state[torch_name(name, naming, 2)]

        # Convolutions: [out, in, height, width].
        kernel = params["down_0_downsample"]["kernel"]
        assert theirs("down_0_downsample/kernel")[5, 7, 2, 0] == kernel[2, 0, 7, 5]
        # Dense layers: [out, in].
        kernel = params["down_1_block_0"]["time_dense"]["kernel"]
        assert theirs("down_1_block_0/time_dense/kernel")[30, 2] == kernel[2, 30]
        # What works on each pixel.
        kernel = params["up_0_block_1"]["shortcut"]["kernel"]
        assert theirs("up_0_block_1/shortcut/kernel").shape == (16, 32, 1, 1)
        assert theirs("up_0_block_1/shortcut/kernel")[3, 20, 0, 0] == kernel[20, 3]
        kernel = params["mid_attention"]["query"]["kernel"]
        query = theirs("mid_attention/query/kernel")
        assert query.shape == ((32, 32, 1, 1) if naming == "ddim" else (32, 32))
        assert query.reshape(32, 32)[4, 9] == kernel[9, 4]
        np.testing.assert_array_equal(theirs("mid_block_0/norm_0/scale"), params["mid_block_0"]["norm_0"]["scale"])


def test_names_of_other_times_are_understood():
    config = small_config()
    params = random_params(config)
    state = to_torch(params, "diffusers", 2)
    old = {}
    for name, value in state.items():
        for modern, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{modern}.", f".{before}.")
        old[name] = value
    assert "mid_block.attentions.0.proj_attn.weight" in old
    assert with_plain_names(old).keys() == state.keys()
    parallel = {f"module.{name}": value for name, value in state_dict(config, "ddim").items()}
    assert with_plain_names(parallel).keys() == state_dict(config, "ddim").keys()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("conv_in.bias"), "conv_in.bias (there none, here (16,))"),
        (lambda state: state.update(logvar=np.zeros(10)), "logvar (there (10,), here none)"),
        (lambda state: state.update(logvar="text"), "logvar (there no array, here none)"),
        (lambda state: state.update({"conv_in.bias": np.zeros(17)}), "conv_in.bias (there (17,), here (16,))"),
        (lambda state: state.update({"conv_in.bias": np.full(16, np.nan)}), "not finite in conv_in/bias"),
    ],
)
def test_every_array_is_accounted_for(change, reason):
    config = small_config()
    state = state_dict(config, "ddim")
    change(state)
    with pytest.raises(UserError) as refused:
        from_torch(state, config, "ddim", "weights.ckpt")
    assert str(refused.value).startswith("weights.ckpt")
    assert reason in str(refused.value)
    assert " more" not in str(refused.value)


def test_of_many_differences_five_are_named():
    state = state_dict(small_config(), "ddim")
    with pytest.raises(
        UserError, match=r"conv_in.weight .*there \(16, 3, 3, 3\), here \(32, 3, 3, 3\).* and \d+ more;"
    ):
        from_torch(state, small_config(model__channels=32), "ddim", "weights.ckpt")


def test_ddims_code_has_no_classes():
    config = small_config(model__num_classes=3)
    with pytest.raises(UserError, match=r"know no classes, but model.num_classes=3"):
        from_torch(state_dict(config, "ddim"), config, "ddim", "weights.ckpt")
