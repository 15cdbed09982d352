"""The Python API: a trained model, ready to draw, encode and edit images.

>>> import ddim_jax
>>> pipe = ddim_jax.load("runs/digits")  # doctest: +SKIP
>>> images = pipe.sample(16, seed=0, steps=50, eta=0.0)  # doctest: +SKIP
"""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ddim_jax import arguments
from ddim_jax.config import Config, with_sample
from ddim_jax.configured import build_encoder, build_sampler
from ddim_jax.diffusion.interpolation import slerp_grid, slerp_path
from ddim_jax.errors import UserError
from ddim_jax.models import Model, build_model
from ddim_jax.sampling import programs
from ddim_jax.sampling.image_sampler import batch_size_for, image_indices, image_items, program_settings
from ddim_jax.sharded_map import ShardedMap
from ddim_jax.training.checkpoint import Checkpoints, select_weights
from ddim_jax.training.state import abstract_state, make_optimizer
from ddim_jax.weights.forms import read_weights
from ddim_jax.workdir import best_dir, checkpoint_dir, read_config

# Models that come with the package; ``pretrained/NAME.md`` says what each is.
SHIPPED = ("mnist-small",)

_DECIDED_ELSEWHERE = {
    "checkpoint": "load(workdir, step=...) chooses it",
    "ema": "load(workdir, ema=...) chooses it",
    "format": "images are returned as an array",
}


# Compiling takes longer than drawing a few images; but a program is large.
_PROGRAMS_KEPT = 8


class Trajectory(NamedTuple):
    """Images on their way from noise.

    Attributes:
        steps: [K] numbers of the steps shown, from 0.
        x: uint8 [n, K, h, w, c], where each of them begins.
        x0: uint8 [n, K, h, w, c], the clean image predicted there.
        final: uint8 [n, h, w, c].
    """

    steps: np.ndarray
    x: np.ndarray
    x0: np.ndarray
    final: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A network with weights.

    The methods' keyword arguments ``settings`` are keys of ``config.sample``, e.g. ``steps=20``, ``eta=1.0``,
    ``sampler="unipc2"``, ``spacing="quad"``, ``seed=3`` or ``batch_size=8``; what is not given is taken from there. In
    the examples ``pipe`` draws 8x8 digits, and ``digits`` are four real ones.

    Attributes:
        config: the resolved config; ``config.sample`` holds the default settings.
        model: the Flax network.
        variables: ``params`` and ``batch_stats`` as NumPy arrays.
        step: training steps done.
    """

    config: Config
    model: Model
    variables: Any
    step: int
    _compiled: dict[Any, ShardedMap] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @property
    def params(self) -> Any:
        """The network's parameters: the moving averages unless loaded with ``ema=False``."""
        return self.variables["params"]

    def sample(
        self,
        num: int | None = None,
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

        >>> pipe.sample(4, steps=5).shape
        (4, 8, 8, 1)
        >>> images = pipe.sample(indices=[7, 3], steps=5)
        >>> bool((images[0] == pipe.sample(1, start=7, steps=5)[0]).all())
        True

        Args:
            num: number of images n; or give ``indices`` or ``per_class``.
            seed: seed of the images.
            start: index of the first image.
            steps: steps S.
            eta: 0 for DDIM, 1 for DDPM's posterior variance.
            batch_size: images per device at a time.
            **settings: see the class.

        Returns:
            uint8 [n, h, w, c].

        Raises:
            UserError: a setting that does not exist or cannot be used.
        """
        if num is None and not settings.get("per_class") and "indices" in settings:
            arguments.indices(settings["indices"], "indices")
        given = {"num": num, "steps": steps, "eta": eta, "batch_size": batch_size}
        settings.update({key: value for key, value in given.items() if value is not None})
        # What is given counts, not a list in the config that would replace it.
        if num is not None:
            settings = {"indices": (), "per_class": 0, **settings}
        if steps is not None:
            settings.setdefault("levels", ())
        if eta is not None:
            settings.setdefault("eta_per_step", ())
        config = self._config(seed=seed, start=start, **settings)
        return self._run(
            lambda: programs.image_program(config, self.model, build_sampler(config)),
            ("sample",),
            config,
            image_items(config, image_indices(config)),
        )

    def noise(self, indices: Sequence[int] | np.ndarray, **settings: Any) -> np.ndarray:
        """The noise x_T that images are drawn from: float32 [n, h, w, c]; ``decode`` makes the images of it.

        >>> noise = pipe.noise([7, 3])
        >>> int((pipe.decode(noise, steps=5) != pipe.sample(indices=[7, 3], steps=5)).sum())
        0
        """
        indices = arguments.indices(indices, "indices")
        config = self._config(**settings)
        return self._run(lambda: programs.noise_program(config), ("noise",), config, image_items(config, indices))

    def encode(
        self, images: np.ndarray, *, iterations: int = 0, labels: np.ndarray | None = None, **settings: Any
    ) -> np.ndarray:
        """Finds the noise that DDIM (eta = 0) would draw these images from: DDIM inversion.

        >>> latents = pipe.encode(digits, steps=20)
        >>> latents.dtype, latents.shape
        (dtype('float32'), (4, 8, 8, 1))

        Args:
            images: uint8 [n, h, w, c].
            iterations: 0 for the paper's explicit encoding; k > 0 for the implicit one, whose way back is exact in the
                limit of many, with k network evaluations a step.
            labels: int [n], classes, for a class-conditional network; the classes in turn when None.
            **settings: see the class; ``steps`` above all.

        Returns:
            float32 [n, h, w, c].

        Raises:
            UserError: images of another size, or settings that cannot be used.
        """
        images = arguments.pixels(images, self.config.data.image_shape)
        iterations = arguments.whole_number(iterations, "iterations", 0)
        config = self._config(**settings)
        return self._run(
            lambda: programs.encode_program(config, self.model, build_encoder(config, iterations)),
            ("encode", iterations),
            config,
            (images, self._items(config, len(images), labels)),
        )

    def decode(self, latents: np.ndarray, *, labels: np.ndarray | None = None, **settings: Any) -> np.ndarray:
        """Draws the images of given noise: float32 [n, h, w, c] → uint8 [n, h, w, c].

        >>> def error(steps):  # of encoding and decoding
        ...     back = pipe.decode(pipe.encode(digits, steps=steps), steps=steps)
        ...     return np.abs(back.astype(float) - digits).mean()
        >>> bool(error(steps=100) < error(steps=10))
        True

        Args:
            latents: from :meth:`encode` or :meth:`noise`, or anything like standard normal noise.
            labels: see :meth:`encode`.
            **settings: see the class.
        """
        latents = arguments.latents(latents, self.config.data.image_shape)
        config = self._config(**settings)
        return self._run(
            lambda: programs.decode_program(config, self.model, build_sampler(config)),
            ("decode",),
            config,
            (latents, self._items(config, len(latents), labels)),
        )

    def interpolate(
        self, first: Sequence[int] | np.ndarray, second: Sequence[int] | np.ndarray, points: int = 11, **settings: Any
    ) -> np.ndarray:
        """Draws images between pairs of images, from noise on the arc between theirs (DDIM, appendix D.5).

        >>> pipe.interpolate([0, 2], [1, 3], points=5, steps=5).shape
        (2, 5, 8, 8, 1)

        Args:
            first: n image indices.
            second: n image indices.
            points: images per pair, both ends included.
            **settings: see the class; with eta = 0 the ends are the images themselves.

        Returns:
            uint8 [n, points, h, w, c].
        """
        first = arguments.indices(first, "first")
        second = arguments.indices(second, "second", count=len(first))
        points = arguments.whole_number(points, "points", 2)
        path = slerp_path(
            jnp.asarray(self.noise(first, **settings)), jnp.asarray(self.noise(second, **settings)), points
        )
        by_pair = np.swapaxes(np.asarray(path), 0, 1)
        images = self.decode(by_pair.reshape(-1, *by_pair.shape[2:]), **settings)
        return images.reshape(by_pair.shape)

    def interpolate_grid(self, corners: Sequence[int] | np.ndarray, side: int = 8, **settings: Any) -> np.ndarray:
        """Draws a square of images between four.

        >>> pipe.interpolate_grid([0, 1, 2, 3], side=3, steps=5).shape
        (3, 3, 8, 8, 1)

        Args:
            corners: image indices: top left, top right, bottom left, bottom right.
            side: images along a side.
            **settings: see the class.

        Returns:
            uint8 [side, side, h, w, c].
        """
        corners = arguments.indices(corners, "corners", count=4)
        side = arguments.whole_number(side, "side", 2)
        square = np.asarray(slerp_grid(jnp.asarray(self.noise(corners, **settings)), side, side))
        return self.decode(square.reshape(-1, *square.shape[2:]), **settings).reshape(square.shape)

    def trajectory(self, indices: Sequence[int] | np.ndarray, moments: int = 10, **settings: Any) -> Trajectory:
        """Draws images and keeps what is passed on the way, in memory for the moments kept alone.

        >>> way = pipe.trajectory([0, 1], moments=3, steps=20)
        >>> way.steps.tolist(), way.x0.shape
        ([0, 10, 19], (2, 3, 8, 8, 1))

        Args:
            indices: n image indices.
            moments: K, evenly spaced over the steps, the first step included.
            **settings: see the class.
        """
        indices = arguments.indices(indices, "indices")
        moments = arguments.whole_number(moments, "moments", 1)
        config = self._config(**settings)
        sampler = build_sampler(config)
        kept = np.unique(np.linspace(0, sampler.steps - 1, min(moments, sampler.steps)).round().astype(int))
        images = self._run(
            lambda: programs.trajectory_program(config, self.model, sampler, kept),
            ("trajectory", *kept.tolist()),
            config,
            image_items(config, indices),
        )
        return Trajectory(kept, images.x, images.x0, images.final)

    def recover(
        self, images: np.ndarray, level: int, *, labels: np.ndarray | None = None, **settings: Any
    ) -> programs.Recovered:
        """Noises images up to a level and denoises them; SDEdit, for images unlike the training data's.

        >>> noised, recovered = pipe.recover(digits, level=100, steps=20)
        >>> recovered.shape
        (4, 8, 8, 1)

        Args:
            images: uint8 [n, h, w, c].
            level: 1 ... T; the higher, the less of the image survives.
            labels: see :meth:`encode`.
            **settings: see the class; ``steps`` counts those of a whole trajectory.

        Returns:
            The noised and the recovered images, both uint8 [n, h, w, c].
        """
        images = arguments.pixels(images, self.config.data.image_shape)
        level = arguments.whole_number(level, "level", 1, self.config.diffusion.num_levels)
        config = self._config(**settings)
        return self._run(
            lambda: programs.recover_program(config, self.model, level),
            ("recover", level),
            config,
            (images, self._items(config, len(images), labels)),
        )

    def inpaint(
        self,
        images: np.ndarray,
        mask: np.ndarray,
        *,
        resamplings: int = 10,
        jump: int = 10,
        labels: np.ndarray | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Draws anew what a mask leaves out (RePaint).

        >>> keep_left = np.arange(8) < 4
        >>> mask = np.broadcast_to(keep_left, (8, 8))
        >>> result = pipe.inpaint(digits, mask, resamplings=2, jump=5, steps=10)
        >>> bool((result[:, :, :4] == digits[:, :, :4]).all())
        True

        Args:
            images: uint8 [n, h, w, c]; what they show outside the mask does not matter.
            mask: bool [h, w] or [n, h, w], True where the image is kept.
            resamplings: times that each stretch of steps is gone over.
            jump: steps of such a stretch.
            labels: see :meth:`encode`.
            **settings: see the class.

        Returns:
            uint8 [n, h, w, c].

        Raises:
            UserError: images or a mask of another size, or settings that cannot be used.
        """
        images = arguments.pixels(images, self.config.data.image_shape)
        masks = arguments.mask(mask, images.shape)
        resamplings = arguments.whole_number(resamplings, "resamplings", 1)
        jump = arguments.whole_number(jump, "jump", 1)
        config = self._config(**settings)
        sampler = build_sampler(config)
        return self._run(
            lambda: programs.inpaint_program(config, self.model, sampler, resamplings, jump),
            ("inpaint", resamplings, jump),
            config,
            (images, masks, self._items(config, len(images), labels)),
        )

    def _config(self, **settings: Any) -> Config:
        """The config with other sampling settings, checked."""
        for name in settings:
            if name in _DECIDED_ELSEWHERE:
                raise UserError(f"sample.{name} means nothing here: {_DECIDED_ELSEWHERE[name]}")
        return with_sample(self.config, **settings)

    def _items(self, config: Config, count: int, labels: np.ndarray | None) -> programs.Items:
        given = arguments.labels(labels, count, config.model.num_classes)
        items = image_items(config, np.arange(config.sample.start, config.sample.start + count))
        return items if given is None else items._replace(label=given)

    def _run(self, make: Callable[[], programs.Program], what: tuple[Any, ...], config: Config, items: Any) -> Any:
        """Runs a program on items; it is made and compiled once for each set of settings that matter to it."""
        count = len(jax.tree.leaves(items)[0])
        batch_size = batch_size_for(config, count)
        settings = dataclasses.replace(program_settings(config.sample), batch_size=batch_size.size)
        key = (*what, settings)
        if key not in self._compiled:
            if len(self._compiled) == _PROGRAMS_KEPT:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[key] = ShardedMap(make(), batch_size)
        return self._compiled[key](self.variables, items)


def load(workdir: epath.PathLike, step: int | Literal["best"] | None = None, ema: bool = True) -> Pipeline:
    """Loads a trained model.

    >>> pipe = ddim_jax.load("mnist-small")  # doctest: +SKIP

    Args:
        workdir: a folder that ``--mode=train`` wrote, or one of :data:`SHIPPED`, the models in this package.
        step: step of the checkpoint; the newest when None; ``"best"`` is the one whose samples were measured best
            (``train.measure_every``).
        ema: take the moving averages of the parameters, as all published results do.

    Raises:
        UserError: the workdir holds no config or no such checkpoint.
    """
    if not isinstance(workdir, (str, os.PathLike)):
        raise UserError(f"load({workdir!r}): the path of a workdir is meant, or one of {', '.join(SHIPPED)}")
    if isinstance(step, str) and step != "best":
        raise UserError(f"step={step!r}: the step of a checkpoint is meant, or 'best', or None for the newest")
    if step is not None and step != "best":
        step = arguments.whole_number(step, "step", 0)
    if os.fspath(workdir) in SHIPPED and not epath.Path(workdir).exists():
        if step is not None or not ema:
            raise UserError(f"{workdir} has one checkpoint, of averaged weights; load it without step and ema")
        return load_weights(pathlib.Path(__file__).parent / "pretrained" / f"{workdir}.safetensors")
    if not epath.Path(workdir).exists() and (close := difflib.get_close_matches(os.fspath(workdir), SHIPPED, n=1)):
        raise UserError(f"there is no workdir {workdir}; did you mean '{close[0]}', a model in the package?")
    config = read_config(workdir)
    model = build_model(config)
    directory = best_dir(workdir) if step == "best" else checkpoint_dir(workdir)
    if not directory.exists():
        what = " that was measured (train.measure_every)" if step == "best" else ""
        raise UserError(f"no checkpoint{what} in workdir {workdir}: train there first, or name another --workdir")
    like = abstract_state(config, model, make_optimizer(config.train, 1))
    with Checkpoints(directory, read_only=True) as checkpoints:
        newest = checkpoints.latest_step()
        if newest is None:
            raise UserError(f"no checkpoint in workdir {workdir}: train there first, or name another --workdir")
        step = step if isinstance(step, int) else newest
        state = checkpoints.restore(step, like)
    return Pipeline(config, model, select_weights(state, ema), step)


def load_weights(path: str | os.PathLike[str], config: Config | None = None, ema: bool = True) -> Pipeline:
    """Loads weights that another project, or ``--mode=export``, published, without a workdir.

    >>> pipe = ddim_jax.load_weights("ema_cifar10.ckpt")  # doctest: +SKIP

    Args:
        path: a file or a folder, of any form that ``weights/forms.py`` knows.
        config: of the network. None where the file states it, as folders of diffusers and our own files do, or where
            its arrays are those of a published network (CIFAR-10, CelebA 64x64, LSUN and CelebA-HQ 256x256).
        ema: take the moving averages of the parameters, where there is a choice.

    Raises:
        UserError: there is no such file, it is damaged or of no known form, or it holds another network.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"load_weights({path!r}): the path of a file or a folder of weights is meant")
    weights = read_weights(path, config, ema)
    return Pipeline(weights.config, build_model(weights.config), weights.variables, weights.step)
