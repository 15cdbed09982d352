"""The Python API: a trained model, ready to draw images.

>>> import ddim_jax
>>> pipe = ddim_jax.load("runs/digits")  # doctest: +SKIP
>>> images = pipe.sample(16, seed=0, steps=50, eta=0.0)  # doctest: +SKIP
"""

import dataclasses
from typing import Any

import flax.linen as nn
import numpy as np
from etils import epath

from ddim_jax import config as config_module
from ddim_jax.config import Config
from ddim_jax.errors import UserError
from ddim_jax.models import build_model
from ddim_jax.sampling.sampler import ImageSampler, sampler_for
from ddim_jax.training.checkpoint import Checkpoints, select_weights
from ddim_jax.training.state import abstract_state, make_optimizer
from ddim_jax.workdir import checkpoint_dir, read_config


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A network with weights.

    Attributes:
        config: the resolved config; ``config.sample`` holds the default settings of :meth:`sample`.
        model: the Flax network.
        variables: ``params`` and ``batch_stats`` as NumPy arrays.
        step: training steps done.
    """

    config: Config
    model: nn.Module
    variables: Any
    step: int

    @property
    def params(self) -> Any:
        """The network's parameters: the moving averages unless loaded with ``ema=False``."""
        return self.variables["params"]

    def sample(
        self,
        num: int,
        *,
        seed: int = 0,
        start: int = 0,
        steps: int | None = None,
        eta: float | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Draws images.

        Image i depends on ``seed`` and i alone, so ``sample(8)`` and ``sample(4)`` followed by ``sample(4, start=4)``
        give the same eight.

        Args:
            num: number of images n.
            seed: seed of the images.
            start: index of the first image.
            steps: network evaluations S.
            eta: 0 for DDIM, 1 for DDPM's posterior variance.
            batch_size: images per device at a time.
            **settings: any other key of ``config.sample``, e.g. ``sampler="ddpm_large"`` or ``spacing="quad"``.

        Returns:
            uint8 [n, h, w, c].

        Raises:
            UserError: a setting that does not exist or cannot be used.
        """
        given = {"steps": steps, "eta": eta, "batch_size": batch_size}
        settings.update({key: value for key, value in given.items() if value is not None})
        if eta is not None:
            settings.setdefault("eta_per_step", ())
        sampler = self.sampler(num, seed=seed, start=start, **settings)
        return sampler.draw(self.variables, range(start, start + num))

    def sampler(self, num: int, **settings: Any) -> ImageSampler:
        """A sampler for batches of images, for callers that handle images as they come."""
        known = {field.name for field in dataclasses.fields(self.config.sample)}
        for name in settings:
            if name not in known:
                config_module.check_key(f"sample.{name}")
        changed = dataclasses.replace(self.config, sample=dataclasses.replace(self.config.sample, num=num, **settings))
        config_module.check(changed)
        return sampler_for(changed, self.model, num)


def load(workdir: epath.PathLike, step: int | None = None, ema: bool = True) -> Pipeline:
    """Loads a trained model.

    Args:
        workdir: a folder that ``--mode=train`` wrote.
        step: step of the checkpoint; the newest when None.
        ema: take the moving averages of the parameters, as all published results do.

    Raises:
        UserError: the workdir holds no config or no such checkpoint.
    """
    config = read_config(workdir)
    model = build_model(config)
    directory = checkpoint_dir(workdir)
    if not directory.exists():
        raise UserError(f"no checkpoint in workdir {workdir}: train there first, or name another --workdir")
    like = abstract_state(config, model, make_optimizer(config.train, 1))
    with Checkpoints(directory, read_only=True) as checkpoints:
        newest = checkpoints.latest_step()
        if newest is None:
            raise UserError(f"no checkpoint in workdir {workdir}: train there first, or name another --workdir")
        step = newest if step is None else step
        state = checkpoints.restore(step, like)
    return Pipeline(config, model, select_weights(state, ema), step)
