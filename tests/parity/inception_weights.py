"""Random weights for the Inception network, under which signals neither vanish nor explode."""

import numpy as np
import torch

from ddim_jax.weights.inception import inception_state_shapes


def random_state() -> dict[str, torch.Tensor]:
    """A state dict as PyTorch would save it."""
    rng = np.random.default_rng(0)
    state = {}
    for name, shape in inception_state_shapes().items():
        spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        state[name] = spread * rng.standard_normal(shape)
        if name.endswith("running_var"):
            state[name] = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("bn.weight"):
            state[name] += 1
    tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in state.items()}
    for name in list(tensors):
        if name.endswith("running_var"):
            tensors[name.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    return tensors
