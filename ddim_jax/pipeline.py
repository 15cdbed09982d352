"""The Python API: a trained model, ready to draw, encode and edit images.

>>> import ddim_jax
>>> pipe = ddim_jax.load("runs/digits")  # doctest: +SKIP
>>> images = pipe.sample(16, seed=0, steps=50, eta=0.0)  # doctest: +SKIP
"""

import base64
import dataclasses
import html
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from ddim_jax import arguments, parallel, writers
from ddim_jax.conditions import DataCondition
from ddim_jax.config import Config, with_sample
from ddim_jax.config.schema import NARROWEST_AVERAGE, WIDEST_AVERAGE
from ddim_jax.configured import (
    Guide,
    build_encoder,
    build_inpainting,
    build_normalization,
    build_predict,
    build_sampler,
    build_schedule,
    drawing_bytes,
    pictures,
    settings_of_levels,
)
from ddim_jax.data.reading import Images
from ddim_jax.diffusion.adaptive import adaptive_levels
from ddim_jax.diffusion.interpolation import slerp_grid, slerp_path
from ddim_jax.diffusion.loop import PaddedTable, padded
from ddim_jax.diffusion.samplers import initial_noise
from ddim_jax.diffusion.table import as_data
from ddim_jax.errors import UserError, shown
from ddim_jax.images import grid, to_pillow
from ddim_jax.memory import check_room
from ddim_jax.models import Model, build_model, parameter_count
from ddim_jax.random_streams import image_keys
from ddim_jax.sampling import programs
from ddim_jax.sampling.conditions import condition_of_images, sampling_condition
from ddim_jax.sampling.image_sampler import (
    image_indices,
    image_items,
    image_labels,
    program_config,
    reusable_batch_size_for,
)
from ddim_jax.sampling.tuned_steps import CHOOSING, FILLED_IN, with_tuned
from ddim_jax.sharded_map import ShardedMap
from ddim_jax.training.averages import averaged_variables, plan_average
from ddim_jax.training.checkpoint import restore_trained, select_weights
from ddim_jax.training.guide import load_guide
from ddim_jax.weights.forms import read_weights
from ddim_jax.weights.origins import meant_elsewhere
from ddim_jax.weights.shipped import SHIPPED, meant_by, shipped_file

_DECIDED_ELSEWHERE = {
    "checkpoint": "load(workdir, step=...) chooses it",
    "ema": "load(workdir, ema=...) chooses it",
    "ema_width": "load(workdir, ema_width=...) chooses it",
    "format": "images are returned as an array",
}


# Compiling takes longer than drawing a few images; but a program is large.
_PROGRAMS_KEPT = 8

# What a notebook shows of a pipeline, and on a CPU up to which size of the network.
_SHOWN_IMAGES = 4
_SHOWN_STEPS = 20
_SHOWN_WEIGHTS_TIMES_PIXELS = 2**33

# Before a call that was not asked to shows its progress: what is done sooner needs none.
_SILENT_SECONDS = 1.0


class Trajectory(NamedTuple):
    """Images on their way from noise.

    Attributes:
        steps: [K] numbers of the steps shown, from 0.
        x: [n, K, h, w, c], where each of them begins.
        x0: [n, K, h, w, c], the clean image predicted there.
        final: [n, h, w, c].
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

    The first call compiles a program, which takes seconds; another number of steps, eta, spacing or seed compiles
    nothing. ``progress=True`` shows how far a call is, ``False`` shows nothing; left out, it is shown in a terminal or
    a notebook. NaN is never returned: an image that
    comes out as such, by the weights or the settings, is a UserError.

    Images are arrays of the type and range of the data that the network was trained on (``config.data.dtype``, uint8
    unless it says otherwise).

    **Conditions.** Where a network draws images from more than a class, ``condition`` says from what: a dictionary of
    ``label`` int [n], ``vector`` float [n, d], and ``image``, the picture of ``data.condition``, of the data's type
    (with ``mask`` beside it for ``data.condition=mask``), or ``picture``, the same as float32 in [0, 1], from
    :meth:`condition_of`; or the array alone where the network knows one kind. Labels are as ever where left out;
    another kind may be None, which means "none", if training dropped it. There is one for each image, or, with
    ``per_condition=k``, for each k images in a row.

    Attributes:
        config: the resolved config; ``config.sample`` holds the default settings.
        model: the Flax network.
        variables: ``params`` and ``batch_stats`` as NumPy arrays.
        step: training steps done.
        workdir: where it was loaded from, which has the steps that were tuned for it; None for other files of weights.
        ema: whether the weights are moving averages, as far as there was a choice.
        average: of weights of a width that was asked for, what they were made of, see ``training/averages.py``; else
            None.
    """

    config: Config
    model: Model
    variables: Any
    step: int
    workdir: epath.PathLike | None = None
    ema: bool = True
    average: Mapping[str, Any] | None = None
    _compiled: dict[Any, ShardedMap] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    _guides: dict[Any, Guide] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    # With other weights or settings, by dataclasses.replace, it is another picture.
    _shown: list[str] = dataclasses.field(default_factory=list, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        """Returns what is loaded in a line."""
        height, width, channels = self.config.data.image_shape
        kind = "" if self.config.data.dtype == "uint8" else f"{self.config.data.dtype} "
        model = self.config.model
        classes = f", {model.num_classes} classes" if model.num_classes else ""
        if "vector" in model.kinds:
            classes += f", vectors of {model.vector_size}"
        if "image" in model.kinds:
            classes += f", from pictures ({self.config.data.condition})"
        return (
            f"<Pipeline of {parameter_count(self.params):,} parameters after {self.step:,} steps; {kind}images of "
            f"{width}x{height}x{channels}{classes}>"
        )

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: the line, and four images drawn in few steps.

        A CPU draws them for a small network alone; a notebook's cell must not hang for minutes. They are drawn once:
        shown again, the pipeline is the same.
        """
        if not self._shown:
            self._shown.append(self._html())
        return self._shown[0]

    def _html(self) -> str:
        line = html.escape(repr(self))
        height, width, _ = self.config.data.image_shape
        on_cpu = parallel.local_devices()[0].platform == "cpu"
        if on_cpu and parameter_count(self.params) * height * width > _SHOWN_WEIGHTS_TIMES_PIXELS:
            return f"<p>{line}</p>"
        try:
            images = self.sample(_SHOWN_IMAGES, steps=min(_SHOWN_STEPS, self.config.sample.steps), eta=0.0)
        except UserError as error:
            return f"<p>{line}</p><p>{html.escape(str(error))}</p>"
        file = io.BytesIO()
        show(self.pictures(images), columns=_SHOWN_IMAGES).save(file, format="PNG")
        data = base64.b64encode(file.getvalue()).decode()
        return f'<p>{line}</p><img alt="Four images that it draws" src="data:image/png;base64,{data}">'

    @property
    def params(self) -> Any:
        """The network's parameters: the moving averages unless loaded with ``ema=False``."""
        return self.variables["params"]

    @property
    def guide(self) -> Guide | None:
        """The network of ``sample.guide_workdir``; None where there is none or ``guidance_scale`` is 1."""
        return self._guide(self.config)

    def sample(
        self,
        num: int | None = None,
        *,
        seed: int = 0,
        start: int = 0,
        steps: int | None = None,
        eta: float | None = None,
        batch_size: int | None = None,
        condition: Any = None,
        progress: bool | None = None,
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
            condition: what the images are drawn from, see the class; with ``per_condition=k`` each of them serves k
                images in a row. As many images are drawn as that makes when ``num`` is left out.
            progress: see the class.
            **settings: see the class.

        Returns:
            [n, h, w, c].

        Raises:
            UserError: a setting that does not exist or cannot be used, or conditions of another shape or number.
        """
        if condition is not None and num is None and not {"indices", "per_class"} & settings.keys():
            each = settings.get("per_condition", self.config.sample.per_condition)
            each = arguments.whole_number(each, "per_condition", 1)
            num = arguments.condition_count(condition, self.config.model.kinds) * each
        if "indices" in settings:
            # None of them is how a list in the config is left out.
            may_be_empty = num is not None or "per_class" in settings
            named = arguments.indices(settings["indices"], "indices", may_be_empty=may_be_empty)
            if num is not None and len(named) and len(named) != num:
                raise UserError(f"num={shown(num)} and {len(named)} indices: give one of the two")
            settings["indices"] = named.tolist()
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
        indices = image_indices(config)
        return self._run(
            programs.image_program,
            config,
            as_data(build_sampler(config).table),
            image_items(config, indices, self._condition(config, indices, condition)),
            progress=progress,
        )

    def upscale(self, images: np.ndarray, **settings: Any) -> np.ndarray:
        """Draws large images of small ones, by a network with ``data.condition=downsample``.

        Args:
            images: [n, h / factor, w / factor, c], of the data's type.
            **settings: those of :meth:`sample`; ``per_condition=k`` draws k of each.

        Returns:
            [n, h, w, c].

        Raises:
            UserError: another network, or images of another size.
        """
        self._check_task(("downsample",), "upscale")
        return self.sample(condition={"image": images}, **settings)

    def restore(
        self, images: np.ndarray, mask: Sequence[Any] | np.ndarray | None = None, **settings: Any
    ) -> np.ndarray:
        """Draws whole images of spoilt ones, by a network that was trained to.

        Args:
            images: as ``data.condition`` has them, of the data's type: ``grey`` [n, h, w, 1], ``blur``, ``noise`` and
                ``mask`` [n, h, w, c], ``paired`` of their own shape.
            mask: for ``mask``: bool [h, w] or [n, h, w], True where the image is known; what it shows elsewhere does
                not matter.
            **settings: those of :meth:`sample`; ``per_condition=k`` draws k of each.

        Returns:
            [n, h, w, c].

        Raises:
            UserError: another network, or images of another size.
        """
        self._check_task(("grey", "blur", "noise", "mask", "paired"), "restore")
        return self.sample(condition={"image": images} if mask is None else {"image": images, "mask": mask}, **settings)

    def condition_of(
        self, images: np.ndarray, *, vectors: Sequence[Any] | np.ndarray | None = None, index: int = 0
    ) -> dict[str, np.ndarray]:
        """What the network would be given of real images: small, grey, masked ... as ``data.condition`` says.

        Args:
            images: [n, h, w, c], of the data's type.
            vectors: [n, d], for a network that is told some.
            index: the number of the first image, which decides its mask and noise.

        Returns:
            For ``condition`` of the other methods; the ``picture`` is float32 in [0, 1].

        Raises:
            UserError: the network is given no picture that can be made from an image.
        """
        images = arguments.pixels(images, self.config.data.image_shape, build_normalization(self.config))
        numbers = np.arange(index, index + len(images))
        given = None if vectors is None else arguments.vectors(vectors, len(images), self.config.model.vector_size)
        real = Images(images, np.zeros(len(images), np.int32), numbers, given)
        made = condition_of_images(self.config, real)
        if made.picture is None:
            raise UserError("condition_of: this network is given no picture (data.condition is empty)")
        return {"picture": made.picture} | ({} if given is None else {"vector": given})

    def steps_within(
        self, tolerance: float, num: int = 16, *, condition: Any = None, **settings: Any
    ) -> dict[str, list[Any]]:
        """Chooses steps such that each of them is off by a tolerance, see ``diffusion/adaptive.py``.

        >>> settings = pipe.steps_within(0.2)  # {"levels": [1000, ...]}; sigmas, where levels are real
        >>> images = pipe.sample(4, **settings)

        Args:
            tolerance: of a step, in units of the network's input, whose pixels have variance 1.
            num: images on which it is tried, the first ones.
            condition: what they are drawn from, see the class.
            **settings: see the class; those that say how predictions are made matter.

        Returns:
            Settings for the other methods, which visit these levels by any sampler.

        Raises:
            UserError: a tolerance that cannot be held, or settings that cannot be used.
        """
        config = self._config(**settings)
        indices = np.arange(arguments.whole_number(num, "num", 1))
        items = jax.tree.map(jnp.asarray, image_items(config, indices, self._condition(config, indices, condition)))
        x = initial_noise(image_keys(items.seed, items.index), config.data.image_shape)
        told = sampling_condition(config, items.condition, items.seed, items.index)
        with jax.default_matmul_precision(config.sample.precision):
            guide = self._guide(config)
            predict = build_predict(config, self.model, self.variables, told, config.sample.clip, guide)
            return settings_of_levels(config, adaptive_levels(predict, x, build_schedule(config), tolerance))

    def noise(self, indices: Sequence[int] | np.ndarray, **settings: Any) -> np.ndarray:
        """The noise x_T that images are drawn from: float32 [n, h, w, c]; ``decode`` makes the images of it.

        >>> noise = pipe.noise([7, 3])
        >>> int((pipe.decode(noise, steps=5) != pipe.sample(indices=[7, 3], steps=5)).sum())
        0
        """
        indices = arguments.indices(indices, "indices")
        config = self._config(**settings)
        table = as_data(build_sampler(config).table)
        # It asks no network: whatever images are drawn from.
        labels = DataCondition(image_labels(config, indices))
        return self._run(programs.noise_program, config, table, image_items(config, indices, labels))

    def encode(
        self,
        images: np.ndarray,
        *,
        iterations: int = 0,
        labels: Sequence[int] | np.ndarray | None = None,
        condition: Any = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Finds the noise that DDIM (eta = 0) would draw these images from: DDIM inversion.

        >>> latents = pipe.encode(digits, steps=20)
        >>> latents.dtype, latents.shape
        (dtype('float32'), (4, 8, 8, 1))

        Args:
            images: [n, h, w, c].
            iterations: 0 for the paper's explicit encoding; k > 0 for the implicit one, whose way back is exact in the
                limit of many, with k network evaluations a step.
            labels: int [n], classes, for a class-conditional network; the classes in turn when None.
            condition: what the images are drawn from, see the class.
            progress: see the class.
            **settings: see the class; ``steps`` above all.

        Returns:
            float32 [n, h, w, c].

        Raises:
            UserError: images of another size, or settings that cannot be used.
        """
        images = arguments.pixels(images, self.config.data.image_shape, build_normalization(self.config))
        iterations = arguments.whole_number(iterations, "iterations", 0)
        config = self._config(**settings)
        return self._run(
            programs.encode_program,
            config,
            as_data(build_encoder(config, iterations).table),
            self._items(config, len(images), labels, condition),
            images,
            progress=progress,
        )

    def decode(
        self,
        latents: np.ndarray,
        *,
        labels: Sequence[int] | np.ndarray | None = None,
        condition: Any = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Draws the images of given noise: float32 [n, h, w, c] → [n, h, w, c].

        >>> def error(steps):  # of encoding and decoding
        ...     back = pipe.decode(pipe.encode(digits, steps=steps), steps=steps)
        ...     return np.abs(back.astype(float) - digits).mean()
        >>> bool(error(steps=100) < error(steps=10))
        True

        Args:
            latents: from :meth:`encode` or :meth:`noise`, or anything like standard normal noise.
            labels: see :meth:`encode`.
            condition: see the class.
            progress: see the class.
            **settings: see the class.
        """
        latents = arguments.latents(latents, self.config.data.image_shape)
        config = self._config(**settings)
        return self._run(
            programs.decode_program,
            config,
            as_data(build_sampler(config).table),
            self._items(config, len(latents), labels, condition),
            latents,
            progress=progress,
        )

    def interpolate(
        self,
        first: Sequence[int] | np.ndarray,
        second: Sequence[int] | np.ndarray,
        points: int = 11,
        *,
        condition: Any = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Draws images between pairs of images, from noise on the arc between theirs (DDIM, appendix D.5).

        >>> pipe.interpolate([0, 2], [1, 3], points=5, steps=5).shape
        (2, 5, 8, 8, 1)

        Args:
            first: n image indices.
            second: n image indices.
            points: images per pair, both ends included.
            condition: what each of n rows is drawn from, see the class.
            progress: see the class.
            **settings: see the class; with eta = 0 the ends are the images themselves.

        Returns:
            [n, points, h, w, c].
        """
        first = arguments.indices(first, "first")
        second = arguments.indices(second, "second", count=len(first))
        points = arguments.whole_number(points, "points", 2)
        self._check_room(len(first) * points, "points", points)
        path = slerp_path(
            jnp.asarray(self.noise(first, **settings)), jnp.asarray(self.noise(second, **settings)), points
        )
        by_pair = np.swapaxes(np.asarray(path), 0, 1)
        if condition is not None:
            settings["per_condition"] = points
        images = self.decode(
            by_pair.reshape(-1, *by_pair.shape[2:]), condition=condition, progress=progress, **settings
        )
        return images.reshape(by_pair.shape)

    def interpolate_grid(
        self,
        corners: Sequence[int] | np.ndarray,
        side: int = 8,
        *,
        condition: Any = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Draws a square of images between four.

        >>> pipe.interpolate_grid([0, 1, 2, 3], side=3, steps=5).shape
        (3, 3, 8, 8, 1)

        Args:
            corners: image indices: top left, top right, bottom left, bottom right.
            side: images along a side.
            condition: one, what all of them are drawn from, see the class.
            progress: see the class.
            **settings: see the class.

        Returns:
            [side, side, h, w, c].
        """
        corners = arguments.indices(corners, "corners", count=4)
        side = arguments.whole_number(side, "side", 2)
        self._check_room(side**2, "side", side)
        square = np.asarray(slerp_grid(jnp.asarray(self.noise(corners, **settings)), side, side))
        if condition is not None:
            settings["per_condition"] = side**2
        images = self.decode(square.reshape(-1, *square.shape[2:]), condition=condition, progress=progress, **settings)
        return images.reshape(square.shape)

    def trajectory(
        self,
        indices: Sequence[int] | np.ndarray,
        moments: int = 10,
        *,
        condition: Any = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> Trajectory:
        """Draws images and keeps what is passed on the way, in memory for the moments kept alone.

        >>> way = pipe.trajectory([0, 1], moments=3, steps=20)
        >>> way.steps.tolist(), way.x0.shape
        ([0, 10, 19], (2, 3, 8, 8, 1))

        Args:
            indices: n image indices.
            moments: K, evenly spaced over the steps, the first step included.
            condition: what the images are drawn from, see the class.
            progress: see the class.
            **settings: see the class.
        """
        indices = arguments.indices(indices, "indices")
        moments = arguments.whole_number(moments, "moments", 1)
        config = self._config(**settings)
        sampler = build_sampler(config)
        kept = np.unique(np.linspace(0, sampler.steps - 1, min(moments, sampler.steps)).round().astype(int))
        images = self._run(
            programs.trajectory_program,
            config,
            as_data(sampler.table, kept),
            image_items(config, indices, self._condition(config, indices, condition)),
            progress=progress,
        )
        return Trajectory(kept, images.x, images.x0, images.final)

    def recover(
        self,
        images: np.ndarray,
        level: int,
        *,
        labels: Sequence[int] | np.ndarray | None = None,
        condition: Any = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> programs.Recovered:
        """Noises images up to a level and denoises them; SDEdit, for images unlike the training data's.

        >>> noised, recovered = pipe.recover(digits, level=100, steps=20)
        >>> recovered.shape
        (4, 8, 8, 1)

        Args:
            images: [n, h, w, c].
            level: 1 ... T; the higher, the less of the image survives.
            labels: see :meth:`encode`.
            condition: see the class.
            progress: see the class.
            **settings: see the class; ``steps`` counts those of a whole trajectory.

        Returns:
            The noised and the recovered images, both [n, h, w, c].
        """
        images = arguments.pixels(images, self.config.data.image_shape, build_normalization(self.config))
        level = arguments.whole_number(level, "level", 1, self.config.diffusion.num_levels)
        config = self._config(**settings)
        return self._run(
            programs.recover_program,
            config,
            as_data(build_sampler(config, level).table),
            self._items(config, len(images), labels, condition),
            images,
            progress=progress,
        )

    def inpaint(
        self,
        images: np.ndarray,
        mask: Sequence[Any] | np.ndarray,
        *,
        resamplings: int = 10,
        jump: int = 10,
        labels: Sequence[int] | np.ndarray | None = None,
        condition: Any = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Draws anew what a mask leaves out (RePaint).

        >>> keep_left = np.arange(8) < 4
        >>> mask = np.broadcast_to(keep_left, (8, 8))
        >>> result = pipe.inpaint(digits, mask, resamplings=2, jump=5, steps=10)
        >>> bool((result[:, :, :4] == digits[:, :, :4]).all())
        True

        Args:
            images: [n, h, w, c]; what they show outside the mask does not matter.
            mask: bool [h, w] or [n, h, w], True where the image is kept.
            resamplings: times that each stretch of steps is gone over.
            jump: steps of such a stretch.
            labels: see :meth:`encode`.
            condition: see the class.
            progress: see the class.
            **settings: see the class.

        Returns:
            [n, h, w, c].

        Raises:
            UserError: images or a mask of another size, or settings that cannot be used.
        """
        images = arguments.pixels(images, self.config.data.image_shape, build_normalization(self.config))
        masks = arguments.mask(mask, images.shape)
        resamplings = arguments.whole_number(resamplings, "resamplings", 1)
        jump = arguments.whole_number(jump, "jump", 1)
        config = self._config(**settings)
        drawn = self._run(
            programs.inpaint_program,
            config,
            padded(build_inpainting(config, resamplings, jump)),
            self._items(config, len(images), labels, condition),
            images,
            masks,
            progress=progress,
        )
        # Integers come back exactly, floats but for rounding.
        return np.where(masks, images, drawn) if config.data.dtype == "float32" else drawn

    def pictures(self, images: Any) -> np.ndarray:
        """Makes images of the data's type and channels such as can be seen: [..., h, w, 1 or 3], for :func:`show`.

        >>> pipe.pictures(pipe.sample(4, steps=5)).shape
        (4, 8, 8, 1)

        Images that are pictures already stay as they are. Of others ``config.data.range`` is made 0 ... 255, and
        ``config.data.shown_channels`` are shown.

        Args:
            images: [..., h, w, c], as the other methods return them, of any number of leading axes.

        Raises:
            UserError: images of another shape or type.
        """
        data = self.config.data
        return pictures(self.config, arguments.images_to_show(images, data.image_shape, data.dtype))

    def _config(self, **settings: Any) -> Config:
        """The config with other sampling settings, checked."""
        for name in settings:
            if name in _DECIDED_ELSEWHERE:
                raise UserError(f"sample.{name} means nothing here: {_DECIDED_ELSEWHERE[name]}")
        if self.config.sample.spacing == "tuned" and CHOOSING & settings.keys():
            # Filled in for other settings.
            settings = {**dict.fromkeys(FILLED_IN, ()), **settings}
        config = with_sample(self.config, **settings)
        if config.sample.spacing != "tuned":
            return config
        guide = self._guide(config)
        of_weights = with_sample(config, ema=self.ema, ema_width=self.average["width"] if self.average else 0.0)
        sample = with_tuned(of_weights, self.workdir, self.step, guide, self.average).sample
        return with_sample(config, **{name: getattr(sample, name) for name in FILLED_IN})

    def _check_room(self, count: int, name: str, value: int) -> None:
        """Refuses more images, with the noises that they are drawn from, than memory holds."""
        check_room(count * drawing_bytes(self.config), name, value, f"{count:,} images")

    def _items(
        self, config: Config, count: int, labels: Sequence[int] | np.ndarray | None, condition: Any
    ) -> programs.Items:
        indices = np.arange(config.sample.start, config.sample.start + count)
        given = self._condition(config, indices, condition, labels)
        return image_items(config, indices, given)

    def _condition(
        self, config: Config, indices: np.ndarray, given: Any, labels: Sequence[int] | np.ndarray | None = None
    ) -> DataCondition | None:
        """What each image is drawn from, checked; None where nothing was said."""
        labels = arguments.labels(labels, len(indices), config.model.num_classes)
        if given is None:
            # Else the one who makes the items says what is missing.
            return None if labels is None else DataCondition(labels) if config.model.kinds == ("class",) else None
        told = arguments.condition(given, config, len(indices), config.sample.per_condition)
        if labels is not None and told.label is not None:
            raise UserError("labels: the condition has labels, too; give one of the two")
        if told.label is None:
            told = told._replace(label=image_labels(config, indices) if labels is None else labels)
        return told

    def _check_task(self, tasks: tuple[str, ...], method: str) -> None:
        task = self.config.data.condition
        if task not in tasks:
            what = f"data.condition={task}" if task else "no data.condition"
            raise UserError(f"{method}() is for networks with data.condition={' or '.join(tasks)}; this one has {what}")

    def _guide(self, config: Config) -> Guide | None:
        """The network of ``sample.guide_workdir``, read once."""
        sample = config.sample
        if not sample.guide_workdir or sample.guidance_scale == 1:
            return None
        key = sample.guide_workdir, sample.guide_checkpoint, sample.ema
        if key not in self._guides:
            self._guides.clear()
            loaded = load_guide(config)
            assert loaded is not None, "there is one"
            self._guides[key] = loaded
        return self._guides[key]

    def _run(
        self,
        make: Callable[[Config, Model, Model | None], programs.Program],
        config: Config,
        table: PaddedTable,
        items: programs.Items,
        *given: np.ndarray,
        progress: bool | None = False,
    ) -> Any:
        """Runs a program on items; it is made and compiled once for all settings that are but data to it.

        Args:
            make: makes the program.
            config: the settings.
            table: what the sampler does.
            items: the images.
            given: what the program takes beside them.
            progress: see the class.
        """
        count = len(items.index)
        batch_size = reusable_batch_size_for(config, count)
        settings = program_config(config)
        guide = self._guide(config)
        # Another pipeline, made by dataclasses.replace, shares what is compiled.
        key = (make.__name__, settings, self.model, guide and guide.model, batch_size.size, len(table.kept))
        run = self._compiled.get(key)
        batch = (*given, items) if given else items
        devices = parallel.local_devices()
        of_guide = None if guide is None else parallel.replicate(guide.variables, devices)
        all_given = programs.Given(parallel.replicate(self.variables, devices), table, of_guide)
        show = writers.is_watched() if progress is None else arguments.switch(progress, "progress")
        doing = "encoding" if make is programs.encode_program else "drawing"
        if run is None:
            with writers.progress(1, f"{doing}: compiling the program", "program", show=show, leave=None) as bar:
                run = ShardedMap(make(settings, self.model, guide and guide.model), batch_size)
                run.compile(all_given, batch)
                bar.update()
            if len(self._compiled) == _PROGRAMS_KEPT:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[key] = run
        results = []
        delay = 0.0 if progress else _SILENT_SECONDS
        with writers.progress(count, doing, "image", show=show, leave=None, delay=delay) as bar:
            for where, checked in run.chunks(all_given, batch):
                results.append(programs.numbers_only(checked, items.index[where]))
                bar.update(where.stop - where.start)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def show(images: np.ndarray, columns: int | None = None) -> Image.Image:
    """Makes a picture to look at: images side by side; small ones are enlarged.

    In a notebook it shows itself; ``show(images).save("a.png")`` writes it.

    >>> show(np.zeros((6, 8, 8, 1), np.uint8), columns=3).size
    (200, 134)

    Args:
        images: uint8 [..., h, w, 1 or 3], as :class:`Pipeline` returns them, of any number of leading axes; of other
            types and channels :meth:`Pipeline.pictures` makes such.
        columns: images per row, or all where there are fewer. The last of several leading axes is a row when None, so
            that a pair of ``interpolate`` is one; otherwise the picture is about square.

    Raises:
        UserError: something else than images.
    """
    images = arguments.pictures(images)
    if columns is not None:
        columns = min(arguments.whole_number(columns, "columns", 1), images[..., 0, 0, 0].size)
    elif images.ndim > 4:
        columns = images.shape[-4]
    return to_pillow(grid(images.reshape(-1, *images.shape[-3:]), columns))


def load(
    workdir: epath.PathLike,
    step: int | Literal["best"] | None = None,
    ema: bool = True,
    ema_width: float | None = None,
) -> Pipeline:
    """Loads a trained model.

    >>> pipe = ddim_jax.load("mnist-small")  # doctest: +SKIP
    >>> pipe = ddim_jax.load("runs/digits", ema_width=0.08)  # doctest: +SKIP
    >>> pipe = ddim_jax.load("google/ddpm-cifar10-32")  # doctest: +SKIP

    Args:
        workdir: a folder that ``--mode=train`` wrote (``~`` is understood), or a model in this package, see
            ``weights/shipped.py``; or weights elsewhere: ``OWNER/NAME`` of the Hugging Face hub, where there is no
            folder of that name, or what :func:`load_weights` takes for such.
        step: step of the checkpoint; the newest when None; ``"best"`` is the one whose samples were measured best
            (``train.measure_every``).
        ema: take the moving averages of the parameters, as all published results do.
        ema_width: instead of those of ``train.ema_decay`` take averages of this width, see ``sample.ema_width``.

    Raises:
        UserError: the workdir holds no config or no such checkpoint, or an average that it has not the snapshots for.
    """
    if not isinstance(workdir, (str, os.PathLike)):
        raise UserError(f"load({shown(workdir)}): the path of a workdir is meant, or one of {', '.join(SHIPPED)}")
    if isinstance(step, str) and step != "best":
        raise UserError(f"step={step!r}: the step of a checkpoint is meant, or 'best', or None for the newest")
    if step is not None and not isinstance(step, str):
        step = arguments.whole_number(step, "step", 0)
    ema = arguments.switch(ema, "ema")
    width = _width(ema_width, ema)
    workdir = os.path.expanduser(workdir)
    shipped = shipped_file(workdir)
    if shipped is not None:
        if step is not None or not ema or width:
            raise UserError(f"{workdir} has one checkpoint, of averaged weights; load it without step, ema, ema_width")
        return load_weights(shipped)
    if (elsewhere := meant_elsewhere(workdir)) is not None:
        if step is not None or width:
            raise UserError(f"{workdir} has one checkpoint: load it without step and ema_width")
        try:
            return load_weights(elsewhere, ema=ema)
        except UserError as error:
            if elsewhere == workdir:
                raise
            raise UserError(f"there is no workdir {workdir} here; {error}") from error
    if (meant := meant_by(workdir)) is not None:
        raise UserError(f"there is no workdir {workdir}; did you mean '{meant}', a model in the package?")
    trained = restore_trained(workdir, step)
    plan = plan_average(workdir, trained.config, trained.step, width) if width else None
    variables = (
        select_weights(trained.state, ema)
        if plan is None
        else averaged_variables(workdir, trained.config, trained.state, plan)
    )
    record = None if plan is None else plan.record
    return Pipeline(trained.config, build_model(trained.config), variables, trained.step, workdir, ema, record)


def _width(ema_width: Any, ema: bool) -> float:
    """The width asked for, 0 for none, checked."""
    if ema_width is None:
        return 0.0
    is_number = isinstance(ema_width, (int, float, np.integer, np.floating)) and not isinstance(ema_width, bool)
    if not is_number or not (ema_width == 0 or NARROWEST_AVERAGE <= ema_width <= WIDEST_AVERAGE):
        raise UserError(
            f"ema_width={shown(ema_width)}: a width in {NARROWEST_AVERAGE} ... {WIDEST_AVERAGE} is meant, or None"
        )
    if ema_width and not ema:
        raise UserError(f"ema_width={ema_width:g}: ema=False asks for the raw parameters, which have no width")
    return float(ema_width)


def load_weights(path: str | os.PathLike[str], config: Config | None = None, ema: bool = True) -> Pipeline:
    """Loads weights that another project, or ``--mode=export``, published, without a workdir.

    >>> pipe = ddim_jax.load_weights("ema_cifar10.ckpt")  # doctest: +SKIP

    Args:
        path: a file or a folder, of any form that ``weights/forms.py`` knows; or where to fetch it from,
            ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION`` (Hugging Face hub), ``published:NAME``, ``https://...``.
        config: of the network. None where the file states it, as folders of diffusers and our own files do, or where
            its arrays are those of a published network (CIFAR-10, CelebA 64x64, LSUN and CelebA-HQ 256x256 of DDPM and
            DDIM; those of OpenAI's improved- and guided-diffusion).
        ema: take the moving averages of the parameters, where there is a choice.

    Raises:
        UserError: there is no such file, it is damaged or of no known form, or it holds another network.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"load_weights({shown(path)}): the path of a file or a folder of weights is meant")
    if config is not None and not isinstance(config, Config):
        raise UserError(f"config={shown(config)}: a ddim_jax.config.Config is meant, such as another pipeline's config")
    ema = arguments.switch(ema, "ema")
    weights = read_weights(path, config, ema)
    return Pipeline(weights.config, build_model(weights.config), weights.variables, weights.step)
