"""Weights exchanged with PyTorch and diffusers themselves: the same network, the same trajectory, the same image."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weight_files import DdimModule, converted_name, random_params, small_config, state_dict, write_ddim_checkpoint

import ddim_jax
from ddim_jax.conditions import Condition
from ddim_jax.config import WeightsConfig
from ddim_jax.configured import build_predict, build_sampler
from ddim_jax.jobs.export import export
from ddim_jax.jobs.import_weights import import_weights
from ddim_jax.weights.array_files import ArrayFile, write_safetensors
from ddim_jax.weights.diffusers_config import scheduler_config, unet_config
from ddim_jax.weights.forms import read_weights
from ddim_jax.weights.published_networks import published_networks
from ddim_jax.weights.unet_names import unet_state_shapes

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# The structures of the published networks, narrow and for small images.
NETWORKS = {
    "cifar10": dict(data__image_size=16, model__multipliers=(1, 2, 2, 2), model__attention_resolutions=(8,)),
    "celeba": dict(data__image_size=16, model__multipliers=(1, 2, 2, 2, 4), model__attention_resolutions=(4,)),
    "lsun": dict(data__image_size=32, model__multipliers=(1, 1, 2, 2, 4, 4), model__attention_resolutions=(2,)),
    "classes": dict(model__num_classes=5),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On networks this small PyTorch's threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(name):
    blocks = {} if name == "classes" else {"model__num_blocks": 2}
    return small_config(**NETWORKS[name], **blocks)


def their_unet(config):
    """The network of diffusers with our parameters; loading is strict."""
    unet = diffusers.UNet2DModel.from_config(unet_config(config))
    state = {name: torch.tensor(np.array(value)) for name, value in state_dict(config, "diffusers").items()}
    unet.load_state_dict(state, strict=True)
    return unet.eval()


def to_theirs(x):
    return torch.tensor(np.array(x).transpose(0, 3, 1, 2))


def to_ours(x):
    return x.numpy().transpose(0, 2, 3, 1)


def noise(config, num=2):
    side = config.data.image_size
    return np.random.default_rng(1).standard_normal((num, side, side, 3)).astype(np.float32)


def relative_error(actual, expected):
    return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


def error_of_network(pipe, unet, x, time, labels, capsys):
    """The relative error of our network's prediction against theirs, also printed."""
    ours = jax.jit(pipe.model.apply)(pipe.variables, x, time, labels)
    with torch.no_grad():
        theirs = unet(to_theirs(x), torch.tensor(time), None if labels is None else torch.tensor(labels)).sample
    error = relative_error(np.asarray(ours), to_ours(theirs))
    with capsys.disabled():
        print(f" relative error {error:.1e} ", end="")
    return error


@pytest.fixture(params=NETWORKS)
def written(request, tmp_path):
    """A config, diffusers' network, and the folder that diffusers saved it in."""
    config = network(request.param)
    unet = their_unet(config)
    unet.save_pretrained(tmp_path / "unet")
    return config, unet, tmp_path / "unet"


def test_a_network_saved_by_diffusers_is_the_same_function(written, capsys):
    config, unet, folder = written
    pipe = ddim_jax.load_weights(folder, config)
    jax.tree.map(np.testing.assert_array_equal, pipe.params, random_params(config))
    x, time = noise(config), np.array([3.0, 700.0], np.float32)
    labels = np.array([1, 4]) if config.model.num_classes else None
    assert error_of_network(pipe, unet, x, time, labels, capsys) < 1e-4


@pytest.mark.parametrize("name", ["cifar10", "celeba", "lsun"])
def test_fifty_steps_end_in_the_same_image(tmp_path, capsys, name):
    config = network(name)
    unet = their_unet(config)
    unet.save_pretrained(tmp_path)
    x = noise(config)
    pipe = ddim_jax.load_weights(tmp_path, config)
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, steps=50))
    predict = build_predict(config, pipe.model, pipe.variables, Condition(), "none")
    # Before rounding to uint8, so that the error can be seen.
    ours = jax.jit(lambda x: build_sampler(config).run(predict, x))(jnp.asarray(x))

    scheduler = diffusers.DDIMScheduler.from_config(scheduler_config(config))
    scheduler.set_timesteps(50)
    theirs = to_theirs(x)
    with torch.no_grad():
        for time in scheduler.timesteps:
            theirs = scheduler.step(unet(theirs, time).sample, time, theirs, eta=0.0).prev_sample
    error = relative_error(np.asarray(ours), to_ours(theirs))
    with capsys.disabled():
        print(f" relative error {error:.1e} ", end="")
    assert error < 1e-3


@pytest.mark.parametrize("classes", [None, 7])
def test_a_network_with_the_defaults_of_diffusers_is_the_same_function(tmp_path, capsys, classes):
    """As its script for unconditional training makes them, narrow: all that is not named here is left to diffusers."""
    torch.manual_seed(3)
    unet = diffusers.UNet2DModel(
        sample_size=32,
        layers_per_block=2,
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=classes,
    ).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    unet.save_pretrained(tmp_path / "unet")
    pipe = ddim_jax.load_weights(tmp_path / "unet")
    model = pipe.config.model
    assert (model.time_freq_shift, model.time_cos_first, model.downsample_padding) == (0, True, 1)
    assert (model.norm_eps, model.head_channels) == (1e-5, 8)
    x, time = noise(pipe.config), np.array([3.0, 700.0], np.float32)
    labels = None
    if classes:
        assert (model.num_classes, model.null_label) == (classes, False)
        labels = np.array([0, classes - 1])
    assert error_of_network(pipe, unet, x, time, labels, capsys) < 1e-5
    # And back: what we export is what was there.
    exported = unet_config(pipe.config)
    again = diffusers.UNet2DModel.from_config(exported)
    assert {key: again.config[key] for key in exported} == {
        key: list(value) if isinstance(value := unet.config[key], tuple) else value
        for key in exported
        if not key.startswith("_")
    } | {key: value for key, value in exported.items() if key.startswith("_")} | {"dropout": model.dropout}


# --- what diffusers writes ----------------------------------------------------------------------


def test_the_whole_published_networks_are_those_of_diffusers():
    for published in published_networks():
        with torch.device("meta"):
            unet = diffusers.UNet2DModel.from_config(unet_config(published.config))
        theirs = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
        assert unet_state_shapes(published.config, "diffusers") == theirs


def test_pickled_and_old_weights_of_diffusers(tmp_path):
    config = network("cifar10")
    unet = their_unet(config)
    unet.save_pretrained(tmp_path / "bin", safe_serialization=False)
    assert (tmp_path / "bin" / "diffusion_pytorch_model.bin").exists()
    unet.save_pretrained(tmp_path / "old", safe_serialization=False)
    file = tmp_path / "old" / "diffusion_pytorch_model.bin"
    renamed = {}
    for name, value in torch.load(file).items():
        for modern, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{modern}.", f".{before}.")
        renamed[name] = value
    torch.save(renamed, file, _use_new_zipfile_serialization=False)
    # They are names that diffusers itself takes for its own.
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "old").state_dict()
    assert all(torch.equal(again[name], value) for name, value in unet.state_dict().items())
    for folder in ("bin", "old"):
        params = read_weights(tmp_path / folder, config).variables["params"]
        jax.tree.map(np.testing.assert_array_equal, params, random_params(config))


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("form", [{}, {"variant": "fp16"}], ids=["plain", "variant"])
@pytest.mark.parametrize("shard", [{}, {"max_shard_size": "20KB"}], ids=["whole", "shards"])
def test_every_form_in_which_diffusers_saves_weights(tmp_path, form, shard, pickled):
    config = network("cifar10")
    their_unet(config).save_pretrained(tmp_path / "unet", safe_serialization=not pickled, **form, **shard)
    assert (len(list((tmp_path / "unet").iterdir())) > 3) == bool(shard)
    params = read_weights(tmp_path, config).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, params, random_params(config))


def test_averages_saved_by_diffusers_training(tmp_path):
    config = network("classes")
    unet = their_unet(config)
    unet.save_pretrained(tmp_path / "unet")
    averages = diffusers.training_utils.EMAModel(
        unet.parameters(), decay=0.5, model_cls=diffusers.UNet2DModel, model_config=unet.config
    )
    for step in range(7):
        averages.step(unet.parameters())
        if step == 3:
            with torch.no_grad():
                for parameter in unet.parameters():
                    parameter.add_(1.0)
    averages.save_pretrained(tmp_path / "unet_ema")
    weights = read_weights(tmp_path, config)
    assert (weights.averaged, weights.step) == (True, 7)
    jax.tree.map(np.testing.assert_array_equal, weights.raw["params"], random_params(config))
    moved = weights.variables["params"]["conv_in"]["bias"] - weights.raw["params"]["conv_in"]["bias"]
    assert np.all((moved > 0.5) & (moved < 0.99))


# --- DDIM's code --------------------------------------------------------------------------------


def ddim_state(config, seed):
    """A state dict of DDIM's module, whose names and shapes are not taken from ours."""
    model = config.model
    shapes = DdimModule(
        config.data.image_size, model.channels, model.multipliers, model.num_blocks, model.attention_resolutions
    ).shapes
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        spread = 0.1 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5
        value = float(spread) * torch.randn(shape, generator=generator)
        state[name] = torch.nn.Parameter(value + ("norm" in name and name.endswith("weight"))).data
    return state


@pytest.mark.parametrize("form", ["new", "legacy", "list"])
def test_ddims_weights_are_the_same_function_in_diffusers(tmp_path, capsys, form):
    config = network("celeba")
    state = ddim_state(config, 3)
    path = tmp_path / "ckpt.pth"
    if form == "list":
        raw = {f"module.{name}": value for name, value in ddim_state(config, 4).items()}
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], amsgrad=False).state_dict()
        torch.save([raw, optimizer, 5, 790, state], path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "new")
    weights = read_weights(path, config)
    assert (weights.step, weights.averaged) == ((790, True) if form == "list" else (0, None))

    # diffusers reads the names that its converter makes of DDIM's.
    unet = diffusers.UNet2DModel.from_config(unet_config(config))
    unet.save_pretrained(tmp_path / "unet", safe_serialization=False)
    num_levels = len(config.model.multipliers)
    converted = {}
    for name, value in state.items():
        theirs = converted_name(name, num_levels)
        converted[theirs] = value.squeeze() if "attentions" in theirs else value
    torch.save(converted, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet").eval()

    x = noise(config)
    pipe = ddim_jax.load_weights(path, config)
    assert error_of_network(pipe, unet, x, np.array([3.0, 700.0], np.float32), None, capsys) < 1e-4


# --- what we write ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(diffusion__schedule="quad", sample__spacing="trailing"),
        dict(diffusion__schedule="cosine", sample__clip="keep_eps", diffusion__objective="v"),
        dict(sample__clip="rederive_eps"),
        dict(sample__clip="dynamic_threshold", sample__threshold_percentile=90.0, sample__threshold_limit=3.0),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_pipeline_draws_our_images(tmp_path, capsys, changes, dtype):
    config = small_config(**changes, sample__steps=20)
    path = write_ddim_checkpoint(tmp_path / "ckpt.pth", config)
    import_weights(dataclasses.replace(config, weights=WeightsConfig(path=str(path))), tmp_path / "run")
    out = export(dataclasses.replace(config, weights=WeightsConfig(dtype=dtype)), tmp_path / "run")

    pipeline = diffusers.DDIMPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    # As the export's warning says.
    rederived = config.sample.clip in ("rederive_eps", "dynamic_threshold")
    theirs = pipeline(
        batch_size=2,
        generator=generator,
        num_inference_steps=20,
        use_clipped_model_output=rederived,
        output_type="np",
    ).images
    x = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(5))
    ours = ddim_jax.load_weights(out, config).decode(to_ours(x))
    difference = np.abs(ours.astype(float) - 255 * theirs)
    with capsys.disabled():
        print(f" largest difference {difference.max():.3f} of 255 ", end="")
    # Half a level is the rounding to uint8.
    assert difference.max() < 0.51
    assert ours.std() > 20


@pytest.mark.parametrize("changes", [{}, {"model__scale_shift_norm": True, "model__resample_blocks": True}])
def test_diffusers_loads_and_saves_our_folder_without_loss(tmp_path, changes):
    config = small_config(model__num_classes=3, **changes)
    params = random_params(config)
    state = state_dict(config, "diffusers")
    their_unet(config).save_pretrained(tmp_path / "theirs")
    write_safetensors(tmp_path / "theirs" / "diffusion_pytorch_model.safetensors", ArrayFile(state, {"format": "pt"}))
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "theirs")
    unet.save_pretrained(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, read_weights(tmp_path / "again").variables["params"], params)
