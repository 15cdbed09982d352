"""The operations that describe, benchmark.py and inspect_program.py count in a traced function."""

import jax
import jax.numpy as jnp
import pytest

from ddim_jax.jobs.describe import flops
from ddim_jax.models.convolution import convolve


@pytest.mark.parametrize("channels", [3, 64])
def test_a_convolution_counts_the_same_whatever_form_a_cpu_takes(channels):
    x, kernel = jnp.zeros((2, 8, 6, channels)), jnp.zeros((3, 3, channels, 128))
    assert flops(jax.make_jaxpr(convolve)(x, kernel)) == 2 * (2 * 8 * 6 * 128) * (9 * channels)


def test_loops_count_as_often_as_they_run_and_branches_by_the_dearest():
    square = jnp.zeros((5, 5))

    def power(x, long):
        dearest = jax.lax.cond(long, lambda x: x @ x @ x, lambda x: x @ x, x)
        return jax.lax.scan(lambda x, _: (x @ x, None), dearest, length=7)[0]

    assert flops(jax.make_jaxpr(power)(square, True)) == (2 + 7) * 2 * 5**3
