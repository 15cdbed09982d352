"""Other projects' programs for the tasks of the network, by name."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import score_sde, torch_peers
from benchmarks.rows import Program
from benchmarks.torch_peers import TorchNetwork
from ddim_jax.config import Config

_EAGER, _COMPILED, _DDIM_CODE, _SCORE_SDE = "diffusers, eager", "diffusers, compiled", "DDIM's code", "score_sde (JAX)"

# Those of Inception's features.
FEATURE_PEERS = TORCH_FIDELITY, PYTORCH_FID = "torch-fidelity", "pytorch-fid"

# Functions that make programs when they are wanted, by name.
_Makers = dict[str, Callable[[], Program]]


def peer_names(subject: str, ddim_code: bool, score_sde: bool) -> list[str]:
    """The peers of a subject.

    Args:
        subject: ``train``, ``sample``, ``forward`` or ``inception``.
        ddim_code: whether there is a checkout of DDIM's code.
        score_sde: whether there is one of score_sde, which does not sample here.
    """
    if subject == "inception":
        return list(FEATURE_PEERS)
    names = [_EAGER, _COMPILED]
    if ddim_code:
        names.append(_DDIM_CODE)
    if score_sde and subject != "sample":
        names.append(_SCORE_SDE)
    return names


class Peers:
    """The peers that run beside us.

    Attributes:
        torch: PyTorch, for those who need it for something else.
    """

    def __init__(self, ddim_code: pathlib.Path | None, score_sde: pathlib.Path | None) -> None:
        """Imports PyTorch.

        Args:
            ddim_code: checkout of the code that the DDIM paper was released with.
            score_sde: checkout of score_sde.

        Raises:
            ImportError: PyTorch is not installed.
        """
        self.torch = torch_peers.import_torch()
        # Kept for as long as diffusers and torch-fidelity use torchvision.
        self._library = torch_peers.repair_torchvision(self.torch)
        self._ddim_code = ddim_code
        self._score_sde = score_sde

    @property
    def description(self) -> str:
        """Device and threads of PyTorch."""
        return torch_peers.describe_torch(self.torch)

    def forward(self, config: Config, params: Any, x: np.ndarray, times: np.ndarray, calls: int) -> _Makers:
        """``calls`` forward passes of x [n, h, w, c]; the last one's result where our parameters fit the network."""
        programs = self._with_networks(
            config, params, lambda network: torch_peers.forward_program(self.torch, config, network, x, times, calls)
        )
        checkout = self._score_sde
        if checkout is not None:
            programs[_SCORE_SDE] = lambda: score_sde.forward_program(config, checkout, x, times, calls)
        return programs

    def sample(self, config: Config, params: Any, num: int) -> _Makers:
        """One trajectory of ``num`` images."""
        return self._with_networks(
            config, params, lambda network: torch_peers.sample_program(self.torch, config, network, num)
        )

    def train(self, config: Config, params: Any, images: np.ndarray, steps: int) -> _Makers:
        """``steps`` training steps on uint8 images [n, h, w, c]."""
        programs = self._with_networks(
            config, params, lambda network: torch_peers.train_program(self.torch, config, network, images, steps)
        )
        checkout = self._score_sde
        if checkout is not None:
            programs[_SCORE_SDE] = lambda: score_sde.train_program(config, checkout, images, steps)
        return programs

    def _with_networks(self, config: Config, params: Any, task: Callable[[TorchNetwork], Program]) -> _Makers:
        """A task's programs for all networks in PyTorch."""
        diffusers = functools.partial(torch_peers.diffusers_network, self.torch, config, params)
        networks: dict[str, Callable[[], TorchNetwork]] = {
            _EAGER: diffusers,
            _COMPILED: lambda: torch_peers.compiled(self.torch, diffusers()),
        }
        if self._ddim_code is not None:
            networks[_DDIM_CODE] = functools.partial(
                torch_peers.ddim_code_network, self.torch, config, params, self._ddim_code
            )
        return {name: lambda build=build: task(build()) for name, build in networks.items()}
