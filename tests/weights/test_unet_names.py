"""Other projects' names and layouts of the U-Net's parameters."""

import jax
import numpy as np
import pytest
from weight_files import DdimModule, converted_name, random_params, small_config, state_dict

from ddim_jax.errors import UserError
from ddim_jax.weights.published_networks import published_networks
from ddim_jax.weights.unet_names import from_torch, to_torch, torch_name, unet_state_shapes, with_plain_names

NAMINGS = ("ddim", "diffusers")
COUNTS = (35_746_307, 78_700_803, 113_673_219)


@pytest.mark.parametrize(("index", "count"), list(enumerate(COUNTS)))
def test_published_networks_have_exactly_the_arrays_of_ddims_code(index, count):
    config = published_networks()[index].config
    model = config.model
    theirs = DdimModule(
        config.data.image_size, model.channels, model.multipliers, model.num_blocks, model.attention_resolutions
    ).shapes
    assert unet_state_shapes(config, "ddim") == theirs
    assert sum(int(np.prod(shape)) for shape in theirs.values()) == count


@pytest.mark.parametrize("index", range(3))
def test_the_two_namings_agree_with_diffusers_converter(index):
    config = published_networks()[index].config
    num_levels = len(config.model.multipliers)
    ddim, diffusers = (unet_state_shapes(config, naming) for naming in NAMINGS)
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
