"""Every sampler by name, and the noise that they begin with.

The tables are made in ``ddim.py``, ``solvers.py``, ``sde_solvers.py`` and ``tuning.py``, the loop that runs them all is
that of ``table.py``.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ddim_jax.diffusion import sde_solvers, solvers
from ddim_jax.diffusion.ddim import (
    consistency_table,
    ddim_table,
    ddpm_large_table,
    ddpm_learned_table,
    ddpm_small_table,
)
from ddim_jax.diffusion.loop import KeptStates
from ddim_jax.diffusion.prediction import Predict
from ddim_jax.diffusion.schedule import Schedule
from ddim_jax.diffusion.sde_solvers import Churn
from ddim_jax.diffusion.table import SamplerTable, sample, sample_keeping
from ddim_jax.diffusion.tuning import tuned_table
from ddim_jax.errors import UserError
from ddim_jax.names import SamplerName, lookup
from ddim_jax.random_streams import normal_each


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """A sampler on chosen levels, ready to run with any network; or an encoder, which goes the other way.

    Attributes:
        name: what :func:`make_sampler` calls it.
        table: what it does, one row per network evaluation.
    """

    name: str
    table: SamplerTable

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return len(self.table.time)

    @property
    def steps(self) -> int:
        """Steps from level to level; as many as evaluations unless a step asks the network more than once."""
        return int(self.table.step[-1]) + 1

    def run(self, predict: Predict, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Takes x, [n, h, w, c], from the first level to the last.

        Args:
            predict: see ``prediction.py``.
            x: at the level of the first row; :func:`initial_noise` if that is the noisiest.
            keys: [n], one per image; needed by samplers that add noise, ignored by the others.
        """
        return sample(predict, x, self.table, keys)

    def run_keeping(
        self, predict: Predict, x: jax.Array, steps: Sequence[int] | np.ndarray, keys: jax.Array | None = None
    ) -> tuple[jax.Array, KeptStates]:
        """:meth:`run`, which also returns x and the predicted x0 at the beginning of K steps, numbered from 0.

        Needs memory for K pairs of images however many steps there are.

        Raises:
            UserError: there is no such step, or one is named twice.
        """
        return sample_keeping(predict, x, self.table, steps, keys)


class SamplerRule(NamedTuple):
    """What makes a sampler: a row of ``SAMPLERS``.

    Attributes:
        table: from the schedule and the pairs [S, 2] of levels to the table; one that takes an eta has it as its third.
        eta: ``taken``; ``implied`` by the sampler's name, which then wins over any number; or ``zero``, which anything
            else contradicts, since the sampler adds no noise.
        churns: whether the table takes a :class:`~ddim_jax.diffusion.sde_solvers.Churn` as its third.
        is_tuned: whether it takes coefficients as its third, which only the levels that they were fitted for have.
    """

    table: Callable[..., SamplerTable]
    eta: Literal["taken", "implied", "zero"] = "zero"
    churns: bool = False
    is_tuned: bool = False


SAMPLERS: dict[str, SamplerRule] = {
    "ddim": SamplerRule(ddim_table, eta="taken"),
    "ddpm_small": SamplerRule(ddpm_small_table, eta="implied"),
    "ddpm_large": SamplerRule(ddpm_large_table, eta="implied"),
    "ddpm_learned": SamplerRule(ddpm_learned_table, eta="implied"),
    "heun": SamplerRule(solvers.heun_table),
    "ab2": SamplerRule(functools.partial(solvers.adams_bashforth_table, order=2)),
    "ab3": SamplerRule(functools.partial(solvers.adams_bashforth_table, order=3)),
    "ab4": SamplerRule(functools.partial(solvers.adams_bashforth_table, order=4)),
    "plms": SamplerRule(solvers.plms_table),
    "dpmpp_2m": SamplerRule(solvers.dpm_solver_pp_2m_table),
    "unipc2": SamplerRule(functools.partial(solvers.unipc_table, order=2)),
    "unipc3": SamplerRule(functools.partial(solvers.unipc_table, order=3)),
    "ipndm": SamplerRule(solvers.ipndm_table),
    "deis2": SamplerRule(functools.partial(solvers.deis_table, order=2)),
    "deis3": SamplerRule(functools.partial(solvers.deis_table, order=3)),
    "deis4": SamplerRule(functools.partial(solvers.deis_table, order=4)),
    "flow_heun": SamplerRule(solvers.flow_heun_table),
    "edm": SamplerRule(sde_solvers.edm_table, churns=True),
    "edm_euler": SamplerRule(functools.partial(sde_solvers.edm_table, order=1), churns=True),
    "dpmpp_2m_sde": SamplerRule(sde_solvers.dpm_solver_pp_2m_sde_table, eta="implied"),
    "dpmpp_3m_sde": SamplerRule(sde_solvers.dpm_solver_pp_3m_sde_table, eta="implied"),
    "euler_ancestral": SamplerRule(ddpm_small_table, eta="implied"),
    "consistency": SamplerRule(consistency_table, eta="implied"),
    "tuned": SamplerRule(tuned_table, is_tuned=True),
}


def takes_eta(name: str) -> bool:
    """Whether eta is a setting of the sampler."""
    return lookup(SAMPLERS, name, "sampler").eta == "taken"


def make_sampler(
    name: SamplerName,
    schedule: Schedule,
    pairs: np.ndarray,
    eta: ArrayLike = 0.0,
    churn: Churn = Churn(),  # noqa: B008 - immutable
    coefficients: Sequence[float] | np.ndarray = (),
) -> Sampler:
    """Builds a sampler by name.

    With S steps, ending at the clean image:

    | name | what it is | evaluations |
    |---|---|---|
    | ``ddim`` | DDIM at any eta (Song et al. 2021) | S |
    | ``ddpm_small``, ``ddpm_large`` | DDPM, posterior variance or beta (Ho et al. 2020) | S |
    | ``ddpm_learned`` | DDPM, the variance that the network predicts (Nichol and Dhariwal 2021) | S |
    | ``heun`` | Heun, order 2 (Karras et al. 2022) | 2 S - 1 |
    | ``ab2``, ``ab3``, ``ab4`` | Adams-Bashforth on the noise (Zhang and Chen 2023) | S |
    | ``plms`` | pseudo linear multistep, as published (Liu et al. 2022) | S + 1 |
    | ``dpmpp_2m`` | DPM-Solver++ 2M, order 2 (Lu et al. 2022) | S |
    | ``unipc2``, ``unipc3`` | UniPC with predictor of order 2 or 3 (Zhao et al. 2023) | S |
    | ``ipndm`` | PLMS without its trial, order grows to 4 (Zhang and Chen 2023) | S |
    | ``deis2``, ``deis3``, ``deis4`` | DEIS in log(sigma / alpha) (Zhang and Chen 2023) | S |
    | ``flow_heun`` | Heun on rectified flow's velocity, order 2 | 2 S - 1 |
    | ``edm``, ``edm_euler`` | Heun or Euler, with noise before each step (Karras et al. 2022) | 2 S - 1, S |
    | ``dpmpp_2m_sde``, ``dpmpp_3m_sde`` | SDE-DPM-Solver++ (Lu et al. 2022; k-diffusion) | S |
    | ``euler_ancestral`` | another name of ``ddpm_small``, k-diffusion's | S |
    | ``consistency`` | all noise drawn anew at each step (Song et al. 2023); for consistency models | S |
    | ``tuned`` | coefficients fitted to a network, see ``tuning.py`` | S |

    >>> from ddim_jax.diffusion import level_pairs, make_schedule, sampling_levels
    >>> schedule = make_schedule("linear")
    >>> sampler = make_sampler("heun", schedule, level_pairs(sampling_levels("uniform", 1000, 10)))
    >>> sampler.steps, sampler.evaluations
    (10, 19)

    Args:
        name: a row of ``SAMPLERS``.
        schedule: the noise levels.
        pairs: [S, 2], see :func:`~ddim_jax.diffusion.spacing.level_pairs`.
        eta: of ``ddim``, a number or one per step. Ignored by DDPM and others whose name says it; not 0 is an
            error for the rest, which have no use for it.
        churn: of ``edm`` and ``edm_euler``.
        coefficients: of ``tuned``, see :func:`~ddim_jax.diffusion.tuning.tuned_table`.

    Raises:
        UserError: an unknown name, an eta that cannot be used, or levels that the sampler cannot use.
    """
    rule = lookup(SAMPLERS, name, "sampler")
    if rule.eta == "zero" and np.any(np.asarray(eta) != 0):
        raise UserError(f"eta={np.asarray(eta).tolist()}: sampler '{name}' adds no noise; set eta=0, or choose ddim")
    further: tuple[Any, ...] = (eta,) if rule.eta == "taken" else (churn,) if rule.churns else ()
    further = (coefficients,) if rule.is_tuned else further
    return Sampler(name, rule.table(schedule, pairs, *further))


def initial_noise(keys: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Draws x_T ~ N(0, I): [n, *shape], draw 0 of each of n keys, and so the same for any number of steps."""
    return normal_each(keys, 0, shape, dtype)
