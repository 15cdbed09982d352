"""The same network in PyTorch: diffusers' ``UNet2DModel``, and the code that the DDIM paper was released with.

Both get our parameters, so that what they compute can be compared with ours. On a GPU they run in channels-last layout;
with ``model.dtype=bfloat16`` under autocast, the usual way there to compute in bfloat16 with float32 parameters.
"""

import contextlib
import importlib
import importlib.util
import math
import os
import pathlib
import re
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.rows import Program
from ddim_jax import parallel
from ddim_jax.config import Config
from ddim_jax.configured import build_levels, build_schedule
from ddim_jax.models import parameter_count
from ddim_jax.weights.diffusers_config import scheduler_config, unet_config
from ddim_jax.weights.unet_names import Naming, to_torch


class TorchNetwork(NamedTuple):
    """A network, and how its project would sample with it.

    Attributes:
        network: ``network(x, time)`` returns the predicted noise, for x [n, c, h, w] and time [n].
        module: whose parameters are trained.
        next_x: ``next_x(x, eps, step)`` does DDIM step ``step``, counted from 0.
        times: the network's time in each step.
    """

    network: Callable[[Any, Any], Any]
    module: Any
    next_x: Callable[[Any, Any, int], Any]
    times: list[int]


def import_torch() -> Any:
    """PyTorch with a thread for each core that we may use, multiplying float32 as JAX does by default (TF32 on GPUs).

    Raises:
        ImportError: it is not installed.
    """
    # Read when PyTorch is loaded. By default its threads spin while they wait for one another: where other work takes a
    # core from one of them, the rest burn theirs, and small networks become ten times as slow.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    torch = importlib.import_module("torch")
    torch.set_num_threads(parallel.usable_cores())
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        # Lets cuDNN try which of its algorithms is the fastest.
        torch.backends.cudnn.benchmark = True
    return torch


def torch_device(torch: Any) -> str:
    """``cuda`` if there is a GPU that PyTorch can use, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe_torch(torch: Any) -> str:
    """Device and threads in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return f"cpu, {torch.get_num_threads()} threads"


def repair_torchvision(torch: Any) -> Any:
    """Lets a torchvision be imported that was built for another PyTorch.

    It fails since its compiled part lacks operators. Nothing here calls them: it is enough to declare them.

    Returns:
        What has to be kept for as long as torchvision is used.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    while True:
        try:
            importlib.import_module("torchvision")
        except ImportError:
            return library
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            arguments = "Tensor dets, Tensor scores, float iou_threshold" if missing[1] == "nms" else "Tensor values"
            library.define(f"{missing[1]}({arguments}) -> Tensor")
        else:
            return library


# --- the networks -------------------------------------------------------------------------------


def diffusers_network(torch: Any, config: Config, params: Any) -> TorchNetwork:
    """The network of diffusers with our parameters, and its DDIM scheduler.

    With ``configs/cifar10.py`` it is the network of google/ddpm-cifar10-32, with dropout in training as ours.

    Raises:
        ImportError: diffusers is not installed.
        UserError: it has no such network or schedule.
    """
    diffusers: Any = importlib.import_module("diffusers")
    settings = {name: value for name, value in unet_config(config).items() if not name.startswith("_")}
    module = _with_params(torch, diffusers.UNet2DModel(**settings), config, params, "diffusers")
    settings = {name: value for name, value in scheduler_config(config).items() if not name.startswith("_")}
    scheduler = diffusers.DDIMScheduler(**settings)
    scheduler.set_timesteps(config.sample.steps)
    times = scheduler.timesteps.tolist()

    def next_x(x: Any, eps: Any, step: int) -> Any:
        return scheduler.step(eps, times[step], x, eta=0.0).prev_sample

    return TorchNetwork(lambda x, time: module(x, time).sample, module, next_x, times)


def ddim_code_network(torch: Any, config: Config, params: Any, checkout: pathlib.Path) -> TorchNetwork:
    """The network of DDIM's code with our parameters, and DDIM's equation 12 at eta = 0.

    Its own sampling loop keeps all it passed in memory, and needs a GPU.

    Args:
        torch: PyTorch.
        config: the run.
        params: our parameters.
        checkout: a checkout of github.com/ermongroup/ddim.
    """
    spec = importlib.util.spec_from_file_location("ddim_code_diffusion", checkout / "models" / "diffusion.py")
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    data, model = config.data, config.model
    settings = types.SimpleNamespace(
        model=types.SimpleNamespace(
            type="simple",
            in_channels=data.channels,
            out_ch=data.channels,
            ch=model.channels,
            ch_mult=model.multipliers,
            num_res_blocks=model.num_blocks,
            attn_resolutions=model.attention_resolutions,
            dropout=model.dropout,
            resamp_with_conv=True,
        ),
        data=types.SimpleNamespace(image_size=data.image_size),
        diffusion=types.SimpleNamespace(num_diffusion_timesteps=config.diffusion.num_levels),
    )
    module = _with_params(torch, code.Model(settings), config, params, "ddim")
    groups = next(part for name, part in module.named_modules() if name.endswith("norm1")).num_groups
    assert groups == model.num_groups, f"its norms have {groups} groups, ours {model.num_groups}"
    levels = build_levels(config)
    alpha_bar = build_schedule(config).alpha_bar[np.append(levels, 0)].tolist()

    def next_x(x: Any, eps: Any, step: int) -> Any:
        now, after = alpha_bar[step], alpha_bar[step + 1]
        x0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        return math.sqrt(after) * x0 + math.sqrt(1 - after) * eps

    return TorchNetwork(lambda x, time: module(x, time.float()), module, next_x, (levels - 1).tolist())


def _with_params(torch: Any, module: Any, config: Config, params: Any, naming: Naming) -> Any:
    state = {
        name: torch.tensor(np.ascontiguousarray(value))
        for name, value in to_torch(params, naming, len(config.model.multipliers)).items()
    }
    module.load_state_dict(state, strict=True)
    theirs, ours = sum(p.numel() for p in module.parameters()), parameter_count(params)
    assert theirs == ours, f"{theirs:,} parameters, ours has {ours:,}"
    module = module.to(torch_device(torch)).eval()
    return module.to(memory_format=torch.channels_last) if torch.cuda.is_available() else module


def compiled(torch: Any, network: TorchNetwork) -> TorchNetwork:
    """The same network by ``torch.compile``, which compiles in its first run."""
    return network._replace(network=torch.compile(network.network))


# --- what they do -------------------------------------------------------------------------------


def _autocast(torch: Any, config: Config) -> contextlib.AbstractContextManager[Any]:
    if config.model.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch_device(torch), dtype=torch.bfloat16)


def _to_device(torch: Any, images: np.ndarray) -> Any:
    """[n, h, w, c] → a tensor [n, c, h, w] on the device, in the layout that suits it."""
    tensor = torch.tensor(images).to(torch_device(torch)).permute(0, 3, 1, 2)
    return tensor.contiguous(
        memory_format=torch.channels_last if torch.cuda.is_available() else torch.contiguous_format
    )


def forward_program(
    torch: Any, config: Config, network: TorchNetwork, x: np.ndarray, time: np.ndarray, calls: int
) -> Program:
    """``calls`` forward passes; returns the last one's result, [n, h, w, c], for which it has to wait."""
    inputs, times = _to_device(torch, x), torch.tensor(time).to(torch_device(torch))

    def run() -> np.ndarray:
        network.module.eval()
        with torch.inference_mode(), _autocast(torch, config):
            outputs = [network.network(inputs, times) for _ in range(calls)]
        return outputs[-1].float().cpu().numpy().transpose(0, 2, 3, 1)

    return Program(run)


def sample_program(torch: Any, config: Config, network: TorchNetwork, num: int) -> Program:
    """One trajectory of ``num`` images by DDIM; returns uint8 [n, h, w, c]."""
    device = torch_device(torch)
    shape = (num, config.data.channels, config.data.image_size, config.data.image_size)
    layout = torch.channels_last if torch.cuda.is_available() else torch.contiguous_format
    times = [torch.full((num,), time, device=device) for time in network.times]

    def run() -> np.ndarray:
        network.module.eval()
        with torch.inference_mode(), _autocast(torch, config):
            x = torch.randn(shape, device=device).contiguous(memory_format=layout)
            for step, time in enumerate(times):
                x = network.next_x(x, network.network(x, time).float(), step)
            images = ((x / 2 + 0.5).clamp(0, 1) * 255 + 0.5).to(torch.uint8)
            return images.cpu().numpy().transpose(0, 2, 3, 1)

    return Program(run)


def train_program(torch: Any, config: Config, network: TorchNetwork, images: np.ndarray, steps: int) -> Program:
    """``steps`` training steps by Adam with clipping and a moving average; the loss is fetched once, at the end.

    Each step brings its uint8 images [n, h, w, c] to the device, as ours does.
    """
    device, train = torch_device(torch), config.train
    pixels = torch.tensor(images)
    if device == "cuda":
        pixels = pixels.pin_memory()
    alpha_bar = torch.tensor(build_schedule(config).alpha_bar[1:], dtype=torch.float32, device=device)
    optimizer = torch.optim.Adam(network.module.parameters(), lr=train.learning_rate, fused=device == "cuda")
    average = torch.optim.swa_utils.AveragedModel(
        network.module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(train.ema_decay)
    )

    def step() -> Any:
        x0 = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 127.5 - 1
        time = torch.randint(len(alpha_bar), (len(x0),), device=device)
        eps = torch.randn_like(x0)
        level = alpha_bar[time].reshape(-1, 1, 1, 1)
        x = level.sqrt() * x0 + (1 - level).sqrt() * eps
        with _autocast(torch, config):
            output = network.network(x, time)
        loss = torch.nn.functional.mse_loss(output.float(), eps)
        optimizer.zero_grad()
        loss.backward()
        if train.grad_clip:
            torch.nn.utils.clip_grad_norm_(network.module.parameters(), train.grad_clip)
        optimizer.step()
        average.update_parameters(network.module)
        return loss.detach()

    def run() -> float:
        network.module.train()
        losses = [step() for _ in range(steps)]
        return float(losses[-1])

    return Program(run)
