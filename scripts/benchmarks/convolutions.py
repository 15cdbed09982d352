"""3x3 convolutions in Winograd's form beside XLA's own, by which ``models/convolution.py`` chooses on a CPU."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rows import OURS, Program, Row, Task
from benchmarks.setting import Setting
from ddim_jax.models import winograd

# Height and width, channels, features.
_SHAPES = (
    *((8, 32, 32), (8, 64, 64), (8, 128, 128), (8, 256, 256)),
    *((7, 64, 64), (14, 64, 64), (16, 64, 64), (16, 128, 128), (16, 256, 256), (16, 512, 256)),
    *((32, 32, 32), (32, 64, 64), (32, 128, 64), (32, 128, 128), (32, 256, 128), (32, 384, 128)),
)

# Of small ones so many that a repeat takes some milliseconds.
_FLOP_OF_A_REPEAT = 5e9

_Function = Callable[[jax.Array, jax.Array], jax.Array]


def measure_convolutions(setting: Setting) -> list[Row]:
    """The result, and the gradients of image and kernel, of a batch on one device."""
    rows = []
    for size, channels, features in _SHAPES:
        rng = np.random.default_rng(0)
        shapes = [
            (setting.batch, size, size, channels),
            (3, 3, channels, features),
            (setting.batch, size, size, features),
        ]
        x, kernel, gradient = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
        flop = 2 * kernel.size * x.size / channels
        for name, ours, plain, operands in (
            ("result", winograd.convolve, _plain, (x, kernel)),
            ("image's gradient", winograd.image_gradient, _plain_image_gradient, (gradient, kernel)),
            ("kernel's gradient", winograd.kernel_gradient, _plain_kernel_gradient, (x, gradient)),
        ):
            calls = max(1, round(_FLOP_OF_A_REPEAT / flop))
            programs = {OURS: ours, "XLA's own": plain}
            task = Task(f"{size}x{size}, {channels} to {features}: {name}", calls * setting.batch, calls * flop)
            makers = {name: functools.partial(_repeated, each, operands, calls) for name, each in programs.items()}
            rows += setting.compare(task, makers).rows
    return rows


def _repeated(function: _Function, operands: tuple[Any, Any], calls: int) -> Program:
    def run() -> None:
        for _ in range(calls):
            jax.block_until_ready(function(*operands))

    return Program(run)


@jax.jit
def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.jit
def _plain_image_gradient(gradient: jax.Array, kernel: jax.Array) -> jax.Array:
    image = jax.ShapeDtypeStruct((*gradient.shape[:3], kernel.shape[2]), gradient.dtype)
    return jax.linear_transpose(lambda x: _plain(x, kernel), image)(gradient)[0]


@jax.jit
def _plain_kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[3], gradient.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: _plain(x, kernel), kernel)(gradient)[0]
