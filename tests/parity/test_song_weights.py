"""Files in the forms of EDM and score SDE, written by PyTorch and Python's pickle, read without either.

No small package writes such files; their form is that of the published ones: EDM pickles objects as the text of their
class and their attributes, score SDE saves the averages as a list. By hand, files written by EDM's and score SDE's own
code were read too, and gave what that code computes, to 1e-5.
"""

import dataclasses
import io
import math
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from test_song_networks import SIZE, Reference, images, ours, random_state, to_score_sde

import ddim_jax
from ddim_jax.config import Config, DataConfig, ModelConfig, WeightsConfig, with_values
from ddim_jax.diffusion.schedule import make_schedule
from ddim_jax.errors import UserError
from ddim_jax.jobs.export import export
from ddim_jax.jobs.import_weights import import_weights
from ddim_jax.models import build_model
from ddim_jax.weights.forms import read_weights
from ddim_jax.weights.score_sde import score_sde_networks
from ddim_jax.weights.song_names import edm_shapes, score_sde_shapes

# What would happen if the text in a file were run.
TRAP = "import pathlib; pathlib.Path({path!r}).write_text('run')\n"
SETTINGS = dict(
    img_resolution=SIZE, in_channels=3, out_channels=3, label_dim=0, model_channels=8, channel_mult=[1, 2],
    num_blocks=1, attn_resolutions=[4, 16], dropout=0.13, augment_dim=9,
)  # fmt: skip
NCSNPP = dict(
    embedding_type="fourier", encoder_type="residual", channel_mult_noise=2, resample_filter=[1, 3, 3, 1], label_dim=3
)


def _reconstruct_persistent_obj(meta):
    raise AssertionError("objects are not made")


@pytest.fixture
def edm_modules(monkeypatch):
    """Modules that have the names under which EDM's functions are pickled."""
    torch_utils, persistence = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    dnnlib, util = types.ModuleType("dnnlib"), types.ModuleType("dnnlib.util")
    monkeypatch.setattr(_reconstruct_persistent_obj, "__module__", "torch_utils.persistence")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    util.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util", "__qualname__": "EasyDict"})
    for module in (torch_utils, persistence, dnnlib, util):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return util.EasyDict


class Persistent:
    """An object that is pickled as the text of its class and its attributes."""

    def __init__(self, class_name, source, state):
        self.class_name, self.source, self.state = class_name, source, state

    def __reduce__(self):
        meta = dict(
            type="class", version=6, module_src=self.source, class_name=self.class_name, state=self.state,
        )  # fmt: skip
        return _reconstruct_persistent_obj, (meta,)


def module_state(parameters=(), buffers=(), modules=(), **attributes):
    """The attributes of a module of PyTorch's."""
    state = torch.nn.Module().__dict__ | {"training": False, **attributes}
    state["_parameters"] = dict(parameters)
    state["_buffers"] = dict(buffers)
    state["_modules"] = dict(modules)
    return state


def as_modules(state, source, settings):
    """Makes modules in modules of a state dict: a ``ModuleDict`` of PyTorch's for each half, EDM's for the others."""
    tree = {}
    for name, value in state.items():
        *path, last = name.split(".")
        # The name of a block has no dots; enc and dec hold the blocks.
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value

    def build(node, name):
        arrays = {key: torch.tensor(value) for key, value in node.items() if isinstance(value, np.ndarray)}
        inner = {key: build(value, key) for key, value in node.items() if isinstance(value, dict)}
        frozen = ("freqs", "resample_filter")
        parameters = {k: torch.nn.Parameter(v, requires_grad=False) for k, v in arrays.items() if k not in frozen}
        buffers = {k: v for k, v in arrays.items() if k in frozen}
        if name in ("enc", "dec"):
            group = torch.nn.ModuleDict()
            group._modules.update(inner)
            return group
        # NumPy's numbers are among the attributes of real files.
        extra = dict(skip_scale=np.sqrt(0.5), dtype=torch.float32, kernel=None, device=torch.device("cpu"))
        return Persistent("UNetBlock", source, module_state(parameters, {**buffers, "none": None}, inner, **extra))

    inner = {name: build(value, name) for name, value in tree.items()}
    made = dict(_init_args=(), _init_kwargs=settings, label_dropout=0)
    return Persistent("SongUNet", source, module_state(modules=inner, **made))


def write_edm(path, state, settings, outer="EDMPrecond", protocol=4, easy_dict=dict, **attributes):
    source = TRAP.format(path=str(path.with_suffix(".run")))
    filters = {"enc.4x4_down.conv0.resample_filter": np.ones((1, 1, 2, 2), np.float32) / 4}
    network = as_modules({**state, **filters}, source, settings)
    attributes = {"sigma_data": 0.5, "sigma_min": 0, "sigma_max": float("inf"), **attributes}
    outer = Persistent(outer, source, module_state(modules={"model": network}, **attributes))
    saved = dict(
        ema=outer,
        loss_fn=Persistent("EDMLoss", source, {"P_mean": -1.2, "P_std": np.float64(1.2)}),
        augment_pipe=None,
        dataset_kwargs=easy_dict(path="data.zip"),
    )
    with path.open("wb") as file:
        pickle.dump(saved, file, protocol=protocol)
    return path


def edm_config(fourier=False, classes=0):
    form = dict(embedding="fourier", encoder="residual", resample_filter=(1, 3, 3, 1)) if fourier else {}
    model = ModelConfig(
        name="song_unet", channels=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,),
        augmentation_inputs=9, num_classes=classes, **form,
    )  # fmt: skip
    return Config(data=DataConfig(image_size=SIZE), model=model)


def read(path, capsys=None):
    weights = read_weights(path)
    assert not path.with_suffix(".run").exists(), "the text in the file was run"
    return weights


def predicted(weights, x, level, *inputs):
    """Eps of the network that was read, by its own config: from x, kept variance-preserving."""
    diffusion = weights.config.diffusion
    schedule = make_schedule(
        diffusion.schedule, diffusion.num_levels, diffusion.beta_start, diffusion.beta_end,
        sigma_min=diffusion.sigma_min, sigma_max=diffusion.sigma_max, sigma_data=diffusion.sigma_data,
    )  # fmt: skip
    alpha_bar, time = float(schedule.alpha_bar_at(level)), float(schedule.time_input(level))
    scaled = np.asarray(schedule.network_input(x, alpha_bar), np.float32)
    out = ours(weights.config, weights.variables, scaled, np.full(len(x), time), *inputs)
    if diffusion.objective == "v":
        out = alpha_bar**0.5 * out + (1 - alpha_bar) ** 0.5 * x
    return out, ((1 - alpha_bar) / alpha_bar) ** 0.5


# --- EDM -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 4])
def test_edms_network_denoises_as_its_equations_say(tmp_path, edm_modules, protocol):
    """D = c_skip x + c_out F(c_in x, ln(sigma) / 4), Karras et al. 2022, eq. 7 and table 1."""
    state = random_state(edm_shapes(edm_config()))
    weights = read(write_edm(tmp_path / "edm.pkl", state, SETTINGS, protocol=protocol, easy_dict=edm_modules))
    assert weights.averaged and weights.raw is None
    diffusion, data, model = weights.config.diffusion, weights.config.data, weights.config.model
    assert (diffusion.schedule, diffusion.objective, data.mean, data.std) == ("edm", "v", (0.5,), (0.25,))
    assert (model.attention_resolutions, model.dropout, model.augmentation_inputs) == ((4,), 0.13, 9)

    level, x = 400, images()
    eps, noise_to_signal = predicted(weights, x, level)
    sigma = 0.5 * noise_to_signal
    c_in = 1 / np.sqrt(sigma**2 + 0.25)
    noisy = x / c_in  # x is kept at variance one
    out = Reference(state, weights.config)(x, np.full(3, np.log(sigma) / 4), None, np.zeros((3, 9)))
    denoised = 0.25 * c_in**2 * noisy + sigma * 0.5 * c_in * out
    expected = (noisy - denoised) / sigma
    assert np.max(np.abs(eps - expected)) < 1e-4 * np.max(np.abs(expected))


def test_networks_with_vps_and_ves_scales(tmp_path, edm_modules):
    x, level = images(), 400
    state = random_state(edm_shapes(edm_config()))
    path = write_edm(
        tmp_path / "vp.pkl", state, SETTINGS, "VPPrecond", beta_d=19.9, beta_min=0.1, M=1000, epsilon_t=1e-5
    )
    weights = read(path)
    eps, noise_to_signal = predicted(weights, x, level)
    t = level / 1000
    np.testing.assert_allclose(noise_to_signal, np.sqrt(np.exp(19.9 * t**2 / 2 + 0.1 * t) - 1), rtol=1e-9)
    expected = Reference(state, weights.config)(x, np.full(3, 999 * t), None, np.zeros((3, 9)))
    assert np.max(np.abs(eps - expected)) < 1e-4 * np.max(np.abs(expected))

    state = random_state(edm_shapes(edm_config(fourier=True, classes=3)))
    path = write_edm(tmp_path / "ve.pkl", state, {**SETTINGS, **NCSNPP}, "VEPrecond", sigma_min=0.02, sigma_max=100.0)
    weights = read(path)
    assert weights.config.diffusion.sigma_max == 100 and not weights.config.model.null_label
    label = np.array([0, 2, 1])
    eps, sigma = predicted(weights, x, level, label)
    # D = x_t + sigma F(x_t, ln(sigma / 2)), x_t = x_0 + sigma eps.
    noisy = x * np.sqrt(1 + sigma**2)
    out = Reference(state, weights.config)(noisy, np.full(3, np.log(sigma / 2)), np.eye(3)[label], np.zeros((3, 9)))
    assert np.max(np.abs(eps + out)) < 2e-4 * np.max(np.abs(out))


def refusal(path, config=None):
    with pytest.raises(UserError) as caught:
        read_weights(path, config)
    assert "\n" not in str(caught.value)
    assert not path.with_suffix(".run").exists()
    return str(caught.value)


def test_files_of_edm_that_are_refused(tmp_path, edm_modules):
    state = random_state(edm_shapes(edm_config()))
    path = tmp_path / "edm.pkl"
    assert "holds a network in iDDPMPrecond" in refusal(write_edm(path, state, SETTINGS, "iDDPMPrecond"))
    assert "decoder_type='skip'; only 'standard'" in refusal(
        write_edm(path, state, {**SETTINGS, "decoder_type": "skip"})
    )
    assert "sigma_data is 'x', no positive number" in refusal(write_edm(path, state, SETTINGS, sigma_data="x"))
    broken = {**SETTINGS, "img_resolution": "8"}
    assert "settings of its EDMPrecond that cannot be used" in refusal(write_edm(path, state, broken))
    missing = {name: value for name, value in state.items() if name != "map_layer1.bias"}
    assert "map_layer1.bias (there none, here (32,))" in refusal(write_edm(path, missing, SETTINGS))
    config = with_values(edm_config(), {"model.channels": 16, "diffusion.schedule": "edm", "diffusion.objective": "v"})
    said = refusal(write_edm(path, state, SETTINGS), config)
    assert "disagree" in said and "model.channels (there 8, here 16)" in said and "--config.data.std='(0.25,)'" in said

    whole = path.read_bytes()
    for length in (1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "damaged or cut short" in refusal(path)
    path.write_bytes(pickle.dumps({"ema": {"a": 1}}))
    assert "not a PyTorch file, nor a network that EDM pickled" in refusal(path)
    torch.save({name: torch.tensor(value) for name, value in state.items()}, path)
    assert "give the .pkl" in refusal(path)


def test_nothing_named_in_a_file_is_run_or_imported(tmp_path, edm_modules):
    class Command:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'edm.run'}",)

    class Import:
        def __reduce__(self):
            return __import__, ("antigravity",)

    path = tmp_path / "edm.pkl"
    path.write_bytes(pickle.dumps({"ema": Command(), "other": Import()}))
    assert "not a PyTorch file, nor a network that EDM pickled" in refusal(path)
    assert "antigravity" not in sys.modules
    # Beside a network they do no harm either.
    state = random_state(edm_shapes(edm_config()))
    path = write_edm(tmp_path / "edm.pkl", state, SETTINGS, hook=Command(), module=Import())
    assert read(path).averaged
    assert "antigravity" not in sys.modules


def test_pickles_that_would_take_all_memory_or_time(tmp_path):
    path = tmp_path / "edm.pkl"
    path.write_bytes(b"\x80\x04.")
    assert "damaged" in refusal(path)
    # The bytes of one storage, made a storage again and again.
    storage = io.BytesIO()
    torch.save(torch.zeros(1000)._typed_storage(), storage, _use_new_zipfile_serialization=False)
    stored = pickle.dumps(storage.getvalue(), 3)[2:-1]
    assert stored.endswith(b"q\x00")
    load = b"ctorch.storage\n_load_from_bytes\n"
    for times, message in ((1000, "damaged"), (100_000, "instructions")):
        path.write_bytes(b"\x80\x03]" + load + stored + b"\x85Ra" + (load + b"h\x00\x85Ra") * times + b".")
        assert message in refusal(path)
    path.write_bytes(b"\x80\x03c" + b"a" * 2000 + b"\nb\n.")
    assert "a class with 2,002 letters" in refusal(path)


@pytest.mark.slow
def test_a_network_of_edm_is_sampled_and_exported(tmp_path, edm_modules):
    state = random_state(edm_shapes(edm_config(fourier=True)))
    path = write_edm(tmp_path / "edm.pkl", state, {**SETTINGS, **NCSNPP, "label_dim": 0})
    pipe = ddim_jax.load_weights(path)
    assert (pipe.config.sample.sampler, pipe.config.sample.spacing, pipe.config.sample.steps) == (
        "edm",
        "linspace",
        18,
    )
    images = pipe.sample(2, seed=0, steps=3)
    assert images.shape == (2, SIZE, SIZE, 3) and images.dtype == np.uint8
    # The frequencies, which are no parameters, are exported too.
    workdir = tmp_path / "run"
    import_weights(dataclasses.replace(pipe.config, weights=WeightsConfig(path=str(path))), workdir)
    np.testing.assert_array_equal(ddim_jax.load(workdir).sample(2, seed=0, steps=3), images)
    export(
        dataclasses.replace(pipe.config, weights=WeightsConfig(format="npz", out=str(tmp_path / "out.npz"))), workdir
    )
    np.testing.assert_array_equal(ddim_jax.load_weights(tmp_path / "out.npz").sample(2, seed=0, steps=3), images)


def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, edm_modules):
    whole = write_edm(tmp_path / "whole.pkl", random_state(edm_shapes(edm_config())), SETTINGS).read_bytes()
    # What is between the arrays: damaged arrays may be read.
    rng, path = np.random.default_rng(0), tmp_path / "edm.pkl"
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 5):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except UserError as error:
            assert "\n" not in str(error)
        assert not path.with_suffix(".run").exists()


# --- score SDE -------------------------------------------------------------------------------------


def score_sde_state(config, seed=0):
    state = random_state(edm_shapes(config), seed)
    return state, to_score_sde(state, config)


def write_score_sde(path, raw, averages):
    """As ``save_checkpoint`` of its PyTorch code: names as DataParallel has them, averages of what is trained."""
    model = {"module.sigmas": torch.linspace(50, 0.01, 1000)}
    model |= {f"module.{name}": torch.tensor(np.array(value)) for name, value in raw.items()}
    trained = [torch.tensor(np.array(value)) for name, value in averages.items() if name != "all_modules.0.W"]
    ema = {"decay": 0.9999, "num_updates": 7, "shadow_params": trained}
    torch.save({"optimizer": {"state": {}}, "model": model, "ema": ema, "step": 7}, path)
    return path


@pytest.mark.parametrize("schedule", ["vp", "ve"])
def test_score_sdes_checkpoints(tmp_path, schedule):
    config = edm_config(fourier=schedule == "ve")
    config = with_values(
        config,
        {"model.augmentation_inputs": 0, "diffusion.schedule": schedule, "diffusion.sigma_min": 0.02,
         "diffusion.sigma_max": 100.0},
    )  # fmt: skip
    state, raw = score_sde_state(config)
    averaged_state, averages = score_sde_state(config, seed=1)
    if schedule == "ve":  # the frequencies are not trained
        averaged_state["map_noise.freqs"] = averages["all_modules.0.W"] = raw["all_modules.0.W"]
    path = write_score_sde(tmp_path / "checkpoint_8.pth", raw, averages)
    weights = read_weights(path, config)
    assert (weights.averaged, weights.step, weights.config) == (True, 7, config)
    x, level = images(), 400
    for variables, theirs in ((weights.variables, averaged_state), (weights.raw, state)):
        eps, noise_to_signal = predicted(weights._replace(variables=variables), x, level)
        if schedule == "vp":
            expected = Reference(theirs, config)(x, np.full(3, 999 * level / 1000))
        else:
            # The score of pixels in [0, 1] is h / sigma, h told ln(sigma) and given 2 x - 1.
            noisy = x * np.sqrt(1 + noise_to_signal**2)
            expected = -Reference(theirs, config)(noisy, np.full(3, np.log(noise_to_signal / 2)))
        assert np.max(np.abs(eps - expected)) < 2e-4 * np.max(np.abs(expected))


def test_published_networks_are_recognised(tmp_path, capsys):
    """By shapes alone, so zeros will do. The counts are those of the networks that score SDE's code builds."""
    counts = []
    for network in score_sde_networks():
        parameters = [shape for name, shape in score_sde_shapes(network.config).items() if name != "all_modules.0.W"]
        counts.append(sum(map(math.prod, parameters)))
        if "deep" in network.name:
            continue
        shapes = score_sde_shapes(network.config)
        zeros = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
        path = tmp_path / "checkpoint.pth"
        torch.save(zeros, path)
        weights = read_weights(path)
        assert weights.config == network.config
        assert f"is taken for score SDE's {network.name}" in capsys.readouterr().err
        assert weights.config.diffusion.schedule == ("ve" if "VE" in network.name else "vp")
    assert counts == [61_804_419, 106_632_579, 62_758_787, 107_586_947]


def test_score_sdes_files_that_are_refused(tmp_path):
    config = with_values(edm_config(), {"model.augmentation_inputs": 0, "diffusion.schedule": "vp"})
    _, raw = score_sde_state(config)
    path = write_score_sde(tmp_path / "checkpoint.pth", raw, raw)
    assert "give the config that it was trained with" in refusal(path)
    assert "whose networks are model.name=song_unet, but the config has unet" in refusal(path, Config())
    assert "set diffusion.objective=eps" in refusal(path, with_values(config, {"diffusion.objective": "x0"}))
    assert "know neither classes nor" in refusal(path, with_values(config, {"model.num_classes": 2}))
    # Averages of another network.
    write_score_sde(path, raw, dict(list(raw.items())[:-2]))
    assert read_weights(path, config).averaged
    write_score_sde(path, raw, {**raw, "more": np.zeros(3, np.float32)})
    assert refusal(path, config)


def test_the_names_of_a_network_are_numbered_as_pytorch_numbers_them():
    """Without gaps."""
    network = score_sde_networks()[0]
    numbers = {int(name.split(".")[1]) for name in score_sde_shapes(network.config)}
    assert numbers == set(range(max(numbers) + 1))
    assert build_model(network.config).multipliers == (1, 2, 2, 2)
