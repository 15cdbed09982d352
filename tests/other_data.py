"""A model of data that are not 8-bit pictures: rectangles of two channels of floats, or of 16-bit integers."""

import numpy as np
from etils import epath

from ddim_jax.config import (
    Config,
    DataConfig,
    DiffusionConfig,
    EditConfig,
    EvalConfig,
    InterpolateConfig,
    LikelihoodConfig,
    ModelConfig,
    ReconstructConfig,
    SampleConfig,
    SweepConfig,
    TrainConfig,
    TrajectoryConfig,
)
from ddim_jax.models import build_model
from ddim_jax.training.checkpoint import Checkpoints
from ddim_jax.training.state import init_state, make_optimizer
from ddim_jax.workdir import checkpoint_dir, prepare_for_training

SHAPE = (16, 8, 2)

CONFIG = Config(
    data=DataConfig(image_size=SHAPE[:2], channels=SHAPE[2], dtype="float32", range=(-1.0, 3.0, 0.0, 500.0)),
    model=ModelConfig(
        channels=16, num_groups=4, multipliers=(1, 2), num_blocks=1, attention_resolutions=(8,), init="torch"
    ),
    diffusion=DiffusionConfig(num_levels=40),
    train=TrainConfig(batch_size=8, steps=1, sample_every=0, final_sample_steps=(), tensorboard=False),
    sample=SampleConfig(num=3, steps=3, batch_size=4),
    trajectory=TrajectoryConfig(num=2, moments=2),
    interpolate=InterpolateConfig(first=(0,), second=(1,), points=3, corners=(0, 1, 2, 3), side=2),
    reconstruct=ReconstructConfig(num=4, steps=(3,), shown=2),
    edit=EditConfig(level=20, num=3, resamplings=1, jump=1),
    sweep=SweepConfig(etas=(0.0,), samplers=(), steps=(2, 3), num=2),
    likelihood=LikelihoodConfig(method="ode", steps=3, num=3),
    eval=EvalConfig(num=8, steps=(3,), extractor="pixels", metrics=("fid",), batch_size=4),
)


def make_workdir(folder, config: Config = CONFIG) -> epath.Path:
    """A workdir with the weights that training begins with, as if it were done."""
    workdir = epath.Path(folder)
    prepare_for_training(workdir, config)
    state = init_state(config, build_model(config), make_optimizer(config.train, 1))
    checkpoint_dir(workdir).mkdir()
    with Checkpoints(checkpoint_dir(workdir)) as checkpoints:
        checkpoints.save(0, state)
    return workdir


def fields(num: int, config: Config = CONFIG) -> np.ndarray:
    """Smooth images over the whole range of the data: [num, h, w, c]."""
    height, width, channels = config.data.image_shape
    y, x = np.mgrid[:height, :width]
    phases = np.random.default_rng(0).random((num, 1, 1, channels)) * 6
    waves = (np.sin(y[..., None] / 3 + phases) + np.cos(x[..., None] / 2 + phases) + 2) / 4
    values = config.data.range or (0.0, 65535.0)
    low, high = np.asarray(values[::2]), np.asarray(values[1::2])
    found = np.clip(low + waves * (high - low), low, high)
    return found.astype(np.float32) if config.data.dtype == "float32" else np.round(found).astype(config.data.dtype)
